"""Types of the JSON files about the data: those of the stages explore and audit. `summaries.py` has those about models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

from job.data.examples import ClassCounts

if TYPE_CHECKING:  # These modules import libraries that only training needs.
    from job.measure.probes import CurvePoint
    from job.measure.shortcuts import Shortcuts


class Crossings(TypedDict):
    """Flags of a group of copies: its photos are in more than one split, in more than one given split, under two labels."""

    crosses_splits: bool
    crosses_given: bool
    crosses_labels: bool


class Copies(Crossings):
    """A group of copies. `exact`: all have the same bytes. `strip`: a picture that shows the first of them."""

    photos: list[dict[str, str]]
    exact: bool
    strip: str


class Duplicates(TypedDict):
    """Groups of copies, first those that cross splits or labels, and files with the same bytes under two labels.

    A group that crosses labels is left out as a whole, so it is not counted among those that cross splits.
    """

    num_groups: int
    num_photos: int
    num_crossing_splits: int
    num_crossing_labels: int
    groups: list[Copies]
    num_label_conflicts: int
    label_conflicts: list[Copies]


class Groups(TypedDict):
    """The groups that the user has given: how many there are, and how many are in more than one given split."""

    num_groups: int
    num_crossing_splits: int


# The number of photos of a class, a picture of their mean (None if there is only one photo) and a picture of some of them.
ClassPictures = TypedDict("ClassPictures", {"class": str, "mean": str | None, "samples": str})


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
    groups: Groups | None
    faults: list[dict[str, object]]
    conversions: list[dict[str, object]]
    ignored: list[dict[str, object]]
    remarks: list[dict[str, object]]
    classes: list[ClassCounts]
    sizes: dict[str, object]
    light: dict[str, object]
    shortcuts: Shortcuts
    duplicates: Duplicates
    suspicious: dict[str, Any]
    class_pictures: list[ClassPictures]
    figures: dict[str, str]


class Torn(TypedDict):
    """Groups of copies in more than one split, and the photos that were left out because of it."""

    num_groups: int
    num_left_out: int


class LateCopies(TypedDict):
    """Groups of copies that were found only by their features, first those from which a photo was excluded.

    `torn_by_user` are in more than one of the splits that the user gave, `torn_by_job` in more than one that the job drew.
    `num_conflicts` photos were left out because one picture has two labels.
    """

    num_groups: int
    torn_by_user: Torn
    torn_by_job: Torn
    num_conflicts: int
    groups: list[Copies]


Trust = Literal["good", "little", "none"]


class Agreement(TypedDict):
    """The share of all labels that are as predicted, and what it would be by chance.

    With little trust, most of the likely label issues are errors of the prediction. With none, nearly all are.
    """

    agreement: float
    chance: float
    trust: Trust


class LabelIssues(Agreement):
    """Labels that are not as predicted (`num_listed`), those of them that are likely wrong, and how many to check first."""

    num_examples: int
    num_listed: int
    num_likely: int
    num_first: int
    by_class: list[dict[str, object]]
    shown: list[dict[str, object]]


class Outliers(TypedDict):
    """Photos whose mean similarity to their nearest neighbours is below a threshold. `shown` are the least similar ones.

    `median` is the median of this similarity over all photos.
    """

    num_found: int
    threshold: float
    median: float
    shown: list[dict[str, object]]


class LearningCurve(TypedDict):
    """Accuracy by the number of training photos.

    `last_doubling` has the accuracy with half of the training photos and with all. A difference up to `noise` may be chance.
    """

    num_val: int
    points: list[CurvePoint]
    last_doubling: list[float]
    noise: float


class Audited(TypedDict):
    """The content of audit.json. `left_out` has the reason for each photo that the audit excluded, by its path."""

    statuses: dict[str, int]
    conflicts: dict[str, int]
    left_out: dict[str, str]
    splits: dict[str, int]
    classes: list[ClassCounts]
    late_copies: LateCopies
    label_issues: LabelIssues
    outliers: Outliers
    learning_curve: LearningCurve
