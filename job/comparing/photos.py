"""The test photos that several runs share, known by their content, and why other test photos are not compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from job.comparing.runs import FinishedRun
from job.errors import UsageError
from job.measure.metrics import log_losses
from job.measure.paired import Answers
from job.text.numbers import counted


class PhotoCounts(TypedDict):
    """Numbers of test photos. Files with the same bytes count once, and each photo has one of these reasons.

    `compared`: all runs have tested them. `seen`: a run was trained or chosen on them, or on copies of them. `relabelled`:
    runs have given them different labels. `not_tested`: a run has not tested them.
    """

    compared: int
    seen: int
    relabelled: int
    not_tested: int


@dataclass(frozen=True)
class SharedPhotos:
    """N test photos that all runs have tested, by SHA-256, with their labels and paths in the first run.

    `groups_N` are the units of the bootstrap: copies of a photo, and photos of a given group, have the same number.
    """

    digests_N: np.ndarray
    labels_N: np.ndarray
    paths_N: np.ndarray
    groups_N: np.ndarray
    counts: PhotoCounts

    def answers(self, runs: Sequence[FinishedRun]) -> Answers:
        """Return the answers of these runs."""
        rows = [self.rows(run) for run in runs]
        return Answers(
            np.stack([run.predicted_T[row_N] == self.labels_N for run, row_N in zip(runs, rows, strict=True)]),
            np.stack([log_losses(run.of_label_T[row_N]) for run, row_N in zip(runs, rows, strict=True)]),
            np.stack([run.confidence_T[row_N] for run, row_N in zip(runs, rows, strict=True)]),
        )

    def rows(self, run: FinishedRun) -> np.ndarray:
        """Return the places of the photos in the answers of a run, int (N,)."""
        return np.asarray([run.row_of[digest] for digest in self.digests_N], np.int64)


def shared_photos(runs: Sequence[FinishedRun]) -> SharedPhotos:
    """Return the photos on which these runs can be compared.

    Raises:
        UsageError: if there are none. The message says why, and what to do.
    """
    tested = list(dict.fromkeys(digest for run in runs for digest in run.row_of))
    seen = set().union(*(_seen(run, other) for run in runs for other in runs if run is not other))
    by_all = [d for d in tested if d not in seen and all(d in run.row_of for run in runs)]
    kept = [d for d in by_all if len({run.labels[d] for run in runs}) == 1]
    counts: PhotoCounts = {
        "compared": len(kept),
        "seen": len(seen),
        "relabelled": len(by_all) - len(kept),
        "not_tested": len(tested) - len(seen) - len(by_all),
    }
    if not kept:
        raise UsageError(
            "These runs have no test photo in common that none of them was trained on.",
            *(f"  {line}" for line in left_out(counts)),
            "Run the job again on the same photos with the same split: --set split.seed of the first run, or a column with "
            "the splits in a table (--split-column). docs/compare.md explains it.",
        )
    examples = runs[0].examples
    index_of = dict(zip(examples["sha256"][examples.of("test")], examples.of("test"), strict=True))
    index_N = np.asarray([index_of[digest] for digest in kept], np.int64)
    columns = (np.asarray(kept, object), examples["label"][index_N], examples["path"][index_N], examples.units[index_N])
    return SharedPhotos(*columns, counts)


def left_out(counts: PhotoCounts) -> list[str]:
    """Return a sentence for each reason why test photos are not compared."""
    reasons = (
        (counts["seen"], "in the training or validation photos of another run, themselves or as copies"),
        (counts["relabelled"], "labelled differently by another run"),
        (counts["not_tested"], "not in the test set of every run"),
    )
    return [f"Left out: {counted(number, 'test photo', 'test photos')}, {why}." for number, why in reasons if number]


def _seen(run: FinishedRun, other: FinishedRun) -> set[str]:
    """Return the test photos of a run that another run was trained or chosen on, or on copies of them."""
    test = run.examples.of("test")
    is_seen_T = run.examples.are_copies_of(test, other.used) | np.isin(run.examples["sha256"][test], list(other.used))
    return set(run.examples["sha256"][test][is_seen_T])
