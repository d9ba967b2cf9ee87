"""Facts about the data that several parts of the report state. They are derived once, so that the parts cannot disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job.data.examples import ClassCounts
from job.measure.metrics import wilson
from job.reporting.data_summaries import Audited, Copies, Explored
from job.reporting.summaries import ComparedWithEarlier
from job.sources.base import some_classes
from job.text.numbers import counted, percent, points

if TYPE_CHECKING:
    from job.measure.flips import Corrected, Verdict, Versus
    from job.measure.shortcuts import Fact
    from job.measure.thresholds import Promise


class ClassFacts(ClassCounts):
    """The counts of a class, its number of usable photos, and half the width of the 95% interval of a recall of 90%."""

    total: int
    recall_known_to: float


@dataclass(frozen=True)
class Facts:
    """Facts about the data. Counts are those of the audit, if it has run, because it leaves out more photos.

    `splits_given` are the splits of the user that the job has kept. `num_left_out_later` photos are still in those numbers
    of explore that the audit does not repeat. `groups` are explore's groups of copies, with what became of each photo.
    `shortcut` is the fact about the file that tells the class best, if one tells it clearly. `metric` is the setting
    evaluate.metric.
    """

    statuses: Mapping[str, int]
    conflicts: Mapping[str, int]
    splits: Mapping[str, int]
    classes: list[ClassFacts]
    splits_given: list[str]
    num_left_out_later: int
    copies: list[Copies]
    shortcut: Fact | None
    metric: str

    @property
    def num_photos(self) -> int:
        """The number of usable photos."""
        return sum(self.splits.values())

    @property
    def num_conflicts(self) -> int:
        """The number of files that were left out because one picture has two labels."""
        return sum(self.conflicts.values())


def facts(explore: Explored, audit: Audited | None, config: Mapping[str, Any]) -> Facts:
    """Return the facts from the summaries of the stages and the settings of the run."""
    newest, left_out = audit or explore, audit["left_out"] if audit else {}
    return Facts(
        statuses=newest["statuses"],
        conflicts=newest["conflicts"],
        splits=newest["splits"],
        classes=[_of_class(row) for row in newest["classes"]],
        splits_given=explore["splits_given"],
        num_left_out_later=len(left_out),
        copies=[_brought_up_to_date(group, left_out) for group in explore["duplicates"]["groups"]],
        shortcut=_shortcut(explore),
        metric=config["evaluate"]["metric"],
    )


def _shortcut(explore: Explored) -> Fact | None:
    found = explore["shortcuts"]
    every: Fact = {"fact": "size, shape, format and EXIF data", "kind": "file", **found["file"]}
    telling = [fact for fact in found["facts"] if fact["warning"]]
    return max(telling, key=lambda f: f["accuracy"]) if telling else every if every["warning"] else None


def _of_class(row: ClassCounts) -> ClassFacts:
    low, high = wilson(round(0.9 * row["test"]), row["test"])
    return {**row, "total": row["train"] + row["val"] + row["test"], "recall_known_to": (high - low) / 2}


def _brought_up_to_date(group: Copies, left_out: Mapping[str, str]) -> Copies:
    photos = [
        {**photo, "status": "excluded", "reason": left_out[photo["path"]]} if photo["path"] in left_out else photo
        for photo in group["photos"]
    ]
    return {**group, "photos": photos}


def against_earlier(found: ComparedWithEarlier) -> str:
    """Return sentences about how the earlier model and the new one compare, on which photos, and why not on others."""
    told = ["The new model is not compared with the earlier one."]
    if result := found["all"]:
        photos = counted(result["num_examples"], "held-out photo", "held-out photos")
        corrected = counted(result["wrong_to_right"], "mistake", "mistakes")
        made = counted(result["right_to_wrong"], "new one", "new ones")
        told = [f"On the same {photos}, {_accuracies(result)}", f"The new model corrects {corrected} and makes {made}."]
    if known := found["known_classes"]:
        names = some_classes(found["changes"]["new_classes"])
        photos = counted(known["num_examples"], "other photo", "other photos")
        told.append(f"The earlier model does not know {names}. On the {photos}, {_accuracies(known)}")
    if found["num_seen"]:
        it = "held-out photo is left out: the earlier run used it, or a copy of it,"
        they = "held-out photos are left out: the earlier run used them, or copies of them,"
        told.append(f"{counted(found['num_seen'], it, they)} for training or validation.")
    return " ".join(filter(None, [*told, found["note"]]))


_VERDICTS: Mapping[Verdict, str] = {
    "better": "By the corrected labels, the new model is better.",
    "worse": "By the corrected labels, the new model is worse.",
    "may be chance": "By the corrected labels, the difference may be chance.",
    "only the test set changed": "Of the data, only the test set has changed since the earlier run. So the accuracy is "
    "measured better now, and the model is not called better.",
    "nothing to compare with": "There is no other model to compare with.",
}


def corrected(found: Corrected) -> str:
    """Return sentences about the labels that were corrected, and whether the model became better by it."""
    in_words = {"train": "for training", "val": "for validation", "test": "in the test set"}
    counts = [f"{count:,} {in_words[name]}" for name, count in found["changed"].items() if count]
    changed = counted(sum(found["changed"].values()), "label was", "labels were")
    told = [f"{changed} corrected{': ' if counts else ''}{', '.join(counts)}."]
    if found["num_dropped"]:
        told.append(f"{counted(found['num_dropped'], 'photo was', 'photos were')} left out.")
    return " ".join([*told, _VERDICTS[found["verdict"]]])


def _accuracies(result: Versus) -> str:
    low, high = result["difference_ci95"]
    then, now = percent(result["earlier_accuracy"]), percent(result["accuracy"])
    chance = ", so this may be chance" if low <= 0 <= high and result["difference"] else ""
    return (
        f"the earlier model has an accuracy of {then} and the new one {now}: {points(result['difference'])} points "
        f"(95% interval {points(low)} to {points(high)}{chance})."
    )


def accepted(made: Promise) -> str:
    """Return sentences about the answers that are accepted for evaluate.target_precision, or why no threshold is proven."""
    wanted = f"{100 * made['target_precision']:g}%"
    if (threshold := made["min_probability"]) is None:
        return f"No threshold is proven to keep a precision of {wanted}, so the model has none. {more_photos(made)}"
    found = made["held_out"]
    assert found is not None
    if found["precision"] is None:
        return (
            f"At {wanted} precision the model answers none of the held-out photos: none has a probability of {threshold:g}."
        )
    low, high = map(percent, found["precision_ci95"])
    return (
        f"At {wanted} precision the model answers {percent(found['coverage'])} of photos: those with a probability of at "
        f"least {threshold:g}. Of these answers to held-out photos, {percent(found['precision'])} are right (95% interval "
        f"{low} to {high})."
    )


def more_photos(made: Promise) -> str:
    """Return a sentence about the number of photos that would prove a threshold."""
    if (more := made["more_photos"]) is None:
        return "Even its surest answers seem to be wrong too often, so more validation photos would hardly prove one."
    return f"About {counted(more, 'more validation photo', 'more validation photos')} would probably prove one."
