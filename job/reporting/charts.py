"""The charts of the report page, as pictures inside the page. A chart is at most as wide as a phone, and has one plot."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from job.measure.confusions import Clusters, row_shares
from job.reporting.data_summaries import Audited
from job.reporting.figures import SERIES, Axis, Chart
from job.reporting.summaries import Evaluated, HeadPath, Tuning

if TYPE_CHECKING:
    from job.measure.calibration import Bin
    from job.measure.probes import CurvePoint
    from job.measure.thresholds import Thresholds

_MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".svg": "image/svg+xml"}
_SIZE_PX = (326, 260)
_TUNING_SIZE_PX = (288, 260)  # Three of them fit side by side on the page.
FRAMED_GROUPS = 12
_ALPHA_LEVELS = 16
_MOST_CELLS = 300  # A picture of the confusion matrix has at most so many rows. Otherwise a row would be less than a pixel.


def charts(
    audit: Audited | None,
    head: HeadPath | None,
    tuning: Tuning | None,
    evaluation: Evaluated | None,
    clusters: Clusters | None,
) -> dict[str, str]:
    """Draw the charts for which there are numbers. Return data: URIs by name.

    `clusters` belong to the confusion matrix of `evaluation`; without them, the matrix is not drawn.
    """
    drawn: dict[str, Chart] = {}
    if audit:
        drawn["curve"] = _learning_curve_chart(audit["learning_curve"]["points"])
    if head and head["path"]:
        drawn |= _head_charts(head)
    if tuning and len(tuning["history"]) > 1:
        drawn |= _tuning_charts(tuning["history"])
    if evaluation:
        drawn["reliability"] = _reliability_chart(evaluation["reliability"])
        drawn |= _threshold_charts(evaluation["thresholds"])
    if evaluation and clusters:
        drawn["confusion"] = _confusion_chart(np.asarray(evaluation["confusion"]), clusters)
    return {name: as_data_uri(".svg", chart.svg().encode()) for name, chart in drawn.items()}


def _learning_curve_chart(points: "Sequence[CurvePoint]") -> Chart:
    draws = [(point["num_examples"], accuracy) for point in points for accuracy in point["accuracies"]]
    sizes, accuracies = zip(*draws, strict=True)
    x = Axis.logarithmic(sizes, {size: f"{size:,}" for size in sizes})
    chart = Chart(_SIZE_PX, x, Axis.linear(accuracies), "Accuracy on validation photos", ("training photos", ""))
    chart.dots(sizes, accuracies, SERIES[0], 2.5)
    means = [sum(point["accuracies"]) / len(point["accuracies"]) for point in points]
    chart.line([point["num_examples"] for point in points], means, SERIES[0])
    return chart


def _head_charts(head: HeadPath) -> Iterator[tuple[str, Chart]]:
    """Yield the log loss and the accuracy by regularisation strength. A ring marks the strength that was used."""
    strengths = [tried["c"] for tried in head["path"]]
    losses, accuracies = ([tried[name] for tried in head["path"]] for name in ("val_log_loss", "val_accuracy"))
    for name, title, values, colour in (
        ("log_loss", "Log loss on validation photos", losses, SERIES[0]),
        ("accuracy", "Accuracy on validation photos", accuracies, SERIES[2]),
    ):
        x_label = "C (larger: weaker regularisation)"
        chart = Chart(_SIZE_PX, Axis.logarithmic(strengths), Axis.linear(values), title, (x_label, ""))
        chart.line(strengths, values, colour)
        chart.dots(strengths, values, colour)
        used = [place for place, c in enumerate(strengths) if c == head["c"]]
        chart.dots([strengths[k] for k in used], [values[k] for k in used], colour, 7, are_rings=True)
        yield f"head_{name}", chart


def _tuning_charts(history: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, Chart]]:
    """Yield the training loss, the validation log loss, and both accuracies by epoch, with a curve for each seed."""
    training, validation = ("training photos", SERIES[1]), ("validation photos", SERIES[0])
    x = Axis.linear([epoch["epoch"] for epoch in history], whole=True)
    for name, title, curves in (
        ("loss", "Training loss", {"train_loss": training}),
        ("log_loss", "Log loss on validation photos", {"val_log_loss": validation}),
        ("accuracy", "Accuracy", {"train_accuracy": training, "val_accuracy": validation}),
    ):
        y = Axis.linear([epoch[key] for key in curves for epoch in history if key in epoch])
        legend = dict(curves.values()) if len(curves) > 1 else None
        chart = Chart(_TUNING_SIZE_PX, x, y, title, ("epoch", ""), legend)
        for key, (_, colour) in curves.items():
            for _, of_seed in groupby(history, itemgetter("seed")):
                epochs, values = zip(*((epoch["epoch"], epoch[key]) for epoch in of_seed if key in epoch), strict=True)
                chart.line(epochs, values, colour)
                chart.dots(epochs, values, colour, 2.5)
        yield f"tuning_{name}", chart


def _reliability_chart(bins: "Sequence[Bin]") -> Chart:
    """Draw accuracy against confidence: points with 95% intervals, larger where there are more photos."""
    shares = Axis.linear([0, 1], limits=(0, 1.02))
    chart = Chart((326, 308), shares, shares, "Share that is right", ("confidence", ""))
    confidences, accuracies = ([found[name] for found in bins] for name in ("confidence", "accuracy"))
    lows, highs = ([found["accuracy_ci95"][k] for found in bins] for k in (0, 1))
    most = max(found["num_examples"] for found in bins)
    chart.line([0, 1], [0, 1], SERIES[-1], is_dashed=True)
    chart.intervals(confidences, lows, highs, SERIES[0])
    chart.dots(confidences, accuracies, SERIES[0], [2 + 4.5 * (found["num_examples"] / most) ** 0.5 for found in bins])
    return chart


def _threshold_charts(thresholds: "Thresholds") -> Iterator[tuple[str, Chart]]:
    """Yield precision and coverage by threshold, with a ring at the threshold that was asked for.

    The axis is logarithmic in the distance from 1, because most thresholds of interest are close to 1.
    """
    curves, chosen = thresholds["curves"], thresholds["chosen"]
    ticks = {1 - threshold: f"{threshold:g}" for threshold in (0, 0.5, 0.8, 0.95, 0.99, 0.999)}
    distances = [1 - threshold for threshold in curves["thresholds"]]
    x = Axis(1.2, min([*ticks, *distances]) / 1.2, ticks, is_log=True)
    for name, values, colour in (("precision", curves["precision"], SERIES[0]), ("coverage", curves["coverage"], SERIES[2])):
        shares = [share or 0.0 for share in values]
        chart = Chart(_SIZE_PX, x, Axis.linear(shares), name.capitalize(), ("threshold", ""))
        chart.line(distances, shares, colour)
        chart.dots(distances, shares, colour, 2.5)
        used = [k for k, threshold in enumerate(curves["thresholds"]) if chosen and threshold == chosen["min_probability"]]
        chart.dots([distances[k] for k in used], [shares[k] for k in used], colour, 7, are_rings=True)
        yield f"threshold_{name}", chart


def _confusion_chart(matrix_CC: np.ndarray, clusters: Clusters) -> Chart:
    """Draw the confusion matrix in the order of the clusters, with a numbered frame around each group.

    A colour is stronger for a larger share of the row. It lies transparently on the page, which may be light or dark.
    """
    num_classes = len(matrix_CC)
    step = -(-num_classes // _MOST_CELLS)
    starts = np.arange(0, num_classes, step)
    counts = matrix_CC[np.ix_(clusters.order_C, clusters.order_C)]
    counts = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    off_diagonal, diagonal = (tuple(bytes.fromhex(colour[1:])) for colour in (SERIES[1], SERIES[0]))
    colours = np.full((*counts.shape, 4), (*off_diagonal, 0), np.uint8)
    colours[np.diag_indices(len(counts))] = (*diagonal, 0)
    colours[..., 3] = 255 * np.ceil(_ALPHA_LEVELS * np.sqrt(row_shares(counts))) / _ALPHA_LEVELS
    across, down = Axis(0, num_classes, {}), Axis(num_classes, 0, {})
    chart = Chart((614, 595), across, down, labels=("predicted class", "label"))
    chart.image(colours)
    for number, group in enumerate(clusters.groups[:FRAMED_GROUPS], 1):
        end = group.start + len(group.members)
        chart.frame(group.start, end)
        chart.note(end, group.start, f"{number}", (3, 5))
    return chart


def data_uri(path: Path) -> str:
    """Return a picture as a data: URI, or an empty text if there is no such file."""
    try:
        return as_data_uri(path.suffix, path.read_bytes())
    except FileNotFoundError:
        return ""


def as_data_uri(suffix: str, content: bytes) -> str:
    """Return a picture as a data: URI, from its content and the suffix of its file's name."""
    return f"data:{_MEDIA_TYPES[suffix]};base64,{base64.b64encode(content).decode()}"
