"""The bit depth of a data set: found by intake from all of its 16-bit photos, by one worker or several."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from job.errors import Stopped
from job.runtime.context import Context
from job.runtime.peers import part
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.sources.folders import FolderSource
from job.stages import intake as stage
from job.stages.intake import Intake, intake
from job.storage.workdir import Workdir
from job.stores.arrays import StoreWriter
from job.stores.cache import Cache
from tests.conftest import paint
from tests.unit.deep_files import picture, png, scaled, tiff

CONFIG = IntakeConfig(image_size=48, workers=1)
SIZE = (48, 48)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("job.stores.arrays.MAX_SHARD_ROWS", 4)


def write_deep(folder, name, bits, seed=0, to_bytes=png):
    """A 16-bit photo whose largest value has so many bits."""
    values = picture(1, bits, SIZE, seed)
    values[0, 0] = 2**bits - 1
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(to_bytes(values))
    return values


@pytest.fixture
def folder(tmp_path):
    """A class of 8-bit photos, and one of 12-bit ones in files of 16: two shards each."""
    for k in range(8):
        paint(tmp_path / "photos" / "checks" / f"{k}.jpg", seed=k)
        write_deep(tmp_path / "photos", f"deep/{k}.png", 12, seed=k)
    return tmp_path / "photos"


def take_in(folder, context, config=CONFIG):
    source = FolderSource(folder.resolve())
    return intake(config, source=source, listing=source.listing(), context=context)


def fresh(path):
    return Context(Workdir(path), Telemetry(None))


def pixels(found, path):
    (index,) = np.flatnonzero(found.examples["path"] == path)
    return found.images.rows([found.examples["row"][index]])[0]


def arrays(context):
    return {path: path.stat().st_ino for path in (context.workdir.root / "cache").rglob("*.npy")}


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("to_bytes", [png, tiff])
def test_depth_is_that_of_the_set(tmp_path, context, bits, to_bytes):
    values = [write_deep(tmp_path / "photos", f"{kind}/{kind}", bits, k, to_bytes) for k, kind in enumerate("ab")]
    write_deep(tmp_path / "photos", "a/darker", 8, 3, to_bytes)
    found = take_in(tmp_path / "photos", context)
    assert found.bit_depth == bits == Intake.load(context).bit_depth
    assert np.array_equal(pixels(found, "b/b"), np.broadcast_to(scaled(values[1], bits), (*SIZE, 3)))
    assert all(f"{bits} bit scaled to 8" in reason for reason in found.examples["reason"])
    assert bool(found.notes) == (bits < 16) and all(f"{bits}-bit" in note for note in found.notes)


@pytest.mark.parametrize(("peaks", "bit_depth"), [((0,), 16), ((3,), 9), ((0, 4095), 12), ((100, 4095, 65535), 16)])
def test_dark_and_black_photos_say_less_than_bright_ones(tmp_path, context, peaks, bit_depth):
    for k, peak in enumerate(peaks):
        (tmp_path / "photos" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "deep" / f"{k}.png").write_bytes(png(np.full((*SIZE, 1), peak, np.uint16)))
    paint(tmp_path / "photos" / "checks" / "0.jpg", seed=1)
    assert take_in(tmp_path / "photos", context).bit_depth == bit_depth


def test_photos_of_8_bits_stay_as_they_are(folder, context, tmp_path):
    mixed = take_in(folder, context)
    shutil.rmtree(folder / "deep")
    paint(folder / "stripes" / "0.jpg", seed=99, kind="stripes")
    alone = take_in(folder, fresh(tmp_path / "alone"))
    assert mixed.bit_depth == 12 and alone.bit_depth == 16
    for k in range(8):
        assert np.array_equal(pixels(mixed, f"checks/{k}.jpg"), pixels(alone, f"checks/{k}.jpg"))
    assert len(set(mixed.images.keys) & set(alone.images.keys)) == 8


def test_nothing_but_the_first_round_stays_of_a_set_without_16_bits(tmp_path, context):
    for k in range(8):
        paint(tmp_path / "photos" / "ab"[k % 2] / f"{k}.jpg", seed=k)
    found = take_in(tmp_path / "photos", context)
    assert context.workdir.read_json(stage.SUMMARY).keys() == {"images"}
    records = [json.loads(file.read_text()) for file in found.images.index_file.parent.glob("[!i]*.json")]
    notes = [note for record in records for note in record["notes"].values()]
    assert len(notes) == 8 and not any("peak" in note for note in notes)


def test_depth_that_is_set_counts_and_larger_values_become_white(folder, context):
    found = take_in(folder, context, CONFIG.model_copy(update={"bit_depth": 10}))
    assert found.bit_depth == 10 == Intake.load(context).bit_depth and pixels(found, "deep/3.png").max() == 255
    reasons = dict(zip(found.examples["path"], found.examples["reason"], strict=True))
    assert "values above intake.bit_depth became white" in reasons["deep/3.png"]
    assert len(arrays(context)) == 4, "each shard was decoded once"


def test_depth_that_is_set_is_kept_for_photos_to_come(tmp_path, context):
    for k in range(2):
        paint(tmp_path / "photos" / "ab"[k] / f"{k}.jpg", seed=k)
    take_in(tmp_path / "photos", context, CONFIG.model_copy(update={"bit_depth": 12}))
    assert Intake.load(context).bit_depth == 12


def test_new_photo_of_full_range_decodes_only_the_photos_of_16_bits_again(folder, context, tmp_path):
    first = take_in(folder, context)
    before = arrays(context)
    write_deep(folder, "deep/8.png", 16, seed=8)
    second = take_in(folder, context)
    assert (first.bit_depth, second.bit_depth) == (12, 16)
    assert len(set(first.images.keys) & set(second.images.keys)) == 8, "the photos of 8 bits"
    assert before.items() <= arrays(context).items()
    made = [np.load(file, mmap_mode="r").shape[0] for file in arrays(context).keys() - before.keys()]
    assert made == [1, 1], "the new photo, by 12 bits and by 16; the old ones were scaled by 16 before their depth was known"
    (folder / "deep" / "8.png").unlink()
    assert take_in(folder, context).store_name == first.store_name


def test_store_is_the_same_whatever_was_decoded_before(folder, context, tmp_path):
    """In one go; from the shards of one depth after those of another were swept; and after another depth was set."""
    whole = take_in(folder, context)
    for shard in set(StoreWriter(whole.images.index_file.parent, (48, 48, 3), "uint8").folder.glob("*.json")):
        if not shard.name.startswith("index-") and shard.stem not in {s.key[:32] for s in whole.images.shards}:
            shard.unlink()
    inodes = arrays(context)
    again = take_in(folder, context)
    assert again.store_name == whole.store_name and arrays(context) == inodes, "nothing was decoded again"
    elsewhere = fresh(tmp_path / "elsewhere")
    take_in(folder, elsewhere, CONFIG.model_copy(update={"bit_depth": 14}))
    assert take_in(folder, elsewhere).store_name == whole.store_name


def test_stop_between_the_rounds_costs_nothing_of_the_first(folder, context, monkeypatch, tmp_path):
    decode = stage._Photos._decode

    def stopped_in_the_second_round(self, numbers, bit_depth):
        if bit_depth == 12:
            raise Stopped("stopped")
        decode(self, numbers, bit_depth)

    with monkeypatch.context() as patch:
        patch.setattr(stage._Photos, "_decode", stopped_in_the_second_round)
        with pytest.raises(Stopped):
            take_in(folder, context)
    first_round = arrays(context)
    found = take_in(folder, Context(context.workdir, Telemetry(None)))
    assert found.store_name == take_in(folder, fresh(tmp_path / "whole")).store_name
    assert len(first_round) == 4 and first_round.items() <= arrays(context).items()


class Several:
    """What a worker of several knows of the others, in threads of one process."""

    def __init__(self, count):
        self.count, self.barrier = count, threading.Barrier(count)
        self.values, self.given = [], threading.Condition()

    def worker(self, index):
        team, said = self, []

        class Peers:
            count = team.count
            is_chief = index == 0

            def own(self, items):
                return part(items, index, team.count)

            def meet(self):
                team.barrier.wait(60)

            def same(self, value):
                with team.given:
                    said.append(value)
                    if index == 0:
                        team.values.append(value)
                        team.given.notify_all()
                    team.given.wait_for(lambda: len(team.values) >= len(said), 60)
                    return team.values[len(said) - 1]

        Peers.index = index
        return Peers()


@pytest.mark.parametrize("shares_disk", [True, False])
def test_workers_agree_on_the_depth(folder, tmp_path, context, shares_disk):
    """The only bright photo is in the part of the last worker. The chief alone finds it, where nothing is shared."""
    write_deep(folder, "deep/99.png", 14, seed=99)
    alone = take_in(folder, context)
    team = Several(3)
    outs = [tmp_path / ("team" if shares_disk else f"team-{k}") for k in range(3)]
    contexts = [Context(Workdir(out), Telemetry(None), peers=team.worker(k)) for k, out in enumerate(outs)]
    found = [None] * 3

    def work(k):
        found[k] = take_in(folder, contexts[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found[1:] == [None, None] and 14 in team.values
    assert found[0].bit_depth == 14 and found[0].store_name == alone.store_name
    assert Cache(Path(outs[0]) / "cache", is_shared=False).path(found[0].store_name).exists()


def test_real_photos_of_12_bits_keep_their_levels(shared, context):
    found = take_in(shared / "data" / "layouts" / "12bit-png", context, CONFIG.model_copy(update={"image_size": 224}))
    assert found.bit_depth == 12 and set(found.examples["status"]) == {"converted"}
    levels = [len(np.unique(row)) for row in found.images.rows(range(len(found.images)))]
    assert np.median(levels) > 200 and min(levels) > 150, "17 if they are scaled by 16 bits"
