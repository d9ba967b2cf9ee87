"""Runs in groups that differ only by seed, and what else differs between two groups: settings, data, versions, cost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TypedDict

import numpy as np

from job.comparing.runs import FinishedRun
from job.data.changes import Changes, changes


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


@dataclass(frozen=True)
class Group:
    """Runs that differ only by seed, with a letter for their name."""

    name: str
    runs: tuple[FinishedRun, ...]


def grouped(runs: Sequence[FinishedRun]) -> list[Group]:
    """Return the runs in groups of equal settings, data and version, apart from seeds, in the order of their first runs.

    If all runs are of one group, each of them becomes a group of its own.
    """
    by_kind: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_kind.setdefault(run.kind, []).append(run)
    kinds = list(by_kind.values()) if len(by_kind) > 1 else [[run] for run in runs]
    return [Group(_letters(number), tuple(of_kind)) for number, of_kind in enumerate(kinds)]


def differences_of(first: Group, other: Group) -> Differences:
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


def _letters(number: int) -> str:
    """Return A, B, ..., Z, A2, B2, and so on."""
    again, letter = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(again + 1) if again else "")
