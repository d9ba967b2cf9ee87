"""Advice about the data: a finding and an action for each problem, the most harmful first.

The harm of a finding is an estimate: the share of photos that it concerns, or the accuracy that it costs. docs/data.md has
the table. It only orders the list and is never shown as a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.reporting.summaries import Audited, Explored
from job.text.numbers import counted, percent

if TYPE_CHECKING:
    from job.measure.shortcuts import Fact

_THIN = 20  # With fewer held-out photos of a class, its metrics are rough.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Advice:
    """One piece of advice. `finding` and `action` are sentences; `section` is the id of the page section with details."""

    harm: float
    finding: str
    action: str
    section: str


def advice(explore: Explored, audit: Audited | None) -> list[Advice]:
    """Return all advice, most harmful first. `audit` is None if the audit has not run."""
    found = [*_about_files(explore), *_about_splits(explore), *_about_classes(explore), *_about_shortcuts(explore)]
    if audit:
        found += [*_about_labels(audit), *_about_late_copies(audit), *_about_more_photos(audit)]
    return sorted(found, key=lambda a: -a.harm)


def _about_files(explore: Explored) -> Iterator[Advice]:
    num_photos = max(1, sum(explore["statuses"].get(s, 0) for s in ("used", "converted", "excluded", "quarantined")))
    copies = explore["duplicates"]
    conflicts = copies["num_label_conflicts"] + copies["num_crossing_labels"]
    if conflicts:
        yield Advice(
            conflicts / num_photos,
            f"{counted(conflicts, 'photo is', 'photos are')} in more than one class.",
            "Decide which class is right and delete the other copies. Until then all of them are left out.",
            "duplicates",
        )
    faulty = explore["statuses"].get("quarantined", 0) - copies["num_label_conflicts"]
    if faulty > 0:
        yield Advice(
            0.5 * faulty / num_photos,
            f"{counted(faulty, 'file', 'files')} cannot be used.",
            "Replace or repair damaged files, and remove files that are not photos.",
            "faults",
        )
    unsure = explore["suspicious"]["num_photos"]
    if unsure:
        yield Advice(
            0.1 * unsure / num_photos,
            f"{counted(unsure, 'photo is', 'photos are')} almost black, almost white or one flat colour.",
            "Look at them, and remove those that show nothing.",
            "suspicious",
        )


def _about_splits(explore: Explored) -> Iterator[Advice]:
    groups = explore["groups"]
    if groups and groups["num_crossing_splits"]:
        yield Advice(
            groups["num_crossing_splits"] / groups["num_groups"],
            f"{counted(groups['num_crossing_splits'], 'group is', 'groups are')} in more than one of your splits.",
            "This is a leak: the model may know the patient, the camera or the place and not the class. Divide the photos "
            "by group, or leave the splits out and the job does. Until then read the accuracy without leaks.",
            "data",
        )
    crossing = explore["duplicates"]["num_crossing_splits"]
    if crossing:
        yield Advice(
            crossing / max(1, explore["splits"]["test"]),
            f"{counted(crossing, 'picture is', 'pictures are')} in more than one of your splits.",
            "Keep one copy of each. This job uses only the held-out copy, but any other accuracy that was measured on these "
            "splits is too high.",
            "duplicates",
        )


def _about_classes(explore: Explored) -> Iterator[Advice]:
    totals = {c["class"]: c["train"] + c["val"] + c["test"] for c in explore["classes"]}
    num_photos = max(1, sum(totals.values()))
    unmeasured = [c["class"] for c in explore["classes"] if c["test"] == 0]
    if unmeasured:
        yield Advice(
            sum(totals[name] for name in unmeasured) / num_photos,
            f"The held-out split has no photo of {_listed(unmeasured)}.",
            "Add some. Without them, nobody knows how well "
            f"{'this class is' if len(unmeasured) == 1 else 'these classes are'} recognised.",
            "data",
        )
    thin = [c for c in explore["classes"] if 0 < c["test"] < _THIN]
    if thin:
        width = max(c["recall_interval_width"] for c in thin)
        yield Advice(
            0.1 * width * len(thin) / len(totals),
            f"The held-out split has fewer than {_THIN} photos of {_listed([c['class'] for c in thin])}.",
            f"Add photos. With so few, recall is only known to ±{50 * width:.0f} percentage points.",
            "data",
        )
    imbalance = max(totals.values()) / max(1, min(totals.values()))
    if imbalance >= 3:
        smallest = min(totals, key=lambda name: totals[name])
        yield Advice(
            0.02 * (1 - 1 / imbalance),
            f"The largest class has {imbalance:.0f} times as many photos as the smallest, {_quoted(smallest)}.",
            "Add photos of small classes, or use class weights: --set head.class_weight=balanced --set "
            "fine_tune.class_weight=balanced. Compare models by balanced accuracy.",
            "data",
        )


def _about_shortcuts(explore: Explored) -> Iterator[Advice]:
    found = explore["shortcuts"]
    telling = sorted((f for f in found["facts"] if f["warning"]), key=lambda f: -f["accuracy"])
    if telling or found["file"]["warning"]:
        all_facts: Fact = {"fact": "size, shape, format and EXIF data", "kind": "file", **found["file"]}
        best = telling[0] if telling else all_facts
        yield Advice(
            best["accuracy"] - found["largest_class"],
            f"The class can be guessed from the file alone: its {best['fact']} gives the right class for "
            f"{100 * best['accuracy']:.0f}% of the photos (always guessing the largest class: "
            f"{100 * found['largest_class']:.0f}%). The easiest class is {_quoted(best['best_class'])}.",
            "Find out how the classes were collected, and convert all photos to one size and format. Otherwise a model may "
            "learn this instead of what the photos show, and no number on this page would reveal it.",
            "shortcuts",
        )


def _about_labels(audit: Audited) -> Iterator[Advice]:
    issues = audit["label_issues"]
    likely, first = issues["num_likely"], issues["num_first"]
    if not likely or issues["trust"] == "none":
        return
    look = f"Look at these {first} first" if first > 1 else "Look at this one"
    rows = f"the first {first} rows" if first > 1 else "the first row"
    if issues["trust"] == "good":
        harm, finding = likely, f"{counted(likely, 'label', 'labels')} may be wrong: another class was predicted."
        action = f"{look}: {rows} of label_issues.csv. Correct those that are wrong."
    else:
        harm = first
        finding = (
            f"Some labels may be wrong. But only {percent(issues['agreement'])} of all labels agree with the prediction "
            f"(by chance: {percent(issues['chance'])}), so most of the {likely:,} that it doubts are right."
        )
        action = f"{look}: {rows} of label_issues.csv. If few of them are wrong, leave the others."
    yield Advice(0.5 * harm / issues["num_examples"], finding, action, "labels")


def _about_late_copies(audit: Audited) -> Iterator[Advice]:
    late = audit["late_copies"]
    if late["num_crossing_splits"]:
        yield Advice(
            late["num_crossing_splits"] / max(1, audit["splits"]["test"]),
            f"{counted(late['num_crossing_splits'], 'scene is', 'scenes are')} in more than one split, as crops, edited "
            "copies or photos of one series.",
            "Put photos that were taken together into one split. Because of this, "
            f"{counted(late['num_excluded'], 'photo was', 'photos were')} left out.",
            "duplicates",
        )


def _about_more_photos(audit: Audited) -> Iterator[Advice]:
    points = audit["learning_curve"]["points"]
    gain = _mean(points[-1]["accuracies"]) - _mean(points[-2]["accuracies"]) if len(points) > 1 else 0.0
    if gain > 0.01:
        yield Advice(
            0.5 * gain,
            f"More photos would help: the last doubling of the training photos added {100 * gain:.1f} percentage points of "
            "accuracy.",
            "Collect more, first of the classes that are confused with each other.",
            "more-photos",
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _quoted(name: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(_quoted(name) for name in names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return shown + (f" and {rest} more classes" if rest > 0 else "")
