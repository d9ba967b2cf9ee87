"""The devices that a run computes on: the GPUs or CPUs of this worker, and those of all workers together."""

from __future__ import annotations

import os
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
    """The devices of this worker and of all workers. The first use of a property imports TensorFlow.

    Raises:
        UsageError: if `logical_cpus` is set and there are several workers; later, if TensorFlow finds no GPU and
            `require_gpu` is set.
    """

    def __init__(self, cluster: Cluster = Cluster(), *, logical_cpus: int | None = None, require_gpu: bool = False) -> None:
        self.cluster, self.logical_cpus, self._require_gpu = cluster, logical_cpus, require_gpu
        if self.cluster.num_workers > 1 and logical_cpus:
            raise UsageError("cluster.logical_cpus is for a single worker. Leave it out, or start only one worker.")

    @cached_property
    def local(self) -> Replicas:
        """This worker's devices: all its GPUs, or its logical CPUs, or the single device that TensorFlow chooses."""
        tf, gpus = self._set_up
        if self.logical_cpus and not gpus:
            return Replicas(tf.distribute.MirroredStrategy([f"/cpu:{k}" for k in range(self.logical_cpus)]))
        if len(gpus) > 1:
            devices = [d.name for d in tf.config.list_logical_devices("GPU") if self._is_own(d.name)]
            return Replicas(tf.distribute.MirroredStrategy(devices))
        return Replicas(tf.distribute.get_strategy())

    @cached_property
    def all(self) -> Replicas:
        """The devices of all workers, which train synchronously. Every worker must use this property.

        With several workers, use it before TensorFlow computes anything.
        """
        if self.cluster.num_workers == 1:
            return self.local
        tf, gpus = self._set_up
        # gRPC would send the connections between workers to the proxy of https_proxy, which cannot reach them.
        os.environ["no_grpc_proxy"] = ",".join(address.rpartition(":")[0] for address in self.cluster.addresses)  # noqa: SIM112
        spec = tf.train.ClusterSpec({"worker": list(self.cluster.addresses)})
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            spec, task_type="worker", task_id=self.cluster.index, num_accelerators={"GPU": len(gpus)}, rpc_layer="grpc"
        )
        # TensorFlow's coordination service and its health checks wait for other workers while they hold Python's GIL, so
        # that signals and lost peers go unnoticed. No public API turns them off (docs/decisions/0012-many-workers.md).
        from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
        from tensorflow.python.eager import context

        context.context().configure_coordination_service("")
        CollectiveAllReduceExtended._check_health = lambda _: None
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        return Replicas(strategy, num_workers=self.cluster.num_workers, worker=self.cluster.index)

    def prepare(self) -> None:
        """Import TensorFlow and find the devices. This takes seconds, and signals may be noticed only afterwards."""
        _ = self._set_up

    def join(self, peers: Peers, stop: StopRequest, start_timeout_s: float) -> None:
        """Connect the TensorFlow servers of all workers. The process exits if one does not call this in time.

        Raises:
            UsageError: if this worker and the chief have different numbers of GPUs.
            TryAgainLater: if a server does not start.
        """
        if self.cluster.num_workers > 1:
            self._check_devices(peers)
        failed = "The TensorFlow servers of the workers could not connect"
        hint = f"Check that every worker can reach {', '.join(self.cluster.addresses)}, then start all workers again."
        tf = import_tensorflow()
        with stop.deadline(start_timeout_s, TryAgainLater(f"{failed} within cluster.start_timeout_s. {hint}")):
            try:
                _ = self.all, self.local  # Created now, because `local` must not be created in the scope of `all`.
            except tf.errors.OpError as error:
                raise TryAgainLater(f"{failed}: {error.message}. {hint}") from error

    def _check_devices(self, peers: Peers) -> None:
        num_gpus = len(self._set_up[1])
        of_chief = peers.same(num_gpus)
        if num_gpus != of_chief:
            raise UsageError(
                f"TensorFlow sees {num_gpus} GPUs here and {of_chief} on the chief. Give all workers the same number. "
                "transfer-job doctor says why TensorFlow misses some."
            )

    @cached_property
    def _set_up(self) -> tuple[ModuleType, list[tf.config.PhysicalDevice]]:
        """TensorFlow and this worker's GPUs, after the devices are configured."""
        tf = import_tensorflow()
        gpus = tf.config.list_physical_devices("GPU")
        if self.cluster.divides_gpus and self.cluster.num_here > 1 and gpus:
            gpus = own_gpus(gpus, self.cluster.num_here, self.cluster.place_here)
            tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if not gpus:
            if self._require_gpu:
                raise without_gpu("TensorFlow finds none. transfer-job doctor says why.")
            tf.config.experimental.enable_op_determinism()
            if self.logical_cpus:
                cpu = tf.config.list_physical_devices("CPU")[0]
                logical = [tf.config.LogicalDeviceConfiguration()] * self.logical_cpus
                tf.config.set_logical_device_configuration(cpu, logical)
        return tf, gpus

    def _is_own(self, device: str) -> bool:
        """Return whether a logical device is this worker's. Connected servers list the devices of all workers."""
        return "/job:worker" not in device or f"/task:{self.cluster.index}/" in device

    @property
    def best_precision(self) -> str:
        """The Keras dtype policy for training: mixed_bfloat16 if all GPUs have compute capability 8, else float32."""
        tf, gpus = self._set_up
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        has_bfloat16 = bool(gpus) and all(d.get("compute_capability", (0, 0))[0] >= 8 for d in details)
        return "mixed_bfloat16" if has_bfloat16 else "float32"


def without_gpu(reason: str) -> UsageError:
    """Return the error of a run that must not compute on the CPU. `reason` is a sentence about GPUs, with a way out."""
    return UsageError(
        f"cluster.require_gpu is true, and this run can use no GPU. {reason} To compute on the CPU instead: "
        "--set cluster.require_gpu=false"
    )


def own_gpus(gpus: list[Gpu], num_here: int, place_here: int) -> list[Gpu]:
    """Return the GPUs of worker `place_here` of the `num_here` on this machine. Raises: UsageError, if there are too few."""
    share = len(gpus) // num_here
    if not share:
        raise UsageError(f"{num_here} workers on this machine share {len(gpus)} GPUs: start at most one for each GPU.")
    return gpus[place_here * share : (place_here + 1) * share]
