"""On which devices the job runs. The only place that may read what a scheduler puts into the environment."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from job.telemetry import spent_once

if TYPE_CHECKING:
    import tensorflow as tf


def import_tensorflow() -> Any:
    """The module, without the lines about itself that it writes to standard error below Python while it loads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    standard_error = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with spent_once("imports"):
            import tensorflow
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        os.close(nowhere)
    return tensorflow


@dataclass(frozen=True)
class Cluster:
    """This worker among `num_workers`, and the devices it has. One machine for now.

    TensorFlow is imported and its devices are set up when `strategy` is first asked for.
    """

    num_workers: int = 1
    index: int = 0
    logical_cpus: int | None = None

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    @cached_property
    def strategy(self) -> tf.distribute.Strategy:
        """MirroredStrategy over all GPUs (or logical CPUs), or TensorFlow's default where there is one device."""
        tf = import_tensorflow()
        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if not gpus:
            tf.config.experimental.enable_op_determinism()
        if self.logical_cpus and not gpus:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * self.logical_cpus)
            return tf.distribute.MirroredStrategy([f"/cpu:{k}" for k in range(self.logical_cpus)])
        if len(gpus) > 1:
            return tf.distribute.MirroredStrategy()
        return tf.distribute.get_strategy()

    @property
    def best_precision(self) -> str:
        """The Keras dtype policy to train with: with bfloat16 where every GPU computes it (capability 8 and up)."""
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        has_bfloat16 = bool(gpus) and all(d.get("compute_capability", (0, 0))[0] >= 8 for d in details)
        return "mixed_bfloat16" if has_bfloat16 else "float32"

    @property
    def num_replicas(self) -> int:
        return int(self.strategy.num_replicas_in_sync)

    def scatter(self, batch: tuple[np.ndarray, ...]) -> Any:
        """A batch whose first axis is split evenly over the replicas; its length must be a multiple of their number."""
        import tensorflow as tf

        def part(replica: Any) -> tuple[tf.Tensor, ...]:
            k, n = replica.replica_id_in_sync_group, self.num_replicas
            return tuple(tf.constant(a[k * len(a) // n : (k + 1) * len(a) // n]) for a in batch)

        return self.strategy.experimental_distribute_values_from_function(part)

    def gather(self, per_replica: Any) -> np.ndarray:
        """The results of the replicas, one after the other."""
        return np.concatenate([np.asarray(part) for part in self.strategy.experimental_local_results(per_replica)])

    def padded_size(self, batch_size: int) -> int:
        """The smallest size from `batch_size` on that the replicas can share evenly."""
        return -(-batch_size // self.num_replicas) * self.num_replicas
