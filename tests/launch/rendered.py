"""A rendered overlay of k8s/: its objects, and what the container of its Job is told by them."""

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from job import cli
from job.config import Config

Manifest = dict[str, Any]

JOB_NAME = "batch.kubernetes.io/job-name"  # A label that Kubernetes gives to the pods of a Job.


class Rendered:
    """The objects of one overlay, and the parts of its one Job that rules ask for."""

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self._manifests = manifests
        (self.job,) = self.of("Job")
        self.spec: Manifest = self.job["spec"]
        self.pod: Manifest = self.spec["template"]["spec"]
        (self.container,) = self.pod["containers"]
        self.is_indexed = self.spec.get("completionMode") == "Indexed"
        self.env: Manifest = {variable["name"]: variable for variable in self.container.get("env", [])}
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

    @property
    def arguments(self) -> list[str]:
        """The command line as the container gets it: with the values of variables, where there are such."""
        values = self.environment()
        return [re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], m[0]), word) for word in self.container["args"]]

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
        name, *rest = self.arguments
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


def verdict(job: Manifest, exit_code: int) -> str:
    """What the Job's podFailurePolicy says of a container that ended like this, on a node that nobody took away."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if exit_code in rule.get("onExitCodes", {}).get("values", []):
            return str(rule["action"])
    return "Count"
