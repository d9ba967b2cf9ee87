"""The thread that tells a server about a run: what it sends at the end, and which faults it tells."""

import threading

import pytest

from job.runtime.sending import sending


def test_end_of_a_run_is_sent_once_with_how_it_ended():
    sent, told = [], []
    with sending(sent.append, told.append, every_s=60, last_within_s=60):
        pass
    with pytest.raises(KeyError), sending(sent.append, told.append, every_s=60, last_within_s=60, last_after=(LookupError,)):
        raise KeyError
    with pytest.raises(ZeroDivisionError), sending(sent.append, told.append, every_s=60, last_within_s=60):
        raise ZeroDivisionError
    assert (sent, told) == ([True, False], [])


def test_first_fault_is_told_and_no_other():
    faults, told = threading.Semaphore(0), []

    def fail(_):
        faults.release()
        raise OSError("away")

    with sending(fail, told.append, every_s=0.001, last_within_s=60):
        for _ in range(3):
            faults.acquire()
    assert [str(error) for error in told] == ["away"]


def test_server_that_hangs_is_told_and_left_behind():
    answers, told = threading.Event(), []
    with sending(lambda _: answers.wait(), told.append, every_s=60, last_within_s=0.01):
        pass
    assert [str(error) for error in told] == ["it did not take the last message within 0.01 s"]
    answers.set()
