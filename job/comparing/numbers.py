"""The numbers of a comparison of runs: scores on the photos that they share, and how each group differs from the first."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from job.comparing.differences import Differences, Group, differences_of
from job.comparing.photos import PhotoCounts, SharedPhotos
from job.measure.paired import SCORES, Answers, ClassDifference, Difference, class_differences, differences

_RESAMPLES, _SEED, _BINS = 2000, 0, 15  # The defaults of the section evaluate. Runs may have other ones.


class RunScores(TypedDict):
    """A run, with its scores on the shared photos and its cost in seconds."""

    run: str
    seed: int
    shipped: str
    num_test: int
    scores: dict[str, float]
    cpu_s: float
    wall_s: float


class GroupScores(TypedDict):
    """Runs that differ only by seed. `spread` is the standard deviation of each score, None for a single run."""

    name: str
    runs: list[RunScores]
    mean: dict[str, float]
    spread: dict[str, float] | None


class Versus(TypedDict):
    """A group of runs against the first one. Differences are those of the group minus those of the first.

    `p_value` is from the exact sign test of the photos about which they differ. Of single runs (`is_single`), this is
    McNemar's test.
    `right_to_wrong` and `wrong_to_right` are the numbers of photos about which fewer, or more, runs of the group are right.
    """

    name: str
    first: str
    is_single: bool
    differences: dict[str, Difference]
    p_value: float
    right_to_wrong: int
    wrong_to_right: int
    classes: list[ClassDifference]
    differs: Differences


class Numbers(TypedDict):
    """All numbers of a comparison. The first group is what the other ones are compared with."""

    photos: PhotoCounts
    groups: list[GroupScores]
    versus: list[Versus]


def numbers_of(groups: Sequence[Group], photos: SharedPhotos) -> Numbers:
    """Return the numbers of a comparison on these photos."""
    answers = [photos.answers(group.runs) for group in groups]
    return {
        "photos": photos.counts,
        "groups": [_scores(group, of_group) for group, of_group in zip(groups, answers, strict=True)],
        "versus": [
            _versus(groups[0], group, photos, answers[0], of_group)
            for group, of_group in zip(groups[1:], answers[1:], strict=True)
        ],
    }


def _scores(group: Group, answers: Answers) -> GroupScores:
    of_runs = answers.scores(_BINS)
    values = {name: [scores[name] for scores in of_runs] for name in SCORES}
    return {
        "name": group.name,
        "runs": [
            {
                "run": run.uri,
                "seed": run.seed,
                "shipped": run.metrics["shipped"],
                "num_test": len(run.row_of),
                "scores": scores,
                "cpu_s": run.cost("cpu_s"),
                "wall_s": run.cost("wall_s"),
            }
            for run, scores in zip(group.runs, of_runs, strict=True)
        ],
        "mean": {name: float(np.mean(of_name)) for name, of_name in values.items()},
        "spread": {n: float(np.std(v, ddof=1)) for n, v in values.items()} if len(of_runs) > 1 else None,
    }


def _versus(first: Group, group: Group, photos: SharedPhotos, of_first: Answers, of_group: Answers) -> Versus:
    found, compared = differences(of_first, of_group, photos.groups_N, _BINS, _RESAMPLES, _SEED)
    return {
        "name": group.name,
        "first": first.name,
        "is_single": len(first.runs) == len(group.runs) == 1,
        "differences": found,
        "p_value": compared.p_value,
        "right_to_wrong": compared.only_first_correct,
        "wrong_to_right": compared.only_second_correct,
        "classes": class_differences(of_first, of_group, photos.labels_N),
        "differs": differences_of(first, group),
    }
