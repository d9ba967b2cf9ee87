"""Finished runs, read for a comparison from what they have published, and put into groups that differ only by seed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from job.config import fields, with_dotted_names
from job.data.examples import Examples
from job.errors import UsageError
from job.pipeline import output, publishing
from job.pipeline.publishing import Metrics
from job.pipeline.records import read_run
from job.reporting.summaries import Run
from job.storage.files import digest_of
from job.storage.published import PUBLISHED
from job.storage.workdir import Workdir
from job.text.settings import is_how

_SEEDS = ("seed", "train.seed", "augment.seed")
_TABLES = ("predictions.parquet", "examples.parquet", "metrics.json")
IMAGES = "stages/intake/intake.json"  # It names the store of the photos.
_READ = (PUBLISHED, "run.json", IMAGES, *_TABLES, *(f"{publishing.ATTEMPT}/{name}" for name in _TABLES))


@dataclass(frozen=True)
class FinishedRun:
    """A run that has measured its model. `uri` is its output, `workdir` a copy of it for reading only.

    The answers are those of the shipped model to T test photos, of which each SHA-256 occurs once: `row_of` has the place of
    a photo in `predicted_T`, `of_label_T` and `confidence_T`.
    """

    uri: str
    workdir: Workdir
    described: Run
    metrics: Metrics
    examples: Examples
    row_of: Mapping[str, int]
    predicted_T: np.ndarray
    of_label_T: np.ndarray
    confidence_T: np.ndarray

    @property
    def settings(self) -> dict[str, object]:
        """Each setting by its dotted name."""
        return dict(with_dotted_names(self.described["config"]))

    @property
    def seed(self) -> int:
        """The seed of everything random, except the split."""
        return int(self.described["config"]["seed"])

    @property
    def environment(self) -> dict[str, object]:
        """Versions of packages, and facts about the machine, by name."""
        return dict(with_dotted_names({**self.described["versions"], **self.described["fingerprint"]}))

    @cached_property
    def labels(self) -> dict[str, str]:
        """The label of each usable photo, by SHA-256."""
        return self._by_digest("label")

    @cached_property
    def splits(self) -> dict[str, str]:
        """The split of each usable photo, by SHA-256."""
        return self._by_digest("split")

    @cached_property
    def used(self) -> set[str]:
        """The SHA-256 of all files that the model was trained or chosen on, and of their copies."""
        of_model, every = self.examples.of("train", "val"), np.arange(len(self.examples))
        digests = set(self.examples["sha256"][of_model])
        return digests | set(self.examples["sha256"][self.examples.are_copies_of(every, digests)])

    @property
    def kind(self) -> str:
        """A digest of everything that tells it from other runs, except seeds and what does not change the result."""
        hows = {name for name, field in fields() if is_how(field)}
        settings = {
            name: value
            for name, value in self.settings.items()
            if name not in hows and name not in _SEEDS and not name.startswith("report.")
        }
        return digest_of([settings, self.labels, self.splits, self.described["versions"]["transfer-job"]])

    def cost(self, what: Literal["cpu_s", "wall_s"]) -> float:
        """Return the CPU or wall time of all stages together, in seconds."""
        return float(sum(record[what] for record in self.metrics["timings"].values()))

    def _by_digest(self, column: str) -> dict[str, str]:
        usable = self.examples.of()
        return dict(zip(self.examples["sha256"][usable], self.examples[column][usable], strict=True))


@dataclass(frozen=True)
class Group:
    """Runs that differ only by seed, with a letter for their name."""

    name: str
    runs: tuple[FinishedRun, ...]


def grouped(runs: Sequence[FinishedRun]) -> list[Group]:
    """Return the runs in groups of equal settings, data and version, apart from seeds, in the order of their first runs.

    If all runs are of one group, each of them becomes a group of its own.
    """
    by_kind: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_kind.setdefault(run.kind, []).append(run)
    kinds = list(by_kind.values()) if len(by_kind) > 1 else [[run] for run in runs]
    return [Group(_letters(number), tuple(of_kind)) for number, of_kind in enumerate(kinds)]


@contextmanager
def finished(place: str) -> Iterator[FinishedRun]:
    """Read a run. What it has of files stays until the end of the block.

    Raises:
        UsageError: if there is no run, if it has not measured a model, or if its files are of a version that wrote others.
        StorageFailed.
    """
    with output.existing_workdir(place).glance(*_READ) as workdir:
        described, prefix = read_run(workdir), publishing.place(workdir)
        metrics: Metrics | None = workdir.read_json(f"{prefix}metrics.json")
        if described is None or metrics is None or described.get("run_id") != metrics.get("run_id"):
            raise UsageError(
                f"{place}: its last run has not finished, or was told to stop before it measured a model. Start the same "
                "command again, without --stop-after, and wait for its end."
            )
        paths = [workdir.path(f"{prefix}{name}") for name in ("examples.parquet", "predictions.parquet")]
        try:
            found = _of(place, workdir, described, metrics, Examples.load(paths[0]), pq.read_table(paths[1]))
        except (KeyError, ValueError, pa.ArrowException) as error:
            version = described["versions"].get("transfer-job", "unknown")
            raise UsageError(
                f"{place}: its tables of version {version} of transfer-job cannot be read ({error}). Run the job on it "
                f"again: {described['command']}"
            ) from error
        yield found


def _of(
    place: str, workdir: Workdir, described: Run, metrics: Metrics, examples: Examples, predictions: pa.Table
) -> FinishedRun:
    digests = predictions["sha256"].to_pylist()
    row_of = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    shipped = predictions[f"{metrics['shipped']}_probabilities"].combine_chunks()
    probabilities_TC = shipped.flatten().to_numpy().reshape(len(digests), -1).astype(np.float64)
    number = {name: k for k, name in enumerate(metrics["class_names"])}
    labels_T = np.asarray([number[label] for label in predictions["label"].to_pylist()])
    return FinishedRun(
        uri=place,
        workdir=workdir,
        described=described,
        metrics=metrics,
        examples=examples,
        row_of=row_of,
        predicted_T=np.asarray(predictions["predicted"].to_pylist(), object),
        of_label_T=probabilities_TC[np.arange(len(digests)), labels_T],
        confidence_T=probabilities_TC.max(axis=1),
    )


def _letters(number: int) -> str:
    """Return A, B, ..., Z, A2, B2, and so on."""
    again, letter = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(again + 1) if again else "")
