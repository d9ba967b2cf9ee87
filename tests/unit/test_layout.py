"""What the folders of a source mean: classes, splits, or something that is refused with the commands to choose from."""

import os

import pytest

from job.errors import DataUnusable
from job.sections import IntakeConfig
from job.sources.open import open_source


def tree(root, *paths):
    """Make an empty file at each path, a folder where the path ends in a slash."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).mkdir() if path.endswith("/") else (root / path).write_bytes(b"x")
    return root


def classes(root, *names, below="", per_class=3):
    """Make class folders with photos."""
    return tree(root, *(f"{below}{name}/{k}.jpg" for name in names for k in range(per_class)))


def listing(root, **settings):
    return open_source(str(root), settings=IntakeConfig(**settings)).listing()


def used(root, **settings):
    """Return the classes, the splits, and the number of photos in each."""
    found = listing(root, **settings)
    splits = sorted({str(entry.split) for entry in found.entries if entry.verdict is None})
    return found.class_names, splits, sum(entry.verdict is None for entry in found.entries)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "valid", "Testing"),
        ("TRAIN", "dev", "eval"),
        ("train", "validation", "evaluation"),
        ("seg_train", "seg_val", "seg_test"),
        ("training_set", "validation_set", "test_set"),
        ("train2017", "val2017", "test2017"),
        ("flowers-train", "flowers-dev", "flowers-eval"),
    ],
)
def test_splits_go_by_many_names(tmp_path, train, val, test):
    for split in (train, val, test):
        classes(tmp_path, "cat", "dog", below=f"{split}/")
    found = listing(tmp_path)
    assert found.class_names == ("cat", "dog")
    of_folder = {entry.path.partition("/")[0]: entry.split for entry in found.entries}
    assert of_folder == {train: "train", val: "val", test: "test"}


def test_eval_alone_is_the_test_set(tmp_path):
    classes(tmp_path, "cat", "dog", below="train/")
    classes(tmp_path, "cat", "dog", below="eval/")
    assert used(tmp_path) == (("cat", "dog"), ["test", "train"], 12)


def test_archive_that_unpacks_to_a_folder_of_the_same_name_is_looked_through(tmp_path):
    for split in ("seg_train", "seg_test"):
        classes(tmp_path, "sea", "forest", below=f"{split}/{split}/")
    tree(tmp_path, "seg_pred/seg_pred/1.jpg", "seg_train/readme.txt")
    found = listing(tmp_path)
    assert found.class_names == ("forest", "sea")
    assert {e.split for e in found.entries if e.verdict is None} == {"train", "test"}
    ignored = {e.path: e.reason for e in found.entries if e.verdict}
    assert ignored == {"seg_pred": "a folder beside the split folders", "seg_train/readme.txt": "outside every class folder"}


def test_split_folders_with_one_folder_around_the_classes_are_looked_through(tmp_path):
    for split in ("train", "test"):
        classes(tmp_path, "cat", "dog", below=f"{split}/images/")
    assert used(tmp_path) == (("cat", "dog"), ["test", "train"], 12)


@pytest.mark.parametrize("flat", ["test", "Testing", "eval", "test/test", "test/unknown/.hidden/../.."])
def test_flat_test_folder_is_ignored_photo_by_photo(tmp_path, flat):
    classes(tmp_path, "cat", "dog", below="train/")
    tree(tmp_path, f"{os.path.normpath(flat)}/1.jpg", f"{os.path.normpath(flat)}/2.jpg")
    found = listing(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert [e.verdict for e in found.entries if not e.path.startswith("train")] == ["ignored"] * 2
    assert any("2 x unlabelled" in line for line in found.summary())


def test_flat_test_folder_beside_class_folders_is_never_a_class(tmp_path):
    classes(tmp_path, "cat", "dog")
    tree(tmp_path, "test/1.jpg")
    assert used(tmp_path) == (("cat", "dog"), ["None"], 6)


def test_class_folders_beside_a_test_folder_with_the_same_classes_are_the_training_split(tmp_path):
    classes(tmp_path, "cat", "dog")
    classes(tmp_path, "cat", "dog", below="test/")
    assert used(tmp_path) == (("cat", "dog"), ["test", "train"], 12)


def test_class_without_photos_beside_classes_with_splits_is_an_empty_class(tmp_path):
    for name in ("cat", "dog"):
        classes(tmp_path, "train", "test", below=f"{name}/")
    tree(tmp_path, "bird/.gitkeep")
    found = listing(tmp_path)
    assert found.class_names == ("bird", "cat", "dog")
    assert [e.path for e in found.entries if e.verdict] == ["bird/.gitkeep"]


def test_class_folders_may_hold_the_splits(tmp_path):
    for name in ("cat", "dog"):
        classes(tmp_path, "train", "test", below=f"{name}/")
    found = listing(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert {(e.label, e.split) for e in found.entries} == {(n, s) for n in ("cat", "dog") for s in ("train", "test")}


@pytest.mark.parametrize(
    "inside", [("1.jpg",), ("1.jpg", "steam/2.jpg"), (".ipynb_checkpoints/1-checkpoint.jpg", "1.jpg"), ("steam/1.jpg",)]
)
def test_train_is_a_class_beside_classes(tmp_path, inside):
    classes(tmp_path, "bus", "car")
    tree(tmp_path, *(f"train/{path}" for path in inside))
    assert used(tmp_path)[:2] == (("bus", "car", "train"), ["None"])


def test_train_with_a_stray_photo_and_the_class_folders_of_another_split_is_a_split(tmp_path):
    for split in ("train", "val"):
        classes(tmp_path, "cat", "dog", below=f"{split}/")
    tree(tmp_path, "train/stray.jpg", "other/1.jpg")
    assert used(tmp_path) == (("cat", "dog"), ["train", "val"], 12)


def test_empty_train_beside_classes_is_an_empty_class(tmp_path):
    classes(tmp_path, "bus", "car")
    tree(tmp_path, "train/.ipynb_checkpoints/")
    assert listing(tmp_path).class_names == ("bus", "car", "train")


def test_names_that_only_contain_the_name_of_a_split_are_classes(tmp_path):
    classes(tmp_path, "bullet_train", "steam_train", "test_tube", "validation")
    tree(tmp_path, "validation/more/1.jpg")
    assert used(tmp_path, layout="classes")[0] == ("bullet_train", "steam_train", "test_tube", "validation")
    (tmp_path / "validation").rename(tmp_path / "bus")
    assert used(tmp_path)[0] == ("bullet_train", "bus", "steam_train", "test_tube")


def test_lone_train_with_folders_beside_classes_gives_both_commands(tmp_path):
    classes(tmp_path, "bus", "car")
    classes(tmp_path, "steam", "diesel", below="train/")
    with pytest.raises(DataUnusable) as refused:
        listing(tmp_path)
    assert f"--data {tmp_path}/train" in str(refused.value)
    assert f"--data {tmp_path} --set intake.layout=classes" in str(refused.value)
    assert used(tmp_path / "train")[0] == ("diesel", "steam")
    assert used(tmp_path, layout="classes")[0] == ("bus", "car", "train")
    assert used(tmp_path, layout="splits")[:2] == (("diesel", "steam"), ["train"])


@pytest.mark.parametrize("above", ["flower_photos", "data/raw/flower_photos"])
def test_wrapper_folder_is_refused_with_the_folder_to_give(tmp_path, above):
    classes(tmp_path, "daisy", "rose", below=f"{above}/")
    tree(tmp_path, "__MACOSX/._x", "LICENSE.txt", "empty/")
    with pytest.raises(DataUnusable, match="would be the only class") as refused:
        listing(tmp_path)
    assert f"--data {tmp_path}/{above}" in str(refused.value)
    assert used(tmp_path / above)[0] == ("daisy", "rose")


def test_wrapper_around_splits_is_refused_with_the_folder_to_give(tmp_path):
    for split in ("train", "test"):
        classes(tmp_path, "daisy", "rose", below=f"dataset/{split}/")
    with pytest.raises(DataUnusable, match=f"--data {tmp_path}/dataset"):
        listing(tmp_path)


def test_folders_one_level_too_high_are_refused_with_what_to_type(tmp_path):
    for place in ("north", "south"):
        classes(tmp_path, "daisy", "rose", below=f"{place}/")
    with pytest.raises(DataUnusable, match="hold the same folders") as refused:
        listing(tmp_path)
    assert "--set intake.label_from=parent" in str(refused.value) and f"--data {tmp_path}/north" in str(refused.value)
    assert used(tmp_path, label_from="parent") == (("daisy", "rose"), ["None"], 12)
    assert used(tmp_path, layout="classes")[0] == ("north", "south")


@pytest.mark.parametrize("inside", [("2021", "2022"), ("01", "02-03"), ("images",)])
def test_numbered_or_single_folders_below_classes_are_fine(tmp_path, inside):
    for name in ("cat", "dog"):
        classes(tmp_path, *inside, below=f"{name}/")
    assert used(tmp_path)[0] == ("cat", "dog")


@pytest.mark.parametrize("above", ["a/", "a/inner/"])
def test_folders_with_whole_data_sets_are_refused_with_the_folders_to_give(tmp_path, above):
    for split in ("train", "test"):
        classes(tmp_path, "cat", "dog", below=f"{above}{split}/")
        classes(tmp_path, "cat", "dog", below=f"b/{split}/")
    with pytest.raises(DataUnusable, match=f"--data {tmp_path}/{above[:-1]}\n.*--data {tmp_path}/b\n"):
        listing(tmp_path)
    assert used(tmp_path / above) == (("cat", "dog"), ["test", "train"], 12)


def test_folder_that_holds_the_classes_beside_it_again_is_refused(tmp_path):
    classes(tmp_path, "cat", "dog")
    classes(tmp_path, "cat", "dog", below="animals/")
    with pytest.raises(DataUnusable, match=f"second time.*\n.*--data {tmp_path}/animals\n"):
        listing(tmp_path)
    assert used(tmp_path, layout="classes")[0] == ("animals", "cat", "dog")


def test_folders_too_high_may_be_deeper_and_hold_nearly_the_same_folders(tmp_path):
    names = [f"n{k}" for k in range(9)]
    classes(tmp_path, *names, "healthy", below="set/images/")
    classes(tmp_path, *names, "Healthy", below="segmented/")
    with pytest.raises(DataUnusable, match=f"hold the same folders(.|\n)*--data {tmp_path}/segmented"):
        listing(tmp_path)


def test_unlabelled_set_beside_folders_one_level_too_high(tmp_path):
    for name in ("rps", "rps-test-set"):
        classes(tmp_path, "rock", "paper", below=f"{name}/")
    tree(tmp_path, "rps-validation/1.png")
    with pytest.raises(DataUnusable, match=f"hold the same folders(.|\n)*--data {tmp_path}/rps\n"):
        listing(tmp_path)


def test_splits_in_some_classes_only_are_refused(tmp_path):
    for name in ("cat", "dog"):
        classes(tmp_path, "train", "test", below=f"{name}/")
    classes(tmp_path, "bird")
    with pytest.raises(DataUnusable, match="cat, dog hold splits .*bird hold none"):
        listing(tmp_path)
    assert used(tmp_path, layout="classes")[0] == ("bird", "cat", "dog")


def test_splits_in_a_split_folder_are_refused_with_the_folder_to_give(tmp_path):
    for split in ("train", "val"):
        classes(tmp_path, "cat", "dog", below=f"train/{split}/")
    tree(tmp_path, "test/1.jpg")
    with pytest.raises(DataUnusable, match=f"--data {tmp_path}/train\\n"):
        listing(tmp_path)


def test_numbers_in_numbers_are_refused_and_numbers_in_names_are_not(tmp_path):
    for patient in ("10253", "10254", "10255"):
        classes(tmp_path, "0", "1", below=f"{patient}/")
    with pytest.raises(DataUnusable, match="intake.label_from=parent"):
        listing(tmp_path)


def test_parts_of_one_set_are_no_classes(tmp_path):
    classes(tmp_path, "images_part_1", "images_part_2")
    (tmp_path / "metadata_of_photos.csv").write_text("id,dx\n")
    with pytest.raises(DataUnusable, match="parts of one set(.|\n)*--labels .*metadata_of_photos.csv"):
        listing(tmp_path)
    (tmp_path / "images_part_1").rename(tmp_path / "images_of_cats")
    assert used(tmp_path)[0] == ("images_of_cats", "images_part_2")


@pytest.mark.parametrize(
    ("paths", "offer"),
    [
        (("images/1.jpg", "a.csv", "b.csv", "sample_submission.csv"), r"--data \S+/images --labels \S+/a.csv\n.*b.csv\nOr"),
        (("images/1.jpg", "metadata/a.csv"), r"--data \S+/images --labels \S+/metadata/a.csv"),
        (("train/images/1.jpg", "train/train.csv"), r"--data \S+/train/images --labels \S+/train/train.csv"),
        ([f"images/{name}_{k}.jpg" for name in "ab" for k in range(4)], r"--data \S+/images --set intake.label_from=name"),
        (
            ("control/1.jpg", "test/2.jpg"),
            r"If the folders \(control, test\) are the classes: \S+ \S+ --set intake.layout=classes",
        ),
        (("data/1.jpg", "data/1.txt", "data/2.jpg", "data/2.txt"), "object detection"),
    ],
)
def test_single_folder_with_photos_is_refused_where_it_can_be_read_in_another_way(tmp_path, paths, offer):
    with pytest.raises(DataUnusable, match=offer):
        listing(tree(tmp_path, *paths))


def test_test_folder_with_a_number_is_a_test_set(tmp_path):
    tree(tmp_path, *(f"train/train/{name}" for name in NAMES), "test1/test1/1.jpg", "sampleSubmission.csv")
    with pytest.raises(DataUnusable, match=f"--data {tmp_path} --set intake.label_from=name"):
        listing(tmp_path)
    assert used(tmp_path, label_from="name") == (("cat", "dog"), ["train"], 6)


def test_pictures_folder_in_a_test_folder_is_no_class(tmp_path):
    classes(tmp_path, "n01/images", "n02/images", below="train/")
    tree(tmp_path, "test/images/1.jpg", "val/images/1.jpg")
    assert used(tmp_path) == (("n01", "n02"), ["train"], 6)


def test_stray_file_does_not_hide_an_inner_folder_of_the_same_name(tmp_path):
    for split in ("training_set", "test_set"):
        classes(tmp_path, "cat", "dog", below=f"{split}/{split}/")
    tree(tmp_path, "training_set/training_set/_DS_Store", "test_set/test_set/stray.jpg")
    assert used(tmp_path) == (("cat", "dog"), ["test", "train"], 12)


def test_class_folders_beside_annotations_are_named(tmp_path):
    classes(tmp_path, "akita", "beagle", below="images/Images/")
    tree(tmp_path, "annotations/Annotation/akita/1", "annotations/Annotation/beagle/1")
    with pytest.raises(DataUnusable, match=f"--data {tmp_path}/images/Images\n"):
        listing(tmp_path)


def test_photos_and_masks_in_each_class_are_no_classes(tmp_path):
    for name in ("covid", "normal"):
        classes(tmp_path, "images", "masks", below=f"{name}/")
    with pytest.raises(DataUnusable, match="look like photos and masks") as refused:
        listing(tmp_path)
    assert "label_from" not in str(refused.value)


def test_folders_that_are_all_splits_are_refused(tmp_path):
    tree(tmp_path, *(f"{split}/{name}.{k}.jpg" for split in ("train", "test") for name in ("cat", "dog") for k in range(3)))
    with pytest.raises(DataUnusable, match="unlabelled: all its folders are named like splits") as refused:
        listing(tmp_path)
    assert "--set intake.label_from=name" in str(refused.value) and "intake.layout=classes" in str(refused.value)
    assert used(tmp_path, label_from="name") == (("cat", "dog"), ["test", "train"], 12)


@pytest.mark.parametrize(
    "paths",
    [
        ("images/a.jpg", "labels/a.txt", "data.yaml"),
        ("train/images/a.jpg", "train/labels/a.txt", "valid/images/b.jpg", "valid/labels/b.txt"),
        ("images/train/a.jpg", "images/val/b.jpg", "labels/train/a.txt", "labels/val/b.txt"),
        ("JPEGImages/a.jpg", "Annotations/a.xml", "ImageSets/Main/train.txt"),
        ("train/a.jpg", "train/_annotations.coco.json", "valid/b.jpg", "valid/_annotations.coco.json"),
        ("images/a.jpg", "masks/a.png"),
        ("ds0/img/a.jpg", "ds0/ann/a.json", "ds1/img/b.jpg", "ds1/ann/b.json"),
        ("VOC/JPEGImages/a.jpg", "VOC/Annotations/a.xml", "VOC/SegmentationClass/a.png"),
        ("train2017/a.jpg", "val2017/b.jpg", "annotations/instances.json"),
    ],
)
def test_detection_exports_are_named_as_such(tmp_path, paths):
    with pytest.raises(DataUnusable, match="export for object detection or segmentation"):
        listing(tree(tmp_path, *paths))


@pytest.mark.parametrize(
    "name",
    [
        "lost+found",
        "$RECYCLE.BIN",
        "System Volume Information",
        "#recycle",
        "@eaDir",
        "__pycache__",
        ".thumbnails",
        ".Trash-1000",
    ],
)
def test_folders_that_systems_leave_are_ignored_at_any_depth(tmp_path, name):
    classes(tmp_path, "cat", "dog")
    tree(tmp_path, f"{name}/1.jpg", f"cat/{name}/1.jpg", f"cat/deep/{name}/1.jpg")
    found = listing(tmp_path)
    assert found.class_names == ("cat", "dog") and sum(e.verdict is None for e in found.entries) == 6
    left = [e.path for e in found.entries if e.reason == "a folder that systems leave beside photos"]
    assert left == sorted([f"{name}/", f"cat/{name}/", f"cat/deep/{name}/"])


def test_folder_of_the_system_that_may_not_be_read_is_never_opened(tmp_path, monkeypatch):
    classes(tmp_path, "cat", "dog")
    tree(tmp_path, "lost+found/", "cat/lost+found/")
    real = os.scandir

    def scandir(path):
        if "lost+found" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert used(tmp_path) == (("cat", "dog"), ["None"], 6)


@pytest.mark.parametrize("above", ["", "train/"])
def test_links_back_to_folders_above_give_no_photo_another_label(tmp_path, above):
    classes(tmp_path, "cat", "dog", below=above)
    (tmp_path / above / "cat" / "up").symlink_to("..")
    (tmp_path / above / "again").symlink_to(".")
    (tmp_path / above / "dog" / "top").symlink_to(tmp_path)
    assert used(tmp_path)[::2] == (("cat", "dog"), 6)


def test_link_to_where_nobody_may_look_costs_no_other_photo(tmp_path, monkeypatch):
    classes(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "a.jpg").symlink_to("secret/1.jpg")
    real = os.path.realpath

    def realpath(path, **options):
        if str(path).endswith("a.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(os.path, "realpath", realpath)
    assert used(tmp_path) == (("cat", "dog"), ["None"], 6)
    assert [e.reason for e in listing(tmp_path).entries if e.verdict] == ["cannot be read: Permission denied"]


NAMES = ("cat.0.jpg", "cat.1.jpg", "cat.2.jpg", "dog_01.jpg", "dog_02.jpg", "dog_03.jpg")


def test_flat_folder_with_classes_in_the_names_is_offered_and_read(tmp_path):
    tree(tmp_path, *NAMES)
    with pytest.raises(DataUnusable, match=r"cat \(3\), dog \(3\).*--set intake.label_from=name"):
        listing(tmp_path)
    assert used(tmp_path, label_from="name") == (("cat", "dog"), ["None"], 6)


@pytest.mark.parametrize(
    ("pattern", "names", "class_names"),
    [
        (r"(?P<label>[a-z_]+)_\d+", ("american_bulldog_10.jpg", "beagle_2.jpg"), ("american_bulldog", "beagle")),
        (r"\d+_(?P<label>\w)", ("001_a.png", "002_b.png"), ("a", "b")),
        (r"/(?P<label>[^/]+)/shots/", ("x/cat/shots/1.jpg", "y/dog/shots/1.jpg"), ("cat", "dog")),
    ],
)
def test_pattern_of_the_user_gives_the_label(tmp_path, pattern, names, class_names):
    assert used(tree(tmp_path, *names), label_from="name", label_pattern=pattern)[0] == class_names


def test_photo_whose_name_does_not_match_is_quarantined(tmp_path):
    tree(tmp_path, *NAMES, "list.txt", "photo.jpg")
    found = {e.path: (e.verdict, e.reason) for e in listing(tmp_path, label_from="name").entries if e.verdict}
    assert found == {
        "photo.jpg": ("quarantined", "its name does not match intake.label_pattern"),
        "list.txt": ("ignored", "no photo"),
    }


def test_links_to_named_folders_are_followed_and_no_others(tmp_path):
    store, root = tmp_path / "store", tmp_path / "data"
    tree(store, "ab/1", "ab/2", "secret/3")
    tree(root, "cat/0.jpg", "dog/0.jpg")
    for name, target in (("cat/1.jpg", "ab/1"), ("dog/2.jpg", "ab/2"), ("dog/3.jpg", "secret/3")):
        (root / name).symlink_to(store / target)
    (root / "bird").symlink_to(store / "ab")
    assert used(root)[2] == 2 and any("intake.link_roots" in line for line in listing(root).summary())
    settings = {"follow_links": True, "link_roots": (str(store / "ab"),)}
    found = listing(root, **settings)
    assert [e.path for e in found.entries if e.verdict] == ["dog/3.jpg"]
    source = open_source(str(root), settings=IntakeConfig(**settings))
    entries = [e for e in found.entries if e.verdict is None]
    assert [*source.read(entries)] == [b"x"] * 6 and len(entries) == 6
    assert source.location(entries[0]) == str(store / "ab" / "1")
    (store / "ab" / "1").unlink()
    (store / "ab" / "1").symlink_to(store / "secret" / "3")
    assert isinstance(next(iter(source.read(entries[:1]))), OSError)  # Nothing that was put there after the listing is read.
    assert used(root, link_roots=(str(store / "ab"),))[2] == 2


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "_classes.csv"])
def test_table_among_the_photos_is_read(tmp_path, name):
    for split in ("train", "valid", "test"):
        tree(tmp_path, *(f"{split}/{split}{k}.jpg" for k in range(4)))
        rows = [(f"{split}{k}.jpg", k % 2) for k in range(4)]
        text = {
            "metadata.csv": "file_name,label\n" + "".join(f"{file},{'cat' if n else 'dog'}\n" for file, n in rows),
            "metadata.jsonl": "".join(
                f'{{"file_name": "{file}", "label": "{"cat" if n else "dog"}"}}\n' for file, n in rows
            ),
            "_classes.csv": "filename, cat, dog\n" + "".join(f"{file}, {n}, {1 - n}\n" for file, n in rows),
        }[name]
        (tmp_path / split / name).write_text(text)
    found = listing(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert {(e.split, e.path.partition("/")[0]) for e in found.entries if e.verdict is None} == {
        ("train", "train"),
        ("val", "valid"),
        ("test", "test"),
    }
    assert sum(e.verdict is None for e in found.entries) == 12


def test_one_table_at_the_root_with_paths_into_split_folders_is_read(tmp_path):
    names = [f"{split}/{k}.jpg" for split in ("train", "test") for k in range(4)]
    tree(tmp_path, *names)
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n},{k % 2}\n" for k, n in enumerate(names)))
    assert used(tmp_path) == (("0", "1"), ["test", "train"], 8)


def test_hidden_table_is_none(tmp_path):
    tree(tmp_path, "a.jpg", "b.jpg", "._labels.csv", ".tsv")
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,cat\nb.jpg,dog\n")
    assert used(tmp_path) == (("cat", "dog"), ["None"], 2)
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(DataUnusable, match="unlabelled"):
        listing(tmp_path)


def test_class_folders_have_the_labels_where_a_table_lies_beside_them(tmp_path):
    classes(tmp_path, "cat", "dog")
    (tmp_path / "labels.csv").write_text("path,label\ncat/0.jpg,dog\n")
    assert used(tmp_path) == (("cat", "dog"), ["None"], 6)


def test_several_tables_beside_unlabelled_photos_are_named(tmp_path):
    tree(tmp_path, "a.jpg", "train.csv", "test.csv")
    with pytest.raises(DataUnusable, match="unlabelled") as refused:
        listing(tmp_path)
    assert f"--labels {tmp_path}/train.csv" in str(refused.value)


def test_summary_names_classes_splits_and_what_was_left_out(tmp_path):
    for split in ("train", "dev"):
        classes(tmp_path, *(f"class{k:02d}" for k in range(12)), below=f"{split}/", per_class=1)
    tree(tmp_path, "train/stray.txt", "other/1.jpg", "other/2.jpg")
    summary = listing(tmp_path).summary()
    assert (
        summary[0].startswith("12 classes, from the class folders: class00, class01") and "class09 and 2 more." in summary[0]
    )
    assert summary[1] == (
        "Splits, from the split folders: train 12, validation 12 files. "
        "Validation becomes the test set, and a part of train becomes validation."
    )
    assert summary[2].startswith("Ignored: 2 (")
    assert listing(tmp_path / "train").summary()[1].startswith("No splits are given")


# The layouts of people's folders in docs/data.md, by the words in their row; each has a test above.
LAYOUTS = (
    "`cat/`, `dog/`",
    "`train/cat/`, `test/cat/`",
    "`seg_train/seg_train/cat/`",
    "`cat/train/`, `cat/test/`",
    "a flat `test/`",
    "`bus/`, `car/`, `train/`",
    "`flower_photos/cat/`",
    "`real/train/cat/`",
    "`north/cat/`, `south/cat/`",
    "`cat/`, `dog/`, `animals/cat/`",
    "`images_part_1/`, `images_part_2/`",
    "one folder with photos",
    "`images/`, `labels/`",
    "`cat.0.jpg`",
    "`metadata.csv`",
    "links to other folders",
    "`lost+found/`",
)


def test_documented_layouts_are_those_that_are_tested():
    from tests.conftest import ROOT

    page = (ROOT / "docs" / "data.md").read_text()
    rows = page.partition("## Layouts")[2].partition("\n## ")[0]
    assert [row for row in LAYOUTS if row not in rows] == []
    assert rows.count("\n| ") - 1 == len(LAYOUTS)


@pytest.mark.parametrize("name", ["annotations.txt", "_annotations.coco.json", "train.lst", "out.manifest", "labels.mat"])
@pytest.mark.parametrize("below", ["", "images/"])
def test_labels_in_a_format_that_is_not_read_are_named(tmp_path, name, below):
    tree(tmp_path, *(f"{below}{k}.jpg" for k in range(9)), name, "README.txt")
    with pytest.raises(DataUnusable) as refused:
        listing(tmp_path)
    assert f"{tmp_path}/{name} may hold the labels, in a format that the job does not read." in str(refused.value)
    assert f"--data {tmp_path / below} --labels LABELS.csv".replace("/ ", " ") in str(refused.value)


def test_files_of_boxes_are_not_named_one_by_one(tmp_path):
    tree(tmp_path, *(f"{k}.{extension}" for k in range(9) for extension in ("jpg", "txt")))
    with pytest.raises(DataUnusable) as refused:
        listing(tmp_path)
    assert "may hold the labels" not in str(refused.value)
