"""Unit tests start no process and import no TensorFlow."""

import multiprocessing.process
import subprocess
import sys

import pytest

from job.runtime import telemetry


@pytest.fixture(autouse=True)
def nothing_but_this_process(monkeypatch):
    """Fail a test that starts a process, or that imports TensorFlow."""

    def refuse(*_, **__):
        pytest.fail("a unit test starts no process: move it to tests/parts")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    before = "tensorflow" in sys.modules
    yield
    if not before and "tensorflow" in sys.modules:
        pytest.fail("a unit test does not import TensorFlow: move it to tests/parts")


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when it is told to."""

    class Clock:
        seconds = 0.0

        def wait(self, seconds):
            self.seconds += seconds

    at_hand = Clock()
    monkeypatch.setattr("time.monotonic", lambda: at_hand.seconds)
    monkeypatch.setattr(telemetry, "_once_s", {})
    return at_hand
