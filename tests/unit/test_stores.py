import json
from hashlib import sha256

import numpy as np
import pytest

from job.data.stores import ArrayStore, StoredViews, StoreWriter
from job.storage.workdir import Workdir


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def filled(folder, sizes=(3, 0, 4), keys="abc"):
    writer = StoreWriter(folder, (2, 2), "float16")
    start = 0
    for shard, (size, key) in enumerate(zip(sizes, keys, strict=True)):
        writer.write(shard, key, np.arange(start * 4, (start + size) * 4, dtype=np.float16).reshape(size, 2, 2))
        start += size
    return writer.finish(len(sizes))


def test_rows_come_back_by_number_in_any_order(folder):
    store = filled(folder)
    assert len(store) == 7 and store.row_shape == (2, 2) and store.shard_range(2) == range(3, 7)
    assert store.rows([6, 0, 3, 3])[:, 0, 0].tolist() == [24, 0, 12, 12]
    assert ArrayStore(folder).digest == store.digest


def test_shard_files_are_plain_npy(folder):
    filled(folder)
    assert np.load(folder / "shard-00002.npy").shape == (4, 2, 2)


def test_half_filled_store_goes_on_where_it_stopped(folder):
    writer = StoreWriter(folder, (2,), "float32")
    writer.write(1, "b", np.ones((2, 2)))
    again = StoreWriter(folder, (2,), "float32")
    assert again.committed(0, "a") is None and again.committed(1, "b").num_rows == 2
    assert again.committed(1, "made from something else") is None
    with pytest.raises(FileNotFoundError):
        ArrayStore(folder)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "record"])
def test_damage_is_noticed_by_digest(folder, damage):
    filled(folder)
    file = folder / "shard-00000.npy"
    assert ArrayStore.is_intact(folder)
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "remove":
        file.unlink()
    else:
        (folder / "index.json").write_text("{")
    assert not ArrayStore.is_intact(folder)
    assert (StoreWriter(folder, (2, 2), "float16").committed(0, "a") is None) == (damage != "record")


def test_finish_removes_what_lies_beyond(folder):
    filled(folder, sizes=(1, 1, 1))
    filled(folder, sizes=(1, 1), keys="ab")
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".npy") == ["shard-00000.npy", "shard-00001.npy"]
    assert len(json.loads((folder / "index.json").read_text())["shards"]) == 2


def test_extra_facts_of_a_shard_come_back(folder):
    writer = StoreWriter(folder, (1,), "uint8")
    path = writer.open_shard(0, capacity=5)
    writer.commit(0, "k", path, 2, extra=[{"path": "ü"}])
    assert writer.committed(0, "k").extra == [{"path": "ü"}] and len(writer.finish(1)) == 2


def test_record_is_written_when_its_array_is_on_the_disk(folder, monkeypatch):
    on_disk, write_json = [], Workdir.write_json
    monkeypatch.setattr("job.data.stores.sync", lambda path: on_disk.append(path.read_bytes()))

    def after_the_array(self, name, value, **how):
        assert on_disk == [(folder / "shard-00000.npy").read_bytes()]
        assert sha256(on_disk[0]).hexdigest() == value["sha256"]
        write_json(self, name, value, **how)

    monkeypatch.setattr(Workdir, "write_json", after_the_array)
    StoreWriter(folder, (2,), "float32").write(0, "k", np.ones((3, 2)))
    assert on_disk and json.loads((folder / "shard-00000.json").read_text())["num_rows"] == 3


def test_index_knows_shards_of_this_writer_and_of_earlier_ones(folder):
    StoreWriter(folder, (2,), "float32").write(0, "a", np.ones((2, 2)))
    StoreWriter(folder, (2,), "float32").write(1, "b", np.zeros((3, 2)))
    writer = StoreWriter(folder, (2,), "float32")
    assert writer.committed(0, "a") and writer.committed(1, "no longer") is None
    writer.write(2, "c", np.zeros((1, 2)))
    writer.write(2, "d", np.full((4, 2), 5))
    store = writer.finish(3)
    assert [(s.key, s.num_rows) for s in store.shards] == [("a", 2), ("b", 3), ("d", 4)]
    assert ArrayStore.is_intact(folder) and store.rows([8])[0, 0] == 5


def test_views_of_training_photos_are_found(tmp_path):
    plain = StoreWriter(tmp_path / "plain", (1,), "float32")
    plain.write(0, "k", np.arange(5).reshape(5, 1))
    later = StoreWriter(tmp_path / "later", (1,), "float32")
    later.write(0, "k", np.asarray([[10.1], [10.2], [30.1], [30.2]]))  # Photos in rows 1 and 3, views 1 and 2.
    views = StoredViews(plain.finish(1), later.finish(1), np.asarray([1, 3]), 3)
    gathered = views.training(np.asarray([0, 1, 1, 0]), np.asarray([0, 0, 2, 1]))
    assert np.allclose(gathered[:, 0], [1, 3, 30.2, 10.1])
