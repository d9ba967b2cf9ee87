"""The devices that a run computes on: GPUs, logical CPUs, and those of several workers together."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from job.cluster.environment import Cluster
from job.cluster.replicas import Replicas
from job.cluster.tensorflow import import_tensorflow
from job.errors import TryAgainLater, UsageError
from job.runtime.peers import Peers
from job.runtime.stop import StopRequest

if TYPE_CHECKING:
    import tensorflow as tf

Gpu = TypeVar("Gpu")


class Devices:
    """The devices of this worker and of all workers. TensorFlow is imported when they are first asked for.

    Raises:
        UsageError: where `logical_cpus` are asked for with several workers.
    """

    def __init__(self, cluster: Cluster | None = None, *, logical_cpus: int | None = None) -> None:
        self.cluster, self.logical_cpus = cluster or Cluster(), logical_cpus
        if self.cluster.num_workers > 1 and logical_cpus:
            raise UsageError("cluster.logical_cpus is for one machine: TensorFlow takes one CPU device from each worker.")

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
        if self.cluster.num_workers == 1:
            return self.local
        tf, gpus = self._set_up
        spec = tf.train.ClusterSpec({"worker": list(self.cluster.addresses)})
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            spec, task_type="worker", task_id=self.cluster.index, num_accelerators={"GPU": len(gpus)}, rpc_layer="grpc"
        )
        # TensorFlow's coordination service waits for the others with Python's lock held, and so do its health checks:
        # no signal or lost peer can be heard then. There are no public switches (docs/decisions/0012-many-workers.md).
        from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
        from tensorflow.python.eager import context

        context.context().configure_coordination_service("")
        CollectiveAllReduceExtended._check_health = lambda _: None
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        return Replicas(strategy, num_workers=self.cluster.num_workers, worker=self.cluster.index)

    def prepare(self) -> None:
        """Import TensorFlow and find the devices. This takes long, and no signal is heard meanwhile."""
        assert self._set_up

    def join(self, peers: Peers, stop: StopRequest, start_timeout_s: float) -> None:
        """Connect TensorFlow's servers. All workers must come here; the process ends where one does not.

        Raises:
            UsageError: where this worker has other devices than the chief.
            TryAgainLater: where a server does not start.
        """
        if self.cluster.num_workers > 1:
            self._check_devices(peers)
        failed = "TensorFlow's servers did not find each other"
        hint = f"Every worker must reach the others at {', '.join(self.cluster.addresses)}. Start all again."
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
    def _set_up(self) -> tuple[ModuleType, list[tf.config.PhysicalDevice]]:
        """TensorFlow, and this worker's GPUs."""
        tf = import_tensorflow()
        gpus = tf.config.list_physical_devices("GPU")
        if self.cluster.divides_gpus and self.cluster.num_here > 1 and gpus:
            gpus = own_gpus(gpus, self.cluster.num_here, self.cluster.place_here)
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
        return "/job:worker" not in device or f"/task:{self.cluster.index}/" in device

    @property
    def best_precision(self) -> str:
        """The Keras dtype policy to train with: with bfloat16 where every GPU computes it (capability 8 and up)."""
        tf, gpus = self._set_up
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        has_bfloat16 = bool(gpus) and all(d.get("compute_capability", (0, 0))[0] >= 8 for d in details)
        return "mixed_bfloat16" if has_bfloat16 else "float32"


def own_gpus(gpus: list[Gpu], num_here: int, place_here: int) -> list[Gpu]:
    """Return the part of a machine's GPUs that belongs to one of the workers on it.

    Raises:
        UsageError: where there are not enough for all.
    """
    share = len(gpus) // num_here
    if not share:
        raise UsageError(
            f"{num_here} workers on this machine share {len(gpus)} GPUs: start at most one worker for each GPU."
        )
    return gpus[place_here * share : (place_here + 1) * share]
