"""The report: one self-contained HTML page about the run, made from the files that the stages left."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from job.config import Config, with_dotted_names
from job.data.changes import in_words
from job.data.examples import USED_FOR
from job.errors import StorageFailed
from job.measure.confusions import Clusters, Group, clusters, confusions, row_shares
from job.model.hub.names import preset
from job.pipeline.table import STAGES
from job.reporting import times
from job.reporting.advice import advice
from job.reporting.charts import FRAMED_GROUPS, charts, data_uri
from job.reporting.data_summaries import Explored
from job.reporting.facts import Facts, accepted, against_earlier, corrected, facts, more_photos
from job.reporting.rendering import HEAT_LEVELS, rendered
from job.reporting.summaries import Evaluated, Run, Shipped, num_correct, num_wanted, of_shipped
from job.runtime.context import Context
from job.sections import PUBLISHED_WEIGHTS, ReportConfig
from job.storage.workdir import Workdir
from job.train.recipe import with_quality

if TYPE_CHECKING:
    from job.measure.metrics import Scores
    from job.measure.thresholds import Thresholds

_ARTIFACTS = {
    "explore": "stages/explore/explore.json",
    "extract": "stages/extract/extract.json",
    "audit": "stages/audit/audit.json",
    "head": "stages/head/head.json",
    "tuning": "stages/fine_tune/fine_tune.json",
    "evaluation": "stages/evaluate/evaluation.json",
    "heatmaps": "stages/heatmaps/heatmaps.json",
    "parity": "stages/export/parity.json",
    "formats": "stages/convert/formats.json",
}
# The sections in the order of the page: id, heading, and the artifact that it is made from. The id is the name of the
# template in templates/sections/. Results come before the data because the data of many classes fills most of the page.
_SECTIONS = (
    ("results", "Results", "evaluation"),
    ("thresholds", "Thresholds: answer only what is sure", "evaluation"),
    ("earlier", "Comparison with the earlier model", "earlier"),
    ("corrections", "Corrected labels", "corrections"),
    ("each-class", "Results of each class", "evaluation"),
    ("confusion", "Confusion of classes", "evaluation"),
    ("mistakes", "Most confident mistakes", "evaluation"),
    ("heatmaps", "Heatmaps and background", "heatmaps"),
    ("calibration", "Calibration", "evaluation"),
    ("familiarity", "Familiarity: photos of something else", "familiarity"),
    ("training", "Training", "head"),
    ("export", "Exported model", "parity"),
    ("data", "Data", "explore"),
    ("classes", "Example photos of each class", "explore"),
    ("more-photos", "Learning curve: would more photos help?", "audit"),
    ("shortcuts", "Shortcuts: guessing the class from the file", "explore"),
    ("faults", "Rejected, converted and ignored files", "explore"),
    ("duplicates", "Duplicates and leaks", "explore"),
    ("suspicious", "Suspicious photos", "explore"),
    ("labels", "Labels that may be wrong", "audit"),
    ("times", "Run time", "explore"),
    ("again", "Run it again", "explore"),
)
_LEAST_TOLD_S = 0.05
# These limits keep the page readable, and with the default settings below three megabytes, however large the data is.
LIMITS = {
    "advice": 8,
    "open_classes": 10,  # Tables and pictures of more classes are folded.
    "matrix_classes": 30,  # The confusion matrix of more classes is a picture.
    "classes": 100,
    "class_pictures_bytes": 650_000,
    "confusions": 20,
    "confused_groups": FRAMED_GROUPS,
    "reasons": 60,
    "groups": 12,
    "suspicious": 24,
    "photos_of_a_group": 24,
}
_MOST_CLUSTERED_CLASSES = 5000  # Clustering needs memory for each pair of classes.


def page(config: ReportConfig, *, run: Run, timings: times.Records, context: Context) -> bytes:
    """Return the page as HTML. It needs explore's summary; sections about models appear only if there are any.

    `run` is the content of run.json. `timings` are the records (see `job.reporting.times`) of the stages that are up to
    date; other stages are not shown.

    Raises:
        StorageFailed: if explore's summary cannot be read.
    """
    workdir = context.workdir
    # If the export has just failed, it has left numbers but no record.
    failed = {"export"} if "evaluate" in timings and not workdir.exists("stages/export.json") else set()
    shown = {"explore", *timings, *failed}
    made = {name: workdir.read_json(path) if path.split("/")[1] in shown else None for name, path in _ARTIFACTS.items()}
    if made["explore"] is None:
        raise StorageFailed(f"{workdir.path(_ARTIFACTS['explore'])}: missing or damaged. Run the same command again.")
    for part in ("earlier", "corrections", "familiarity"):
        made[part] = made["evaluation"] and made["evaluation"][part]
    known = {name: record for name, record in timings.items() if name != "report"}  # The report is still being made.
    found = _clusters(made["evaluation"])
    with context.telemetry.spent("drawing"):
        drawn = charts(made["audit"], made["head"], made["tuning"], made["evaluation"], found)
    known_facts = facts(made["explore"], made["audit"], run["config"])
    data = _data(known_facts, made["evaluation"])
    return rendered(
        "report.html.j2",
        **made,
        sections=[(id_, heading) for id_, heading, needed in _SECTIONS if made[needed]],
        title=title(config, run),
        refusals=workdir.read_json("stages/split/refusals.json") or [],
        state=_state(made["evaluation"], made["parity"]),
        facts=known_facts,
        used_for=USED_FOR,
        data=data,
        pictured=_pictured(workdir, made["explore"], data["order"]),
        advice=advice(known_facts, made["explore"], made["audit"], made["heatmaps"]),
        compared=against_earlier(made["earlier"]) if made["earlier"] else None,
        corrected=corrected(made["corrections"]) if made["corrections"] else None,
        changed=in_words(made["earlier"]["changes"], "the earlier model") if made["earlier"] else None,
        results=_results(made["evaluation"], found.groups if found else []) if made["evaluation"] else None,
        promises=_promises(made["evaluation"]["thresholds"]) if made["evaluation"] else None,
        more_photos=more_photos,
        charts=drawn,
        run=run,
        published_weights=PUBLISHED_WEIGHTS,
        of_keras=preset(run["config"]["backbone"]["name"]) is None,
        settings=_settings(run["config"]),
        provenance=[*with_dotted_names(run.get("versions", {})), *with_dotted_names(run.get("fingerprint", {}))],
        times=_times(known),
        limits=LIMITS,
        picture=lambda name: data_uri(workdir.path(name)),
    )


def title(config: ReportConfig, run: Run) -> str:
    """Return the heading of the page: the one that was given, or the name of the data."""
    return config.title or run["data"].rstrip("/").rsplit("/", 1)[-1] or run["data"]


def _state(evaluation: Evaluated | None, parity: Mapping[str, object] | None) -> str:
    if evaluation is None:
        return "no model"
    if not evaluation["gate"]["met"]:
        return "gate not met"
    if parity is None:
        return "not exported"
    return "exported" if parity["agrees"] else "export disagrees"


def _clusters(evaluation: Evaluated | None) -> Clusters | None:
    """Return groups of classes that are confused with each other, if there are so many classes that they are needed."""
    if evaluation is None or not LIMITS["matrix_classes"] < len(evaluation["class_names"]) <= _MOST_CLUSTERED_CLASSES:
        return None
    return clusters(np.asarray(evaluation["confusion"]))


def _data(facts: Facts, evaluation: Evaluated | None) -> dict[str, Any]:
    """Return the order of the classes, and the groups of copies to show.

    `order` has the numbers of the classes: those with the lowest recall first, or without results those with the fewest
    photos. `listed` are those that tables list: all of them, or the first of `order`.
    """
    totals = [row["total"] for row in facts.classes]
    ranks: list[tuple[float, ...]] = [(total,) for total in totals]
    if evaluation:  # A class without held-out photos comes last.
        tested = [(row["num_examples"], row["recall"]) for row in evaluation["per_class"]]
        ranks = [(recall if count else math.inf, -count) for count, recall in tested]
    order = sorted(range(len(totals)), key=ranks.__getitem__)
    groups = facts.copies[: LIMITS["groups"]]
    crossing = [g for g in groups if g["crosses_splits"] or g["crosses_labels"]]
    return {
        "order": order,
        "listed": order[: LIMITS["classes"]] if len(order) > LIMITS["classes"] else range(len(order)),
        "ordered_by": "the lowest recall" if evaluation else "the fewest photos",
        "largest": max(totals),
        "crossing": crossing,
        "harmless": [g for g in groups if g not in crossing],
    }


def _pictured(workdir: Workdir, explore: Explored, order: Sequence[int]) -> list[dict[str, Any]]:
    """Return the pictures of all classes as data: URIs. If they do not all fit, return those that do, in this order."""
    number = {row["class"]: k for k, row in enumerate(explore["classes"])}
    pictures = {number[entry["class"]]: entry for entry in explore["class_pictures"]}
    drawn: dict[int, dict[str, Any]] = {}
    room = LIMITS["class_pictures_bytes"]
    for k in (k for k in order if k in pictures):
        uris = {key: data_uri(workdir.path(name)) for key in ("mean", "samples") if (name := pictures[k][key])}
        room -= sum(map(len, uris.values()))
        if room < 0:
            return list(drawn.values())
        drawn[k] = {**pictures[k], "mean": "", **uris}
    return [drawn[k] for k in sorted(drawn)]


def _results(evaluation: Evaluated, found: Sequence[Group]) -> dict[str, Any]:
    """Return the shipped model's scores, what to compare them with, and its confusions."""
    shipped = evaluation["shipped"]
    scores = of_shipped(evaluation)
    test, leak_free = scores["test"], scores["test_leak_free"]
    other: Shipped = "fine_tuned" if shipped == "head" else "head"
    unshipped = evaluation[other]
    names, matrix_CC = evaluation["class_names"], np.asarray(evaluation["confusion"])
    by_group = test.get("by_group")
    return {
        "test": test,
        "chance_loss": math.log(len(names)),
        "by_group": by_group,
        "groups_widen": bool(by_group and _width(by_group["photo_accuracy_ci95"]) > _width(test["accuracy_ci95"])),
        "num_correct": num_correct(test),
        "num_wanted": num_wanted(evaluation),
        "leak_free": leak_free if leak_free and leak_free["num_examples"] != test["num_examples"] else None,
        "other": other if unshipped else None,
        "other_is_surer": bool(unshipped and unshipped["test"]["log_loss"] < test["log_loss"]),
        "temperature": evaluation["temperatures"][shipped],
        "raised": _raised(names, evaluation["offsets"][shipped]),
        "calibration": _calibration(test),
        "confidence_in_interval": _confidence_in_interval(test),
        "confusions": confusions(matrix_CC),
        "confused_groups": [(group.num_confused, [names[k] for k in group.members]) for group in found],
        "matrix": _shaded(matrix_CC) if len(names) <= LIMITS["matrix_classes"] else None,
    }


def _promises(thresholds: "Thresholds") -> dict[str, object]:
    """Return the promises in the order of their precision, the one that was asked for in words, and a place in the curves.

    The classes are shown at this place: the threshold that was asked for, else the highest one that is proven.
    """
    chosen, curves = thresholds["chosen"], thresholds["curves"]
    others = [made for made in thresholds["offered"] if not chosen or made["target_precision"] != chosen["target_precision"]]
    rows = sorted([*others, *([chosen] if chosen else ())], key=itemgetter("target_precision"))
    used = [chosen] if chosen else rows
    proven = [made["min_probability"] for made in used if made["min_probability"] in curves["thresholds"]]
    return {
        "rows": rows,
        "chosen": chosen,
        "in_words": accepted(chosen) if chosen else "",
        "place": curves["thresholds"].index(proven[-1]) if proven else None,
    }


def _raised(names: Sequence[str], offsets: Sequence[float]) -> tuple[str, float] | None:
    """Return the class that is favoured most over the one that is favoured least, and by which factor; None if none is."""
    factor = math.exp(max(offsets) - min(offsets))
    return (names[int(np.argmax(offsets))], factor) if factor > 1 else None


def _width(interval: list[float]) -> float:
    return interval[1] - interval[0]


def _shaded(matrix_CC: np.ndarray) -> list[list[tuple[int, int]]]:
    """Return the cells of the confusion matrix: a count, and a shade from 0 to 20.

    A shade grows with the square root of the share of the row, so that rare confusions are visible.
    """
    shades_CC = np.ceil(HEAT_LEVELS * np.sqrt(row_shares(matrix_CC))).astype(int)
    return [list(zip(*rows, strict=True)) for rows in zip(matrix_CC.tolist(), shades_CC.tolist(), strict=True)]


def _calibration(test: "Scores") -> Literal["no error seen", "too sure", "not sure enough", "uneven"]:
    """Return in which direction the confidence of a model errs, if it errs by more than chance does."""
    gap = test["mean_confidence"] - test["accuracy"]
    if not _confidence_in_interval(test):
        return "too sure" if gap > 0 else "not sure enough"
    if test["ece"] <= test["ece_floor"]:
        return "no error seen"
    if abs(gap) < test["ece"] / 2:
        return "uneven"
    return "too sure" if gap > 0 else "not sure enough"


def _confidence_in_interval(test: "Scores") -> bool:
    """Return whether the mean confidence lies in the interval of the accuracy."""
    low, high = test["accuracy_ci95"]
    return low <= test["mean_confidence"] <= high


def _settings(config: Mapping[str, object]) -> list[tuple[str, object, bool]]:
    """Return every setting: its dotted name, its value, and whether it differs from the default."""
    defaults = dict(with_dotted_names(with_quality(Config()).model_dump(mode="json")))
    return [(name, value, name in defaults and defaults[name] != value) for name, value in with_dotted_names(config)]


def _times(records: times.Records) -> dict[str, object]:
    """Return a row for each stage, and the shares of the total time.

    `bars` of a row are the start and the width of each of `times.PARTS`, in percent of the longest stage.
    """
    longest_s = max((record["wall_s"] for record in records.values()), default=0) or 1.0
    rows = []
    for stage, record in records.items():
        widths = [100 * s / longest_s for s in times.parts(stage, record).values()]
        rows.append(
            {
                "stage": stage,
                "wall_s": record["wall_s"],
                "cpu_s": record["cpu_s"],
                "rate": times.rate(stage, record),
                "unit": STAGES[stage].unit or None,
                "spent": [(what, s) for what, s in times.spent(stage, record).items() if s >= _LEAST_TOLD_S],
                "bars": list(zip(accumulate(widths, initial=0.0), widths, strict=False)),
            }
        )
    return {"rows": rows, "shares": times.shares(records), "parts": times.PARTS}
