import io
import re
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import job
from job.data.duplicates import confirmed, exact_pairs, group_ids, near_pairs
from job.data.examples import Examples
from job.errors import DataUnusable
from job.pipeline.records import read_run, write_run
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig, SplitConfig
from job.sources.folders import FolderSource
from job.stages.intake import intake
from job.stages.split import SplitExamples, split
from job.storage.workdir import Workdir
from job.stores.arrays import StoreWriter
from tests.conftest import examples_of, paint, paint_classes


def made_split(folder, context, config=SplitConfig(), drop=False, budget=0.5):  # noqa: B008
    source = FolderSource(folder.resolve())
    found = intake(IntakeConfig(image_size=48), source=source, listing=source.listing(), context=context)
    limits = {"max_quarantined_fraction": budget, "drop_small_classes": drop}
    return split(config, examples=found.examples, images=found.images, **limits, context=context)


def split_folder(folder, context, **options):
    done = made_split(folder, context, **options)
    assert done.refusals == ()
    return done.examples


def made_up(count_per_class, seed=0, **changes):
    """Examples without pixels of their own: all hashes far apart."""
    rng = np.random.default_rng(seed)
    records = []
    for label, count in count_per_class.items():
        for k in range(count):
            digest = rng.bytes(32).hex()
            records.append(
                {"path": f"{label}/{k:05d}.jpg", "label": label, "status": "used", "sha256": digest, "row": len(records)}
                | {"phash": int(rng.integers(0, 2**63)), "reason": "", "width": 9, "height": 9, "num_bytes": 1}
                | {"brightness": 0.5, "contrast": 0.2, "has_exif": False, **changes}
            )
    return examples_of(records, sorted(count_per_class))


@pytest.fixture
def no_images(tmp_path):
    writer = StoreWriter(tmp_path / "images", (48, 48, 3), "uint8")
    return writer.finish([])


def split_made_up(examples, images, context, **config):
    limits = {"max_quarantined_fraction": 0.5, "drop_small_classes": False}
    return split(SplitConfig(**config), examples=examples, images=images, **limits, context=context).examples


def by_path(examples, column):
    return dict(zip(examples["path"], examples[column], strict=True))


def test_nothing_given_gives_about_70_15_15_in_every_class(no_images, context):
    done = split_made_up(made_up({"a": 1000, "b": 600}), no_images, context)
    for label, total in (("a", 1000), ("b", 600)):
        shares = Counter(done["split"][done["label"] == label])
        assert abs(shares["train"] / total - 0.70) < 0.04
        assert abs(shares["val"] / total - 0.15) < 0.04 and abs(shares["test"] / total - 0.15) < 0.04


def test_new_photos_do_not_move_old_ones(no_images, context):
    before = by_path(split_made_up(made_up({"a": 300, "b": 300}), no_images, context), "split")
    fewer = made_up({"a": 300, "b": 300})
    kept = np.arange(600) % 3 != 0
    fewer = Examples({name: column[kept] for name, column in fewer.columns.items()}, fewer.class_names)
    after = by_path(split_made_up(fewer, no_images, context), "split")
    assert all(before[path] == where for path, where in after.items())


def part_of(examples, kept):
    return Examples({name: column[kept] for name, column in examples.columns.items()}, examples.class_names)


def test_photos_of_an_earlier_run_keep_their_split_in_small_classes_too(no_images, context, tmp_path):
    """Each split needs a photo of each class, so in small classes the hash alone moves old photos when new ones come."""
    whole = made_up({f"{k:03d}": 6 for k in range(100)})
    is_old = np.arange(len(whole)) % 6 < 5
    before = by_path(split_made_up(part_of(whole, is_old), no_images, context), "split")
    after = by_path(split_made_up(whole, no_images, context), "split")
    elsewhere = Context(Workdir(tmp_path / "fresh"), Telemetry(None))
    fresh = by_path(split_made_up(whole, no_images, elsewhere), "split")
    assert all(after[path] == where for path, where in before.items())
    assert any(fresh[path] != where for path, where in before.items()), "the case that this is about"


def test_group_with_a_test_photo_of_an_earlier_run_stays_in_test(no_images, context):
    """A near copy may have a smaller SHA-256, which would give the group another hash."""
    old = made_up({"a": 60, "b": 60})
    old.columns["given_group"][:] = [f"group {k}" for k in range(len(old))]
    before = split_made_up(old, no_images, context)
    joining = made_up({"a": 60, "b": 60}, seed=1)
    joining.columns["given_group"][:] = old["given_group"]
    joining.columns["sha256"][:] = [f"0{digest[1:]}" for digest in joining["sha256"]]
    joining.columns["path"][:] = [f"new/{path}" for path in joining["path"]]
    both = Examples({n: np.concatenate([old[n], joining[n]]) for n in old.columns}, old.class_names)
    after = split_made_up(both, no_images, context)
    assert after["split"].tolist() == 2 * before["split"].tolist()


def test_other_settings_of_the_split_draw_anew(no_images, context, tmp_path):
    examples = made_up({"a": 300, "b": 300})
    first = split_made_up(examples, no_images, context)["split"].tolist()
    second = split_made_up(examples, no_images, context, seed=1)["split"].tolist()
    elsewhere = Context(Workdir(tmp_path / "fresh"), Telemetry(None))
    assert first != second == split_made_up(examples, no_images, elsewhere, seed=1)["split"].tolist()
    assert split_made_up(examples, no_images, context)["split"].tolist() == first


@pytest.mark.parametrize("gone", ["train", "val", "test"])
def test_class_that_has_lost_a_whole_split_gets_one_of_the_others(no_images, context, gone):
    examples = made_up({"a": 40, "b": 40})
    before = split_made_up(examples, no_images, context)
    left = (before["split"] != gone) | (before["label"] == "b")
    after = split_made_up(part_of(examples, left), no_images, context)
    assert set(after["split"][after["label"] == "a"]) == {"train", "val", "test"}
    moved = [(a, b) for a, b in zip(before["split"][left], after["split"], strict=True) if a != b]
    assert len(moved) == 1 and moved[0][1] == gone and moved[0][0] != "test"


def test_what_has_changed_since_the_last_run_is_told(no_images, context):
    stream = io.StringIO()
    context = replace(context, telemetry=Telemetry(None, stream))
    old = made_up({"a": 20, "b": 20, "c": 20})
    split_made_up(old, no_images, context)
    assert "Since" not in stream.getvalue()
    new = made_up({"a": 22, "b": 20, "d": 5}, seed=9)
    new.columns["sha256"][:42] = [*old["sha256"][:20], "0" * 64, "1" * 64, *old["sha256"][20:40]]
    new.columns["label"][3] = "b"
    split_made_up(new, no_images, context)
    told = stream.getvalue()
    assert "Since the last run: photos 7 new, 20 gone, 1 relabelled. New classes: d. Gone classes: c." in told


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_small_classes_have_one_photo_in_every_split(no_images, context, count):
    for seed in range(10):
        done = split_made_up(made_up({"a": count, "b": count}, seed=seed), no_images, context)
        for label in "ab":
            assert set(done["split"][done["label"] == label]) == {"train", "val", "test"}


def test_class_of_two_different_photos_is_refused_or_dropped(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=8, kinds=("stripes", "checks"))
    paint(folder / "rare" / "a.jpg", 901)
    paint(folder / "rare" / "b.jpg", 902)
    (folder / "empty").mkdir()
    (refusal,) = map(str, made_split(folder, context).refusals)
    assert "rare: 2 different photos; train, val and test need one each" in refusal
    assert "empty: no usable photos" in refusal and "intake.drop_small_classes=true" in refusal
    done = split_folder(folder, context, drop=True)
    assert done.class_names == ("checks", "stripes")
    assert by_path(done, "status")["rare/a.jpg"] == "ignored"


def test_too_many_bad_files_are_refused_with_the_list(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=6)
    for k in range(5):
        (folder / "checks" / f"pointer-{k}.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    done = made_split(folder, context, budget=0.2)
    assert re.search(r"5 of 17 files are quarantined(.|\n)*git lfs pull(.|\n)*checks/pointer-0.jpg", str(done.refusals[0]))
    assert SplitExamples.load(context).refusals == done.refusals
    assert made_split(folder, context, budget=0.3).refusals == ()


def test_dicom_files_are_refused_with_the_way_to_convert_them(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=6)
    for k in range(5):
        (folder / "checks" / f"IM{k:04d}").write_bytes(bytes(128) + b"DICM" + bytes(99))
        (folder / "checks" / f"{k}.dcm").write_bytes(b"\x08\0\5\0CS\n\0ISO_IR 100" + bytes(99))
    (refusal,) = map(str, made_split(folder, context, budget=0.2).refusals)
    assert "10 of 22 files are quarantined" in refusal
    assert "10 x a DICOM file, which this job does not read: convert it to PNG with its window and level" in refusal


def test_label_conflicts_count_against_the_budget(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=6)
    for k in range(3):
        (folder / "stripes" / f"twin-{k}.jpg").write_bytes((folder / "checks" / f"checks-{k:03d}.jpg").read_bytes())
    (refusal,) = made_split(folder, context, budget=0.2).refusals
    assert "6 of 15 files are quarantined" in refusal.finding
    assert (
        "6 x label conflict: the same bytes as checks" not in refusal.details[0] and "label conflict" in refusal.details[0]
    )


def test_no_usable_photo_at_all_ends_the_run(tmp_path, context):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a.jpg").write_bytes(b"")
    with pytest.raises(DataUnusable, match=r"(?s)2 of 2 files are quarantined.*0 bytes.*cat: no usable photos"):
        made_split(tmp_path / "photos", context)


def test_one_picture_in_two_files_under_two_classes_is_excluded(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=8)
    scene(folder / "stripes" / "a.png", 4711)
    Image.open(folder / "stripes" / "a.png").save(folder / "checks" / "b.jpg", quality=90)
    done = split_folder(folder, context)
    assert {by_path(done, "status")[p] for p in ("stripes/a.png", "checks/b.jpg")} == {"excluded"}
    assert by_path(done, "reason")["checks/b.jpg"] == "label conflict: the same picture as stripes/a.png"


def test_given_train_and_val_makes_val_the_held_out_split(tmp_path, context):
    paint_classes(tmp_path / "photos" / "train", per_class=20)
    for k, kind in enumerate(("stripes", "checks")):
        for j in range(5):
            paint(tmp_path / "photos" / "val" / kind / f"{j}.jpg", seed=5000 + 100 * k + j, kind=kind)
    done = split_folder(tmp_path / "photos", context)
    given_val = done["given_split"] == "val"
    assert set(done["split"][given_val]) == {"test"}
    assert Counter(done["split"][~given_val])["val"] >= 2


def test_given_splits_are_all_kept(tmp_path, context):
    for number, name in enumerate(("train", "val", "test")):
        for k, kind in enumerate(("stripes", "checks")):
            for j in range(4):
                paint(tmp_path / "photos" / name / kind / f"{j}.jpg", seed=1000 * number + 100 * k + j, kind=kind)
    done = split_folder(tmp_path / "photos", context)
    assert (done["split"] == done["given_split"]).all()


def test_val_without_train_is_refused(tmp_path, context):
    paint_classes(tmp_path / "photos" / "val", per_class=4)
    paint_classes(tmp_path / "photos" / "test", per_class=4)
    assert "none for train" in made_split(tmp_path / "photos", context).refusals[0].finding


def scene(path, seed):
    """A photo with something to recognise at every scale, as real ones have, and not one fine texture."""
    rng = np.random.default_rng(seed)
    layers = [rng.integers(0, 255 // k, (3 * k, 4 * k, 3)).astype(np.uint8) for k in (1, 3)]
    pixels = sum(np.asarray(Image.fromarray(a).resize((160, 120), Image.Resampling.BICUBIC), np.float64) for a in layers)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return path


def recompressed(photo, target, scale=0.6, quality=50):
    image = Image.open(photo)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.resize((round(image.width * scale), round(image.height * scale))).save(target, "JPEG", quality=quality)


def test_copies_never_cross_splits_that_we_make(tmp_path, context):
    folder = tmp_path / "photos"
    for k in range(25):
        first = scene(folder / "one" / f"first-{k:03d}.jpg", seed=k)
        recompressed(first, folder / "one" / f"copy-{k:03d}.jpg")
        second = scene(folder / "two" / f"first-{k:03d}.jpg", seed=100 + k)
        (folder / "two" / f"copy-{k:03d}.jpg").write_bytes(second.read_bytes())
    done = split_folder(folder, context)
    where, group = by_path(done, "split"), by_path(done, "group")
    for k in range(25):
        for label in ("one", "two"):
            a, b = f"{label}/first-{k:03d}.jpg", f"{label}/copy-{k:03d}.jpg"
            assert group[a] == group[b] and where[a] == where[b]
    assert len(set(done["group"].tolist())) == 50
    assert set(done["split"][done.of()]) == {"train", "val", "test"}


def test_val_duplicate_of_train_is_reported_as_leak(tmp_path, context):
    train = paint_classes(tmp_path / "photos" / "train", per_class=10)
    val = paint_classes(tmp_path / "photos" / "val", per_class=3)
    for k in range(3):
        for kind in ("stripes", "checks"):
            (val / kind / f"{kind}-{k:03d}.jpg").unlink()
            paint(val / kind / f"new-{k}.jpg", seed=7000 + k, kind=kind)
    scene(train / "stripes" / "stripes-004.jpg", seed=1)
    recompressed(train / "stripes" / "stripes-004.jpg", val / "stripes" / "leak.jpg")
    done = split_folder(tmp_path / "photos", context)
    status, reason = by_path(done, "status"), by_path(done, "reason")
    assert status["train/stripes/stripes-004.jpg"] == "excluded" and status["val/stripes/leak.jpg"] == "used"
    assert reason["train/stripes/stripes-004.jpg"] == "a copy of val/stripes/leak.jpg, which is in the test set (held out)"


def test_same_bytes_with_two_labels_are_both_quarantined(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=8)
    (folder / "checks" / "x.jpg").write_bytes((folder / "stripes" / "stripes-001.jpg").read_bytes())
    status = by_path(split_folder(folder, context), "status")
    assert status["checks/x.jpg"] == status["stripes/stripes-001.jpg"] == "quarantined"


def test_exact_copies_inside_the_held_out_split_are_counted_once(tmp_path, context):
    paint_classes(tmp_path / "photos" / "train", per_class=8)
    for k, kind in enumerate(("stripes", "checks")):
        for name in ("a", "b"):
            paint(tmp_path / "photos" / "val" / kind / f"{name}.jpg", seed=9000 + k, kind=kind)
    done = split_folder(tmp_path / "photos", context)
    assert len(done.of("test")) == 2 and (done["status"] == "excluded").sum() == 2


def test_table_read_back_is_the_same(tmp_path, context):
    done = split_folder(paint_classes(tmp_path / "photos", per_class=8), context)
    again = SplitExamples.load(context).examples
    assert again.to_parquet() == done.to_parquet() and np.array_equal(again.keys, done.keys)


def test_keys_know_photos_by_content_and_not_by_place():
    digest = "ab" * 32
    records = [{"path": p, "sha256": d, "status": "used"} for p, d in (("b", digest), ("a", digest), ("c", "cd" * 32))]
    blank = {"width": 1, "height": 1, "num_bytes": 1, "phash": 0, "brightness": 0, "contrast": 0, "has_exif": False}
    first = examples_of([r | blank for r in records], ())
    second = examples_of([r | blank for r in reversed(records)], ())
    assert by_path(first, "path").keys() == by_path(second, "path").keys()
    assert {p: int(k) for p, k in zip(first["path"], first.keys, strict=True)} == {
        p: int(k) for p, k in zip(second["path"], second.keys, strict=True)
    }
    assert len(set(first.keys.tolist())) == 3


def test_near_pairs_are_those_of_a_full_comparison():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**63, 300).astype(np.uint64)
    for k in range(0, 300, 3):
        for bit in rng.choice(64, rng.integers(0, 7), replace=False):
            hashes[k] = hashes[(k + 1) % 300] ^ np.uint64(1 << int(bit)) if bit % 2 else hashes[k] ^ np.uint64(1 << int(bit))
    hashes[7] = hashes[200]
    for bits in (0, 1, 4, 6):
        distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
        expected = {(i, j) for i in range(300) for j in range(i + 1, 300) if distance[i, j] <= bits}
        assert {tuple(p) for p in near_pairs(hashes, bits, np.arange(300)).tolist()} == expected and expected


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2**63, 0x0F0F0F0F0F0F0F0F]), st.sets(st.integers(0, 63), max_size=5)), max_size=32
    ),
    st.integers(0, 6),
)
def test_near_pairs_agree_with_a_full_comparison_whatever_the_hashes(made_of, bits):
    hashes = np.asarray([base ^ sum(1 << b for b in flipped) for base, flipped in made_of], np.uint64)
    expected = [
        [i, j] for i in range(len(hashes)) for j in range(i + 1, len(hashes)) if (hashes[i] ^ hashes[j]).bit_count() <= bits
    ]
    assert near_pairs(hashes, bits, np.arange(len(hashes))[::-1]).tolist() == expected


def test_mass_of_equal_hashes_makes_few_pairs_and_stays_linked():
    """Two masses one bit apart, and photos near to both: 25,000 black frames would make 312 million pairs."""
    rng = np.random.default_rng(0)
    hashes = np.repeat(np.asarray([7, 6, 6 ^ 2**40, 2**63 - 1], np.uint64), [20_000, 5_000, 10, 1])
    shuffled = rng.permutation(len(hashes))
    brightness = rng.random(len(hashes))
    tracemalloc.start()
    pairs = near_pairs(hashes[shuffled], 4, brightness)
    peak_mb = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert len(pairs) <= 6 * len(hashes) and peak_mb < 50
    lonely = int(np.flatnonzero(shuffled == len(hashes) - 1)[0])
    groups = group_ids(len(hashes), pairs)
    assert set(groups.tolist()) == {0, lonely} and (groups == lonely).sum() == 1
    equal = hashes[shuffled][pairs[:, 0]] == hashes[shuffled][pairs[:, 1]]
    apart = np.abs(brightness[pairs[equal, 0]] - brightness[pairs[equal, 1]])
    assert np.median(apart) < 1e-3  # Neighbours in brightness, where copies are.


def test_exact_copies_are_linked_in_a_chain():
    assert exact_pairs(np.asarray(["a", "b", "a", "a", "c", "b"], object)).tolist() == [[0, 2], [2, 3], [1, 5]]
    assert exact_pairs(np.asarray([], object)).shape == (0, 2)


def test_thousands_of_exact_copies_are_one_group(no_images, context):
    """They need no look at pixels, of which this store has none."""
    examples = made_up({"a": 50, "b": 50})
    rows = np.concatenate([np.arange(100), np.full(3_000, 3)])
    many = Examples({name: column[rows] for name, column in examples.columns.items()}, examples.class_names)
    done = split_made_up(many, no_images, context)
    assert len(set(done["group"].tolist())) == 100 and (done["group"] == 3).sum() == 3_001


def test_groups_are_connected_components():
    assert group_ids(6, np.asarray([[0, 2], [2, 4], [3, 5]])).tolist() == [0, 1, 0, 3, 0, 3]


def test_look_alikes_are_not_confirmed_and_copies_are(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 200, (6, 6, 3)).astype(np.uint8)
    photo = np.asarray(Image.fromarray(base).resize((48, 48), Image.Resampling.BICUBIC), np.float64)
    noise = np.asarray(Image.fromarray(rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)).resize((48, 48)), np.float64)
    pictures = [photo, photo * 0.9 + 12, photo * 0.6 + noise * 0.4, np.full_like(photo, 9), np.full_like(photo, 9.4)]
    writer = StoreWriter(tmp_path, (48, 48, 3), "uint8")
    keys = [str(k) for k in range(len(pictures))]
    writer.write(keys, np.stack(pictures).round())
    pairs = np.asarray([[0, 1], [0, 2], [3, 4], [0, 3]])
    assert confirmed(pairs, writer.finish(keys)).tolist() == [True, False, True, False]


def grouped(examples, group_of):
    return examples.with_columns(given_group=np.asarray([group_of(k) for k in range(len(examples))], object))


def test_given_groups_are_never_divided_and_every_split_has_some(no_images, context):
    examples = grouped(made_up({"cat": 60, "dog": 60}), lambda k: f"patient-{k % 20}")
    done = split_made_up(examples, no_images, context)
    splits = {group: set(done["split"][done["given_group"] == group]) for group in set(done["given_group"])}
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "val", "test"}


def test_copies_join_the_groups_that_they_are_in(no_images, context):
    examples = grouped(made_up({"cat": 30, "dog": 30}), lambda k: f"patient-{k % 12}")
    digests = examples["sha256"].copy()
    digests[1] = digests[0]  # Patients 0 and 1 share a photo.
    done = split_made_up(examples.with_columns(sha256=digests), no_images, context)
    ofboth = np.isin(done["given_group"], ["patient-0", "patient-1"])
    assert len(set(done["split"][ofboth])) == 1 and len(set(done.units[ofboth])) == 1
    assert len(set(done.units.tolist())) == 11


@pytest.mark.parametrize("pattern", [r"(?P<group>[^_]+)_", r"/(?P<group>p\d+)_"])
def test_groups_come_from_a_pattern_over_names_or_paths(no_images, context, pattern):
    examples = made_up({"cat": 40, "dog": 40})
    paths = np.asarray([f"{examples['label'][k]}/p{k % 10}_{k}.jpg" for k in range(80)], object)
    done = split_made_up(examples.with_columns(path=paths), no_images, context, group_from=pattern)
    assert set(done["given_group"]) == {f"p{k}" for k in range(10)}
    assert len(set(zip(done["given_group"], done["split"], strict=True))) == 10


def test_class_in_few_groups_of_another_class_is_in_each_split(no_images, context):
    for seed in range(5):
        examples = grouped(made_up({"cat": 3, "dog": 300}, seed), lambda k: f"patient-{k % 30}")
        done = split_made_up(examples, no_images, context)
        assert set(done["split"][done["label"] == "cat"]) == {"train", "val", "test"}


def test_pattern_that_gives_no_photo_a_group_is_refused(no_images, context):
    with pytest.raises(DataUnusable, match=r"split.group_from.*matches no photo.*cat/00000.jpg"):
        split_made_up(made_up({"cat": 9, "dog": 9}), no_images, context, group_from=r"patient(?P<group>\d+)_")


def test_given_splits_that_divide_a_group_stay(no_images, context):
    examples = grouped(made_up({"cat": 20, "dog": 20}), lambda k: f"patient-{k % 5}")
    given = np.asarray(["test" if k % 4 == 0 else "train" for k in range(40)], object)
    done = split_made_up(examples.with_columns(given_split=given), no_images, context)
    assert (done["split"][given == "test"] == "test").all() and (done["split"][given == "train"] != "test").all()


def test_line_counts_files_by_status_and_photos_by_split(tmp_path):
    folder, said = paint_classes(tmp_path / "photos"), io.StringIO()
    (folder / "stripes" / "broken.jpg").write_bytes(b"no photo")
    made_split(folder, Context(Workdir(tmp_path / "out"), Telemetry(None, said)))
    line = re.search(
        r"^  41 files: 40 used, 1 quarantined\. Splits: (\d+) train, (\d+) val, (\d+) test$", said.getvalue(), re.MULTILINE
    )
    assert line and sum(map(int, line.groups())) == 40


def test_seed_of_the_run_does_not_move_photos_between_splits_but_a_seed_of_the_split_does(tmp_path):
    data = paint_classes(tmp_path / "photos")

    def splits(out, **settings):
        found = job.run(data, tmp_path / out, config={"intake.image_size": 48, **settings}, stop_after="split").examples
        return found.select(["path", "split"]).to_pylist()

    first = splits("a", seed=1)
    assert first == splits("b", seed=2) and first != splits("c", **{"split.seed": 2})


def test_run_that_an_earlier_version_divided_by_seed_says_why_it_starts_again(tmp_path, capsys):
    data, out, settings = paint_classes(tmp_path / "photos"), tmp_path / "out", {"intake.image_size": 48, "seed": 3}
    job.run(data, out, config={**settings, "split.seed": 3}, stop_after="split")
    workdir = Workdir(out.resolve())
    described = read_run(workdir)
    del described["run_id"]  # As versions before 0.5 wrote it.
    write_run(workdir, described)
    capsys.readouterr()
    job.run(data, out, config={**settings, "split.seed": 3}, stop_after="split")
    assert "divided these photos" not in capsys.readouterr().err
    job.run(data, out, config=settings, stop_after="split")
    said = capsys.readouterr().err
    assert "An earlier version divided these photos by seed (3)." in said and "--set split.seed=3" in said
    assert re.search(r"^split +runs$", said, re.MULTILINE) and not re.search(r"^intake +runs$", said, re.MULTILINE)
    job.run(data, out, config=settings, stop_after="split")
    assert "divided these photos" not in capsys.readouterr().err
