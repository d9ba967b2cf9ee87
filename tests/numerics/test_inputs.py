"""Stored activations against photos online, and batches in parts: the same training, whichever way it is fed."""

import io

import numpy as np
import pytest
from scipy.special import softmax

from job.cluster.devices import Devices
from job.data.augment import Augmentation
from job.errors import UsageError
from job.model.heads import Head, smoothed_one_hot
from job.model.inputs import OnlineInputs, StoredInputs, choose_inputs
from job.model.network import Network
from job.runtime.telemetry import Telemetry
from job.sections import AugmentConfig, BackboneConfig
from job.stores.arrays import StoreWriter
from job.stores.views import StoredViews
from job.train.feed import all_rows, run_batches
from tests.numerics.test_training import assert_same_gradients, batch_of, trainer_of

NOTHING = dict.fromkeys(("rotation_range", "width_shift_range", "height_shift_range"), 0.0) | {
    "zoom_range": (1.0, 1.0),
    "brightness_range": None,
    "horizontal_flip": False,
}
BATCH = 8
KEYS = np.arange(24, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


@pytest.fixture(scope="module")
def images(pixels, tmp_path_factory):
    writer = StoreWriter(tmp_path_factory.mktemp("images"), pixels.shape[1:], "uint8")
    keys = [str(k) for k in range(len(pixels))]
    writer.write(keys, pixels)
    return writer.finish(keys)


@pytest.fixture(scope="module")
def targets():
    return smoothed_one_hot(np.random.default_rng(4).integers(0, 4, 24), 4, 0.1)


def head_for(network):
    rng = np.random.default_rng(5)
    return Head(rng.normal(0, 0.3, (network.feature_width, 4)).astype(np.float32), np.zeros(4, np.float32))


def stored_inputs(network, pixels, folder):
    """As extract makes them, in batches of the training step's size."""
    batches = run_batches(network.replicas, network.compiled(), lambda n: (pixels[n],), len(pixels), BATCH, Telemetry(None))
    writer = StoreWriter(folder, network.cut_point.shape, "float16")
    keys = [str(k) for k in range(len(pixels))]
    writer.write(keys, all_rows(batches)[0])
    return StoredInputs(StoredViews(writer.finish(keys), None, np.arange(len(pixels)), 1))


def trained(network, inputs, targets, epochs=2):
    trainer = trainer_of(network.tuned(head_for(network)), network, epochs=epochs, batch=BATCH, inputs=inputs)
    schedule = trainer.schedule

    def batch(step):
        chosen = schedule.batch(step)
        views = schedule.views(step, KEYS[chosen], inputs.num_views)
        return batch_of(inputs.training(chosen, KEYS[chosen], views), targets[chosen], np.ones(len(chosen), np.float32))

    results = list(trainer.epochs(batch, lambda step: None))
    return trainer, results


def test_one_stored_plain_view_and_online_without_augmentation_train_to_the_same_bits(
    network, pixels, images, targets, tmp_path
):
    online = OnlineInputs(images, network, Augmentation(AugmentConfig(**NOTHING), network.image_size))
    stored = stored_inputs(network, pixels, tmp_path)
    assert online.num_views == stored.num_views == 1
    (one, first), (other, second) = (trained(network, inputs, targets) for inputs in (stored, online))
    assert first == second
    weights = [trainer.model.get_weights() for trainer in (one, other)]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    rows = np.arange(24)
    assert np.array_equal(one.logits(rows, BATCH), other.logits(rows, BATCH))


def test_online_every_epoch_has_views_of_its_own(network, images, targets):
    augmentation = Augmentation(AugmentConfig(seed=3), network.image_size)
    inputs = OnlineInputs(images, network, augmentation)
    assert inputs.num_views is None
    rows = np.arange(4)
    epochs = [
        np.asarray(inputs.on_device(inputs.training(rows, KEYS[:4], np.full(4, view)), training=True)) for view in (1, 2, 1)
    ]
    assert np.array_equal(epochs[0], epochs[2]) and not np.array_equal(epochs[0], epochs[1])
    plain = np.asarray(inputs.on_device(inputs.plain(rows), training=False))
    assert np.array_equal(plain, np.asarray(network.activations(images.rows(rows))))
    trained(network, inputs, targets)


@pytest.mark.thorough
def test_unfreeze_all_trains_every_layer_from_photos(pixels, images, targets):
    network = Network(BackboneConfig(alpha=0.35, weights="random", unfreeze="all"), pixels.shape[1], Devices(), seed=3)
    assert network.cut_point.share_above == 1 and network.cut_point.shape == pixels.shape[1:]
    inputs = OnlineInputs(images, network, Augmentation(AugmentConfig(**NOTHING), network.image_size))
    start = network.tuned(head_for(network))
    before = {v.path: np.asarray(v).copy() for v in start.trainable_variables}
    trainer, _ = trained(network, inputs, targets, epochs=1)
    moved = [not np.array_equal(before[v.path], np.asarray(v)) for v in trainer.model.trainable_variables]
    fixed = sum(4 for layer in network.backbone.layers if type(layer).__name__ == "BatchNormalization")
    assert len(moved) == len(network.backbone.variables) - fixed + 2 and all(moved)
    served = np.asarray(network.assembled(trainer.model)(pixels[:8], training=False)["probabilities"])
    assert np.allclose(served, softmax(trainer.logits(np.arange(8), BATCH), axis=1), atol=1e-3)


def test_parts_of_a_batch_add_up_to_the_batch(network, pixels, targets):
    activations = np.asarray(network.activations(pixels))
    whole, in_parts = (trainer_of(network.tuned(head_for(network)), network, batch=10) for _ in range(2))
    in_parts.num_parts = 4  # Of 3 examples each, the last of which are padding.
    in_parts._train_step = in_parts._compiled_step()
    batch = batch_of((activations[:10],), targets[:10], np.linspace(0.5, 2, 10, dtype=np.float32))
    losses = [trainer.step(batch)[0] for trainer in (whole, in_parts)]
    assert np.allclose(*losses, rtol=1e-5) and len(losses[1]) == 10
    assert_same_gradients(whole, in_parts)


def test_batch_that_does_not_fit_is_halved_until_it_does_and_the_examples_stay_the_same(network, pixels, targets):
    """A device that holds three examples at a time, played by the error that TensorFlow raises where memory runs out."""
    import tensorflow as tf

    said = io.StringIO()
    free = trainer_of(network.tuned(head_for(network)), network, batch=8)
    limited = trainer_of(network.tuned(head_for(network)), network, batch=8, telemetry=Telemetry(None, said))
    compiled = limited._compiled_step

    def of_a_small_device():
        step = compiled()

        def limited_step(targets, *rest):
            if len(targets) / limited.num_parts > 3:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            return step(targets, *rest)

        return limited_step

    limited._compiled_step = of_a_small_device
    limited._train_step = of_a_small_device()
    activations = np.asarray(network.activations(pixels[:8]))
    batch = batch_of((activations,), targets[:8], np.ones(8, np.float32))
    losses = [trainer.step(batch)[0] for trainer in (free, limited)]
    assert limited.num_parts == 4 and "computed in 4 parts, 2 examples at a time" in said.getvalue()
    assert np.allclose(*losses, rtol=1e-5)
    assert_same_gradients(free, limited)


def test_single_example_that_does_not_fit_is_an_error_with_the_way_out(network, pixels, targets):
    import tensorflow as tf

    trainer = trainer_of(network.tuned(head_for(network)), network, batch=4)
    tried = []

    def never(*_):
        tried.append(trainer.num_parts)
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    trainer._compiled_step = lambda: never
    trainer._train_step = never
    activations = np.asarray(network.activations(pixels[:4]))
    with pytest.raises(UsageError, match=r"Lower backbone.unfreeze"):
        trainer.step(batch_of((activations,), targets[:4], np.ones(4, np.float32)))
    assert tried == [1, 2, 4]


@pytest.mark.parametrize("fits", [3, 0])
def test_rows_that_do_not_fit_at_once_go_on_in_smaller_batches(network, pixels, fits):
    import tensorflow as tf

    sizes, said = [], io.StringIO()

    def step(batch):
        sizes.append(len(batch))
        if len(batch) > fits:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return [tf.reduce_mean(tf.cast(batch, tf.float32), (1, 2, 3))]

    batches = run_batches(network.replicas, step, lambda n: (pixels[n],), 7, 8, Telemetry(None, said))
    if not fits:
        with pytest.raises(UsageError, match="Not even one photo"):
            list(batches)
        assert sizes == [8, 4, 2, 1]
    else:
        assert np.allclose(all_rows(batches)[0], pixels[:7].mean(axis=(1, 2, 3)), rtol=1e-5)
        assert sizes == [8, 4, 2, 2, 2, 2] and "2 photos at a time" in said.getvalue()


def choice(network, wanted="auto", views=4, budget=1e12, memory=1e12):
    return choose_inputs(
        wanted,
        num_photos=1000,
        num_training_photos=700,
        num_views=views,
        network=network,
        budget_bytes=budget,
        memory_bytes=memory,
    )


def test_auto_stores_what_fits_and_says_why(network):
    needed = network.cut_point.values_per_view * 2 * (1000 + 700 * 3)
    assert choice(network).kind == "stored" and "computed once" in choice(network).why
    assert choice(network, budget=needed).kind == "stored"
    over = choice(network, budget=needed - 1)
    assert over.kind == "online" and "on the disk" in over.why
    assert choice(network, wanted="stored", budget=0).kind == "stored"
    assert choice(network, wanted="online").kind == "online"
    photo = network.image_size**2 * 3
    assert network.cut_point.values_per_view * 2 < photo
    assert choice(network, memory=needed - 1).kind == "stored"


def test_auto_reads_photos_where_activations_are_larger_and_overflow_the_memory():
    network = Network(BackboneConfig(alpha=0.35, weights="random", unfreeze="Conv1_relu"), 32, Devices(), seed=3)
    assert network.cut_point.values_per_view * 2 > 32 * 32 * 3
    assert choice(network, memory=1e6).kind == "online" and choice(network, memory=1e9).kind == "stored"


def test_auto_goes_online_where_nothing_is_frozen_and_has_nothing_to_do_where_all_is():
    all_of_it, none_of_it = (
        Network(BackboneConfig(alpha=0.35, weights="random", unfreeze=unfreeze), 32, Devices(), seed=3)
        for unfreeze in ("all", "none")
    )
    assert choice(all_of_it).kind == "online" and "nothing stays frozen" in choice(all_of_it).why
    assert choice(none_of_it).kind == "stored" and "nothing is fine-tuned" in choice(none_of_it).why
