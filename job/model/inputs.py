"""Inputs of the fine-tuned layers: stored activations, or photos that are augmented on the device in every epoch.

Both make a batch in two steps: `training` or `plain` on the host, then `on_device` in the graph of the training step. So the
host only gathers rows between two training steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from job.data.augment import Augmentation
from job.model.network import Network
from job.stores.arrays import ArrayStore
from job.stores.views import StoredViews
from job.train.feed import Arrays

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class StoredInputs:
    """Activations of all photos and of `num_views` views of the training photos."""

    views: StoredViews

    @property
    def num_views(self) -> int | None:
        return self.views.num_views

    def training(self, rows_B: np.ndarray, keys_B: np.ndarray, views_B: np.ndarray) -> Arrays:  # noqa: ARG002
        """Return one stored view of each training photo. `rows_B` are rows of the image store; the keys are not used."""
        return (self.views.training(self.views.positions_of(rows_B), views_B),)

    def plain(self, rows_B: np.ndarray) -> Arrays:
        return (self.views.plain.rows(rows_B),)

    def on_device(self, arrays: tuple[tf.Tensor, ...], *, training: bool) -> tf.Tensor:  # noqa: ARG002
        return arrays[0]


@dataclass(frozen=True)
class OnlineInputs:
    """Photos from the image store. Each epoch augments them anew, and the frozen layers run on every view."""

    images: ArrayStore
    network: Network
    augmentation: Augmentation

    @property
    def num_views(self) -> int | None:
        """Number of views of a photo: 1 if nothing is augmented, None if every epoch makes new ones."""
        return 1 if self.augmentation.changes_nothing else None

    def training(self, rows_B: np.ndarray, keys_B: np.ndarray, views_B: np.ndarray) -> Arrays:
        photos = self.images.rows(rows_B)
        return (photos,) if self.augmentation.changes_nothing else self.augmentation.host(photos, keys_B, views_B)

    def plain(self, rows_B: np.ndarray) -> Arrays:
        return (self.images.rows(rows_B),)

    def on_device(self, arrays: tuple[tf.Tensor, ...], *, training: bool) -> tf.Tensor:
        augments = training and not self.augmentation.changes_nothing
        return self.network.activations(self.augmentation.device(*arrays) if augments else arrays[0])


Inputs = StoredInputs | OnlineInputs


@dataclass(frozen=True)
class MirroredInputs:
    """Photos from the image store, mirrored left to right. Nothing is trained on them."""

    images: ArrayStore
    network: Network

    def plain(self, rows_B: np.ndarray) -> Arrays:
        return (self.images.rows(rows_B),)

    def on_device(self, arrays: tuple[tf.Tensor, ...], *, training: bool) -> tf.Tensor:  # noqa: ARG002
        return self.network.activations(arrays[0][:, :, ::-1])


@dataclass(frozen=True)
class Choice:
    """The kind of inputs for fine-tuning, and the reason in words for the user."""

    kind: Literal["stored", "online"]
    why: str


def choose_inputs(
    wanted: Literal["auto", "stored", "online"],
    *,
    num_photos: int,
    num_training_photos: int,
    num_views: int,
    network: Network,
    budget_bytes: float,
    memory_bytes: float,
) -> Choice:
    """Return the inputs that `fine_tune.inputs` = `wanted` means in this run.

    With "auto" they are stored if the activations fit into `budget_bytes` on the disk, and into `memory_bytes` unless a view
    takes no more bytes than its photo.
    """
    point = network.cut_point
    if point is None:
        return Choice("stored", "nothing is fine-tuned")
    if wanted != "auto":
        return Choice(wanted, f'fine_tune.inputs is "{wanted}"')
    per_view = point.values_per_view * 2
    needed = per_view * (num_photos + num_training_photos * (num_views - 1))
    size = f"{needed / 1e6:,.1f} MB of activations ({per_view:,} bytes for each view)"
    if point.share_above == 1:
        return Choice("online", "nothing stays frozen, so there is nothing to store")
    if needed > budget_bytes:
        return Choice("online", f"{size} are more than they may take on the disk")
    photo = network.image_size**2 * 3
    if needed > memory_bytes and per_view > photo:
        memory = f"{memory_bytes / 1e9:,.1f} GB"
        return Choice("online", f"{size} do not fit into the memory of {memory}, and a photo has only {photo:,} bytes")
    return Choice("stored", f"{size} are computed once and read in every epoch")
