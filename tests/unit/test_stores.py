import json
import os
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from job.errors import StorageFailed
from job.storage.files import digest_of
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore, StoreWriter
from job.stores.cache import Cache
from job.stores.sweeping import sweep, unwanted
from job.stores.views import StoredViews


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def seen(folder, row_shape=(1,), dtype="int64"):
    """A writer that knows what is in the folder."""
    writer = StoreWriter(folder, row_shape, dtype)
    writer.refresh()
    return writer


def number(key):
    """The content of a row in these tests: a function of its key, as it is in a run."""
    return int(key, 36)


def add(folder, *shards):
    """Write shards of rows with these keys, each key a character or a word."""
    writer = seen(folder)
    for keys in shards:
        writer.write(list(keys), np.asarray([[number(key)] for key in keys], np.int64).reshape(-1, 1))
    return writer


def filled(folder, *shards):
    shards = shards or ("abc", "defg")
    return add(folder, *shards).finish([key for keys in shards for key in keys])


def content(store):
    return store.rows(range(len(store)))[:, 0].tolist()


def test_rows_come_back_by_number_in_any_order(folder):
    store = add(folder, "abc", "defg").finish(list("gabcdef"))
    assert len(store) == 7 and store.row_shape == (1,) and store.keys == list("gabcdef")
    assert store.rows([6, 0, 3, 3])[:, 0].tolist() == [number(key) for key in "fgcc"]
    assert store.rows([]).shape == (0, 1) and store.num_bytes == 7 * 8
    assert ArrayStore(store.index_file).digest == store.digest
    assert store.order_on_disk(np.asarray([0, 1, 6])).tolist() in ([1, 2, 0], [2, 0, 1])  # Which shard is first is open.


def test_shard_files_are_plain_npy(folder):
    assert sorted(np.load(file).shape[0] for file in filled(folder).index_file.parent.glob("*.npy")) == [3, 4]


def test_half_filled_store_goes_on_where_it_stopped(folder):
    add(folder, "ab")
    again = StoreWriter(folder, (1,), "int64")
    assert not again.has(["a"]).any()
    (shard,) = again.refresh()
    assert shard.num_rows == 2 and again.refresh() == []
    assert again.has(["a", "x", "b"]).tolist() == [True, False, True]


def test_store_that_has_grown_is_the_one_that_was_made_in_one_go(folder, tmp_path):
    before = filled(folder, "bd")
    grown = add(folder, "ace").finish(list("abcde"))
    fresh = add(tmp_path / "fresh", "abcde").finish(list("abcde"))
    assert (grown.digest, grown.index_file.name) == (fresh.digest, fresh.index_file.name)
    assert content(grown) == content(fresh) and content(before) == [number("b"), number("d")]
    assert {s.key for s in before.shards} < {s.key for s in grown.shards}


def test_rows_that_are_gone_leave_holes_and_come_back_for_nothing(folder):
    whole = filled(folder, "abcd")
    without = seen(folder).finish(list("abd"), compacts=True)
    assert without.shards == whole.shards and content(without) == [number(key) for key in "abd"]
    assert seen(folder).finish(list("abcd")).digest == whole.digest


def test_copies_of_a_photo_share_a_row(folder):
    store = add(folder, "ab").finish(list("aab"))
    assert content(store) == [10, 10, 11] and store.keys == list("aab") and sum(s.num_rows for s in store.shards) == 2


def test_shard_with_less_than_half_of_its_rows_in_use_is_copied(folder):
    whole = filled(folder, "abcdefgh", "ijkl")
    kept = list("cgijkl")
    compact = seen(folder).finish(kept, compacts=True)
    assert content(compact) == [number(key) for key in kept]
    assert sorted(s.num_rows for s in compact.shards) == [2, 4]
    assert {s.key for s in compact.shards} & {s.key for s in whole.shards} == {
        s.key for s in whole.shards if s.num_rows == 4
    }
    sweep(unwanted(folder.parent, [compact.index_file]))
    assert ArrayStore.is_intact(compact.index_file) and not whole.index_file.exists()
    assert content(ArrayStore(compact.index_file)) == [number(key) for key in kept] and len(list(folder.glob("*.npy"))) == 2


def test_many_short_shards_are_merged(folder):
    keys = [f"{k}" for k in range(40)]
    for key in keys:
        writer = add(folder, [key])
    assert len(writer.finish(keys).shards) == 40
    merged = seen(folder).finish(keys, compacts=True)
    assert len(merged.shards) == 1 and content(merged) == [number(key) for key in keys]


def test_merged_shards_keep_the_notes_that_belong_to_the_store(folder):
    writer = StoreWriter(folder, (1,), "int64")
    writer.write(list("abc"), np.zeros((3, 1)), {"a": 1, "b": 2, "refused": 3, "of a file that is gone": 4})
    writer.finish(["a"], noted=["a", "refused"], compacts=True)
    sweep(unwanted(folder.parent, [next(folder.glob("index-*.json"))]))
    (shard,) = StoreWriter(folder, (1,), "int64").refresh()
    assert list(shard.rows) == ["a"] and shard.notes == {"a": 1, "refused": 3}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "record", "index", "places"])
def test_damage_is_noticed_by_digest(folder, damage):
    store = filled(folder)
    file = folder / store.shards[0].array_name
    assert ArrayStore.is_intact(store.index_file)
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "remove":
        file.unlink()
    elif damage == "places":
        store.index_file.write_text(store.index_file.read_text().replace('"places": "', '"places": "AAAA'))
    else:
        (store.index_file if damage == "index" else file.with_name(f"{store.shards[0].key[:32]}.json")).write_text("{")
    assert not ArrayStore.is_intact(store.index_file)
    first = "abc" if store.shards[0].num_rows == 3 else "defg"
    assert seen(folder).has(list(first)).all() == (damage in ("index", "places"))
    again = add(folder, first).finish(list("abcdefg"))
    assert again.digest == store.digest and ArrayStore.is_intact(store.index_file), "what is damaged is made again"


def test_rows_in_an_undamaged_shard_are_used_if_a_copy_is_damaged(folder):
    add(folder, "ab", "bc")
    for damaged in folder.glob("*.npy"):
        whole = damaged.read_bytes()
        damaged.write_bytes(b"")
        assert seen(folder).has(["b"]).all() and not seen(folder).has(list("abc")).all()
        damaged.write_bytes(whole)
    assert seen(folder).has(list("abc")).all()


def test_extra_facts_of_a_shard_come_back(folder):
    writer = StoreWriter(folder, (1,), "uint8")
    path = writer.open_shard(capacity=5)
    writer.commit(path, ["a", "b"], {"a": {"path": "ü"}}, extra=["ö"])
    (shard,) = (other := StoreWriter(folder, (1,), "uint8")).refresh()
    assert shard.extra == ["ö"] and other.note("a") == {"path": "ü"} and other.note("b") is None
    assert len(writer.finish(["a", "b"])) == 2


def test_records_of_an_earlier_version_are_not_read(folder):
    add(folder, "ab")
    record = next(folder.glob("*.json"))
    old = {name: value for name, value in json.loads(record.read_text()).items() if name in ("key", "num_rows", "sha256")}
    record.write_text(json.dumps({**old, "extra": []}))
    assert not seen(folder).has(["a"]).any() and StoreWriter(folder, (1,), "int64").refresh() == []


def test_record_is_written_when_its_array_is_on_the_disk(folder, monkeypatch):
    on_disk, write_json = [], Workdir.write_json
    monkeypatch.setattr("job.stores.arrays.sync", lambda path: on_disk.append(path.read_bytes()))

    def after_the_array(self, name, value, **how):
        (array,) = folder.glob("*.npy")
        assert on_disk == [array.read_bytes()] and sha256(on_disk[0]).hexdigest() == value["sha256"]
        write_json(self, name, value, **how)

    monkeypatch.setattr(Workdir, "write_json", after_the_array)
    add(folder, "abc")
    assert on_disk and json.loads(next(folder.glob("*.json")).read_text())["num_rows"] == 3


def test_writers_of_one_shard_that_round_differently_leave_a_whole_one(folder):
    """Two runs on different machines at once: whatever comes last, array and record belong together."""
    first, second = (StoreWriter(folder, (2,), "float32") for _ in range(2))
    slow = first.open_shard(3)
    second.write(list("abc"), np.full((3, 2), 1 + 1e-7))
    mapped = second.finish(list("abc")).rows([0, 1, 2])
    with slow.open("r+b") as file:
        file.seek(128)
        np.ones((3, 2), np.float32).tofile(file)
    first.commit(slow, list("abc"))
    for writer in (second, first, seen(folder, (2,), "float32")):
        writer.refresh()
        assert ArrayStore.is_intact(writer.finish(list("abc")).index_file) and writer.has(list("abc")).all()
    assert (first.finish(list("abc")).rows([0, 1, 2]) == 1).all() and (mapped > 1).all()


def test_what_no_kept_store_needs_is_swept_away_and_nothing_else(tmp_path):
    kept = filled(tmp_path / "kept", "a", "b")
    also_there = filled(tmp_path / "kept", "a", "cd")
    filled(tmp_path / "old")
    foreign = ("kept/photo.npy", f"kept/{'0' * 32}.json", f"kept/index-{'0' * 16}.json", f"old-{'0' * 16}/.a.json", "z.json")
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"key": "../../etc", "num_rows": 1, "sha256": ""}')
    sweep(unwanted(tmp_path, [kept.index_file]))
    assert ArrayStore.is_intact(kept.index_file) and not also_there.index_file.exists()
    names = {p.name for p in (tmp_path / "kept").iterdir() if p.is_file()} - {Path(name).name for name in foreign}
    assert names == {kept.index_file.name, *(n for s in kept.shards for n in (f"{s.key[:32]}.json", s.array_name))}
    assert {p.name for p in (tmp_path / "old").iterdir()} == {".tmp"} and all((tmp_path / name).exists() for name in foreign)


def test_views_of_training_photos_are_found(tmp_path):
    plain = StoreWriter(tmp_path / "plain", (1,), "float32")
    plain.write(list("abcde"), np.arange(5).reshape(5, 1))
    later = StoreWriter(tmp_path / "later", (1,), "float32")
    later.write(list("abcd"), np.asarray([[10.1], [10.2], [30.1], [30.2]]))  # Photos in rows 1 and 3, views 1 and 2.
    views = StoredViews(plain.finish(list("abcde")), later.finish(list("abcd")), np.asarray([1, 3]), 3)
    gathered = views.training(np.asarray([0, 1, 1, 0]), np.asarray([0, 0, 2, 1]))
    assert np.allclose(gathered[:, 0], [1, 3, 30.2, 10.1])


def test_nothing_is_swept_while_what_a_kept_store_needs_is_not_known(tmp_path):
    kept, other = filled(tmp_path / "kept"), filled(tmp_path / "other")
    kept.index_file.write_text("{")
    sweep(unwanted(tmp_path, [kept.index_file]))
    assert ArrayStore.is_intact(other.index_file)


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="file"):
        StoreWriter(tmp_path / "file" / "store", (2,), "float32")


def test_old_stores_are_swept_with_the_shards_that_they_name(tmp_path):
    """An index and a record as version 0.5 wrote them."""
    kept, old = filled(tmp_path / "kept"), tmp_path / "old-0000000000000000"
    old.mkdir()
    shard = {"key": "k" * 64, "num_rows": 1, "sha256": "5" * 64}
    index = {"row_shape": [1], "dtype": "<f4", "shards": [shard]}
    (old / f"index-{digest_of(index)[:16]}.json").write_text(json.dumps(index))
    (old / f"{'k' * 32}.json").write_text(json.dumps({**shard, "extra": None}))
    (old / f"{'k' * 32}-{'5' * 16}.npy").write_bytes(b"")
    sweep(unwanted(tmp_path, [kept.index_file]))
    assert not old.exists() and ArrayStore.is_intact(kept.index_file)


def test_batch_opens_only_the_shards_that_it_needs_and_not_too_many_of_them(folder, monkeypatch):
    monkeypatch.setattr("job.stores.arrays._MAX_OPEN_FILES", 3)
    keys = [f"{k}" for k in range(10)]
    store = filled(folder, *([key] for key in keys))
    store.rows([4])
    assert store._file.cache_info().currsize == 1
    assert content(store) == [number(key) for key in keys] and store._file.cache_info().currsize == 3


@pytest.mark.parametrize("gap_bytes", [0, 16, 2**14])
def test_rows_with_gaps_between_them_are_those_that_were_asked_for(folder, monkeypatch, gap_bytes):
    monkeypatch.setattr("job.stores.arrays._MAX_GAP_BYTES", gap_bytes)
    keys = [f"{k}" for k in range(60)]
    store = add(folder, keys[:40], keys[40:]).finish(keys)
    rng = np.random.default_rng(0)
    for numbers in (np.sort(rng.choice(60, 30, replace=False)), rng.integers(0, 60, 80), np.arange(60)):
        assert store.rows(numbers)[:, 0].tolist() == [number(keys[k]) for k in numbers]


def test_store_whose_file_lost_its_end_says_what_to_do(folder):
    store = filled(folder, "ab")
    (file,) = folder.glob("*.npy")
    os.truncate(file, 130)
    with pytest.raises(StorageFailed, match=r"npy: the file is shorter than its record says\. Delete it"):
        store.rows([1])


def test_rows_do_not_stay_in_memory(folder):
    """Pages of memory maps counted as memory of the process."""
    writer, keys = StoreWriter(folder, (2**20,), "float32"), [str(k) for k in range(24)]
    for key in keys:
        writer.write([key], np.zeros((1, 2**20), np.float32))
    store, before_kb = writer.finish(keys), mapped_kb()
    for row in range(24):
        store.rows([row])
    assert mapped_kb() < before_kb + 48 * 1024


def mapped_kb():
    found = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def test_run_that_ends_while_another_claims_their_shared_cache_does_not_stop_it(tmp_path):
    unfinished = tmp_path / ".tmp" / "of another run"
    unfinished.mkdir(parents=True)
    (unfinished / "part").symlink_to("gone")  # As if it was removed after it was listed.
    Cache(tmp_path, is_shared=True).claim()
    assert (tmp_path / ".shared").exists()
