"""The model card with what a run has found, and with class names that are Markdown, HTML and YAML."""

import hashlib
import re

import pytest
import yaml

from job.data.examples import Examples
from job.reporting.card import card
from job.sections import ReportConfig
from job.stages.report import CARD, report
from job.text.untrusted import in_markdown
from tests.unit.test_report import HOSTILE, RUN, TIMINGS, audited, evaluated, explored, promised, trained

EVIL = (
    *HOSTILE,
    "![x](https://evil.example/x.png)",
    "a | b",
    "`code` **bold** _i_",
    "[a](javascript:x)",
    "www.evil.com @you",
)


@pytest.fixture
def exported(context):
    """A function that writes what the stages of a run with these classes leave, and returns its model card."""

    def made(names=("daisy", "rose"), title="flowers"):
        explored(context, names)
        audited(context, names)
        trained(context)
        evaluated(context, names)
        share = {"changed_labels": 1, "num_photos": 24}
        context.workdir.write_json("stages/export/parity.json", {"num_photos": 24, "bytes": share, "arrays": share})
        columns = {"path": ["a", "b", "c"], "split": ["train", "train", "test"], "sha256": ["22", "11", "33"]}
        columns |= dict.fromkeys(("width", "height", "num_bytes", "phash", "brightness", "contrast", "has_exif"), [0] * 3)
        examples = Examples.from_columns({**columns, "status": ["used", "converted", "excluded"]}, ("a", "b"))
        context.workdir.write_bytes("stages/audit/examples.parquet", examples.to_parquet())
        return card(title=title, run=RUN, context=context).decode()

    return made


def test_card_says_what_the_model_is_how_good_and_where_its_limits_are(exported):
    text = exported()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["pipeline_tag"] == "image-classification" and head["library_name"] == "keras"
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test" and result["metrics"][0] == {"type": "accuracy", "value": 0.875}
    assert "| Accuracy | 87.5% | 69.0% to 95.7% |" in text and "temperature of 0.800" in text
    assert "| daisy | 75.0% | 40.0% to 90.0% | 80.0% | 12 | 29 |" in text
    assert "- 4 labels may be wrong: another class was predicted." in text
    assert "- The test set has fewer than 20 photos of" in text and "- 31 photos are unlike all others." in text
    of_train = hashlib.sha256(b"11\n22\n").hexdigest()  # printf '11\n22\n' | sha256sum
    assert f"| train | 59 | {of_train} |" in text


def test_card_says_what_is_answered_at_the_precision_that_was_asked_for(context, exported):
    assert "precision the model answers" not in exported()
    path = "stages/evaluate/evaluation.json"
    context.workdir.write_json(path, {**context.workdir.read_json(path), "thresholds": promised(2, 0.97)})
    text = card(title="flowers", run=RUN, context=context).decode()
    assert "\n\nAt 97% precision the model answers 87.5% of photos: those with a probability of at least 0.999." in text


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("mobilenet_v2", "imagenet", "the published weights of mobilenet"),
        ("mobilenet_v2", "imagenet", "Their licence: Apache"),
        ("dinov3_small", "preset", "Their licence: DINOv3 License"),
        ("mobilenet_v2", "random", "It started from\nrandom weights."),
        ("mobilenet_v2", "mine.weights.h5", "a file of weights that the owner of the run gave"),
    ],
)
def test_card_states_the_licence_of_the_weights_that_training_started_from(exported, monkeypatch, name, weights, said):
    monkeypatch.setitem(RUN["config"], "backbone", {**RUN["config"]["backbone"], "name": name, "weights": weights})
    assert said in exported()


@pytest.mark.parametrize("name", EVIL)
def test_names_from_the_data_are_text_and_nothing_else(exported, name):
    text = exported((name, "rose"), title=name)
    head, body = text.split("---\n", 2)[1:]
    assert len(yaml.safe_load(head)["model-index"][0]["name"]) >= min(len(name), 9)
    plain = body.split("## Use")[0]
    assert not re.search(r"(?<!\\)[<\[]", plain) and "://" not in plain.replace("\\://", "")
    rows = [line for line in plain.splitlines() if line.startswith(f"| {in_markdown(name)} |")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 7


def test_card_is_written_with_a_model_and_removed_without_one(context, exported, monkeypatch):
    exported()
    monkeypatch.setattr("job.stages.report.page", lambda *_, **__: b"the page")
    report(ReportConfig(), run=RUN, timings={**TIMINGS, "export": TIMINGS["explore"]}, context=context)
    assert context.workdir.path(CARD).read_text().startswith("---\nlicense:")
    report(ReportConfig(), run=RUN, timings=TIMINGS, context=context)
    assert not context.workdir.exists(CARD)
