"""Foreign code and foreign text: modules in the folder where a user stands, and names that speak to terminals.

One run has both. It starts in a folder full of modules that leave a mark where they are imported, and its classes and photos
have names with escape sequences in them.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from job.sources.rows import read_rows
from job.text.untrusted import guarded
from tests.conftest import PROGRAM, paint, quick_settings

pytestmark = pytest.mark.thorough

OURS = ("job", "numpy", "tensorflow", "keras", "PIL", "pyarrow", "pydantic", "click", "sitecustomize", "usercustomize")
# A title, a colour, a line that looks like ours, a line written over, a new direction, a C1 control: no terminal gets one.
TITLE, FORGED = "=stripes\x1b]0;owned\x07", "checks\x1b[31m\nAccuracy 1.000 on all\rphotos\u202e\x9b2J"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def modules(folder, names):
    """A folder with modules that leave a mark where they are imported."""
    folder.mkdir()
    for name in names:
        mark = f"open({str(folder / 'IMPORTED-')!r} + {name!r}, 'w').close()\nraise ImportError('a foreign module')\n"
        (folder / f"{name}.py").write_text(mark)
    return folder


def start(folder, *arguments, program=(PROGRAM,), **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [*map(str, program), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env={**clean, **environment}, capture_output=True, check=False)


def marks(folder):
    return sorted(path.name for path in folder.glob("IMPORTED-*"))


def said(done):
    """What a terminal would have got, which must not hold anything that it obeys, and no forged line."""
    text = (done.stdout + done.stderr).decode()
    assert not OBEYED.search(text), text
    assert "\nAccuracy 1.000 on all" not in text, text
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return modules(tmp_path_factory.mktemp("here") / "modules", sorted({*sys.stdlib_module_names, *OURS}))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "photos"
    for kind, label in (("stripes", TITLE), ("checks", FORGED)):
        for k in range(16):
            paint(folder / label / f"-{kind}\x1b[2K{k:02d}\n.jpg", seed=100 * len(label) + k, kind=kind, quality=90)
    return folder


@pytest.fixture(scope="module")
def finished(place, photos, tmp_path_factory):
    """The output of a whole run, started in the folder of modules, and what it said."""
    out = tmp_path_factory.mktemp("run") / "out"
    done = start(place, "run", "--data", photos, "--out", out, *quick_settings("fine_tune.epochs=1"))
    assert done.returncode == 0, done.stderr.decode()
    return out, done


def test_whole_run_imports_nothing_from_the_current_folder(finished, place):
    assert marks(place) == [] and (finished[0] / "model" / "parity.json").exists()


def test_no_process_imports_from_the_current_folder_because_of_an_empty_entry_of_pythonpath(photos, tmp_path):
    code = "import re, sys, job.__main__; print(*sys.modules)"
    before = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    too_early = {
        *before.stdout.split(),
        "_winapi",
        "nt",
        "sitecustomize",
        "usercustomize",
    }  # Python asks for these by itself.
    place = modules(tmp_path / "modules", sorted({*sys.stdlib_module_names, *OURS} - too_early))
    assert {"pickle.py", "multiprocessing.py", "json.py", "numpy.py"} <= {path.name for path in place.iterdir()}
    (tmp_path / "named").mkdir()
    done = start(place, "explore", "--data", photos, "--out", tmp_path / "out", PYTHONPATH=f":{tmp_path / 'named'}:")
    assert done.returncode == 0, done.stderr.decode()
    assert marks(place) == []


@pytest.mark.parametrize("options", [["-P", "-m", "job"], ["-E", PROGRAM]], ids=["-P -m job", "-E transfer-job"])
def test_other_ways_to_start_import_nothing_from_the_current_folder(place, photos, tmp_path, options):
    program = (sys.executable, *options)
    done = start(place, "explore", "--data", photos, "--out", tmp_path / "out", program=program)
    assert done.returncode == 0, done.stderr.decode()
    assert marks(place) == []


def test_names_are_escaped_in_what_a_run_says_and_kept_in_what_it_writes(finished, photos):
    out, done = finished
    said(done)
    assert not OBEYED.search((out / "logs" / "events.jsonl").read_text())
    assert not OBEYED.search((out / "report.html").read_text())
    names = json.loads((out / "model" / "model.json").read_text())["class_names"]
    assert names == sorted([TITLE, FORGED])
    assert set(pq.read_table(out / "predictions.parquet")["label"].to_pylist()) == {TITLE, FORGED}


def test_the_page_is_drawn_again_without_what_a_terminal_obeys(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "copy\x1b[31m\nof a run")
    done = start(tmp_path, "report", out)
    assert done.returncode == 0 and r"copy\x1b[31m\nof a run" in said(done)


def test_refusals_name_the_photos_and_classes_escaped(photos, tmp_path):
    """Too many quarantined files, a small class, classes that cannot be told apart, a table with a label in conflict."""
    copy = shutil.copytree(photos, tmp_path / "refused\x1b]0;x\x07")
    (copy / "small\x9b\nclass").mkdir()
    for k in range(9):
        (copy / FORGED / f"broken\x1b[2J\n{k}.jpg").write_bytes(b"<html>")
    refused = start(tmp_path, "explore", "--data", copy, "--out", tmp_path / "out")
    assert refused.returncode == 65 and r"broken\x1b[2J\n0.jpg: an HTML page" in said(refused)
    assert r"small\x9b\nclass: no usable photos" in said(refused)
    (copy / "CHECKS").mkdir()
    (copy / "checks").mkdir()
    refused = start(tmp_path, "explore", "--data", copy, "--out", tmp_path / "two")
    assert refused.returncode == 65 and "'CHECKS' and 'checks' differ only by case" in said(refused)


TABLES = {
    "a column": "path,la\x1b[31mbel\na.jpg,cat\n",
    "a quotation mark": 'path,label\n"a\x1b[31m.jpg,cat\n',
    "two columns": "path,Label\x1b[31m\nx,y\n",
    "labels that are combined": "path,label\na.jpg,x\x1b[31m|y\nb.jpg,x\x1b[31m\nc.jpg,y\n",
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_refused_tables_are_quoted_escaped(tmp_path, table):
    (tmp_path / "labels\x1b]0;x\x07.csv").write_text(table)
    done = start(tmp_path, "explore", "--data", "labels\x1b]0;x\x07.csv", "--out", tmp_path / "out")
    assert done.returncode in (2, 65) and r"labels\x1b]0;x\x07.csv" in said(done)


def test_names_that_a_pattern_of_the_shell_stands_for_are_escaped(tmp_path):
    done = start(tmp_path, "explore", "--data", "a", "--out", "b", "c\x1b]0;x\x07\n", "d")
    assert done.returncode == 2 and r"c\x1b]0;x\x07\n" in said(done)
    done = start(tmp_path, "explore", "--data", "gone\x1b]0;x\x07\n", "--out", "b")
    assert done.returncode == 2 and r"--data gone\x1b]0;x\x07\n: no such folder" in said(done)


def test_predict_knows_the_model_by_its_printed_digest_escapes_what_it_says_and_guards_its_csv(
    finished, place, photos, tmp_path
):
    out, done = finished
    digest = hashlib.sha256((out / "model" / "model.json").read_bytes()).hexdigest()
    *_, model, accuracy = done.stdout.decode().splitlines()
    assert model == f"Model: {out}/model, SHA-256 of its model.json: {digest}" and accuracy.startswith("Accuracy ")
    answer = tmp_path / "answer\x1b[31m.csv"
    answer.write_text("somebody else's")
    options = ("--model", out / "model", "--model-sha256", digest, "--data", photos, "--out", answer)
    refused = start(place, "predict", *options)
    assert refused.returncode == 2 and r"answer\x1b[31m.csv: there is such a file, and predict did not" in said(refused)
    done = start(place, "predict", *options, "--overwrite")
    assert done.returncode == 0 and r"answer\x1b[31m.csv" in said(done)
    assert marks(place) == []
    cells = answer.read_bytes().decode()
    assert f'"{guarded(TITLE)}"' in cells and f'"{TITLE}"' not in cells
    rows = read_rows(answer, labelled=True).rows
    assert {row.label for row in rows} == {TITLE, FORGED} and len(rows) == 32
    assert {row.path for row in rows} == {f"{p.parent.name}/{p.name}" for p in photos.glob("*/*")}
