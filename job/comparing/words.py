"""A comparison of runs in words, for the terminal and the page."""

from collections.abc import Sequence

from job.comparing.numbers import Differences, Different, GroupScores, Numbers, Versus
from job.comparing.photos import left_out
from job.data.changes import in_words as changes_in_words
from job.measure.paired import SCORES, SIGNIFICANT, ClassDifference
from job.text.numbers import counted, percent, points, seconds

_MOST_SETTINGS, _MOST_CLASSES = 12, 10
_COLUMN = 28
ARROW, MINUS, PLUS_MINUS = "\N{RIGHTWARDS ARROW}", "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"


def in_words(numbers: Numbers) -> list[str]:
    """Return a comparison as lines of text."""
    lines = [*about_photos(numbers), *(f"{group['name']}  {listed(group)}" for group in numbers["groups"]), ""]
    lines.append(_row("", "accuracy", "log loss", "calibration error"))
    lines += [_row(group["name"], *(with_spread(group, name) for name in SCORES)) for group in numbers["groups"]]
    for versus in numbers["versus"]:
        lines.append(_row(f"{versus['name']} {MINUS} {versus['first']}", *(change(versus, name) for name in SCORES)))
    lines.append("(differences with 95% intervals, in percentage points for accuracy and calibration error)")
    for versus in numbers["versus"]:
        lines += ["", verdict(versus), *seeds_in_words(versus), of_classes(versus), *_differs(versus)]
    return lines


def about_photos(numbers: Numbers) -> list[str]:
    """Return sentences about which photos the runs are compared on, and why not on others."""
    compared = counted(numbers["photos"]["compared"], "held-out photo", "held-out photos")
    return [f"Compared on {compared} that every run has tested.", *left_out(numbers["photos"])]


def listed(group: GroupScores) -> str:
    """Return the runs of a group."""
    names = ", ".join(run["run"] for run in group["runs"])
    return names if len(group["runs"]) == 1 else f"{names} ({len(group['runs'])} runs that differ only by seed)"


def score(name: str, value: float) -> str:
    """Return the value of a score."""
    return f"{value:.3f}" if name == "log_loss" else percent(value)


def with_spread(group: GroupScores, name: str) -> str:
    """Return the mean of a score over the runs of a group, and its standard deviation if there are several."""
    mean, spread = score(name, group["mean"][name]), group["spread"]
    return mean if spread is None else f"{mean} {PLUS_MINUS} {score(name, spread[name]).removesuffix('%')}"


def change(versus: Versus, name: str) -> str:
    """Return the difference of a score with its interval."""
    found = versus["differences"][name]
    value, low, high = (_signed(name, number) for number in (found["difference"], *found["ci95"]))
    return f"{value} ({low} to {high})"


def verdict(versus: Versus) -> str:
    """Return sentences about the difference of the accuracies, the mistakes, and whether it may be chance."""
    found, (first, name) = versus["differences"]["accuracy"], (versus["first"], versus["name"])
    low, high = found["ci95"]
    better, worse = versus["wrong_to_right"], versus["right_to_wrong"]
    if versus["is_single"]:
        corrected, made = counted(better, "mistake", "mistakes"), counted(worse, "new one", "new ones")
        told, test = f"{name} corrects {corrected} of {first} and makes {made}", "McNemar's"
    else:
        photos = counted(better, "photo", "photos")
        told, test = f"{name} is right more often about {photos} and less often about {worse:,}", "sign"
    chance = "This may be chance" if low <= 0 <= high else "This is more than chance would do"
    return (
        f"{told}: {points(found['difference'])} points of accuracy (95% interval {points(low)} to {points(high)}). "
        f"{chance} (exact {test} test: p {_p(versus['p_value'])})."
    )


def seeds_in_words(versus: Versus) -> list[str]:
    """Return a sentence about the seeds: whether the difference is larger than their noise, or that nobody knows."""
    if found := versus["differences"]["accuracy"]["seeds_ci95"]:
        low, high = map(points, found)
        return [
            f"By the spread between seeds alone, the difference of the accuracies is between {low} and {high} points (95%)."
        ]
    return [
        "These intervals are about other photos. Another seed changes a model, too: several seeds of each show how much."
    ]


def of_classes(versus: Versus) -> str:
    """Return a sentence about the classes that got better or worse beyond noise."""
    better, worse = ([_class(row) for row in changed(versus, sign)] for sign in (1, -1))
    count = counted(len(versus["classes"]), "class", "classes")
    if not better and not worse:
        return f"No class got better or worse beyond noise (recall, corrected for looking at {count})."
    parts = [f"{what}: {', '.join(some)}" for what, some in (("better", better), ("worse", worse)) if some]
    return f"Beyond noise (recall, corrected for looking at {count}): {'; '.join(parts)}."


def changed(versus: Versus, sign: int) -> list[ClassDifference]:
    """Return the classes that got better (`sign` 1) or worse (-1) beyond noise, those with the largest difference first."""
    found = [row for row in versus["classes"] if row["p_adjusted"] < SIGNIFICANT and row["difference"] * sign > 0]
    return sorted(found, key=lambda row: -abs(row["difference"]))[:_MOST_CLASSES]


def data_in_words(versus: Versus) -> str:
    """Return a sentence about how the data differs, and what that means if the classes do."""
    found = versus["differs"]["data"]
    said = [changes_in_words(found, versus["first"]) or "The usable photos and their labels are the same."]
    if found["moved"]:
        said.append(f"{counted(found['moved'], 'photo is', 'photos are')} in another split.")
    if found["new_classes"] or found["gone_classes"]:
        said.append("The same photos are harder for runs that have more classes to tell apart.")
    return " ".join(said)


def cost_in_words(differs: Differences) -> str:
    """Return the costs of a run of each group."""
    cpu, wall = ([seconds(value) for value in values] for values in (differs["cpu_s"], differs["wall_s"]))
    return f"{cpu[0]} {ARROW} {cpu[1]} of CPU time, {wall[0]} {ARROW} {wall[1]} of wall time."


def _differs(versus: Versus) -> list[str]:
    differs = versus["differs"]
    return [
        f"Settings: {_changed(differs['settings'])}",
        f"Data: {data_in_words(versus)}",
        f"Versions and machine: {_changed(differs['versions'])}",
        f"Cost of a run: {cost_in_words(differs)}",
    ]


def _changed(rows: Sequence[Different]) -> str:
    shown = [f"{row['name']} {', '.join(row['first'])} {ARROW} {', '.join(row['other'])}" for row in rows[:_MOST_SETTINGS]]
    more = [f"and {len(rows) - _MOST_SETTINGS} more (--json lists them)"] if len(rows) > _MOST_SETTINGS else []
    return f"{'; '.join([*shown, *more]) or 'the same'}."


def _class(row: ClassDifference) -> str:
    return f"{row['name']} ({percent(row['first_recall'])} {ARROW} {percent(row['recall'])}, p {_p(row['p_adjusted'])})"


def _signed(name: str, value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS) if name == "log_loss" else points(value)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _row(head: str, *cells: str) -> str:
    return f"{head:<8}{''.join(f'{cell:<{_COLUMN}}' for cell in cells)}".rstrip()
