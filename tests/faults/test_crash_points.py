"""Every operation on the disk as the last one, and as the first that finds no room. See crash_points.py."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def folder():
    """In memory where that can be: thousands of syncs of nothing."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


def everywhere(what, folder):
    command = [sys.executable, "-m", "tests.faults.crash_points", what, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_after_a_crash_at_any_operation_nothing_is_half_there_and_the_next_start_ends_the_same(folder):
    found = everywhere("crash", folder)
    assert found["problems"] == []
    assert found["operations"] > 300 and found["stops"] + found["same"] > found["operations"]


def test_full_disk_at_any_operation_is_told_and_harms_nothing(folder):
    found = everywhere("full", folder)
    assert found["problems"] == []
    assert found["stops"] > 250 and "Free some space and run the same command again" in found["message"]
