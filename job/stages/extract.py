"""extract: run the frozen layers once over every photo and every stored view of the training photos."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, Self

import numpy as np

from job.config import AugmentConfig, ExtractConfig
from job.data.augment import Augmentation
from job.data.examples import Examples
from job.errors import Diverged
from job.model.cut import CutPoint
from job.model.inputs import Choice, choose_inputs
from job.model.network import CUT_DTYPE, Network
from job.runtime.cgroups import memory_bytes
from job.runtime.context import Context
from job.storage.files import digest_of
from job.storage.sealed import read_sealed, write_sealed
from job.stores.arrays import ROWS_PER_SHARD, ArrayStore, Shard, StoredViews, StoreWriter
from job.stores.cache import Cache
from job.stores.exchange import Exchange, open_store
from job.text.numbers import about
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
class _Shard:
    """A shard to make: views `views_N` of the photos in rows `rows_N` of the image store, which have the keys `keys_N`."""

    key: str
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
    Each worker makes its part of the shards, then the chief makes those that are still missing. Other workers return None.

    Raises:
        Diverged: if activations or features are not finite, or too large for float16.
        UsageError, StorageFailed: if the backbone cannot be built, its weights do not fit, or the stores are too large.
        Stopped: between batches.
    """
    train, num_views = examples.in_store_order("train"), recipe.views
    train_rows = examples["row"][train].astype(np.int64)
    cut_name = network.cut_point.name if network.cut_point else None  # Features are rounded at the cut, stored or not.
    made_by = [code_and_weights, network.image_size, cut_name, CUT_DTYPE, config.batch_size]
    what = {name: value for name, value in augment_config.what().items() if name != "views"}
    folders = {"": digest_of(made_by)[:16], "-views": digest_of([*made_by, what])[:16]}
    inputs = _decided(
        context,
        digest_of([wanted_inputs, fine_tunes, images.digest, len(train), num_views, folders, context.cache.max_gb]),
        lambda: _inputs(wanted_inputs, fine_tunes, images, len(train), num_views, network, context.cache, folders),
    )
    context.telemetry.line(f"  fine-tuning will use {inputs.kind} inputs: {inputs.why}")
    point = network.cut_point if inputs.kind == "stored" and fine_tunes else None
    passes = {"": (_Pass(network, images, None, context, folders[""], point), _plain(images))}
    if num_views > 1:
        augmentation = Augmentation(augment_config, network.image_size)
        shards = _augmented(images, train_rows, examples.keys[train], num_views)
        passes["-views"] = (_Pass(network, images, augmentation, context, folders["-views"], point), shards)
    share = network.cut_point.share_above if network.cut_point else 0.0
    later = recipe.forward_passes(len(train), share, stored=inputs.kind == "stored") / context.peers.count
    stores = _make(passes, config.batch_size, images.num_bytes, partial(_outlook, later) if fine_tunes else None, context)
    if stores is None:
        return None
    summary: dict[str, object] = {"num_views": num_views, "train_rows": train_rows.tolist(), "stores": stores}
    summary |= {"inputs": asdict(inputs), "cut": network.cut_point and asdict(network.cut_point)}
    context.workdir.write_json(SUMMARY, summary)
    return Extraction(context.cache, num_views, train_rows, inputs, stores)


def _make(
    passes: dict[str, tuple["_Pass", list[_Shard]]],
    batch_size: int,
    images_bytes: int,
    outlook: Callable[[float, int], str] | None,
    context: Context,
) -> dict[str, str] | None:
    """Make the missing shards. Return the names of the stores by kind and pass; None on workers other than the chief."""
    stored_in = [folder for one, _ in passes.values() for folder in one.folders]
    with Exchange(context.cache, stored_in) as exchange:
        for one, shards in passes.values():
            one.fetch(exchange, shards)
        missing = {name: [s for s in shards if not one.has(s)] for name, (one, shards) in passes.items()}
        needed_bytes = sum(one.bytes_per_view * len(s.rows_N) for one, shards in passes.values() for s in shards)
        missing_bytes = sum(one.bytes_per_view * len(s.rows_N) for name, (one, _) in passes.items() for s in missing[name])
        context.cache.reserve(needed_bytes + images_bytes, missing_bytes)
        num_missing = sum(len(s.rows_N) for shards in missing.values() for s in shards)
        context.telemetry.found_finished(sum(len(s.rows_N) for _, shards in passes.values() for s in shards) - num_missing)
        own = {name: context.peers.own(shards) for name, shards in missing.items()}
        num_own = sum(len(s.rows_N) for shards in own.values() for s in shards)
        with context.telemetry.progress("extract", num_own, "views", outlook) as progress:
            for name, (one, shards) in passes.items():
                for count in one.fill(shards, own[name], batch_size):
                    progress.advance(count)
        exchange.flush()
        context.peers.meet()
        if not context.peers.is_chief:
            return None
        for name, (one, shards) in passes.items():
            own_keys = {s.key for s in own[name]}
            of_others = [s for s in missing[name] if s.key not in own_keys]
            one.fetch(exchange, of_others)
            for _ in one.fill(shards, [s for s in of_others if not one.has(s)], batch_size):
                pass  # These shards of another worker did not arrive here, so the chief makes them.
        return {kind + name: one.finish(kind, shards) for name, (one, shards) in passes.items() for kind in one.writers}


def _outlook(num_passes_later: float, views_per_s: float, num_left: int) -> str:
    """Return a line about the time that is left for the two long stages: fine-tuning takes as long as so many passes."""
    left_s, tuning_s = num_left / views_per_s, num_passes_later / views_per_s
    return (
        f"  estimate: {about(left_s + tuning_s)} to go, {about(left_s)} for extract at its rate and roughly "
        f"{about(tuning_s)} for fine_tune; the other stages come on top"
    )


def _decided(context: Context, made_from: str, decide: Callable[[], Choice]) -> Choice:
    """Return the inputs that the chief has chosen once: free disk space differs between workers, and between runs."""
    before = read_sealed(context.workdir, DECISION) if context.peers.is_chief else None
    if before and before["made_from"] == made_from:
        inputs = Choice(**before["inputs"])
    elif context.peers.is_chief:
        inputs = decide()
        write_sealed(context.workdir, DECISION, {"made_from": made_from, "inputs": asdict(inputs)})
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


def _plain(images: ArrayStore) -> list[_Shard]:
    """Return the shards of all photos without augmentation."""
    shards = []
    for number, shard in enumerate(images.shards):
        rows = np.asarray(images.shard_range(number), np.int64)
        shards.append(_Shard(digest_of(shard.sha256), rows, np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.int64)))
    return shards


def _augmented(images: ArrayStore, train_rows_T: np.ndarray, keys_T: np.ndarray, num_views: int) -> list[_Shard]:
    """Return the shards of views 1 and up of the training photos. The views of a photo are consecutive."""
    shards = []
    for number, shard in enumerate(images.shards):
        rows = images.shard_range(number)
        here = np.flatnonzero((train_rows_T >= rows.start) & (train_rows_T < rows.stop))
        repeated, views = np.repeat(here, num_views - 1), np.tile(np.arange(1, num_views), len(here))
        for start in range(0, len(repeated), ROWS_PER_SHARD):  # More views give more shards, not larger ones.
            part, views_N = repeated[start : start + ROWS_PER_SHARD], views[start : start + ROWS_PER_SHARD]
            key = digest_of([shard.sha256, [[int(k), int(v)] for k, v in zip(keys_T[part], views_N, strict=True)]])
            shards.append(_Shard(key, train_rows_T[part], keys_T[part], views_N))
    return shards


class _Pass:
    """One pass of the frozen layers over plain photos or over augmented views, and the stores that it fills."""

    def __init__(
        self,
        network: Network,
        images: ArrayStore,
        augmentation: Augmentation | None,
        context: Context,
        made_by: str,
        stored_at: CutPoint | None,
    ) -> None:
        self._network, self._images, self._augmentation, self._context = network, images, augmentation, context
        self._made_by = made_by
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        if stored_at is not None:
            shapes["activations"] = (stored_at.shape, CUT_DTYPE)
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

    def fetch(self, exchange: Exchange, shards: Sequence[_Shard]) -> None:
        """Download the shards among these that other workers have made."""
        for folder in self.folders:
            exchange.fetch(folder, [self._key(shard) for shard in shards])

    def has(self, shard: _Shard) -> bool:
        return all(writer.committed(self._key(shard)) is not None for writer in self.writers.values())

    def finish(self, kind: str, shards: list[_Shard]) -> str:
        """Complete the store of one kind and return its name."""
        return self._context.cache.name(self.writers[kind].finish([self._key(shard) for shard in shards]).index_file)

    def fill(self, shards: list[_Shard], missing: Sequence[_Shard], batch_size: int) -> Iterator[int]:
        """Make the missing ones of these shards. Yield the number of new views after each batch. A thread writes the files.

        Batches continue across shards, because otherwise many would be half empty. They contain the same rows whatever is
        missing, because the last bits of a row may depend on its place in the batch.
        """
        if not missing:
            return
        rows, keys, views = (np.concatenate([getattr(s, axis) for s in shards]) for axis in ("rows_N", "keys_N", "views_N"))
        network, augmentation, telemetry = self._network, self._augmentation, self._context.telemetry
        size = network.replicas.padded_size(batch_size)
        missing_keys = {shard.key for shard in missing}
        is_missing_N = np.repeat([s.key in missing_keys for s in shards], [len(s.rows_N) for s in shards])
        in_batch_N = np.repeat(np.logical_or.reduceat(is_missing_N, np.arange(0, len(rows), size)), size)[: len(rows)]
        passed = np.flatnonzero(in_batch_N)

        def load(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
            here = passed[numbers]
            photos = self._images.rows(rows[here])
            return augmentation.host(photos, keys[here], views[here]) if augmentation else (photos,)

        step = network.compiled(augmentation)
        held = {kind: np.empty((0, *writer.row_shape), writer.dtype) for kind, writer in self.writers.items()}
        waiting, writes, num_passed = deque(missing), deque[Future[Shard]](), 0
        with ThreadPoolExecutor(1) as thread:
            for outputs in run_batches(network.replicas, step, load, len(passed), size, telemetry):
                self._context.stop.check()
                wanted = is_missing_N[passed[num_passed : num_passed + len(outputs[0])]]
                num_passed += len(outputs[0])
                for kind, output in zip(("activations", "features"), outputs, strict=True):
                    if kind in held:
                        held[kind] = np.concatenate([held[kind], _finite(output[wanted])])
                while waiting and len(held["features"]) >= len(waiting[0].rows_N):
                    shard = waiting.popleft()
                    for kind, writer in self.writers.items():
                        done, held[kind] = np.split(held[kind], [len(shard.rows_N)])
                        writes.append(thread.submit(writer.write, self._key(shard), done))
                with telemetry.spent("writing"):
                    while writes and (writes[0].done() or len(writes) > _WRITES_AHEAD):
                        writes.popleft().result()
                yield int(wanted.sum())
            for shard in waiting:  # These shards have no views.
                for kind, writer in self.writers.items():
                    writer.write(self._key(shard), held[kind])
            with telemetry.spent("writing"):
                for write in writes:
                    write.result()

    def _key(self, shard: _Shard) -> str:
        return digest_of([self._made_by, shard.key])


def _finite(output: np.ndarray) -> np.ndarray:
    if not np.isfinite(output).all():
        raise Diverged(
            "The frozen backbone gives numbers that are not finite, or too large for float16 (above 65504). "
            "Choose another backbone.unfreeze (another cut point), or check the weights."
        )
    return output
