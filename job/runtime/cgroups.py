"""CPU and memory limits of this process: those of a container, a Slurm job or a systemd unit.

They are limits of Linux control groups, which `os.cpu_count` does not know. The limits of all groups above a group count,
too. Inside a container the path of the group often does not exist, and the root is the group itself.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float:
    """Return the CPU seconds that this process may use in a second; infinite if there is no limit."""
    quotas = [math.inf]
    for group in _groups("cpu", root, membership):
        words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit():  # No limit is called "max" in version 2 and -1 in version 1.
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas)


def usable_cores() -> int:
    """Return the number of cores that this process may use, rounded up.

    It is rounded up because with a limit of 1.5 cores, one decoder would leave a third of the time unused.
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
    """Yield the folders of this process's group and the groups above it. Version 1 has a tree for each controller."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # This is not Linux.
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
