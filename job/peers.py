"""The workers of a run, as each stage sees them.

The chief (`chief.py`) says what to do, the others (`worker.py`) say that it is done, and everyone hears who is lost. One
connection leads from each worker to the chief. Data goes another way, through the output directory that all share. A worker
holds nothing that is not on the disk, so it may be ended at any instant.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from job.connection import Lost
from job.errors import TryAgainLater

Item = TypeVar("Item")

HEARD_WITHIN_S = 5.0  # What TensorFlow has noticed of a lost peer is known here soon after.


class Peers(Protocol):
    """The workers of a run, as one of them sees them."""

    index: int
    count: int

    @property
    def is_chief(self) -> bool:
        """Whether this worker decides and publishes; true where there is one alone."""

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """This worker's part of work that can be divided."""

    def same(self, value: Item) -> Item:
        """The chief's value, on all workers. Each must come here, in the same order."""

    def meet(self) -> None:
        """On the chief, wait until all others have come here. They go on."""


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
    """The items of one of `count` workers. Parts are contiguous, and their sizes differ by at most one."""
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def lost_peer(name: str, lost: Lost) -> TryAgainLater:
    """The error with which a run ends that has lost one of its workers."""
    return TryAgainLater(f"{name} is lost: {lost}. Start all workers again, and the run goes on from what is saved.")
