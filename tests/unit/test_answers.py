import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from job.errors import UsageError
from job.runtime.stop import StopRequest
from job.serving.answers import place
from job.storage.ledger import MARK

COLUMNS = ["path", "label", "probability", "familiarity", "accepted", "top_3", "error"]
ODD = ["path", "error", "probability", "a,b", 'say "hi"', "two\nlines", r"two\nlines", "=1+1", "'=1+1", "@x", ""]
ODD += ["\u200b", "ü" * 999]


@pytest.mark.parametrize("name", ["versions/0/model/a.csv", "stages/a.csv", "attempt/a.csv", "predictions.parquet"])
def test_answer_does_not_go_into_an_output_under_a_name_that_the_job_writes(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / MARK).touch()
    with pytest.raises(UsageError, match=r"lies in the output of a run, .*/run, .* Give another name"):
        place(str(tmp_path / "run" / name), overwrite=True, model=str(tmp_path / "model"), data=str(tmp_path / "data"))


def test_answer_may_lie_beside_what_the_job_writes(tmp_path):
    (tmp_path / MARK).touch()
    found = place(str(tmp_path / "mine.csv"), overwrite=False, model=str(tmp_path / "m"), data=str(tmp_path / "d"))
    assert not found.is_foreign


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_classes_have_their_names_whatever_these_are_and_the_answer_may_be_replaced(tmp_path, kind):
    out, probabilities_C = tmp_path / f"answer.{kind}", np.arange(len(ODD)) / 100
    given = {"out": str(out), "overwrite": False, "model": str(tmp_path / "m"), "data": str(tmp_path / "d")}
    rows = [
        {"path": "a.jpg", "label": "=1+1", "probability": 0.5, "top_3": {}, "probabilities_C": probabilities_C, "error": ""},
        {"path": "b.jpg", "error": "an HTML page"},
    ]
    for _ in range(2):  # The second time it replaces its own answer.
        place(**given).write(rows, StopRequest(), ODD)
    if kind == "csv":
        with out.open(encoding="utf-8", newline="") as file:
            header, first, second = csv.reader(file)
        assert [float(cell) for cell in first[7:]] == list(probabilities_C) and set(second[7:]) == {""}
    else:
        header = pq.read_table(out).column_names
    assert header == [*COLUMNS, *(f"probability:{name}" for name in ODD)]
