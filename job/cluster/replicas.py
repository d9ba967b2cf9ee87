"""Replicas: devices that compute a batch together, on one worker or on several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

# Inside `strategy.run`, the tensors of one replica. Outside, each one holds the parts of all local replicas.
Tensors: TypeAlias = "tuple[tf.Tensor, ...]"


class Replicas:
    """Devices of one worker, or of all workers, that each compute an equal part of a batch.

    There are `num` replicas. This worker has `num_local` of them, starting with number `first`.
    """

    def __init__(self, strategy: tf.distribute.Strategy, *, num_workers: int = 1, worker: int = 0) -> None:
        self.strategy = strategy
        self.num = int(strategy.num_replicas_in_sync)
        self.num_local = self.num // num_workers
        self.first = worker * self.num_local

    def padded_size(self, batch_size: int) -> int:
        """Return the smallest multiple of `num` that is at least `batch_size`."""
        return -(-batch_size // self.num) * self.num

    def own(self, size: int) -> slice:
        """Return the part of a batch that this worker computes. `size` is the batch size, a multiple of `num`."""
        share = size // self.num
        return slice(self.first * share, (self.first + self.num_local) * share)

    def scatter(self, own: tuple[np.ndarray, ...]) -> Tensors:
        """Split this worker's part of a batch evenly over its replicas, along the first axis."""
        import tensorflow as tf

        def part(replica: tf.distribute.ValueContext) -> Tensors:
            k, n = replica.replica_id_in_sync_group - self.first, self.num_local
            return tuple(tf.constant(a[k * len(a) // n : (k + 1) * len(a) // n]) for a in own)

        return self.strategy.experimental_distribute_values_from_function(part)

    def compiled(self, compute: Callable[..., Tensors], *, jit: bool = False) -> Callable[..., Tensors]:
        """Return a compiled function that runs `compute` on each replica. It takes the tensors from `scatter`.

        `compute` returns tensors with one row per example. `gather` joins the rows of all replicas.
        """
        import tensorflow as tf

        def everywhere(*batch: tf.Tensor) -> Tensors:
            outputs = compute(*batch)
            if self.num == self.num_local:
                return outputs
            return tuple(tf.distribute.get_replica_context().all_gather(output, axis=0) for output in outputs)

        def step(*batch: tf.Tensor) -> Tensors:
            return self.strategy.run(everywhere, batch)

        # TensorFlow warns if the function at one source line is traced often. A new partial is not counted there.
        compiled: Callable[..., Tensors] = tf.function(partial(step), jit_compile=jit, autograph=False)
        return compiled

    def gather(self, output: tf.Tensor) -> np.ndarray:
        """Return the rows of the whole batch in order, on every worker. `output` is one output of a compiled function."""
        parts = self.strategy.experimental_local_results(output)
        return np.concatenate([np.asarray(part) for part in (parts if self.num == self.num_local else parts[:1])])
