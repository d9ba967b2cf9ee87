"""The charts of the report page, as pictures inside the page. A chart is at most as wide as a phone, and has one plot."""

import base64
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from job.measure.confusions import Clusters, row_shares
from job.reporting import figures
from job.reporting.summaries import Audited, Evaluated, HeadPath, Tuning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from job.measure.calibration import Bin
    from job.measure.probes import CurvePoint

_MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".svg": "image/svg+xml"}
_SIZE_IN = (3.4, 2.7)
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
    drawn: dict[str, Figure] = {}
    if audit:
        drawn["curve"] = _learning_curve_chart(audit["learning_curve"]["points"])
    if head and head["path"]:
        drawn |= _head_charts(head)
    if tuning and len(tuning["history"]) > 1:
        drawn |= _tuning_charts(tuning["history"])
    if evaluation:
        drawn["reliability"] = _reliability_chart(evaluation["reliability"])
    if evaluation and clusters:
        drawn["confusion"] = _confusion_chart(np.asarray(evaluation["confusion"]), clusters)
    return {name: _uri_of(figure) for name, figure in drawn.items()}


def _learning_curve_chart(points: "Sequence[CurvePoint]") -> "Figure":
    figure, ax = figures.new_figure(*_SIZE_IN)
    sizes = [point["num_examples"] for point in points]
    for point in points:
        draws = point["accuracies"]
        ax.plot([point["num_examples"]] * len(draws), draws, "o", markersize=4, alpha=0.6, color=figures.SERIES[0])
    ax.plot(sizes, [sum(p["accuracies"]) / len(p["accuracies"]) for p in points], color=figures.SERIES[0])
    ax.set(title="Accuracy on validation photos", xscale="log", xlabel="training photos")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.minorticks_off()
    return figure


def _head_charts(head: HeadPath) -> "Iterator[tuple[str, Figure]]":
    """Yield the log loss and the accuracy by regularisation strength. A ring marks the strength that was used."""
    strengths = [tried["c"] for tried in head["path"]]
    losses, accuracies = ([tried[name] for tried in head["path"]] for name in ("val_log_loss", "val_accuracy"))
    for name, title, values, colour in (
        ("log_loss", "Log loss on validation photos", losses, figures.SERIES[0]),
        ("accuracy", "Accuracy on validation photos", accuracies, figures.SERIES[2]),
    ):
        figure, ax = figures.new_figure(*_SIZE_IN)
        ax.plot(strengths, values, marker="o", markersize=4, color=colour)
        chosen = [(c, v) for c, v in zip(strengths, values, strict=True) if c == head["c"]]
        ax.plot(*zip(*chosen, strict=True), marker="o", markersize=11, fillstyle="none", color=colour, linestyle="none")
        ax.set(title=title, xscale="log", xlabel="C (larger: weaker regularisation)")
        ax.xaxis.set_major_formatter(lambda c, _: f"{c:g}")
        ax.minorticks_off()
        yield f"head_{name}", figure


def _tuning_charts(history: Sequence[Mapping[str, float]]) -> "Iterator[tuple[str, Figure]]":
    """Yield the training loss, the validation log loss, and both accuracies by epoch."""
    training, validation = ("training photos", figures.SERIES[1]), ("validation photos", figures.SERIES[0])
    for name, title, curves in (
        ("loss", "Training loss", {"train_loss": training}),
        ("log_loss", "Log loss on validation photos", {"val_log_loss": validation}),
        ("accuracy", "Accuracy", {"train_accuracy": training, "val_accuracy": validation}),
    ):
        figure, ax = figures.new_figure(3.0, 2.7)
        for key, (label, colour) in curves.items():
            points = [(epoch["epoch"], epoch[key]) for epoch in history if key in epoch]
            ax.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=label)
        ax.set(title=title, xlabel="epoch")
        ax.locator_params(axis="x", integer=True)
        if len(curves) > 1:
            ax.legend(frameon=False)
        yield f"tuning_{name}", figure


def _reliability_chart(bins: "Sequence[Bin]") -> "Figure":
    """Draw accuracy against confidence: points with 95% intervals, larger where there are more photos."""
    figure, ax = figures.new_figure(3.4, 3.2)
    confidences, accuracies = ([found[name] for found in bins] for name in ("confidence", "accuracy"))
    ends = [[abs(found["accuracy_ci95"][k] - found["accuracy"]) for found in bins] for k in (0, 1)]
    most = max(found["num_examples"] for found in bins)
    ax.plot([0, 1], [0, 1], color=figures.SERIES[-1], linewidth=1, linestyle="--")
    ax.errorbar(confidences, accuracies, ends, fmt="none", color=figures.SERIES[0], linewidth=1)
    ax.scatter(confidences, accuracies, [8 + 70 * found["num_examples"] / most for found in bins], color=figures.SERIES[0])
    ax.set(title="Share that is right", xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.02))
    return figure


def _confusion_chart(matrix_CC: np.ndarray, clusters: Clusters) -> "Figure":
    """Draw the confusion matrix in the order of the clusters, with a numbered frame around each group.

    A colour is stronger for a larger share of the row. It lies transparently on the page, which may be light or dark.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    figure, ax = figures.new_figure(6.4, 6.2)
    step = -(-len(matrix_CC) // _MOST_CELLS)
    starts = np.arange(0, len(matrix_CC), step)
    counts = matrix_CC[np.ix_(clusters.order_C, clusters.order_C)]
    counts = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    colours = np.full((*counts.shape, 4), (*to_rgb(figures.SERIES[1]), 0.0))
    colours[np.diag_indices(len(counts))] = (*to_rgb(figures.SERIES[0]), 0.0)
    colours[..., 3] = np.ceil(_ALPHA_LEVELS * np.sqrt(row_shares(counts))) / _ALPHA_LEVELS
    ax.imshow(colours, interpolation="none", extent=(0, len(matrix_CC), len(matrix_CC), 0))
    for number, group in enumerate(clusters.groups[:FRAMED_GROUPS], 1):
        size = len(group.members)
        ax.add_patch(Rectangle((group.start, group.start), size, size, fill=False, edgecolor=figures.INK, linewidth=0.8))
        ax.annotate(f"{number}", (group.start + size, group.start), (2, 0), textcoords="offset points", va="center")
    ax.set(xlabel="predicted class", ylabel="label", xticks=[], yticks=[])
    return figure


def _uri_of(figure: "Figure") -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chart.svg"
        figures.save_svg(figure, path)
        return data_uri(path)


def data_uri(path: Path) -> str:
    """Return a picture as a data: URI, or an empty text if there is no such file."""
    try:
        return f"data:{_MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except FileNotFoundError:
        return ""
