"""extract: run the frozen layers once over every photo and every stored view of the training photos."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from job.config import AugmentConfig, ExtractConfig, digest_of
from job.context import Context
from job.data.augment import Augmentation
from job.data.examples import Examples
from job.data.stores import ArrayStore, StoredViews, StoreWriter
from job.errors import Diverged
from job.model.network import CUT_DTYPE, Network
from job.storage.workdir import Workdir
from job.train.cluster import map_batches

SUMMARY = "stages/extract/extract.json"
STORES = {
    "features": ("cache/features", "cache/features-views"),
    "activations": ("cache/activations", "cache/activations-views"),
}


@dataclass(frozen=True)
class Extraction:
    """The feature store and, where fine-tuning wants it, the activation store at the cut point."""

    workdir: Workdir
    num_views: int
    train_rows_T: np.ndarray
    cut_point: str | None

    @classmethod
    def load(cls, workdir: Workdir) -> Self:
        summary = workdir.read_json(SUMMARY)
        return cls(workdir, summary["num_views"], np.asarray(summary["train_rows"], np.int64), summary["cut_point"])

    @property
    def features(self) -> StoredViews:
        return self._views("features")

    @property
    def activations(self) -> StoredViews:
        """What the tuned layers take: the activations, or the features where nothing is cut."""
        return self._views("activations" if self.cut_point else "features")

    def store_names(self) -> list[str]:
        kinds = ["features", "activations"] if self.cut_point else ["features"]
        return [name for kind in kinds for name in STORES[kind][: 2 if self.num_views > 1 else 1]]

    def _views(self, kind: str) -> StoredViews:
        plain, augmented = (self.workdir.path(name) for name in STORES[kind])
        later = ArrayStore(augmented) if self.num_views > 1 else None
        return StoredViews(ArrayStore(plain), later, self.train_rows_T, self.num_views)


def extract(
    config: ExtractConfig,
    augment_config: AugmentConfig,
    *,
    examples: Examples,
    images: ArrayStore,
    network: Network,
    backbone_fingerprint: str,
    context: Context,
) -> Extraction:
    """
    Raises:
        Diverged: where activations or features are not finite, or too large for float16.
        UsageError, StorageFailed: where the backbone cannot be built or its weights do not fit.
        Stopped.
    """
    point = network.cut_point
    train = examples.in_store_order("train")
    train_rows = examples["row"][train].astype(np.int64)
    common = [backbone_fingerprint, network.config.unfreeze, point and point.name, network.image_size, CUT_DTYPE]
    plain = _Filler(network, context.workdir, 0, [s.sha256 for s in images.shards], common)
    later = _Filler(network, context.workdir, 1, [s.sha256 for s in images.shards], [*common, augment_config.what()])
    augmentation = Augmentation(augment_config, network.image_size)
    run_plain, run_augmented = _steps(network, augmentation)
    views = np.arange(1, augment_config.views)
    with context.telemetry.progress("extract", len(images) + len(train) * len(views), "views") as progress:
        for shard in range(len(images.shards)):
            context.stop.check()
            rows = images.shard_range(shard)
            here = np.flatnonzero((train_rows >= rows.start) & (train_rows < rows.stop))
            keys = np.repeat(examples.keys[train[here]], len(views))
            pixels = None
            if not plain.done(shard):
                pixels = images.rows(np.arange(rows.start, rows.stop))
                plain.write(shard, map_batches(network.cluster, run_plain, (pixels,), config.batch_size))
            progress.advance(len(rows))
            if len(views) and not later.done(shard, [int(k) for k in keys]):
                pixels = images.rows(np.arange(rows.start, rows.stop)) if pixels is None else pixels
                repeated = pixels[np.repeat(train_rows[here] - rows.start, len(views))]
                batch = augmentation.host(repeated, keys, np.tile(views, len(here)))
                later.write(shard, map_batches(network.cluster, run_augmented, batch, config.batch_size))
            progress.advance(len(keys))
    plain.finish()
    if len(views):
        later.finish()
    summary = {
        "num_views": augment_config.views,
        "train_rows": train_rows.tolist(),
        "cut_point": point.name if point else None,
    }
    if point:
        summary["cut"] = {"shape": point.shape, "share_above": point.share_above, "values_per_view": point.values_per_view}
    context.workdir.write_json(SUMMARY, summary)
    return Extraction(context.workdir, augment_config.views, train_rows, summary["cut_point"])


def _steps(network: Network, augmentation: Augmentation) -> tuple[Callable[..., Any], Callable[..., Any]]:
    import tensorflow as tf

    strategy = network.cluster.strategy

    @tf.function
    def plain(images: Any) -> Any:
        return strategy.run(network.activations_and_features, (images,))

    @tf.function
    def augmented(*batch: Any) -> Any:
        def forward(*part: Any) -> Any:
            return network.activations_and_features(augmentation.device(*part))

        return strategy.run(forward, batch)

    return plain, augmented


class _Filler:
    """Writes the activations and features of one kind of view (0 plain, 1 augmented), a shard for each shard of photos."""

    def __init__(self, network: Network, workdir: Workdir, which: int, image_shards: list[str], common: list[Any]) -> None:
        self._image_shards, self._common = image_shards, common
        point = network.cut_point
        self._writers = [StoreWriter(workdir.path(STORES["features"][which]), (network.feature_width,), "float32")]
        if point is not None:
            self._writers.append(StoreWriter(workdir.path(STORES["activations"][which]), point.shape, CUT_DTYPE))
        self._keys: dict[int, str] = {}

    def done(self, shard: int, examples: list[int] | None = None) -> bool:
        key = self._keys[shard] = digest_of([self._common, self._image_shards[shard], examples])
        return all(writer.committed(shard, key) is not None for writer in self._writers)

    def write(self, shard: int, activations_and_features: list[np.ndarray]) -> None:
        if not activations_and_features:  # No training photo in this shard.
            activations_and_features = [np.empty((0, *writer.row_shape)) for writer in reversed(self._writers)]
        for writer, rows in zip(self._writers, reversed(activations_and_features), strict=False):
            if not np.isfinite(rows).all():
                raise Diverged(
                    "The frozen backbone gives numbers that are not finite, or larger than the 65504 that float16 holds. "
                    "Choose another backbone.unfreeze (another cut point), or check the weights."
                )
            writer.write(shard, self._keys[shard], rows)

    def finish(self) -> None:
        for writer in self._writers:
            writer.finish(len(self._image_shards))
