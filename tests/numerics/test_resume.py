"""Going on from a checkpoint: the same bits as if nothing had happened, and never from a number that is not finite."""

import numpy as np
import pytest

from job.errors import Diverged
from job.model.heads import Head, smoothed_one_hot
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import CheckpointConfig
from job.storage.workdir import Workdir
from job.train.checkpoint import Checkpoints
from tests.numerics.test_training import batch_of, trainer_of

NUM_EPOCHS, STEPS_OF_AN_EPOCH = 3, 3
NUM_STEPS = NUM_EPOCHS * STEPS_OF_AN_EPOCH
MADE_FROM = {"head": "abc"}


@pytest.fixture(scope="module")
def data(network):
    rng = np.random.default_rng(6)
    inputs = rng.normal(0, 1, (24, *network.cut_point.shape)).astype(np.float32)
    return inputs, smoothed_one_hot(rng.integers(0, 4, 24), 4, 0.1)


@pytest.fixture(scope="module")
def new_trainer(network):
    rng = np.random.default_rng(5)
    kernel, bias = rng.normal(0, 0.3, (network.feature_width, 4)), rng.normal(0, 1, 4)
    head = Head(kernel.astype(np.float32), bias.astype(np.float32))
    return lambda **options: trainer_of(
        network.tuned(head), network, epochs=NUM_EPOCHS, learning_rate=1e-3, ema=True, **options
    )


def train(trainer, data, before_step=lambda step: None, until=NUM_STEPS):
    """The results of the epochs that end before step `until`."""
    inputs, targets = data

    def batch(step):
        chosen = trainer.schedule.batch(step)
        return batch_of((inputs[chosen],), targets[chosen], np.linspace(0.5, 1.5, len(chosen), dtype=np.float32))

    class Enough(Exception):
        pass

    def stop_there(step):
        if step == until:
            raise Enough
        before_step(step)

    results = []
    try:
        for result in trainer.epochs(batch, stop_there):
            results.append(result)
    except Enough:
        pass
    return results


def assert_same_bits(first, second):
    assert first.step == second.step and first.notes == second.notes and first.arrays.keys() == second.arrays.keys()
    for name in first.arrays:
        assert first.arrays[name].tobytes() == second.arrays[name].tobytes(), name


@pytest.fixture(scope="module")
def undisturbed(new_trainer, data):
    trainer = new_trainer()
    return trainer, train(trainer, data)


@pytest.fixture(scope="module")
def saved(new_trainer, data, undisturbed, tmp_path_factory):
    """A folder for each step of one training, with a checkpoint made before that step."""
    folder, trainer = tmp_path_factory.mktemp("saved"), new_trainer()

    def save(step):
        with checkpoints_in(folder / str(step)) as checkpoints:
            checkpoints.save(trainer.state())

    assert train(trainer, data, save) == undisturbed[1]
    assert_same_bits(trainer.state(), undisturbed[0].state())
    save(NUM_STEPS)
    return folder


def checkpoints_in(folder):
    return Checkpoints(Context(Workdir(folder), Telemetry(None)), "fine_tune", MADE_FROM)


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_training_that_goes_on_in_another_trainer_ends_with_the_same_bits(new_trainer, data, undisturbed, saved, step):
    """Through the disk, within and at the end of epochs: weights, optimizer, average, sums and epoch results."""
    trainer, expected = undisturbed
    second = new_trainer()
    second.restore(checkpoints_in(saved / str(step)).newest())
    assert second.num_steps_done == step
    assert train(second, data) == expected[step // STEPS_OF_AN_EPOCH :]
    assert_same_bits(second.state(), trainer.state())
    for a, b in zip(second.final_weights(), trainer.final_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_training_with_rates_that_fall_from_block_to_block_goes_on_with_the_same_bits(new_trainer, data):
    states, trainer = [], new_trainer(layer_decay=0.7)
    train(trainer, data, lambda step: states.append(trainer.state()))
    second = new_trainer(layer_decay=0.7)
    second.restore(states[5])
    train(second, data)
    assert_same_bits(second.state(), trainer.state())


def test_what_is_being_written_is_not_what_training_goes_on_to_change(new_trainer, data, tmp_path):
    trainer = new_trainer()
    train(trainer, data, until=4)
    state = trainer.state()
    copies = {name: array.copy() for name, array in state.arrays.items()}
    train(trainer, data)
    for name, array in state.arrays.items():
        assert array.tobytes() == copies[name].tobytes(), name


@pytest.mark.thorough
def test_number_that_is_not_finite_is_noticed_in_any_one_variable_before_a_checkpoint(new_trainer, data, tmp_path):
    """Of the model, of the moments, of the average: one element of one of them, whatever the loss says."""
    trainer = new_trainer()
    train(trainer, data, until=4)
    context = Context(Workdir(tmp_path), Telemetry(None), saving=CheckpointConfig(every_s=0))
    with Checkpoints(context, "fine_tune", MADE_FROM) as checkpoints:
        checkpoints.offer(trainer.state)
        checkpoints.finish()
        looked_at = 0
        for variable in trainer._variables:
            value = np.asarray(variable).copy()
            if value.dtype.kind != "f":
                continue
            for bad in (np.nan, np.inf):
                spoiled = value.copy()
                spoiled.flat[spoiled.size // 2] = bad
                variable.assign(spoiled)
                with pytest.raises(Diverged, match=r"1 variables, .* the first, became infinite or NaN.*learning_rate"):
                    checkpoints.offer(trainer.state)
            variable.assign(value)
            looked_at += 1
        assert looked_at > 3 * len(trainer.model.trainable_variables)
    assert [int(f.name[:10]) for f in (tmp_path / "checkpoints" / "fine_tune").iterdir()] == [4]


def test_inputs_that_are_not_finite_end_the_epoch_as_diverged(new_trainer, data):
    inputs, targets = data[0].copy(), data[1]
    inputs[7, 0] = np.nan
    with pytest.raises(Diverged):
        train(new_trainer(), (inputs, targets))
