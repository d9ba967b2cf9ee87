"""Devices that share batches, whoever's they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

Tensors: TypeAlias = "tuple[tf.Tensor, ...]"  # On one replica; outside of it, each is the parts of all local replicas.


class Replicas:
    """Devices that compute a batch together, each its share: those of this worker, or those of all workers.

    `num` counts all of them; this worker has `num_local` from number `first` on.
    """

    def __init__(self, strategy: tf.distribute.Strategy, *, num_workers: int = 1, worker: int = 0) -> None:
        self.strategy = strategy
        self.num = int(strategy.num_replicas_in_sync)
        self.num_local = self.num // num_workers
        self.first = worker * self.num_local

    def padded_size(self, batch_size: int) -> int:
        """The smallest size from `batch_size` on that the replicas can share evenly."""
        return -(-batch_size // self.num) * self.num

    def own(self, size: int) -> slice:
        """Return which part of a batch this worker computes. The size of the batch is a multiple of `num`."""
        share = size // self.num
        return slice(self.first * share, (self.first + self.num_local) * share)

    def scatter(self, own: tuple[np.ndarray, ...]) -> Tensors:
        """This worker's part of a batch, whose first axis is split evenly over its replicas."""
        import tensorflow as tf

        def part(replica: tf.distribute.ValueContext) -> Tensors:
            k, n = replica.replica_id_in_sync_group - self.first, self.num_local
            return tuple(tf.constant(a[k * len(a) // n : (k + 1) * len(a) // n]) for a in own)

        return self.strategy.experimental_distribute_values_from_function(part)

    def compiled(self, compute: Callable[..., Tensors], *, jit: bool = False) -> Callable[..., Tensors]:
        """A function of what `scatter` gives that runs `compute` on each replica. Its outputs are tuples of tensors with an
        example a row, which `gather` puts together."""
        import tensorflow as tf

        def everywhere(*batch: tf.Tensor) -> Tensors:
            outputs = compute(*batch)
            if self.num == self.num_local:
                return outputs
            return tuple(tf.distribute.get_replica_context().all_gather(output, axis=0) for output in outputs)

        def step(*batch: tf.Tensor) -> Tensors:
            return self.strategy.run(everywhere, batch)

        # A partial, because TensorFlow counts traces by lines of code, and would warn of one that is traced often.
        compiled: Callable[..., Tensors] = tf.function(partial(step), jit_compile=jit, autograph=False)
        return compiled

    def gather(self, output: tf.Tensor) -> np.ndarray:
        """One of the outputs: the rows of the whole batch in their order, on every worker."""
        parts = self.strategy.experimental_local_results(output)
        return np.concatenate([np.asarray(part) for part in (parts if self.num == self.num_local else parts[:1])])
