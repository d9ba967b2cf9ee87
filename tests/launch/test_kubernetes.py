"""The manifests of k8s/: rendered by kubectl, held against schemas, checkov and our own rules, and acted out.

No API server runs here. What a cluster would do with the pods of multi-worker is done by hand: each has a network, a host
name and a hosts file of its own, and is started again as its Job says.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from job.config import Config, as_toml
from tests.conftest import QUICK, ROOT, paint_classes
from tests.launch.beds import missing
from tests.launch.kubernetes_rules import GPU, JOB_NAME, Manifest, Rendered, complaints, exit_codes, verdict

OVERLAYS = ("cpu-smoke", "single-gpu", "multi-gpu", "multi-worker")
# A user's own overlay: a second run in a shared namespace, with everything that can be added.
EVERYTHING = """
resources: [../k8s/overlays/multi-worker]
components: [../k8s/components/spot, ../k8s/components/kueue]
nameSuffix: -b
namespace: team
"""
# Oldest with podReplacementPolicy and backoffLimitPerIndex switched on, and newest that there are schemas for.
VERSIONS = ("1.29", kubernetes_validate.latest_version())


@pytest.fixture(scope="session")
def kubectl() -> str:
    return shutil.which("kubectl") or missing("kubectl is not installed")


@pytest.fixture
def k8s(tmp_path: Path) -> Path:
    """A copy of the folder, for a user to edit."""
    return Path(shutil.copytree(ROOT / "k8s", tmp_path / "k8s"))


@pytest.fixture(scope="session")
def rendered(kubectl: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each overlay, and of `everything`."""
    k8s = Path(shutil.copytree(ROOT / "k8s", tmp_path_factory.mktemp("everything") / "k8s"))
    edit(k8s / "overlays/single-gpu/kustomization.yaml", "../../components/data-pvc", "../../components/data-bucket")
    own = k8s.parent / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(EVERYTHING)
    return {name: render(kubectl, ROOT / "k8s/overlays" / name) for name in OVERLAYS} | {"everything": render(kubectl, own)}


def render(kubectl: str, folder: Path) -> str:
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # It warns of what is deprecated.
    return done.stdout


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old} stands {text.count(old)} times in {file}"
    file.write_text(text.replace(old, new))


def manifests(text: str) -> list[Manifest]:
    return list(yaml.safe_load_all(text))


each_overlay = pytest.mark.parametrize("name", [*OVERLAYS, "everything"])


@each_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema_of_its_kind(rendered: dict[str, str], name: str, version: str) -> None:
    for manifest in manifests(rendered[name]):
        kubernetes_validate.validate(manifest, version, strict=True)


@each_overlay
def test_every_object_is_understood_by_the_typed_client(rendered: dict[str, str], name: str, kubectl: str) -> None:
    assert "unable to decode" not in decoded(kubectl, rendered[name])


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
        (tmp_path / f"{name}.yaml").write_text(text)
    command = [checkov, "--config-file", ROOT / "k8s/.checkov.yaml", "--directory", tmp_path, "--output", "cli"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_overlay
def test_no_rule_of_ours_is_broken(rendered: dict[str, str], name: str) -> None:
    assert complaints(manifests(rendered[name])) == {}


def test_exit_codes_decide_whether_the_job_goes_on(rendered: dict[str, str]) -> None:
    job = Rendered(manifests(rendered["single-gpu"])).job
    assert {name: verdict(job, code) for name, code in exit_codes().items()} == {
        "JobError": "FailJob",
        "UsageError": "FailJob",
        "GateNotMet": "FailJob",
        "DataUnusable": "FailJob",
        "Diverged": "FailJob",
        "StorageFailed": "Count",
        "TryAgainLater": "Count",
        "Stopped": "Ignore",
    }
    assert verdict(job, 137) == "Count"


def test_the_overlays_differ_as_their_names_say(rendered: dict[str, str]) -> None:
    overlays = {name: Rendered(manifests(text)) for name, text in rendered.items()}
    gpus = {name: overlay.container["resources"]["limits"].get(GPU) for name, overlay in overlays.items()}
    assert gpus == {"cpu-smoke": None, "single-gpu": 1, "multi-gpu": 4, "multi-worker": 1, "everything": 1}
    assert {name for name, overlay in overlays.items() if overlay.is_indexed} == {"multi-worker", "everything"}
    assert overlays["cpu-smoke"].container["args"][0] == "demo"
    assert not overlays["cpu-smoke"].of("PersistentVolumeClaim")
    everything = overlays["everything"]
    assert everything.spec["suspend"] is True
    assert everything.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert everything.pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert everything.volume("data")["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert everything.pod["serviceAccountName"] in everything.names("ServiceAccount")
    assert everything.labels[JOB_NAME] == "transfer-job-b"


def test_a_user_of_one_gpu_edits_two_lines(k8s: Path, kubectl: str) -> None:
    overlay = k8s / "overlays/single-gpu"
    marked = {file: re.findall(r".*# EDIT: .*", file.read_text()) for file in files_of(overlay)}
    assert sorted(len(lines) for lines in marked.values() if lines) == [1, 1]
    for file in marked:
        file.write_text(file.read_text().replace("registry.example.com", "mine.example.org").replace("photos}", "pictures}"))
    edited = Rendered(manifests(render(kubectl, overlay)))
    assert edited.container["image"] == "mine.example.org/transfer-job:gpu"
    assert edited.volume("data")["persistentVolumeClaim"]["claimName"] == "pictures"


def files_of(folder: Path) -> Iterator[Path]:
    """Everything that a kustomization is made of."""
    file = folder / "kustomization.yaml"
    yield file
    kustomization = yaml.safe_load(file.read_text())
    patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
    for name in [*kustomization.get("resources", []), *kustomization.get("components", []), *patches]:
        path = (folder / name).resolve()
        yield from files_of(path) if path.is_dir() else [path]


def test_the_number_of_workers_is_one_edit(k8s: Path, kubectl: str) -> None:
    edit(k8s / "overlays/multi-worker/job.yaml", "completions: 2 # EDIT", "completions: 5 # EDIT")
    text = render(kubectl, k8s / "overlays/multi-worker")
    assert Rendered(manifests(text)).env["CLUSTER_NUM_WORKERS"]["value"] == "5"
    assert complaints(manifests(text)) == {}


REMOVED = object()
POD = "template.spec."
CONTAINER = "template.spec.containers.0."
RULE = "podFailurePolicy.rules."

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
    ("multi-worker", "volumes_exist", "PersistentVolumeClaim", "accessModes", ["ReadWriteOnce"]),
    ("single-gpu", "sizes_fit", "Job", CONTAINER + "resources.limits.memory", "20Gi"),
    ("single-gpu", "sizes_fit", "Job", CONTAINER + "resources.limits.cpu", REMOVED),
    ("single-gpu", "sizes_fit", "Job", POD + "volumes.4.emptyDir.sizeLimit", "24Gi"),
    ("single-gpu", "gpus_are_consistent", "Job", CONTAINER + f"resources.requests.{GPU.replace('.', '~')}", 2),
    ("single-gpu", "gpus_are_consistent", "Job", POD + "tolerations", REMOVED),
    ("single-gpu", "a_stop_has_time_to_save", "Job", POD + "terminationGracePeriodSeconds", 10),
    ("everything", "a_stop_has_time_to_save", "Job", POD + "terminationGracePeriodSeconds", 30),
    ("single-gpu", "the_program_takes_its_command_line", "Job", CONTAINER + "args.1", "--date=/data"),
    ("single-gpu", "the_program_takes_its_command_line", "Job", CONTAINER + "args.3", "--config=/etc/transfer-job/my.toml"),
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


ADDRESSES = ("10.0.0.1", "10.0.0.2")
DEADLINE_S = 900  # For all attempts together: so that a hang ends.


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """A network for each of two pods, with a cable between them. In one network they could not both have port 2222, because
    TensorFlow listens on all addresses."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        missing("networks for pods need root and iproute2")
    names = [f"pod-{os.getpid()}-{k}" for k in range(len(ADDRESSES))]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Pods:
    """The pods of a rendered Indexed Job as processes: with their environment, their command line and their host names."""

    def __init__(self, rendered: Rendered, networks: list[str], folder: Path, data: Path) -> None:
        self._rendered, self._networks, self._folder = rendered, networks, folder
        self._name = rendered.job["metadata"]["name"]
        (service,) = rendered.names("Service")
        lines = [f"{a} {self._name}-{k}.{service} {self._name}-{k}" for k, a in enumerate(ADDRESSES)]
        self._hosts = folder / "hosts"
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        self.at = {mount["mountPath"]: folder / mount["name"] for mount in rendered.container["volumeMounts"]}
        self.at["/data"] = data
        for path in self.at.values():
            path.mkdir(exist_ok=True)
        for name, text in rendered.files().items():
            self._outside(Path(name)).write_text(text)

    def run(self, meanwhile: Callable[["Pods"], None] = lambda pods: None) -> dict[int, list[int]]:
        """Start all, and each one that failed again as Kubernetes does it; the exit codes of each index."""
        exits: dict[int, list[int]] = {k: [] for k in range(len(ADDRESSES))}
        self.running = {k: self._start(k) for k in exits}
        waiting: dict[int, float] = {}
        deadline = time.monotonic() + DEADLINE_S
        try:
            while self.running or waiting:
                assert time.monotonic() < deadline, self.logs()
                time.sleep(0.1)
                meanwhile(self)
                for k in [k for k, process in self.running.items() if process.poll() is not None]:
                    code = self.running.pop(k).returncode
                    exits[k].append(128 - code if code < 0 else code)
                    if code != 0:
                        assert verdict(self._rendered.job, exits[k][-1]) != "FailJob", self.logs()
                        waiting[k] = time.monotonic() + 10 * 2 ** (len(exits[k]) - 1)
                for k in [k for k, since in waiting.items() if since < time.monotonic()]:
                    del waiting[k]
                    self.running[k] = self._start(k)
        finally:
            for k in list(self.running):
                self.lose(k)
        return exits

    def lose(self, k: int) -> None:
        """Everything that runs in the pod, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.running[k].pid, signal.SIGKILL)
        self.running[k].wait()

    def log(self, k: int) -> str:
        return (self._folder / f"log-{k}").read_text()

    def logs(self) -> str:
        return "\n".join(f"--- worker {k} ---\n{self.log(k)[-4000:]}" for k in range(len(ADDRESSES)))

    def _start(self, k: int) -> "subprocess.Popen[str]":
        script = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
        pod = ["ip", "netns", "exec", self._networks[k], "unshare", "--uts", "sh", "-c", script, "pod"]
        entrypoint = [sys.executable, "-m", "job"]  # The image's; the manifest has the arguments.
        arguments = [self._mapped(argument) for argument in self._rendered.container["args"]]
        with (self._folder / f"log-{k}").open("a") as log:
            return subprocess.Popen(
                [*pod, f"{self._name}-{k}", self._hosts, *entrypoint, *arguments],
                cwd=ROOT,
                env=self._environment(k),
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def _environment(self, k: int) -> dict[str, str]:
        """What Kubernetes sets, and what every process needs."""
        scratch = str(self.at["/tmp"])
        given = {name: self._mapped(value) for name, value in self._rendered.environment(k).items()}
        return {"PATH": os.environ["PATH"], "HOME": scratch, "TMPDIR": scratch, **given}

    def _mapped(self, text: str) -> str:
        """`--out=/out/run`, `/tmp/keras` and the like, with the path's place on this machine."""
        before, slash, path = text.partition("/")
        return before + str(self._outside(Path(slash + path))) if slash else text

    def _outside(self, path: Path) -> Path:
        """Where a path of the container lies on this machine."""
        (mount,) = (mount for mount in self.at if path.is_relative_to(mount))
        return self.at[mount] / path.relative_to(mount)


@pytest.fixture
def pods(kubectl: str, k8s: Path, networks: list[str], tmp_path: Path) -> Pods:
    """Two workers on drawn pictures, with a run.toml for a run of seconds."""
    (k8s / "base/run.toml").write_text(as_toml(Config.load(None, QUICK)))
    rendered = Rendered(manifests(render(kubectl, k8s / "overlays/multi-worker")))
    return Pods(rendered, networks, tmp_path, paint_classes(tmp_path / "photos"))


def test_two_pods_find_each_other_and_finish_the_run(pods: Pods) -> None:
    assert pods.run() == {0: [0], 1: [0]}, pods.logs()
    for k in (0, 1):
        assert "2 workers" in pods.log(k).splitlines()[0]
    assert {"report.html", "metrics.json", "model"} <= {path.name for path in (pods.at["/out"] / "run").iterdir()}


def test_after_a_pod_is_lost_all_come_again_and_finish_the_run(pods: Pods) -> None:
    lost: list[int] = []

    def lose_one(pods: Pods) -> None:
        if not lost and 1 in pods.running and (pods.at["/out"] / "run/stages/split.json").exists():
            pods.lose(1)
            lost.append(1)

    exits = pods.run(lose_one)
    assert exits[1][0] == 137
    assert exits[0][0] == 75, pods.logs()
    assert {code for codes in exits.values() for code in codes[1:-1]} <= {75}, pods.logs()  # It came before the other left.
    assert [codes[-1] for codes in exits.values()] == [0, 0]
    assert (pods.at["/out"] / "run/report.html").exists()
