"""Limits read from folders laid out as the kernel does it; tests/launch/test_docker.py has them from a real engine."""

import math
import os
from pathlib import Path

import pytest

from job.runtime.cgroups import cpu_quota, memory_bytes, usable_cores

MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
VERSION_1 = "9:cpuset:/jobs/7\n4:memory:/jobs/7\n2:cpu,cpuacct:/jobs/7\n1:name=systemd:/\n"
VERSION_2 = "0::/jobs/7\n"


def laid_out(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """The root of the groups, and the file that names the group of the process."""
    for name, text in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (folder / "membership").write_text(membership)
    return folder / "cgroup", folder / "membership"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        (VERSION_2, {"jobs/7/cpu.max": "150000 100000"}, 1.5),
        (VERSION_2, {"jobs/7/cpu.max": "max 100000"}, math.inf),
        (VERSION_2, {"jobs/7/cpu.max": "max 100000", "jobs/cpu.max": "50000 100000"}, 0.5),
        (VERSION_2, {"cpu.max": "200000 100000"}, 2),
        (VERSION_1, {"cpu/jobs/7/cpu.cfs_quota_us": "300000", "cpu/jobs/7/cpu.cfs_period_us": "100000"}, 3),
        (VERSION_1, {"cpu/jobs/7/cpu.cfs_quota_us": "-1", "cpu/jobs/7/cpu.cfs_period_us": "100000"}, math.inf),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "50000"}, 0.5),
        (VERSION_1, {}, math.inf),
    ],
    ids=[
        "version 2",
        "version 2 without a limit",
        "version 2 limited further up",
        "version 2 in a container, whose root is its own group",
        "version 1",
        "version 1 without a limit",
        "version 1 in a container",
        "nothing that can be read",
    ],
)
def test_share_of_cpu_time_is_the_smallest_on_the_way_to_the_root(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float
) -> None:
    assert cpu_quota(*laid_out(tmp_path, membership, files)) == cores


@pytest.mark.parametrize(
    ("membership", "files", "expected_bytes"),
    [
        (VERSION_2, {"jobs/7/memory.max": "max", "jobs/memory.max": "1048576"}, 1048576),
        (VERSION_2, {"jobs/7/memory.max": "max"}, MACHINE_BYTES),
        (VERSION_1, {"memory/jobs/7/memory.limit_in_bytes": "2097152"}, 2097152),
        (VERSION_1, {"memory/memory.limit_in_bytes": "9223372036854771712"}, MACHINE_BYTES),
        (VERSION_1, {}, MACHINE_BYTES),
    ],
    ids=["version 2", "version 2 without a limit", "version 1", "version 1 without a limit", "nothing that can be read"],
)
def test_memory_is_that_of_the_machine_or_of_the_tightest_group(
    tmp_path: Path, membership: str, files: dict[str, str], expected_bytes: int
) -> None:
    assert memory_bytes(*laid_out(tmp_path, membership, files)) == expected_bytes


def test_where_there_are_no_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") == math.inf
    assert memory_bytes(tmp_path, tmp_path / "none") == MACHINE_BYTES


def test_affinity_limits_the_usable_cores() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
