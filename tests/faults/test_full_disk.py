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


def test_disk_that_runs_full_ends_with_74_and_with_more_room_the_same_command_goes_on(painted, small_disk):
    """The disk is too small for the stores, for the first file that is published, for a later one, and large enough."""
    left, codes, full = {}, [], []
    for kb in (10_500, 11_500, 12_500, 200_000):
        out = small_disk(kb) / "out"
        done = run_job("run", "--data", painted, "--out", out, *quick_settings())
        assert all(p.read_bytes() == content for p, content in left.items())  # What was finished was not done again.
        left = {p: p.read_bytes() for p in out.rglob("stages/*.json")}
        codes.append(done.returncode)
        full.append(done.stderr.split("\nError: ")[-1])
        assert "Traceback" not in done.stderr
    assert codes == [74, 74, 74, 0], full
    assert all(str(out) in said and "Free some space" in said and " are free" in said for said in full[:3])
    assert not (out / ".tmp").exists()
