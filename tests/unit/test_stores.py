import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from job.errors import StorageFailed
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore, StoredViews, StoreWriter
from job.stores.sweeping import sweep, unwanted


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def filled(folder, sizes=(3, 0, 4), keys="abc"):
    writer = StoreWriter(folder, (2, 2), "float16")
    start = 0
    for size, key in zip(sizes, keys, strict=True):
        writer.write(key, np.arange(start * 4, (start + size) * 4, dtype=np.float16).reshape(size, 2, 2))
        start += size
    return writer.finish(list(keys))


def test_rows_come_back_by_number_in_any_order(folder):
    store = filled(folder)
    assert len(store) == 7 and store.row_shape == (2, 2) and store.shard_range(2) == range(3, 7)
    assert store.rows([6, 0, 3, 3])[:, 0, 0].tolist() == [24, 0, 12, 12]
    assert store.rows([]).shape == (0, 2, 2) and store.num_bytes == 7 * 8
    assert ArrayStore(store.index_file).digest == store.digest


def test_shard_files_are_plain_npy(folder):
    assert sorted(np.load(file).shape[0] for file in filled(folder).index_file.parent.glob("*.npy")) == [0, 3, 4]


def test_half_filled_store_goes_on_where_it_stopped(folder):
    StoreWriter(folder, (2,), "float32").write("b", np.ones((2, 2)))
    again = StoreWriter(folder, (2,), "float32")
    assert again.committed("a") is None and again.committed("b").num_rows == 2
    assert again.committed("made from something else") is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "record", "index"])
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
    else:
        (store.index_file if damage == "index" else folder / "a.json").write_text("{")
    assert ArrayStore.is_intact(store.index_file) == (damage == "record")
    assert (StoreWriter(folder, (2, 2), "float16").committed("a") is None) == (damage != "index")


def test_extra_facts_of_a_shard_come_back(folder):
    writer = StoreWriter(folder, (1,), "uint8")
    path = writer.open_shard(capacity=5)
    writer.commit("k", path, 2, extra=[{"path": "ü"}])
    assert writer.committed("k").extra == [{"path": "ü"}] and len(writer.finish(["k"])) == 2


def test_record_is_written_when_its_array_is_on_the_disk(folder, monkeypatch):
    on_disk, write_json = [], Workdir.write_json
    monkeypatch.setattr("job.stores.arrays.sync", lambda path: on_disk.append(path.read_bytes()))

    def after_the_array(self, name, value, **how):
        (array,) = folder.glob("*.npy")
        assert on_disk == [array.read_bytes()] and sha256(on_disk[0]).hexdigest() == value["sha256"]
        write_json(self, name, value, **how)

    monkeypatch.setattr(Workdir, "write_json", after_the_array)
    StoreWriter(folder, (2,), "float32").write("k", np.ones((3, 2)))
    assert on_disk and json.loads((folder / "k.json").read_text())["num_rows"] == 3


def test_store_is_put_together_from_shards_of_this_writer_and_of_earlier_ones(folder):
    StoreWriter(folder, (2,), "float32").write("a", np.ones((2, 2)))
    StoreWriter(folder, (2,), "float32").write("b", np.zeros((3, 2)))
    writer = StoreWriter(folder, (2,), "float32")
    assert writer.committed("a") and writer.committed("b")
    writer.write("c", np.full((4, 2), 5))
    store = writer.finish(["c", "a", "b"])
    assert [(s.key, s.num_rows) for s in store.shards] == [("c", 4), ("a", 2), ("b", 3)]
    assert ArrayStore.is_intact(store.index_file) and store.rows([3])[0, 0] == 5


def test_writers_of_one_shard_that_round_differently_leave_a_whole_one(folder):
    """Two runs on different machines at once: whatever comes last, array and record belong together."""
    first, second = (StoreWriter(folder, (2,), "float32") for _ in range(2))
    slow = first.open_shard(3)
    second.write("k", np.full((3, 2), 1 + 1e-7))
    mapped = second.finish(["k"]).rows([0, 1, 2])
    with slow.open("r+b") as file:
        file.seek(128)
        np.ones((3, 2), np.float32).tofile(file)
    first.commit("k", slow, 3)
    theirs, ours = second.finish(["k"]), first.finish(["k"])
    assert ArrayStore.is_intact(theirs.index_file) and ArrayStore.is_intact(ours.index_file)
    assert np.array_equal(theirs.rows([0, 1, 2]), mapped) and (ours.rows([0, 1, 2]) == 1).all()
    assert StoreWriter(folder, (2,), "float32").committed("k") is not None


def test_what_no_kept_store_needs_is_swept_away_and_nothing_else(tmp_path):
    kept = filled(tmp_path / "kept", sizes=(1, 1), keys="ab")
    also_there = filled(tmp_path / "kept", sizes=(1, 2), keys="ac")
    filled(tmp_path / "old")
    foreign = ("kept/photo.npy", f"kept/{'0' * 32}.json", f"kept/index-{'0' * 16}.json", f"old-{'0' * 16}/.a.json", "z.json")
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"key": "../../etc", "num_rows": 1, "sha256": ""}')
    sweep(unwanted(tmp_path, [kept.index_file]))
    assert ArrayStore.is_intact(kept.index_file) and not also_there.index_file.exists()
    names = {p.name for p in (tmp_path / "kept").iterdir() if p.is_file()} - {Path(name).name for name in foreign}
    assert names == {kept.index_file.name, "a.json", "b.json", *(s.array_name for s in kept.shards)}
    assert {p.name for p in (tmp_path / "old").iterdir()} == {".tmp"} and all((tmp_path / name).exists() for name in foreign)


def test_views_of_training_photos_are_found(tmp_path):
    plain = StoreWriter(tmp_path / "plain", (1,), "float32")
    plain.write("k", np.arange(5).reshape(5, 1))
    later = StoreWriter(tmp_path / "later", (1,), "float32")
    later.write("k", np.asarray([[10.1], [10.2], [30.1], [30.2]]))  # Photos in rows 1 and 3, views 1 and 2.
    views = StoredViews(plain.finish(["k"]), later.finish(["k"]), np.asarray([1, 3]), 3)
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
