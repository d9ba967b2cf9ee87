"""Signals in every phase: real processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from textwrap import indent

import pytest

from tests.conftest import ROOT, WAIT_S

# A process that listens, says so, and then does something for as long as it takes.
SCRIPT = """
from job.runtime.stop import STOP, ignore_signals
STOP.listen()
STOP.grace_s = {grace}
print('ready', flush=True)
{body}
"""
ASKS = "import time\nfrom job.errors import Stopped\nwhile True:\n    time.sleep(0.01)\n    STOP.check()"
# A busy loop in C, between whose bytecodes nothing of Python's runs in the main thread.
DEAF = "import hashlib\nprint('works', flush=True)\nhashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)"


def start(body, grace=10.0, *, wrapper=()):
    command = [*wrapper, sys.executable, "-c", SCRIPT.format(grace=grace, body=body)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_is_heard_at_the_next_question(number):
    process = start(ASKS)
    process.send_signal(number)
    _, said = process.communicate(timeout=WAIT_S)
    assert f"job.errors.Stopped: Stopped by {number.name}" in said and "the same command goes on from there" in said


def test_process_that_cannot_listen_ends_with_143_at_the_deadline_and_says_what_is_saved():
    work = f"STOP.note_saved('everything up to step 7')\n{DEAF}"
    process = start(f"with STOP.during('fine_tune'):\n{indent(work, '    ')}", grace=0.3)
    assert process.stdout.readline() == "works\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143 and time.monotonic() - started > 0.3
    assert "no point to stop at was reached within 0.3 s" in said
    assert "Stopped by SIGTERM in fine_tune. Of fine_tune, everything up to step 7 is saved." in said


def test_signal_is_acknowledged_at_once_although_the_main_thread_cannot_hear_it():
    process = start(f"with STOP.during('extract'):\n{indent(DEAF, '    ')}", grace=60.0)
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGTERM)
    said = process.stderr.readline()
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert said.startswith("SIGTERM received in extract: stopping at the next safe point, in at most 60 s.")


def test_acknowledgement_on_a_terminal_takes_the_line_of_the_bar_and_shows_the_cursor_again():
    near, far = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(grace=0.1, body=DEAF)], cwd=ROOT, stdout=subprocess.PIPE, stderr=far, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)
    said = os.read(near, 4096).decode()
    os.close(near), os.close(far)
    assert process.returncode == 143 and said.startswith("\r\x1b[2K\x1b[?25hSIGINT received: stopping")


def test_signal_after_the_end_of_the_work_leaves_the_exit_code_alone():
    """Python gives handlers back to the system long before the process is gone."""
    body = "import atexit, time\natexit.register(time.sleep, 1)\nignore_signals()\nprint('over', flush=True)"
    process = start(body)
    assert process.stdout.readline() == "over\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 0


def test_more_signals_do_no_harm():
    process = start(f"import threading\n{DEAF}", grace=0.5)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
        time.sleep(0.05)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143 and said.count("Stopped") == 2 and "Traceback" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace of one's own needs root")
def test_signal_ends_the_first_process_of_a_container():
    """Without a handler the kernel drops what is sent to process 1."""
    process = start(DEAF, grace=0.2, wrapper=("unshare", "--pid", "--fork", "--kill-child"))
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout), signal.SIGTERM)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 143


def test_signal_while_modules_are_imported_ends_with_143(tmp_path):
    """The program itself, met in the first moments of its life, over and over."""
    codes = set()
    for wait_s in (0.08, 0.15, 0.3, 0.6):
        command = [sys.executable, "-m", "job", "run", "--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        time.sleep(wait_s)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=WAIT_S)
        codes.add(process.returncode)
        assert "Traceback" not in said
    assert codes <= {143, 2, -signal.SIGTERM}  # 2: it had ended by itself; the signal's own: before Python was up.
