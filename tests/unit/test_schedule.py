from itertools import pairwise

import numpy as np
import pytest

from job.config import Config
from job.train.recipe import Recipe, with_quality
from job.train.schedule import Schedule


def schedule(num_examples=20, epochs=3, global_batch_size=8, seed=5):
    recipe = Recipe(epochs, global_batch_size, learning_rate=1.0, views=1)
    return Schedule.resolve(recipe, num_examples=num_examples, warmup_fraction=0.2, seed=seed)


def test_every_example_comes_once_in_every_epoch_and_in_another_order():
    plan = schedule()
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 9)
    epochs = [np.concatenate([plan.batch(3 * e + k) for k in range(3)]) for e in range(3)]
    assert all(sorted(e) == list(range(20)) for e in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert [len(plan.batch(k)) for k in range(3)] == [8, 8, 4]


def test_a_batch_is_a_function_of_seed_and_step_alone():
    assert schedule().batch(7).tolist() == schedule().batch(7).tolist()
    other = schedule(seed=6)
    assert other.batch(7).tolist() != schedule().batch(7).tolist()


def test_examples_go_through_their_views_in_turn():
    plan = schedule()
    keys = np.asarray([10, 11, 2**63 + 5], np.uint64)
    seen = np.stack([plan.views(3 * epoch, keys, 3) for epoch in range(3)])
    assert all(sorted(column) == [0, 1, 2] for column in seen.T)


def test_repetition_has_the_order_of_the_next_seed_and_goes_on_with_new_views():
    recipe = Recipe(3, 8, learning_rate=1.0, views=1)
    first, second = (Schedule.resolve(recipe, num_examples=20, warmup_fraction=0.2, seed=5, repetition=k) for k in range(2))
    assert first == schedule(seed=5)
    assert second.batch(4).tolist() == schedule(seed=6).batch(4).tolist() != first.batch(4).tolist()
    views = [plan.views(3 * epoch, np.zeros(1, np.uint64), None).item() for plan in (first, second) for epoch in range(3)]
    assert views == [1, 2, 3, 4, 5, 6]


def test_learning_rate_rises_and_falls():
    plan = schedule()
    assert plan.warmup_steps == 2
    rates = [plan.learning_rate(step) for step in range(9)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert all(a > b for a, b in pairwise(rates[2:])) and rates[-1] < 0.1


def test_average_reaches_back_over_a_tenth_of_the_steps():
    plan = schedule(num_examples=100, epochs=10, global_batch_size=10)
    assert plan.ema_decay == pytest.approx(0.9)
    assert schedule(epochs=0).ema_decay == 0


def test_recipe_follows_the_number_of_photos_and_what_is_said_stands():
    recipes = [Recipe.resolve(Config(), num_examples=count) for count in (100, 300, 1000, 3000, 50_000, 1_000_000)]
    assert all(a.epochs >= b.epochs and a.views >= b.views for a, b in pairwise(recipes))
    assert all(a.global_batch_size <= b.global_batch_size for a, b in pairwise(recipes))
    said = Config(fine_tune={"epochs": 0, "learning_rate": 0.5, "global_batch_size": 7}, augment={"views": 9})
    assert Recipe.resolve(said, num_examples=3000) == Recipe(0, 7, 0.5, 9)
    partly = Recipe.resolve(Config(fine_tune={"epochs": 2}), num_examples=3000)
    assert partly.epochs == 2 and partly.learning_rate == recipes[3].learning_rate


def test_fine_tuning_counts_three_passes_of_what_it_trains_and_one_of_what_it_does_not_store():
    recipe = Recipe(epochs=10, global_batch_size=8, learning_rate=1e-3, views=2)
    assert recipe.forward_passes(100, 0.4, stored=True) == pytest.approx(1200)
    assert recipe.forward_passes(100, 0.4, stored=False) == pytest.approx(1800)


@pytest.mark.parametrize("num_examples", [100, 3000, 50_000])
def test_a_higher_quality_trains_more_layers_for_longer(num_examples):
    configs = [with_quality(Config(train={"quality": quality})) for quality in ("fast", "balanced", "best")]
    recipes = [Recipe.resolve(config, num_examples=num_examples) for config in configs]
    assert all(a.epochs < b.epochs for a, b in pairwise(recipes))
    assert all(a.views < b.views for a, b in pairwise(recipes))
    assert [recipe.seeds for recipe in recipes] == [1, 1, 2]
    shares = [config.backbone.unfreeze for config in configs]
    assert shares[0] < shares[1] <= shares[2]
    assert [config.evaluate.mirror for config in configs] == [False, True, True]


def test_quality_only_decides_what_is_left_at_auto():
    said = {
        "backbone": {"unfreeze": "none"},
        "fine_tune": {"epochs": 3},
        "augment": {"views": 5},
        "evaluate": {"mirror": False},
    }
    config = with_quality(Config(train={"quality": "best", "seeds": 1}, **said))
    assert (config.backbone.unfreeze, config.evaluate.mirror) == ("none", False)
    recipe = Recipe.resolve(config, num_examples=3000)
    assert (recipe.epochs, recipe.views, recipe.seeds) == (3, 5, 1)


def test_photos_are_mirrored_for_the_answer_only_where_mirrored_views_are_trained_on():
    for flips in (True, False):
        config = with_quality(Config(train={"quality": "best"}, augment={"horizontal_flip": flips}))
        assert config.evaluate.mirror is flips
    assert with_quality(Config(evaluate={"mirror": True}, augment={"horizontal_flip": False})).evaluate.mirror is True
