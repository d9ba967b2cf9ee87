"""The JSON files that stages leave, which the report page and later stages read: their fields.

The function of the stage that writes a field says what is in it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

if TYPE_CHECKING:  # These modules import libraries that only training needs.
    from job.measure.metrics import Scores
    from job.measure.seeds import Seeds


class Run(TypedDict):
    """The content of run.json: the inputs, settings, versions and machine of a run.

    `run_id` is the id of the start that wrote it, as in events.jsonl. Versions before 0.5 wrote none.
    """

    schema: int
    run_id: NotRequired[str]
    data: str
    labels: str | None
    out: str
    command: str
    started: str
    config: dict[str, Any]
    settings_of_stages: dict[str, str]
    versions: dict[str, str]
    fingerprint: dict[str, object]


class Explored(TypedDict):
    """The content of explore.json.

    `conflicts` has the number of files that are left out because one picture has two labels, by status. `splits_given` are
    the splits of the user that the job has kept.
    """

    num_files: int
    statuses: dict[str, int]
    conflicts: dict[str, int]
    splits: dict[str, int]
    splits_given: list[str]
    source_notes: list[str]
    groups: dict[str, Any] | None
    faults: list[dict[str, Any]]
    conversions: list[dict[str, Any]]
    ignored: list[dict[str, Any]]
    remarks: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    sizes: dict[str, Any]
    light: dict[str, Any]
    shortcuts: dict[str, Any]
    duplicates: dict[str, Any]
    suspicious: dict[str, Any]
    class_pictures: list[dict[str, Any]]
    figures: dict[str, str]


class Audited(TypedDict):
    """The content of audit.json. `left_out` has the reason for each photo that the audit excluded, by its path."""

    statuses: dict[str, int]
    conflicts: dict[str, int]
    left_out: dict[str, str]
    splits: dict[str, int]
    classes: list[dict[str, Any]]
    late_copies: dict[str, Any]
    label_issues: dict[str, Any]
    outliers: dict[str, Any]
    learning_curve: dict[str, Any]


class HeadPath(TypedDict):
    """The content of head.json: the kind of head that validation chose, and an entry for each kind that was tried.

    For regressions, also the strength that validation chose, and an entry for each strength that was tried. Without them,
    `c` is None and `path` empty.
    """

    chosen: str
    heads: list[dict[str, Any]]
    c: float | None
    path: list[dict[str, Any]]


class Tuning(TypedDict):
    """The content of fine_tune.json. `history` has an entry for each epoch, and one from before training, of each seed."""

    trained: bool
    note: str
    history: list[dict[str, float]]
    recipe: dict[str, object]


class ModelScores(TypedDict):
    """Scores of one of the two models. `test_leak_free` leaves out photos with a copy or a photo of their group in the given
    training split.
    """

    val: Scores
    test: Scores
    test_leak_free: Scores | None


Shipped = Literal["head", "fine_tuned"]


class Evaluated(TypedDict):
    """The content of evaluation.json. `confusion`, `reliability` and `per_class` are of the shipped model on the test set.

    `earlier` compares it with the model that was published before, None if there was none. `flips` has some photos of each
    kind of flip.
    """

    shipped: Shipped
    mirrors: bool
    metric: str
    temperatures: dict[str, float]
    offsets: dict[str, list[float]]
    choice: dict[str, Any]
    class_names: list[str]
    head: ModelScores
    fine_tuned: ModelScores | None
    seeds: Seeds | None
    reliability: list[dict[str, Any]]
    confusion: list[list[int]]
    per_class: list[dict[str, Any]]
    largest_class: dict[str, Any]
    head_against_fine_tuned: dict[str, Any] | None
    gate: dict[str, Any]
    mistakes: list[dict[str, Any]]
    earlier: dict[str, Any] | None
    flips: dict[str, list[dict[str, Any]]]


def of_shipped(evaluated: Evaluated) -> ModelScores:
    """Return the scores of the shipped model."""
    scores = evaluated[evaluated["shipped"]]
    assert scores is not None
    return scores


def num_correct(scores: Scores) -> int:
    """Return the number of photos that are classified correctly."""
    return round(scores["accuracy"] * scores["num_examples"])


def num_wanted(evaluated: Evaluated) -> int:
    """Return the number of held-out photos that must be right for the quality gate; 0 if there is none."""
    wanted, num_photos = evaluated["gate"]["min_accuracy"] or 0.0, of_shipped(evaluated)["test"]["num_examples"]
    return next(number for number in range(math.floor(wanted * num_photos), num_photos + 1) if number / num_photos >= wanted)
