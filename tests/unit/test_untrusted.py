"""Text that comes from data, shown: nothing reaches a terminal or a spreadsheet that it would obey."""

import ast
import csv
import io
import json
import pickle
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from job import errors
from job.errors import JobError, StorageFailed, of_code
from job.ranking.table import Row, as_csv
from job.runtime.telemetry import Telemetry
from job.sources.rows import read_rows
from job.text.untrusted import csv_of, escaped, guarded, unguarded
from tests.conftest import ROOT

ODD = "a\x1b]0;t\x07\n\r\x9b\u202e\u2028\udcff"
SHOWN = r"a\x1b]0;t\x07\n\r\x9b\u202e\u2028\udcff"
FORMULAS = ["=1+1", "+1", "-rf", "@SUM(A1)", "\tx", "\r=1", "\n=1", "\uff1d1", "'=1", "''=1"]


def test_what_a_terminal_obeys_is_written_out_and_nothing_else():
    assert escaped(ODD) == SHOWN
    for text in ("two words", "\u00fcn\u00ef \U0001f33c", "\U0001f468\u200d\U0001f469", r"back\slash", "\u5bff\u53f8"):
        assert escaped(text) == text


@given(st.text())
def test_to_escape_twice_is_to_escape_once_and_the_result_is_one_line(text):
    assert escaped(escaped(text)) == escaped(text) and len(escaped(text).splitlines()) <= 1
    escaped(text).encode()


@given(st.text() | st.sampled_from(FORMULAS))
def test_a_guard_is_undone_and_guards(cell):
    assert unguarded(guarded(cell)) == cell
    assert guarded(cell)[:1] not in set("=+-@\t\r\n")


def test_every_table_that_is_written_as_csv_is_guarded(tmp_path):
    issues = [
        {"path": f, "given_label": f, "suggested_label": f, "score": -0.5, "likely": True, "split": f} for f in FORMULAS
    ]
    rows = [Row(f, 96, f, f, reason=f) for f in FORMULAS]
    for written in (csv_of([issues[0], *(row.values() for row in issues)]), as_csv(rows)):
        cells = [cell for row in csv.reader(io.StringIO(written.decode(), newline="")) for cell in row]
        assert {cell for cell in cells if cell[:1] in set("=+-@\t\r\n")} <= {"-0.5"}, "a number stays one"
        assert set(FORMULAS) <= set(map(unguarded, cells))


def test_a_table_that_was_guarded_is_read_as_it_was_meant(tmp_path):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "label"), *((guarded(f"{f}.jpg"), guarded(f)) for f in FORMULAS)])
    (tmp_path / "labels.csv").write_bytes(text.getvalue().encode())
    found = read_rows(tmp_path / "labels.csv", labelled=True).rows
    assert [(row.path, row.label) for row in found] == [(f"{f}.jpg", f.strip()) for f in FORMULAS]


def test_an_error_has_the_lines_that_it_was_given_and_no_other():
    error = StorageFailed(f"first: {ODD}", f"  second: {ODD}")
    assert str(error) == f"first: {SHOWN}\n  second: {SHOWN}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == str(of_code(74, str(error)))
    assert error.args == of_code(74, str(error)).args


def errors_raised():
    names = {JobError.__name__, *(kind.__name__ for kind in JobError.__subclasses__())}
    for file in sorted((ROOT / "job").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
                yield file, node


def test_no_message_puts_several_lines_into_one_argument():
    """Its line breaks would be shown escaped, as those of names are."""
    found = list(errors_raised())
    assert len(found) > 100 and errors.__name__ == "job.errors"
    for file, call in found:
        texts = [n.value for n in ast.walk(call) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not any("\n" in text for text in texts), (
            f"{file.name}:{call.lineno}: give each line as an argument of its own"
        )


def test_lines_and_events_of_a_run_are_single_lines(tmp_path):
    stream = io.StringIO()
    telemetry = Telemetry(tmp_path, stream)
    telemetry.line(ODD)
    telemetry.event("odd", name=ODD)
    telemetry.close()
    assert stream.getvalue() == SHOWN + "\n"
    (line,) = Path(tmp_path / "events.jsonl").read_bytes().splitlines()
    assert line.isascii() and json.loads(line)["name"] == ODD
