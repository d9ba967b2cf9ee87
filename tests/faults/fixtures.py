"""Runs that nobody disturbed. Tests compare with them what others leave."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import made_once
from tests.faults.killer import Undisturbed, run
from tests.faults.several import Run


@pytest.fixture(scope="session")
def undisturbed_run(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run in a new interpreter. Runs that are ended start from the warm process, and must leave the same bits."""

    def make(folder: Path) -> None:
        run(painted, folder / "out", start=subprocess.Popen)
        shutil.copytree(folder / "out", folder / "finished", symlinks=True)

    return Undisturbed.of(painted, made_once("undisturbed-run", tmp_path_factory, make))


@pytest.fixture(scope="session")
def undisturbed_workers(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run of two workers."""

    def make(folder: Path) -> None:
        workers = Run(painted, folder / "out")
        assert workers.codes() == [0, 0], workers.said(0) + workers.said(1)
        shutil.copytree(folder / "out", folder / "finished", symlinks=True)

    return Undisturbed.of(painted, made_once("undisturbed-workers", tmp_path_factory, make))
