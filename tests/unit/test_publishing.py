"""What is in service stays in service, whatever happens to published.json, to versions/ or to the copies."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.pipeline import publishing
from job.storage.published import PUBLISHED, Published
from job.storage.workdir import Workdir

ALL = ("split", "evaluate", "export", "report")


def run(out, number, done=ALL):
    """What the stages of a run leave, and its publication."""
    workdir = Workdir(out)
    publishing.finish(workdir)
    table = pa.table({"sha256": ["1"], "label": ["a"], "predicted": ["a"]})
    for name in ("split/examples", "evaluate/predictions"):
        with workdir.writing(f"stages/{name}.parquet") as path:
            pq.write_table(table, path)
    numbers = {
        "shipped": "head",
        "metric": "accuracy",
        "class_names": ["a"],
        "per_class": [],
        "confusion": [],
        "min_probability": 0.0,
        "thresholds": {},
        "earlier": None,
        "corrections": None,
        "familiarity": None,
        "head": {"number": number},
        "fine_tuned": None,
        "seeds": None,
    }
    workdir.write_json("stages/evaluate/evaluation.json", numbers)
    with workdir.writing_folder("stages/export/model") as folder:
        (folder / "model.json").write_text(f"{number}")
        (folder / "variables").mkdir()
        (folder / "variables" / "weights").write_text(f"{number}" * 9)
    workdir.write_bytes("stages/report/report.html", b"<html>%d</html>" % number)
    publishing.publish(workdir, done)
    workdir.ledger.settle()  # As at the end of a run.
    return Published.load(workdir)


def explored(out, number):
    return run(out, number, done=("split", "report"))


def in_service(out):
    published = Published.load(Workdir(out))
    assert {name: (out / name).read_bytes() for name in published.files} == {
        name: published.path(Workdir(out), name).read_bytes() for name in published.files
    }
    return (out / "model" / "model.json").read_text(), json.loads((out / "metrics.json").read_text())["head"]["number"]


DAMAGES = ["", "x", "{}", "[]", '{"files": ["a"]}', '{"files": {"\\u0000": "x"}}', '{"files": {"\\ud800": 1}}', "[" * 9999]


@pytest.mark.parametrize("text", [None, *DAMAGES], ids=lambda text: "missing" if text is None else text[:20] or "empty")
def test_model_stays_in_service_where_published_json_is_gone_or_damaged(tmp_path, text):
    run(tmp_path, 1)
    before = run(tmp_path, 2)
    if text is None:
        (tmp_path / PUBLISHED).unlink()
    else:
        (tmp_path / PUBLISHED).write_text(text)
    after = explored(tmp_path, 3)
    assert (after.set, after.files) == (before.set, before.files)
    assert in_service(tmp_path) == ("2", 2) and (tmp_path / "attempt" / "report.html").read_text() == "<html>3</html>"
    assert run(tmp_path, 4).set != before.set and in_service(tmp_path) == ("4", 4)


def test_any_flipped_bit_of_published_json_changes_nothing(tmp_path):
    before = run(tmp_path, 1)
    whole = (tmp_path / PUBLISHED).read_bytes()
    for place in range(0, 8 * len(whole), 61):
        bad = bytearray(whole)
        bad[place // 8] ^= 1 << place % 8
        (tmp_path / PUBLISHED).write_bytes(bytes(bad))
        publishing.finish(Workdir(tmp_path))
        assert Published.load(Workdir(tmp_path)) == before, place


@pytest.mark.parametrize(
    "gone", ["versions", "versions metrics.json", "versions model", "metrics.json", "model report.html"]
)
def test_what_was_removed_is_made_again(tmp_path, gone):
    run(tmp_path, 1)
    for name in gone.split():
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(tmp_path, 1)
    assert in_service(tmp_path) == ("1", 1)


def test_damaged_file_of_a_set_does_not_reach_the_copies(tmp_path):
    before = run(tmp_path, 1)
    file = before.path(Workdir(tmp_path), "model/variables/weights")
    content = file.read_bytes()
    file.unlink()  # It shares its bytes with the file that export left.
    file.write_bytes(b"rotten")
    publishing.finish(Workdir(tmp_path))
    assert (tmp_path / "model" / "variables" / "weights").read_bytes() == content
    (tmp_path / "model" / "variables" / "weights").write_bytes(b"rotten, too")
    run(tmp_path, 1)
    assert in_service(tmp_path) == ("1", 1) and file.read_bytes() == content
