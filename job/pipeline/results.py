"""The results of a command: what it returns, the last lines that it prints, and errors about the data or the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job.config import Config
from job.errors import DataUnusable, GateNotMet
from job.pipeline import publishing
from job.pipeline.job import Job
from job.reporting.facts import accepted, against_earlier, corrected
from job.reporting.summaries import FormatParity, num_correct, num_wanted, of_shipped
from job.storage.published import Published
from job.storage.workdir import Workdir
from job.text.numbers import counted, percent


@dataclass(frozen=True)
class Result:
    """The results of a run. `lines` are the last lines that the command line prints."""

    workdir: Workdir
    lines: Sequence[str]

    @property
    def metrics(self) -> publishing.Metrics | None:
        """The content of metrics.json; None if nothing was trained."""
        return self.workdir.read_json(f"{publishing.place(self.workdir)}metrics.json")

    @property
    def report(self) -> Path:
        """The report, an HTML file."""
        return self._path("report.html")

    @property
    def model(self) -> Path | None:
        """The folder of the published model; None if there is none."""
        return self.workdir.path("model") if Published.load(self.workdir).has_model else None

    def facts(self) -> dict[str, object]:
        """Return what a program asks for: where the results are, the digest of the model, and its accuracy on the test set.

        Values are None where there is no such result. Places in a bucket are URIs.
        """
        published, metrics = Published.load(self.workdir), self.metrics
        place, model = publishing.place(self.workdir), published.has_model and not published.attempt
        scores = metrics and metrics[metrics["shipped"]]
        has_report = self.workdir.exists(f"{place}report.html")
        return {
            "report": self.workdir.shown(f"{place}report.html") if has_report else None,
            "model": self.workdir.shown("model") if model else None,
            "model_sha256": published.files["model/model.json"] if model else None,
            "accuracy": scores["test"]["accuracy"] if scores else None,
        }

    @property
    def predictions(self) -> pa.Table:
        """Every photo of the test set with the probabilities of both models. Raises: FileNotFoundError, without a model."""
        return pq.read_table(self._path("predictions.parquet"))

    @property
    def examples(self) -> pa.Table:
        """A table of every file that was found: what it is, whether it was used, and why not."""
        return pq.read_table(self._path("examples.parquet"))

    def _path(self, name: str) -> Path:
        return self.workdir.path(publishing.place(self.workdir) + name)


@dataclass(frozen=True)
class Ranking:
    """Backbones that were compared, the most accurate first.

    `rows` has the numbers of each backbone, as in rank.json. `recommended` is a configuration for `run` with the recommended
    one. `lines` are what the command line prints. `plot` is an SVG file of accuracy against cost in `workdir`, the output.
    """

    rows: Sequence[Mapping[str, Any]]
    recommended: Config
    plot: Path
    lines: Sequence[str]
    workdir: Workdir


def outcome(job: Job) -> dict[str, float]:
    """Return the test accuracy of the shipped model as `accuracy`; empty if the run has not measured it."""
    if "evaluate" not in job.done:
        return {}
    return {"accuracy": of_shipped(job["evaluate"].numbers)["test"]["accuracy"]}


def headline(job: Job) -> list[str]:
    """Return the last lines of a run: its model, its accuracy, and where the report is; then the earlier model."""
    place = publishing.place(job.workdir)
    page = f" Report: {job.workdir.shown(f'{place}report.html')}" if job.workdir.exists(f"{place}report.html") else ""
    promised = compared = corrections = ""
    if "evaluate" not in job.done:
        found = f"{len(job['intake'].examples):,} files looked at.{page}"
    else:
        numbers = job["evaluate"].numbers
        test = of_shipped(numbers)["test"]
        low, high = map(percent, test["accuracy_ci95"])
        what = {"head": "head", "fine_tuned": "fine-tuned model"}[numbers["shipped"]]
        photos = f"{num_correct(test):,} of {counted(test['num_examples'], 'held-out photo', 'held-out photos')}"
        found = f"Accuracy {percent(test['accuracy'])} ({photos}; 95% interval {low} to {high}), {what}."
        if "export" in job.done and (notice := job.workdir.read_json("stages/export/parity.json")["bytes"]["notice"]):
            found += f" {notice}"
        found += page
        promised = accepted(chosen) if (chosen := numbers["thresholds"]["chosen"]) else ""
        compared = against_earlier(numbers["earlier"]) if numbers["earlier"] else ""
        corrections = corrected(numbers["corrections"]) if numbers["corrections"] else ""
    model, formats = publishing.new_model(job.workdir), of_formats(job)
    lines = (model, *formats, found, promised, compared, corrections, publishing.in_service(job.workdir))
    return list(filter(None, lines))


def raise_if_refused(job: Job) -> None:
    """Raise DataUnusable if the data cannot be trained on as it is."""
    refusals = job["split"].refusals if "split" in job.done else ()
    if refusals:
        place = publishing.place(job.workdir)
        page, table = (job.workdir.shown(f"{place}{name}") for name in ("report.html", "examples.parquet"))
        lines = [line for refusal in refusals for line in refusal.lines]
        lines.append(f"Every file is listed in {table}. The report shows all of it: {page}")
        raise DataUnusable(*lines, *filter(None, [publishing.in_service(job.workdir)]))


def of_formats(job: Job) -> list[str]:
    """Return a line for each format that the exported model was converted to."""
    from job.stages.convert import in_words

    return [f"{name}: {in_words(numbers)}." for name, numbers in _formats(job).items()]


def _formats(job: Job) -> dict[str, FormatParity]:
    return job.workdir.read_json("stages/convert/formats.json") if "convert" in job.done else {}


def raise_if_formats_disagree(job: Job) -> None:
    """Raise GateNotMet if a format of the exported model was not published."""
    if failed := [name for name, numbers in _formats(job).items() if numbers["faults"]]:
        raise GateNotMet(
            f"The model is published without {' and '.join(failed)}. Leave them out of --export, or allow more changes.",
            *headline(job),
        )


def raise_if_gate_not_met(job: Job) -> None:
    """Raise GateNotMet if the model is not good enough."""
    if "evaluate" not in job.done or job.gate_met:
        return
    numbers = job["evaluate"].numbers
    wanted = counted(num_wanted(numbers), "held-out photo", "held-out photos")
    gate = f"evaluate.min_accuracy = {numbers['gate']['min_accuracy']} asks for {wanted}"
    raise GateNotMet(f"The quality gate was not met: nothing is exported. {gate}.", *headline(job))
