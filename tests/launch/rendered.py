"""A rendered overlay of k8s/: its objects, and what the container of its Job is told by them."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
import yaml

from job import cli
from job.cluster.variables import numbered
from job.config import Config
from tests.launch.controllers import JOB_NAME, Manifest, applied


class Rendered:
    """The objects of one overlay, those that controllers make of them, and the parts of its one Job that rules ask for."""

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self._manifests = applied(manifests)
        (self.job,) = self.of("Job")
        self.job_set: Manifest | None = next(iter(self.of("JobSet")), None)
        self.spec: Manifest = self.job["spec"]
        self.pod: Manifest = self.spec["template"]["spec"]
        (self.container,) = self.pod["containers"]
        self.is_indexed = self.spec.get("completionMode") == "Indexed"
        self.env: Manifest = {variable["name"]: variable for variable in self.container.get("env", [])}
        self.has_workers = self.is_indexed and bool({"CLUSTER_NUM_WORKERS", "PET_NNODES"} & self.env.keys())
        self.labels: Manifest = {**self.spec["template"]["metadata"]["labels"], JOB_NAME: self.job["metadata"]["name"]}

    def of(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self._manifests if manifest["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {manifest["metadata"]["name"] for manifest in self.of(kind)}

    def selected_by(self, selector: Manifest) -> bool:
        """Whether the labels of the pods fit."""
        return selector.items() <= self.labels.items()

    def environment(self, index: int = 0) -> dict[str, str]:
        """What Kubernetes gives to the container of the pod with this completion index."""
        values = {"JOB_COMPLETION_INDEX": str(index)} if self.is_indexed else {}
        for name, variable in self.env.items():
            path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            label = re.fullmatch(r"metadata\.labels\['(.*)'\]", path)
            values[name] = self.labels.get(label[1], "") if label else variable.get("value", "")
        return values

    def arguments(self, index: int = 0) -> list[str]:
        """The command line of a pod as the program understands it: with the values of variables, where there are such."""
        values = self.environment(index)
        words = [re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], m[0]), word) for word in self.container["args"]]
        return [numbered(word, values) for word in words]

    def volume(self, name: str) -> Manifest:
        return next((volume for volume in self.pod["volumes"] if volume["name"] == name), {})

    def files(self) -> dict[str, str]:
        """Path in the container and text of each file that comes from a ConfigMap."""
        data = {m["metadata"]["name"]: m["data"] for m in self.of("ConfigMap")}
        return {
            f"{mount['mountPath']}/{file}": text
            for mount in self.container["volumeMounts"]
            for file, text in data.get(self.volume(mount["name"]).get("configMap", {}).get("name"), {}).items()
        }

    def options(self) -> Manifest:
        """What the program understands of its command line. Raises: click.UsageError."""
        name, *rest = self.arguments()
        command = cli.main.commands.get(name)
        if command is None:
            raise click.UsageError(f"there is no command {name}")
        return command.make_context(name, rest).params

    @property
    def places(self) -> dict[str, str]:
        """Where photos come from (`data`) and results go to (`out`), as far as the program is told."""
        with suppress(click.UsageError):  # A rule's complaint.
            return {name: place for name, place in self.options().items() if name in ("data", "out") and place}
        return {}

    def config(self) -> Config:
        """The configuration that the container's command line asks for.

        Raises:
            click.UsageError, UsageError: where the program would refuse it.
        """
        given = self.options()
        if not given.get("config_file"):
            return Config.load(None, given.get("assignments", ()))
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(self.files().get(str(given["config_file"]), f"= {given['config_file']} is in no ConfigMap"))
            file.flush()
            return Config.load(Path(file.name), given["assignments"])

    def verdict(self, exit_code: int | None = None, condition: str = "") -> str:
        """What happens after a container has ended like this.

        FailJob or FailIndex; Count: it starts again; Ignore: it starts again, which is not counted.
        """
        in_job = self._verdict_in_job(exit_code, condition)
        if not self.job_set:
            return in_job
        assert in_job in ("FailJob", "Count") and self.spec["backoffLimit"] == 0, "the Job itself replaces pods"
        how = f"has condition {condition}" if condition else f"failed with exit code {exit_code}"
        message = f"Pod team/name {how} matching FailJob rule at index 0"
        reason = "PodFailurePolicy" if in_job == "FailJob" else "BackoffLimitExceeded"
        for rule in self.job_set["spec"]["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
                return {"FailJobSet": "FailJob", "RestartJobSetAndIgnoreMaxRestarts": "Ignore"}[rule["action"]]
        return "Count"

    def _verdict_in_job(self, exit_code: int | None, condition: str) -> str:
        for rule in self.spec["podFailurePolicy"]["rules"]:
            conditions = [given["type"] for given in rule.get("onPodConditions", []) if given["status"] == "True"]
            if condition in conditions or exit_code in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "Count"


def use_buckets(k8s: Path, *kinds: str) -> None:
    for kind in kinds:
        edit(
            k8s / "overlays/single-gpu/kustomization.yaml", f"../../components/{kind}-pvc", f"../../components/{kind}-bucket"
        )


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
