"""Stores in a bucket: what one machine has made another one finds."""

import time

import numpy as np
import pytest

from job.errors import StorageFailed, UsageError
from job.storage.bucket.open import open_objects
from job.stores.arrays import ArrayStore, StoreWriter
from job.stores.cache import Cache
from job.stores.exchange import Exchange, complete, is_listed, open_store, sweep_bucket
from job.stores.sweeping import wanted


@pytest.fixture
def uri(bed):
    return f"{bed.bucket()}/cache"


def cache_on(folder, uri):
    return Cache(folder, is_shared=False, objects=open_objects(uri))


def write(cache, keys, folder="images-1111111111111111"):
    """Write a shard of two rows for each character."""
    writer = StoreWriter(cache.path(folder), (3,), "uint8")
    for key in keys:
        writer.write(rows(key), np.full((2, 3), ord(key), np.uint8))
    return writer


def rows(keys):
    return [f"{key}{row}" for key in keys for row in range(2)]


def found(cache, keys, folder="images-1111111111111111"):
    """For each character, whether this machine has its rows."""
    writer = StoreWriter(cache.path(folder), (3,), "uint8")
    writer.refresh()
    return [bool(writer.has(rows(key)).all()) for key in keys]


def any_of(keys):
    return lambda shard: not set(rows(keys)).isdisjoint(shard.rows)


def test_another_machine_finds_shards_and_the_whole_store(bed, tmp_path, uri):
    first, second = cache_on(tmp_path / "a", uri), cache_on(tmp_path / "b", uri)
    with Exchange(first, ["images-1111111111111111"]) as exchange:
        writer = write(first, "ab")
        exchange.flush()
        with Exchange(second, ["images-1111111111111111"]) as other:
            other.fetch("images-1111111111111111", any_of("bc"))
        assert found(second, "abc") == [False, True, False]
        name = first.name(writer.finish(rows("ab")).index_file)
    store = open_store(cache_on(tmp_path / "c", uri), name)
    assert store.rows([0, 3]).tolist() == [[97] * 3, [98] * 3]


def test_what_is_there_is_neither_fetched_nor_uploaded_again(bed, tmp_path, uri):
    cache = cache_on(tmp_path / "a", uri)
    with Exchange(cache, ["images-1111111111111111"]):
        name = cache.name(write(cache, "ab").finish(rows("ab")).index_file)
    bed.requests()
    with Exchange(cache, ["images-1111111111111111"]) as exchange:
        exchange.fetch("images-1111111111111111", any_of("ab"))
    open_store(cache, name)
    assert {method for method, _, _ in bed.requests()} <= {"GET", "HEAD"}
    assert open_store(cache, name).rows([0]).tolist() == [[97] * 3]


def test_what_was_fetched_does_not_go_up_again(bed, tmp_path, uri):
    first, second = cache_on(tmp_path / "a", uri), cache_on(tmp_path / "b", uri)
    with Exchange(second, ["images-1111111111111111"]) as exchange:
        exchange.flush()
        with Exchange(first, ["images-1111111111111111"]):
            write(first, "ab")
        bed.requests()
        exchange.fetch("images-1111111111111111", any_of("ab"))
    assert {method for method, _, _ in bed.requests()} <= {"GET", "HEAD"}


def test_damaged_shard_is_not_taken_and_is_replaced(bed, tmp_path, uri):
    cache = cache_on(tmp_path / "a", uri)
    with Exchange(cache, ["images-1111111111111111"]):
        name = cache.name(write(cache, "a").finish(rows("a")).index_file)
    array = next(n for n in bed.names(uri) if n.endswith(".npy"))
    whole = bed.get(array)
    bed.put(array, whole[:-1] + b"x")
    other = cache_on(tmp_path / "b", uri)
    with Exchange(other, ["images-1111111111111111"]) as exchange:
        exchange.fetch("images-1111111111111111", any_of("a"))
        assert found(other, "a") == [False]
        write(other, "a")
    assert bed.get(array) == whole
    complete(cache_on(tmp_path / "c", uri), name)
    assert ArrayStore.is_intact(tmp_path / "c" / name)


def test_damage_on_this_machine_is_no_damage_in_the_bucket(bed, tmp_path, uri):
    first, folder = cache_on(tmp_path / "a", uri), "images-1111111111111111"
    with Exchange(first, [folder]):
        write(first, "a").finish(rows("a"))
    before = bed.names(uri)
    other = cache_on(tmp_path / "b", uri)
    array = other.path(folder) / next(name for name in before if name.endswith(".npy")).rpartition("/")[2]
    array.parent.mkdir(parents=True)
    array.write_bytes(b"")  # The power failed before it was on the disk.
    with Exchange(other, [folder]) as exchange:
        exchange.fetch(folder, any_of("a"))
    assert found(other, "a") == [True] and bed.names(uri) == before


def test_shard_that_is_damaged_here_does_not_end_the_run(bed, tmp_path, uri):
    cache, folder = cache_on(tmp_path / "a", uri), "images-1111111111111111"
    write(cache, "ab")
    cache.path(f"{folder}/{'c' * 32}.json").write_bytes(b"half")
    lost, *_ = sorted(cache.path(folder).glob("*.npy"))
    lost.unlink()
    with Exchange(cache, [folder]):
        pass
    names = {name.rpartition("/")[2] for name in bed.names(uri)}
    assert len(names) == 2 and not [n for n in names if n[:32] in (lost.name[:32], "c" * 32)]


def test_missing_store_raises_where_it_is_opened(tmp_path, uri):
    with pytest.raises(FileNotFoundError):
        open_store(cache_on(tmp_path / "a", uri), "images-1111111111111111/index-2222222222222222.json")


def test_stage_fails_where_its_stores_do_not_reach_the_bucket(bed, tmp_path, uri, monkeypatch):
    monkeypatch.setattr("job.storage.bucket.objects.RETRY_FOR_S", 0.5)
    cache = cache_on(tmp_path / "a", uri)
    failing = bed.faults(statuses={503: 1.0}, only="(POST|PUT) ")
    with (
        failing,
        pytest.raises(StorageFailed, match=r"\.npy: (Google.*|S3) failed"),
        Exchange(cache, ["images-1111111111111111"]),
    ):
        write(cache, "a")


def test_stores_of_earlier_settings_leave_the_bucket(bed, tmp_path, uri):
    cache = cache_on(tmp_path / "a", uri)
    with Exchange(cache, ["images-1111111111111111", "images-2222222222222222"]):
        write(cache, "a", "images-1111111111111111").finish(rows("a"))
        kept = write(cache, "b", "images-2222222222222222").finish(rows("b"))
    sweep_bucket(cache, wanted([kept.index_file]))
    assert {name.split("/")[-2] for name in bed.names(uri)} == {"images-2222222222222222"}
    assert open_store(cache_on(tmp_path / "b", uri), cache.name(kept.index_file)).rows([1]).tolist() == [[98] * 3]


def test_stores_that_other_runs_share_stay_in_the_bucket(bed, tmp_path, uri):
    cache = Cache(tmp_path / "a", is_shared=False, objects=open_objects(uri))
    others = Cache(tmp_path / "b", is_shared=True, objects=open_objects(uri))
    others.claim()
    with Exchange(others, ["images-2222222222222222"]):
        write(others, "b", "images-2222222222222222").finish(rows("b"))
    with Exchange(cache, ["images-1111111111111111"]):
        kept = write(cache, "a", "images-1111111111111111").finish(rows("a"))
    before = bed.names(uri)
    sweep_bucket(cache, wanted([kept.index_file]))
    assert bed.names(uri) == before and any("images-2222222222222222" in name for name in before)


def test_what_is_no_store_stays_in_the_bucket(bed, tmp_path, uri):
    bed.put(f"{uri}/notes.txt", b"the user's own")
    sweep_bucket(cache_on(tmp_path / "a", uri), set())
    assert bed.names(uri) == [f"{uri}/notes.txt"]


def test_missing_permission_to_share_stores_is_told_before_work_begins(bed, tmp_path, uri):
    cache = Cache(tmp_path / "a", is_shared=True, objects=open_objects(uri))
    with bed.faults(statuses={403: 1.0}, only="^(POST|PUT)"), pytest.raises(UsageError, match="no permission"):
        cache.claim()


def test_after_an_error_nothing_more_goes_up(bed, tmp_path, uri):
    cache = cache_on(tmp_path / "a", uri)
    with bed.faults(latency_s=0.3), pytest.raises(ZeroDivisionError), Exchange(cache, ["images-1111111111111111"]):
        write(cache, "abcdefghijklmnopqrstuvwxyz")
        time.sleep(2.5)  # The thread has begun.
        raise ZeroDivisionError
    time.sleep(1.5)
    left = len(bed.names(uri))
    time.sleep(1.0)
    assert len(bed.names(uri)) == left < 52


def test_whether_a_store_is_there_is_known_without_fetching_it(bed, tmp_path, uri):
    cache = cache_on(tmp_path / "a", uri)
    with Exchange(cache, ["images-1111111111111111"]):
        name = cache.name(write(cache, "ab").finish(rows("ab")).index_file)
    other = cache_on(tmp_path / "b", uri)
    assert is_listed(other, name) and not list((tmp_path / "b").rglob("*.npy"))
    assert not is_listed(other, "images-1111111111111111/index-0.json")


def test_index_of_a_store_whose_rows_lie_elsewhere_now_replaces_the_one_in_the_bucket(bed, tmp_path, uri):
    first, second, folder = cache_on(tmp_path / "a", uri), cache_on(tmp_path / "b", uri), "images-1111111111111111"
    with Exchange(first, [folder]):
        name = first.name(write(first, "ab").finish(rows("a")).index_file)
    with Exchange(second, [folder]):
        writer = StoreWriter(second.path(folder), (3,), "uint8")
        writer.write(rows("a")[::-1], np.full((2, 3), ord("a"), np.uint8))
        kept = writer.finish(rows("a"))
    assert second.name(kept.index_file) == name
    sweep_bucket(second, wanted([kept.index_file]))
    store = open_store(cache_on(tmp_path / "c", uri), name)
    assert store.shards == kept.shards and store.rows([0, 1]).tolist() == [[97] * 3] * 2
