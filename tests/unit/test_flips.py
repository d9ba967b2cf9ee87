"""Two models on the same photos: a case by hand, and what is said of it."""

import numpy as np
import pytest

from job.measure.flips import flips, versus
from job.reporting.facts import against_earlier

LABELS = np.asarray(["a", "a", "b", "b", "new"], object)
EARLIER = np.asarray(["a", "b", "b", None, "a"], object)
NOW = np.asarray(["b", "a", "b", "b", "new"], object)


def test_flips_are_changes_between_right_and_wrong_among_photos_that_are_compared():
    assert flips(LABELS, EARLIER, NOW).tolist() == ["right to wrong", "wrong to right", None, None, "wrong to right"]
    assert flips(LABELS, np.asarray(["b"] * 5, object), np.asarray(["c"] * 5, object)).tolist() == [None] * 2 + [
        "right to wrong"
    ] * 2 + [None], "another wrong answer is no flip"


def test_models_are_compared_on_the_same_photos():
    is_compared = EARLIER.astype(bool)
    found = versus(*(column[is_compared] for column in (LABELS, EARLIER, NOW)), np.arange(4), 1000, 1)
    assert (found["num_examples"], found["earlier_accuracy"], found["accuracy"]) == (4, 0.5, 0.75)
    assert (found["difference"], found["right_to_wrong"], found["wrong_to_right"]) == (0.25, 1, 2)
    low, high = found["difference_ci95"]
    assert low < 0.25 < high and 0 < found["p_value"] <= 1
    assert versus(LABELS[:0], EARLIER[:0], NOW[:0], np.arange(0), 1000, 1) is None


VERSUS = {"num_examples": 733, "earlier_accuracy": 0.932, "accuracy": 0.953, "difference": 0.021}
VERSUS |= {"difference_ci95": [0.005, 0.038], "p_value": 0.01, "right_to_wrong": 1, "wrong_to_right": 20}
COMPARED = {"changes": {"new_classes": ["wide"]}, "num_seen": 0, "note": "", "all": VERSUS, "known_classes": None}
KNOWN = {**VERSUS, "num_examples": 700, "earlier_accuracy": 0.96, "difference": -0.007}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {},
            "On the same 733 held-out photos, the earlier model has an accuracy of 93.2% and the new one 95.3%: +2.1 points "
            "(95% interval +0.5 to +3.8). The new model corrects 20 mistakes and makes 1 new one.",
        ),
        ({"known_classes": KNOWN}, "The earlier model does not know wide. On the 700 other photos, the earlier model has"),
        ({"num_seen": 2}, "2 held-out photos are left out: the earlier run used them, or copies of them, for training or"),
        ({"all": None, "note": "It has no model."}, "The new model is not compared with the earlier one. It has no model."),
    ],
)
def test_what_is_said_of_the_earlier_model(changed, told):
    assert told in against_earlier({**COMPARED, **changed})
