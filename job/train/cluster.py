"""On which devices the job runs. The only place that reads what a scheduler puts into the environment.

A run is one process on one machine, or several workers started with the same command line: as `TF_CONFIG` says, as the tasks
of one `srun`, or as the pods of an Indexed Job. Worker 0 is the chief.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from job.cgroups import usable_cores
from job.errors import TryAgainLater, UsageError
from job.peers.peers import Peers
from job.stop import StopRequest
from job.telemetry import spent_once
from job.train.replicas import Replicas
from job.train.variables import expand_counts, expand_hosts, number, refused, task_nodes

_KUBERNETES_PORT = 2222
_SLURM_PORTS = range(10_000, 32_000)  # Below those that the system gives to connections that leave the machine.
_LEAST_PORTS_PER_JOB = 16
_MAX_SHOWN = 500


def import_tensorflow() -> Any:
    """The module, without the lines about itself that it writes to standard error below Python while it loads."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    standard_error = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with spent_once("imports"):
            import tensorflow
        is_given = "TF_NUM_INTRAOP_THREADS" in os.environ
        if usable_cores() < len(os.sched_getaffinity(0)) and not is_given:  # A share of their time: twice as fast.
            tensorflow.config.threading.set_intra_op_parallelism_threads(usable_cores())
            tensorflow.config.threading.set_inter_op_parallelism_threads(usable_cores())
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        os.close(nowhere)
    return tensorflow


@dataclass(frozen=True)
class Cluster:
    """This worker among those with these `addresses` (host:port of TensorFlow's servers), and the devices it has.

    `found` says in words what the environment told. `num_here` workers share this machine, and this one is number
    `place_here` of them. TensorFlow is imported and its devices are set up when they are first asked for.
    """

    addresses: tuple[str, ...] = ("localhost:0",)
    index: int = 0
    found: str = "one machine"
    num_here: int = 1
    place_here: int = 0
    divides_gpus: bool = False
    logical_cpus: int | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, logical_cpus: int | None = None) -> Self:
        """
        Raises:
            UsageError: where the environment contradicts itself.
        """
        found = cls._found_in(environ)
        if found.num_workers > 1 and logical_cpus:
            raise UsageError("cluster.logical_cpus is for one machine: TensorFlow takes one CPU device from each worker.")
        host, port = found.control_address
        if f"{host}:{port}" in found.addresses:
            raise UsageError(f"The chief needs port {port}, the one below its own, and a worker on the same machine has it.")
        return replace(found, logical_cpus=logical_cpus)

    @classmethod
    def _found_in(cls, environ: Mapping[str, str]) -> Self:
        if "TF_CONFIG" in environ:
            return cls._of_tf_config(environ)
        if "SLURM_STEP_NUM_TASKS" in environ:  # The batch script itself, without srun, has none.
            with refused("SLURM_STEP_NUM_TASKS", "start the job with srun in a job of Slurm"):
                return cls._of_slurm(environ)
        if "JOB_COMPLETION_INDEX" in environ:
            with refused("JOB_COMPLETION_INDEX", "see k8s/overlays/multi-worker"):
                return cls._of_kubernetes(environ)
        return cls()

    @classmethod
    def _of_tf_config(cls, environ: Mapping[str, str]) -> Self:
        text = environ["TF_CONFIG"]
        if not text.strip():
            raise UsageError("TF_CONFIG is empty. Unset it for a single worker, or let it name all workers and this one.")
        try:
            given = json.loads(text)
            jobs = {name: list(addresses) for name, addresses in given.get("cluster", {}).items()}
            addresses = (*jobs.pop("chief", []), *jobs.pop("worker", []))
            kind, number = given.get("task", {}).get("type", "worker"), int(given.get("task", {}).get("index", 0))
            has_chief = "chief" in given.get("cluster", {})
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UsageError(f"TF_CONFIG cannot be read ({error}): {text[:_MAX_SHOWN]}") from error
        if not addresses:
            return cls(found="one machine (TF_CONFIG names no workers)")
        if jobs or kind not in ("chief", "worker"):
            raise UsageError(
                f"TF_CONFIG: only chief and worker are known, not {', '.join(jobs) or kind}. Others have nothing to do here."
            )
        index = number if kind == "chief" or not has_chief else number + 1
        for address in addresses:
            match = re.fullmatch(r"\S+:(\d+)", str(address))
            if not match or not 1 < int(match[1]) < 65_536:  # The chief needs the port below its own, too.
                raise UsageError(f"TF_CONFIG: {address} is not HOST:PORT with a port from 2 to 65535.")
        hosts = [address.rpartition(":")[0] for address in addresses]
        found = cls._checked(addresses, index, f"TF_CONFIG: {kind} {number}")
        all_visible = "CUDA_VISIBLE_DEVICES" not in environ  # Else whoever started the worker has chosen.
        here = [k for k, host in enumerate(hosts) if host == hosts[index]]
        return replace(found, num_here=len(here), place_here=here.index(index), divides_gpus=all_visible)

    @classmethod
    def _of_slurm(cls, environ: Mapping[str, str]) -> Self:
        """Of a step, which `srun` starts: variables of the job may speak of more tasks and nodes than the step has."""
        job, index, count = (number(environ, f"SLURM_{name}") for name in ("JOB_ID", "PROCID", "STEP_NUM_TASKS"))
        if count == 1:
            return cls(found=f"Slurm job {job}: one task")
        nodes = expand_hosts(environ["SLURM_STEP_NODELIST"])
        on_nodes = expand_counts(environ["SLURM_STEP_TASKS_PER_NODE"])
        order = task_nodes(on_nodes, environ.get("SLURM_DISTRIBUTION", "block"))
        if len(on_nodes) != len(nodes) or len(order) != count:
            raise UsageError(
                f"Slurm contradicts itself: {count} tasks, nodes {environ['SLURM_STEP_NODELIST']}, tasks on them "
                f"{environ['SLURM_STEP_TASKS_PER_NODE']}."
            )
        ports = max(_LEAST_PORTS_PER_JOB, 1 << count.bit_length())
        first = _SLURM_PORTS[job * ports % (len(_SLURM_PORTS) - ports)]
        addresses = tuple(f"{nodes[node]}:{first + 1 + task}" for task, node in enumerate(order))
        found = cls._checked(addresses, index, f"Slurm job {job}: task {index} of {count} on {len(nodes)} nodes")
        place = order[:index].count(order[index])
        if place != number(environ, "SLURM_LOCALID") or order[index] != int(environ.get("SLURM_NODEID", order[index])):
            raise UsageError(
                f"Slurm placed task {index} otherwise than its distribution ({environ.get('SLURM_DISTRIBUTION')}) says. Use "
                "srun --distribution=block."
            )
        visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        all_visible = str(len(visible)) == environ.get("SLURM_GPUS_ON_NODE")  # Else Slurm has divided them.
        return replace(found, num_here=on_nodes[order[index]], place_here=place, divides_gpus=all_visible)

    @classmethod
    def _of_kubernetes(cls, environ: Mapping[str, str]) -> Self:
        index = number(environ, "JOB_COMPLETION_INDEX")
        if "CLUSTER_NUM_WORKERS" not in environ:
            if index:
                raise UsageError(f"Pod {index} of an Indexed Job has no CLUSTER_NUM_WORKERS: see k8s/overlays/multi-worker.")
            return cls(found="Kubernetes: one pod")
        count = number(environ, "CLUSTER_NUM_WORKERS")
        if count == 1 and index == 0:
            return cls(found="Kubernetes: one pod")
        missing = [name for name in ("CLUSTER_JOB_NAME", "CLUSTER_SERVICE") if not environ.get(name)]
        if missing:
            raise UsageError(
                f"{' and '.join(missing)} must be set where there are several pods: see k8s/overlays/multi-worker."
            )
        job, service = environ["CLUSTER_JOB_NAME"], environ["CLUSTER_SERVICE"]
        addresses = tuple(f"{job}-{k}.{service}:{_KUBERNETES_PORT}" for k in range(count))
        return cls._checked(addresses, index, f"Kubernetes Job {job}: pod {index} of {count}")

    @classmethod
    def _checked(cls, addresses: tuple[str, ...], index: int, found: str) -> Self:
        if not 0 <= index < len(addresses):
            raise UsageError(f"{found}: there is no such worker among {len(addresses)} ({', '.join(addresses)}).")
        if len(set(addresses)) < len(addresses):
            raise UsageError(f"{found}: two workers have the same address ({', '.join(addresses)}).")
        return cls(addresses, index, found)

    def __str__(self) -> str:
        """One line for people."""
        if self.num_workers == 1:
            gpus = _num_gpus(os.environ)
            devices = {0: "no GPU", 1: "one GPU"}.get(gpus, f"{gpus} GPUs")
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
        """Where the chief listens for the others: the port below TensorFlow's."""
        host, _, port = self.addresses[0].rpartition(":")
        return host, int(port) - 1

    @cached_property
    def local(self) -> Replicas:
        """This worker's devices: all its GPUs (or logical CPUs), or TensorFlow's default where there is one."""
        tf, gpus = self._set_up
        if self.logical_cpus and not gpus:
            return Replicas(tf.distribute.MirroredStrategy([f"/cpu:{k}" for k in range(self.logical_cpus)]))
        if len(gpus) > 1:
            devices = [d.name for d in tf.config.list_logical_devices("GPU") if self._is_own(d.name)]
            return Replicas(tf.distribute.MirroredStrategy(devices))
        return Replicas(tf.distribute.get_strategy())

    @cached_property
    def all(self) -> Replicas:
        """The devices of all workers, which must all come here; then they compute in step.

        With several workers this must be asked for before TensorFlow computes anything.
        """
        if self.num_workers == 1:
            return self.local
        tf, gpus = self._set_up
        spec = tf.train.ClusterSpec({"worker": list(self.addresses)})
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            spec, task_type="worker", task_id=self.index, num_accelerators={"GPU": len(gpus)}, rpc_layer="grpc"
        )
        # TensorFlow's coordination service waits for the others with Python's lock held, and so do its health checks:
        # no signal or lost peer can be heard then. There are no public switches (docs/decisions/0012-many-workers.md).
        from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
        from tensorflow.python.eager import context

        context.context().configure_coordination_service("")
        CollectiveAllReduceExtended._check_health = lambda _: None
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        return Replicas(strategy, num_workers=self.num_workers, worker=self.index)

    def prepare(self) -> None:
        """What takes long and hears nothing meanwhile: import TensorFlow, and find the devices."""
        assert self._set_up

    def join(self, peers: Peers, stop: StopRequest, start_timeout_s: float) -> None:
        """Connect TensorFlow's servers. All workers must come here; the process ends where one does not.

        Raises:
            UsageError: where this worker has other devices than the chief.
            TryAgainLater: where a server does not start.
        """
        if self.num_workers > 1:
            self._check_devices(peers)
        failed = "TensorFlow's servers did not find each other"
        hint = f"Every worker must reach the others at {', '.join(self.addresses)}. Start all again."
        tf = import_tensorflow()
        with stop.deadline(start_timeout_s, TryAgainLater(f"{failed} within cluster.start_timeout_s. {hint}")):
            try:
                _ = self.all, self.local  # Made when they are first asked for: the second outside the first one's scope.
            except tf.errors.OpError as error:
                raise TryAgainLater(f"{failed}: {error.message}. {hint}") from error

    def _check_devices(self, peers: Peers) -> None:
        num_gpus = len(self._set_up[1])
        of_chief = peers.same(num_gpus)
        if num_gpus != of_chief:
            raise UsageError(
                f"TensorFlow sees {num_gpus} GPUs here and {of_chief} on the chief. Give all workers the same; if there "
                "are some that it does not see, nvidia-smi and the variant of the image (cpu or gpu) tell why."
            )

    @cached_property
    def _set_up(self) -> tuple[Any, list[Any]]:
        """TensorFlow, and this worker's GPUs."""
        tf = import_tensorflow()
        gpus = tf.config.list_physical_devices("GPU")
        if self.divides_gpus and self.num_here > 1 and gpus:
            gpus = own_gpus(gpus, self.num_here, self.place_here)
            tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if not gpus:
            tf.config.experimental.enable_op_determinism()
            if self.logical_cpus:
                cpu = tf.config.list_physical_devices("CPU")[0]
                logical = [tf.config.LogicalDeviceConfiguration()] * self.logical_cpus
                tf.config.set_logical_device_configuration(cpu, logical)
        return tf, gpus

    def _is_own(self, device: str) -> bool:
        """Whether a logical device is this worker's: once the servers are connected, the list has everyone's."""
        return "/job:worker" not in device or f"/task:{self.index}/" in device

    @property
    def best_precision(self) -> str:
        """The Keras dtype policy to train with: with bfloat16 where every GPU computes it (capability 8 and up)."""
        tf, gpus = self._set_up
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        has_bfloat16 = bool(gpus) and all(d.get("compute_capability", (0, 0))[0] >= 8 for d in details)
        return "mixed_bfloat16" if has_bfloat16 else "float32"


def own_gpus(gpus: list[Any], num_here: int, place_here: int) -> list[Any]:
    """The part of a machine's GPUs that belongs to one of the workers on it.

    Raises:
        UsageError: where there are not enough for all.
    """
    share = len(gpus) // num_here
    if not share:
        raise UsageError(
            f"{num_here} workers on this machine share {len(gpus)} GPUs: start at most one worker for each GPU."
        )
    return gpus[place_here * share : (place_here + 1) * share]


def _num_gpus(environ: Mapping[str, str]) -> int:
    """Of this machine, as far as that can be told without TensorFlow."""
    there = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return len(there) if visible is None else min(len(there), len([gpu for gpu in visible.split(",") if gpu]))
