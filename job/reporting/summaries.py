"""Types of the JSON files that stages leave about the run and its models. `data_summaries.py` has those about the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from job.data.changes import Changes
from job.measure.accepted import ComparedAcceptance, Rejections

if TYPE_CHECKING:  # These modules import libraries that only training needs.
    from job.measure.calibration import Bin
    from job.measure.flips import Corrected, Versus
    from job.measure.metrics import Scores
    from job.measure.occlusion import Background, Deletion
    from job.measure.seeds import Seeds
    from job.measure.thresholds import Thresholds


class Run(TypedDict):
    """The content of run.json: the inputs, settings, versions and machine of a run.

    `run_id` is the id of the start that wrote it, as in events.jsonl; `image` the container image that its environment
    named; `weights_sha256` is of the file of initial weights, if one was given. Earlier versions wrote none of them.
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
    image: NotRequired[str]
    weights_sha256: NotRequired[str | None]
    fingerprint: dict[str, object]


class Compared(ComparedAcceptance):
    """The answers of a format on the held-out photos, compared with the measured ones.

    Milliseconds are medians for one photo at a time. The memory is the most that a process with the runtime alone had.
    """

    largest_difference: float
    mean_difference: float
    changed_labels: int
    accuracy: float
    accuracy_ci95: list[float]
    measured_accuracy: float
    ms_one_core: float
    ms_all_cores: float
    peak_memory_bytes: int


class FormatParity(TypedDict):
    """A format of the exported model. `file` is its name in model/. With `faults`, in words, it is not published.

    `compared` is None if the runtime cannot run it, or if there are no photos to compare it on.
    """

    file: str
    file_bytes: int
    num_photos: int
    compared: Compared | None
    faults: list[str]


class Scored(TypedDict):
    """Mean log loss and accuracy of a head on the validation photos."""

    val_log_loss: float
    val_accuracy: float


class TriedStrength(Scored):
    """The result of one regularisation strength."""

    c: float
    num_iterations: int
    converged: bool


class TriedHead(Scored):
    """The result of one way to train a head: regression on views, regression on photos, or discriminant."""

    kind: str


class HeadPath(TypedDict):
    """The content of head.json: the kind of head that validation chose, and an entry for each kind that was tried.

    For regressions, also the strength that validation chose, and an entry for each strength that was tried. Without them,
    `c` is None and `path` empty.
    """

    chosen: str
    heads: list[TriedHead]
    c: float | None
    path: list[TriedStrength]


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


class Gate(TypedDict):
    """The quality gate: the accuracy that was asked for, and whether the shipped model reaches it."""

    min_accuracy: float | None
    met: bool


Shipped = Literal["head", "fine_tuned"]


class Details(TypedDict):
    """Details of the shipped model in evaluation.json. `confusion` has a row for each given label.

    `reliability` has the bins of the reliability diagram on the held-out photos.
    """

    confusion: list[list[int]]
    reliability: list[Bin]
    per_class: list[dict[str, Any]]
    largest_class: dict[str, object]
    head_against_fine_tuned: dict[str, object] | None


class EarlierModel(TypedDict):
    """The model that was published before. `model_sha256` is that of its model.json; None if it was not exported.

    `changes` are those of the data since. `only_test_changed`: the test set or its labels changed, and the other splits did
    not. `num_seen` test photos are not compared, because the earlier model was trained or chosen on them, or on copies of
    them. `note` says why others are not compared; it is empty if all others are.
    """

    model_sha256: str | None
    class_names: list[str]
    changes: Changes
    only_test_changed: bool
    num_seen: int
    note: str


class ComparedWithEarlier(EarlierModel):
    """The earlier model and the shipped one on today's test photos, of which `num_new` are new to the test set.

    `all` is about all photos that are compared, and None without any. `known_classes` leaves out photos of classes that the
    earlier model does not have; None if there are none.
    """

    num_new: int
    all: Versus | None
    known_classes: Versus | None


class Pictured(TypedDict):
    """A prediction with its probability, that of the label, and a picture of the photo.

    `earlier` is the earlier model's prediction. `familiarity` is that of the photo.
    """

    path: str
    label: str
    predicted: str
    probability: float
    probability_of_label: float
    thumbnail: str
    earlier: NotRequired[str]
    familiarity: NotRequired[float]


class AgainstEarlier(TypedDict):
    """The comparison with the earlier model, None if nothing was published before, and some photos of each kind of flip.

    `corrections` has the accuracies by given and by corrected labels, None if no correction applies.
    """

    earlier: ComparedWithEarlier | None
    flips: dict[str, list[Pictured]]
    corrections: Corrected | None


class MeasuredFamiliarity(Rejections):
    """The familiarity of the held-out photos, with the least familiar ones.

    `share_added` is what it costs in the exported model, as a share of the multiply-adds of an answer without it.
    """

    share_added: float
    least_familiar: list[Pictured]


class Choice(TypedDict):
    """Why a model ships: the validation log loss of each model and a comparison of them, if there are two."""

    reason: str
    log_loss: NotRequired[dict[str, float]]
    comparison: NotRequired[dict[str, object]]


class Evaluated(Details, AgainstEarlier):
    """The content of evaluation.json. Answers with a probability of at least `min_probability` are accepted: at 0, all."""

    shipped: Shipped
    mirrors: bool
    metric: str
    temperatures: dict[str, float]
    offsets: dict[str, list[float]]
    choice: Choice
    class_names: list[str]
    head: ModelScores
    fine_tuned: ModelScores | None
    seeds: Seeds | None
    gate: Gate
    thresholds: Thresholds
    mistakes: list[Pictured]
    min_probability: float
    familiarity: MeasuredFamiliarity | None


class SimilarPhoto(TypedDict):
    """A training photo, and the cosine similarity of its features to those of a mistake."""

    path: str
    label: str
    cosine: float


class ExplainedMistake(TypedDict):
    """Pictures of the heatmap of a mistake and of the training photos that are most similar to it, which are then listed."""

    heatmap: str
    similar: str
    similar_photos: list[SimilarPhoto]


class ExplainedPhoto(TypedDict):
    """A photo that is classified correctly, the probability of its class, and pictures of it and of its heatmap."""

    path: str
    label: str
    probability: float
    thumbnail: str
    heatmap: str


class Explained(TypedDict):
    """The content of heatmaps.json. `mistakes` are by path. The tests are None if there were too few photos for them."""

    mistakes: dict[str, ExplainedMistake]
    right: list[ExplainedPhoto]
    deletion: Deletion | None
    background: Background | None


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
