"""Data that grows: intake and extract only work on what is new, and a grown store has the bits of a fresh one."""

import shutil
from contextlib import suppress

import numpy as np
import pytest

from job.cluster.devices import Devices
from job.data.augment import Augmentation
from job.model.network import Network
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import AugmentConfig, BackboneConfig, ExtractConfig, IntakeConfig
from job.sources.folders import FolderSource
from job.stages.extract import extract
from job.stages.intake import intake
from job.storage.workdir import Workdir
from job.stores.arrays import StoreWriter
from job.stores.sweeping import sweep, unwanted
from job.train.recipe import Recipe
from tests.conftest import paint, paint_classes
from tests.numerics.conftest import SIZE

BATCH, VIEWS = 8, 3


class Counting:
    """A network that counts the batches of its frozen layers."""

    def __init__(self, network):
        self._network, self.batches = network, 0

    def __getattr__(self, name):
        return getattr(self._network, name)

    def compiled(self, augmentation=None):
        step = self._network.compiled(augmentation)

        def counted(*batch):
            self.batches += 1
            return step(*batch)

        return counted


class Run:
    """Intake and extract of a folder, again and again in one output directory."""

    def __init__(self, out, network):
        self.out, self._network = out, network

    def __call__(self, folder, views=VIEWS, other_split=()):
        """Return how many photos were decoded, how many batches were computed, and the results."""
        context = Context(Workdir(self.out), Telemetry(None))
        source = FolderSource(folder.resolve())
        found = intake(IntakeConfig(image_size=SIZE), source=source, listing=source.listing(), context=context)
        decoded = len(found.examples) - context.telemetry.take_spent()[1]["found"]
        in_test = [("test" in path) != (path in other_split) for path in found.examples["path"]]
        examples = found.examples.with_columns(split=np.where(in_test, "test", "train").astype(object))
        counting = Counting(self._network)
        made = extract(
            ExtractConfig(batch_size=BATCH),
            AugmentConfig(seed=1),
            recipe=Recipe(epochs=2, global_batch_size=8, learning_rate=1e-3, views=views),
            wanted_inputs="stored",
            fine_tunes=True,
            examples=examples,
            images=found.images,
            network=counting,
            code_and_weights="1",
            context=context,
        )
        kept = [context.cache.path(name) for name in (found.store_name, *made.stores.values())]
        sweep(unwanted(context.cache.root, kept))
        return decoded, counting.batches, found, made


def content(found, made):
    """Everything that a run leaves for later stages, bit by bit."""
    stores = [found.images, made.features.plain, made.features.augmented, made.activations.plain, made.activations.augmented]
    rows = [store.rows(range(len(store))).tobytes() for store in stores]
    names = [found.store_name, *made.stores.values()]
    return [*rows, found.examples.to_parquet(), made.train_rows_T.tolist(), [store.digest for store in stores], names]


@pytest.fixture
def folder(tmp_path):
    folder = paint_classes(tmp_path / "photos", per_class=15)
    for k in range(5):
        paint(folder / "checks" / f"test-{k}.jpg", seed=700 + k, kind="checks")
    return folder


@pytest.fixture
def run(tmp_path, network):
    return Run(tmp_path / "out", network)


def test_one_photo_more_is_decoded_and_costs_a_batch_of_each_pass(folder, run, tmp_path, network):
    decoded, batches, *_ = run(folder)
    assert decoded == 35 and batches == -(-35 // BATCH) + -(-30 * (VIEWS - 1) // BATCH)
    for name, passes in (("a.jpg", 2), ("a-test.jpg", 1)):  # Both come before all others. Only one is a training photo.
        paint(folder / "checks" / name, seed=len(name))
        assert run(folder)[:2] == (1, passes)
    assert content(*run(folder)[2:]) == content(*Run(tmp_path / "fresh", network)(folder)[2:])


def test_what_is_removed_renamed_or_relabelled_costs_nothing(folder, run, tmp_path, network):
    run(folder)
    (folder / "checks" / "checks-003.jpg").unlink()
    assert run(folder)[:2] == (0, 0)
    (folder / "checks" / "checks-004.jpg").rename(folder / "checks" / "0.jpg")
    assert run(folder)[:2] == (0, 0)
    (folder / "checks" / "checks-005.jpg").rename(folder / "stripes" / "z.jpg")
    assert run(folder)[:2] == (0, 0)
    assert content(*run(folder)[2:]) == content(*Run(tmp_path / "fresh", network)(folder)[2:])


def test_data_that_was_moved_to_another_folder_is_not_decoded_again(folder, run, tmp_path):
    before = content(*run(folder)[2:])
    decoded, batches, *after = run(folder.rename(tmp_path / "moved"))
    assert (decoded, batches) == (0, 0) and content(*after) == before


def test_another_split_costs_the_views_of_photos_that_are_new_to_training(folder, run):
    run(folder)
    moved = ("checks/checks-000.jpg", "checks/test-1.jpg", "checks/test-2.jpg")
    decoded, batches, _, made = run(folder, other_split=moved)
    assert (decoded, batches) == (0, 1) and len(made.train_rows_T) == 31
    assert run(folder, views=VIEWS + 2)[:2] == (0, -(-30 * 2 // BATCH))


def test_exact_copy_that_comes_first_costs_only_its_own_views(folder, run, tmp_path, network):
    shutil.copy(folder / "checks" / "checks-002.jpg", folder / "checks" / "checks-003-copy.jpg")
    run(folder)
    shutil.copy(folder / "checks" / "checks-002.jpg", folder / "checks" / "0.jpg")
    assert run(folder)[:2] == (0, 1)
    assert content(*run(folder)[2:]) == content(*Run(tmp_path / "fresh", network)(folder)[2:])


def test_store_of_which_most_photos_are_gone_is_compacted(folder, run, tmp_path, network):
    run(folder)
    arrays = set((tmp_path / "out" / "cache").rglob("*.npy"))
    for k in range(15):
        if k != 7:
            (folder / "stripes" / f"stripes-{k:03d}.jpg").unlink()
            (folder / "checks" / f"checks-{k:03d}.jpg").unlink()
    decoded, batches, *left = run(folder)
    assert (decoded, batches) == (0, 0)
    assert not arrays & set((tmp_path / "out" / "cache").rglob("*.npy")), "the old shards are gone"
    assert content(*left) == content(*Run(tmp_path / "fresh", network)(folder)[2:])
    assert run(folder)[:2] == (0, 0)


def test_growth_that_is_killed_continues_with_the_rows_that_it_has_made(folder, run, tmp_path, network, monkeypatch):
    monkeypatch.setattr("job.stores.arrays.MAX_SHARD_ROWS", 5)
    run(folder)
    for k in range(20):
        paint(folder / "checks" / f"0-{k}.jpg", seed=900 + k, kind="checks")
    commit, made = StoreWriter.commit, []

    def killed_at_each_third(*arguments):
        if len(made) % 3 == 2:
            made.append("killed")
            raise Killed
        made.append("shard")
        return commit(*arguments)

    monkeypatch.setattr("job.stores.arrays.StoreWriter.commit", killed_at_each_third)
    for _ in range(20):
        with suppress(Killed):
            result = run(folder)
            break
    assert made.count("killed") > 3 and made.count("shard") == -(-20 // 5) + 2 * (-(-20 // 5) + -(-20 * 2 // 5))
    monkeypatch.undo()
    assert run(folder)[:2] == (0, 0)
    assert content(*result[2:]) == content(*Run(tmp_path / "fresh", network)(folder)[2:])


class Killed(Exception):
    pass


def test_damaged_shard_is_made_again_and_the_rest_is_not(folder, run, monkeypatch, tmp_path):
    monkeypatch.setattr("job.stores.arrays.MAX_SHARD_ROWS", 5)
    before = content(*run(folder)[2:])
    for kind, decoded_and_batches in (("images", (5, 0)), ("activations", (0, 1))):
        damaged = next((tmp_path / "out" / "cache").glob(f"{kind}-*/*.npy"))
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
        decoded, batches, *after = run(folder)
        assert (decoded, batches) == decoded_and_batches and content(*after) == before


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "resnet50"])
def test_row_has_the_same_bits_in_any_batch_and_at_any_place(name):
    """New photos go into batches of their own, so that what is stored of a photo must not depend on its neighbours."""
    config = BackboneConfig(name=name, weights="random", unfreeze=0.4)
    network = Network(config, SIZE, Devices(), seed=1)
    augmentation = Augmentation(AugmentConfig(seed=1), SIZE)
    pixels = np.random.default_rng(3).integers(0, 256, (24, SIZE, SIZE, 3)).astype(np.uint8)
    keys, views = np.arange(24, dtype=np.uint64), np.ones(24, np.int64)
    for step, arrays in (
        (network.compiled(None), (pixels,)),
        (network.compiled(augmentation), augmentation.host(pixels, keys, views)),
    ):
        outputs = {}
        for order in (np.arange(24), np.arange(24)[::-1], np.random.default_rng(5).permutation(24)):
            for start in range(0, 24, 8):
                batch = order[start : start + 8]
                for output in step(*network.replicas.scatter(tuple(a[batch] for a in arrays))):
                    for row, number in zip(network.replicas.gather(output), batch.tolist(), strict=True):
                        outputs.setdefault((number, row.shape, row.dtype), set()).add(row.tobytes())
        assert len(outputs) == 48 and {len(bits) for bits in outputs.values()} == {1}
