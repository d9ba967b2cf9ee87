"""What lies beside the exported model for those who did not train it: preprocess.py, README.md and manifest.json."""

import base64
import hashlib
import json
import runpy
import subprocess
import sys

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from job.data.examples import Examples, split_digests
from job.stores.arrays import ArrayStore
from tests.conftest import quick_settings, run_job


def test_preprocess_gives_the_pixels_that_were_trained_on(finished_run, painted):
    preprocess = runpy.run_path(str(finished_run / "model" / "preprocess.py"))["preprocess"]
    examples = Examples.load(finished_run / "examples.parquet")
    (store,) = json.loads((finished_run / "stages" / "intake.json").read_text())["stores"]
    images = ArrayStore(finished_run / "cache" / store)
    chosen = examples.of()[::7]
    given = np.stack([preprocess((painted / path).read_bytes()) for path in examples["path"][chosen]])
    assert np.array_equal(given, images.rows([int(row) for row in examples["row"][chosen]]))


def test_card_describes_the_run(finished_run):
    text = (finished_run / "model" / "README.md").read_text()
    metrics = json.loads((finished_run / "metrics.json").read_text())
    accuracy = metrics[metrics["shipped"]]["test"]["accuracy"]
    shown = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert shown == pytest.approx(accuracy, abs=1e-4)
    for digest in split_digests(finished_run / "examples.parquet").values():
        assert digest in text


def test_manifest_names_every_file_and_what_it_was_made_from(finished_run, painted):
    folder = finished_run / "model"
    found = json.loads((folder / "manifest.json").read_text())
    listed = {subject["name"]: subject["digest"]["sha256"] for subject in found["subject"]}
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert listed == {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    built, ran = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    inputs = {one.get("name", one["uri"]): one.get("digest", {}).get("sha256") for one in built["resolvedDependencies"]}
    digests = split_digests(finished_run / "examples.parquet")
    assert {f"photos/{split}": digest for split, digest in digests.items()}.items() <= inputs.items()
    assert built["externalParameters"]["data"] == str(painted) and built["externalParameters"]["intake.image_size"]
    assert any(name.startswith("pkg:pypi/keras@3.") for name in inputs)
    assert ran["metadata"]["invocationId"] == json.loads((finished_run / "run.json").read_text())["run_id"]


def test_openssf_model_signing_signs_and_verifies_the_folder(finished_run, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    private, public, signature = (tmp_path / name for name in ("key", "key.pub", "model.sig"))
    plain, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))

    def call(action, *options):
        command = [sys.executable, "-m", "model_signing", action, "key", finished_run / "model", "--signature", signature]
        return subprocess.run([*map(str, (*command, *options))], capture_output=True, text=True, check=False)

    assert call("sign", "--private_key", private).returncode == 0
    assert call("verify", "--public_key", public).returncode == 0
    signed = json.loads(base64.b64decode(json.loads(signature.read_text())["dsseEnvelope"]["payload"]))
    resources = {one["name"]: one["digest"] for one in signed["predicate"]["resources"]}
    manifest = json.loads((finished_run / "model" / "manifest.json").read_text())
    subjects = {one["name"]: one["digest"]["sha256"] for one in manifest["subject"]}
    assert resources.pop("manifest.json") and resources == subjects, "what is signed is what the manifest names"


def test_image_that_the_environment_names_is_an_input(painted, tmp_path):
    image = "registry.example/transfer-job@sha256:" + "ab" * 32
    out = tmp_path / "out"
    done = run_job("explore", "--data", painted, "--out", out, *quick_settings(), TRANSFER_JOB_IMAGE=image)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "run.json").read_text())["image"] == image
