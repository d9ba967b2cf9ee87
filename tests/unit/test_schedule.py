from itertools import pairwise

import numpy as np
import pytest

from job.config import FineTuneConfig
from job.train.schedule import Schedule


def schedule(**changes):
    config = FineTuneConfig(epochs=3, global_batch_size=8, warmup_fraction=0.2, learning_rate=1.0, **changes)
    return Schedule.resolve(config, num_examples=20, seed=5)


def test_every_example_comes_once_in_every_epoch_and_in_another_order():
    plan = schedule()
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 9)
    epochs = [np.concatenate([plan.batch(3 * e + k) for k in range(3)]) for e in range(3)]
    assert all(sorted(e) == list(range(20)) for e in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert [len(plan.batch(k)) for k in range(3)] == [8, 8, 4]


def test_a_batch_is_a_function_of_seed_and_step_alone():
    assert schedule().batch(7).tolist() == schedule().batch(7).tolist()
    other = Schedule.resolve(FineTuneConfig(epochs=3, global_batch_size=8), num_examples=20, seed=6)
    assert other.batch(7).tolist() != schedule().batch(7).tolist()


def test_examples_go_through_their_views_in_turn():
    plan = schedule()
    keys = np.asarray([10, 11, 2**63 + 5], np.uint64)
    seen = np.stack([plan.views(3 * epoch, keys, 3) for epoch in range(3)])
    assert all(sorted(column) == [0, 1, 2] for column in seen.T)


def test_learning_rate_rises_and_falls():
    plan = schedule()
    assert plan.warmup_steps == 2
    rates = [plan.learning_rate(step) for step in range(9)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert all(a > b for a, b in pairwise(rates[2:])) and rates[-1] < 0.1


def test_average_reaches_back_over_a_tenth_of_the_steps():
    plan = Schedule.resolve(FineTuneConfig(epochs=10, global_batch_size=10), num_examples=100, seed=0)
    assert plan.ema_decay == pytest.approx(0.9)
    assert Schedule.resolve(FineTuneConfig(epochs=0), num_examples=10, seed=0).ema_decay == 0
