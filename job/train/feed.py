"""Batches for a compiled step: all have one size, and the next one is loaded while one is computed."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from job.cluster.replicas import Replicas, Tensors
from job.errors import UsageError
from job.runtime.telemetry import Telemetry

Item = TypeVar("Item")
Arrays = tuple[np.ndarray, ...]
_END: Any = object()
LARGEST_BATCH = 256  # Without learning.


def ahead(items: Iterator[Item], telemetry: Telemetry) -> Iterator[Item]:
    """Yield the items. A thread makes each item while the one before is used. The wait that remains is measured."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, _END)
        while True:
            with telemetry.spent("waiting for data"):
                item = coming.result()
            if item is _END:
                return
            coming = thread.submit(next, items, _END)
            yield item


def even_batch_size(count: int, largest: int = LARGEST_BATCH) -> int:
    """Return the size of equal batches that have room for `count` examples, as few as with batches of the largest size."""
    num_batches = max(1, -(-count // largest))
    return -(-count // num_batches)


def run_batches(
    replicas: Replicas,
    step: Callable[..., Tensors],
    load: Callable[[np.ndarray], Arrays],
    count: int,
    batch_size: int,
    telemetry: Telemetry,
    what: str = "forward",
) -> Iterator[list[np.ndarray]]:
    """Run a compiled step over rows 0 to `count` - 1, and yield its outputs batch by batch.

    `load` makes a batch from row numbers. If other workers have some of the replicas, every worker must call this. Each one
    loads its own part and gets all outputs.

    All batches have one size, because another size would be traced again and may round differently. The last batch is
    padded, and the padding is removed from the outputs. If the device runs out of memory, batches get half the size.

    Raises:
        UsageError: if not even one row per replica fits into memory.
    """

    def batches(start: int, size: int) -> Iterator[tuple[int, Arrays]]:
        for first in range(start, count, size):
            numbers = np.arange(first, min(first + size, count))
            padded = np.pad(numbers, (0, size - len(numbers)), mode="edge")
            yield len(numbers), load(padded[replicas.own(size)])

    size, start = replicas.padded_size(batch_size), 0
    while start < count:
        try:
            for kept, batch in ahead(batches(start, size), telemetry):
                with telemetry.spent_tracing(step, what, kept):
                    outputs = [replicas.gather(output)[:kept] for output in step(*replicas.scatter(batch))]
                start += kept
                yield outputs
        except Exception as error:
            if type(error).__name__ != "ResourceExhaustedError":  # Compared by name, to avoid importing TensorFlow here.
                raise
            if size <= replicas.num or replicas.num > replicas.num_local:  # Other workers would keep the larger size.
                raise UsageError(
                    "Not even one photo at a time fits into the memory of the device. Choose a smaller backbone or "
                    "intake.image_size."
                ) from error
            size = replicas.padded_size(size // 2)
            telemetry.line(f"  {what}: out of memory; continuing with {size} photos at a time", level="warning")


def all_rows(batches: Iterator[list[np.ndarray]]) -> list[np.ndarray]:
    """Concatenate each output over all batches."""
    return [np.concatenate(column) for column in zip(*batches, strict=True)]
