"""Advice about the data: a finding and an action for each problem, the most harmful first.

The harm of a finding is an estimate: the share of photos that it concerns, or the accuracy that it costs. docs/data.md has
the table. It only orders the list and is never shown as a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.reporting.data_summaries import Audited, Explored, Torn
from job.reporting.facts import ClassFacts, Facts
from job.reporting.summaries import Explained
from job.text.numbers import counted, percent

if TYPE_CHECKING:
    from job.measure.occlusion import Background

_THIN = 20  # With fewer photos of a class in the test set, its metrics are rough.
_IMBALANCE = 3  # Ratio of the largest class to the smallest.
_WORTH_IT = 0.01  # Gain of twice the training photos.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Advice:
    """One piece of advice. `finding` and `action` are sentences; `section` is the id of the page section with details."""

    harm: float
    finding: str
    action: str
    section: str


def advice(facts: Facts, explore: Explored, audit: Audited | None, heatmaps: Explained | None) -> list[Advice]:
    """Return all advice, most harmful first. `audit` and `heatmaps` are None if these stages have not run."""
    found = [*_about_files(facts, explore), *_about_splits(facts, explore), *_about_classes(facts)]
    found += _about_shortcuts(facts, explore)
    if audit:
        found += [*_about_labels(audit), *_about_late_copies(facts, audit), *_about_more_photos(audit)]
    if heatmaps and heatmaps["background"]:
        found += _about_background(heatmaps["background"])
    return sorted(found, key=lambda a: -a.harm)


def _about_files(facts: Facts, explore: Explored) -> Iterator[Advice]:
    num_photos = max(1, sum(facts.statuses.get(s, 0) for s in ("used", "converted", "excluded", "quarantined")))
    if facts.num_conflicts:
        yield Advice(
            facts.num_conflicts / num_photos,
            f"{counted(facts.num_conflicts, 'photo has a copy', 'photos have copies')} in another class.",
            "Decide which class is right, and remove the other copies. Until then all of them are left out.",
            "duplicates",
        )
    faulty = facts.statuses.get("quarantined", 0) - facts.conflicts.get("quarantined", 0)
    if faulty:
        yield Advice(
            0.5 * faulty / num_photos,
            f"{counted(faulty, 'file', 'files')} cannot be used.",
            "The list says why. Replace or repair them, or remove those that are not photos.",
            "faults",
        )
    unsure = explore["suspicious"]["num_photos"]
    if unsure:
        yield Advice(
            0.1 * unsure / num_photos,
            f"{counted(unsure, 'photo is', 'photos are')} almost black, almost white or one flat colour.",
            "Look at them, and remove those that show nothing."
            if unsure > 1
            else "Look at it, and remove it if it shows nothing.",
            "suspicious",
        )


def _about_splits(facts: Facts, explore: Explored) -> Iterator[Advice]:
    groups = explore["groups"]
    if groups and groups["num_crossing_splits"]:
        yield Advice(
            groups["num_crossing_splits"] / groups["num_groups"],
            f"{counted(groups['num_crossing_splits'], 'group is', 'groups are')} in more than one of your splits.",
            "This is a leak: the model may know the patient, the camera or the place and not the class, and its accuracy "
            "may be too high. Divide the photos by group, or leave the splits out and the job does.",
            "data",
        )
    crossing = explore["duplicates"]["num_crossing_splits"]
    if crossing:
        yield Advice(
            crossing / max(1, facts.splits["test"]),
            f"{counted(crossing, 'picture is', 'pictures are')} in more than one of your splits.",
            "Keep one copy of each. This job trains on no copy of a photo that it measures with, but any other accuracy "
            "that was measured on these splits may be too high.",
            "duplicates",
        )


def _about_classes(facts: Facts) -> Iterator[Advice]:
    unmeasured = [c for c in facts.classes if c["test"] == 0]
    if unmeasured:
        yield Advice(
            sum(c["total"] for c in unmeasured) / max(1, facts.num_photos),
            f"The test set has no photo of {_listed(unmeasured)}.",
            "Add some. Without them, nobody knows how well "
            f"{'this class is' if len(unmeasured) == 1 else 'these classes are'} recognised.",
            "data",
        )
    thin = [c for c in facts.classes if 0 < c["test"] < _THIN]
    if thin:
        known_to = max(c["recall_known_to"] for c in thin)
        yield Advice(
            0.2 * known_to * len(thin) / len(facts.classes),
            f"The test set has fewer than {_THIN} photos of {_listed(thin)}.",
            f"Add photos. With so few, a recall of 90% is only known to ±{100 * known_to:.0f} percentage points.",
            "data",
        )
    sizes = sorted((c["total"], c["class"]) for c in facts.classes if c["total"])
    imbalance = sizes[-1][0] / sizes[0][0] if sizes else 1
    if imbalance >= _IMBALANCE:
        yield Advice(
            0.02 * (1 - 1 / imbalance),
            f"The largest class has {imbalance:.0f} times as many photos as the smallest, {_quoted(sizes[0][1])}.",
            f"{_against_imbalance(facts)} Compare models by balanced accuracy.",
            "data",
        )


def _against_imbalance(facts: Facts) -> str:
    if facts.metric == "balanced_accuracy":
        return "Add photos of small classes. The model favours them already as far as validation shows to be good."
    return "Add photos of small classes. If every class matters the same: --set evaluate.metric=balanced_accuracy."


def _about_shortcuts(facts: Facts, explore: Explored) -> Iterator[Advice]:
    best, largest = facts.shortcut, explore["shortcuts"]["largest_class"]
    if best:
        yield Advice(
            best["accuracy"] - largest,
            f"The class can be guessed from the file alone: its {best['fact']} gives the right class for "
            f"{percent(best['accuracy'])} of all photos (always guessing the largest class: {percent(largest)}). The "
            f"easiest class is {_quoted(best['best_class'])}.",
            "Find out how the classes were collected, and convert all photos to one size and format. Otherwise a model may "
            "learn this instead of what the photos show, and no accuracy on this page would reveal it.",
            "shortcuts",
        )


def _about_background(background: Background) -> Iterator[Advice]:
    if background["decides"]:
        yield Advice(
            background["outer"] - background["inner"],
            f"The background may decide: {percent(background['outer'], 0)} of right answers stay the same if the middle of "
            f"the photo is hidden, and {percent(background['inner'], 0)} if everything else is.",
            "Look at the heatmaps. If each class was photographed in another place, add photos of every class in many "
            "places. Otherwise the model fails elsewhere, and no accuracy on this page would reveal it.",
            "heatmaps",
        )


_HOW_TO_CORRECT = "write the right class into the column decision of a copy, and run again with --corrections COPY."


def _about_labels(audit: Audited) -> Iterator[Advice]:
    issues = audit["label_issues"]
    likely, first = issues["num_likely"], issues["num_first"]
    if not likely or issues["trust"] == "none":
        return
    look = f"Look at these {first} first" if first > 1 else "Look at this one"
    rows = f"the first {first} rows" if first > 1 else "the first row"
    if issues["trust"] == "good":
        harm, finding = likely, f"{counted(likely, 'label', 'labels')} may be wrong: another class was predicted."
        action = f"{look}: {rows} of label_issues.csv. Correct those that are wrong: {_HOW_TO_CORRECT}"
    else:
        harm = first
        finding = (
            f"Some labels may be wrong. But only {percent(issues['agreement'])} of all labels agree with the prediction "
            f"(by chance: {percent(issues['chance'])}), so most of the {likely:,} that it doubts are right."
        )
        action = f"{look}: {rows} of label_issues.csv. If few of them are wrong, leave the others."
    yield Advice(0.5 * harm / issues["num_examples"], finding, action, "labels")


def _about_late_copies(facts: Facts, audit: Audited) -> Iterator[Advice]:
    by_user, by_job = audit["late_copies"]["torn_by_user"], audit["late_copies"]["torn_by_job"]
    if by_user["num_groups"]:
        yield Advice(
            by_user["num_groups"] / max(1, facts.splits["test"]),
            f"{counted(by_user['num_groups'], 'scene is', 'scenes are')} in more than one of your splits, as crops, edited "
            "copies or photos of one series.",
            f"Put photos that were taken together into one split. {_left_out(by_user)}",
            "duplicates",
        )
    if by_job["num_groups"]:
        yield Advice(
            by_job["num_left_out"] / max(1, facts.num_photos),
            f"{counted(by_job['num_groups'], 'scene was', 'scenes were')} found only after the photos had been divided, as "
            "crops, edited copies or photos of one series.",
            f"{_left_out(by_job)} To use them, tell the job what was taken together: --group-column or split.group_from.",
            "duplicates",
        )


def _left_out(torn: Torn) -> str:
    return f"{counted(torn['num_left_out'], 'photo was', 'photos were')} left out because of this."


def _about_more_photos(audit: Audited) -> Iterator[Advice]:
    curve = audit["learning_curve"]
    half, whole = curve["last_doubling"]
    if whole - half > max(_WORTH_IT, curve["noise"]):
        yield Advice(
            0.5 * (whole - half),
            f"More photos would help: with twice the training photos, the accuracy rose from {percent(half)} to "
            f"{percent(whole)}.",
            "Collect more, first of the classes that are confused with each other.",
            "more-photos",
        )


def _quoted(name: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"


def _listed(classes: list[ClassFacts]) -> str:
    shown = ", ".join(_quoted(row["class"]) for row in classes[:_NAMES_SHOWN])
    rest = len(classes) - _NAMES_SHOWN
    return shown + (f" and {counted(rest, 'more class', 'more classes')}" if rest > 0 else "")
