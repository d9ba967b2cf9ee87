"""The command compare: which photos count, which runs are taken together, what is said, and what is refused."""

import json
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

import job
from job.data.examples import Examples
from tests.conftest import contents, run_job
from tests.pages import Page
from tests.variants import other_answers, variant, with_values


@pytest.fixture(scope="module")
def predictions(finished_run):
    return pq.read_table(finished_run / "predictions.parquet").to_pylist()


def of_right(predictions, count):
    """The rows and paths of the first photos that the finished run answers right."""
    rows = [k for k, row in enumerate(predictions) if row["predicted"] == row["label"]][:count]
    return rows, [predictions[k]["path"] for k in rows]


@pytest.fixture(scope="module")
def worse(finished_run, predictions, tmp_path_factory):
    """A run with other settings that is wrong about five photos that the finished run is right about."""
    rows, _ = of_right(predictions, 5)
    out = tmp_path_factory.mktemp("worse") / "out"
    return variant(finished_run, out, {"fine_tune.epochs": 7}, other_answers(rows)), [predictions[k] for k in rows]


def test_run_is_compared_on_the_same_photos_in_text_json_and_on_a_page(finished_run, worse, predictions, tmp_path):
    (out, flipped), page = worse, tmp_path / "new" / "comparison.html"
    before = contents(finished_run), contents(out)
    done = run_job("compare", finished_run, out, "--out", page, "--json")
    assert done.returncode == 0, done.stderr
    assert (contents(finished_run), contents(out)) == before
    *lines, last = done.stdout.splitlines()
    numbers = json.loads(last)
    assert numbers["photos"] == {"compared": len(predictions), "seen": 0, "relabelled": 0, "not_tested": 0}
    assert [run["run"] for group in numbers["groups"] for run in group["runs"]] == [str(finished_run), str(out)]
    (versus,) = numbers["versus"]
    assert (versus["right_to_wrong"], versus["wrong_to_right"]) == (5, 0) and versus["p_value"] == 2 / 2**5
    assert versus["differences"]["accuracy"]["difference"] == pytest.approx(-5 / len(predictions))
    metrics = json.loads((finished_run / "metrics.json").read_text())
    scores, test = numbers["groups"][0]["runs"][0]["scores"], metrics[metrics["shipped"]]["test"]
    assert scores == pytest.approx({name: test[name] for name in ("accuracy", "log_loss", "ece")}, abs=1e-5)
    assert versus["differs"]["settings"] == [{"name": "fine_tune.epochs", "first": ["2"], "other": ["7"]}]
    said = "\n".join(lines)
    assert "B corrects 0 mistakes of A and makes 5 new ones" in said and "exact McNemar's test: p = 0.062" in said
    assert "Settings: fine_tune.epochs 2 \N{RIGHTWARDS ARROW} 7." in said and "Versions and machine: the same." in said
    of_class = Counter(row["label"] for row in flipped)
    for row in versus["classes"]:
        count = of_class[row["name"]]
        assert row["difference"] == pytest.approx(-count / row["num_examples"])
        assert row["p_value"] == pytest.approx(min(1, 2 / 2**count))
    assert "No class got better or worse beyond noise" in said

    html = page.read_text()
    shown = Page(html)
    assert "B corrects 0 mistakes of A and makes 5 new ones" in shown.top
    assert set(shown.sections) == {"classes-1", "flips-1-1", "differences-1"}
    assert all(row["path"] in shown.sections["flips-1-1"] for row in flipped)
    assert html.count("data:image/jpeg") == 5 and "default-src 'none'" in html and "<script" not in html
    assert ["fine_tune.epochs", "2", "7"] in shown.rows


def test_runs_that_differ_only_by_seed_are_taken_together(finished_run, worse, predictions, tmp_path):
    (wrong,), _ = of_right(predictions, 1)
    seeds = dict.fromkeys(("seed", "train.seed", "augment.seed"), 1)
    a = variant(finished_run, tmp_path / "a", seeds, other_answers([wrong]))
    b = variant(worse[0], tmp_path / "b", seeds)
    found = job.compare(finished_run, a, worse[0], b)
    first, other = found.numbers["groups"]
    assert [[run["seed"] for run in group["runs"]] for group in (first, other)] == [[0, 1], [0, 1]]
    accuracies = [run["scores"]["accuracy"] for run in first["runs"]]
    assert first["mean"]["accuracy"] == pytest.approx(np.mean(accuracies)) and accuracies[0] > accuracies[1]
    assert first["spread"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1)) and other["spread"]["accuracy"] == 0
    (versus,) = found.numbers["versus"]
    assert versus["differs"]["settings"] == [{"name": "fine_tune.epochs", "first": ["2"], "other": ["7"]}]
    assert versus["differences"]["accuracy"]["seeds_ci95"] is not None
    said = "\n".join(found.lines)
    assert (
        "(2 runs that differ only by seed)" in said
        and "is right more often about" in said
        and "exact sign test" in said
        and "spread between seeds" in said
    )
    assert "differ only by seed" not in "\n".join(job.compare(finished_run, a).lines), "there are no others to compare with"


def test_photos_are_known_by_content_and_left_out_if_the_other_run_saw_or_relabelled_them(
    finished_run, predictions, tmp_path
):
    _, (seen, relabelled, gone, renamed) = of_right(predictions, 4)
    other = "checks" if relabelled.startswith("stripes") else "stripes"

    def changed(examples):
        examples = with_values("split", {seen: "train"})(examples)
        examples = with_values("label", {relabelled: other})(examples)
        examples = with_values("status", {gone: "excluded"})(examples)
        return with_values("path", {renamed: "renamed.jpg"})(examples)

    def without(table):
        kept = [row | ({"label": other} if row["path"] == relabelled else {}) for row in table.to_pylist()]
        return table.from_pylist([row for row in kept if row["path"] not in (seen, gone)], table.schema)

    out = variant(finished_run, tmp_path / "out", predictions=without, examples=changed)
    found = job.compare(finished_run, out)
    counts = {"compared": len(predictions) - 3, "seen": 1, "relabelled": 1, "not_tested": 1}
    assert found.numbers["photos"] == job.compare(out, finished_run).numbers["photos"] == counts
    paths = found.photos["path"].to_pylist()
    assert renamed in paths and not {seen, relabelled, gone} & set(paths)
    data = found.numbers["versus"][0]["differs"]["data"]
    assert (data["gone"], data["relabelled"], data["moved"]) == (1, 1, 1)
    said = "\n".join(found.lines)
    assert "Left out: 1 test photo, in the training or validation photos of another run, themselves or as copies." in said
    assert "1 photo is in another split." in said


def test_classes_of_only_one_run_are_named(finished_run, tmp_path):
    out = variant(
        finished_run, tmp_path / "out", examples=lambda found: Examples(found.columns, (*found.class_names, "wide"))
    )
    said = "\n".join(job.compare(finished_run, out).lines)
    assert "New classes: wide. The same photos are harder for runs that have more classes to tell apart." in said


def test_runs_without_a_common_photo_are_refused_with_the_reason(finished_run, predictions, tmp_path):
    paths = {row["path"]: "train" for row in predictions}

    def swapped(examples):
        train = examples["path"][examples.of("train")][: len(paths)]
        return with_values("split", {**paths, **dict.fromkeys(train, "test")})(examples)

    def theirs(table):
        examples = swapped(Examples.load(finished_run / "examples.parquet"))
        digests = examples["sha256"][examples.of("test")]
        return table.from_pylist(
            [row | {"sha256": d} for row, d in zip(table.to_pylist(), digests, strict=True)], table.schema
        )

    out = variant(finished_run, tmp_path / "out", predictions=theirs, examples=swapped)
    done = run_job("compare", finished_run, out)
    assert done.returncode == 2
    assert (
        "no test photo in common" in done.stderr
        and f"Left out: {2 * len(paths)} test photos, in the training" in done.stderr
    )
    assert "--set split.seed" in done.stderr


def test_runs_that_cannot_be_read_are_refused_with_what_to_do(finished_run, tmp_path):
    stopped = variant(finished_run, tmp_path / "stopped")
    (stopped / "metrics.json").unlink()
    earlier = variant(
        finished_run, tmp_path / "earlier", predictions=lambda table: table.drop_columns(["predicted"]), version="0.3.0"
    )
    first = tmp_path / "first"
    first.mkdir()
    (first / "run.json").write_text(json.dumps({"settings_of_stages": {}}))
    for out, told in (
        (tmp_path / "nothing", "no such folder. Give the --out of a run"),
        (tmp_path, "not the output of a run. Give the --out of one"),
        (stopped, "its last run has not finished"),
        (earlier, "its tables of version 0.3.0 of transfer-job cannot be read"),
        (first, "is the output of transfer-job 0.1, which this version cannot read. Run the job again."),
        (finished_run, "compare needs at least two different runs"),
        (f"{finished_run}/../{finished_run.name}", "compare needs at least two different runs"),
    ):
        with pytest.raises(job.UsageError, match="^[^\n]*$") as error:
            job.compare(finished_run, out)
        assert told in str(error.value)


def test_page_replaces_only_a_page_of_compare(finished_run, worse, tmp_path):
    own, foreign = tmp_path / "own.html", tmp_path / "foreign.html"
    foreign.write_text("<p>mine</p>")
    for _ in range(2):
        job.compare(finished_run, worse[0], out=own)
    for out, told in (
        (foreign, "compare did not write it"),
        (tmp_path / "page.txt", "ends in .html"),
        ("gs://bucket/page.html", "on this machine"),
        (finished_run / "report.html", "lies in the output of a run"),
    ):
        with pytest.raises(job.UsageError, match=told):
            job.compare(finished_run, worse[0], out=out)
    assert foreign.read_text() == "<p>mine</p>"


def test_page_without_stores_says_so_and_lists_the_photos(finished_run, worse, tmp_path):
    runs = [shutil.copytree(run, tmp_path / name, symlinks=True) for name, run in (("a", finished_run), ("b", worse[0]))]
    for run in runs:
        shutil.rmtree(run / "cache")
    html = job.compare(*runs, out=tmp_path / "page.html").page.read_text()
    assert "data:image" not in html and "no run has its image store any more" in html
    assert all(row["path"] in Page(html).sections["flips-1-1"] for row in worse[1])
