"""The workers of a run, as each stage sees them.

The chief (`chief.py`) says what to do, the others (`worker.py`) say that it is done, and everyone hears who is lost. One
connection leads from each worker to the chief. Data goes another way, through the output directory that all share. A worker
holds nothing that is not on the disk, so it may be ended at any instant.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from job.errors import JobError, TryAgainLater
from job.peers.connection import Lost
from job.stop import StopRequest

Item = TypeVar("Item")

_HEARD_WITHIN_S = 5.0  # So soon after TensorFlow the connections notice that a peer is lost.


class Peers(Protocol):
    """The workers of a run, as one of them sees them."""

    index: int
    count: int

    @property
    def is_chief(self) -> bool:
        """Whether this worker decides and publishes. One worker alone does."""

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this worker's part of work that can be divided."""

    def same(self, value: Item) -> Item:
        """Return the chief's value on all workers. Each worker must call this, in the same order."""

    def meet(self) -> None:
        """Wait, on the chief, until all others have called this. The others go on at once."""


class Alone:
    """One worker, which is the chief."""

    index, count, is_chief = 0, 1, True

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        return items

    def same(self, value: Item) -> Item:
        return value

    def meet(self) -> None:
        return


def part(items: Sequence[Item], index: int, count: int) -> Sequence[Item]:
    """Return the items of one of `count` workers. Parts are contiguous, and their sizes differ by at most one."""
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def lost_peer(name: str, lost: Lost) -> TryAgainLater:
    """Return the error that ends a run which has lost one of its workers."""
    return TryAgainLater(f"{name} is lost: {lost}. Start all workers again, and the run goes on from what is saved.")


@contextmanager
def peers_first(stop: StopRequest) -> Iterator[None]:
    """Let an error of TensorFlow in the block give way to its cause: a peer that is lost, or a request to stop.

    TensorFlow may notice either before the connections between the workers do.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, JobError) and not isinstance(error, TryAgainLater):
            raise
        deadline = time.monotonic() + _HEARD_WITHIN_S
        while time.monotonic() < deadline:
            stop.check()
            time.sleep(0.05)
        raise
