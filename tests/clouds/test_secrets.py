"""Credentials come from where the clouds' own tools keep them, and no trace of them is in anything that a run leaves."""

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.conftest import paint_classes, quick_settings, run_job


@pytest.fixture(scope="module")
def private_key():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*pem).decode()


@pytest.fixture
def google_secrets(google, private_key, tmp_path):
    """A service account whose tokens the bed gives out, as application default credentials; and what must not be found."""
    file = tmp_path / "home" / "account.json"
    file.parent.mkdir()
    account = {
        "type": "service_account",
        "project_id": "none",
        "private_key_id": "CANARY-KEY-ID",
        "private_key": private_key,
        "client_email": "job@none.iam.gserviceaccount.com",
        "token_uri": f"{google.url}/token",
    }
    file.write_text(json.dumps(account))
    environment = {
        "GOOGLE_APPLICATION_CREDENTIALS": str(file),
        "API_ENDPOINT_OVERRIDE": google.url,
        "STORAGE_EMULATOR_HOST": "",
    }
    return environment, ["CANARY-KEY-ID", private_key.splitlines()[3], google.token]


@pytest.fixture
def amazon_secrets(amazon):
    canaries = {
        "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY",
        "AWS_SECRET_ACCESS_KEY": "CANARY/SECRET",
        "AWS_SESSION_TOKEN": "CANARY-SESSION",
    }
    return canaries, list(canaries.values())


def leaks(folder, canaries):
    return [
        (path, canary)
        for path in folder.rglob("*")
        if path.is_file()
        for canary in canaries
        if canary.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("cloud", ["google", "amazon"])
def test_nothing_that_a_run_leaves_holds_a_secret(request, cloud, tmp_path):
    bed = request.getfixturevalue(cloud)
    environment, canaries = request.getfixturevalue(f"{cloud}_secrets")
    bucket = bed.bucket()
    bed.put_folder(paint_classes(tmp_path / "photos", per_class=12), f"{bucket}/photos")
    node = tmp_path / "node"
    node.mkdir()
    settings = quick_settings("fine_tune.epochs=1")
    bed.requests()
    arguments = ("run", "--data", f"{bucket}/photos", "--out", f"{bucket}/out", *settings)
    done = run_job(*arguments, TMPDIR=str(node), **environment)
    assert done.returncode == 0, done.stderr
    if cloud == "google":  # One for each client, and not for each thread that reads.
        assert 1 < sum(path == "/token" for _, path, _ in bed.requests()) <= 6
    with bed.faults(statuses={403: 1.0}):
        refused = run_job(*arguments, TMPDIR=str(node), **environment)
    assert refused.returncode == 2 and "no permission" in refused.stderr
    (tmp_path / "left" / "said").mkdir(parents=True)
    for number, process in enumerate((done, refused)):
        (tmp_path / "left" / "said" / str(number)).write_text(process.stdout + process.stderr)
    bed.fetched(f"{bucket}/out", tmp_path / "left" / "out")
    assert leaks(tmp_path / "left", canaries) == [] and leaks(node, canaries) == []
    assert leaks(tmp_path / "home", canaries) or cloud == "amazon"  # The search finds what is there.


SECRET_URIS = {
    "key": "s3://AKIACANARY:CANARYSECRET@bucket/x",
    "key with a slash": "s3://AKIACANARY:CANARY/SECRET@bucket/x",
    "signature": "gs://bucket/x.csv?X-Goog-Signature=CANARYSECRET",
}


def refused_unsaid(tmp_path, *arguments):
    """Whether the arguments are refused for what is in them, and it is neither said nor kept."""
    done = run_job(*arguments)
    refused = done.returncode == 2 and "credentials are not allowed in a URI" in done.stderr
    return refused and "CANARY" not in done.stdout + done.stderr and not leaks(tmp_path, ["CANARY"])


@pytest.mark.parametrize("uri", SECRET_URIS.values(), ids=SECRET_URIS)
@pytest.mark.parametrize("option", ["--data", "--labels", "--out", "--weights", "--tfds-dir", "cache.dir"])
def test_secrets_in_arguments_are_refused_and_not_repeated(tmp_path, painted, uri, option):
    given = {option: uri} if option.startswith("--") else {"--set": f"{option}={uri}"}
    arguments = {"--data": painted, "--out": tmp_path / "out", **given}
    assert refused_unsaid(tmp_path, "run", *(word for pair in arguments.items() for word in pair))


URI = SECRET_URIS["key with a slash"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--data", URI, "--out", f"{URI}/out"),
        ("run", "--data", "gs://bucket/x", "--labels", SECRET_URIS["signature"], "--out", "out"),
        ("run", "--data", "photos", "--set", f"backbone.wieghts='{URI}'", "--out", "out"),
        ("explore", "--data", URI, "--labels", "l.csv", "--out", "out"),
        ("rank", "--data", URI, "--backbones", "mobilenet_v2", "--out", f"{URI}/out"),
        ("rank", "--data", "photos", "--backbones", f"mobilenet_v2:weights={URI}", "--out", "out"),
        ("predict", "--model", URI, "--data", "photos", "--out", "out.csv"),
        ("predict", "--model", "model", "--data", URI, "--out", "out.csv"),
        ("predict", "--model", "model", "--data", "photos", "--out", URI),
        ("report", URI),
        ("demo", "--out", URI),
    ],
    ids=lambda arguments: " ".join(arguments).replace(URI, "URI"),
)
def test_secrets_are_refused_before_anything_else_is_said(tmp_path, arguments):
    assert refused_unsaid(tmp_path, *arguments)


def test_secrets_in_the_configuration_are_not_repeated(tmp_path, painted):
    file = tmp_path / "config.toml"
    for section, key in (("cache", "dir"), ("backbone", "weights"), ("intake", "corrections"), ("intake", "tfds_dir")):
        file.write_text(f'[{section}]\n{key} = "{URI}"\n')
        done = run_job("run", "--data", painted, "--out", tmp_path / "out", "--config", file)
        assert done.returncode == 2 and "credentials are not allowed in a URI" in done.stderr, done.stderr
        assert "CANARY" not in done.stdout + done.stderr and not (tmp_path / "out").exists()
