"""Photos in a bucket: listed by the rules of local folders and tables, read in order, in bounded memory, through faults."""

import hashlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import job
from job.data.known import source_digest
from job.decoding.processes import Limits, ShardTask, decode_shards
from job.decoding.rules import DecodeRules
from job.errors import DataUnusable, StorageFailed, UsageError
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.sources import fetch
from job.sources.buckets import ObjectFiles
from job.sources.fetch import read_ordered
from job.sources.folders import list_files
from job.sources.local import LocalFiles, to_text
from job.sources.open import open_source
from job.stages.intake import intake
from job.storage.bucket.objects import Stored, is_remote
from job.storage.bucket.open import open_objects
from job.storage.workdir import Workdir
from tests.conftest import ROOT, paint_classes

AWKWARD = (
    "two words.jpg",
    " lead.jpg",
    "\u00fcn\u00ef \U0001f33c.jpg",
    "e\u0301 and \u00e9.jpg",
    "q\"uo'te#?100%+&.jpg",
    "%s\\x41.jpg",
    "back\\slash.jpg",
    "-rf.jpg",
    "..hidden.jpg",
    "a" * 200 + ".jpg",
)
CLASSES = {
    **{f"cat/{name}": b"x" for name in AWKWARD},
    "cat/garden/2024/b.JPEG": b"xx",
    "cat-2/a.jpg": b"x",
    "cat/notes.txt": b"x",
    "cat/empty.jpg": b"",
    "cat/._a.jpg": b"x",
    "cat/README.md": b"x",
    "cat/.hidden/a.jpg": b"x",
    "cat/.ipynb_checkpoints/a.jpg": b"x",
    "cat/photo.png/inside.jpg": b"x",
    "dog/": b"",
    "dog/sub/": b"",
    "__MACOSX/dog/a.jpg": b"x",
    ".cache/a.jpg": b"x",
    ".git": b"x",
    "cat/out/.transfer-job": b"",
    "cat/out/cat/thumbnail.jpg": b"x",
    "runs/first/.transfer-job": b"",
    "runs/first/stages/a.jpg": b"x",
    "second/.transfer-job": b"{}",
    "second/train/a.jpg": b"x",
    "stray.jpg": b"x",
    "test/a.jpg": b"x",
    "train": b"x",
    "zebra/": b"",
}
SPLITS = {
    "Train/cat/a.jpg": b"x",
    "Train/dog/deep/er/a.jpg": b"x",
    "Train/stray.jpg": b"x",
    "Train/.DS_Store": b"x",
    "Train/@eaDir/a.jpg": b"x",
    "Train/empty/": b"",
    "validation/cat/a.jpg": b"x",
    "val/dog/a.jpg": b"x",
    "test/only files.jpg": b"x",
    "test/out/.transfer-job": b"",
    "Train/out/.transfer-job": b"",
    "other/cat/a.jpg": b"x",
    "other/b.jpg": b"x",
    "stray.jpg": b"x",
    "@eaDir/x": b"x",
}


def write(folder, tree):
    for name, content in tree.items():
        if name.endswith("/"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return str(folder)


def put(bed, tree):
    uri = f"{bed.bucket()}/some photos/x"
    for name, content in {**tree, "": b""}.items():
        bed.put(f"{uri}/{name}", content)
    bed.put(f"{uri}-2/cat/a.jpg", b"elsewhere")
    return uri


def outcome(source):
    """All that a listing says but for what is another thing in a bucket; or what it refuses with."""
    try:
        found = source.listing()
    except DataUnusable as refusal:
        return str(refusal).replace(source.uri, "URI")
    assert all(entry.version for entry in found.entries if entry.verdict is None)
    sizes = {"labels.csv": 0, "labels.parquet": 0}  # They hold whole URIs.
    return replace(
        found, entries=tuple(e._replace(version="", num_bytes=sizes.get(e.path, e.num_bytes)) for e in found.entries)
    )


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    "tree", [CLASSES, SPLITS, {"a.jpg": b"x", ".git/a.jpg": b"x"}], ids=["classes", "splits", "neither"]
)
def test_tree_is_listed_as_the_same_tree_on_disk(bed, tmp_path, tree, labelled):
    on_disk = open_source(write(tmp_path, tree), labelled=labelled)
    in_bucket = open_source(put(bed, tree), labelled=labelled)
    assert outcome(in_bucket) == outcome(on_disk)
    if labelled and len(tree) > 2:
        assert sum(entry.verdict is None for entry in on_disk.listing().entries) > 3


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
@pytest.mark.parametrize("labelled", [True, False])
def test_table_is_judged_as_the_same_table_on_disk(bed, tmp_path, name, labelled):
    tree = {
        **{f"photos/{name}": b"x" for name in AWKWARD},
        **{f"photos/{k:02d}.jpg": b"x" for k in range(30)},
        "photos/sub/7.png": b"x",
        "photos/sub/8.png": b"x",
        "photos/sub/8.JPG": b"x",
        "photos/sub/9.txt": b"x",
        "photos/README.md": b"x",
        "out.jpg": b"x",
    }
    rows = [*(to_text(name) for name in AWKWARD), *(f"{k:02d}.jpg" for k in range(20))]
    rows += ["21", "./22.jpg", "sub/../23.jpg", "ROOT/24.jpg", "ROOT/sub/7", "sub\\7", " 25.jpg ", "25.jpg"]
    rows += ["sub/7.png/x", "sub/8", "sub/9", "sub", ".", "../out.jpg", "sub/../../out.jpg", "/etc/passwd", "gone.jpg"]
    rows += ["", "x" * 300, "a\0b"]
    labels = ["cat" if k % 3 else "dog" for k in range(len(rows))]
    splits = [("train", "val", "test")[k % 3] if k % 11 else "else" for k in range(len(rows))]
    sources = []
    for root in (write(tmp_path, tree), put(bed, tree)):
        file = tmp_path / root.partition(":")[0].strip("/").replace("/", "-") / name
        file.parent.mkdir()
        paths = [row.replace("ROOT", f"{root}/photos") for row in rows]
        if name.endswith(".csv"):
            lines = (f'"{a}",{b},{c}' for a, b, c in zip((p.replace('"', '""') for p in paths), labels, splits, strict=True))
            file.write_text("\n".join(["path,label,split", *lines]))
        else:
            pq.write_table(pa.table({"path": paths, "label": labels, "split": splits, "width": [1] * len(rows)}), file)
        if is_remote(root):
            bed.put(f"{root}/photos/{name}", file.read_bytes())
        else:
            (tmp_path / "photos" / name).write_bytes(file.read_bytes())
        sources += [
            open_source(f"{root}/photos/{name}", labelled=labelled),
            open_source(f"{root}/photos", f"{root}/photos/{name}", labelled=labelled),
            open_source(f"{root}/photos", str(file), labelled=labelled),
        ]
    found = [outcome(source) for source in sources]
    assert [e.reason for e in found[4].entries if e.path == name] == ["the labels table"]
    for local, remote in zip(found[:3], found[3:], strict=True):
        assert replace(remote, notes=()) == replace(
            local, notes=()
        )  # Notes name the root, and how rows would match below it.
    assert sum(entry.verdict is None for entry in found[3].entries) >= 30


def test_rows_may_name_photos_by_their_whole_uri_and_nothing_outside_is_read(bed):
    uri = bed.bucket()
    bed.put(f"{uri}/a/1.jpg", b"1")
    bed.put(f"{uri}/b/2.jpg", b"2")
    bed.put(f"{uri}/labels.csv", f"path,label\n{uri}/a/1.jpg,cat\n{uri}/b/2.jpg,dog\n{uri}-2/1.jpg,dog\n".encode())
    source = open_source(f"{uri}/labels.csv")
    good, gone, other = source.listing().entries
    assert [good.path, gone.path, other.verdict] == ["a/1.jpg", "b/2.jpg", "quarantined"]
    assert list(source.read([good, gone])) == [b"1", b"2"]
    outside = open_source(f"{uri}/a", f"{uri}/labels.csv").listing().entries
    assert [(e.path, e.verdict) for e in outside if "2.jpg" not in e.path] == [
        ("1.jpg", None),
        (f"{uri}-2/1.jpg", "quarantined"),
    ]
    assert "it leaves the source folder" in next(e.reason for e in outside if e.path == f"{uri}/b/2.jpg")


name = st.lists(
    st.sampled_from(["cat", "dog", "train", "val", "a.jpg", ".git", "", ".", "..", "x\\y", "\u00fc"]), min_size=1, max_size=5
).map("/".join)


@given(names=st.sets(st.one_of(name, st.text(max_size=12)), max_size=12), labelled=st.booleans())
@example(names={".TSV"}, labelled=True)
def test_each_object_is_listed_once_or_below_a_folder_that_is_ignored(names, labelled):
    stored = [Stored(name, 1, "1") for name in sorted(names)]
    try:
        found = list_files(ObjectFiles("gs://b/x", stored), labelled=labelled)
    except DataUnusable:
        assert labelled
        return
    files = [entry.path for entry in found.entries if entry.reason not in _OF_FOLDERS]
    folders = [entry.path.rstrip("/") + "/" for entry in found.entries if entry.reason in _OF_FOLDERS]
    assert len(files) == len(set(files)) and set(files) <= set(map(to_text, names))
    for name in names:
        assert to_text(name) in files or any(f"{to_text(name)}/".startswith(folder) for folder in folders), name
    for entry in found.entries:
        entry.path.encode("utf-8")


_OF_FOLDERS = (
    "a folder that systems leave beside photos",
    "a hidden folder; rename it if it is a class",
    "a folder beside the split folders",
    "a folder named like a photo",
)


def test_object_and_folder_of_one_name_are_two_entries_and_both_objects_are_read(bed):
    uri = put(bed, {"cat/a.jpg": b"a", "cat/a.jpg/b.jpg": b"b", "cat": b"c", "dog//c.jpg": b"d", "dog/../d.jpg": b"e"})
    source = open_source(uri)
    entries = source.listing().entries
    assert [e.path for e in entries] == ["cat", "cat/a.jpg", "cat/a.jpg/", "cat/a.jpg/b.jpg", "dog/../d.jpg", "dog//c.jpg"]
    photos = [e for e in entries if e.verdict is None]
    assert list(source.read(photos)) == [b"a", b"b", b"e", b"d"]


def test_folders_may_lie_deeper_than_the_stack():
    deep = "/".join("d" * 1500)
    with tempfile.TemporaryDirectory() as root:
        subprocess.run(["mkdir", "-p", f"cat/{deep}"], cwd=root, check=True)
        subprocess.run(["touch", f"cat/{deep}/a.jpg"], cwd=root, check=True)
        found = list_files(LocalFiles(Path(root)), labelled=True)
        subprocess.run(["rm", "-r", "cat"], cwd=root, check=True)  # Python itself cannot.
    assert [e.path for e in found.entries] == [f"cat/{deep}/a.jpg"]
    in_bucket = ObjectFiles("gs://b", [Stored(f"cat/{deep}/a.jpg", 1, found.entries[0].version)])
    assert list_files(in_bucket, labelled=True) == replace(found, entries=(found.entries[0]._replace(num_bytes=1),))


def test_wrong_uses_of_buckets_say_the_way_out(bed, tmp_path):
    uri = put(bed, {"cat/a.jpg": b"x"})
    (tmp_path / "labels.csv").write_text("path,label\n")
    for data, labels, said in (
        (f"{uri}/nowhere", None, "no object has a name that begins with"),
        (f"{bed.bucket()}-not/x", None, "no bucket"),
        (f"{uri}/labels.csv", None, "no such object"),
        (f"{uri}/labels.csv", f"{uri}/labels.csv", "is a table itself"),
        (uri, f"{uri}/labels.txt", r"give a table \(.csv, .tsv, .parquet, .jsonl"),
        (uri, str(tmp_path / "nowhere.csv"), "no such file"),
        (str(tmp_path), f"{uri}/labels.csv", "is on this machine"),
        ("ftp://bucket/x", None, "gs://BUCKET/PREFIX"),
    ):
        with pytest.raises(UsageError, match=said):
            open_source(data, labels).listing()
    bed.put(f"{uri}/labels.csv", b"photo,kind,by\na.jpg,cat,me\n")
    with pytest.raises(DataUnusable, match=f"^{re.escape(uri)}/labels.csv: there is no column path"):
        open_source(f"{uri}/labels.csv").listing()


@pytest.fixture
def numbered(bed):
    """A bucket with the numbers from 0 to 99 as objects, and what is wanted of it."""
    uri = bed.bucket()
    wanted = [(f"{k:03d}", bed.put(f"{uri}/{k:03d}", b"%d" % k), 3) for k in range(100)]
    bed.requests()
    return open_objects(uri), wanted


def test_bytes_come_in_the_order_asked_for_whatever_comes_first(bed, numbered):
    objects, wanted = numbered
    mixed = wanted[::-1] + wanted[::7]
    with bed.faults(latency_s=0.05, only="/0[0-9]0"):  # Every tenth is late.
        assert list(read_ordered(objects, mixed)) == [b"%d" % int(name) for name, _, _ in mixed]


def test_everything_is_right_in_the_end_where_requests_fail(bed, numbered):
    objects, wanted = numbered
    with bed.faults(statuses={429: 0.15, 503: 0.15}, resets=0.05, shorts=0.05, wrong_checksums=0.05):
        assert list(read_ordered(objects, wanted[:60])) == [b"%d" % k for k in range(60)]
    assert sum(status != 200 for _, _, status in bed.requests()) > 15


def test_version_that_is_gone_is_an_error_in_its_place(bed, numbered):
    objects, wanted = numbered
    bed.put(f"{objects.uri}/001", b"other")
    objects.remove("003")
    found = list(read_ordered(objects, [*wanted[:5], ("001", None, 0)]))
    assert [f for f in found if isinstance(f, bytes)] == [b"0", b"2", b"4", b"other"]
    assert [f.strerror for f in found if isinstance(f, OSError)] == ["it is gone since it was listed"] * 2


def test_what_ends_a_run_is_raised_when_its_turn_comes(bed, numbered, monkeypatch):
    objects, wanted = numbered
    monkeypatch.setattr("job.storage.bucket.objects.RETRY_FOR_S", 0.5)
    for status, kind in ((503, StorageFailed), (403, UsageError)):
        with bed.faults(statuses={status: 1.0}, only="/007"):
            reading = read_ordered(objects, wanted)
            assert [next(reading) for _ in range(7)] == [b"%d" % k for k in range(7)]
            with pytest.raises(kind, match=f"{objects.uri}/007"):
                next(reading)


class _Stuck:
    """Storage whose answers do not come."""

    uri = "gs://b"

    def __init__(self):
        self.may_go_on = threading.Event()

    def read(self, name, version=None):
        self.may_go_on.wait(30)
        return b""


def test_bytes_that_never_come_end_the_run_with_the_name_of_the_object(monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE_S", 0.2)
    objects = _Stuck()
    with pytest.raises(StorageFailed, match="gs://b/photo: its bytes did not arrive"):
        list(read_ordered(objects, [("photo", "1", 1)]))
    objects.may_go_on.set()


def settled(bed):
    """How many objects were asked for when no more were."""
    total, last = 0, -1
    while total != last:
        time.sleep(0.3)
        last, total = total, total + sum(re.search(r"/\d{3}(\?|$)", path) is not None for _, path, _ in bed.requests())
    return total


def fetching():
    return sum(thread.name.startswith("transfer-") for thread in threading.enumerate())


def eventually_no_thread():
    deadline = time.monotonic() + 10
    while fetching() and time.monotonic() < deadline:
        time.sleep(0.01)
    return fetching() == 0


def test_reader_that_does_not_read_makes_the_threads_stop_and_one_that_leaves_ends_them(bed, numbered):
    objects, wanted = numbered
    reading = read_ordered(objects, wanted, 4)
    assert settled(bed) == 0, "nobody has asked yet"
    next(reading)
    assert settled(bed) == 8 and fetching() == 4
    next(reading)
    assert settled(bed) == 1
    reading.close()
    assert eventually_no_thread() and settled(bed) == 0


def test_threads_are_no_more_than_objects(bed, numbered):
    objects, wanted = numbered
    assert eventually_no_thread()
    reading = read_ordered(objects, wanted[:3])
    next(reading)
    assert fetching() == 3
    assert list(reading) == [b"1", b"2"] and list(read_ordered(objects, [])) == []


def test_bytes_ahead_are_bounded_and_a_large_object_passes_alone(bed, numbered, monkeypatch):
    objects, wanted = numbered
    monkeypatch.setattr(fetch, "MAX_BYTES_AHEAD", 30)
    sizes = [10] * 6 + [100] + [10] * 6
    reading = read_ordered(objects, [(name, version, size) for (name, version, _), size in zip(wanted, sizes, strict=False)])
    next(reading)
    assert settled(bed) == 3
    for k in range(1, 6):
        assert next(reading) == b"%d" % k
    assert settled(bed) == 3, "the large one waits for those before it"
    assert next(reading) == b"6" and settled(bed) == 1
    assert next(reading) == b"7" and settled(bed) == 3


def take_in(source, context):
    config = IntakeConfig(image_size=48, max_quarantined_fraction=0.2, workers=2)
    return intake(config, source=source, listing=source.listing(), context=context)


def test_intake_from_a_bucket_gives_what_intake_from_the_folder_gives(bed, tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=130)
    (folder / "checks" / "broken.jpg").write_bytes(b"<html>")
    uri = f"{bed.bucket()}/photos"
    for file in folder.rglob("*.jpg"):
        bed.put(f"{uri}/{file.relative_to(folder)}", file.read_bytes())
    local = take_in(open_source(str(folder)), Context(Workdir(tmp_path / "other"), Telemetry(None)))
    source = open_source(uri)
    with bed.faults(latency_s=0.005, statuses={503: 0.2}, resets=0.05):
        found = take_in(source, context)
    assert (found.examples.to_parquet(), found.store_name) == (local.examples.to_parquet(), local.store_name)
    rows = range(len(local.images))
    assert np.array_equal(found.images.rows(rows), local.images.rows(rows))
    bed.requests()
    assert source_digest(source, source.listing(), context)
    assert not any(".jpg" in path for _, path, _ in bed.requests()), "no photo is read again"


def test_labels_of_a_bucket_are_corrected_by_a_table_in_a_bucket(bed, tmp_path):
    folder, uri = paint_classes(tmp_path / "photos", per_class=4), bed.bucket()
    for file in folder.rglob("*.jpg"):
        bed.put(f"{uri}/photos/{file.relative_to(folder)}", file.read_bytes())
    digest = hashlib.sha256((folder / "checks/checks-001.jpg").read_bytes()).hexdigest()
    bed.put(f"{uri}/checked.csv", f"sha256,decision\n{digest},stripes\n".encode())
    config = {"intake.image_size": 48, "intake.corrections": f"{uri}/checked.csv"}
    result = job.run(f"{uri}/photos", tmp_path / "out", config=config, stop_after="split")
    label = dict(zip(*(result.examples[name].to_pylist() for name in ("path", "label")), strict=True))
    assert label["checks/checks-001.jpg"] == "stripes"


def test_photo_that_changes_between_listing_and_reading_is_quarantined(bed, tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=6)
    uri = f"{bed.bucket()}/photos"
    for file in folder.rglob("*.jpg"):
        bed.put(f"{uri}/{file.relative_to(folder)}", file.read_bytes())
    source = open_source(uri)
    listing = source.listing()
    bed.put(f"{uri}/checks/checks-002.jpg", (folder / "checks" / "checks-001.jpg").read_bytes())
    config = IntakeConfig(image_size=48, max_quarantined_fraction=0.2)
    found = intake(config, source=source, listing=listing, context=context).examples
    reasons = {path: reason for path, reason in zip(found["path"], found["reason"], strict=True) if reason}
    assert reasons == {"checks/checks-002.jpg": "cannot be read: it is gone since it was listed"}
    assert set(take_in(source, context).examples["status"]) == {"used"}, "the next run lists it anew"


def test_decode_process_reads_much_more_than_it_has_memory(bed, tmp_path, context):
    uri, size = bed.bucket(), 9_000_000
    for k in range(36):
        bed.put(f"{uri}/{k:02d}", bytes([k]) * size)
    source = open_source(uri, labelled=False)
    entries = source.listing().entries
    store = tmp_path / "shard"
    store.write_bytes(b"")
    rules = DecodeRules(48, "squash", 10**8, 8, 20)
    (task,) = decode_shards(
        [ShardTask("key", entries, store)], source, rules, Limits(1, 30.0, 256), context.telemetry, context.stop
    )
    assert [record["num_bytes"] for record in task.records] == [size] * 36
    assert len({record["sha256"] for record in task.records}) == 36
    assert not [record["reason"] for record in task.records if "memory" in record["reason"]]


def test_threads_take_little_address_space(bed, numbered):
    """It is what the memory of a decode process is limited by; by default 32 threads would take 1 GB of it."""
    code = (
        "import re, sys; from pathlib import Path; from job.sources.open import open_source\n"
        "def mb(what): return int(re.search(what + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "source = open_source(sys.argv[1], labelled=False); entries = source.listing().entries; source.prepare()\n"
        "before = mb('VmSize'); assert len(list(source.read(entries))) == 100; print(mb('VmPeak') - before)"
    )
    command = [sys.executable, "-c", code, numbered[0].uri]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 200
