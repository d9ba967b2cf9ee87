"""Tables as people have them: which column is what, what is refused, and what makes rows find their files."""

import gzip
import json

import pytest

from job.errors import DataUnusable, UsageError
from job.sections import IntakeConfig
from job.sources.open import open_source

PHOTOS = tuple(f"a{k:02d}.jpg" for k in range(12))


@pytest.fixture
def photos(tmp_path):
    for name in PHOTOS:
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listing(table, text=None, **settings):
    if text is not None:
        table.write_text(text)
    return open_source(str(table), settings=IntakeConfig(**settings)).listing()


def rows(header, *columns, num_rows=12):
    """Return a table where each column is a function of the number of the row."""
    return header + "\n" + "".join(",".join(str(column(k)) for column in columns) + "\n" for k in range(num_rows))


def path(k):
    return PHOTOS[k]


def label(k):
    return "cat" if k % 2 else "dog"


@pytest.mark.parametrize(
    "header",
    ["image_id,breed", "id_code,diagnosis", "filepaths,labels", "file_name,label", "Image,Id", "photo,what", "image,dx"],
)
def test_usual_columns_are_known_and_two_need_no_names(photos, header):
    found = listing(photos / "labels.csv", rows(header, path, label))
    assert found.class_names == ("cat", "dog") and len(found.entries) == 12


def test_of_two_unknown_columns_the_one_with_file_names_is_the_path(photos):
    assert listing(photos / "labels.csv", rows("what,photo", label, path)).class_names == ("cat", "dog")


def test_table_without_a_header_is_read_from_its_first_row(photos):
    found = listing(photos / "labels.csv", "".join(f"{path(k)},{label(k)}\n" for k in range(12)))
    assert len(found.entries) == 12 and found.class_names == ("cat", "dog") and "no header" in found.notes[0]


def test_table_without_a_header_whose_paths_have_no_extension(photos):
    found = listing(photos / "labels.csv", "".join(f"{path(k)[:-4]},{label(k)}\n" for k in range(12)))
    assert len(found.entries) == 12 and found.class_names == ("cat", "dog")


@pytest.mark.parametrize("of_row", ["{split},{path},{label}", "{number},{path},{split},{label}"])
def test_columns_of_a_table_without_a_header_are_known_by_their_values(photos, of_row):
    rows = [{"split": "TEST" if k > 7 else "TRAIN", "path": path(k), "label": label(k), "number": k} for k in range(12)]
    found = listing(photos / "labels.csv", "".join(of_row.format(**row) + "\n" for row in rows))
    assert found.class_names == ("cat", "dog")
    assert [e.split for e in found.entries].count("test") == 4


def test_blank_rows_and_empty_labels_of_programs(photos):
    found = listing(photos / "labels.csv", rows("path,label", path, lambda k: "NaN" if k == 3 else label(k)) + ",\n,\n")
    assert len(found.entries) == 12 and found.class_names == ("cat", "dog")
    assert [e.reason for e in found.entries if e.verdict] == ["row 5 has no label"]


def test_numbers_of_classes_are_a_column_of_labels(photos):
    found = listing(photos / "labels.csv", rows("Path,ClassId,Shape", path, lambda k: k % 2, lambda k: 0))
    assert found.class_names == ("0", "1")


def test_properties_of_photos_are_no_classes(photos):
    with pytest.raises(DataUnusable, match="no column label"):
        listing(photos / "labels.csv", rows("path,indoor,blurred", path, lambda k: int(k == 1), lambda k: 0))


def test_columns_of_a_prepared_table_with_more_of_them(photos):
    text = rows("class id,filepaths,labels,data set", lambda k: 7, path, label, lambda k: "test" if k > 7 else "train")
    found = listing(photos / "labels.csv", text)
    assert found.class_names == ("cat", "dog")
    assert [e.split for e in found.entries].count("test") == 4
    assert found.labels_from == "column 'labels' of labels.csv"


def test_settings_name_columns_over_every_guess(photos):
    text = rows(
        "file,photo,label,kind,part,who", lambda k: "x", path, lambda k: "x", label, lambda k: "train", lambda k: k // 4
    )
    found = listing(
        photos / "labels.csv", text, path_column="photo", label_column="kind", split_column="Part", group_column="who"
    )
    assert found.class_names == ("cat", "dog")
    assert [e.group for e in found.entries] == ["0"] * 4 + ["1"] * 4 + ["2"] * 4


def test_rows_without_a_group_are_counted(photos):
    text = rows("path,label,patient_id", path, label, lambda k: "" if k == 3 else k // 2)
    assert any(
        n.startswith("1 rows have no group") for n in listing(photos / "labels.csv", text, group_column="patient_id").notes
    )


def test_message_about_a_missing_column_has_the_header_and_the_flag(photos):
    with pytest.raises(DataUnusable, match=r"no column label.*'file', 'what', 'by'.*--label-column NAME"):
        listing(photos / "labels.csv", "file,what,by\na00.jpg,cat,me\n")
    with pytest.raises(UsageError, match=r"no column 'kind' \(intake.label_column\).*'file', 'what', 'by'"):
        listing(photos / "labels.csv", label_column="kind")
    with pytest.raises(DataUnusable, match=r"'image' and 'file' may each be the path.*--path-column 'image'"):
        listing(photos / "labels.csv", "image,file,label\na00.jpg,a01.jpg,cat\n")


def test_column_of_another_meaning_is_no_split(photos):
    found = listing(photos / "labels.csv", rows("image_id,dx,dataset", path, label, lambda k: "vidir_modern"))
    assert {e.split for e in found.entries} == {None} and not any(e.verdict for e in found.entries)


def test_one_hot_columns_are_the_classes(photos):
    text = rows("image,MEL,NV,BCC", path, lambda k: float(k < 4), lambda k: float(4 <= k < 8), lambda k: float(8 <= k < 11))
    found = listing(photos / "labels.csv", text)
    assert found.class_names == ("BCC", "MEL", "NV")
    assert found.entries[11].reason == "row 13 has no 1 in any column of a class"
    assert [e.label for e in found.entries[:11]] == ["MEL"] * 4 + ["NV"] * 4 + ["BCC"] * 3


def test_rows_with_two_ones_are_several_labels(photos):
    with pytest.raises(DataUnusable, match="row 2 has more than one 1.*exactly one class.*--label-column NAME"):
        listing(photos / "labels.csv", rows("image,MEL,NV,BCC", path, lambda k: 1, lambda k: int(k == 0), lambda k: 0))


@pytest.mark.parametrize("separator", [" ", ",", "|", ";"])
def test_joined_labels_are_refused_and_can_be_allowed(photos, separator):
    kinds = ("scab", "rust", f"scab{separator}rust")
    text = rows("image,labels", path, lambda k: f'"{kinds[k % 3]}"')
    with pytest.raises(DataUnusable, match="combines others.*exactly one class.*allow_joined_labels=true"):
        listing(photos / "labels.csv", text)
    assert len(listing(photos / "labels.csv", allow_joined_labels=True).class_names) == 3


@pytest.mark.parametrize("joined", ["['cat', 'dog']", '{"choices": ["cat", "dog"]}'])
def test_lists_written_as_text_are_several_labels(photos, joined):
    with pytest.raises(DataUnusable, match="exactly one class"):
        listing(photos / "labels.tsv", rows("path\tlabel", lambda k: f"{path(k)}\t{joined if k % 2 else 'dog'}"))


def test_names_of_two_words_are_no_joined_labels(photos):
    kinds = ("American Crow", "Fish Crow", "American Robin", "Black Tern", "Great Black Gull", "Tern")
    assert len(listing(photos / "labels.csv", rows("image,species", path, lambda k: kinds[k % 6])).class_names) == 6


@pytest.mark.parametrize("box", ["xmin,ymin,xmax,ymax", "x_min,y_min,x_max,y_max", "x1,y1,x2,y2"])
def test_table_of_boxes_is_named_as_such(photos, box):
    text = rows(f"filename,class,{box}", path, label, *[lambda k: k] * 4)
    with pytest.raises(DataUnusable, match="table for object detection.*--label-column NAME"):
        listing(photos / "labels.csv", text)
    assert listing(photos / "labels.csv", label_column="class").class_names == ("cat", "dog")


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize(("val", "test"), [("dev", "eval"), ("Valid", "testing"), ("validation", "Test")])
def test_split_values_go_by_many_names(photos, train, val, test):
    text = rows("path,label,split", path, label, lambda k: (train, val, test)[k % 3])
    assert [e.split for e in listing(photos / "labels.csv", text).entries] == ["train", "val", "test"] * 4


def test_unassigned_is_no_split(photos):
    text = rows("path,label,split", path, label, lambda k: "UNASSIGNED")
    assert {(e.split, e.verdict) for e in listing(photos / "labels.csv", text).entries} == {(None, None)}
    text = rows("path,label,split", path, label, lambda k: ("TRAIN", "TEST", "UNASSIGNED")[k % 3])
    found = listing(photos / "labels.csv", text)
    assert [e.split for e in found.entries] == ["train", "test", "train"] * 4 and "4 rows are in no split" in found.notes[0]


def test_values_that_no_row_has_are_refused(photos):
    text = rows("path,label,fold", path, label, lambda k: k % 4)
    with pytest.raises(UsageError, match="no row has '9'.*0, 1, 2, 3"):
        listing(photos / "labels.csv", text, split_column="fold", test_values=("9",))
    with pytest.raises(UsageError, match="--split-column NAME"):
        listing(photos / "labels.csv", text, test_values=("3",))


def test_column_of_splits_with_other_values_is_refused_with_the_flag(photos):
    text = rows("path,label,split", path, label, lambda k: ("training", "public", "private")[k % 3])
    with pytest.raises(DataUnusable, match="--split-column split --test-values public"):
        listing(photos / "labels.csv", text)


def test_tables_with_labels_in_different_columns_are_refused(photos):
    for split, header in (("train", "file_name,label"), ("test", "file_name,id")):
        (photos / split).mkdir()
        for name in PHOTOS:
            (photos / name).rename(photos / split / name) if split == "test" else (photos / split / name).write_bytes(b"x")
        (photos / split / "metadata.csv").write_text(rows(header, path, label))
    with pytest.raises(DataUnusable, match=r"'id' of .*'label' of (.|\n)*--data \S+/train/metadata.csv"):
        listing(photos)


def test_folds_become_splits(photos):
    text = rows("path,label,fold", path, label, lambda k: k % 4)
    with pytest.raises(DataUnusable, match="'fold' holds 0, 1, 2, 3.*--test-values 3"):
        listing(photos / "labels.csv", text, split_column="fold")
    found = listing(photos / "labels.csv", split_column="fold", test_values=("3",), val_values=("0", "1"))
    assert [e.split for e in found.entries] == ["val", "val", "train", "test"] * 3


def write(photos, name, text):
    file = photos / name
    if name.endswith(".gz"):
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_bytes(text.encode())
    return file


PLAIN = rows("filename,label", path, label)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("excel.csv", "sep=;\r\n" + PLAIN.replace(",", ";")),
        ("quoted.csv", '"sep=,"\n' + PLAIN),
        ("comment.csv", "# exported by us, 2024\n# twice\n" + PLAIN),
        ("header.csv", "#" + PLAIN),
        ("trailing-header.csv", PLAIN.replace("filename,label", "filename,label,")),
        ("trailing-rows.csv", PLAIN.replace("\n", ",\n").replace("label,", "label", 1)),
        ("packed.csv.gz", PLAIN),
        ("packed.tsv.gz", PLAIN.replace(",", "\t")),
        ("lines.jsonl", "".join(json.dumps({"file_name": path(k), "label": label(k)}) + "\n" for k in range(12))),
        ("lines.ndjson", "".join(json.dumps({"label": label(k), "image": path(k)}) + "\n" for k in range(12))),
        (
            "separators.jsonl",
            "".join(f'{{"path": "{path(k)}", "label": "{label(k)}", "": "\u2028"}}\r\n' for k in range(12)),
        ),
    ],
)
def test_tables_as_programs_write_them(photos, name, text):
    found = listing(write(photos, name, text))
    assert found.class_names == ("cat", "dog") and len(found.entries) == 12
    assert not any(entry.verdict for entry in found.entries)


def test_rows_of_a_commented_table_keep_their_numbers(photos):
    found = listing(write(photos, "t.csv", "# one\nsep,label,path\n1,,a00.jpg\n2,cat,a01.jpg\n"))
    assert found.entries[0].reason == "row 3 has no label"


def test_excel_file_is_read(photos):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [
        ("filename", "label", "width", None),
        *((path(k), label(k), k + 0.5, None) for k in range(12)),
        (None, None),
    ]:
        book.active.append(row)
    book.create_sheet("notes")
    book.save(photos / "labels.xlsx")
    found = listing(photos / "labels.xlsx")
    assert found.class_names == ("cat", "dog") and len(found.entries) == 12
    assert "only its first sheet, 'Sheet', is read" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv.gz", b"no gzip", "compression is damaged"),
        ("t.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)[:-9], "compression is damaged"),
        ("t.xlsx", b"no zip", "compression is damaged"),
        ("t.jsonl", b'{"file_name": "a00.jpg"\n', "line 1 is not JSON"),
        ("t.jsonl", b"[1, 2]\n", "line 1 holds no JSON object"),
        ("t.jsonl", b"\n", "is empty"),
        ("t.jsonl", b'{"file_name": "a00.jpg", "label": ["cat", "dog"]}\n', "holds lists"),
    ],
)
def test_damaged_tables_are_refused(photos, name, content, said):
    (photos / name).write_bytes(content)
    with pytest.raises(DataUnusable, match=said):
        listing(photos / name)


def at(photos, place):
    """Move the photos to another folder below."""
    for name in PHOTOS:
        (photos / place / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).rename(photos / place / name)


@pytest.mark.parametrize(
    ("written", "note"),
    [
        (lambda k: path(k).upper(), "12 rows write a path in other letters"),
        (lambda k: path(k).replace(".jpg", ".JPG"), "12 rows write a path in other letters"),
        (lambda k: path(k).replace(".jpg", "").upper(), "12 rows write a path in other letters"),
        (lambda k: f"/kaggle/input/flowers/{path(k)}", "begins with /kaggle/input/flowers/, which was dropped"),
        (lambda k: f"C:\\Users\\me\\{path(k)}", "begins with C:/Users/me/, which was dropped"),
        (lambda k: f"flowers/{path(k).upper()}", "begins with flowers/, which was dropped"),
    ],
)
def test_other_spellings_find_their_file_with_a_note(photos, written, note):
    found = listing(photos / "labels.csv", rows("path,label", written, label))
    assert [(e.path, e.verdict) for e in found.entries] == [(name, None) for name in PHOTOS]
    assert any(note in line for line in found.notes)


@pytest.mark.parametrize(("in_table", "on_disk"), [("\u00e9", "e\u0301"), ("e\u0301", "\u00e9")])
def test_other_unicode_forms_find_their_file(tmp_path, in_table, on_disk):
    (tmp_path / f"fleur-{on_disk}").mkdir()
    for k in range(4):
        (tmp_path / f"fleur-{on_disk}" / f"{on_disk}{k}.jpg").write_bytes(b"x")
    text = rows("path,label", lambda k: f"fleur-{in_table}/{in_table}{k}.jpg", label, num_rows=4)
    found = listing(tmp_path / "labels.csv", text)
    assert {e.verdict for e in found.entries} == {None} and len(found.entries) == 4


def test_spelling_that_may_mean_two_files_finds_none(photos):
    for name in ("b.jpg", "B.JPG"):
        (photos / name).write_bytes(b"x")
    found = listing(photos / "labels.csv", "path,label\na00.jpg,cat\nB.jpg,dog\n")
    assert [(e.path, e.verdict) for e in found.entries] == [("B.jpg", "quarantined"), ("a00.jpg", None)]


@pytest.mark.parametrize(
    ("place", "written", "said"),
    [
        ("images", lambda k: f"/data/upload/{k}/{path(k)}", "--data {root}/images --labels {root}/labels.csv"),
        ("b/images", path, "--data {root}/b/images --labels {root}/labels.csv"),
        ("img", lambda k: f"https://cdn.example.com/x/{path(k)}", "These are URLs"),
        (".", lambda k: path(k).replace(".jpg", ".png"), "change the extension"),
        (".", lambda k: path(k).replace("a0", "a"), "leading zeros"),
        (".", lambda k: path(k).replace("a0", "%610"), "write the characters for which codes such as %20 stand"),
        (".", lambda k: f"lost/{k}.bmp", "the nearest file is"),
    ],
)
def test_rows_that_find_no_file_are_diagnosed(photos, place, written, said):
    at(photos, place)
    with pytest.raises(DataUnusable) as refused:
        listing(photos / "labels.csv", rows("path,label", written, label, num_rows=10))
    message = str(refused.value)
    assert "10 of 10 rows find no file. Row 2 names" in message and f"Looked in {photos}" in message
    assert said.format(root=photos) in message
    assert "The header is 'path', 'label'" in message and "--path-column NAME --label-column NAME" in message


def test_paths_from_a_folder_above_name_it(photos):
    (photos / "tables").mkdir()
    with pytest.raises(DataUnusable, match=f"--data {photos} --labels {photos}/tables/labels.csv"):
        listing(photos / "tables" / "labels.csv", rows("path,label", path, label))


@pytest.mark.parametrize("written", ["a{k:02d}.jpg", "a{k:02d}", "../images/a{k:02d}.jpg"])
def test_table_in_a_folder_of_its_own_names_the_folder_of_the_photos(tmp_path, written):
    for folder in ("images", "metadata"):
        (tmp_path / folder).mkdir()
    for name in PHOTOS:
        (tmp_path / "images" / name).write_bytes(b"x")
    table = tmp_path / "metadata" / "labels.csv"
    with pytest.raises(DataUnusable, match=f"--data {tmp_path}/images --labels {table}"):
        listing(table, rows("image,label", lambda k: written.format(k=k), label))
    found = open_source(str(tmp_path / "images"), str(table)).listing()
    assert len(found.entries) == 12 and not any(e.verdict for e in found.entries)


def test_table_finds_its_folder_among_folders_with_the_same_names(tmp_path):
    for folder in ("test", "train"):
        (tmp_path / folder).mkdir()
        for name in PHOTOS:
            (tmp_path / folder / name).write_bytes(b"x")
    with pytest.raises(DataUnusable, match=f"12 of 12 .*--data {tmp_path}/train --labels"):
        listing(tmp_path / "train.csv", rows("image,label", path, label))


def test_objects_of_a_bucket_name_the_bucket(photos):
    with pytest.raises(DataUnusable, match=f"--data gs://bucket/flowers --labels {photos}/labels.csv"):
        listing(photos / "labels.csv", rows("path,label", lambda k: f"gs://bucket/flowers/{path(k)}", label))
    with pytest.raises(DataUnusable, match="12 rows find no file"):
        listing(photos / "labels.csv", rows("path,label", lambda k: f"gs://{'/' * (k % 2)}bucket{k}/{path(k)}", label))


def test_part_of_the_rows_without_files_is_noted_with_the_change(photos):
    text = rows("path,label", lambda k: path(k) if k < 9 else f"old/{path(k)}", label)
    found = listing(photos / "labels.csv", text)
    assert sum(e.verdict is None for e in found.entries) == 9
    assert any(
        "3 of 12 rows find no file" in n and "3 of 3 of these rows would match: drop 'old/'" in n for n in found.notes
    )


def test_nothing_outside_is_reached_by_dropping_a_part_of_a_path(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"x")
    with pytest.raises(DataUnusable, match="2 of 2 rows find no file"):
        listing(tmp_path / "data" / "labels.csv", "path,label\n../secret.jpg,cat\n../../secret.jpg,dog\n")


# The tables of people in docs/data.md, by the words in their row; each has a test above. COCO has its own in test_layout.py.
TABLES = (
    "usual names",
    "two columns",
    "no header",
    "0 and 1",
    "`scab rust`",
    "`xmin`",
    "`fold`",
    "UNASSIGNED",
    "`patient_id`",
    "`sep=;`",
    "`.csv.gz`",
    "`.jsonl`",
    "(COCO)",
    "`.xlsx`",
    "other letters",
    "another machine",
    "URLs",
    "leading zeros",
)


def test_documented_tables_are_those_that_are_tested():
    from tests.conftest import ROOT

    page = (ROOT / "docs" / "data.md").read_text()
    section = page.partition("## Tables of labels")[2].partition("\n| Column |")[0]
    assert [row for row in TABLES if row not in section] == []
    assert section.count("\n| ") - 1 == len(TABLES)


def test_table_with_an_unknown_separator_names_those_that_there_are(photos):
    with pytest.raises(DataUnusable, match=r"'path\|label'\. A CSV needs commas, semicolons or tabs"):
        listing(photos / "labels.csv", "path|label\n" + "".join(f"{name}|cat\n" for name in PHOTOS))
