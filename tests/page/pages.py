"""Runs with many classes, for their report pages."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from job.config import Config
from job.demo import drawings
from job.measure.models import Models
from job.model.heads import Head
from job.pipeline.records import Records, read_run
from job.reporting.page import LIMITS
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.stages.evaluate import evaluate
from job.stages.intake import Intake
from job.stages.report import report
from job.stages.split import SplitExamples
from job.storage.workdir import Workdir
from tests.conftest import paint, quick_settings, run_job

# It has no place to break, and is wider than a phone.
_LONG_NAME = "Pneumonoultramicroscopicsilicovolcanoconiosis_in_the_left_lower_lobe"
_SETTINGS = (
    "intake.image_size=32",
    "intake.max_quarantined_fraction=0.1",
    "fine_tune.epochs=1",
    "head.c_grid=[0.1,1.0]",
    "export.max_changed_fraction=1.0",  # A model with random weights changes its mind with the last bit of a pixel.
)


def _of_the_demo(folder: Path) -> None:
    """Run the job on the pictures of the demo: 7 classes, with planted faults."""
    drawings.draw(folder / "data", seed=0, photos_per_class=12, side_px=48)
    _run(folder)


def _painted(folder: Path, *, num_classes: int) -> None:
    """Run the job on painted photos."""
    _paint(folder / "data", num_classes, per_class=8)
    _run(folder)


def _evaluated_only(folder: Path, *, num_classes: int) -> None:
    """Make a page without the sections about training.

    The head of 1,000 classes takes minutes, so the stages between explore and evaluate are left out. The evaluate stage
    scores a head that is made here, on features that are made here.
    """
    _paint(folder / "data", num_classes, per_class=5)
    _run(folder, "--stop-after", "explore")
    context = Context(Workdir(folder / "out"), Telemetry(None))
    config = Config.load(None, [])
    examples = SplitExamples.load(context).examples
    features = _MadeFeatures(examples["row"], examples.labels)
    evaluate(
        config.evaluate,
        examples=examples,
        models=Models(None, features.head, {}, features, None, Intake.load(context).images),
        rules=None,
        context=context,
    )
    timings = Records(context.workdir).timings(("intake", "split", "explore"))
    timings["evaluate"] = timings["explore"]
    report(config.report, run=read_run(context.workdir), timings=timings, context=context)


# These functions fill a folder: data/ with the photos, and out/ with the output of the job.
MAKERS: Mapping[int, Callable[[Path], None]] = {
    len(drawings.CLASSES): _of_the_demo,
    LIMITS["matrix_classes"]: partial(_evaluated_only, num_classes=LIMITS["matrix_classes"]),
    81: partial(_painted, num_classes=81),
    1000: partial(_evaluated_only, num_classes=1000),
}


class _MadeFeatures:
    """Features that lie around the middle of their class, and a head that is right about most of them."""

    def __init__(self, rows_N: np.ndarray, labels_N: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        middles_CD = rng.standard_normal((labels_N.max() + 1, 16), np.float32)
        self._features_ND = np.empty((rows_N.max() + 1, 16), np.float32)
        self._features_ND[rows_N] = middles_CD[labels_N] + rng.standard_normal((len(labels_N), 16), np.float32)
        self.row_shape = middles_CD.shape[1:]
        self.head = Head(middles_CD.T, -(middles_CD**2).sum(1) / 2)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        return self._features_ND[numbers]


def _paint(data: Path, num_classes: int, per_class: int) -> None:
    names = [_LONG_NAME, *(f"class {k:03d}" for k in range(1, num_classes))]
    for number, name in enumerate(names):
        for k in range(per_class):
            kind = ("stripes", "checks")[number % 2]
            paint(data / name / f"{k}.png", seed=1000 * number + k, kind=kind, size=(32, 32))


def _run(folder: Path, *options: str) -> None:
    done = run_job("run", "--data", folder / "data", "--out", folder / "out", *quick_settings(*_SETTINGS), *options)
    assert done.returncode == 0, done.stderr
