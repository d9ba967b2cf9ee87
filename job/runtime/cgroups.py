"""What the control groups of Linux leave to this process: a container's limits, a Slurm job's, those of a systemd unit.

`os.cpu_count` and the size of the machine know nothing of them. A group cannot use what a group above it has not, so every
one up to the root counts. Inside a container the path of its group often leads nowhere, and the root is the group itself.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float:
    """Seconds of CPU time in a second; infinite where nothing limits them."""
    quotas = [math.inf]
    for group in _groups("cpu", root, membership):
        words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit():  # No limit is called "max" in version 2 and -1 in version 1.
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas)


def usable_cores() -> int:
    """The cores that this process may run on, or as many as its share of their time keeps busy.

    A part of a core counts as one: with 1.5 of them, one worker would leave a third of the time unused.
    """
    return math.ceil(min(len(os.sched_getaffinity(0)), cpu_quota()))


def memory_bytes(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int:
    """Return the memory of the machine in bytes, or the limit of a control group if that is lower."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for group in _groups("memory", root, membership):
        words = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        sizes += [int(word) for word in words if word.isdigit()]
    return min(sizes)


def _groups(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """The folders of this process's group and of those above it; version 1 has a tree for each controller."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # Another system than Linux.
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = root / controller if controllers else root
            group = top / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
