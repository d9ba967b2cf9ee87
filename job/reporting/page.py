"""The report: one self-contained HTML page about the run, made from the files that the stages left.

The page has no script and loads nothing; its content security policy forbids both. Names of files and classes are
untrusted text: Jinja escapes them, and invisible characters and those that change the writing direction are written out.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from job.config import Config, ReportConfig, with_dotted_names
from job.errors import StorageFailed
from job.pipeline.table import STAGES
from job.reporting import times
from job.reporting.advice import advice
from job.reporting.charts import charts, data_uri
from job.reporting.summaries import Audited, Evaluated, Explored, Run, Shipped, of_shipped
from job.runtime.context import Context
from job.storage.files import in_units
from job.storage.workdir import Workdir
from job.text.numbers import percent, points, seconds
from job.text.untrusted import escaped

if TYPE_CHECKING:
    from job.measure.metrics import Scores

_ARTIFACTS = {
    "explore": "stages/explore/explore.json",
    "extract": "stages/extract/extract.json",
    "audit": "stages/audit/audit.json",
    "head": "stages/head/head.json",
    "tuning": "stages/fine_tune/fine_tune.json",
    "evaluation": "stages/evaluate/evaluation.json",
    "parity": "stages/export/parity.json",
}
# The sections in the order of the page: id, heading, and the artifact that it is made from. The id is the name of the
# template in templates/sections/. Results come before the data because the data of many classes fills most of the page.
_SECTIONS = (
    ("results", "Results", "evaluation"),
    ("each-class", "Results of each class", "evaluation"),
    ("confusion", "Confusion of classes", "evaluation"),
    ("mistakes", "Most confident mistakes", "evaluation"),
    ("calibration", "Calibration", "evaluation"),
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
_HEAT_LEVELS = 20
_LEAST_TOLD_S = 0.05
# These limits keep the page readable, and below about ten megabytes, however large the data is.
LIMITS = {
    "advice": 8,
    "pictured_classes": 100,
    "matrix_classes": 60,
    "reasons": 60,
    "photos_of_a_group": 24,
    "confusions": 6,
}


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
    known = {name: record for name, record in timings.items() if name != "report"}  # The report is still being made.
    with context.telemetry.spent("drawing"):
        drawn = charts(made["audit"], made["head"], made["tuning"], made["evaluation"], known)
    environment = _environment(workdir)
    style = environment.get_template("report.css.j2").render(heat_levels=_HEAT_LEVELS)
    text = environment.get_template("report.html.j2").render(
        made,
        sections=[(id_, heading) for id_, heading, needed in _SECTIONS if made[needed]],
        title=config.title or _name_of(run["data"]),
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        refusals=workdir.read_json("stages/split/refusals.json") or [],
        state=_state(made["evaluation"], made["parity"]),
        data=_data(made["explore"], made["audit"]),
        advice=advice(made["explore"], made["audit"]),
        results=_results(made["evaluation"]) if made["evaluation"] else None,
        charts=drawn,
        run=run,
        settings=_settings(run["config"]),
        provenance=[*with_dotted_names(run.get("versions", {})), *with_dotted_names(run.get("fingerprint", {}))],
        times=_times(known),
        limits=LIMITS,
    )
    return text.encode("utf-8", "backslashreplace")


def _environment(workdir: Workdir) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_with_unseen_written_out,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "bytes": in_units}
    environment.filters |= {"seconds": seconds, "when": _when, "short": _short}
    environment.filters["setting"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["picture"] = lambda name: data_uri(workdir.path(name))
    return environment


def _state(evaluation: Evaluated | None, parity: Mapping[str, object] | None) -> str:
    if evaluation is None:
        return "no model"
    if not evaluation["gate"]["met"]:
        return "gate not met"
    if parity is None:
        return "not exported"
    return "exported" if parity["agrees"] else "export disagrees"


def _data(explore: Explored, audit: Audited | None) -> dict[str, object]:
    """Return what the page needs about the data in addition to explore's numbers. Counts of the audit replace explore's."""
    widths = [c["recall_interval_width"] for c in explore["classes"]]
    counted = (audit or explore)["classes"]
    totals = [c["train"] + c["val"] + c["test"] for c in counted]
    classes = [
        {**c, "total": total, "recall_interval_width": width}
        for c, total, width in zip(counted, totals, widths, strict=True)
    ]
    groups = explore["duplicates"]["groups"]
    crossing = [g for g in groups if g["crosses_splits"] or g["crosses_labels"]]
    given = explore["splits_given"]
    return {
        "num_photos": sum(totals),
        "statuses": (audit or explore)["statuses"],
        "splits": (audit or explore)["splits"],
        "classes": classes,
        "largest": max(totals),
        "given": given if "train" in given and len(given) > 1 else [],
        "crossing": crossing,
        "harmless": [g for g in groups if g not in crossing],
    }


def _results(evaluation: Evaluated) -> dict[str, object]:
    """Return the shipped model's scores, what to compare them with, and its confusions."""
    shipped = evaluation["shipped"]
    scores = of_shipped(evaluation)
    test, leak_free = scores["test"], scores["test_leak_free"]
    other: Shipped = "fine_tuned" if shipped == "head" else "head"
    unshipped = evaluation[other]
    names, matrix = evaluation["class_names"], evaluation["confusion"]
    cells = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if count and i != j]
    confusions = [
        {"label": names[i], "predicted": names[j], "count": count, "share": count / sum(matrix[i])}
        for count, i, j in sorted(cells, key=lambda cell: -cell[0])
    ]
    return {
        "test": test,
        "chance_loss": math.log(len(names)),
        "by_group": test.get("by_group"),
        "num_correct": round(test["accuracy"] * test["num_examples"]),
        "leak_free": leak_free if leak_free and leak_free["num_examples"] != test["num_examples"] else None,
        "other": other if unshipped else None,
        "other_is_surer": bool(unshipped and unshipped["test"]["log_loss"] < test["log_loss"]),
        "temperature": evaluation["temperatures"][shipped],
        "calibration": _calibration(test),
        "confusions": confusions,
        "matrix": [[(count, _heat(count, sum(row)), i == j) for j, count in enumerate(row)] for i, row in enumerate(matrix)],
    }


def _calibration(test: "Scores") -> Literal["as good as can be seen", "too sure", "not sure enough", "uneven"]:
    """Return in which direction the confidence of a model errs, if it errs by more than chance does."""
    if test["ece"] <= test["ece_floor"]:
        return "as good as can be seen"
    gap = test["mean_confidence"] - test["accuracy"]
    if abs(gap) < test["ece"] / 2:
        return "uneven"
    return "too sure" if gap > 0 else "not sure enough"


def _heat(count: int, total: int) -> int:
    """Return a shade from 0 to 20. It grows with the square root of the share, so that rare confusions are visible."""
    return math.ceil(_HEAT_LEVELS * math.sqrt(count / total)) if count else 0


def _settings(config: Mapping[str, object]) -> list[tuple[str, object, bool]]:
    """Return every setting: its dotted name, its value, and whether it differs from the default."""
    defaults = dict(with_dotted_names(Config().model_dump(mode="json")))
    return [(name, value, name in defaults and defaults[name] != value) for name, value in with_dotted_names(config)]


def _times(records: times.Records) -> dict[str, object]:
    """Return a row for each stage, and the shares of the total time."""
    rows = [
        {
            "stage": stage,
            "wall_s": record["wall_s"],
            "cpu_s": record["cpu_s"],
            "rate": times.rate(stage, record),
            "unit": STAGES[stage].unit or None,
            "spent": [(what, s) for what, s in times.spent(stage, record).items() if s >= _LEAST_TOLD_S],
        }
        for stage, record in records.items()
    ]
    return {"rows": rows, "shares": times.shares(records)}


def _with_unseen_written_out(value: object) -> object:
    """Escape invisible characters in a value for the page. Markup comes from a template and is not changed."""
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _name_of(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1] or uri


def _when(iso_time: str) -> str:
    return f"{datetime.fromisoformat(iso_time).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _short(name: str) -> str:
    """Shorten a long name. Use it only if the full name is shown elsewhere on the page, or in the title."""
    return name if len(name) <= 40 else f"{name[:26]}\N{HORIZONTAL ELLIPSIS}{name[-12:]}"
