import pytest

from job.reporting import times

# Round numbers, so that the parts can be told by hand: 20 s in all.
RECORDS = {
    "intake": {"wall_s": 2.0, "cpu_s": 3.0, "count": 300, "spent_s": {"decode": 1.5}, "done": {}},
    "extract": {"wall_s": 6.0, "cpu_s": 9.0, "count": 600, "done": {"forward": 500}}
    | {"spent_s": {"imports": 1.0, "tracing": 0.5, "building": 0.5, "forward": 2.5, "waiting for data": 0.5}},
    "head": {"wall_s": 1.0, "cpu_s": 1.0, "count": None, "spent_s": {"imports": 0.5}, "done": {}},
    "fine_tune": {"wall_s": 7.0, "cpu_s": 8.0, "count": 1400, "done": {"training": 1200, "validation": 90}}
    | {"spent_s": {"start": 0.5, "training": 3.0, "validation": 0.5, "tracing": 2.0}},
    "export": {"wall_s": 4.0, "cpu_s": 4.0, "count": None, "spent_s": {"building": 0.5}, "done": {}},
}


def test_shares_are_those_that_can_be_told_by_hand():
    # Overhead: 2 s of extract, 0.5 of head, 2 of fine_tune and all 4 of export. Other: 0.5, 1 and 1 s.
    assert times.shares(RECORDS) == {
        "decode": 0.075, "forward": 0.15, "training": 0.2, "waiting for data": 0.025, "overhead": 0.425, "other": 0.125
    }  # fmt: skip


@pytest.mark.parametrize("wall_s", [6.0, 5.9])  # The latter as where decoding took more than its share of the wall time.
def test_shares_sum_to_one_and_none_is_negative(wall_s):
    spent = {"decode": 1.0, "forward": 1.0, "training": 1.0, "imports": 1.0, "waiting for data": 2.0}
    found = times.shares({"extract": {"wall_s": wall_s, "cpu_s": 1.0, "spent_s": spent}})
    assert round(sum(found.values()), 9) == 1 and min(found.values()) >= 0
    assert found["decode"] == 0.1666 and found["waiting for data"] == 0.3333


def test_nothing_that_ran_has_no_shares():
    assert times.shares({}) == {} and times.throughput({}) == {}


def test_record_of_an_earlier_version_is_all_other():
    assert times.spent("audit", {"wall_s": 2.0, "cpu_s": 1.0}) == {"other": 2.0}
    assert times.shares({"intake": {"wall_s": 2.0, "cpu_s": 1.0, "count": 100}})["other"] == 1
    assert times.throughput({"intake": {"wall_s": 2.0, "cpu_s": 1.0, "count": 100}}) == {"intake_photos_per_s": 50.0}


def test_what_took_longest_comes_first_and_the_rest_last():
    assert list(times.spent("fine_tune", RECORDS["fine_tune"])) == ["training", "tracing", "start", "validation", "other"]
    assert times.spent("export", RECORDS["export"]) == {"building": 0.5, "export": 3.5}


def test_rates_of_stages_and_of_the_loops_in_them():
    assert times.throughput(RECORDS) == {
        "intake_photos_per_s": 150.0,
        "extract_views_per_s": 100.0,
        "extract_forward_views_per_s": 200.0,  # 500 in 2.5 s: the other 100 went by while the graph was traced.
        "fine_tune_examples_per_s": 200.0,
        "fine_tune_training_examples_per_s": 400.0,
    }
