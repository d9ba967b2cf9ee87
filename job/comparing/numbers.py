"""The numbers of a comparison of runs: scores on the photos that they share, and how each group differs from the first."""

import json
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from job.comparing.photos import PhotoCounts, SharedPhotos
from job.comparing.runs import Group
from job.data.changes import Changes, changes
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


class Different(TypedDict):
    """A setting, or a version, with its values in the runs of the first group and in those of the other, as text."""

    name: str
    first: list[str]
    other: list[str]


class DataChanges(Changes):
    """Changes of the usable photos from the first group to the other. `moved` photos are in another split."""

    moved: int


class Differences(TypedDict):
    """The differences between two groups. `cpu_s` and `wall_s` are the mean costs of a run of each, in seconds."""

    settings: list[Different]
    data: DataChanges
    versions: list[Different]
    cpu_s: list[float]
    wall_s: list[float]


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
        "differs": _differs(first, group),
    }


def _differs(first: Group, other: Group) -> Differences:
    """Return what differs between two groups. Their data is that of their first runs."""
    splits = first.runs[0].splits, other.runs[0].splits
    return {
        "settings": _different([run.settings for run in first.runs], [run.settings for run in other.runs]),
        "data": {
            **changes(first.runs[0].examples, other.runs[0].examples),
            "moved": sum(splits[0][digest] != splits[1][digest] for digest in splits[0].keys() & splits[1].keys()),
        },
        "versions": _different([run.environment for run in first.runs], [run.environment for run in other.runs]),
        "cpu_s": [float(np.mean([run.cost("cpu_s") for run in group.runs])) for group in (first, other)],
        "wall_s": [float(np.mean([run.cost("wall_s") for run in group.runs])) for group in (first, other)],
    }


def _different(first: Sequence[dict[str, object]], other: Sequence[dict[str, object]]) -> list[Different]:
    names = dict.fromkeys(name for values in (*first, *other) for name in values)
    found: list[Different] = [{"name": name, "first": _values(name, first), "other": _values(name, other)} for name in names]
    return [row for row in found if row["first"] != row["other"]]


def _values(name: str, of_runs: Sequence[dict[str, object]]) -> list[str]:
    """Return the values that a name has in some runs, as text. A setting that a version did not have yet is "not there"."""
    return sorted({_as_text(values[name]) if name in values else "not there" for values in of_runs})


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
