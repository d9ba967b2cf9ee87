"""extract: what is in the stores is what the network gives for each view, however the batches fell."""

import io

import numpy as np
import pytest

from job.data.augment import Augmentation
from job.errors import Diverged, StorageFailed
from job.model.network import Network
from job.runtime import telemetry
from job.runtime.context import Context
from job.runtime.forecast import Forecast
from job.runtime.telemetry import Telemetry
from job.sections import AugmentConfig, BackboneConfig, ExtractConfig, IntakeConfig, SplitConfig
from job.sources.folders import FolderSource
from job.stages.extract import Extraction, extract
from job.stages.intake import intake
from job.stages.split import split
from job.storage.workdir import Workdir
from job.stores.cache import Cache
from job.train.recipe import Recipe
from tests.conftest import paint_classes
from tests.numerics.conftest import SIZE

AUGMENT = AugmentConfig(seed=1)
VIEWS = 3


@pytest.fixture(scope="module")
def taken_in(tmp_path_factory):
    """Photos in shards of four; a given split leaves whole shards without a training photo."""
    folder = tmp_path_factory.mktemp("extract")
    for part, per_class in (("train", 12), ("val", 6), ("test", 6)):
        paint_classes(folder / "photos" / part, per_class=per_class)
    context = Context(Workdir(folder / "out"), Telemetry(None))
    source = FolderSource((folder / "photos").resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("job.stores.arrays.MAX_SHARD_ROWS", 4)
        found = intake(IntakeConfig(image_size=SIZE), source=source, listing=source.listing(), context=context)
    divided = split(
        SplitConfig(),
        examples=found.examples,
        images=found.images,
        max_quarantined_fraction=0.0,
        drop_small_classes=False,
        context=context,
    )
    assert not divided.refusals
    return found.images, divided.examples


def run(context, network, taken_in, wanted="auto", code_and_weights="1"):
    images, examples = taken_in
    return extract(
        ExtractConfig(batch_size=8),
        AUGMENT,
        recipe=Recipe(epochs=2, global_batch_size=8, learning_rate=1e-3, views=VIEWS),
        wanted_inputs=wanted,
        fine_tunes=True,
        examples=examples,
        images=images,
        network=network,
        code_and_weights=code_and_weights,
        context=context,
    )


def test_stores_hold_every_photo_and_every_view_of_the_training_photos(context, network, taken_in):
    images, examples = taken_in
    made = run(context, network, taken_in)
    rows = np.arange(len(images))
    activations, features = map(np.asarray, network.activations_and_features(images.rows(rows)))
    assert np.allclose(made.features.plain.rows(rows), features, rtol=1e-3, atol=1e-3)
    assert np.allclose(made.activations.plain.rows(rows), activations, rtol=2e-3, atol=1e-3)
    train = examples.in_store_order("train")
    train_rows, keys = examples["row"][train].astype(int), examples.keys[train]
    assert made.train_rows_T.tolist() == train_rows.tolist() and len(made.activations.augmented) == len(train) * 2
    augmentation = Augmentation(AUGMENT, SIZE)
    for view in range(1, VIEWS):
        batch = augmentation.host(images.rows(train_rows), keys, np.full(len(train), view))
        expected = np.asarray(network.activations_and_features(augmentation.device(*batch))[1])
        stored = made.features.training(np.arange(len(train)), np.full(len(train), view))
        assert np.allclose(stored, expected, rtol=1e-3, atol=1e-3)
    again = Extraction.load(context)
    assert again.stores == made.stores and again.inputs == made.inputs and again.train_rows_T.tolist() == train_rows.tolist()


@pytest.mark.parametrize("wanted", ["stored", "online"])
def test_rate_tells_how_long_fine_tuning_takes(tmp_path, network, taken_in, monkeypatch, wanted):
    monkeypatch.setattr(telemetry, "SECONDS_BETWEEN_LINES", 0.0)
    recorder = Telemetry(None, io.StringIO())
    recorder.forecast = Forecast({"extract": 1.0, "fine_tune": 0.0}, {"extract", "fine_tune"})
    recorder.forecast.begin("extract")
    run(Context(Workdir(tmp_path), recorder), network, taken_in, wanted)
    assert not recorder.forecast.guessed and recorder.forecast.expected_s["fine_tune"] > 0


def test_lost_shard_is_the_only_one_that_is_made_again_and_with_the_same_bits(context, network, taken_in, monkeypatch):
    monkeypatch.setattr("job.stores.arrays.MAX_SHARD_ROWS", 4)
    before = run(context, network, taken_in)
    rows = np.arange(len(taken_in[0]))
    features = before.features.plain.rows(rows)
    arrays = sorted(before.features.plain.index_file.parent.glob("*.npy"))
    lost, content = arrays[2], arrays[2].read_bytes()
    lost.unlink()
    inodes = {p: p.stat().st_ino for p in context.cache.root.rglob("*.npy")}
    after = run(context, network, taken_in)
    assert lost.read_bytes() == content and after.stores == before.stores
    assert all(p.stat().st_ino == inode for p, inode in inodes.items()) and len(inodes) > 20
    assert np.array_equal(after.features.plain.rows(rows), features)


def test_photos_and_views_go_through_layers_that_are_traced_once(network, pixels):
    augmentation = Augmentation(AugmentConfig(), SIZE)
    views = augmentation.host(pixels[:5], np.arange(5, dtype=np.uint64), np.ones(5, np.int64))
    counts = []
    for step, arrays in ((network.compiled(), (pixels[:5],)), (network.compiled(augmentation), views)):
        step(*network.replicas.scatter(arrays))
        counts.append(network._forward.experimental_get_tracing_count())
    assert counts[0] == counts[1] > 0


def test_numbers_that_float16_does_not_hold_end_as_diverged(context, network, taken_in):
    class Loud:
        def __getattr__(self, name):
            return getattr(network, name)

        def compiled(self, augmentation=None):
            step = network.compiled(augmentation)
            return lambda *batch: [
                output * np.float32(np.inf).astype(output.dtype.as_numpy_dtype) for output in step(*batch)
            ]

    with pytest.raises(Diverged, match="another cut point"):
        run(context, Loud(), taken_in)


def test_features_that_went_through_different_cuts_are_different_stores(context, network, taken_in):
    """Online inputs store no activations, but the features have been through float16 at the cut all the same."""
    uncut = Network(BackboneConfig(alpha=0.35, weights="random", unfreeze="none"), SIZE, network.devices, seed=1)
    made = [run(context, network, taken_in, wanted) for wanted in ("stored", "online")] + [run(context, uncut, taken_in)]
    assert made[0].stores["features"] == made[1].stores["features"] != made[2].stores["features"]
    assert "activations" in made[0].stores and "activations" not in made[1].stores


def test_a_full_disk_does_not_send_a_run_online_whose_activations_are_there_already(context, network, taken_in, monkeypatch):
    stored = run(context, network, taken_in)
    needed = stored.activations.plain.num_bytes + stored.activations.augmented.num_bytes
    monkeypatch.setattr(Cache, "free_bytes", property(lambda self: 2 * needed))  # Enough for a little of the features.
    features = (stored.features.plain.num_bytes + stored.features.augmented.num_bytes) * 2
    monkeypatch.setattr("job.stages.extract._KEPT_FREE", -features / (2 * needed))
    assert run(context, network, taken_in).inputs.kind == "stored"
    monkeypatch.setattr(Cache, "free_bytes", property(lambda self: 1))
    elsewhere = Context(Workdir(context.workdir.root.parent / "elsewhere"), Telemetry(None))
    with pytest.raises(StorageFailed, match="are free"):
        run(elsewhere, network, taken_in)


def test_what_was_decided_before_a_kill_stays_though_the_disk_has_another_amount_of_room(
    context, network, taken_in, monkeypatch
):
    monkeypatch.setattr(Cache, "reserve", lambda *_: None)
    monkeypatch.setattr(Cache, "free_bytes", property(lambda cache: 10**5))
    assert run(context, network, taken_in).inputs.kind == "online"
    monkeypatch.setattr(Cache, "free_bytes", property(lambda cache: 10**12))
    assert run(context, network, taken_in).inputs.kind == "online"
    assert run(context, network, taken_in, wanted="stored").inputs.kind == "stored"


def test_shards_of_views_hold_no_more_rows_than_any_other(context, network, taken_in, monkeypatch):
    monkeypatch.setattr("job.stores.arrays.MAX_SHARD_ROWS", 5)
    made = run(context, network, taken_in)
    assert max(s.num_rows for s in made.features.augmented.shards) == 5
    train = taken_in[1].in_store_order("train")
    assert len(made.features.augmented) == 2 * len(train)
    monkeypatch.undo()
    other = run(context, network, taken_in)
    rows = np.arange(2 * len(train))
    assert np.allclose(made.features.augmented.rows(rows), other.features.augmented.rows(rows), rtol=1e-3, atol=1e-3)


def test_other_code_or_weights_find_nothing_of_what_is_there(context, network, taken_in):
    first, second = (run(context, network, taken_in, code_and_weights=version) for version in ("1", "2"))
    assert not set(first.stores.values()) & set(second.stores.values())
