"""Tables of labels: what each row gets, through the listing, the real intake and split, and the command line."""

import csv
import io
import json
import os
import pickle
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.data.known import source_digest
from job.errors import DataUnusable, UsageError
from job.sections import IntakeConfig, SplitConfig
from job.sources.folders import FolderSource
from job.sources.local import to_text
from job.sources.open import open_source
from job.stages.intake import intake
from job.stages.split import split
from tests.conftest import paint_classes, quick_settings, run_job


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


@pytest.fixture
def photos(tmp_path):
    """Twelve files that a listing takes for photos, a00.jpg to a11.jpg."""
    touch(*(tmp_path / f"a{k:02d}.jpg" for k in range(12)))
    return tmp_path


def table(folder, text, name="labels.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return open_source(str(folder / name)).listing()


def parquet(folder, columns, name="labels.parquet"):
    pq.write_table(pa.table(columns), folder / name)
    return open_source(str(folder / name)).listing()


def verdicts(listing):
    found = {e.path: (e.verdict, e.reason) for e in listing.entries}
    assert len(found) == len(listing.entries)
    return found


GOOD = "".join(f"a{k:02d}.jpg,{'cat' if k % 2 else 'dog'}\n" for k in range(12))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_line_ends_and_byte_order_marks_do_not_matter(photos, separator, end, encoding):
    text = 'path,label,split\na00.jpg,\u00fcn\u00ef,train\n\n"a01.jpg","two\nlines",TEST\n'.replace(",", separator)
    found = table(photos, text.replace("\n", end), encoding=encoding)
    assert [(e.path, e.split, e.verdict) for e in found.entries] == [("a00.jpg", "train", None), ("a01.jpg", "test", None)]
    assert found.class_names == (f"two{end}lines", "\u00fcn\u00ef")


def test_blanks_behind_the_separator_belong_to_it_where_the_header_has_them(photos):
    found = table(photos, 'path, label\na00.jpg, "cat, small"\na01.jpg, dog\n')
    assert found.class_names == ("cat, small", "dog")


def test_tsv_and_parquet_say_the_same_as_csv(photos):
    as_csv = table(photos, "path,label\n" + GOOD)
    as_tsv = table(photos, ("path,label\n" + GOOD).replace(",", "\t"), "labels.TSV")
    as_parquet = parquet(photos, {"path": [f"a{k:02d}.jpg" for k in range(12)], "label": ["dog", "cat"] * 6})
    assert as_csv.entries == as_tsv.entries == as_parquet.entries and len(as_csv.entries) == 12


def test_other_encodings_are_refused_with_the_way_out(photos):
    with pytest.raises(DataUnusable, match="save it as UTF-8"):
        table(photos, "path,label\na00.jpg,m\u00fcsli\n", encoding="latin-1")


@pytest.mark.parametrize(
    "header", [" Path ,LABEL,Split", "File Name,class_name,subset", "id,target,Set", "image,category,partition"]
)
def test_columns_are_found_by_their_usual_names(photos, header):
    found = table(photos, f"{header}\na00.jpg,cat,val\n")
    assert [(e.label, e.split) for e in found.entries] == [("cat", "val")] and not found.notes


def test_plain_name_wins_and_columns_not_used_are_noted(photos):
    found = table(photos, "id,path,label,width,class\n1,a00.jpg,cat,10,7\n")
    assert found.entries[0].label == "cat"
    assert found.notes == ("Columns of labels.csv that are not used: id, width, class.",)


def test_columns_that_may_both_be_meant_are_refused_by_name(photos):
    with pytest.raises(DataUnusable, match="'filename' and 'image' may each be the path"):
        table(photos, "filename,image,label\na00.jpg,a01.jpg,cat\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photo,kind,by\na00.jpg,cat,me\n", "no column path and no column label in it. Its header is 'photo', 'kind', 'by'"),
        ("path,width,height\na00.jpg,3,4\n", "no column label in it.*--label-column NAME"),
        ("", "is empty"),
        ("\n\n", "is empty|no column path"),
        ("path,label\n", "no row below it"),
        ("path,label\na00.jpg,\n", "no row has a label"),
        ('path,label\na00.jpg,"cat\na01.jpg,dog\n', "quotation mark in row 2 is never closed"),
        ('path,label\na00.jpg,dog\n"', "quotation mark in row 3 is never closed"),
        ("path,label\na00.jpg," + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(photos, text, said):
    with pytest.raises(DataUnusable, match=said):
        table(photos, text)


def test_file_that_is_no_parquet_is_refused(photos):
    with pytest.raises(DataUnusable, match="cannot be read as a table"):
        table(photos, "path,label\n", "labels.parquet")


def test_each_row_is_judged_alone(photos):
    rows = [
        "a02.jpg,cat,extra",
        "gone.jpg,cat",
        "a03.jpg,",
        ",cat",
        "a04.jpg",
        "a00.jpg/x,cat",
        "x" * 300 + ",cat",
        "a\0b,cat",
    ]
    found = verdicts(table(photos, "path,label\na00.jpg,cat\na01.jpg,dog\n" + "\n".join(rows)))
    assert found.pop("a00.jpg") == found.pop("a01.jpg") == (None, "")
    assert found == {
        "row 4": ("quarantined", "row 4 has 3 fields instead of 2"),
        "gone.jpg": ("quarantined", "the table names it in row 5, and there is no such file"),
        "a03.jpg": ("quarantined", "row 6 has no label"),
        "row 7": ("quarantined", "row 7 names no path"),
        "row 8": ("quarantined", "row 8 has 1 fields instead of 2"),
        "a00.jpg/x": ("quarantined", "the table names it in row 9, and there is no such file"),
        "x" * 300: ("quarantined", "the table names it in row 10, and there is no such file"),
        "a\0b": ("quarantined", "the table names it in row 11, and there is no such file"),
    }


def test_row_leaving_the_root_is_quarantined(tmp_path):
    root = tmp_path / "data"
    touch(root / "in.jpg", root / "sub" / "in.jpg", tmp_path / "out.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "out.jpg")
    (root / "gone.jpg").symlink_to("nowhere")
    (root / "folder").symlink_to(tmp_path)
    (root / "inside.jpg").symlink_to("in.jpg")
    names = [
        "../out.jpg",
        tmp_path / "out.jpg",
        "link.jpg",
        "gone.jpg",
        "folder/out.jpg",
        "..\\out.jpg",
        "sub/../../out.jpg",
    ]
    good = ["inside.jpg", root / "in.jpg", "sub/../sub/./in.jpg"]
    found = verdicts(table(root, "path,label\n" + "".join(f"{name},cat\n" for name in [*good, *names])))
    assert [found.pop(name) for name in ("inside.jpg", "in.jpg", "sub/in.jpg")] == [(None, "")] * 3
    said = [reason.partition("and ")[2] for _, reason in (found[to_text(str(name))] for name in names)]
    leaves = "it leaves the source folder"
    assert said == [
        leaves,
        leaves,
        "it is a link that leaves the source folder",
        "it is a link that points to nothing",
        "its folder is a link that leaves the source folder",
        leaves,
        leaves,
    ]
    assert {verdict for verdict, _ in found.values()} == {"quarantined"} and len(found) == len(names)


def test_absolute_paths_through_a_link_to_the_root_are_inside(tmp_path):
    touch(tmp_path / "real" / "a.jpg")
    (tmp_path / "way").symlink_to("real")
    assert verdicts(table(tmp_path / "real", f"path,label\n{tmp_path / 'way' / 'a.jpg'},cat\n")) == {"a.jpg": (None, "")}


def test_what_is_no_regular_file_is_never_opened(photos):
    os.mkfifo(photos / "pipe.jpg")
    (photos / "folder.jpg").mkdir()
    found = verdicts(table(photos, "path,label\npipe.jpg,cat\nfolder.jpg,cat\n.,cat\na00.jpg,cat\n"))
    assert found["pipe.jpg"] == ("quarantined", "the table names it in row 2, and it is not a regular file")
    assert found["folder.jpg"] == ("quarantined", "the table names it in row 3, and it is a folder")
    assert found["."][0] == "quarantined"


def test_splits_are_all_given_or_none(photos):
    text = "path,label,split\na00.jpg,cat,Train\na01.jpg,cat,valid\na02.jpg,cat,holdout\na03.jpg,cat,\n"
    found = table(photos, text)
    assert [e.split for e in found.entries] == ["train", "val", None, None]
    assert found.entries[2].reason == "row 4 puts it into 'holdout', and there are train, val and test"
    assert found.entries[3].reason == "row 5 has no split, and other rows have one"
    assert {e.verdict for e in found.entries[2:]} == {"quarantined"}
    assert {e.verdict for e in table(photos, "path,label,split\na00.jpg,cat,\na01.jpg,cat, \n").entries} == {None}


def test_photo_named_twice_is_one_example(photos):
    found = verdicts(table(photos, "path,label\na00.jpg,cat\na01.jpg,dog\n./a00.jpg,cat\n"))
    assert found["a00.jpg"] == (None, "") and found["a00.jpg (row 4)"] == ("ignored", "the same photo as in row 2")


def test_photo_under_two_labels_or_splits_is_a_conflict_naming_both_rows(photos):
    found = verdicts(table(photos, "path,label\n" + GOOD + "a00.jpg,cat\n"))
    assert found["a00.jpg"] == ("quarantined", "label conflict: 'dog' in row 2 and 'cat' in row 14")
    assert found["a00.jpg (row 14)"] == ("quarantined", "label conflict: 'cat' in row 14 and 'dog' in row 2")
    found = verdicts(table(photos, "path,label,split\na00.jpg,cat,train\na00.jpg,cat,test\n"))
    assert found["a00.jpg"][1] == "split conflict: 'train' in row 2 and 'test' in row 3"


def test_names_without_extension_find_the_one_photo_called_so(photos):
    touch(photos / "sub" / "7.png", photos / "sub" / "8.png", photos / "sub" / "8.JPG", photos / "sub" / "9.txt")
    found = table(photos, "id,label\na00,cat\nsub/7,cat\nsub/8,dog\nsub/9,dog\na01,dog\n")
    assert [e.path for e in found.entries if e.verdict is None] == ["a00.jpg", "a01.jpg", "sub/7.png"]
    assert "several that it may mean: sub/8.JPG, sub/8.png" in verdicts(found)["sub/8"][1]
    assert found.notes[0] == "3 rows name a photo without its extension; the photo was found."
    assert "2 of 5 rows find no file. Row 4 names 'sub/8'" in found.notes[1]


def test_backslashes_of_windows_are_understood_where_the_plain_name_does_not_exist(photos):
    touch(photos / "sub" / "b.jpg", photos / "sub\\c.jpg", photos / "sub" / "c.jpg")
    found = table(photos, "path,label\nsub\\b.jpg,cat\nsub\\c.jpg,dog\n")
    assert [(e.path, e.verdict) for e in found.entries] == [("sub/b.jpg", None), ("sub\\\\c.jpg", None)]


def test_awkward_names_are_found_and_read_back(tmp_path):
    names = [
        b"two words.jpg",
        b" lead.jpg",
        "\u00fcn\u00ef \U0001f33c.jpg".encode(),
        b"new\nline.jpg",
        b"q\"uo'te.jpg",
        b"=1+1.jpg",
    ]
    names += [b"<img onerror=x>.jpg", b"-rf.jpg", b"%s\\x41.jpg", b"\xff\xfe.jpg", b"a" * 251 + b".jpg", b"semi;colon,.jpg"]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(name)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "label"), *((to_text(os.fsdecode(name)), "cat") for name in names)])
    columns = {"path": pa.array(names, pa.binary()), "label": ["cat"] * len(names)}
    for found in (table(tmp_path, text.getvalue()), parquet(tmp_path, columns)):
        assert [e.verdict for e in found.entries] == [None] * len(names)
        source = pickle.loads(pickle.dumps(open_source(str(tmp_path / "labels.csv"))))
        assert sorted(source.read(found.entries)) == sorted(names)


def test_labels_of_parquet_become_text(photos):
    path = [f"a{k:02d}.jpg" for k in range(4)]
    for label in (
        pa.array([3, 10, 3, None]),
        pa.array([3.0, 10.0, 3.0, None]),
        pa.array(["3", "10", "3", None]).dictionary_encode(),
    ):
        found = parquet(photos, {"path": path, "label": label})
        assert [e.label for e in found.entries] == ["3", "10", "3", None]
        assert found.entries[3].reason == "row 4 has no label"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"path": ["a00.jpg"], "label": [["cat", "dog"]]},
            "'label' holds lists.*exactly one class.*one label for each photo",
        ),
        ({"path": ["a00.jpg"], "cat": [1], "dog": [1], "note": ["x"]}, r"2 columns of only 0 and 1 \(cat, dog\)"),
        ({"path": ["a00.jpg"], "cat": [True], "dog": [True]}, "exactly one class"),
        ({"image": [{"bytes": b"x", "path": "a00.jpg"}], "label": [1]}, "column 'image', which holds struct"),
    ],
)
def test_parquet_of_another_task_is_refused(photos, columns, said):
    with pytest.raises(DataUnusable, match=said):
        parquet(photos, columns)


@pytest.mark.parametrize(
    "labels",
    [["cat", "dog", "cat|dog"], ["cat;dog", "dog;cow", "cat; cow"], ["cat, dog", "cat", "dog"]],
)
def test_labels_that_combine_others_are_refused(photos, labels):
    rows = "".join(f'a{k:02d}.jpg,"{label}"\n' for k, label in enumerate(labels))
    with pytest.raises(DataUnusable, match="combines others.*exactly one class"):
        table(photos, "path,label\n" + rows)


def test_labels_in_two_parts_are_classes(photos):
    labels = ["Tomato, red", "Tomato, green", "Apple, red", "Apple, green", "salt|pepper"]
    rows = "".join(f'a{k:02d}.jpg,"{label}"\n' for k, label in enumerate(labels))
    assert table(photos, "path,label\n" + rows).class_names == tuple(sorted(labels))


def test_columns_of_zeros_and_ones_are_refused_as_several_labels(photos):
    with pytest.raises(DataUnusable, match=r"2 columns of only 0 and 1 \(rust, scab\).*exactly one class"):
        table(photos, "image_id,rust,scab,note\na00,0,1,x\na01,1,1,y\n")


def test_many_photos_under_several_labels_are_refused(photos):
    with pytest.raises(DataUnusable, match=r"2 of the 12 photos.*\(a00.jpg: 'dog' in row 2, 'cat' in row 14\).*exactly one"):
        table(photos, "path,label\n" + GOOD + "a00.jpg,cat\na01.jpg,dog\n")


def test_files_that_no_row_names_are_counted(photos):
    touch(photos / "row 2", photos / "sub" / "README.md")
    (photos / "labels.csv").write_text("path,label\n,cat\na00,cat\na01.jpg,\n")
    found = verdicts(open_source(str(photos), str(photos / "labels.csv")).listing())
    assert found["a00.jpg"] == (None, "") and found["a01.jpg"][0] == "quarantined"
    assert found["a02.jpg"] == found["row 2"] == ("ignored", "no row of the labels table names it")
    assert found["row 2 (row 2)"] == ("quarantined", "row 2 names no path")
    assert found["labels.csv"] == ("ignored", "the labels table")
    assert found["sub/README.md"][0] == "ignored" and len(found) == 12 + 4


def test_unlabelled_table_needs_no_labels(photos):
    (photos / "new.csv").write_text("path,class,target\na00.jpg,1,2\na01.jpg,,\ngone.jpg,a|b,a\n")
    found = open_source(str(photos / "new.csv"), labelled=False).listing()
    assert [(e.path, e.label, e.verdict) for e in found.entries] == [
        ("a00.jpg", None, None),
        ("a01.jpg", None, None),
        ("gone.jpg", None, "quarantined"),
    ]


def test_wrong_uses_of_tables_say_the_way_out(photos):
    (photos / "labels.csv").write_text("path,label\n")
    for data, labels, said in (
        (photos / "labels.csv", photos / "labels.csv", "is a table itself"),
        (photos, photos / "nowhere.csv", "no such file"),
        (photos, photos / "a00.jpg", ".csv, .tsv, .parquet"),
        (photos, photos, "this is not a file"),
        ("tfds:beans", photos / "labels.csv", "has labels of its own"),
        (photos, "gs://bucket/labels.csv", r"is on this machine\. Copy the table here"),
    ):
        with pytest.raises(UsageError, match=said):
            open_source(str(data), labels and str(labels))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_table_of_text_is_refused_or_accounts_for_each_row_once(data):
    cell = st.one_of(
        st.sampled_from(["a.jpg", "a", "sub/b.jpg", "..", "cat", "dog", "train", "", "cat|dog", "path", "label"]), st.text()
    )
    header = data.draw(st.one_of(st.just(["path", "label", "split"]), st.lists(cell, min_size=1, max_size=4)))
    rows = data.draw(st.lists(st.lists(cell, min_size=1, max_size=4), max_size=8))
    delimiter = data.draw(st.sampled_from(",;\t"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        touch(root / "a.jpg", root / "sub" / "b.jpg")
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([header, *rows])
        (root / "t.csv").write_bytes(text.getvalue().encode("utf-8"))
        try:
            found = open_source(str(root / "t.csv"), labelled=data.draw(st.booleans())).listing()
        except DataUnusable:
            return
    filled = [row for row in [header, *rows] if any(map(str.strip, row))]
    num_rows = len(filled) - 1 + any("has no header" in note for note in found.notes)
    assert len(found.entries) == num_rows and len({e.path for e in found.entries}) == num_rows
    for entry in found.entries:
        entry.path.encode("utf-8")


@given(
    content=st.one_of(
        st.binary(max_size=80), st.text('a,;\t"\n\r |\0', max_size=80).map(lambda t: f"path,label\n{t}".encode())
    )
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_table_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("t.csv", "t.parquet"):
            (Path(folder) / name).write_bytes(content)
            try:
                listed = open_source(str(Path(folder) / name)).listing().entries
            except DataUnusable as refusal:
                assert name in str(refusal)
            else:  # There are no photos: a row can only be refused.
                assert listed and {entry.verdict for entry in listed} == {"quarantined"}


@pytest.fixture
def painted_table(tmp_path):
    """A table of twelve painted photos with splits, beside their folder."""
    folder = paint_classes(tmp_path / "photos", per_class=6)
    splits = ["train", "train", "train", "val", "test", "test"]
    rows = [
        f"{p.relative_to(tmp_path)},{p.parent.name},{splits[k % 6]}" for k, p in enumerate(sorted(folder.rglob("*.jpg")))
    ]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(["path,label,split", *rows, "photos/gone.jpg,stripes,train", "photos/stripes,stripes,test"]))
    return file


def test_table_goes_through_intake_and_split(painted_table, context):
    source = open_source(str(painted_table))
    config = IntakeConfig(image_size=48, max_quarantined_fraction=0.2)
    found = intake(config, source=source, listing=source.listing(), context=context)
    made = split(
        SplitConfig(),
        examples=found.examples,
        images=found.images,
        max_quarantined_fraction=0.1,
        drop_small_classes=False,
        context=context,
    )
    assert made.examples["status"].tolist().count("quarantined") == 2
    assert [len(made.examples.of(name)) for name in ("train", "val", "test")] == [6, 2, 4]
    assert "1 x the table names it in row N, and there is no such file" in str(made.refusals[0])


def test_changed_label_split_or_row_is_noticed_and_a_touched_table_is_not(painted_table, context):
    source = open_source(str(painted_table))
    intake(
        IntakeConfig(image_size=48, max_quarantined_fraction=0.2), source=source, listing=source.listing(), context=context
    )

    def digest():
        return source_digest(source, source.listing(), context)

    before, text = digest(), painted_table.read_text()
    os.utime(painted_table, ns=(1, 1))
    assert digest() == before != ""
    lines = text.splitlines()
    changes = {
        "label": lines[1].replace(",checks,", ",stripes,"),
        "split": lines[1].replace(",train", ",test"),
        "row": None,
    }
    for what, line in changes.items():
        painted_table.write_text("\n".join([lines[0], *([line] if line else []), *lines[2:]]))
        assert digest() != before, what
    painted_table.write_text(text)
    assert digest() == before


def test_changed_label_decodes_nothing_again(painted_table, context):
    def shard():
        source = open_source(str(painted_table))
        config = IntakeConfig(image_size=48, max_quarantined_fraction=0.2)
        found = intake(config, source=source, listing=source.listing(), context=context)
        (file,) = context.cache.root.rglob("*.npy")
        return found.examples["label"].tolist().count("checks"), file.stat().st_ino

    before = shard()
    painted_table.write_text(painted_table.read_text().replace("checks-000.jpg,checks,", "checks-000.jpg,stripes,"))
    assert shard() == (before[0] - 1, before[1])


def test_explore_takes_a_folder_with_a_table_and_goes_on_where_nothing_changed(painted_table, tmp_path):
    photos, out = painted_table.parent / "photos", tmp_path / "out"
    lines = [line.removeprefix("photos/") for line in painted_table.read_text().splitlines()]
    painted_table.write_text(
        "\n".join(line for line in lines if not line.startswith(("gone", "stripes,", "checks/checks-005")))
    )
    call = ["explore", "--data", photos, "--labels", painted_table, "--out", out, *quick_settings()]
    done = run_job(*call)
    assert done.returncode == 0, done.stderr
    described = json.loads((out / "run.json").read_text())
    assert (described["data"], described["labels"]) == (str(photos), str(painted_table)) and "--labels" in described[
        "command"
    ]
    rows = pq.read_table(out / "examples.parquet").to_pydict()
    assert (
        dict(zip(rows["path"], rows["reason"], strict=True))["checks/checks-005.jpg"]
        == "no row of the labels table names it"
    )
    again = run_job(*call[:-1], call[-1], "--set", "split.seed=0")
    assert again.returncode == 0 and "intake    runs" not in again.stdout + again.stderr
    os.utime(painted_table, ns=(1, 1))
    painted_table.write_text(painted_table.read_text().replace("checks-000.jpg,checks,train", "checks-000.jpg,checks,test"))
    changed = run_job(*call)
    assert changed.returncode == 0 and "intake    runs" in changed.stdout + changed.stderr


def test_out_beside_the_table_is_fine_and_inside_the_photos_is_not(painted_table):
    done = run_job(
        "explore",
        "--data",
        painted_table,
        "--out",
        painted_table.parent / "out",
        "--set",
        "intake.max_quarantined_fraction=0.2",
    )
    assert done.returncode == 0, done.stderr
    photos = painted_table.parent / "photos"
    done = run_job("explore", "--data", photos, "--labels", painted_table, "--out", photos / "out")
    assert done.returncode == 2 and "lie inside each other" in done.stderr


def test_table_that_cannot_be_read_ends_with_65(tmp_path):
    (tmp_path / "labels.csv").write_text("photo,kind,by\na.jpg,cat,me\n")
    done = run_job("explore", "--data", tmp_path / "labels.csv", "--out", tmp_path / "out")
    assert done.returncode == 65 and "--path-column NAME" in done.stderr and "Traceback" not in done.stderr


def test_class_folder_that_is_a_link_to_elsewhere_is_not_followed(tmp_path):
    touch(tmp_path / "data" / "dog" / "a.jpg", tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    found = FolderSource((tmp_path / "data").resolve()).listing()
    assert found.class_names == ("cat", "dog")
    assert verdicts(found)["cat"] == ("quarantined", "a link that leaves the source folder")


def test_export_check_reads_the_photos_of_a_table_through_its_source(photos):
    (photos / "sub").mkdir()
    (photos / "a00.jpg").rename(photos / "sub" / "b.jpg")
    (photos / "sub" / "labels.csv").write_text("id,label\nb,cat\n")
    for source in (
        open_source(str(photos / "sub" / "labels.csv")),
        open_source(str(photos / "sub"), str(photos / "sub" / "labels.csv")),
    ):
        entries = [e for e in source.listing().entries if e.verdict is None]
        sent, listed = pickle.loads(pickle.dumps((source, entries)))  # To another process.
        sent.prepare()
        assert [e.path for e in listed] == ["b.jpg"] and list(sent.read(listed)) == [b"x"]


def test_columns_and_folds_are_named_on_the_command_line_and_what_was_understood_comes_first(painted_table, tmp_path):
    lines = painted_table.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    text = "".join(f"{label},{k % 5},{path},{k // 3}\n" for k, (path, label, *_) in enumerate(rows))
    (painted_table.parent / "folds.csv").write_text("kind,fold,where,who\n" + text)
    flags = "--path-column where --label-column kind --split-column fold --group-column who --test-values 3,4 --val-values 2"
    done = run_job("explore", "--data", painted_table.parent / "folds.csv", "--out", tmp_path / "out", *flags.split())
    assert done.returncode in (0, 65), done.stderr
    first = [line for line in done.stderr.splitlines() if "classes, from" in line or "Splits, from" in line]
    assert "column 'kind' of folds.csv" in first[0] and "column 'fold' of folds.csv: train" in first[1]
    table = pq.read_table(tmp_path / "out" / "examples.parquet").to_pydict()
    assert len(set(filter(None, table["given_group"]))) == 4
    assert first[0] in (tmp_path / "out" / "report.html").read_text().replace("&#39;", "'")
