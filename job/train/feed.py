"""Batches into a compiled step: all of one size, the next one made ready while one is computed."""

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


def ahead(items: Iterator[Item], telemetry: Telemetry) -> Iterator[Item]:
    """Yield the items; each is made in a thread while the one before it is used. The rest counts as waiting for data."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, _END)
        while True:
            with telemetry.spent("waiting for data"):
                item = coming.result()
            if item is _END:
                return
            coming = thread.submit(next, items, _END)
            yield item


def run_batches(
    replicas: Replicas,
    step: Callable[..., Tensors],
    load: Callable[[np.ndarray], Arrays],
    count: int,
    batch_size: int,
    telemetry: Telemetry,
    what: str = "forward",
) -> Iterator[list[np.ndarray]]:
    """Run a step of these replicas over `count` rows, yielding its outputs batch by batch; `load` makes a batch of row
    numbers. Where other workers have some of the replicas, all must come here: each loads its part and gets all outputs.

    Batches have one size, the last one is padded and the padding taken off again, because another size would be traced
    again and may round differently. Where one does not fit into the memory of the device, the rest goes on in halves of it.

    Raises:
        UsageError: where not even one row for each replica fits.
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
            if type(error).__name__ != "ResourceExhaustedError":  # TensorFlow's, which is not imported for its name.
                raise
            if size <= replicas.num or replicas.num > replicas.num_local:  # Others would not know of a smaller batch.
                raise UsageError(
                    "Not even one photo at a time fits into the memory of the device. Choose a smaller backbone or "
                    "intake.image_size."
                ) from error
            size = replicas.padded_size(size // 2)
            telemetry.line(f"  {what}: out of memory; going on with {size} photos at a time")


def all_rows(batches: Iterator[list[np.ndarray]]) -> list[np.ndarray]:
    """The outputs of all batches, one after the other."""
    return [np.concatenate(column) for column in zip(*batches, strict=True)]
