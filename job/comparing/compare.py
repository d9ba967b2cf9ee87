"""Comparison of finished runs on the test photos that they share."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from job.comparing import page as pages
from job.comparing.numbers import Numbers, numbers_of
from job.comparing.photos import SharedPhotos, shared_photos
from job.comparing.runs import FinishedRun, finished, grouped
from job.comparing.words import in_words
from job.errors import UsageError
from job.serving.pages import check_page
from job.storage.bucket.objects import is_remote


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    `numbers` are what `--json` prints, `lines` what the terminal shows. `photos` is a table with a row for each shared
    photo, and with columns `predicted:RUN` and `probability_of_label:RUN` for each run. `page` is the HTML file, or None.
    """

    numbers: Numbers
    lines: Sequence[str]
    photos: pa.Table
    page: Path | None


def compare(places: Sequence[str], out: str | None) -> Comparison:
    """Compare runs, and write a page if `out` is given.

    Raises:
        UsageError: if there are not two different runs, if they cannot be compared, or if `out` must not be written.
        StorageFailed.
    """
    different = {place.rstrip("/") if is_remote(place) else os.path.realpath(place) for place in places}
    if len(different) < max(2, len(places)):
        raise UsageError("compare needs at least two different runs: transfer-job compare RUN_A RUN_B")
    if out:
        check_page(out, "--out", "compare")
    with ExitStack() as opened:
        runs = [opened.enter_context(finished(place)) for place in places]
        photos, groups = shared_photos(runs), grouped(runs)
        numbers = numbers_of(groups, photos)
        lines = in_words(numbers)
        file = pages.write(out, numbers, groups, photos) if out else None
        return Comparison(numbers, [*lines, f"Page: {out}"] if out else lines, _table(photos, runs), file)


def _table(photos: SharedPhotos, runs: Sequence[FinishedRun]) -> pa.Table:
    columns = {"path": photos.paths_N, "sha256": photos.digests_N, "label": photos.labels_N}
    for run in runs:
        rows = photos.rows(run)
        columns |= {f"predicted:{run.uri}": run.predicted_T[rows], f"probability_of_label:{run.uri}": run.of_label_T[rows]}
    return pa.table(columns)
