"""The manifests of k8s/: rendered by kubectl, and held against schemas, checkov and our own rules.

No API server runs here: `controllers.py` does what JobSet and Kubeflow Trainer would do. test_pods.py acts them out.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from job.cluster.environment import Cluster
from tests.beds import missing
from tests.conftest import ROOT
from tests.launch.controllers import JOB_NAME, JOB_SET_NAME, Manifest, applied
from tests.launch.kubernetes_rules import GPU, complaints, exit_codes
from tests.launch.rendered import Rendered, edit, manifests, render, use_buckets

OVERLAYS = ("cpu-smoke", "single-gpu", "multi-gpu", "multi-worker", "jobset", "trainjob", "sweep")
# A user's own overlay: a second run in a shared namespace, with everything that can be added.
OWN = """
resources: [../k8s/overlays/{overlay}]
components: [../k8s/components/spot, ../k8s/components/kueue]
nameSuffix: -b
namespace: team
"""
EVERYTHING = {"everything": "multi-worker", "everything-jobset": "jobset", "everything-trainjob": "trainjob"}
CUSTOM_KINDS = {
    "JobSet": "jobset.x-k8s.io_v1alpha2",
    "TrainJob": "trainer.kubeflow.org_v1alpha1",
    "TrainingRuntime": "trainer.kubeflow.org_v1alpha1",
}
# Oldest with podReplacementPolicy and backoffLimitPerIndex switched on, and newest that there are schemas for.
VERSIONS = ("1.29", kubernetes_validate.latest_version())


@pytest.fixture(scope="session")
def rendered(kubectl: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each overlay, of a user's own ones, and of one pod with either photos or results in a bucket."""
    texts = {name: render(kubectl, ROOT / "k8s/overlays" / name) for name in OVERLAYS}
    kinds_in_buckets = {"data-bucket": ("data",), "out-bucket": ("out",), **dict.fromkeys(EVERYTHING, ("data", "out"))}
    for name, kinds in kinds_in_buckets.items():
        k8s = Path(shutil.copytree(ROOT / "k8s", tmp_path_factory.mktemp(name) / "k8s"))
        use_buckets(k8s, *kinds)
        own = k8s.parent / "own"
        own.mkdir()
        (own / "kustomization.yaml").write_text(OWN.format(overlay=EVERYTHING.get(name)))
        texts[name] = render(kubectl, own if name in EVERYTHING else k8s / "overlays/single-gpu")
    return texts


def standard(text: str) -> list[Manifest]:
    """The objects of kinds that Kubernetes itself knows, those made by controllers included."""
    return [manifest for manifest in applied(manifests(text)) if manifest["kind"] not in CUSTOM_KINDS]


each_overlay = pytest.mark.parametrize("name", [*OVERLAYS, *EVERYTHING, "data-bucket", "out-bucket"])


@each_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema_of_its_kind(rendered: dict[str, str], name: str, version: str) -> None:
    found = standard(rendered[name])
    assert found
    for manifest in found:
        kubernetes_validate.validate(manifest, version, strict=True)  # Raises where one does not.


@pytest.mark.parametrize("name", ["jobset", "trainjob", "everything-jobset", "everything-trainjob"])
def test_custom_resources_fit_the_schemas_of_their_kinds(rendered: dict[str, str], name: str, shared: Path) -> None:
    found = [manifest for manifest in applied(manifests(rendered[name])) if manifest["kind"] in CUSTOM_KINDS]
    assert len(found) == (3 if "trainjob" in name else 1)
    for manifest in found:
        file = f"{CUSTOM_KINDS[manifest['kind']]}_{manifest['kind']}.json"
        schema = json.loads((shared / "data/k8s-schemas" / file).read_text())
        jsonschema.validate(manifest, closed(schema))


def closed(schema: Any) -> Any:
    """The schema, which now also refuses fields that it does not know, as the API server does it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(part) for key, part in schema.items()}
    return found | {"additionalProperties": False} if isinstance(found.get("properties"), dict) else found


def test_a_misspelled_field_of_a_job_set_is_refused(rendered: dict[str, str], shared: Path) -> None:
    (job_set,) = (m for m in manifests(rendered["jobset"]) if m["kind"] == "JobSet")
    job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["restartpolicy"] = "Never"
    schema = json.loads((shared / "data/k8s-schemas/jobset.x-k8s.io_v1alpha2_JobSet.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="restartpolicy"):
        jsonschema.validate(job_set, closed(schema))


@each_overlay
def test_every_object_is_understood_by_the_typed_client(rendered: dict[str, str], name: str, kubectl: str) -> None:
    assert "unable to decode" not in decoded(kubectl, yaml.safe_dump_all(standard(rendered[name])))


def test_the_typed_client_refuses_a_size_that_is_none(rendered: dict[str, str], kubectl: str) -> None:
    assert "unable to decode" in decoded(kubectl, rendered["single-gpu"].replace("storage: 100Gi", "storage: 100GiB"))


def decoded(kubectl: str, text: str) -> str:
    """What kubectl has to say when it reads the objects into Go's types; that some have no image is no matter."""
    command = [kubectl, "set", "image", "--local", "-f", "-", "job=any", "-o", "yaml"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).stderr


def test_checkov_finds_nothing_that_is_not_explained(rendered: dict[str, str], tmp_path: Path) -> None:
    checkov = ROOT / ".venv-lint/bin/checkov"
    if not checkov.exists():
        missing("checkov is not installed: make check does it")
    for name, text in rendered.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(standard(text)))
    command = [checkov, "--config-file", ROOT / "k8s/.checkov.yaml", "--directory", tmp_path, "--output", "cli"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_overlay
def test_no_rule_of_ours_is_broken(rendered: dict[str, str], name: str) -> None:
    assert complaints(manifests(rendered[name])) == {}


@pytest.mark.parametrize("name", ["single-gpu", "jobset", "trainjob"])
def test_exit_codes_decide_whether_the_job_goes_on(rendered: dict[str, str], name: str) -> None:
    overlay = Rendered(manifests(rendered[name]))
    assert {error: overlay.verdict(code) for error, code in exit_codes().items()} == {
        "JobError": "FailJob",
        "UsageError": "FailJob",
        "GateNotMet": "FailJob",
        "DataUnusable": "FailJob",
        "Diverged": "FailJob",
        "StorageFailed": "Count",
        "TryAgainLater": "Count",
        "Stopped": "Ignore",
    }
    assert overlay.verdict(137) == "Count"
    assert overlay.verdict(condition="DisruptionTarget") == "Ignore"


def test_an_error_of_one_run_of_a_sweep_ends_only_this_run(rendered: dict[str, str]) -> None:
    overlay = Rendered(manifests(rendered["sweep"]))
    assert (overlay.verdict(70), overlay.verdict(75), overlay.verdict(143)) == ("FailIndex", "Count", "Ignore")


def test_runs_of_a_sweep_differ_in_output_and_setting_and_share_their_stores(rendered: dict[str, str]) -> None:
    overlay = Rendered(manifests(rendered["sweep"]))
    first, last = (overlay.arguments(k) for k in (0, 3))
    assert [(a, b) for a, b in zip(first, last, strict=True) if a != b] == [
        ("--out=/out/run/0", "--out=/out/run/3"),
        ("--set=train.seed=0", "--set=train.seed=3"),
    ]
    assert overlay.config().cache.dir == "/out/run/cache"


def test_a_run_can_follow_the_smoke_test_of_the_same_namespace(rendered: dict[str, str]) -> None:
    smoke, run = (Rendered(manifests(rendered[name])) for name in ("cpu-smoke", "single-gpu"))
    for kind in ("Job", "NetworkPolicy", "ServiceAccount", "ConfigMap"):
        assert not smoke.names(kind) & run.names(kind)


def test_the_overlays_differ_as_their_names_say(rendered: dict[str, str]) -> None:
    overlays = {name: Rendered(manifests(text)) for name, text in rendered.items()}
    gpus = {name: overlay.container["resources"]["limits"].get(GPU) for name, overlay in overlays.items()}
    assert gpus == {"cpu-smoke": None, "multi-gpu": 4} | dict.fromkeys(overlays.keys() - {"cpu-smoke", "multi-gpu"}, 1)
    workers = {"multi-worker", "jobset", "trainjob", *EVERYTHING}
    assert {name for name, overlay in overlays.items() if overlay.has_workers} == workers
    assert {name for name, overlay in overlays.items() if overlay.is_indexed} == {*workers, "sweep"}
    assert overlays["cpu-smoke"].container["args"][0] == "demo"
    assert not overlays["cpu-smoke"].of("PersistentVolumeClaim")
    everything = overlays["everything"]
    assert everything.spec["suspend"] is True
    assert everything.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert everything.pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert everything.labels[JOB_NAME] == "transfer-job-b"
    for name, kind in {"everything-jobset": "JobSet", "everything-trainjob": "TrainJob"}.items():
        (started,) = overlays[name].of(kind)
        assert started["spec"]["suspend"] is True and started["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
        assert overlays[name].labels[JOB_SET_NAME] == "transfer-job-b"


def test_a_bucket_takes_the_place_of_a_claim(rendered: dict[str, str]) -> None:
    overlays = {name: Rendered(manifests(text)) for name, text in rendered.items()}
    photos, results = "gs://my-photos/flowers", "gs://my-results/runs/first"
    assert {name: tuple(overlay.places.values()) for name, overlay in overlays.items()} == {
        "cpu-smoke": ("/out",),
        "single-gpu": ("/data", "/out/run"),
        "multi-gpu": ("/data", "/out/run"),
        **dict.fromkeys(("multi-worker", "jobset", "trainjob"), ("/data", "/out/run")),
        "sweep": ("/data", "/out/run/0"),
        **dict.fromkeys(EVERYTHING, (photos, results)),
        "data-bucket": (photos, "/out/run"),
        "out-bucket": ("/data", results),
    }
    claims = {name: overlay.names("PersistentVolumeClaim") for name, overlay in overlays.items()}
    assert claims["data-bucket"] == {"transfer-job-out"} and claims["everything"] == claims["out-bucket"] == set()
    volumes = {name: {volume["name"] for volume in overlay.pod["volumes"]} for name, overlay in overlays.items()}
    assert volumes["everything"] == {"config", "tmp", "shm"}


def test_a_user_of_one_gpu_edits_two_lines(k8s: Path, kubectl: str) -> None:
    overlay = k8s / "overlays/single-gpu"
    marked = {file: lines_to_edit(file) for file in files_of(overlay)}
    assert sorted(len(lines) for lines in marked.values() if lines) == [1, 1]
    for file in marked:
        file.write_text(file.read_text().replace("registry.example.com", "mine.example.org").replace("photos}", "pictures}"))
    edited = Rendered(manifests(render(kubectl, overlay)))
    assert edited.container["image"] == "mine.example.org/transfer-job:gpu"
    assert edited.volume("data")["persistentVolumeClaim"]["claimName"] == "pictures"


def test_photos_may_be_in_a_folder_of_the_claim_and_the_image_named_by_its_digest(k8s: Path, kubectl: str) -> None:
    edit(k8s / "components/data-pvc/job.yaml", "value: /data}", "value: /data/flowers}")
    digest = f"sha256:{'0' * 64}"
    edit(k8s / "overlays/single-gpu/kustomization.yaml", "newTag: gpu}", f"digest: '{digest}'}}")
    text = render(kubectl, k8s / "overlays/single-gpu")
    assert complaints(manifests(text)) == {}
    edited = Rendered(manifests(text))
    assert edited.places["data"] == "/data/flowers"
    assert edited.container["image"] == f"registry.example.com/transfer-job@{digest}"


def test_a_user_of_buckets_edits_three_lines_more(k8s: Path, kubectl: str) -> None:
    use_buckets(k8s, "data", "out")
    marked = [line for file in set(files_of(k8s / "overlays/single-gpu")) for line in lines_to_edit(file)]
    assert sorted(re.findall(r"registry\.\S+|gs:\S+(?=\")", " ".join(marked))) == [
        "gs://my-photos/flowers",
        "gs://my-results/runs/first",
        "registry.example.com/transfer-job,",
    ]


def lines_to_edit(file: Path) -> list[str]:
    return re.findall(r".*# EDIT: .*", file.read_text())


def files_of(folder: Path) -> Iterator[Path]:
    """Everything that a kustomization is made of."""
    file = folder / "kustomization.yaml"
    yield file
    kustomization = yaml.safe_load(file.read_text())
    patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
    for name in [*kustomization.get("resources", []), *kustomization.get("components", []), *patches]:
        path = (folder / name).resolve()
        yield from files_of(path) if path.is_dir() else [path]


@pytest.mark.parametrize(
    ("overlay", "file", "line"),
    [
        ("multi-worker", "multi-worker/job.yaml", "completions: 2 # EDIT"),
        ("jobset", "multi-worker/job.yaml", "completions: 2 # EDIT"),
        ("trainjob", "trainjob/trainjob.yaml", "numNodes: 2 # EDIT"),
    ],
)
def test_the_number_of_workers_is_one_edit(k8s: Path, kubectl: str, overlay: str, file: str, line: str) -> None:
    edit(k8s / "overlays" / file, line, line.replace("2", "5"))
    text = render(kubectl, k8s / "overlays" / overlay)
    assert Cluster.from_environ(Rendered(manifests(text)).environment()).num_workers == 5
    assert complaints(manifests(text)) == {}


def test_a_job_set_can_have_a_rack_of_its_own(k8s: Path, kubectl: str) -> None:
    file = k8s / "overlays/jobset/jobset.yaml"
    edit(file, "  # annotations: # MAY", "  annotations: # MAY")
    edit(file, "  #   alpha", "    alpha")
    (job_set,) = Rendered(manifests(render(kubectl, k8s / "overlays/jobset"))).of("JobSet")
    assert job_set["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }


REMOVED = object()
POD = "template.spec."
CONTAINER = "template.spec.containers.0."
RULE = "podFailurePolicy.rules."
OF_SET = "replicatedJobs.0.template.spec."

MISTAKES: list[tuple[str, str, str, str, Any]] = [
    # overlay, rule that complains, kind of object, where in its spec, what stands there instead
    ("single-gpu", "pods_are_not_restarted_in_place", "Job", POD + "restartPolicy", "OnFailure"),
    ("single-gpu", "pods_are_not_restarted_in_place", "Job", "podReplacementPolicy", "TerminatingOrFailed"),
    ("single-gpu", "exit_codes_are_those_of_errors", "Job", RULE + "1.onExitCodes.values", [1, 2, 65, 70]),
    ("single-gpu", "exit_codes_are_those_of_errors", "Job", RULE + "1.onExitCodes.values", [1, 2, 3, 65, 70, 75]),
    ("single-gpu", "exit_codes_are_those_of_errors", "Job", RULE + "1.onExitCodes.values", [2, 1, 3, 65, 70]),
    ("single-gpu", "exit_codes_are_those_of_errors", "Job", RULE + "1.onExitCodes.containerName", "other"),
    ("single-gpu", "exit_codes_are_those_of_errors", "Job", RULE + "0", REMOVED),
    ("single-gpu", "the_run_is_bounded", "Job", "activeDeadlineSeconds", REMOVED),
    ("multi-worker", "the_run_is_bounded", "Job", "backoffLimit", 6),
    ("multi-worker", "the_run_is_bounded", "Job", "maxFailedIndexes", 1),
    ("multi-worker", "workers_know_their_number", "Job", "parallelism", 1),
    ("multi-worker", "workers_know_their_number", "Job", CONTAINER + "env.0.value", "3"),
    ("multi-worker", "workers_know_their_number", "Job", "completionMode", "NonIndexed"),
    ("multi-worker", "workers_find_each_other", "Job", POD + "subdomain", "transfer-job"),
    ("multi-worker", "workers_find_each_other", "Job", CONTAINER + "env.1.value", "transfer-job"),
    ("multi-worker", "workers_find_each_other", "Job", CONTAINER + "env.2", REMOVED),
    ("multi-worker", "workers_find_each_other", "Service", "publishNotReadyAddresses", REMOVED),
    ("everything", "workers_find_each_other", "Service", "selector", {JOB_NAME: "transfer-job"}),
    ("multi-worker", "ports_agree", "Job", CONTAINER + "ports.0.containerPort", 2223),
    ("multi-worker", "ports_agree", "Service", "ports.1", REMOVED),
    ("multi-worker", "ports_agree", "NetworkPolicy", "ingress.0.ports.0.port", 2220),
    ("multi-worker", "workers_talk_to_workers_only", "NetworkPolicy", "ingress.0.from", [{"namespaceSelector": {}}]),
    ("multi-worker", "workers_talk_to_workers_only", "NetworkPolicy", "ingress.0.from", REMOVED),
    ("single-gpu", "workers_talk_to_workers_only", "NetworkPolicy", "policyTypes", ["Egress"]),
    ("single-gpu", "volumes_exist", "Job", POD + "volumes.0.name", "photos"),
    ("single-gpu", "volumes_exist", "Job", POD + "volumes.1.persistentVolumeClaim.claimName", "mine"),
    ("single-gpu", "volumes_exist", "Job", POD + "volumes.2.configMap.name", "transfer-job"),
    ("single-gpu", "volumes_exist", "Job", CONTAINER + "args.2", "--out=/results"),
    ("single-gpu", "volumes_exist", "Job", CONTAINER + "env.0.value", "/photos"),
    ("single-gpu", "photos_and_results_have_a_place", "Job", CONTAINER + "env.0", REMOVED),
    ("out-bucket", "photos_and_results_have_a_place", "Job", CONTAINER + "env.1.value", "gcs://my-results/runs/first"),
    ("out-bucket", "photos_and_results_have_a_place", "Job", CONTAINER + "env.1.value", "gs://me:secret@my-results/runs"),
    ("out-bucket", "photos_and_results_have_a_place", "Job", POD + "volumes.1.emptyDir.sizeLimit", "4Gi"),
    ("out-bucket", "sizes_fit", "Job", CONTAINER + "resources.limits.ephemeral-storage", "8Gi"),
    ("data-bucket", "buckets_alone_open_the_metadata_server", "NetworkPolicy", "egress.3", REMOVED),
    ("data-bucket", "buckets_alone_open_the_metadata_server", "NetworkPolicy", "egress.2.ports.0.port", 81),
    ("data-bucket", "buckets_alone_open_the_metadata_server", "Job", POD + "serviceAccountName", "default"),
    ("data-bucket", "buckets_alone_open_the_metadata_server", "Job", CONTAINER + "args.1", "--data=/out/photos"),
    ("single-gpu", "buckets_alone_open_the_metadata_server", "NetworkPolicy", "egress.1.to.0.ipBlock.except", REMOVED),
    ("multi-worker", "volumes_exist", "PersistentVolumeClaim", "accessModes", ["ReadWriteOnce"]),
    ("single-gpu", "sizes_fit", "Job", CONTAINER + "resources.limits.memory", "20Gi"),
    ("single-gpu", "sizes_fit", "Job", CONTAINER + "resources.limits.cpu", REMOVED),
    ("single-gpu", "sizes_fit", "Job", POD + "volumes.4.emptyDir.sizeLimit", "24Gi"),
    ("single-gpu", "gpus_are_consistent", "Job", CONTAINER + "args.4", "--set=cluster.require_gpu=false"),
    ("single-gpu", "gpus_are_consistent", "Job", CONTAINER + f"resources.requests.{GPU.replace('.', '~')}", 2),
    ("single-gpu", "gpus_are_consistent", "Job", POD + "tolerations", REMOVED),
    ("single-gpu", "a_stop_has_time_to_save", "Job", POD + "terminationGracePeriodSeconds", 10),
    ("everything", "a_stop_has_time_to_save", "Job", POD + "terminationGracePeriodSeconds", 30),
    ("single-gpu", "the_last_message_is_shown", "Job", CONTAINER + "terminationMessagePolicy", REMOVED),
    ("single-gpu", "the_program_takes_its_command_line", "Job", CONTAINER + "args.1", "--date=/data"),
    ("single-gpu", "the_program_takes_its_command_line", "Job", CONTAINER + "args.3", "--config=/etc/transfer-job/my.toml"),
    ("jobset", "exit_codes_are_those_of_errors", "JobSet", "failurePolicy.rules.0", REMOVED),
    (
        "jobset",
        "exit_codes_are_those_of_errors",
        "JobSet",
        "failurePolicy.rules.1.onJobFailureReasons",
        ["DeadlineExceeded"],
    ),
    ("jobset", "exit_codes_are_those_of_errors", "JobSet", OF_SET + RULE + "1.onExitCodes.values", [1, 2, 3, 65, 143]),
    ("jobset", "the_run_is_bounded", "JobSet", "failurePolicy.maxRestarts", 0),
    ("jobset", "the_run_is_bounded", "JobSet", "ttlSecondsAfterFinished", REMOVED),
    ("jobset", "workers_find_each_other", "JobSet", "network.publishNotReadyAddresses", False),
    ("jobset", "workers_find_each_other", "JobSet", "network.enableDNSHostnames", False),
    ("everything-jobset", "ports_agree", "NetworkPolicy", "podSelector", {"matchLabels": {JOB_SET_NAME: "x"}}),
    ("trainjob", "exit_codes_are_those_of_errors", "TrainingRuntime", "template.spec.failurePolicy.rules.0", REMOVED),
    ("sweep", "workers_know_their_number", "Job", CONTAINER + "args.2", "--out=$(OUT)"),
    ("sweep", "exit_codes_are_those_of_errors", "Job", RULE + "1.action", "FailJob"),
    ("single-gpu", "pod_is_restricted", "Job", POD + "securityContext.runAsUser", 0),
    ("single-gpu", "pod_is_restricted", "Job", POD + "volumes.0", {"name": "data", "hostPath": {"path": "/srv"}}),
]


@pytest.mark.parametrize(
    ("overlay", "rule", "kind", "where", "value"), MISTAKES, ids=[f"{m[1]}-{m[2]}.{m[3]}-{m[0]}" for m in MISTAKES]
)
def test_a_mistake_is_refused_by_the_rule_for_it(
    rendered: dict[str, str], overlay: str, rule: str, kind: str, where: str, value: object
) -> None:
    changed = manifests(rendered[overlay])
    # The last of its kind: of the network policies the one of the workers, where there are any.
    place: Any = [manifest for manifest in changed if manifest["kind"] == kind][-1]["spec"]
    *path, last = [int(key) if key.isdigit() else key.replace("~", ".") for key in where.split(".")]
    for key in path:
        place = place[key]
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    assert rule in complaints(changed)


def test_an_unknown_setting_in_run_toml_is_refused(k8s: Path, kubectl: str) -> None:
    with (k8s / "base/run.toml").open("a") as file:
        file.write("\n[fine_tune]\nepoch = 3\n")
    said = complaints(manifests(render(kubectl, k8s / "overlays/single-gpu")))
    assert "fine_tune.epoch" in said["the_program_takes_its_command_line"][0]


def test_a_longer_grace_in_run_toml_is_refused_without_the_time_for_it(k8s: Path, kubectl: str) -> None:
    with (k8s / "base/run.toml").open("a") as file:
        file.write("\n[checkpoint]\ngrace_s = 60\n")
    assert "a_stop_has_time_to_save" in complaints(manifests(render(kubectl, k8s / "overlays/single-gpu")))
