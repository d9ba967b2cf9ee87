"""What is trained is what is measured: stores, halves and replicas agree with the plain whole."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from job.errors import Diverged
from job.measure.accepted import FAMILIARITY_TOLERANCE
from job.model.familiarity import Acceptance, Familiarity
from job.model.heads import Head, smoothed_one_hot
from job.model.layer_decay import learning_rate_factors
from job.runtime.telemetry import Telemetry
from job.train.adamw import adamw
from job.train.loop import Trainer
from job.train.recipe import Recipe
from job.train.schedule import Schedule


@pytest.fixture
def head(network):
    rng = np.random.default_rng(5)
    return Head(rng.normal(0, 0.3, (network.feature_width, 4)).astype(np.float32), rng.normal(0, 1, 4).astype(np.float32))


@pytest.fixture(scope="module")
def targets():
    return smoothed_one_hot(np.random.default_rng(4).integers(0, 4, 24), 4, 0.1)


class Given:
    """Inputs of the model that lie in an array."""

    def __init__(self, array=None):
        self.array = array

    def plain(self, rows):
        return (self.array[rows],)

    def on_device(self, arrays, *, training):
        return arrays[0]


def batch_of(arrays, targets, weights):
    """A batch that is there already."""
    return lambda numbers: tuple(array[numbers] for array in arrays), targets, weights


def trainer_of(model, network, epochs=2, batch=8, learning_rate=1e-2, **options):
    recipe = Recipe(epochs, batch, learning_rate, views=1)
    schedule = Schedule.resolve(recipe, num_examples=24, warmup_fraction=0.0, seed=2)
    return Trainer(
        model,
        schedule,
        network.replicas,
        options.get("inputs", Given()),
        weight_decay=options.get("weight_decay", 1e-3),
        ema=options.get("ema", False),
        telemetry=options.get("telemetry", Telemetry(None)),
        rate_factors=learning_rate_factors(model, options["layer_decay"]) if "layer_decay" in options else (),
    )


def train(trainer, inputs, targets):
    def batch(step):
        chosen = trainer.schedule.batch(step)
        return batch_of((inputs[chosen],), targets[chosen], np.ones(len(chosen), np.float32))

    return list(trainer.epochs(batch, lambda step: None))


def assert_same_gradients(first, second):
    """After one step AdamW's first moments are a tenth of the gradients; its weights turn the sign of a rounding error into
    a whole step and cannot be compared."""
    moments = [[np.asarray(m) for m in t.optimizer._momentums] for t in (first, second)]
    scale = max(np.abs(m).max() for m in moments[0])
    assert scale > 0
    for a, b in zip(*moments, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * scale


def test_head_on_stored_features_is_the_assembled_model(network, pixels, head):
    _, features = network.activations_and_features(pixels)
    assembled = network.assembled(network.tuned(head))
    assert np.allclose(assembled(pixels)["probabilities"], head.probabilities(np.asarray(features)), atol=1e-6)


def test_classifier_that_mirrors_has_the_mean_logits_of_both_images(network, pixels, head):
    logits = [head.logits(np.asarray(network.activations_and_features(p)[1])) for p in (pixels, pixels[:, :, ::-1])]
    classifier = network.assembled(network.tuned(head), mirrors=True)
    found, of_mirrored = (classifier(p)["probabilities"] for p in (pixels, pixels[:, :, ::-1]))
    assert np.allclose(found, softmax(np.mean(logits, axis=0), axis=1), atol=1e-6)
    assert np.allclose(found, of_mirrored, atol=1e-6)


def test_layers_for_inference_are_built_once_and_get_the_weights_of_each_call(network, pixels, head):
    activations, _ = network.activations_and_features(pixels)
    tuned = network.tuned(head)
    first, second = tuned.get_weights(), [1.05 * weight for weight in tuned.get_weights()]
    shared = network.with_weights(second)
    expected = [np.asarray(tuned(activations, training=False))]
    tuned.set_weights(second)
    expected.append(np.asarray(tuned(activations, training=False)))
    assert np.array_equal(shared(activations, training=False), expected[1])
    assert network.with_weights(first) is shared and np.array_equal(shared(activations, training=False), expected[0])


@pytest.mark.parametrize("mirrors", [False, True])
@pytest.mark.parametrize("source", ["frozen", "tuned"])
def test_familiarity_of_a_fine_tuned_model_is_that_of_the_photo_itself_in_numpy(network, pixels, head, source, mirrors):

    tuned = network.tuned(head)
    tuned.set_weights([1.05 * weight for weight in tuned.get_weights()])
    below_head = keras.Model(tuned.input, tuned.get_layer("head").input)
    activations, frozen = network.activations_and_features(pixels)
    features = np.asarray({"frozen": frozen, "tuned": below_head(tf.cast(activations, tf.float32), training=False)}[source])
    known = Familiarity.fit(features[:12], np.arange(12) % 2, features[12:], source, seed=0)
    model = network.assembled(tuned, mirrors=mirrors, acceptance=Acceptance(known, 0.05))
    found = model(pixels, training=False)
    assert np.allclose(found["familiarity"], known.of(features), atol=FAMILIARITY_TOLERANCE)
    assert np.array_equal(found["accepted"], np.asarray(found["familiarity"]) >= 0.05)
    assert ("features" in found) == (source == "frozen")


def test_features_are_free_if_the_head_alone_ships_and_everything_is_accepted_without_limits(network, pixels, head):
    found = network.assembled(network.tuned(head), tuned_is_frozen=True)(pixels, training=False)
    assert found.keys() == {"probabilities", "features", "accepted"} and np.asarray(found["accepted"]).all()
    assert np.allclose(found["features"], network.activations_and_features(pixels)[1], atol=0.01)


def keras_below(network):
    """Photos to activations through the layers of Keras, as a user of Keras would put them together."""

    photos = keras.Input((network.image_size, network.image_size, 3), dtype="float32")
    scaled = photos
    for layer in network._built[0]:
        scaled = layer(scaled)
    return keras.Model(photos, keras.ops.cast(network._parts[0](scaled, training=False), "float16"))


def test_frozen_layers_with_constant_weights_compute_what_kerass_layers_do(network, pixels):
    """Folded into one another they round differently in float32, which moves a float16 by one place now and then."""
    expected = np.asarray(keras_below(network)(pixels)).astype(np.float32)
    activations = np.asarray(network.activations(pixels)).astype(np.float32)
    assert (activations != expected).mean() < 0.02
    assert np.allclose(activations, expected, rtol=2**-10, atol=1e-5)


def test_stored_activations_give_the_same_step_as_the_whole_model(network, pixels, head, targets):
    """One plain view: a step from the store against a step through all of Keras' own layers, frozen ones included."""

    below = keras_below(network)
    # One batch and compiled, because others may round differently and float16 makes a rounding a thousand times larger.
    activations = tf.function(below)(pixels[:8])
    ones = np.ones(8, np.float32)
    stored = trainer_of(network.tuned(head), network)
    stored_losses, _, _ = stored.step(batch_of((np.asarray(activations),), targets[:8], ones))

    online = network.tuned(head)
    above = online(keras.ops.cast(below.output, "float32"), training=False)
    whole = trainer_of(keras.Model(below.input, above), network)
    whole_losses, _, _ = whole.step(batch_of((pixels[:8],), targets[:8], ones))
    assert np.allclose(stored_losses, whole_losses, rtol=1e-5)
    assert_same_gradients(stored, whole)


def test_frozen_layers_stay_the_same_bits_and_all_above_move(network, pixels, head, targets):
    frozen_before = [w.copy() for w in network.backbone.get_weights()]
    activations, _ = network.activations_and_features(pixels)
    model = network.tuned(head)
    before = {v.path: np.asarray(v).copy() for v in model.variables}
    train(trainer_of(model, network), np.asarray(activations), targets)
    assert all(np.array_equal(a, b) for a, b in zip(frozen_before, network.backbone.get_weights(), strict=True))
    still = [p for p, w in before.items() if np.array_equal(w, np.asarray({v.path: v for v in model.variables}[p]))]
    assert still and all(path.rsplit("/", 1)[-1] in ("moving_mean", "moving_variance", "gamma", "beta") for path in still)


def test_short_batch_counts_its_own_examples_only(network, pixels, head, targets):
    """24 examples in batches of 16: the second step has 8 and must equal a step of batch size 8 on them."""
    activations = np.asarray(network.activations_and_features(pixels)[0])
    trainers = [trainer_of(network.tuned(head), network, batch=size) for size in (16, 8)]
    losses = [t.step(batch_of((activations[:8],), targets[:8], np.ones(8, np.float32)))[0] for t in trainers]
    assert np.allclose(*losses, rtol=1e-5) and len(losses[0]) == 8
    assert_same_gradients(*trainers)


def test_class_weights_weigh_the_loss(network, pixels, head, targets):
    activations = np.asarray(network.activations_and_features(pixels)[0])[:2]
    weighted, alone = (trainer_of(network.tuned(head), network) for _ in range(2))
    weighted.step(batch_of((activations,), targets[:2], np.asarray([1.0, 0.0], np.float32)))
    alone.step(batch_of((activations[:1],), targets[:1], np.ones(1, np.float32)))
    assert_same_gradients(weighted, alone)


def test_graph_learning_rate_is_the_schedules(network, head):
    trainer = trainer_of(network.tuned(head), network, epochs=5)
    course = trainer.optimizer._learning_rate
    steps = range(trainer.schedule.total_steps)
    assert [float(course(k)) for k in steps] == pytest.approx([trainer.schedule.learning_rate(k) for k in steps], rel=1e-5)


@pytest.mark.parametrize("ema", [False, True])
def test_steps_of_the_optimizer_are_those_of_keras(ema):
    """Weights and moments, with weight decay, which leaves out biases."""
    rng, schedule = (
        np.random.default_rng(0),
        Schedule.resolve(Recipe(2, 4, 1e-2, views=1), num_examples=16, warmup_fraction=0.2, seed=0),
    )
    own = adamw(schedule, (), weight_decay=0.1, ema=ema)
    keras_own = keras.optimizers.AdamW(own._learning_rate, weight_decay=0.1, use_ema=ema, ema_momentum=schedule.ema_decay)
    keras_own.exclude_from_weight_decay(var_names=["bias"])
    states = []
    start = [rng.normal(size=(5, 3)), rng.normal(size=3)]
    gradients = rng.normal(size=(8, 18)) * np.geomspace(1, 1e-6, 8)[:, None]
    for optimizer in (own, keras_own):
        variables = [keras.Variable(a, dtype="float64", name=n) for a, n in zip(start, ("kernel", "bias"), strict=True)]
        optimizer.build(variables)
        for kernel_bias in gradients:
            optimizer.apply([tf.constant(kernel_bias[:15].reshape(5, 3)), tf.constant(kernel_bias[15:])], variables)
        states.append([np.asarray(v) for v in (*variables, *optimizer.variables)])
    for ours, theirs in zip(*states, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # Keras rounds its constants to float32.


def test_each_block_learns_and_decays_at_its_factor_of_the_rate_of_the_block_above(network, pixels, head, targets):
    """The first step of AdamW is its rate times a direction that no rate has changed yet; the decay of weights is, too."""
    activations = np.asarray(network.activations_and_features(pixels)[0])[:8]
    batch, changes = batch_of((activations,), targets[:8], np.ones(8, np.float32)), []
    for layer_decay in (1.0, 0.5):
        model = network.tuned(head, "float64")
        before = [np.asarray(v) for v in model.trainable_variables]
        trainer = trainer_of(model, network, layer_decay=layer_decay, weight_decay=1.0)
        trainer.step(batch)
        changes.append([np.asarray(v) - b for v, b in zip(model.trainable_variables, before, strict=True)])
    halvings = {"head": 0, "Conv_1": 1, **{f"block_{k}": 17 - k for k in range(10, 17)}}
    for variable, plain, decayed in zip(model.trainable_variables, *changes, strict=True):
        (factor,) = (0.5**n for name, n in halvings.items() if variable.path.split("/")[-2].startswith(name))
        assert plain.any()
        assert np.allclose(decayed, factor * plain, rtol=1e-5, atol=0)


def test_moving_average_is_what_is_evaluated_and_kept(network, pixels, head, targets):
    activations = np.asarray(network.activations_and_features(pixels)[0])
    model = network.tuned(head)
    trainer = trainer_of(model, network, epochs=8, ema=True, inputs=Given(activations))
    assert trainer.schedule.ema_decay > 0.5
    train(trainer, activations, targets)
    last, averaged = model.get_weights(), trainer.final_weights()
    assert not all(np.array_equal(a, b) for a, b in zip(last, averaged, strict=True))
    logits = trainer.logits(np.arange(len(activations)))
    model.set_weights(averaged)
    assert np.allclose(logits, model(activations.astype(np.float32), training=False), atol=1e-5)


def test_exploding_training_ends_as_diverged(network, pixels, head, targets):
    activations = np.asarray(network.activations_and_features(pixels)[0])
    with pytest.raises(Diverged, match=r"Lower fine_tune.learning_rate \(it was 1e\+30\)"):
        train(trainer_of(network.tuned(head), network, learning_rate=1e30), activations, targets)


@pytest.mark.parametrize("precision", ["float64", "mixed_bfloat16"])
def test_other_precisions_compute_the_same_function(network, pixels, head, precision):
    activations = np.asarray(network.activations_and_features(pixels)[0]).astype("float32")
    plain = softmax(np.asarray(network.tuned(head)(activations, training=False), np.float64), axis=1)
    other = softmax(np.asarray(network.tuned(head, precision)(activations, training=False), np.float64), axis=1)
    assert np.abs(plain - other).max() < (1e-5 if precision == "float64" else 0.1)
