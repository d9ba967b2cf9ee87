"""docs/data.md explains every reason that the code can give, and nothing else."""

import ast
import re
from pathlib import Path

from job.decoding import headers
from tests.unit.reasons import PAGE, documented, pattern, unexplained

JOB = PAGE.parent.parent / "job"
SOURCES = (
    "decoding/decode.py",
    "decoding/headers.py",
    "decoding/jpeg.py",
    "decoding/processes.py",
    "decoding/rules.py",
    "decoding/worker.py",
    "sources/local.py",
    "sources/folders.py",
    "sources/doubts.py",
    "sources/layout.py",
    "sources/walk.py",
    "sources/rows.py",
    "sources/tables.py",
    "data/duplicates.py",
    "stages/split.py",
)
# Calls that take a reason, and where among the arguments it is.
TAKERS = {"BadPhoto": 0, "quarantined": 3, "ignored": 1, "_blame": 0, "_set": 2, "append": 0, "Entry": 6, "Row": 4}
# Variables that hold one.
NAMES = {"reason", "fault", "LEAVING"}
BUILDERS = {"_in_words", "what_it_is", "png_damage", "link_fault", "_fault"}


def texts(node: ast.expr) -> list[str]:
    """A string as it is, an f-string with what differs replaced by a word, both arms of a choice."""
    match node:
        case ast.Constant(value=str()):
            return [node.value]
        case ast.JoinedStr():
            return ["".join(v.value if isinstance(v, ast.Constant) else "x" for v in node.values)]
        case ast.IfExp():
            return texts(node.body) + texts(node.orelse)
        case ast.BoolOp():
            return [text for value in node.values for text in texts(value)]
        case ast.Tuple():
            return texts(node.elts[-1])
        case ast.Call(func=ast.Attribute(value=inner, attr="strip")):
            return texts(inner)
    return []


def reasons_in_the_code() -> set[str]:
    found = {headers.DICOM, headers.UNKNOWN, *(reason for _, reason in headers._DOCUMENTS)}
    for name in SOURCES:
        for node in ast.walk(ast.parse((JOB / name).read_text())):
            if isinstance(node, ast.Call):
                place = TAKERS.get(getattr(node.func, "id", getattr(node.func, "attr", "")), 99)
                found.update(text for argument in node.args[place : place + 1] for text in texts(argument))
                found.update(t for k in node.keywords if k.arg == "reason" for t in texts(k.value))
            if isinstance(node, ast.Assign) and NAMES & {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)}:
                found.update(texts(node.value))
            if isinstance(node, ast.FunctionDef) and node.name in BUILDERS:
                returns = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
                found.update(text for value in returns for text in texts(value))
    return found - {"", "x/x"}  # The last one is a path that is appended.


def test_every_reason_in_the_code_is_explained():
    found = reasons_in_the_code()
    assert len(found) > 40
    assert [text for text in sorted(found) if unexplained(text)] == []


def test_every_explained_reason_is_in_the_code():
    found = reasons_in_the_code()
    assert [text for text in documented() if not any(pattern(text).fullmatch(f) for f in found)] == []


def test_statuses_are_those_of_the_table():
    from typing import get_args

    from job.data.examples import Status

    page = Path(PAGE).read_text().split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \| \w", page, re.MULTILINE)) - {"status"} == set(get_args(Status))
