"""Messages of real processes as JSON objects, their termination log, and the result on the last line."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, quick_settings, run_job
from tests.faults.several import Run
from tests.unit.test_log import KEYS

JSON = ("--log-format", "json", "--json")
# A program whose command does something else.
INSTEAD = "import job.cli, sys; sys.argv = ['transfer-job', '--log-format=json', '--json']; job.cli.main = instead; {}"
START = INSTEAD.format("from job.__main__ import start; start()")


def messages(stderr):
    found = [json.loads(line) for line in stderr.splitlines()]
    assert all(list(message) == KEYS for message in found), stderr
    return found


@pytest.fixture
def termination_log(tmp_path):
    file = tmp_path / "termination-log"
    file.touch()
    return file


def program(code, termination_log):
    """A program whose command is the function `instead` of this code, to its end."""
    environ = {**os.environ, "TERMINATION_LOG": str(termination_log)}
    command = [sys.executable, "-c", f"{code}\n{START}"]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_run_writes_nothing_but_objects_and_ends_with_its_result(painted, tmp_path, termination_log):
    arguments = ("--data", painted, "--out", tmp_path / "out", *quick_settings(), *JSON)
    done = run_job("explore", *arguments, TERMINATION_LOG=str(termination_log))
    assert done.returncode == 0, done.stderr
    found = messages(done.stderr)
    events = [json.loads(line) for line in (tmp_path / "out/logs/events.jsonl").read_text().splitlines()]
    assert {message["run_id"] for message in found} == {event["run_id"] for event in events}
    assert {message["worker"] for message in found} == {0} and "error" not in {message["level"] for message in found}
    assert [m["stage"] for m in found if "done in" in m["message"]] == ["intake", "split", "explore", "report"]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["result"], result["exit_code"], result["run_id"]) == ("ok", 0, events[0]["run_id"])
    assert result["report"] == str(tmp_path / "out" / "report.html") and result["accuracy"] is None
    assert termination_log.read_text().startswith("exit code 0: 82 files looked at.")


def test_workers_are_told_apart_and_have_the_run_id_of_the_chief(painted, tmp_path):
    both = Run(painted, tmp_path / "out", stop_after="intake", options=JSON[:2])
    assert both.codes() == [0, 0], both.said(0) + both.said(1)
    chief, other = (messages(re.sub(r"^[^{].*$\n", "", both.said(k), flags=re.MULTILINE)) for k in range(2))
    assert {message["worker"] for message in chief} == {0} and {message["worker"] for message in other} == {1}
    shared = [message for message in other if message["stage"] == "intake"]
    assert shared[0]["message"] == "intake    runs, this worker's part"
    assert {message["run_id"] for message in (*chief, *shared)} == {chief[0]["run_id"]}


def test_progress_of_a_whole_run_never_goes_back_and_ends_with_100(finished_run):
    events = [json.loads(line) for line in (finished_run / "logs/events.jsonl").read_text().splitlines()]
    told = [(event["percent"], event["remaining_s"]) for event in events if "percent" in event]
    assert told == sorted(told, key=lambda numbers: numbers[0]) and told[0][0] < 50 and told[-1] == (100, 0)
    ended = [event for event in events if event["event"] == "stage_finished"]
    assert [event["stage"] for event in ended if event["remaining_s"] is None] == ["intake", "split", "explore"]


def test_result_of_a_whole_run_names_its_model_and_its_accuracy(finished_run):
    done = run_job("report", finished_run, *JSON)
    found, metrics = json.loads(done.stdout.splitlines()[-1]), json.loads((finished_run / "metrics.json").read_text())
    assert found["accuracy"] == metrics[metrics["shipped"]]["test"]["accuracy"]
    assert found["model"] == str(finished_run / "model") and found["out"] == str(finished_run)
    command = ["sha256sum", finished_run / "model" / "model.json"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0] == found["model_sha256"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nowhere", "--out", "nowhere-else"), "--data nowhere: no such folder or table."),
        (("--frobnicate",), "No such option '--frobnicate'."),
        ((), "Missing option '--data'."),
        (("--data", "tests", "--out", "x", "--set", "backbone.name=y"), "The configuration has mistakes:"),
    ],
)
def test_wrong_usage_is_an_object_too(words, said, termination_log):
    done = run_job("run", *words, *JSON, TERMINATION_LOG=str(termination_log))
    last, result = messages(done.stderr)[-1], json.loads(done.stdout)
    assert (done.returncode, last["level"], last["fields"]) == (2, "error", {"error": "UsageError", "exit_code": 2})
    assert last["message"].startswith(said) and termination_log.read_text().startswith(f"exit code 2: {said}")
    assert result == {"result": "failed", "exit_code": 2, "run_id": last["run_id"], "error": last["message"]}


def test_limit_that_is_found_before_anything_else_is_an_object_too(termination_log):
    words = [sys.executable, "-P", "-m", "job", "demo", *JSON]
    command = ["prlimit", "--nofile=60", *words]
    environ = {**os.environ, "TERMINATION_LOG": str(termination_log)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    (message,) = messages(done.stderr)
    assert done.returncode == 2 and "the number of open files of a process is limited to 60" in message["message"]
    assert "ulimit -n 1024" in termination_log.read_text() and json.loads(done.stdout)["exit_code"] == 2


def test_warnings_logging_threads_and_bugs_are_objects_too(termination_log):
    code = (
        "import logging, threading, warnings\n"
        "def instead():\n"
        "    warnings.warn('old', UserWarning)\n"
        "    logging.getLogger('library').error('lost')\n"
        "    thread = threading.Thread(target=lambda: [].pop()); thread.start(); thread.join()\n"
        "    raise ValueError('odd \\x1b[2J')\n"
    )
    done = program(code, termination_log)
    found = messages(done.stderr)
    said = [(message["level"], message["message"]) for message in found]
    assert said[:-1] == [
        ("warning", "UserWarning: old"),
        ("warning", "lost"),
        ("error", "IndexError: pop from empty list"),
    ]
    assert said[-1] == ("error", r"ValueError: odd \x1b[2J") and "Traceback" in found[-1]["fields"]["traceback"]
    assert done.returncode == 1 and termination_log.read_text() == "exit code 1: ValueError: odd \\x1b[2J\n"
    assert json.loads(done.stdout)["error"] == r"ValueError: odd \x1b[2J"


def test_process_that_has_to_be_ended_writes_objects_too(termination_log):
    """The main thread hangs in C, so that another thread ends the process."""
    code = (
        "import hashlib, os, signal\n"
        "def instead():\n"
        "    from job.runtime.stop import STOP\n"
        "    STOP.grace_s = 0.2\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)\n"
    )
    done = program(code, termination_log)
    received, stopped = messages(done.stderr)
    assert received["message"].startswith("SIGTERM received") and received["level"] == stopped["level"] == "warning"
    assert stopped["fields"] == {"error": "Stopped", "exit_code": 143} and done.returncode == 143
    assert termination_log.read_text().startswith("exit code 143: no point to stop at was reached")
    assert json.loads(done.stdout)["result"] == "stopped"


def test_quickstart_shows_commands_that_exist():
    done = run_job("quickstart")
    words = [line.partition(" IMAGE ")[2].split() for line in done.stdout.splitlines() if "docker" in line]
    assert [line[0] for line in words] == ["demo", "explore", "run", "-C", "--help", "run"] and done.returncode == 0
    assert 'CMD ["quickstart"]' in (ROOT / "Dockerfile").read_text()
