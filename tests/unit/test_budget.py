"""The choice of a quality by the time that is left, and the time that earlier starts have spent."""

import json
import math

import pytest

from job.config import Config
from job.errors import UsageError
from job.pipeline.budget import Budget, Estimate, spent_before
from job.pipeline.quality import HEAD, Timed, best_that_fits, configured, fine_tuning_s
from job.train.recipe import Recipe


def estimates(**seconds_of):
    return [
        Estimate(name, seconds, 10.0, later_s=20.0, disk_bytes=1e6, memory_bytes=1e9) for name, seconds in seconds_of.items()
    ]


@pytest.mark.parametrize(
    ("left_s", "name"), [(1000, "best"), (400, "balanced"), (105, HEAD), (120, "fast"), (20, HEAD), (-5, HEAD)]
)
def test_best_quality_that_fits_with_a_margin_is_taken_and_the_head_where_none_does(left_s, name):
    found = estimates(head=50.0, fast=100.0, balanced=200.0, best=500.0)
    assert best_that_fits(found, left_s).name == name


def test_quality_that_is_quicker_than_a_worse_one_is_taken():
    """Stored activations of fewer layers may be too large for the disk, for instance."""
    assert best_that_fits(estimates(head=50.0, fast=900.0, balanced=100.0, best=800.0), 200).name == "balanced"


def test_time_that_is_kept_for_later_stages_grows_if_the_run_is_slower_than_predicted(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("job.pipeline.budget.time.monotonic", lambda: now)
    budget = Budget(limit_s=300, before_s=0, _started=900)  # 100 s are spent.
    assert budget.training_clock()() == math.inf, "nothing was chosen yet"
    (budget.chosen,) = estimates(fast=80.0)  # 30 s until fine-tuning begins if 20 s were over, 10 s of it, and 20 s later.
    assert budget.training_clock()() == 300 - 100 - 20
    budget.settled_s = 20.0
    assert budget.training_clock()() == pytest.approx(300 - 100 - 20 * 80 / 30)


def test_seconds_of_fine_tuning_follow_from_the_rates():
    step, recipe = Timed(first_s=5.0, per_example_s=0.01), Recipe(3, 32, 1e-3, 2, seeds=2)
    # 5 s of tracing; 2 seeds of 3 epochs with 100 examples of 0.01 s and 50 forward passes of 0.4 * 0.002 s.
    found = fine_tuning_s(recipe, step, num_train=100, num_val=50, forward_s=0.002, share_above=0.4, is_stored=True)
    assert found == pytest.approx(5 + 6 * (1.0 + 50 * 0.0008))
    online = fine_tuning_s(recipe, step, num_train=100, num_val=50, forward_s=0.002, share_above=0.4, is_stored=False)
    assert online - found == pytest.approx(6 * 100 * 0.6 * 0.002)


def test_time_spent_is_that_of_all_starts_since_the_last_that_ended_well(tmp_path):
    log = tmp_path / "events.jsonl"
    assert spent_before(log) == 0
    events = [
        {"time": 100.0, "run_id": "a", "event": "stage_started"},
        {"time": 190.0, "run_id": "a", "event": "run_ended", "result": "ok"},
        {"time": 200.0, "run_id": "b", "event": "stage_started"},
        {"time": 230.0, "run_id": "b", "event": "checkpoint"},
        {"time": 500.0, "run_id": "c", "event": "stage_started"},
        {"time": 512.0, "run_id": "c", "event": "run_ended", "result": "stopped"},
    ]
    log.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"time": 513.0, "run')
    assert spent_before(log) == 30 + 12


def test_budget_is_a_time_with_a_unit_or_seconds():
    for given, seconds in (("90s", 90), ("20m", 1200), ("1.5h", 5400), ("45", 45), (30, 30)):
        assert Config.load(None, (), {"train.budget_s": given}).train.budget_s == seconds
    with pytest.raises(UsageError, match=r"train\.budget_s: got 'soon'; allowed: a number, above 0 or left out"):
        Config.load(None, (), {"train.budget_s": "soon"})


def test_choice_decides_only_what_is_left_at_auto():
    given = Config.load(None, ["backbone.unfreeze=0.2", "augment.views=5"])
    best, head = configured(given, "best"), configured(given, HEAD)
    assert (best.train.quality, best.backbone.unfreeze, best.augment.views) == ("best", 0.2, 5)
    assert (head.fine_tune.epochs, head.augment.views) == (0, 5) and configured(Config(), HEAD).augment.views == 1
