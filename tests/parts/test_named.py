"""Named data sets, against tensorflow-datasets itself: the tests prepare real ones, and never need a network."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from job.data.known import source_digest
from job.decoding.decode import decode
from job.decoding.processes import Limits, ShardTask, decode_shards
from job.decoding.rules import DecodeRules
from job.errors import DataUnusable, StorageFailed, UsageError
from job.sections import IntakeConfig
from job.sources.folders import FolderSource
from job.sources.tfds import open_named
from job.stages.intake import intake
from job.stores.arrays import StoreWriter
from tests.conftest import ROOT, paint

tfds = pytest.importorskip("tensorflow_datasets")
from tests.unit import named_builders as builders  # noqa: E402

CONFIG = IntakeConfig(image_size=builders.SIDE_PX, workers=2)
RULES = DecodeRules(builders.SIDE_PX, "squash", CONFIG.max_pixels, CONFIG.min_side_px, CONFIG.max_aspect_ratio)
TEXT = "tensorflow_datasets.core.features.text_feature.Text"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepared in shards by tensorflow-datasets. Tests must not change it."""
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (builders.PaintedPhotos, builders.OnlyTraining, builders.NothingToTrain, builders.HiddenLabels):
        builders.prepare(builder, folder)
    return folder


@pytest.fixture
def own_dir(data_dir, tmp_path):
    """A copy to damage."""
    return shutil.copytree(data_dir, tmp_path / "tfds")


@pytest.fixture
def no_network(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def by_tensorflow(folder, split):
    """Label and encoded bytes of each example, as tensorflow-datasets gives them in the order of the files."""
    builder = tfds.builder_from_directory(folder)
    examples = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    names = builder.info.features["label"].names
    return [(names[int(e["label"])], e["image"].numpy()) for e in examples]


def shards_of(data_dir, name="painted_photos", split="train"):
    return sorted((data_dir / name / "1.2.0").glob(f"{name}-{split}.tfrecord*"))


def read(source, entries=None):
    return list(source.read([e for e in (entries or source.listing().entries) if e.verdict is None]))


@pytest.mark.parametrize(("split", "ours"), [("train", "train"), ("validation", "val"), ("test", "test")])
def test_bytes_labels_and_order_are_those_of_tensorflow_datasets(data_dir, split, ours):
    source = open_named("tfds:painted_photos", str(data_dir))
    entries = [e for e in source.listing().entries if e.path.startswith(f"{split}/")]
    assert len(shards_of(data_dir, split=split)) == 2
    assert {e.split for e in entries} == {ours}
    theirs = by_tensorflow(data_dir / "painted_photos" / "1.2.0", split)
    assert [(e.label, photo) for e, photo in zip(entries, read(source, entries), strict=True)] == theirs
    assert [e.num_bytes for e in entries] == [len(photo) for _, photo in theirs]


def test_a_path_names_the_same_example_for_tensorflow_datasets(data_dir):
    source = open_named("tfds:painted_photos", str(data_dir))
    entries = {e.path: e for e in source.listing().entries}
    for number in (0, 7, 23, 39):
        (theirs,) = by_tensorflow(data_dir / "painted_photos" / "1.2.0", f"train[{number}:{number + 1}]")
        assert read(source, [entries[f"train/{number:06d}"]]) == [theirs[1]]


def test_listing_is_sorted_and_has_the_classes_sorted(data_dir):
    listing = open_named("tfds:painted_photos", str(data_dir)).listing()
    assert listing.class_names == ("checks", "stripes")
    assert [e.path for e in listing.entries] == sorted(e.path for e in listing.entries)
    assert len(listing.entries) == 60


def test_entries_may_be_read_in_any_order_and_by_another_process(data_dir):
    source = open_named("tfds:painted_photos", str(data_dir))
    entries = source.listing().entries
    by_path = dict(zip([e.path for e in entries], read(source), strict=True))
    shuffled = np.random.default_rng(0).permutation(len(entries))
    again = pickle.loads(pickle.dumps(source)).read([entries[k] for k in shuffled])
    assert list(again) == [by_path[entries[k].path] for k in shuffled]


def test_the_same_data_set_prepared_elsewhere_has_the_same_listing(data_dir, tmp_path):
    builders.prepare(builders.PaintedPhotos, tmp_path)
    here, there = (open_named("tfds:painted_photos", str(folder)) for folder in (data_dir, tmp_path))
    assert here.listing() == there.listing()
    assert here.uri == there.uri == "tfds:painted_photos:1.2.0"


def test_tensorflow_is_not_needed_to_list_and_read(data_dir):
    code = (
        "import sys; from job.sources.tfds import open_named\n"
        f"source = open_named('tfds:painted_photos', {str(data_dir)!r}); source.prepare()\n"
        "assert all(isinstance(photo, bytes) for photo in source.read(source.listing().entries))\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_decode_processes_write_what_the_decoder_makes_of_the_stored_bytes(data_dir, context, tmp_path):
    source = open_named("tfds:painted_photos", str(data_dir))
    entries = source.listing().entries
    writer = StoreWriter(tmp_path / "images", (builders.SIDE_PX, builders.SIDE_PX, 3), "uint8")
    parts = {str(k): entries[k : k + 16] for k in range(0, len(entries), 16)}
    tasks = [ShardTask(key, part, writer.open_shard(len(part))) for key, part in parts.items()]
    for task in decode_shards(tasks, source, RULES, Limits(2, 60.0, 512), context.telemetry, context.stop):
        pixels = np.load(writer.folder / writer.commit(task.file, [str(k) for k in range(task.num_rows)]).array_name)
        photos = read(source, task.entries)
        assert [r["sha256"] for r in task.records] == [sha256(photo).hexdigest() for photo in photos]
        assert np.array_equal(pixels, [decode(photo, RULES).pixels_HWC for photo in photos])


def test_intake_takes_a_named_data_set_as_it_takes_a_folder(data_dir, context):
    source = open_named("tfds:painted_photos", str(data_dir))
    found = intake(CONFIG, source=source, listing=source.listing(), context=context)
    assert Counter(found.examples["status"]) == {"used": 60}
    assert Counter(found.examples["given_split"]) == {"train": 40, "val": 10, "test": 10}
    assert Counter(found.examples["format"]) == {"JPEG": 32, "PNG": 28}
    before = source_digest(source, source.listing(), context)
    assert before == source_digest(source, source.listing(), context) != ""


def test_image_folder_of_tensorflow_datasets_and_ours_see_the_same_photos(tmp_path):
    root, side = tmp_path / "photos", builders.SIDE_PX
    for place, (split, count) in enumerate({"train": 6, "validation": 3, "test": 3}.items()):
        for number, kind in enumerate(builders.KINDS * count):
            photo = root / split / kind / f"{number}.{('png', 'jpg')[number // 2 % 2]}"
            paint(photo, seed=100 * place + number, kind=kind, size=(side, side))
    builders.PackedFolder.folder = root
    builders.prepare(builders.PackedFolder, tmp_path / "tfds")
    named, folder = open_named("tfds:packed_folder", str(tmp_path / "tfds")), FolderSource(root)

    def seen(source):
        return {photo: (e.label, e.split) for e, photo in zip(source.listing().entries, read(source), strict=True)}

    theirs = tfds.folder_dataset.ImageFolder(str(root))
    names, splits = theirs.info.features["label"].names, {"train": "train", "validation": "val", "test": "test"}
    encoded, decoded = {}, {}
    for split, ours in splits.items():
        for example in theirs.as_dataset(split=split):
            photo = Path(example["image/filename"].numpy().decode()).read_bytes()
            encoded[photo] = (names[int(example["label"])], ours)
            decoded[photo] = example["image"].numpy()
    assert len(encoded) == 24
    assert seen(named) == seen(folder) == encoded
    for photo, pixels in decoded.items():
        ours = decode(photo, RULES).pixels_HWC.astype(int)
        if photo.startswith(b"\x89PNG"):
            assert np.array_equal(ours, pixels)
        else:  # TensorFlow decodes JPEG by a faster and coarser transform.
            assert np.abs(ours - pixels).mean() < 2


def test_a_damaged_record_costs_itself_only(own_dir):
    shard = shards_of(own_dir)[0]
    source = open_named("tfds:painted_photos", str(own_dir))
    entries = [e for e in source.listing().entries if e.path.startswith("train/")]
    before = read(source, entries)
    start = int(entries[3].version.split(":")[1])
    content = bytearray(shard.read_bytes())
    content[start + 500] ^= 1
    shard.write_bytes(content)
    after = read(source, entries)
    assert after[:3] + after[4:] == before[:3] + before[4:]
    assert isinstance(after[3], OSError)
    assert after[3].strerror == "its record is damaged"


def test_what_lies_behind_a_broken_chain_of_records_is_quarantined_one_by_one(own_dir):
    shard = shards_of(own_dir)[0]
    source = open_named("tfds:painted_photos", str(own_dir))
    start = int(source.listing().entries[-30].version.split(":")[1])
    content = bytearray(shard.read_bytes())
    content[start] ^= 1
    shard.write_bytes(content)
    entries = [e for e in source.listing().entries if e.path.startswith("train/")]
    reasons = Counter(e.reason for e in entries)
    assert len(entries) == 40
    assert reasons.pop("") + reasons.pop("cannot be read: its shard is damaged at it or before it") == 40
    assert not reasons
    assert all(isinstance(photo, bytes) for photo in read(source, entries))


def test_a_shard_cut_short_quarantines_what_is_missing(own_dir):
    shard = shards_of(own_dir)[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    entries = open_named("tfds:painted_photos", str(own_dir)).listing().entries
    assert [(e.path, e.reason) for e in entries if e.verdict] == [
        ("train/000039", "cannot be read: its shard ends within it")
    ]


def test_a_missing_shard_is_named(own_dir):
    shards_of(own_dir)[1].unlink()
    with pytest.raises(DataUnusable, match=r"painted_photos-train\.tfrecord-00001-of-00002: cannot be read \(No such file"):
        open_named("tfds:painted_photos", str(own_dir)).listing()


def test_a_data_set_that_changed_after_its_listing_is_noticed(own_dir):
    source = open_named("tfds:painted_photos", str(own_dir))
    entries = source.listing().entries
    one, other = shards_of(own_dir)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    changed = [photo for e, photo in zip(entries, source.read(entries), strict=True) if e.path.startswith("train/")]
    assert all(isinstance(photo, OSError) for photo in changed)
    assert "the data set is not the one that was listed" in {photo.strerror for photo in changed}
    assert {e.version for e in source.listing().entries}.isdisjoint(e.version for e in entries if e.split == "train")


def test_hidden_labels_are_quarantined_and_make_no_split(data_dir):
    entries = open_named("tfds:hidden_labels", str(data_dir)).listing().entries
    hidden = [e for e in entries if e.verdict]
    assert [(e.path, e.verdict) for e in hidden] == [(f"test/{k:06d}", "quarantined") for k in range(4)]
    assert {e.reason for e in hidden} == {"unlabelled: its label is -1, and classes begin at 0"}
    assert {e.split for e in entries} == {None}


def test_training_photos_alone_are_not_split_yet_and_other_splits_are_ignored(data_dir):
    entries = open_named("tfds:only_training", str(data_dir)).listing().entries
    assert [e.path for e in entries if e.verdict is None] == [f"train/{k:06d}" for k in range(8)]
    assert {e.split for e in entries} == {None}
    assert [(e.path, e.verdict, e.reason) for e in entries if e.verdict] == [
        ("extra/", "ignored", "a split beside train, validation and test, of 4 examples")
    ]


def test_without_a_split_train_there_is_nothing_to_train_on(data_dir):
    with pytest.raises(UsageError, match="nothing to train on: it has no split train, but corrupted, test"):
        open_named("tfds:nothing_to_train", str(data_dir))


def test_where_labels_are_not_wanted_every_split_is_read(data_dir):
    for name, count in {"nothing_to_train": 8, "hidden_labels": 12}.items():
        source = open_named(f"tfds:{name}", str(data_dir), labelled=False)
        listing = source.listing()
        assert {(e.label, e.split, e.verdict) for e in listing.entries} == {(None, None, None)}
        assert all(isinstance(photo, bytes) and photo for photo in read(source))
        assert (len(listing.entries), listing.class_names) == (count, ())


@pytest.mark.parametrize(
    ("config", "has"),
    [
        ("two_pictures", "high: Image of uint8, label: ClassLabel, low: Image of uint8"),
        ("boxes", "image: Image of uint8, objects: Sequence"),
        ("text", "label: ClassLabel, text: Text"),
        ("depth", "image: Image of float32, label: ClassLabel"),
        ("segments", "image: LabeledImage, label: ClassLabel"),
        ("two_labels", "colour: ClassLabel, image: Image of uint8, shape: ClassLabel"),
    ],
)
def test_data_sets_for_other_tasks_are_refused_before_they_are_prepared(tmp_path, config, has):
    with pytest.raises(UsageError, match="is not for image classification") as refused:
        open_named(f"tfds:other_tasks/{config}", str(tmp_path))
    assert str(refused.value).endswith(f"and has {has}.")
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_data_set_for_another_task_is_refused(own_dir):
    file = own_dir / "painted_photos" / "1.2.0" / "features.json"
    features = json.loads(file.read_text())
    features["featuresDict"]["features"]["label"] = {"pythonClassName": TEXT, "text": {}}
    file.write_text(json.dumps(features))
    with pytest.raises(UsageError, match=r"is not for image .*, and has image: Image of uint8, label: Text\."):
        open_named("tfds:painted_photos", str(own_dir))


def named_in_json(name):
    return {"pythonClassName": name, "jsonFeature": {"json": "{}"}}


def named_in_json_within_json(name):
    inner = json.dumps({"feature": {"type": name, "content": "{}"}, "length": None})
    sequence = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    return {"pythonClassName": sequence, "jsonFeature": {"json": inner}}


@pytest.mark.parametrize("hidden", [named_in_json, named_in_json_within_json])
def test_no_module_is_imported_because_a_data_set_names_it(own_dir, hidden, tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "foreign_feature.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    file = own_dir / "painted_photos" / "1.2.0" / "features.json"
    features = json.loads(file.read_text())
    features["featuresDict"]["features"]["more"] = hidden("foreign_feature.Feature")
    file.write_text(json.dumps(features))
    with pytest.raises(DataUnusable, match="names the Python class foreign_feature.Feature, which is not in"):
        open_named("tfds:painted_photos", str(own_dir))
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_a_prepared_data_set_that_is_not_whole_is_named(own_dir, file):
    folder = own_dir / "painted_photos" / "1.2.0"
    (folder / file).write_text("{")
    with pytest.raises(DataUnusable, match=f"^{folder}: tfds:painted_photos:1.2.0 cannot be read"):
        open_named("tfds:painted_photos", str(own_dir))


@pytest.mark.parametrize("config", ["named_pair", "nested"])
def test_the_named_pair_or_the_only_pair_of_features_is_read(tmp_path, config):
    builders.prepare(builders.OtherTasks, tmp_path, num_shards=1, config=config)
    source = open_named(f"tfds:other_tasks/{config}", str(tmp_path))
    assert sorted(e.label for e in source.listing().entries) == ["0", "1", "2"]
    assert all(decode(photo, RULES).facts.format == "PNG" for photo in read(source))


def test_a_data_set_that_is_not_prepared_is_prepared_where_nothing_has_to_be_fetched(data_dir, tmp_path, capfd):
    source = open_named("tfds:painted_photos", str(tmp_path / "new"))
    assert source.listing().class_names == ("checks", "stripes")
    assert len(read(source)) == 60
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == (
        "",
        f"tfds:painted_photos:1.2.0: downloading and preparing it in {tmp_path / 'new'}.\n",
    )


def test_without_a_network_the_error_says_what_to_run(tmp_path, no_network):
    with pytest.raises(StorageFailed, match=r"^tfds:mnist:3\.0\.1 is not prepared in .*cannot be reached") as failed:
        open_named("tfds:mnist", str(tmp_path))
    assert "tfds.builder('mnist:3.0.1', data_dir='DIR').download_and_prepare()" in str(failed.value)
    assert list(tmp_path.iterdir()) == []


def test_without_tfds_dir_the_folder_of_tensorflow_datasets_is_taken(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert open_named("tfds:painted_photos", None) == open_named("tfds:painted_photos", str(data_dir))


def test_what_preparing_raises_is_said_and_nothing_is_left(tmp_path):
    with pytest.raises(
        StorageFailed, match=r"failing:1\.2\.0 is not prepared in .*LookupError: there is no label in the archive"
    ):
        open_named("tfds:failing", str(tmp_path))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_the_command_of_the_error_works(tmp_path):
    """It is what somebody runs on another machine; only the name of the data set is one that needs no network."""
    from job.sources.tfds import _command, _DataSet

    command = _command(_DataSet("painted_photos", "", "1.2.0"), file_format="array_record")
    command = command.replace("'DIR'", repr(str(tmp_path))).replace("as tfds;", "as tfds; import tests.unit.named_builders;")
    command = command.replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, cwd=ROOT, check=True, capture_output=True)
    with pytest.raises(UsageError, match="is prepared as array_record, and only tfrecord is read here"):
        open_named("tfds:painted_photos", str(tmp_path))


def test_data_sets_to_download_by_hand_say_so(tmp_path):
    with pytest.raises(UsageError, match=r"imagenet2012:.* downloaded by hand: .*ILSVRC2012_img_train\.tar"):
        open_named("tfds:imagenet2012", str(tmp_path))


def test_an_unknown_name_gets_near_ones(data_dir, tmp_path):
    with pytest.raises(UsageError, match=r"does not know flowers, and it is not prepared in .*Did you mean .*tf_flowers"):
        open_named("tfds:flowers", str(tmp_path))
    (tmp_path / "our_birds").mkdir()
    with pytest.raises(UsageError, match="Did you mean our_birds"):
        open_named("tfds:our_bird", str(tmp_path))


def test_a_prepared_data_set_needs_no_code_that_knows_it(own_dir):
    os.replace(own_dir / "painted_photos", own_dir / "somebodys_own")
    for file in (own_dir / "somebodys_own" / "1.2.0").iterdir():
        file.write_bytes(file.read_bytes().replace(b'"painted_photos"', b'"somebodys_own"'))
        file.rename(file.with_name(file.name.replace("painted_photos", "somebodys_own")))
    assert len(read(open_named("tfds:somebodys_own", str(own_dir)))) == 60
    with pytest.raises(
        UsageError, match=r"somebodys_own:9\.0\.0 is not prepared in .*Prepared there: tfds:somebodys_own:1\.2\.0"
    ):
        open_named("tfds:somebodys_own:9.0.0", str(own_dir))


def test_the_newest_prepared_version_is_taken_unless_one_is_named(own_dir):
    def copy(version):
        folder = shutil.copytree(own_dir / "painted_photos" / "1.2.0", own_dir / "painted_photos" / version)
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace('"1.2.0"', f'"{version}"'))

    copy("1.10.0")
    copy("1.9.0")
    shutil.copytree(own_dir / "painted_photos" / "1.2.0", own_dir / "painted_photos" / "incomplete.X_9.0.0")
    assert open_named("tfds:painted_photos", str(own_dir)).uri == "tfds:painted_photos:1.10.0"
    assert open_named("tfds:painted_photos:1.9.0", str(own_dir)).folder.name == "1.9.0"
    with pytest.raises(UsageError, match=r"no version 3\.0\.0\. .* makes 1\.2\.0\. Prepared in .*1\.9\.0"):
        open_named("tfds:painted_photos:3.0.0", str(own_dir))


def test_a_configuration_is_the_default_one_unless_one_is_named(tmp_path):
    builders.prepare(builders.Sized, tmp_path, config="huge")
    assert open_named("tfds:sized/huge", str(tmp_path)).uri == "tfds:sized/huge:2.0.0"
    assert open_named("tfds:sized", str(tmp_path)).uri == "tfds:sized/large:2.0.0"
    with pytest.raises(UsageError, match=r"no configuration 'tiny'\. Choose one of huge, large"):
        open_named("tfds:sized/tiny", str(tmp_path))
    os.replace(tmp_path / "sized", tmp_path / "unknown")
    with pytest.raises(UsageError, match=r"several configurations are prepared: huge, large\. Give tfds:unknown/CONFIG"):
        open_named("tfds:unknown", str(tmp_path))


@pytest.mark.parametrize("uri", ["tfds:", "tfds:../x", "tfds:a/../b", "tfds:a:1", "tfds:a:1.0", "tfds://a", "tfds:a/b/c"])
def test_what_is_no_name_is_refused(uri, tmp_path):
    with pytest.raises(UsageError, match="give tfds:NAME"):
        open_named(uri, str(tmp_path))


@pytest.fixture
def bucket_dir(data_dir, google, monkeypatch, tmp_path):
    """The prepared data sets in a bucket, and a new place for local copies."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = f"{google.bucket()}/tfds"
    for file in data_dir.rglob("*"):
        if file.is_file():
            google.put(f"{store}/{file.relative_to(data_dir).as_posix()}", file.read_bytes())
    return store


def test_a_data_set_in_a_bucket_is_copied_once_and_read_here(bucket_dir, data_dir, google):
    local = open_named("tfds:painted_photos", str(data_dir))
    google.requests()
    source = open_named("tfds:painted_photos", bucket_dir)
    fetched = [path for _, path, _ in google.requests() if "alt=media" in path]
    assert source.listing() == local.listing()
    assert read(source) == read(local)
    assert len(fetched) == len(list((data_dir / "painted_photos" / "1.2.0").iterdir()))
    assert open_named("tfds:painted_photos", bucket_dir) == source
    assert [path for _, path, _ in google.requests() if "alt=media" in path] == []


def test_faults_of_the_bucket_leave_whole_files_only(bucket_dir, data_dir, google):
    with google.faults(statuses={503: 0.2}, resets=0.1, shorts=0.1, wrong_checksums=0.1):
        source = open_named("tfds:painted_photos", bucket_dir)
    theirs = data_dir / "painted_photos" / "1.2.0"
    assert {f.name: f.read_bytes() for f in source.folder.iterdir()} == {f.name: f.read_bytes() for f in theirs.iterdir()}


def test_a_data_set_that_changed_in_its_bucket_is_fetched_again(bucket_dir, data_dir, google):
    before = open_named("tfds:painted_photos", bucket_dir)
    one, other = shards_of(data_dir)
    google.put(f"{bucket_dir}/{one.relative_to(data_dir).as_posix()}", other.read_bytes())
    after = open_named("tfds:painted_photos", bucket_dir)
    assert (after.folder / one.name).read_bytes() == other.read_bytes()
    assert read(before) != read(after)


def test_a_data_set_that_is_not_in_the_bucket_says_what_to_run_and_where_it_belongs(bucket_dir):
    with pytest.raises(StorageFailed, match=r"mnist:3\.0\.1 is not prepared in gs://.* run python -c") as failed:
        open_named("tfds:mnist", bucket_dir)
    assert str(failed.value).endswith(f"copy DIR/mnist/3.0.1 to {bucket_dir}/mnist/3.0.1.")
    with pytest.raises(UsageError, match="Did you mean .*tf_flowers"):
        open_named("tfds:flowers", bucket_dir)
