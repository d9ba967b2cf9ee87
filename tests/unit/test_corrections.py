"""Corrections of labels: which tables are understood, which are refused and why, and what they do to the examples."""

import codecs

import numpy as np
import pytest

from job.data.corrections import DROPPED, Corrections, read_corrections
from job.errors import DataUnusable, UsageError
from job.measure.flips import corrected
from job.text.untrusted import csv_of
from tests.conftest import examples_of

CLASSES = ("daisy", "rose", "snow drop", "Café")
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def decisions(tmp_path):
    """A function: what a table with this content decides."""

    def read(content, name="corrections.csv", classes=CLASSES):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return dict(read_corrections(str(file), classes).decisions)

    return read


PLAIN = f"sha256,decision\n{A},rose\n{B},keep\n{C},drop\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        codecs.BOM_UTF8 + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t").encode("utf-16"),
        "sep=;\r\n" + PLAIN.replace(",", ";"),
        f'"path","Decision","SHA256"\n"x, ""y"".jpg","ROSE","{A.upper()}"\n"=1","Keep ","{B}"\nz,Drop,{C}\n',
        f"path,sha256,note,decision,\nx,{A},a,class:rose,\ny,{B},,keep,\ny,{B},,keep,\nz,{C},,drop,\nq,{'d' * 64},,,\n\n",
        f"path,sha256,decision,score\nx,{A},rose\ny,{B},keep\nz,{C},drop\nw\n",
    ],
    ids=["plain", "bom", "crlf", "semicolons", "utf-16 tabs", "sep", "quotes and case", "extra and blank", "short rows"],
)
def test_table_is_understood_as_editors_and_spreadsheets_save_it(decisions, content):
    assert decisions(content) == {A: "rose", B: "keep", C: "drop"}


@pytest.mark.parametrize("written", ["Snow  Drop", " snow drop ", "SNOW DROP"])
def test_class_is_found_without_regard_to_case_and_spaces(decisions, written):
    assert decisions(f"sha256,decision\n{A},{written}\n{B},Cafe\u0301\n") == {A: "snow drop", B: "Café"}


def test_words_go_before_classes_that_are_called_like_them(decisions):
    found = decisions(f"sha256,decision\n{A},Drop\n{B},class:drop\n{C},class:Keep\n", classes=("drop", "keep", "class:x"))
    assert found == {A: "drop", B: "class:drop", C: "class:keep"}
    examples = corrected_examples(found, (A, B, C))
    assert examples["label"].tolist() == ["daisy", "drop", "keep"] and examples["status"].tolist() == [
        "excluded",
        "used",
        "used",
    ]


@pytest.mark.parametrize("name", ["=1+1", "'-x", "+a,b", "class:x", "\u202eesor", 'a "b"\nc', "drop"])
def test_class_of_any_name_comes_back_from_the_table_that_the_job_writes(decisions, name):
    classes = (name, "daisy")
    written = decisions(csv_of([("sha256", "decision"), (A, f"class:{name}")]), classes=classes)
    again = decisions(csv_of([("sha256", "decision"), (A, written[A])]), classes=classes)
    assert written == again and corrected_examples(again, (A,))["label"].tolist() == [name]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"sha256,decision\n{A},roze\n", "row 2: 'roze' is neither keep, nor drop, nor a class. Did you mean 'rose'?"),
        (f"sha256,decision\n{A},rose\n{B},\n{A},keep\n", "row 4 says 'keep' about a photo, and row 2 says 'rose'"),
        (f"sha256,decision\n{A},rose\n1.2E+10,keep\n", "row 3 has a decision, and '1.2e+10' is not the SHA-256"),
        (f"path,sha256,decision\na,b.jpg,{A},rose\n", "row 2 has 4 fields instead of 3"),
        (f"sha256,label\n{A},rose\n", "it has no column 'decision'. Its columns: sha256, label."),
        (f"sha256,decision,Decision\n{A},rose,keep\n", "2 columns are called 'decision'"),
        (b"sha256,decision\n" + A.encode() + b",Caf\xe9\n", "this is not UTF-8"),
        ("", "this table is empty"),
    ],
)
def test_table_with_a_mistake_is_refused_with_the_row_and_what_to_do(decisions, content, said):
    with pytest.raises(DataUnusable) as refused:
        decisions(content)
    assert said in str(refused.value)


def test_many_mistakes_are_told_in_one_message_that_is_not_long(decisions):
    rows = "".join(f"{k:064x},x{k}\n" for k in range(500))
    with pytest.raises(DataUnusable, match=r"500 rows cannot be taken") as refused:
        decisions(f"sha256,decision\n{rows}")
    assert "and 490 more" in str(refused.value) and str(refused.value).count("\n") < 15


def test_missing_table_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match=r"no such file. Give an edited copy of label_issues.csv"):
        read_corrections(str(tmp_path / "none.csv"), CLASSES)


def corrected_examples(decisions, digests, label="daisy", **columns):
    blank = {"label": label, "split": "test", "status": "used", "reason": "", "given_label": None, "row": 0, "num_bytes": 1}
    blank |= dict.fromkeys(("width", "height", "phash", "brightness", "contrast", "has_exif"), 0)
    records = [{**blank, "path": f"{k}.jpg", "sha256": digest, "group": k} for k, digest in enumerate(digests)]
    for name, values in columns.items():
        for record, value in zip(records, values, strict=True):
            record[name] = value
    return Corrections(decisions).applied(examples_of(records, CLASSES))


def test_decision_holds_for_every_copy_of_a_file_and_for_no_other():
    examples = corrected_examples({A: "rose"}, (A, B, A), label="daisy")
    assert examples["label"].tolist() == ["rose", "daisy", "rose"]
    assert examples["given_label"].tolist() == ["daisy", None, "daisy"]
    assert examples.source_labels.tolist() == ["daisy"] * 3 and examples.is_relabelled.tolist() == [True, False, True]


def test_dropped_photo_is_excluded_and_a_rejected_file_stays_rejected():
    examples = corrected_examples(
        {A: "drop", B: "drop"}, (A, B), status=("converted", "quarantined"), reason=("", "damaged")
    )
    assert examples["status"].tolist() == ["excluded", "quarantined"]
    assert examples["reason"].tolist() == [DROPPED, "damaged"]


def test_note_counts_labels_photos_and_decisions_about_photos_that_are_not_here():
    found = Corrections({A: "rose", B: "keep", C: "drop", "d" * 64: "rose"})
    (note,) = found.notes(corrected_examples(found.decisions, (A, A, B, C)))
    counts, absent = (
        "2 labels were changed, 1 photo was left out, 1 label stays",
        "1 of 4 are about photos that are not here",
    )
    assert note == f"Corrections: {counts}. {absent}."
    assert Corrections().notes(corrected_examples({}, (A,))) == ()


def judged(labels, earlier, now, decisions, only_test_changed=False):
    examples = corrected_examples(
        decisions, [f"{k:064x}" for k in range(len(labels))], label=labels[0], group=range(len(labels))
    )
    return corrected(
        examples,
        np.asarray(earlier, object),
        np.asarray(now, object),
        only_test_changed=only_test_changed,
        resamples=200,
        seed=0,
    )


def test_accuracy_before_and_after_by_given_labels_by_corrected_ones_and_on_the_others():
    num, digest = 10, f"{0:064x}"
    earlier, now = ["daisy"] * 8 + ["rose"] * 2, ["rose"] + ["daisy"] * 9
    found = judged(["daisy"] * num, earlier, now, {digest: "rose"})
    assert found["changed"] == {"train": 0, "val": 0, "test": 1}
    accuracies = {
        name: (found[name]["versus"]["earlier_accuracy"], found[name]["accuracy"], found[name]["num_examples"])
        for name in ("by_given_labels", "by_corrected_labels", "unchanged_labels")
    }
    assert accuracies == {
        "by_given_labels": (0.8, 0.9, 10),
        "by_corrected_labels": (0.7, 1.0, 10),
        "unchanged_labels": (pytest.approx(7 / 9), 1.0, 9),
    }


@pytest.mark.parametrize(
    ("num_better", "num_worse", "only_test_changed", "verdict"),
    [
        (20, 0, False, "better"),
        (0, 20, False, "worse"),
        (2, 2, False, "may be chance"),
        (20, 0, True, "only the test set changed"),
    ],
)
def test_model_is_called_better_only_beyond_chance_and_if_more_than_the_test_set_changed(
    num_better, num_worse, only_test_changed, verdict
):
    earlier = ["rose"] * num_better + ["daisy"] * (50 - num_better)
    now = ["daisy"] * (50 - num_worse) + ["rose"] * num_worse
    found = judged(["daisy"] * 50, earlier, now, {f"{30:064x}": "keep"}, only_test_changed)
    assert found["verdict"] == verdict


def test_without_an_earlier_model_or_without_corrections_nothing_is_compared():
    found = judged(["daisy"] * 4, [None] * 4, ["daisy"] * 4, {f"{0:064x}": "keep"})
    assert found["verdict"] == "nothing to compare with" and found["by_given_labels"]["versus"] is None
    assert judged(["daisy"] * 4, [None] * 4, ["daisy"] * 4, {}) is None
