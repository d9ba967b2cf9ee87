"""A kill at any instant changes nothing but the clock: killer.py ends real runs. docs/reliability.md has the figures."""

import signal

import pytest

from tests.faults import killer


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_run_that_was_ended_in_every_stage_leaves_the_same_bits(undisturbed_run, number):
    tally = killer.kills_in_every_stage(undisturbed_run, number)
    assert tally.problems == []
    # SIGTERM is heard between two pieces of work, and a busy machine sends signals late, so a run that is quick may be in a
    # later stage by then.
    assert len({"intake", "extract", "fine_tune", "export"} & tally.met_in.keys()) >= 3, tally.met_in
    assert number == signal.SIGTERM or len(tally.met_in) > 5, tally.met_in


@pytest.mark.long
@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 50), (signal.SIGTERM, 30)])
def test_many_kills(undisturbed_run, number, count):
    tally = killer.kills(undisturbed_run, number, count, seed=1)
    print(tally)
    assert tally.problems == [] and tally.num_kills >= count


@pytest.mark.long
def test_many_kills_and_resumes_of_one_run_leave_nothing_behind_and_take_no_more_memory(tmp_path):
    found = killer.cycles(tmp_path, 50)
    print(found)
    assert found["problems"] == [] and abs(found["drift"]) < 0.05 and found["files"] < 100
