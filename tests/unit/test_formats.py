"""The comparison of a format with what was measured, and what the options refuse."""

import numpy as np
import pytest

from job.config import Config
from job.errors import UsageError
from job.measure.predictions import Measured
from job.sections import ExportConfig
from job.serving.formats import table
from job.serving.formats.table import FORMATS
from job.stages.convert import compared, faults, in_words

NAMES = ("cat", "dog")
PROBABILITIES = np.asarray([[0.9, 0.1], [0.49, 0.51], [0.2, 0.8], [0.4, 0.6]])
ACCEPTED, FAMILIARITY = np.asarray([True, False, True, True]), np.asarray([0.9, 0.02, 0.5, 0.052])
MEASURED = Measured(
    list("abcd"), ["cat", "cat", "dog", "dog"], ["cat", "dog", "dog", "dog"], PROBABILITIES, ACCEPTED, FAMILIARITY
)
LIMITS = {"min_probability": 0.0, "min_familiarity": 0.05}
ON_ONE, ON_ALL = {"ms": 4.0, "peak_memory_bytes": 1}, {"ms": 2.0, "peak_memory_bytes": 9}


def answers(*first, name="onnx", familiarity=FAMILIARITY):
    found = {"probabilities": np.asarray([[p, 1 - p] for p in first]), "familiarity": np.asarray(familiarity)}
    found["accepted"] = found["familiarity"] >= 0.05
    return compared(FORMATS[name], MEASURED, found, LIMITS, NAMES, ON_ONE, ON_ALL)


def test_change_of_accepted_is_a_fault_unless_rounding_decides():
    same = (0.9, 0.49, 0.2, 0.4)
    at_the_limit = answers(*same, familiarity=[0.9, 0.02, 0.5, 0.0499])
    assert (at_the_limit["changed_accepted"], at_the_limit["changed_accepted_clearly"]) == (1, 0)
    assert faults(FORMATS["onnx"], at_the_limit, 400, ExportConfig()) == []
    other = answers(*same, familiarity=[0.04, 0.02, 0.5, 0.052])
    assert faults(FORMATS["onnx"], other, 400, ExportConfig()) == [
        "the familiarity differs by up to 0.86",
        "1 photos are accepted that were not, or the other way round",
    ]
    assert faults(FORMATS["litert-int8"], other, 400, ExportConfig()) == []
    assert faults(FORMATS["litert-int8"], other, 4, ExportConfig()) == [
        "1 of 4 values of accepted change; export.max_changed_int8 = 0.05 is allowed"
    ]


def test_comparison_by_hand():
    found = answers(0.9, 0.51, 0.2, 0.4)
    assert found["largest_difference"] == pytest.approx(0.02) and found["mean_difference"] == pytest.approx(0.005)
    assert (found["changed_labels"], found["accuracy"], found["measured_accuracy"]) == (1, 1.0, 0.75)
    assert (found["ms_one_core"], found["ms_all_cores"], found["peak_memory_bytes"]) == (4.0, 2.0, 9)
    assert found["accuracy_ci95"] == pytest.approx([0.5101, 1.0], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "first", "said"),
    [
        ("onnx", (0.9, 0.49, 0.2, 0.4), []),
        ("onnx", (0.9, 0.49, 0.2, 0.403), ["probabilities differ by up to 0.003; 0.002 is allowed"]),
        ("onnx", (np.nan, 0.49, 0.2, 0.4), ["probabilities differ by up to nan; 0.002 is allowed"]),
        ("litert-int8", (0.7, 0.4, 0.3, 0.3), []),
        ("litert-int8", (0.9, 0.51, 0.2, 0.4), ["1 of 4 labels change; export.max_changed_int8 = 0.05 is allowed"]),
    ],
)
def test_format_that_differs_too_much_has_a_fault(name, first, said):
    assert faults(FORMATS[name], answers(*first), 4, ExportConfig()) == said
    assert faults(FORMATS[name], answers(*first), 4, ExportConfig(max_changed_int8=0.3))[1:] == []


def test_line_about_a_format_says_what_is_not_proven():
    found = {"file": "model.onnx", "file_bytes": 9, "num_photos": 4, "compared": answers(0.9, 0.4, 0.2, 0.4), "faults": []}
    assert in_words(found) == ("of 4 photos, 0 labels and 0 values of accepted changed, accuracy 75.0% (measured: 75.0%)")
    assert "not proven" in in_words({**found, "compared": None})
    assert in_words({**found, "faults": ["no", "never"]}) == "not published: no; never"


def test_savedmodel_and_keras_are_always_written_and_the_order_does_not_matter():
    given = Config.load(None, (), {"export.formats": ("litert", "onnx")}).export
    assert given.formats == ("savedmodel", "keras", "onnx", "litert")
    assert given == Config.load(None, (), {"export.formats": ("onnx", "keras", "litert")}).export
    with pytest.raises(UsageError, match=r"export\.formats.*torchscript.*onnx"):
        Config.load(None, (), {"export.formats": ("torchscript",)})


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None if name in ("tf2onnx", "ai_edge_litert") else name)
    table.require(("savedmodel", "keras"))
    with pytest.raises(UsageError) as refused:
        table.require(("savedmodel", "onnx", "litert", "litert-int8"))
    assert "(tf2onnx, ai_edge_litert)" in str(refused.value)
    assert "pip install 'transfer-job[onnx,litert]'" in str(refused.value)
