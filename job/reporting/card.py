"""The model card, model/README.md: what the model is, how good it is, where its limits are, how to use and to verify it.

Its head of YAML is that of the model cards of Hugging Face. Class names are text from the data, so everything that the
template inserts is escaped for Markdown.
"""

import json
from functools import cache

from jinja2 import Template
from markupsafe import Markup

from job.data.examples import split_digests
from job.model.licences import licence
from job.reporting.advice import advice
from job.reporting.facts import accepted, facts
from job.reporting.rendering import environment_with
from job.reporting.summaries import Run, of_shipped
from job.runtime.context import Context
from job.sections import PUBLISHED_WEIGHTS
from job.text.numbers import counted
from job.text.untrusted import escaped, in_markdown

TEMPLATE = "model_card.md.j2"


def card(*, title: str, run: Run, context: Context) -> bytes:
    """Return the model card of a run that has exported a model. `run` is the content of run.json."""
    read = context.workdir.read_json
    explore, audit = read("stages/explore/explore.json"), read("stages/audit/audit.json")
    evaluation = read("stages/evaluate/evaluation.json")
    formats = read("stages/convert/formats.json") or {}
    known = facts(explore, audit, run["config"])
    text = template().render(
        title=title,
        run=run,
        config=run["config"],
        evaluation=evaluation,
        test=of_shipped(evaluation)["test"],
        leak_free=of_shipped(evaluation)["test_leak_free"],
        temperature=evaluation["temperatures"][evaluation["shipped"]],
        classes=list(zip(known.classes, evaluation["per_class"], strict=True)),
        splits=known.splits,
        digests=split_digests(context.workdir.path("stages/audit/examples.parquet")),
        limits=advice(known, explore, audit, read("stages/heatmaps/heatmaps.json")),
        outliers=audit["outliers"],
        published_weights=PUBLISHED_WEIGHTS,
        promised=accepted(chosen) if (chosen := evaluation["thresholds"]["chosen"]) else "",
        licence=licence(run["config"]["backbone"]["name"]),
        parity=read("stages/export/parity.json"),
        formats={name: found for name, found in formats.items() if not found["faults"]},
    )
    return text.encode("utf-8", "backslashreplace")


@cache
def template() -> Template:
    """Return the template of the card. It is compiled once in a process."""
    environment = environment_with(in_markdown, autoescape=False)
    environment.filters |= {"counted": counted, "quoted": _quoted}
    return environment.get_template(TEMPLATE)


def _quoted(text: str) -> Markup:
    """Return text as a string of YAML."""
    return Markup(json.dumps(escaped(text), ensure_ascii=False))  # noqa: S704  # For YAML, not for HTML.
