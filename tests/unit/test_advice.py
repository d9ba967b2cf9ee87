"""Advice and its conditions: each sentence must be true of the data that it is given for."""

from dataclasses import replace

import pytest

from job.reporting.advice import advice
from job.reporting.facts import Facts


def class_facts(name, train=60, test=40):
    return {"class": name, "train": train, "val": 20, "test": test, "excluded": 0, "quarantined": 0} | {
        "total": train + 20 + test,
        "recall_known_to": 0.1,
    }


FACTS = Facts(
    statuses={"used": 240},
    conflicts={},
    splits={"train": 120, "val": 40, "test": 80},
    classes=[class_facts("cat"), class_facts("dog")],
    splits_given=[],
    num_left_out_later=0,
    copies=[],
    shortcut=None,
    metric="accuracy",
)
EXPLORED = {
    "suspicious": {"num_photos": 0},
    "groups": None,
    "duplicates": {"num_crossing_splits": 0},
    "shortcuts": {"largest_class": 0.5},
}
NOBODY = {"num_groups": 0, "num_left_out": 0}
AUDITED = {
    "label_issues": {"num_likely": 0, "num_first": 0, "trust": "good", "num_examples": 240},
    "late_copies": {"torn_by_user": NOBODY, "torn_by_job": NOBODY},
    "learning_curve": {"last_doubling": [0.8, 0.8], "noise": 0.03},
}


def said(facts=FACTS, explored=EXPLORED, audited=AUDITED, heatmaps=None):
    return " ".join(f"{item.finding} {item.action}" for item in advice(facts, explored, audited, heatmaps))


def test_nothing_is_said_of_data_without_a_problem():
    assert said() == "" == said(audited=None)


IMBALANCED = replace(FACTS, classes=[class_facts("cat", train=540), class_facts("dog")])


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("accuracy", "If every class matters the same: --set evaluate.metric=balanced_accuracy."),
        ("balanced_accuracy", "Add photos of small classes. The model favours them already"),
    ],
)
def test_metric_that_is_set_is_not_advised(metric, text):
    found = said(replace(IMBALANCED, metric=metric))
    assert "5 times as many photos as the smallest, “dog”" in found and text in found
    assert found.count("--set") == text.count("--set")


def test_class_without_any_photo_is_not_called_the_smallest():
    empty = class_facts("cow", train=0, test=0) | {"val": 0, "total": 0}
    found = said(replace(IMBALANCED, classes=[*IMBALANCED.classes, empty]))
    assert "The test set has no photo of “cow”" in found and "the smallest, “dog”" in found


def test_quarantined_label_conflicts_are_no_faulty_files():
    conflicting = replace(FACTS, statuses={"used": 234, "quarantined": 6}, conflicts={"quarantined": 6})
    assert "6 photos have copies in another class." in said(conflicting) and "cannot be used" not in said(conflicting)
    both = replace(conflicting, statuses={"used": 234, "quarantined": 7})
    assert "6 photos have copies in another class." in said(both) and "1 file cannot be used." in said(both)


def test_who_divided_the_photos_of_a_scene_decides_what_is_advised():
    by_user = said(
        audited=AUDITED | {"late_copies": {"torn_by_user": {"num_groups": 2, "num_left_out": 3}, "torn_by_job": NOBODY}}
    )
    assert "2 scenes are in more than one of your splits" in by_user and "3 photos were left out" in by_user
    assert "Put photos that were taken together into one split." in by_user and "--group-column" not in by_user
    by_job = said(
        audited=AUDITED | {"late_copies": {"torn_by_user": NOBODY, "torn_by_job": {"num_groups": 1, "num_left_out": 1}}}
    )
    assert "1 scene was found only after the photos had been divided" in by_job and "1 photo was left out" in by_job
    assert "--group-column" in by_job and "your splits" not in by_job


@pytest.mark.parametrize(("gain", "noise", "advised"), [(0.04, 0.03, True), (0.02, 0.03, False), (0.008, 0.001, False)])
def test_more_photos_are_advised_only_if_the_gain_is_no_chance(gain, noise, advised):
    found = said(audited=AUDITED | {"learning_curve": {"last_doubling": [0.8, 0.8 + gain], "noise": noise}})
    assert ("More photos would help" in found) == advised


def test_only_splits_of_the_user_are_called_your_splits():
    found = said(explored=EXPLORED | {"duplicates": {"num_crossing_splits": 2}})
    assert "2 pictures are in more than one of your splits. Keep one copy of each." in found


def test_background_that_decides_is_advice_with_both_shares():
    background = {
        "num_photos": 40,
        "inner": 0.41,
        "outer": 0.9,
        "shuffled": 0.5,
        "difference_ci95": [0.3, 0.6],
        "decides": True,
    }
    text = said(heatmaps={"background": background})
    assert "90% of right answers stay the same if the middle" in text and "41% if everything else is" in text
    assert said(heatmaps={"background": {**background, "decides": False}}) == "" == said(heatmaps={"background": None})
