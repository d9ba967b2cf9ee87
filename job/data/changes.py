"""Changes of the data from one run to the next: photos and classes that are new, gone or relabelled."""

from typing import TypedDict

from job.data.examples import Examples
from job.sources.base import some_classes


class Changes(TypedDict):
    """Numbers of usable photos that are new, gone or relabelled, and the names of classes that are new or gone."""

    new: int
    gone: int
    relabelled: int
    new_classes: list[str]
    gone_classes: list[str]


def changes(earlier: Examples, now: Examples) -> Changes:
    """Compare the tables of two runs. Photos are known by the SHA-256 of their bytes."""
    labels_then, labels_now = (dict(zip(e["sha256"][e.of()], e["label"][e.of()], strict=True)) for e in (earlier, now))
    in_both = labels_now.keys() & labels_then.keys()
    return {
        "new": len(labels_now.keys() - in_both),
        "gone": len(labels_then.keys() - in_both),
        "relabelled": sum(labels_now[digest] != labels_then[digest] for digest in in_both),
        "new_classes": sorted(set(now.class_names) - set(earlier.class_names)),
        "gone_classes": sorted(set(earlier.class_names) - set(now.class_names)),
    }


def in_words(found: Changes, since: str) -> str:
    """Return a line about the changes since, for example, "the last run"; empty if there are none."""
    counts = {"new": found["new"], "gone": found["gone"], "relabelled": found["relabelled"]}
    parts = [f"{count:,} {what}" for what, count in counts.items() if count]
    photos = [f"Since {since}: photos {', '.join(parts)}."] if parts else []
    classes = {"New": found["new_classes"], "Gone": found["gone_classes"]}
    return " ".join([*photos, *(f"{what} classes: {some_classes(names)}." for what, names in classes.items() if names)])
