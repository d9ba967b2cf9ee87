"""report: draw the report page of the run, and write the model card, from the files that earlier stages left."""

from pathlib import Path

from job.reporting.card import card
from job.reporting.page import page, title
from job.reporting.summaries import Run
from job.reporting.times import Records
from job.runtime.context import Context
from job.sections import ReportConfig

PAGE = "stages/report/report.html"
CARD = "stages/report/README.md"


def report(config: ReportConfig, *, run: Run, timings: Records, context: Context) -> Path:
    """Draw the page and write it, with the model card if the run has exported a model. Return the path of the page.

    `run` is the content of run.json; `timings` are the records of the stages that are up to date, as
    `job.reporting.times` reads them. Other stages are not shown.

    Raises:
        StorageFailed: if explore's summary cannot be read, or the page cannot be written.
    """
    context.workdir.write_bytes(PAGE, page(config, run=run, timings=timings, context=context))
    if {"evaluate", "export"} <= timings.keys():
        context.workdir.write_bytes(CARD, card(title=title(config, run), run=run, context=context))
    else:
        context.workdir.remove(CARD)
    return context.workdir.path(PAGE)
