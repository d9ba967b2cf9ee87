"""The models of a run, and what they answer to stored photos: the head, and the fine-tuned models that began with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from job.measure.calibration import Calibration
from job.measure.predicted import StoredLogits, parts
from job.model.familiarity import Acceptance
from job.model.heads import Head
from job.model.inputs import MirroredInputs
from job.model.network import Network
from job.runtime.telemetry import Telemetry
from job.stores.arrays import ArrayStore
from job.train.feed import even_batch_size, run_batches
from job.train.loop import Inputs

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


@dataclass(frozen=True)
class Models:
    """A head, and the weights of the fine-tuned models by name: those of each seed, and their mean.

    `features` are the stored ones of the frozen backbone, `inputs` those of the tuned layers, and `images` the photos.
    """

    network: Network
    head: Head
    tuned: Mapping[str, list[np.ndarray]]
    features: ArrayStore
    inputs: Inputs
    images: ArrayStore

    def logits(self, rows_N: np.ndarray, *, mirrors: bool, scratch: Path, telemetry: Telemetry) -> dict[str, StoredLogits]:
        """Return the logits (N, C) of the head, as `head`, and of each fine-tuned model, for the photos in these rows.

        With `mirrors`, those of fine-tuned models are the mean over a photo and its mirror image. They lie in files in the
        folder `scratch`.
        """
        num_classes = len(self.head.bias_C)
        of_head = (self.head.logits(batch_BD) for batch_BD in self.features_of("head", rows_N, telemetry))
        found = {"head": StoredLogits(of_head, num_classes, scratch)}
        mirrored = MirroredInputs(self.images, self.network)
        for name, weights in self.tuned.items():
            batches = tuned_logits(self.network, weights, self.inputs, rows_N, telemetry)
            found[name] = StoredLogits(batches, num_classes, scratch)
            if mirrors:
                of_mirrored = tuned_logits(self.network, weights, mirrored, rows_N, telemetry)
                found[name] = found[name].mean_with(of_mirrored)
        return found

    def features_of(self, name: str, rows_N: np.ndarray, telemetry: Telemetry) -> Iterator[np.ndarray]:
        """Yield what the last layer of this model gets for the photos in these rows, float32 (B, D) for each batch.

        For `head`, these are the stored features.
        """
        if name in self.tuned:
            return tuned_logits(self.network, self.tuned[name], self.inputs, rows_N, telemetry, below_head=True)
        return (self.features.rows(rows_N[part]) for part in parts(len(rows_N), self.features.row_shape[0]))


@dataclass(frozen=True)
class ShippedModel:
    """The model that evaluate has chosen: a head on the frozen backbone, or on layers with the weights `tuned`.

    With `mirrors`, it answers with the mean over a photo and its mirror image.
    """

    network: Network
    head: Head
    tuned: list[np.ndarray] | None
    calibration: Calibration
    mirrors: bool
    acceptance: Acceptance

    @cached_property
    def classifier(self) -> keras.Model:
        """The model as `Network.assembled` makes it, with the calibration in the weights of its last layer."""
        network, is_frozen = self.network, self.tuned is None
        model = network.tuned(self.head)  # Its own copy: the calibration would change that of `with_weights`.
        if self.tuned is not None:
            model.set_weights(self.tuned)
        last, temperature = model.get_layer("head"), self.calibration.temperature
        kernel_DC, bias_C = last.get_weights()
        last.set_weights([kernel_DC / temperature, bias_C / temperature + self.calibration.offsets_C])
        return network.assembled(model, mirrors=self.mirrors, acceptance=self.acceptance, tuned_is_frozen=is_frozen)


def tuned_logits(
    network: Network,
    weights: list[np.ndarray],
    inputs: Inputs,
    rows: np.ndarray,
    telemetry: Telemetry,
    *,
    below_head: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the logits of a fine-tuned model for the photos in these rows of its inputs, float32 (B, C) for each batch.

    They are computed in float32, like those of the exported model. With `below_head`, yield the features (B, D) instead.
    """
    import keras
    import tensorflow as tf

    model = network.with_weights(weights)
    if below_head:
        model = keras.Model(model.input, model.get_layer("head").input)

    def on_replica(*arrays: tf.Tensor) -> tuple[tf.Tensor]:
        return (model(tf.cast(inputs.on_device(arrays, training=False), tf.float32), training=False),)

    forward = network.replicas.compiled(on_replica)
    size = even_batch_size(len(rows))
    batches = run_batches(network.replicas, forward, lambda k: inputs.plain(rows[k]), len(rows), size, telemetry)
    yield from (found for (found,) in batches)
