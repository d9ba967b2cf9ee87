"""The workers of a run, as each stage sees them.

The chief (`cluster/chief.py`) says what to do, the others (`cluster/worker.py`) say when it is done, and all are told when
one is lost. Each worker has one connection, to the chief. Data goes through the output directory that all share. A worker
holds nothing that is not on the disk, so it may be ended at any instant.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


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
