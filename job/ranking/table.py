"""The results of `rank`: the table that is printed, rank.csv, and the plot of accuracy against cost."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from job.reporting.figures import SERIES, Axis, Chart
from job.text.untrusted import csv_of

_WIDTH = 120
_MOST_LOST = 0.02  # A cheaper candidate is recommended only if its interval excludes a loss of more than this.


@dataclass(frozen=True)
class Cost:
    """The cost of the features of one backbone.

    `forward_wall_ms` and `forward_cpu_ms` are for one photo in a full batch, without compilation. `stored_bytes` is the size
    of the pixels and the features of one photo. `extract_wall_s` and `extract_cpu_s` are the time that this machine took for
    all photos, with building and compiling the model; nearly 0 if another run had stored the features.
    """

    multiply_adds: int
    parameters: int
    weights_mb: float
    feature_width: int
    stored_bytes: int
    forward_wall_ms: float
    forward_cpu_ms: float
    extract_wall_s: float
    extract_cpu_s: float


@dataclass(frozen=True)
class Accuracy:
    """Out-of-fold accuracy on the photos that all candidates share, and its paired difference to the best candidate."""

    num_examples: int
    accuracy: float
    accuracy_ci95: list[float]
    difference: float
    difference_ci95: list[float]
    log_loss: float

    @property
    def not_worse(self) -> bool:
        """True if the 95% interval of the difference to the best reaches 0 and excludes a loss of over 2 points."""
        return self.difference_ci95[0] >= -_MOST_LOST and self.difference_ci95[1] >= 0

    @property
    def undecided(self) -> bool:
        """True if the 95% interval of the difference to the best includes 0, and a loss of over 2 points, too."""
        return self.difference_ci95[0] < -_MOST_LOST and self.difference_ci95[1] >= 0

    @property
    def num_deciding(self) -> int:
        """The number of photos at which the interval would be narrow enough, if the difference stays what it is."""
        half_width = (self.difference_ci95[1] - self.difference_ci95[0]) / 2
        return round(self.num_examples * (half_width / max(_MOST_LOST + self.difference, -self.difference)) ** 2)


@dataclass(frozen=True)
class Row:
    """A candidate with its cost and accuracy, or with the reason why it has neither."""

    name: str
    image_size: int
    weights: str
    folder: str
    cost: Cost | None = None
    accuracy: Accuracy | None = None
    reason: str = ""


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Sort rows: the most accurate first, at equal accuracy the cheaper one, and rows without accuracy last."""

    def key(row: Row) -> tuple[float, int]:
        return (-row.accuracy.accuracy, row.cost.multiply_adds) if row.accuracy and row.cost else (1.0, 0)

    return sorted(rows, key=key)


def recommended(rows: Sequence[Row]) -> Row:
    """Return the row with the fewest multiply-adds among those that are not worse than the best.

    At equal multiply-adds it is the more accurate one.
    """
    return min((row for row in rows if row.accuracy and row.accuracy.not_worse), key=_by_cost)


def undecided(rows: Sequence[Row], chosen: Row) -> list[Row]:
    """Return the rows that cost less than the chosen one and may be as good: there are too few photos to tell."""
    found = (row for row in rows if row.accuracy and row.accuracy.undecided)
    return sorted((row for row in found if _by_cost(row)[0] < _by_cost(chosen)[0]), key=_by_cost)


def _by_cost(row: Row) -> tuple[int, float]:
    assert row.cost and row.accuracy
    return row.cost.multiply_adds, -row.accuracy.accuracy


_HEADINGS = ("backbone", "px", "accuracy, 95%", "points to best", "M MACs", "CPU ms", "ms", "MB", "width", "kB", "s")
_KEY = (
    "accuracy: {}; points to best: percentage points to the most accurate; M MACs: million "
    "multiply-adds for one photo; CPU ms, ms: CPU and wall time for one photo; MB: weights; width: numbers in a feature "
    "vector; kB: stored for one photo; s: wall time of extract. 95% intervals."
)


def as_text(rows: Sequence[Row], meaning: str) -> str:
    """Return the table as lines of at most 120 columns, and below it the key and why a candidate is not ranked.

    `meaning` says what the accuracy is measured with.
    """
    distinct = _names(rows)
    cells = [_HEADINGS, *(_cells(row, distinct[row.folder]) for row in rows)]
    widths = [max(len(line[k]) for line in cells if len(line) > k) for k in range(len(_HEADINGS))]
    widths[0] = min(widths[0], _WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    lines = []
    for name, *figures in cells:
        if len(name) > widths[0]:  # On a line of its own, because two long names may begin alike.
            lines += textwrap.wrap(name, _WIDTH)
        padded = (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=False))
        first = name if len(name) <= widths[0] else ""
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    lines += textwrap.wrap(_KEY.format(meaning), _WIDTH, break_on_hyphens=False)
    for row in rows:
        if row.reason:
            said = f"{distinct[row.folder]} at {row.image_size} px is not ranked: {row.reason}"
            lines += textwrap.wrap(said, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """Return a name for each candidate, by folder. It includes the weights if name and image size are not unique."""
    seen = Counter((row.name, row.image_size) for row in rows)
    is_unique = {row.folder: seen[row.name, row.image_size] == 1 for row in rows}
    return {row.folder: row.name if is_unique[row.folder] else f"{row.name} {row.weights}" for row in rows}


def _cells(row: Row, name: str) -> tuple[str, ...]:
    if row.accuracy is None or row.cost is None:
        return name, str(row.image_size), "-"
    accuracy, cost = row.accuracy, row.cost
    low, high = accuracy.difference_ci95
    is_best = accuracy.difference == 0 and low == high == 0
    return (
        name,
        str(row.image_size),
        f"{accuracy.accuracy:.3f} ({accuracy.accuracy_ci95[0]:.3f}-{accuracy.accuracy_ci95[1]:.3f})",
        "" if is_best else f"{100 * accuracy.difference:+.1f} ({100 * low:+.1f} {100 * high:+.1f})",
        f"{cost.multiply_adds / 1e6:,.0f}",
        f"{cost.forward_cpu_ms:.1f}",
        f"{cost.forward_wall_ms:.1f}",
        f"{cost.weights_mb:.1f}",
        f"{cost.feature_width}",
        f"{cost.stored_bytes / 1000:.0f}",
        f"{cost.extract_wall_s:.0f}",
    )


def as_csv(rows: Sequence[Row]) -> bytes:
    """Return the rows as CSV with a header. The names of the columns contain the units."""
    records = [_flat(row) for row in rows]
    columns = max((list(record) for record in records), key=len)
    return csv_of([columns, *([record.get(column, "") for column in columns] for record in records)])


def _flat(row: Row) -> dict[str, object]:
    record: dict[str, object] = {k: getattr(row, k) for k in ("name", "image_size", "weights", "folder", "reason")}
    for part in (row.accuracy, row.cost):
        for key, value in (asdict(part) if part else {}).items():
            named = {f"{key}_low": value[0], f"{key}_high": value[1]} if isinstance(value, list) else {key: value}
            record |= {k: round(v, 6) if isinstance(v, float) else v for k, v in named.items()}
    return record


def draw(rows: Sequence[Row], chosen: Row, meaning: str, path: Path) -> None:
    """Draw accuracy with its 95% interval against multiply-adds as SVG. The recommended candidate has another colour."""
    distinct = _names(rows)
    ranked = [(row, row.accuracy, row.cost.multiply_adds / 1e6) for row in rows if row.accuracy and row.cost]
    ranked.sort(key=lambda entry: entry[2])
    costs = [cost for _, _, cost in ranked]
    y = Axis.linear([end for _, accuracy, _ in ranked for end in accuracy.accuracy_ci95])
    labels = ("million multiply-adds for one photo", "accuracy, 95% interval")
    chart = Chart((720, 432), Axis.logarithmic(costs), y, f"Accuracy {meaning}", labels)
    middle = (costs[0] * costs[-1]) ** 0.5
    for number, (row, found, cost) in enumerate(ranked):
        colour = SERIES[1] if row is chosen else SERIES[0]
        low, high = found.accuracy_ci95
        chart.intervals([cost], [low], [high], colour)
        chart.dots([cost], [found.accuracy], colour)
        # Labels point to the middle, and those of neighbours in cost are above and below, so that they do not overlap.
        rightwards, above = cost <= middle, number % 2 == 0
        shift_px, anchor = (6 if rightwards else -6, -6 if above else 15), "start" if rightwards else "end"
        chart.note(cost, found.accuracy, f"{distinct[row.folder]}, {row.image_size} px", shift_px, anchor)
    chart.save(path)
