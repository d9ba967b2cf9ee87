"""The workers of a run, as each stage sees them.

The chief (`cluster/chief.py`) gives orders, the others (`cluster/worker.py`) report when they are done, and all of them
notice when one is lost. Each worker has one connection, to the chief. They exchange data through the output directory.
Everything that a worker has finished is on the disk, so it can be killed at any time.
"""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
_NUMBERS_IN_MESSAGE = 50_000  # A message has at most 1 MiB.


class Peers:
    """The workers of a run, as one of them sees them. This class is for a single worker, which is the chief.

    `index` is the number of this worker, and `count` that of all workers.
    """

    index, count = 0, 1

    @property
    def is_chief(self) -> bool:
        """True for the worker that gives the orders and publishes the results."""
        return self.index == 0

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this worker's part of the items."""
        return part(items, self.index, self.count)

    def same(self, value: Item) -> Item:
        """Return the chief's value on all workers. Each worker must call this, in the same order."""
        return value

    def meet(self) -> None:
        """Wait on the chief until all other workers have called this. The other workers do not wait."""


def told(peers: Peers, numbers: list[int]) -> list[int]:
    """Return the chief's numbers on all workers. Each worker must call this, in the same order; see `Peers.same`."""
    if peers.count == 1:
        return numbers
    count = peers.same(len(numbers))
    return [n for k in range(0, count, _NUMBERS_IN_MESSAGE) for n in peers.same(numbers[k : k + _NUMBERS_IN_MESSAGE])]


def part(items: Sequence[Item], index: int, count: int) -> Sequence[Item]:
    """Return the part of worker `index` of `count`. Parts are contiguous, and their sizes differ by at most one."""
    return items[index * len(items) // count : (index + 1) * len(items) // count]
