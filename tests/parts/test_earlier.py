"""The earlier model: where its answers come from, and which photos it is not compared on."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from job.data.examples import Examples
from job.decoding.deep import FULL_BIT_DEPTH
from job.decoding.rules import DecodeRules
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.serving.earlier import find
from job.stages.intake import Intake
from job.storage.files import digest_of_file
from job.storage.published import Published
from job.storage.workdir import Workdir

RULES = DecodeRules.of(IntakeConfig(image_size=48), FULL_BIT_DEPTH)


class Run:
    """A finished run as the next one finds it. Its published tables may be changed, so that they are of other photos."""

    def __init__(self, out):
        self.stream = io.StringIO()
        self.context = Context(Workdir(out), Telemetry(None, self.stream))
        self.published = Published.load(self.context.workdir)
        self.examples = Examples.load(self.path("examples.parquet"))
        self.today = pq.read_table(self.path("predictions.parquet"))

    def path(self, name):
        return self.published.path(self.context.workdir, name)

    @property
    def paths_of_test(self):
        return self.today["path"].to_pylist()

    def had_not(self, paths):
        """Take photos out of the published tables."""
        kept = ~np.isin(self.examples["path"].astype(str), paths)
        then = Examples({name: column[kept] for name, column in self.examples.columns.items()}, self.examples.class_names)
        self.path("examples.parquet").write_bytes(then.to_parquet())
        self.publish_predictions(self.today.filter([path not in paths for path in self.paths_of_test]))

    def publish_predictions(self, table):
        pq.write_table(table, self.path("predictions.parquet"))
        self.publish({**self.published.files, "predictions.parquet": digest_of_file(self.path("predictions.parquet"))})

    def publish(self, files):
        self.published = replace(self.published, files=files)
        self.published.save(self.context.workdir)

    def find(self, rules=RULES):
        return find(self.examples, Intake.load(self.context).images, rules, self.context)


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out", symlinks=True)
    return Run(tmp_path / "out")


def test_exported_model_answers_only_for_photos_that_are_new_to_the_test_set(run):
    new = run.paths_of_test[1:4]
    run.had_not(new)
    earlier = run.find()
    assert earlier.predicted_T.tolist() == run.today["predicted"].to_pylist()
    assert [path for path, split in zip(run.paths_of_test, earlier.split_T, strict=True) if split is None] == new
    assert earlier.about["changes"] == {"new": 3, "gone": 0, "relabelled": 0, "new_classes": [], "gone_classes": []}
    assert earlier.about["note"] == "" and earlier.about["num_seen"] == 0
    assert earlier.about["model_sha256"] == run.published.files["model/model.json"]


def other_size(run):
    return {"rules": replace(RULES, image_size=64)}


def damaged(run):
    run.path("model/saved_model.pb").write_bytes(b"x")
    return {}


def no_model(run):
    run.publish({name: digest for name, digest in run.published.files.items() if not name.startswith("model/")})
    return {}


@pytest.mark.parametrize(
    ("change", "why"),
    [(other_size, "takes photos in another size"), (damaged, "cannot be loaded"), (no_model, "exported no model")],
)
def test_new_photos_that_the_model_cannot_answer_are_left_out_with_the_reason(run, change, why):
    run.had_not(run.paths_of_test[1:4])
    earlier = run.find(**change(run))
    answers = run.today["predicted"].to_pylist()
    assert earlier.predicted_T.tolist() == [*answers[:1], None, None, None, *answers[4:]]
    assert why in earlier.about["note"] and "3 test photos that are new" in earlier.about["note"]


def test_photos_that_the_earlier_model_was_trained_on_and_their_copies_are_left_out(run):
    trained, validated, copied = (run.paths_of_test[k] for k in (0, 2, 3))
    split, group = (run.examples[name].copy() for name in ("split", "group"))
    at = {path: k for k, path in enumerate(run.examples["path"])}
    split[at[trained]], split[at[validated]] = "train", "val"
    run.path("examples.parquet").write_bytes(run.examples.with_columns(split=split).to_parquet())
    run.publish_predictions(run.today.slice(4))
    group[at[copied]] = group[at[trained]]
    run.examples = run.examples.with_columns(group=group)
    earlier = run.find()
    answers = run.today["predicted"].to_pylist()
    assert earlier.predicted_T.tolist() == [None, answers[1], None, None, *answers[4:]]
    assert earlier.about["num_seen"] == 3 and earlier.split_T[:4].tolist() == ["train", "test", "val", "test"]


def test_result_that_is_evaluated_once_more_keeps_what_it_was_compared_with(run):
    assert run.find() is None, "The first run is compared with nothing, and not with itself."
    files = run.published.files
    run.had_not(run.paths_of_test[1:4])
    earlier = run.find()
    nothing = np.full(len(run.today), None, object)
    pq.write_table(earlier.table(run.examples, nothing, nothing), run.path("comparison.parquet"))
    run.publish({**files, "comparison.parquet": ""})
    again = run.find()
    assert again.about == earlier.about
    assert again.split_T.tolist() == earlier.split_T.tolist()
    assert again.predicted_T.tolist() == earlier.predicted_T.tolist()


def test_comparison_that_another_program_has_saved_again_is_one_line_and_no_error(run):
    files = run.published.files
    run.had_not(run.paths_of_test[1:4])
    nothing = np.full(len(run.today), None, object)
    table = run.find().table(run.examples, nothing, nothing)
    pq.write_table(table.replace_schema_metadata(None), run.path("comparison.parquet"))
    run.publish({**files, "comparison.parquet": ""})
    assert run.find() is None
    assert "No comparison with the earlier model: the published tables cannot be read." in told(run)


@pytest.mark.parametrize("name", ["predictions.parquet", "examples.parquet"])
def test_tables_that_cannot_be_read_are_one_line_and_no_error(run, name):
    run.had_not(run.paths_of_test[:1])
    run.path(name).write_bytes(b"of another version")
    assert run.find() is None
    assert "No comparison with the earlier model: the published tables cannot be read." in told(run)


def told(run):
    return run.stream.getvalue()


def test_without_anything_published_there_is_nothing_to_compare(run):
    run.publish({})
    assert run.find() is None and told(run) == ""
