"""The last event of events.jsonl says how a run has ended, whatever has ended it."""

import errno
import json
import os
import subprocess
import sys

import pytest

from job.errors import DataUnusable, Diverged, GateNotMet, Stopped, StorageFailed, TryAgainLater, UsageError, code_of
from job.pipeline.output import owned
from job.runtime.context import Context
from job.runtime.session import Session
from job.runtime.telemetry import Telemetry
from job.storage.ledger import TEMPORARY
from job.storage.workdir import LOG, Workdir
from job.stores.cache import Cache
from tests.conftest import ROOT

ENDS = [
    *(kind("it was\nlike this") for kind in (UsageError, GateNotMet, DataUnusable, Diverged, TryAgainLater)),
    StorageFailed("no more space"),
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    RuntimeError("a bug"),
    ValueError(),
]


def log_of(out):
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def begin(out, outcome=dict):
    workdir = Workdir(out)
    context = Context(workdir, Telemetry(workdir.path("logs")))
    return context, owned(context, Session(stop=context.stop), outcome)


def end_with(out, error=None, outcome=dict):
    context, block = begin(out, outcome)
    try:
        with block:
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    else:
        assert error is None
    assert context.stop.last_words == []
    return context


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_every_error_leaves_an_event_with_its_exit_code(tmp_path, error):
    context = end_with(tmp_path / "out", error, lambda: {"accuracy": 0.5})
    (event,) = log_of(tmp_path / "out")
    assert (event["event"], event["result"], event["exit_code"]) == ("run_ended", "failed", code_of(error))
    assert event["run_id"] == context.telemetry.run_id and event["accuracy"] == 0.5
    assert event["error"] == (str(error) or "ValueError")


def test_cache_that_is_refused_after_the_output_was_claimed_leaves_an_event(tmp_path, monkeypatch):
    def refuse(_cache):
        raise UsageError("cache.dir contains other files")

    monkeypatch.setattr(Cache, "claim", refuse)
    _, block = begin(tmp_path / "out")
    with pytest.raises(UsageError), block:
        pass
    (event,) = log_of(tmp_path / "out")
    assert (event["exit_code"], event["error"]) == (2, "cache.dir contains other files")


def test_each_start_has_an_id_of_its_own_and_the_last_event_is_that_of_the_last_start(tmp_path):
    end_with(tmp_path / "out", Stopped("by SIGTERM"))
    end_with(tmp_path / "out")
    stopped, done = log_of(tmp_path / "out")
    assert (stopped["result"], stopped["exit_code"], done["result"], done["exit_code"]) == ("stopped", 143, "ok", 0)
    assert stopped["run_id"] != done["run_id"] and "error" not in done


def test_error_counts_although_the_outcome_cannot_be_read(tmp_path):
    end_with(tmp_path / "out", GateNotMet("not good enough"), lambda: {"accuracy": 1 / 0})
    (event,) = log_of(tmp_path / "out")
    assert (event["exit_code"], event["error"]) == (3, "not good enough") and "accuracy" not in event


def test_log_that_cannot_be_written_at_the_end_is_a_storage_error(tmp_path):
    context, block = begin(tmp_path / "out")
    with pytest.raises(StorageFailed), block:
        (tmp_path / "out" / LOG).unlink()
        (tmp_path / "out" / LOG).mkdir()
    assert context.workdir.lease is None


def test_run_that_was_taken_over_leaves_the_log_to_the_other_one(tmp_path):
    context, block = begin(tmp_path / "out")
    with pytest.raises(TryAgainLater, match="was taken over"), block:
        (tmp_path / "out" / ".lease").write_text("")
        context.workdir.write_bytes("run.json", b"{}")
    assert log_of(tmp_path / "out") == []


def test_report_drawn_again_is_no_run_and_leaves_no_event(tmp_path):
    end_with(tmp_path / "out", outcome=None)
    assert log_of(tmp_path / "out") == [] and not (tmp_path / "out" / TEMPORARY).exists()


def test_process_that_has_to_be_ended_leaves_the_event_too(tmp_path):
    """The main thread hangs in C, so that another thread ends the process."""
    script = (
        "import hashlib, os, signal, sys\n"
        "from pathlib import Path\n"
        "from job.runtime.stop import STOP\n"
        "from tests.parts.test_end_of_run import Context, Session, Telemetry, Workdir, owned\n"
        "workdir = Workdir(Path(sys.argv[1]))\n"
        "STOP.listen()\n"
        "STOP.grace_s = 0.2\n"
        "context = Context(workdir, Telemetry(workdir.path('logs')), stop=STOP)\n"
        "with owned(context, Session(stop=STOP), lambda: {'accuracy': 0.25}):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], cwd=ROOT, check=False)
    (event,) = log_of(tmp_path / "out")
    assert done.returncode == 143
    assert (event["result"], event["exit_code"], event["accuracy"]) == ("stopped", 143, 0.25)
    assert "no point to stop at was reached" in event["error"]
