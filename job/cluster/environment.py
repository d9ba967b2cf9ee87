"""The workers of a run, read from the environment variables that a scheduler sets. Needs no TensorFlow.

A run is one process, or several workers started with the same command line: the workers that `TF_CONFIG` lists, the tasks of
one `srun`, or the pods of an Indexed Job of Kubernetes (also as part of a JobSet or a TrainJob). Worker 0 is the chief.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Self

from job.cluster.variables import check_count, expand_counts, expand_hosts, number, refused, task_nodes
from job.errors import UsageError

_KUBERNETES_PORT = 2222
_SLURM_PORTS = range(10_000, 32_000)  # Below the ports that Linux gives to outgoing connections (32768 and up).
_LEAST_PORTS_PER_JOB = 16
_MAX_SHOWN = 500


@dataclass(frozen=True)
class Cluster:
    """The workers of a run, and which of them this process is.

    `addresses` has HOST:PORT of each worker's TensorFlow server. `index` is the number of this worker; 0 is the chief.
    `found` describes for the user what the environment said. `num_here` workers run on this machine, and this one is number
    `place_here` of them, counted from 0. If `divides_gpus` is true, they divide its GPUs among themselves. `num_gpus` is the
    number of visible GPUs on this machine, counted without TensorFlow, and `visible_gpus` what CUDA_VISIBLE_DEVICES lists;
    None if it is not set.
    """

    addresses: tuple[str, ...] = ("localhost:0",)
    index: int = 0
    found: str = "one machine"
    num_here: int = 1
    place_here: int = 0
    divides_gpus: bool = False
    num_gpus: int = 0
    visible_gpus: tuple[str, ...] | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Return the workers that these environment variables describe.

        Raises:
            UsageError: if a variable is missing or unreadable, or if they contradict each other.
        """
        visible = _visible_gpus(environ)
        found = replace(cls._found_in(environ), num_gpus=_num_gpus(visible), visible_gpus=visible)
        host, port = found.control_address
        if f"{host}:{port}" in found.addresses:
            raise UsageError(
                f"TF_CONFIG: a worker has {host}:{port}, but the chief needs this port, too: it is the one below its own. "
                "Give that worker another port."
            )
        return found

    @classmethod
    def _found_in(cls, environ: Mapping[str, str]) -> Self:
        if "TF_CONFIG" in environ:
            return cls._of_tf_config(environ)
        if "SLURM_STEP_NUM_TASKS" in environ:  # srun sets it; a batch script without srun is a single worker.
            with refused("SLURM_STEP_NUM_TASKS", "start the job with srun inside a Slurm job"):
                return cls._of_slurm(environ)
        if "JOB_COMPLETION_INDEX" in environ:
            with refused("JOB_COMPLETION_INDEX", "set the variables as in k8s/overlays/multi-worker"):
                return cls._of_kubernetes(environ)
        return cls()

    @classmethod
    def _of_tf_config(cls, environ: Mapping[str, str]) -> Self:
        text = environ["TF_CONFIG"]
        if not text.strip():
            raise UsageError("TF_CONFIG is empty. Unset it for a single worker, or list all workers and this one in it.")
        try:
            given = json.loads(text)
            jobs = {name: list(addresses) for name, addresses in given.get("cluster", {}).items()}
            addresses = (*jobs.pop("chief", []), *jobs.pop("worker", []))
            kind, number = given.get("task", {}).get("type", "worker"), int(given.get("task", {}).get("index", 0))
            has_chief = "chief" in given.get("cluster", {})
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"TF_CONFIG cannot be read ({error}): {text[:_MAX_SHOWN]} Unset it for a single worker, or correct its JSON."
            ) from error
        if not addresses:
            return cls(found="one machine (TF_CONFIG names no workers)")
        if jobs or kind not in ("chief", "worker"):
            raise UsageError(
                f"TF_CONFIG: this job has only chief and worker, not {', '.join(jobs) or kind}. Remove it from TF_CONFIG."
            )
        index = number if kind == "chief" or not has_chief else number + 1
        for address in addresses:
            match = re.fullmatch(r"\S+:([0-9]{1,5})", str(address))
            if not match or not 1 < int(match[1]) < 65_536:  # Not port 1: the chief also needs the port below its own.
                raise UsageError(f"TF_CONFIG: {str(address)[:_MAX_SHOWN]} is not HOST:PORT with a port from 2 to 65535.")
        hosts = [address.rpartition(":")[0] for address in addresses]
        found = cls._checked(addresses, index, f"TF_CONFIG: {kind} {number}")
        all_visible = "CUDA_VISIBLE_DEVICES" not in environ  # If it is set, somebody has chosen this worker's GPUs.
        here = [k for k, host in enumerate(hosts) if host == hosts[index]]
        return replace(found, num_here=len(here), place_here=here.index(index), divides_gpus=all_visible)

    @classmethod
    def _of_slurm(cls, environ: Mapping[str, str]) -> Self:
        """Return the tasks of this Slurm step (one `srun`). The Slurm job can have more tasks and nodes than the step."""
        job, index, count = (number(environ, f"SLURM_{name}") for name in ("JOB_ID", "PROCID", "STEP_NUM_TASKS"))
        if count == 1:
            return cls(found=f"Slurm job {job}: one task")
        nodes = expand_hosts(environ["SLURM_STEP_NODELIST"])
        on_nodes = expand_counts(environ["SLURM_STEP_TASKS_PER_NODE"])
        order = task_nodes(on_nodes, environ.get("SLURM_DISTRIBUTION", "block"))
        if len(on_nodes) != len(nodes) or len(order) != count:
            raise UsageError(
                f"Slurm's variables contradict each other: SLURM_STEP_NUM_TASKS={count}, "
                f"SLURM_STEP_NODELIST={environ['SLURM_STEP_NODELIST']}, "
                f"SLURM_STEP_TASKS_PER_NODE={environ['SLURM_STEP_TASKS_PER_NODE']}. Let srun set them."
            )
        ports = max(_LEAST_PORTS_PER_JOB, 1 << count.bit_length())
        first = _SLURM_PORTS[job * ports % (len(_SLURM_PORTS) - ports)]
        addresses = tuple(f"{nodes[node]}:{first + 1 + task}" for task, node in enumerate(order))
        found = cls._checked(addresses, index, f"Slurm job {job}: task {index} of {count} on {len(nodes)} nodes")
        place = order[:index].count(order[index])
        if place != number(environ, "SLURM_LOCALID") or order[index] != int(environ.get("SLURM_NODEID", order[index])):
            raise UsageError(
                f"Slurm did not place task {index} as SLURM_DISTRIBUTION ({environ.get('SLURM_DISTRIBUTION')}) says, so the "
                "nodes of the other tasks are unknown. Use srun --distribution=block."
            )
        visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        all_visible = str(len(visible)) == environ.get("SLURM_GPUS_ON_NODE")  # If not, Slurm has divided them.
        return replace(found, num_here=on_nodes[order[index]], place_here=place, divides_gpus=all_visible)

    @classmethod
    def _of_kubernetes(cls, environ: Mapping[str, str]) -> Self:
        """Return the pods of an Indexed Job: its own, or one that JobSet or Kubeflow Trainer has made.

        Without a number of workers, each pod is a run of its own.
        """
        index = number(environ, "JOB_COMPLETION_INDEX")
        count_name = "CLUSTER_NUM_WORKERS" if "CLUSTER_NUM_WORKERS" in environ else "PET_NNODES"  # Set by Kubeflow Trainer.
        if count_name not in environ:
            return cls(found=f"Kubernetes: pod {index}, a run of its own")
        count = number(environ, count_name)
        check_count(count, count_name)
        if count_name == "PET_NNODES":
            chief = re.fullmatch(r"([^.]+)-0\.(.+)", environ["PET_MASTER_ADDR"])  # The host name of pod 0.
            job, service = chief.groups() if chief else ("", "")
        else:
            job, service = environ.get("CLUSTER_JOB_NAME", ""), environ.get("CLUSTER_SERVICE", "")
        if not job or not service:
            raise UsageError(
                f"{count_name} means several pods, but CLUSTER_JOB_NAME and CLUSTER_SERVICE, or PET_MASTER_ADDR, do not say "
                "where they are. Set them as in k8s/overlays/multi-worker."
            )
        addresses = tuple(f"{job}-{k}.{service}:{_KUBERNETES_PORT}" for k in range(count))
        return cls._checked(addresses, index, f"Kubernetes Job {job}: pod {index} of {count}")

    @classmethod
    def _checked(cls, addresses: tuple[str, ...], index: int, found: str) -> Self:
        if not 0 <= index < len(addresses):
            raise UsageError(f"{found}: there is no such worker among {len(addresses)} ({', '.join(addresses)}).")
        if len(set(addresses)) < len(addresses):
            raise UsageError(f"{found}: two workers have the same address ({', '.join(addresses)}). Give each its own port.")
        return cls(addresses, index, found)

    def __str__(self) -> str:
        """Return one line for the user."""
        if self.num_workers == 1:
            devices = {0: "no GPU", 1: "one GPU"}.get(self.num_gpus, f"{self.num_gpus} GPUs")
            return f"Cluster: {self.found}, {devices}"
        what = "the chief" if self.is_chief else f"worker {self.index}"
        shown = ", ".join(self.addresses[:4]) + (", ..." if self.num_workers > 4 else "")
        return f"Cluster: {self.found}; this is {what} of {self.num_workers} workers: {shown}"

    @property
    def num_workers(self) -> int:
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    @property
    def control_address(self) -> tuple[str, int]:
        """Host and port on which the chief waits for the other workers: the port below its TensorFlow server's."""
        host, _, port = self.addresses[0].rpartition(":")
        return host, int(port) - 1


def _visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES lists; None if it is not set. CUDA ignores -1 and everything behind it."""
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    return None if listed is None else tuple(takewhile(lambda gpu: gpu not in ("", "-1"), map(str.strip, listed.split(","))))


def _num_gpus(visible: tuple[str, ...] | None) -> int:
    """Count the GPUs in /dev, but at most those that are visible. Windows has one device for all of them."""
    there = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    num_there = len(there) or int(Path("/dev/dxg").exists())
    return num_there if visible is None else min(num_there, len(visible))
