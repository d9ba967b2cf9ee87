"""A kill at any instant changes nothing but the clock: killer.py ends real runs. docs/reliability.md has the figures."""

import shutil
import signal

import pytest

from tests.faults import killer


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return killer.Undisturbed.of(tmp_path_factory.mktemp("kills"))


def test_two_fresh_runs_leave_the_same_bits(undisturbed):
    shutil.rmtree(undisturbed.out)
    killer.run(undisturbed.data, undisturbed.out)
    assert killer.outcome(undisturbed.out) == undisturbed.outcome


@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 8), (signal.SIGTERM, 6)])
def test_run_that_was_ended_at_random_instants_leaves_the_same_bits(undisturbed, number, count):
    tally = killer.kills(undisturbed, number, count)
    assert tally.problems == [] and tally.num_kills >= count
    assert len(tally.met_in) > 1, tally.met_in  # In several stages, or the instants were badly chosen.


@pytest.mark.long
@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 50), (signal.SIGTERM, 30)])
def test_many_kills(undisturbed, number, count):
    tally = killer.kills(undisturbed, number, count, seed=1)
    print(tally)
    assert tally.problems == [] and tally.num_kills >= count


@pytest.mark.long
def test_many_kills_and_resumes_of_one_run_leave_nothing_behind_and_take_no_more_memory(tmp_path):
    found = killer.cycles(tmp_path, 50)
    print(found)
    assert found["problems"] == [] and abs(found["drift"]) < 0.05 and found["files"] < 100
