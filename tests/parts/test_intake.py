"""intake and its workers, with real processes."""

import os
import select
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from job.data.known import source_digest
from job.decoding import processes as workers
from job.decoding.decode import decode
from job.decoding.processes import Limits, ShardTask, decode_shards
from job.decoding.rules import DecodeRules
from job.errors import DataUnusable, Stopped, StorageFailed, code_of
from job.pipeline.output import owned
from job.runtime.cgroups import usable_cores
from job.runtime.context import Context
from job.runtime.session import Session
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.sources.folders import FolderSource
from job.stages.intake import Intake, intake
from job.storage.workdir import Workdir
from job.stores.arrays import HEADER_BYTES, StoreWriter
from tests.conftest import paint, paint_classes, quick_settings, run_job

CONFIG = IntakeConfig(image_size=48, max_quarantined_fraction=0.2)


def take_in(folder, context, config=CONFIG):
    source = FolderSource(folder.resolve())
    return intake(config, source=source, listing=source.listing(), context=context)


@pytest.fixture
def folder(tmp_path):
    return paint_classes(tmp_path / "photos", per_class=6)


def test_store_holds_what_the_decoder_gives_in_the_order_of_the_digests(folder, context):
    (folder / "checks" / "checks-002.jpg").write_bytes(b"not a picture")
    found = take_in(folder, context)
    rules = DecodeRules(48, "squash", CONFIG.max_pixels, CONFIG.min_side_px, CONFIG.max_aspect_ratio)
    assert found.examples["status"].tolist().count("quarantined") == 1
    for path, row in zip(found.examples["path"], found.examples["row"], strict=True):
        if row >= 0:
            assert np.array_equal(found.images.rows([row])[0], decode((folder / path).read_bytes(), rules).pixels_HWC)
    by_digest = [row for _, row in sorted(zip(found.examples["sha256"], found.examples["row"], strict=True)) if row >= 0]
    assert by_digest == list(range(len(found.images)))


def test_table_read_back_is_the_same(folder, context):
    found = take_in(folder, context)
    again = Intake.load(context)
    assert again.examples.to_parquet() == found.examples.to_parquet()


def test_files_that_are_no_photos_and_not_called_so_are_ignored(folder, context):
    (folder / "checks" / "notes.txt").write_text("remember the milk")
    shutil.copy(folder / "checks" / "checks-000.jpg", folder / "checks" / "photo.txt")
    statuses = dict(zip(*(take_in(folder, context).examples[c] for c in ("path", "status")), strict=True))
    assert statuses["checks/notes.txt"] == "ignored" and statuses["checks/photo.txt"] == "used"


@pytest.mark.parametrize(
    ("first", "second"), [("Cat", "cat"), ("red rose", "red  rose"), ("\u00e9", "e\u0301"), ("1", "1.0")]
)
def test_classes_that_look_the_same_are_refused(tmp_path, context, first, second):
    for k, name in enumerate((first, second)):
        paint(tmp_path / "photos" / name / "a.jpg", k)
    with pytest.raises(DataUnusable, match="differ only by"):
        take_in(tmp_path / "photos", context)


def test_one_class_is_refused(tmp_path, context):
    paint(tmp_path / "photos" / "cat" / "a.jpg", 1)
    with pytest.raises(DataUnusable, match="There is one class"):
        take_in(tmp_path / "photos", context)


def test_source_digest_changes_with_content_and_not_with_times(folder, context):
    take_in(folder, context)
    source = FolderSource(folder.resolve())

    def digest():
        return source_digest(source, source.listing(), context)

    before = digest()
    photo = folder / "checks" / "checks-000.jpg"
    os.utime(photo, ns=(1, 1))
    assert digest() == before
    data = bytearray(photo.read_bytes())
    data[-3] ^= 1
    photo.write_bytes(bytes(data))
    changed = digest()
    assert changed != before
    photo.rename(folder / "checks" / "renamed.jpg")
    assert digest() not in (before, changed)


@pytest.mark.parametrize(("num_workers", "rows_per_shard", "side_by_side"), [(1, 4, 1), (2, 4, 2), (64, 4, 3), (2, 99, 1)])
def test_time_of_decoding_is_that_of_processes_side_by_side(
    tmp_path, context, monkeypatch, num_workers, rows_per_shard, side_by_side
):
    monkeypatch.setattr("job.stores.arrays.MAX_SHARD_ROWS", rows_per_shard)
    folder = paint_classes(tmp_path / "photos", per_class=6)
    take_in(folder, context, CONFIG.model_copy(update={"workers": num_workers}))
    cpu_s = context.telemetry.decoders_cpu_s
    assert cpu_s > 0
    decode_s = context.telemetry.take_spent()[0]["decode"]
    assert decode_s == pytest.approx(cpu_s / min(side_by_side, usable_cores()))
    take_in(folder, context)
    assert "decode" not in context.telemetry.take_spent()[0], "nothing was decoded again"


class _Source(FolderSource):
    """Hands out bytes by which the worker can be made to fall over; subclassing keeps it picklable."""

    def read(self, entries):
        for entry, payload in zip(entries, super().read(entries), strict=True):
            if "crash" in entry.path:
                os.kill(os.getpid(), 9)
            if "hang" in entry.path:
                time.sleep(60)
            yield payload


def test_crashing_and_hanging_photos_cost_only_themselves(folder, context):
    for name in ("a-crash.jpg", "b-hang.jpg", "z-crash.jpg"):
        paint(folder / "checks" / name, 50)
    source = _Source(folder.resolve())
    found = intake(
        IntakeConfig(image_size=48, max_quarantined_fraction=0.5, decode_timeout_s=4.0, workers=2),
        source=source,
        listing=source.listing(),
        context=context,
    )
    reasons = {
        p: r for p, s, r in zip(*(found.examples[c] for c in ("path", "status", "reason")), strict=True) if s != "used"
    }
    assert set(reasons) == {"checks/a-crash.jpg", "checks/b-hang.jpg", "checks/z-crash.jpg"}
    assert "crashed on it twice" in reasons["checks/a-crash.jpg"] and "decode_timeout_s" in reasons["checks/b-hang.jpg"]
    assert len(found.images) == 12


def test_refusals_of_the_moment_are_not_kept_for_the_next_run(folder, context):
    """A process that hung or crashed says something about the machine: another run tries these photos again."""
    for name in ("a-crash.jpg", "b-hang.jpg"):
        paint(folder / "checks" / name, 50)
    config = IntakeConfig(image_size=48, max_quarantined_fraction=0.5, decode_timeout_s=4.0, workers=1)
    source = _Source(folder.resolve())
    first = intake(config, source=source, listing=source.listing(), context=context)
    assert first.examples["status"].tolist().count("quarantined") == 2
    plain = FolderSource(folder.resolve())
    before = source_digest(plain, plain.listing(), context)
    again = take_in(folder, context, config)
    assert set(again.examples["status"]) == {"used"} and len(again.images) == len(first.images) + 2
    assert Intake.load(context).store_name != first.store_name
    assert source_digest(plain, plain.listing(), context) == before  # The bytes are what they were.


def known_file(context):
    (file,) = context.cache.root.glob("files-*/known.parquet")
    return file


def test_photo_that_could_not_be_read_is_read_again_though_size_and_time_are_the_same(folder, context):
    take_in(folder, context)
    source = FolderSource(folder.resolve())
    readable = source_digest(source, source.listing(), context)
    known = known_file(context)
    table = pq.read_table(known)
    digests = table["sha256"].to_pylist()
    digests[table["path"].to_pylist().index("checks/checks-000.jpg")] = ""  # As an intake leaves it that could not read.
    pq.write_table(table.set_column(3, "sha256", pa.array(digests)), known)
    assert source_digest(source, source.listing(), context) == readable


class _Tried(FolderSource):
    """Writes down each file that a worker begins with."""

    def read(self, entries):
        for entry, payload in zip(entries, super().read(entries), strict=True):
            with open(self.log, "a") as log:
                log.write(entry.path + "\n")
            yield payload

    @property
    def log(self):
        return self.root.parent / "tried"

    def tried(self):
        return Counter(self.log.read_text().splitlines())


def test_touched_photo_is_read_once_and_not_in_every_run(folder, context):
    take_in(folder, context)
    source = _Tried(folder.resolve())
    before = source_digest(source, source.listing(), context)
    assert not source.log.exists(), "nothing has changed"
    for name in ("checks-000.jpg", "checks-001.jpg"):
        os.utime(folder / "checks" / name, ns=(1, 1))
    for _ in range(3):
        with owned(context, Session()):
            assert source_digest(source, source.listing(), context) == before
    assert source.tried() == {"checks/checks-000.jpg": 1, "checks/checks-001.jpg": 1}
    paint(folder / "checks" / "checks-000.jpg", seed=4711)
    for _ in range(2):
        with owned(context, Session()):
            assert source_digest(source, source.listing(), context) != before
    assert source.tried() == {"checks/checks-000.jpg": 2, "checks/checks-001.jpg": 1}


def test_who_does_not_own_the_directory_writes_nothing_where_a_photo_was_touched(folder, context):
    """The other workers of a run, which ask again and again, and dry runs."""
    take_in(folder, context)
    known = known_file(context)
    content = known.read_bytes()
    os.utime(folder / "checks" / "checks-000.jpg", ns=(1, 1))
    source = _Tried(folder.resolve())
    assert len({source_digest(source, source.listing(), context) for _ in range(3)}) == 1
    assert known.read_bytes() == content


def test_photo_that_is_gone_when_it_is_compared_is_not_taken_for_compared(folder, context):
    take_in(folder, context)
    photo, source = folder / "checks" / "checks-000.jpg", FolderSource(folder.resolve())
    before = source_digest(source, source.listing(), context)
    paint(photo, seed=4711)
    listing = source.listing()
    photo.rename(folder.parent / "aside.jpg")
    with owned(context, Session()):
        source_digest(source, listing, context)
    (folder.parent / "aside.jpg").rename(photo)
    assert source_digest(source, listing, context) != before


def decode_one_shard(source, context, tmp_path, timeout_s=30.0):
    entries = source.listing().entries
    store = tmp_path / "shard"
    store.write_bytes(b"")
    rules = DecodeRules(48, "squash", 10**8, 8, 20)
    (task,) = decode_shards(
        [ShardTask("key", entries, store)], source, rules, Limits(1, timeout_s, 1024), context.telemetry, context.stop
    )
    pixels = np.frombuffer(store.read_bytes()[HEADER_BYTES:], np.uint8).reshape(-1, 48, 48, 3)
    good = [e for e, r in zip(entries, task.records, strict=True) if r["status"] == "used"]
    assert len(pixels) == len(good)
    for entry, stored in zip(good, pixels, strict=True):
        assert np.array_equal(stored, decode((source.root / entry.path).read_bytes(), rules).pixels_HWC)
    return entries, task.records


def test_worker_killed_from_outside_costs_one_file_a_second_try(tmp_path, context, monkeypatch):
    source = _Tried(paint_classes(tmp_path / "photos", per_class=100).resolve())
    killed = []
    take = workers._Worker._take_records

    def take_and_kill(self):
        if source.log.exists() and source.log.read_text().count("\n") >= 60 and not killed:
            killed.append(self._process.pid)  # With records in the pipe that nobody has read yet.
            self._process.kill()
            self._process.join()
        return take(self)

    monkeypatch.setattr(workers._Worker, "_take_records", take_and_kill)
    entries, records = decode_one_shard(source, context, tmp_path)
    assert killed and [r["status"] for r in records] == ["used"] * 200
    assert [r["num_bytes"] for r in records] == [e.num_bytes for e in entries]
    tried = source.tried()
    assert tried.keys() == {e.path for e in entries} and tried.total() <= 201


class _EndsWhileItStarts(FolderSource):
    """Its readers end before the first photo, as a file says: by a signal, or by a module that is missing."""

    def prepare(self):
        how = (self.root.parent / "ends").read_text()
        if how == "missing":
            raise ImportError("No module named 'pillow_of_another_world'")
        if how == "15":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # As it is before the first line of the worker runs.
        os.kill(os.getpid(), int(how))


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [("9", 75, "killed while it started"), ("15", 75, "killed while it started"), ("missing", 1, "of_another_world")],
)
def test_worker_that_ends_while_it_starts_is_worth_a_retry_unless_it_is_a_bug(folder, context, how, code, said):
    (folder.parent / "ends").write_text(how)
    source = _EndsWhileItStarts(folder.resolve())
    with pytest.raises(Exception, match=said) as caught:
        intake(CONFIG, source=source, listing=source.listing(), context=context)
    assert code_of(caught.value) == code


class _KilledOnce(_Tried):
    """Its first reader dies in the middle, as if the system had killed it."""

    def read(self, entries):
        mark = self.root.parent / "killed"
        for entry, payload in zip(entries, super().read(entries), strict=True):
            if entry.path == "checks/checks-003.jpg" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), 9)
            yield payload


def test_worker_killed_in_the_middle_costs_a_second_try_and_no_pixels(folder, context, tmp_path):
    whole = take_in(folder, context)
    source = _KilledOnce(folder.resolve())
    elsewhere = Context(Workdir(tmp_path / "elsewhere"), Telemetry(None))
    found = intake(CONFIG, source=source, listing=source.listing(), context=elsewhere)
    assert (tmp_path / "killed").exists()
    assert found.examples.to_parquet() == whole.examples.to_parquet()
    rows = range(len(whole.images))
    assert np.array_equal(found.images.rows(rows), whole.images.rows(rows))
    assert {path for path, count in source.tried().items() if count > 1} == {"checks/checks-003.jpg"}


class _HangsAt(_Tried):
    def read(self, entries):
        for entry, payload in zip(entries, super().read(entries), strict=True):
            if "hang" in entry.path:
                time.sleep(600)
            yield payload


def test_hang_is_blamed_on_its_photo_and_costs_no_other_a_second_try(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=50)
    paint(folder / "checks" / "checks-025-hang.jpg", 50)
    source = _HangsAt(folder.resolve())
    entries, records = decode_one_shard(source, context, tmp_path, timeout_s=4.0)
    blamed = {e.path for e, r in zip(entries, records, strict=True) if r["status"] != "used"}
    assert blamed == {"checks/checks-025-hang.jpg"}
    assert set(source.tried().values()) == {1} and source.tried().keys() == {e.path for e in entries}


def test_photo_that_is_done_just_when_its_time_is_up_is_kept_and_the_next_is_not_blamed(tmp_path, context, monkeypatch):
    source = _Tried(paint_classes(tmp_path / "photos", per_class=100).resolve())
    check, ended = workers._Worker.check_time, []

    def end_with_unread_records(self):
        if self._is_ready and not ended and self._process.is_alive():
            select.select([self._records.fileno()], [], [])
            ended.append(True)
            self._timed_out = True
            self._process.kill()
        elif not ended:
            check(self)

    monkeypatch.setattr(workers._Worker, "check_time", end_with_unread_records)
    _, records = decode_one_shard(source, context, tmp_path)
    assert ended and [r["status"] for r in records] == ["used"] * 200


def test_shard_that_cannot_be_saved_ends_the_run_and_leaves_no_index(folder, context, monkeypatch):
    def disk_full(*_):
        raise StorageFailed("no space left")

    monkeypatch.setattr("job.stores.arrays.StoreWriter.commit", disk_full)
    with pytest.raises(StorageFailed, match="no space left"):
        take_in(folder, context)
    assert not list(Path(context.workdir.root).rglob("index-*.json"))


def test_what_is_decoded_when_the_stop_comes_is_saved(tmp_path, context, monkeypatch):
    monkeypatch.setattr("job.stores.arrays.MAX_SHARD_ROWS", 4)
    folder = paint_classes(tmp_path / "photos", per_class=40)
    commit = StoreWriter.commit

    def commit_and_stop(*arguments):
        context.stop.request()
        return commit(*arguments)

    monkeypatch.setattr("job.stores.arrays.StoreWriter.commit", commit_and_stop)
    with pytest.raises(Stopped):
        take_in(folder, context)
    saved = {p: p.stat().st_ino for p in (context.workdir.root / "cache").rglob("*.npy")}
    assert 0 < len(saved) < 20
    monkeypatch.undo()
    monkeypatch.setattr("job.stores.arrays.MAX_SHARD_ROWS", 4)
    again = Context(context.workdir, Telemetry(None))
    assert len(take_in(folder, again).images) == 80
    assert all(path.stat().st_ino == inode for path, inode in saved.items())


def test_memory_limit_turns_a_greedy_photo_away(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=3)
    Image.new("RGB", (9000, 9000), "white").save(folder / "checks" / "huge.png")
    found = take_in(
        folder, context, IntakeConfig(image_size=48, max_quarantined_fraction=0.9, max_pixels=10**8, worker_memory_mb=256)
    )
    (index,) = np.flatnonzero(found.examples["path"] == "checks/huge.png")
    assert "memory" in found.examples["reason"][index]


def test_memory_that_ends_at_any_point_costs_only_that_photo(tmp_path, context):
    """While loading, converting, turning or resizing: the larger the photo, the earlier."""
    folder = paint_classes(tmp_path / "photos", per_class=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    sides = range(5000, 8500, 500)
    for side in sides:
        Image.new("RGB", (side, side)).save(folder / "checks" / f"{side}.png", compress_level=1, exif=exif)
    config = IntakeConfig(image_size=48, max_quarantined_fraction=1, max_pixels=10**8, worker_memory_mb=256, workers=1)
    found = take_in(folder, context, config).examples
    outcome = dict(zip(found["path"], zip(found["status"], found["reason"], strict=True), strict=True))
    large = [outcome[f"checks/{side}.png"] for side in sides]
    assert large[0][0] == "used" and large[-1][0] == "quarantined"
    assert all("worker_memory_mb" in reason for status, reason in large if status == "quarantined")
    assert sum(status == "used" for status, _ in outcome.values()) == 6 + sum(status == "used" for status, _ in large)


def test_stop_is_obeyed_between_photos(folder, context):
    context.stop.request()
    with pytest.raises(Stopped):
        take_in(folder, context)
    assert not list(Path(context.workdir.root).rglob("index-*.json"))


def test_folder_for_temporary_files_may_have_a_long_name(folder, tmp_path):
    long = tmp_path / ("a" * 60) / ("b" * 60)  # A socket's path has 107 bytes.
    long.mkdir(parents=True)
    arguments = ("run", "--data", folder, "--out", tmp_path / "out", "--stop-after", "split", *quick_settings())
    done = run_job(*arguments, TMPDIR=str(long))
    assert "AF_UNIX" not in done.stderr and "split     done" in done.stderr, done.stderr
