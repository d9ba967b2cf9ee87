"""The exported model in other formats, while a run exports it and later, and what becomes of one that disagrees."""

import json
import shutil
from dataclasses import replace

import pytest

import job
from job.config import Config
from job.errors import GateNotMet, UsageError
from job.serving.formats.table import FORMATS
from job.stages import convert
from job.storage.files import digest_of_file
from tests.conftest import quick_settings, run_job, would_run


@pytest.fixture
def copy_of_run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "out", symlinks=True)


def card_of(out):
    return json.loads((out / "model" / "model.json").read_text())


def test_formats_are_added_to_a_finished_run_and_nothing_else_changes(copy_of_run, painted, tmp_path):
    before = card_of(copy_of_run)["sha256"]
    done = run_job("export", copy_of_run, "--to", "onnx,litert,litert-int8", "--json")
    assert done.returncode == 0, done.stderr
    *lines, result = done.stdout.splitlines()
    assert json.loads(result)["result"] == "ok" and any("values of accepted changed" in line for line in lines)
    assert not any(word in done.stdout for word in ("Saved", "INFO", "fully_quantize")), "converters print"
    card, parity = card_of(copy_of_run), json.loads((copy_of_run / "model" / "parity.json").read_text())
    assert card["formats"].keys() == parity["formats"].keys() == FORMATS.keys()
    for name, numbers in parity["formats"].items():
        file = copy_of_run / "model" / card["formats"][name]["file"]
        assert card["sha256"][file.name] == digest_of_file(file)
        outputs = {"probabilities", "label_index", "familiarity", "accepted"}
        assert card["formats"][name]["outputs"].keys() == outputs
        assert numbers["compared"]["changed_accepted_clearly"] == 0 or name == "litert-int8"
        assert numbers["compared"]["ms_one_core"] > 0 and numbers["num_photos"] == parity["num_photos"] > 5
    assert {name: digest for name, digest in card["sha256"].items() if name in before and name != "parity.json"} == {
        name: digest for name, digest in before.items() if name != "parity.json"
    }
    assert "Formats of the exported model" in (copy_of_run / "report.html").read_text()
    labelled = run_job("predict", "--model", copy_of_run, "--data", painted / "checks", "--out", tmp_path / "a.csv")
    assert labelled.returncode == 0, labelled.stderr
    assert would_run(painted, copy_of_run, 'export.formats=["onnx", "litert", "litert-int8"]') == set()
    assert would_run(painted, copy_of_run) == {"convert", "report"}, "the setting of the run says which formats there are"


@pytest.mark.thorough
def test_format_that_disagrees_is_not_published_and_the_others_are(copy_of_run, monkeypatch):
    strict = {**FORMATS, "onnx": replace(FORMATS["onnx"], tolerance=-1.0)}
    monkeypatch.setattr(convert, "FORMATS", strict)
    with pytest.raises(GateNotMet, match=r"published without onnx[\s\S]*onnx: not published: probabilities differ"):
        job.export(copy_of_run, ["onnx", "litert"])
    assert (copy_of_run / "model" / "model.tflite").exists() and not (copy_of_run / "model" / "model.onnx").exists()
    assert card_of(copy_of_run)["formats"].keys() == {"litert"}
    page = (copy_of_run / "report.html").read_text()
    assert "onnx was not published" in page and "probabilities differ by up to" in page


@pytest.mark.thorough
def test_without_stored_photos_a_format_is_not_proven_and_int8_is_not_made(copy_of_run):
    shutil.rmtree(copy_of_run / "cache")
    with pytest.raises(GateNotMet, match="the stored photos are gone, by which the ranges"):
        job.export(copy_of_run, ["litert", "litert-int8"])
    parity = json.loads((copy_of_run / "model" / "parity.json").read_text())["formats"]
    assert parity["litert"]["compared"] is None and not parity["litert"]["faults"]
    assert "litert was not compared" in (copy_of_run / "report.html").read_text()


@pytest.mark.thorough
def test_run_writes_the_formats_that_it_is_told_to(copy_of_run, painted):
    done = run_job("run", "--data", painted, "--out", copy_of_run, "--export", "onnx", *quick_settings())
    assert done.returncode == 0, done.stderr
    assert "export    skipped" in done.stderr and "convert   runs" in done.stderr
    assert (copy_of_run / "model" / "model.onnx").exists()


def test_export_refuses_what_it_cannot_do(copy_of_run, finished_run, tmp_path):
    with pytest.raises(UsageError, match=r"export\.formats.*torchscript"):
        job.export(copy_of_run, ["torchscript"])
    with pytest.raises(UsageError, match="no such folder"):
        job.export(tmp_path / "nowhere", ["onnx"])
    (copy_of_run / "stages" / "export.json").unlink()
    with pytest.raises(UsageError, match="has exported no model"):
        job.export(copy_of_run, ["onnx"])
    assert Config().export.formats == ("savedmodel", "keras")
