"""extract: run the frozen layers once over every photo and every stored view of the training photos."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, Self

import numpy as np

from job.data.augment import Augmentation
from job.data.examples import Examples
from job.errors import Diverged
from job.model.cut import CutPoint
from job.model.inputs import Choice, choose_inputs
from job.model.network import CUT_DTYPE, Network
from job.runtime.cgroups import memory_bytes
from job.runtime.context import Context
from job.runtime.peers import told
from job.sections import AugmentConfig, ExtractConfig
from job.storage.files import digest_of
from job.stores.arrays import ArrayStore, Shard, StoreWriter
from job.stores.cache import Cache
from job.stores.exchange import Exchange, open_store
from job.stores.filling import Filled
from job.stores.views import StoredViews
from job.train.feed import run_batches
from job.train.recipe import Recipe

SUMMARY = "stages/extract/extract.json"
DECISION = "stages/extract/inputs.json"
_WRITES_AHEAD = 4
_KEPT_FREE = 0.1  # The share of the free disk space that `auto` does not use.


@dataclass(frozen=True)
class Extraction:
    """The feature store and, if fine-tuning needs it, the activation store at the cut point.

    `stores` has their names in the cache: `features` and `activations` for all photos without augmentation, and
    `features-views` and `activations-views` for the augmented views of the training photos.
    """

    cache: Cache
    num_views: int
    train_rows_T: np.ndarray
    inputs: Choice
    stores: dict[str, str]

    @classmethod
    def load(cls, context: Context) -> Self:
        summary = context.workdir.read_json(SUMMARY)
        train_rows = np.asarray(summary["train_rows"], np.int64)
        return cls(context.cache, summary["num_views"], train_rows, Choice(**summary["inputs"]), summary["stores"])

    @property
    def num_looked_at(self) -> int:
        """Number of views, of all photos together, that went through the frozen layers."""
        return len(self.features.plain) + len(self.train_rows_T) * (self.num_views - 1)

    @property
    def features(self) -> StoredViews:
        return self._views("features")

    @property
    def activations(self) -> StoredViews:
        """The input of the tuned layers: the activations, or the features if no activations are stored."""
        return self._views("activations" if "activations" in self.stores else "features")

    def _views(self, kind: str) -> StoredViews:
        plain, later = (self.stores.get(name) for name in (kind, f"{kind}-views"))
        stores = [open_store(self.cache, name) if name else None for name in (plain, later)]
        assert stores[0] is not None
        return StoredViews(stores[0], stores[1], self.train_rows_T, self.num_views)


@dataclass(frozen=True)
class _Views:
    """The views of a pass: views `views_N` of the photos in rows `rows_N` of the image store.

    `keys_N` are the keys that augmentation draws with. `keys` are those of the rows in the stores.
    """

    keys: Sequence[str]
    rows_N: np.ndarray
    keys_N: np.ndarray
    views_N: np.ndarray


def extract(
    config: ExtractConfig,
    augment_config: AugmentConfig,
    *,
    recipe: Recipe,
    wanted_inputs: Literal["auto", "stored", "online"],
    fine_tunes: bool,
    examples: Examples,
    images: ArrayStore,
    network: Network,
    code_and_weights: str,
    context: Context,
) -> Extraction | None:
    """Run the frozen layers over all photos and views, and store their output.

    `code_and_weights` is a digest of everything that determines this output, including the version of this stage's code.
    Each worker makes its part of the missing views, then the chief makes those that did not arrive. Others return None.

    Raises:
        Diverged: if activations or features are not finite, or too large for float16.
        UsageError, StorageFailed: if the backbone cannot be built, its weights do not fit, or the stores are too large.
        Stopped: between batches.
    """
    train, num_views = examples.in_store_order("train"), recipe.views
    train_rows = examples["row"][train].astype(np.int64)
    cut_name = network.cut_point.name if network.cut_point else None  # Features are rounded at the cut, stored or not.
    photos = images.index_file.parent.name  # It has a digest of how they were decoded.
    made_by = [code_and_weights, photos, network.image_size, cut_name, CUT_DTYPE, config.batch_size]
    what = {name: value for name, value in augment_config.what().items() if name != "views"}
    folders = {"": digest_of(made_by)[:16], "-views": digest_of([*made_by, what])[:16]}
    inputs = _decided(
        context,
        digest_of([wanted_inputs, fine_tunes, images.digest, len(train), num_views, folders, context.cache.max_gb]),
        lambda: _inputs(wanted_inputs, fine_tunes, images, len(train), num_views, network, context.cache, folders),
    )
    context.telemetry.line(f"  fine-tuning will use {inputs.kind} inputs: {inputs.why}")
    point = network.cut_point if inputs.kind == "stored" and fine_tunes else None
    passes = {"": _Pass(network, images, None, context, folders[""], point, _plain(images))}
    if num_views > 1:
        augmentation = Augmentation(augment_config, network.image_size)
        views = _augmented(images, train_rows, examples.keys[train], num_views)
        passes["-views"] = _Pass(network, images, augmentation, context, folders["-views"], point, views)
    share = network.cut_point.share_above if network.cut_point else 0.0
    later = recipe.forward_passes(len(train), share, stored=inputs.kind == "stored") / context.peers.count
    stores = _make(passes, config.batch_size, images.num_bytes, {"fine_tune": later} if fine_tunes else {}, context)
    if stores is None:
        return None
    summary: dict[str, object] = {"num_views": num_views, "train_rows": train_rows.tolist(), "stores": stores}
    summary |= {"inputs": asdict(inputs), "cut": network.cut_point and asdict(network.cut_point)}
    context.workdir.write_json(SUMMARY, summary)
    return Extraction(context.cache, num_views, train_rows, inputs, stores)


def _make(
    passes: dict[str, "_Pass"], batch_size: int, images_bytes: int, later: Mapping[str, float], context: Context
) -> dict[str, str] | None:
    """Make the missing views. Return the names of the stores by kind and pass; None on workers other than the chief.

    `later` has stages that take as long as so many views.
    """
    peers, telemetry = context.peers, context.telemetry
    with Exchange(context.cache, [folder for one in passes.values() for folder in one.folders]) as exchange:
        missing = {name: told(peers, one.missing(exchange)) for name, one in passes.items()}
        needed_bytes = sum(one.bytes_per_view * len(one.views.keys) for one in passes.values())
        missing_bytes = sum(one.bytes_per_view * len(missing[name]) for name, one in passes.items())
        context.cache.reserve(needed_bytes + images_bytes, missing_bytes)
        telemetry.found_finished(sum(len(one.views.keys) for one in passes.values()) - sum(map(len, missing.values())))
        own = {name: peers.own(numbers) for name, numbers in missing.items()}
        with telemetry.progress("extract", sum(map(len, own.values())), "views", later) as progress:
            for name, one in passes.items():
                for count in one.fill(own[name], batch_size):
                    progress.advance(count)
        exchange.flush()
        peers.meet()
        if not peers.is_chief:
            return None
        for one in passes.values():
            for _ in one.fill(one.missing(exchange), batch_size):
                pass  # These views of another worker did not arrive here, so the chief makes them.
        return {kind + name: one.finish(kind) for name, one in passes.items() for kind in one.writers}


def _decided(context: Context, made_from: str, decide: Callable[[], Choice]) -> Choice:
    """Return the inputs that the chief has chosen once: free disk space differs between workers, and between runs."""
    before = context.workdir.read_sealed(DECISION) if context.peers.is_chief else None
    if before and before["made_from"] == made_from:
        inputs = Choice(**before["inputs"])
    elif context.peers.is_chief:
        inputs = decide()
        context.workdir.write_sealed(DECISION, {"made_from": made_from, "inputs": asdict(inputs)})
    return Choice(**context.peers.same(asdict(inputs) if context.peers.is_chief else {}))


def _inputs(
    wanted: Literal["auto", "stored", "online"],
    fine_tunes: bool,
    images: ArrayStore,
    num_train: int,
    num_views: int,
    network: Network,
    cache: Cache,
    folders: dict[str, str],
) -> Choice:
    if not fine_tunes:
        return Choice("stored", "nothing is fine-tuned")
    # Stores that another run has already made need no further space.
    stores = [cache.path(f"{kind}-{name}") for kind in ("activations", "features") for name in folders.values()]
    there = sum(p.stat().st_size for store in stores for p in store.glob("*.npy"))
    allowed = (cache.free_bytes + there) * (1 - _KEPT_FREE) if cache.max_gb is None else cache.max_gb * 1e9
    features = network.feature_width * 4 * (len(images) + num_train * (num_views - 1))
    return choose_inputs(
        wanted,
        num_photos=len(images),
        num_training_photos=num_train,
        num_views=num_views,
        network=network,
        budget_bytes=allowed - features - (images.num_bytes if cache.max_gb is not None else 0),
        memory_bytes=memory_bytes(),
    )


def _plain(images: ArrayStore) -> _Views:
    """Return all photos without augmentation."""
    count = len(images)
    return _Views(images.keys, np.arange(count), np.zeros(count, np.uint64), np.zeros(count, np.int64))


def _augmented(images: ArrayStore, train_rows_T: np.ndarray, keys_T: np.ndarray, num_views: int) -> _Views:
    """Return views 1 and up of the training photos. The views of a photo are consecutive."""
    rows_N, keys_N = np.repeat(train_rows_T, num_views - 1), np.repeat(keys_T, num_views - 1)
    views_N = np.tile(np.arange(1, num_views), len(train_rows_T))
    numbered = zip(rows_N.tolist(), keys_N.tolist(), views_N.tolist(), strict=True)
    return _Views([f"{images.keys[row][:32]}-{key:016x}-{view}" for row, key, view in numbered], rows_N, keys_N, views_N)


class _Pass:
    """One pass of the frozen layers over plain photos or over augmented views, and the stores that it fills.

    The stores have a row for each of `views`. Where its photo or the views of another one are new, only these are computed.
    """

    def __init__(
        self,
        network: Network,
        images: ArrayStore,
        augmentation: Augmentation | None,
        context: Context,
        made_by: str,
        stored_at: CutPoint | None,
        views: _Views,
    ) -> None:
        self._network, self._images, self._augmentation, self._context = network, images, augmentation, context
        self._made_by, self.views = made_by, views
        shapes = {"activations": (stored_at.shape, CUT_DTYPE)} if stored_at else {}
        shapes["features"] = ((network.feature_width,), "float32")
        self.writers = {
            kind: StoreWriter(context.cache.path(f"{kind}-{made_by}"), *shape, context.cache.temporary)
            for kind, shape in shapes.items()
        }

    @property
    def bytes_per_view(self) -> int:
        return sum(writer.row_bytes for writer in self.writers.values())

    @property
    def folders(self) -> list[str]:
        return [f"{kind}-{self._made_by}" for kind in self.writers]

    def missing(self, exchange: Exchange) -> list[int]:
        """Return the numbers of the views that have to be computed, in order, in which later stages read them.

        Of several views with one key, which exact copies of a photo have, only one is returned. Workers other than the chief
        only look at what is on their disk.
        """
        for writer in self.writers.values():
            writer.refresh()
        if self._context.peers.is_chief:
            for folder, writer in zip(self.folders, self.writers.values(), strict=True):
                if wanted := set(_without(writer, self.views.keys)):
                    exchange.fetch(folder, partial(_has_any, wanted))
                    writer.refresh()
        lacking = {key for writer in self.writers.values() for key in _without(writer, self.views.keys)}
        number_of = {key: number for number, key in enumerate(self.views.keys) if key in lacking}
        return sorted(number_of.values())

    def finish(self, kind: str) -> str:
        """Complete the store of one kind and return its name."""
        cache = self._context.cache
        return cache.name(self.writers[kind].finish(self.views.keys, compacts=cache.may_be_swept).index_file)

    def fill(self, numbers: Sequence[int], batch_size: int) -> Iterator[int]:
        """Compute the views with these numbers. Yield the number of new views after each batch. A thread writes the files.

        Batches continue across shards, because otherwise many would be half empty.
        """
        if not numbers:
            return
        of_views = self.views.rows_N, self.views.keys_N, self.views.views_N
        rows, keys, views = (values_N[np.asarray(numbers)] for values_N in of_views)
        network, augmentation, telemetry = self._network, self._augmentation, self._context.telemetry

        def load(positions: np.ndarray) -> tuple[np.ndarray, ...]:
            photos = self._images.rows(rows[positions])
            return augmentation.host(photos, keys[positions], views[positions]) if augmentation else (photos,)

        step = network.compiled(augmentation)
        names, done = [self.views.keys[number] for number in numbers], 0
        with ThreadPoolExecutor(1) as thread:
            filled = {kind: Filled(writer, names, thread) for kind, writer in self.writers.items()}
            for outputs in run_batches(network.replicas, step, load, len(numbers), batch_size, telemetry):
                self._context.stop.check()
                for kind, output in zip(("activations", "features"), outputs, strict=True):
                    if kind in filled:
                        filled[kind].add(done, _finite(output))
                with telemetry.spent("writing"):
                    for one in filled.values():
                        one.wait(_WRITES_AHEAD)
                done += len(outputs[0])
                yield len(outputs[0])
            with telemetry.spent("writing"):
                for one in filled.values():
                    one.close()


def _has_any(keys: Set[str], shard: Shard) -> bool:
    return any(row in keys for row in shard.rows)


def _without(writer: StoreWriter, keys: Sequence[str]) -> list[str]:
    """Return those of these keys whose rows the store does not have."""
    return [key for key, is_there in zip(keys, writer.has(keys), strict=True) if not is_there]


def _finite(output: np.ndarray) -> np.ndarray:
    if not np.isfinite(output).all():
        raise Diverged(
            "The frozen backbone gives numbers that are not finite, or too large for float16 (above 65504). "
            "Choose another backbone.unfreeze (another cut point), or check the weights."
        )
    return output
