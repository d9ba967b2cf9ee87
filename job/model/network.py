"""The classifier in its parts: the frozen layers, whose output is stored, and the layers above, which are fine-tuned.

    uint8 pixels ─ scale ─ frozen ─ float16 ─ tuned ─ head ─ logits
                                      │
                                      the activation store (the feature store if nothing is fine-tuned)

The cast to float16 at the cut is part of the model, so that stored and computed activations have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from job.cluster.devices import Devices
from job.cluster.replicas import Replicas, Tensors
from job.cluster.tensorflow import import_tensorflow
from job.data.augment import Augmentation
from job.model import backbones, cut
from job.model.familiarity import ALWAYS, Acceptance
from job.model.heads import Head
from job.runtime.telemetry import spent_once
from job.sections import BackboneConfig

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Inference: TypeAlias = "Callable[[tf.Tensor], tf.Tensor]"
CUT_DTYPE = "float16"
_MAX_CONSTANT_BYTES = 500_000_000


class Network:
    """A backbone on the devices of this worker, built and cut once for all stages of a process.

    Raises, at the first use: UsageError, StorageFailed, like `backbones.build`.
    """

    def __init__(self, config: BackboneConfig, image_size: int, devices: Devices, *, seed: int) -> None:
        self.config, self.image_size, self.devices, self._seed = config, image_size, devices, seed
        self._copy: keras.Model | None = None

    def recut(self, unfreeze: float | str) -> Network:
        """Return the same backbone, cut as `backbone.unfreeze` says. It is not built again."""
        config = self.config.model_copy(update={"unfreeze": unfreeze})
        other = Network(config, self.image_size, self.devices, seed=self._seed)
        other.__dict__["_built"] = self._built
        return other

    @property
    def replicas(self) -> Replicas:
        return self.devices.local

    @cached_property
    def _built(self) -> tuple[list[keras.Layer], keras.Model]:
        """The scaling layers and the backbone. They are built here because a graph or a replica cannot create variables."""
        tf = import_tensorflow()
        with spent_once("building"), tf.init_scope(), self.replicas.strategy.scope():
            scaling = backbones.scaling_layers(self.config)
            for layer in scaling:
                layer.build((None, self.image_size, self.image_size, 3))
            model = backbones.build(self.config, self.image_size, seed=self._seed)
            model.trainable = False
            return scaling, model

    @property
    def backbone(self) -> keras.Model:
        return self._built[1]

    @cached_property
    def cut_point(self) -> cut.CutPoint | None:
        if self.config.unfreeze == "all":
            return cut.below_everything(self.backbone)
        return cut.choose(self.config.unfreeze, cut.cut_points(self.backbone))

    @cached_property
    def _parts(self) -> tuple[keras.Model, keras.Model | None]:
        if self.cut_point is None:
            return self.backbone, None
        return cut.cut(self.backbone, self.cut_point)

    @property
    def feature_width(self) -> int:
        return int(self.backbone.output.shape[-1])

    @cached_property
    def _inference(self) -> tuple[Inference, Inference | None]:
        """Functions from pixels to the output at the cut, and from there to features, with the pre-trained weights."""
        frozen, above = self._parts
        copies = self.replicas.num  # The graph holds the constants once per replica.
        below = with_constant_weights(frozen, copies)
        scaling = self._built[0]

        def from_pixels(pixels_BHWC: tf.Tensor) -> tf.Tensor:
            import tensorflow as tf

            scaled = tf.cast(pixels_BHWC, tf.float32)
            for layer in scaling:
                scaled = layer(scaled)
            return below(scaled)

        return from_pixels, with_constant_weights(above, copies) if above is not None else None

    def activations(self, pixels_BHWC: tf.Tensor) -> tf.Tensor:
        """Return the input of the tuned layers for pixels from 0 to 255: float16 at the cut, features (B, D) without one."""
        import tensorflow as tf

        from_pixels, above = self._inference
        below = from_pixels(pixels_BHWC)
        return below if above is None else tf.cast(below, CUT_DTYPE)

    def activations_and_features(self, pixels_BHWC: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return `activations` of these pixels, and their features, float32 (B, D)."""
        import tensorflow as tf

        activations, above = self.activations(pixels_BHWC), self._inference[1]
        return activations, activations if above is None else above(tf.cast(activations, tf.float32))

    @cached_property
    def _forward(self) -> Callable[..., Tensors]:
        return self.replicas.compiled(self.activations_and_features)

    def compiled(self, augmentation: Augmentation | None = None) -> Callable[..., Tensors]:
        """Return a function that computes `activations_and_features` on this worker's replicas.

        The function takes photos or, with an augmentation, the arrays from `Augmentation.host`. All functions of a network
        share its compiled layers.
        """

        def pixels(*batch: tf.Tensor) -> Tensors:
            import tensorflow as tf

            return (augmentation.device(*batch) if augmentation else tf.cast(batch[0], tf.float32),)

        to_pixels = self.replicas.compiled(pixels)
        return lambda *batch: self._forward(*to_pixels(*batch))

    def tuned(self, head: Head, precision: str = "float32", replicas: Replicas | None = None) -> keras.Model:
        """Return a trainable copy of the layers above the cut with the head on top: activations to logits (B, C).

        The copy starts from the pre-trained weights. `precision` is a Keras dtype policy. If `replicas` are those of all
        workers, every worker must call this. The copy always runs in inference mode: Dropout is off, and BatchNormalization
        keeps its statistics.
        """
        import_tensorflow()
        import keras

        above = self._parts[1]  # Built outside the scope below, which may be that of all workers.
        with spent_once("building"), (replicas or self.replicas).strategy.scope():
            if above is None:
                inputs = keras.Input((self.feature_width,))
                features = inputs
            else:
                copy = keras.models.clone_model(above, clone_function=lambda layer: _clone(layer, precision))
                copy.set_weights(above.get_weights())
                inputs, features = copy.input, copy.output
            # The head is never bfloat16, which would round away small differences of logits.
            dtype = "float64" if precision == "float64" else "float32"
            dense = keras.layers.Dense(len(head.bias_C), name="head", dtype=dtype)
            model = keras.Model(inputs, dense(features), name="tuned_and_head")
            dense.set_weights([head.kernel_DC, head.bias_C])
            return model

    def with_weights(self, weights: list[np.ndarray]) -> keras.Model:
        """Return the layers above the cut and the head with these weights, in float32: activations to logits (B, C).

        It is for inference. Each call changes the weights of the same model, because building one takes a second.
        """
        if self._copy is None:
            self._copy = self.tuned(Head.zeros(self.feature_width, len(weights[-1])))
        self._copy.set_weights(weights)
        return self._copy

    def assembled(
        self, tuned: keras.Model, *, mirrors: bool = False, acceptance: Acceptance = ALWAYS, tuned_is_frozen: bool = False
    ) -> keras.Model:
        """Return the whole classifier as one Keras model of built-in layers, from uint8 pixels to a dictionary of outputs.

        They are `probabilities` (B, C) and `accepted` (B,), with a familiarity also `familiarity` (B,), and `features`
        (B, D) of the frozen backbone if it runs anyway. With `mirrors`, the logits are the mean of those of a photo and of
        its mirror image. `tuned_is_frozen`: only the head of `tuned` was trained.
        """
        import keras

        pixels = keras.Input((self.image_size, self.image_size, 3), name="pixels", dtype="uint8")
        x = keras.ops.cast(pixels, "float32")
        if mirrors:  # In one batch, because each call would add the weights to the graph again.
            x = keras.ops.concatenate([x, keras.ops.flip(x, axis=2)], axis=0)
        for layer in self._built[0]:
            x = layer(x)
        frozen, above = self._parts
        x = frozen(x, training=False)
        if above is not None:
            x = keras.ops.cast(keras.ops.cast(x, CUT_DTYPE), "float32")
        logits, below_head = keras.Model(tuned.input, [tuned.output, tuned.get_layer("head").input])(x, training=False)
        if mirrors:
            logits = keras.layers.Average()(keras.ops.split(logits, 2, axis=0))
            x, below_head = (keras.ops.split(both, 2, axis=0)[0] for both in (x, below_head))
        probabilities = keras.layers.Softmax(name="probabilities")(logits)
        accepted = keras.ops.max(probabilities, axis=1) >= acceptance.min_probability
        outputs = {"probabilities": probabilities}
        known = acceptance.familiarity
        if tuned_is_frozen or above is None:
            outputs["features"] = below_head
        elif known and known.source == "frozen":
            outputs["features"] = above(x, training=False)
        if known:
            features = outputs["features"] if known.source == "frozen" else below_head
            outputs["familiarity"] = known.layers(features)
            accepted = keras.ops.logical_and(accepted, outputs["familiarity"] >= acceptance.min_familiarity)
        return keras.Model(pixels, {**outputs, "accepted": accepted}, name="classifier")


def fit_as_constants(model: keras.Model, copies: int = 1) -> bool:
    """Return whether the weights of a model fit into a graph as constants. A graph must stay below 2 GiB."""
    return copies * sum(4 * int(np.prod(v.shape)) for v in model.variables) <= _MAX_CONSTANT_BYTES


def with_constant_weights(model: keras.Model, copies: int = 1) -> Inference:
    """Return inference with the weights as constants, so that TensorFlow folds BatchNormalization into convolutions.

    With MobileNetV2 this takes two thirds of the time (docs/decisions/0009-speed.md). Weights that do not fit into a graph
    stay variables.
    """
    import keras
    import tensorflow as tf

    with tf.init_scope():
        kinds = model.trainable_variables, model.non_trainable_variables
        trainable, fixed = ([keras.ops.convert_to_numpy(v) for v in variables] for variables in kinds)
    if not fit_as_constants(model, copies):
        return lambda inputs: model(inputs, training=False)
    return lambda inputs: model.stateless_call(trainable, fixed, inputs, training=False)[0]


def _clone(layer: keras.Operation, precision: str) -> keras.Operation:
    import keras

    if not isinstance(layer, keras.layers.Layer):  # An operation of keras.ops has neither weights nor a precision.
        return type(layer).from_config(layer.get_config())
    # BatchNormalization stays frozen. Its statistics do not change, and training only gamma and beta takes a quarter of the
    # time of a step, without a measurable gain (docs/decisions/0009-speed.md).
    config = {**layer.get_config(), "trainable": not isinstance(layer, keras.layers.BatchNormalization)}
    if "dtype" in config:
        config["dtype"] = precision
    return type(layer).from_config(config)
