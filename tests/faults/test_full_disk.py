"""The whole job on a disk that is too small: a real one, in memory."""

import os
import subprocess

import pytest

from tests.conftest import quick_settings, run_job


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a disk of so many kB, or changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kb):
        options = f"size={kb}k" + (",remount" if os.path.ismount(folder) else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        return folder

    yield size
    subprocess.run(["umount", folder], check=False)


def test_room_for_the_model_is_asked_for_before_features_are_extracted(painted, small_disk):
    out = small_disk(5_000) / "out"
    full = run_job("run", "--data", painted, "--out", out, *quick_settings())
    assert full.returncode == 74 and "The model of this run needs 9." in full.stderr and "MB are free" in full.stderr
    assert "extract   runs" in full.stderr and not (out / "stages" / "extract").exists()


@pytest.mark.parametrize("kb", [10_500, 11_500, 13_000, 16_000])
def test_disk_that_runs_full_ends_with_74_and_with_more_room_the_same_command_goes_on(painted, small_disk, kb):
    out = small_disk(kb) / "out"
    full = run_job("run", "--data", painted, "--out", out, *quick_settings())
    assert full.returncode == 74, full.stderr
    last = full.stderr.split("\nError: ")[-1]
    assert str(out) in last and "Free some space" in last and " are free" in last and "Traceback" not in full.stderr
    left = {p: p.read_bytes() for p in out.rglob("stages/*.json")}
    small_disk(200_000)
    done = run_job("run", "--data", painted, "--out", out, *quick_settings())
    assert done.returncode == 0, done.stderr
    assert all(p.read_bytes() == content for p, content in left.items())  # What was finished was not done again.
    assert not (out / ".tmp").exists()
