"""Outputs on file systems that cannot do everything: real calls that fail, real mounts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, quick_settings, run_job

WORK = "import sys; from pathlib import Path; from tests.faults.crash_points import work; work(Path(sys.argv[1]))"


@pytest.fixture(scope="session")
def refusing(tmp_path_factory):
    """The library that fails calls; see refusing.c."""
    library = tmp_path_factory.mktemp("refusing") / "refusing.so"
    source = Path(__file__).parent / "refusing.c"
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, capture_output=True)
    except FileNotFoundError:
        if os.environ.get("REQUIRE_BEDS"):
            pytest.fail("REQUIRE_BEDS is set and there is no gcc")
        pytest.skip("there is no gcc")
    return library


def worked(out, **environment):
    """The storage layer of two runs, from the claim to the publication."""
    command = [sys.executable, "-c", WORK, str(out)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("calls", ["hardlink", "symlink", "exchange", "fsync", "hardlink,symlink,exchange,fsync"])
def test_output_needs_neither_links_nor_exchanges_nor_synced_folders(refusing, tmp_path, calls):
    done = worked(tmp_path / "out", LD_PRELOAD=str(refusing), REFUSE=calls)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / "model").is_symlink() and (tmp_path / "out" / "model" / "weights").exists()
    assert not (tmp_path / "out" / ".tmp").exists()


def test_whole_run_where_nothing_of_that_works(refusing, painted, tmp_path):
    environment = {"LD_PRELOAD": str(refusing), "REFUSE": "hardlink,symlink,exchange,fsync"}
    done = run_job("run", "--data", painted, "--out", tmp_path / "out", *quick_settings(), **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model" / "model.json").exists()


def test_file_system_that_cannot_rename_a_folder_is_refused_at_once(refusing, painted, tmp_path):
    environment = {"LD_PRELOAD": str(refusing), "REFUSE": "folders"}
    done = run_job("explore", "--data", painted, "--out", tmp_path / "out", **environment)
    assert done.returncode == 2 and "cannot rename a folder" in done.stderr and "intake" not in done.stderr


@pytest.fixture(params=["tmpfs", "overlay"])
def mounted(request, tmp_path):
    folder = tmp_path / "mounted"
    parts = [tmp_path / name for name in ("lower", "upper", "work")]
    for part in (folder, *parts):
        part.mkdir()
    overlay = "lowerdir={},upperdir={},workdir={}".format(*parts)
    options = ["-t", "tmpfs", "none"] if request.param == "tmpfs" else ["-t", "overlay", "none", "-o", overlay]
    if request.param == "overlay":  # Not on an overlay itself.
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=False, capture_output=True)
        for part in (folder, *parts):
            part.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=False)
    if request.param == "overlay":
        subprocess.run(["umount", tmp_path], check=False)


def test_output_on_a_mount_of_its_own(mounted):
    (mounted / "lost+found").mkdir(mode=0o700)
    done = worked(mounted)
    assert done.returncode == 0, done.stderr
    assert (mounted / "model" / "weights").exists() and (mounted / "lost+found").exists()
