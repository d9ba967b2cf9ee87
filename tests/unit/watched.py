"""A source that writes down how much memory the process that reads from it, a decode worker, has used at most."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.sources.base import Entry, Listing, Source


@dataclass(frozen=True)
class Watched:
    """Adds a line to `log` for every shard that a worker has gone through: its peak in kB before and after."""

    source: Source
    log: Path

    @property
    def uri(self) -> str:
        return self.source.uri

    @property
    def patience_s(self) -> float:
        return self.source.patience_s

    def prepare(self) -> None:
        self.source.prepare()

    def listing(self) -> Listing:
        return self.source.listing()

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        before = _peak_kb()
        yield from self.source.read(entries)
        with open(self.log, "a") as log:
            log.write(json.dumps([before, _peak_kb()]) + "\n")

    def growth_mb(self) -> float:
        """How far the worker that grew most went beyond a worker that has not decoded anything."""
        peaks = [json.loads(line) for line in self.log.read_text().splitlines()]
        return (max(after for _, after in peaks) - min(before for before, _ in peaks)) / 1024


def _peak_kb() -> int:
    """Of this process alone, which `ru_maxrss` is not for one that was started by a larger one."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])
