"""The charts of the report page, as pictures inside the page."""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from job.reporting import figures, times
from job.reporting.summaries import Audited, Evaluated, HeadPath, Tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from job.measure.calibration import Bin
    from job.measure.probes import CurvePoint

_MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".svg": "image/svg+xml"}


def charts(
    audit: Audited | None,
    head: HeadPath | None,
    tuning: Tuning | None,
    evaluation: Evaluated | None,
    records: times.Records,
) -> dict[str, str]:
    """Draw the charts for which there are numbers. Return data: URIs by name."""
    drawn = {"curve": _drawn(_learning_curve_chart(audit["learning_curve"]["points"]))} if audit else {}
    if head:
        drawn["head"] = _drawn(_head_chart(head))
    if tuning and len(tuning["history"]) > 1:
        drawn["tuning"] = _drawn(_tuning_chart(tuning["history"]))
    if evaluation:
        drawn["reliability"] = _drawn(_reliability_chart(evaluation["reliability"]))
    if records:
        drawn["times"] = _drawn(_times_chart(records))
    return drawn


def _learning_curve_chart(points: "Sequence[CurvePoint]") -> "Figure":
    figure, (ax,) = figures.new_figure(6.0, 2.9)
    sizes = [point["num_examples"] for point in points]
    for point in points:
        draws = point["accuracies"]
        ax.plot([point["num_examples"]] * len(draws), draws, "o", markersize=4, alpha=0.6, color=figures.SERIES[0])
    ax.plot(sizes, [sum(p["accuracies"]) / len(p["accuracies"]) for p in points], color=figures.SERIES[0])
    ax.set(title="Accuracy on validation photos", xscale="log", xlabel="training photos")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.minorticks_off()
    return figure


def _head_chart(head: HeadPath) -> "Figure":
    figure, axes = figures.new_figure(9.0, 2.7, columns=2)
    strengths = [tried["c"] for tried in head["path"]]
    losses, accuracies = ([tried[name] for tried in head["path"]] for name in ("val_log_loss", "val_accuracy"))
    for ax, values, colour in ((axes[0], losses, figures.SERIES[0]), (axes[1], accuracies, figures.SERIES[2])):
        ax.plot(strengths, values, marker="o", markersize=4, color=colour)
        chosen = [(c, v) for c, v in zip(strengths, values, strict=True) if c == head["c"]]
        ax.plot(*zip(*chosen, strict=True), marker="o", markersize=11, fillstyle="none", color=colour, linestyle="none")
        ax.set(xscale="log", xlabel="C (larger: weaker regularisation)")
    axes[0].set(title="Log loss on validation photos")
    axes[1].set(title="Accuracy on validation photos")
    return figure


def _tuning_chart(history: Sequence[Mapping[str, float]]) -> "Figure":
    figure, axes = figures.new_figure(9.0, 2.9, columns=3)
    _curve(axes[0], history, "train_loss", figures.SERIES[1], "training photos")
    _curve(axes[1], history, "val_log_loss", figures.SERIES[0], "validation photos")
    _curve(axes[2], history, "train_accuracy", figures.SERIES[1], "training photos")
    _curve(axes[2], history, "val_accuracy", figures.SERIES[0], "validation photos")
    for ax, title in zip(axes, ("Training loss", "Log loss on validation photos", "Accuracy"), strict=True):
        ax.set(title=title, xlabel="epoch")
        ax.locator_params(axis="x", integer=True)
    axes[2].legend(frameon=False, fontsize=9)
    return figure


def _reliability_chart(bins: "Sequence[Bin]") -> "Figure":
    """Draw accuracy against confidence: points with 95% intervals, larger where there are more photos."""
    figure, (ax,) = figures.new_figure(4.2, 3.4)
    confidences, accuracies = ([found[name] for found in bins] for name in ("confidence", "accuracy"))
    ends = [[abs(found["accuracy_ci95"][k] - found["accuracy"]) for found in bins] for k in (0, 1)]
    most = max(found["num_examples"] for found in bins)
    ax.plot([0, 1], [0, 1], color=figures.SERIES[-1], linewidth=1, linestyle="--")
    ax.errorbar(confidences, accuracies, ends, fmt="none", color=figures.SERIES[0], linewidth=1)
    ax.scatter(confidences, accuracies, [8 + 70 * found["num_examples"] / most for found in bins], color=figures.SERIES[0])
    ax.set(title="Share that is right", xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.02))
    return figure


def _times_chart(records: times.Records) -> "Figure":
    """Draw a bar for each stage, the first one on top, divided into `times.PARTS`."""
    figure, (ax,) = figures.new_figure(9.0, 1.1 + 0.3 * len(records))
    spent = [times.parts(stage, record) for stage, record in records.items()]
    end = [0.0] * len(spent)
    for part, colour in zip(times.PARTS, figures.SERIES, strict=True):
        widths = [seconds[part] for seconds in spent]
        ax.barh(list(records), widths, left=end, height=0.7, color=colour, label=part)
        end = [e + width for e, width in zip(end, widths, strict=True)]
    ax.set(xlabel="seconds")
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", ncols=len(times.PARTS), frameon=False, fontsize=9)
    return figure


def _curve(ax: "Axes", history: Sequence[Mapping[str, float]], name: str, colour: str, label: str) -> None:
    points = [(epoch["epoch"], epoch[name]) for epoch in history if name in epoch]
    ax.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=label)


def _drawn(figure: "Figure") -> str:
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
