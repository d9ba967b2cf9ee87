"""CPU time and memory of the steps that see all photos or all classes at once, for up to 200,000 photos and 1,000 classes.

The photos are synthetic: random hashes, pixels of noise, Gaussian classes of features. One photo in a hundred is a copy of
another. Each step runs in a process of its own. `MB` is the largest anonymous memory of that process over that before the
step. Pages of mapped files do not count, because the system can take them back.
"""

import argparse
import datetime
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import ROOT, machine
from job.data.examples import Examples
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import EvaluateConfig, HeadConfig, SplitConfig
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore, StoreWriter
from job.stores.views import StoredViews

PHOTOS, CLASSES = (3_700, 20_000, 60_000, 200_000), (10, 100, 1_000)  # Each number of photos, then each of classes.
MANY_PHOTOS = 60_000
IMAGE_PX, WIDTH, COMPONENTS = 32, 256, 256
COPIES = 100  # One photo in so many is a copy.

Numbers = dict[str, float]
Step = Callable[[int, int, Path], Callable[[], object]]


# Synthetic data.


def examples_of(num_photos: int, num_classes: int, *, are_split: bool) -> Examples:
    """Return photos of all classes in turn. The last one in each hundred is a copy of the first, in its class and split."""
    rng = np.random.default_rng(0)
    number = np.arange(num_photos)
    original = np.where(number % COPIES == COPIES - 1, number - number % COPIES, number)
    names = [f"class-{k:04d}" for k in range(num_classes)]
    hashes = rng.integers(0, 2**63, num_photos, dtype=np.uint64)[original] ^ (number != original).astype(np.uint64)
    columns: dict[str, Any] = dict.fromkeys(("width", "height", "num_bytes", "contrast", "has_exif"), [1] * num_photos)
    columns |= {
        "path": [f"{names[k % num_classes]}/{k:07d}.jpg" for k in range(num_photos)],
        "label": [names[k % num_classes] for k in original],
        "status": ["used"] * num_photos,
        "sha256": [f"{value:016x}{k:048x}" for k, value in enumerate(rng.integers(0, 2**63, num_photos))],
        "phash": hashes,
        "brightness": rng.random(num_photos),
        "row": number,
        "format": ["JPEG"] * num_photos,
        "reason": [""] * num_photos,
    }
    if are_split:
        columns["split"] = np.asarray(["train", "train", "train", "val", "test"])[original // num_classes % 5].tolist()
        columns["group"] = original
    return Examples.from_columns(columns, names)


def store_of(
    folder: Path, shape: tuple[int, ...], dtype: str, rows: Callable[[np.ndarray], np.ndarray], count: int
) -> ArrayStore:
    """Return a store of `count` rows. `rows` makes those with some numbers."""
    writer, keys = StoreWriter(folder, shape, dtype), [str(k) for k in range(count)]
    for start in range(0, count, writer.max_rows):
        numbers = np.arange(start, min(start + writer.max_rows, count))
        writer.write(keys[start : numbers[-1] + 1], rows(numbers))
    return writer.finish(keys)


def features_of(folder: Path, num_photos: int, num_classes: int) -> ArrayStore:
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 0.3, (num_classes, WIDTH)).astype(np.float32)

    def rows(numbers: np.ndarray) -> np.ndarray:
        return centres[numbers % num_classes] + rng.standard_normal((len(numbers), WIDTH), np.float32)

    return store_of(folder, (WIDTH,), "float32", rows, num_photos)


def context_in(folder: Path) -> Context:
    return Context(Workdir(folder / "out"), Telemetry(None, open(os.devnull, "w")))


# The steps. Each function prepares the data, and returns what is measured.


def split(num_photos: int, num_classes: int, folder: Path) -> Callable[[], object]:
    """The stage split, which finds copies by their hashes and confirms them on pixels."""
    from job.stages.split import split as stage

    def pixels(numbers: np.ndarray) -> np.ndarray:
        rows = [np.random.default_rng(k - k % COPIES if k % COPIES == COPIES - 1 else k) for k in numbers.tolist()]
        return np.stack([rng.integers(0, 256, (IMAGE_PX, IMAGE_PX, 3), np.uint8) for rng in rows])

    examples = examples_of(num_photos, num_classes, are_split=False)
    images = store_of(folder / "images", (IMAGE_PX, IMAGE_PX, 3), "uint8", pixels, num_photos)
    rules = {"max_quarantined_fraction": 0.1, "drop_small_classes": False}
    return lambda: stage(SplitConfig(), examples=examples, images=images, context=context_in(folder), **rules)


def table(num_photos: int, num_classes: int, folder: Path) -> Callable[[], object]:
    """The table of examples: written, read, counted, numbered."""
    examples = examples_of(num_photos, num_classes, are_split=True)

    def work() -> object:
        (folder / "table.parquet").write_bytes(examples.to_parquet())
        read = Examples.load(folder / "table.parquet")
        return read.by_class(), read.splits(), read.statuses(), read.keys, read.labels, read.units

    return work


def neighbours(num_photos: int, num_classes: int, folder: Path) -> Callable[[], object]:
    """The ten nearest neighbours of each photo."""
    from job.data.neighbours import nearest

    vectors = features_of(folder / "features", num_photos, num_classes).rows(range(num_photos))
    return lambda: nearest(vectors, 10)


def head(num_photos: int, num_classes: int, folder: Path) -> Callable[[], object]:
    """The stage head, without augmented views."""
    from job.stages.head import head as stage
    from job.train.checkpoint import Checkpoints

    examples, context = examples_of(num_photos, num_classes, are_split=True), context_in(folder)
    plain = features_of(folder / "features", num_photos, num_classes)
    features, checkpoints = StoredViews(plain, None, examples.of("train"), 1), Checkpoints(context, "head", {})
    return lambda: stage(HeadConfig(), examples=examples, features=features, checkpoints=checkpoints, context=context)


def evaluate(num_photos: int, num_classes: int, folder: Path) -> Callable[[], object]:
    """The stage evaluate with two models, and predictions.parquet. The second model is a head as well, not a network."""
    from job.data.moments import Moments
    from job.measure.models import Models
    from job.measure.predicted import StoredLogits
    from job.model.heads import Discriminant, Head
    from job.stages import evaluate as stage

    examples, context = examples_of(num_photos, num_classes, are_split=True), context_in(folder)
    features = features_of(folder / "features", num_photos, num_classes)
    images = store_of(folder / "images", (8, 8, 3), "uint8", lambda k: np.zeros((len(k), 8, 8, 3), np.uint8), num_photos)
    some = examples.of("train")[:20_000]
    discriminant = Discriminant(Moments.of(features.rows(some), examples.labels[some], np.ones(len(some)), num_classes))
    heads = discriminant.head(0.5), discriminant.head(0.1)

    class TwoHeads(Models):
        def logits(self, rows_N: np.ndarray, *, scratch: Path, telemetry: Telemetry, **_: object) -> dict[str, StoredLogits]:
            def stored(head: Head) -> StoredLogits:
                batches = self.features_of("head", rows_N, telemetry)
                return StoredLogits((head.logits(batch_BD) for batch_BD in batches), num_classes, scratch)

            return dict(zip(("head", "seed 0"), map(stored, heads), strict=True))

    given: dict[str, Any] = {"rules": None, "models": TwoHeads(None, heads[0], {"seed 0": []}, features, None, images)}  # type: ignore[arg-type]
    return lambda: stage.evaluate(EvaluateConfig(familiarity="off"), examples=examples, context=context, **given)


def predictions(num_photos: int, num_classes: int, folder: Path) -> Callable[[], object]:
    """The table of predict, from probabilities."""
    from job.runtime.stop import StopRequest
    from job.serving import answers, predict
    from job.sources.base import Entry

    rng, names = np.random.default_rng(0), [f"class-{k:04d}" for k in range(num_classes)]
    probabilities_BC = rng.dirichlet(np.full(num_classes, 0.1), 256).astype(np.float32)

    def work() -> object:
        rows = (
            predict._row(Entry(f"{k:07d}.jpg", "", "", 0, ""), probabilities_BC[k % 256], names, keeps_all=False)
            for k in range(num_photos)
        )
        place = answers.place(
            str(folder / "answer.parquet"), overwrite=False, model=str(folder / "m"), data=str(folder / "d")
        )
        return place.write(list(rows), StopRequest())

    return work


STEPS: dict[str, Step] = {
    "split": split,
    "table": table,
    "neighbours": neighbours,
    "head": head,
    "evaluate": evaluate,
    "predictions": predictions,
}
OF_CLASSES = ("table", "head", "evaluate", "predictions")  # The other steps do not look at the classes.


# Measuring.


def part(name: str, num_photos: int, num_classes: int) -> Numbers:
    """Measure one step in this process. Return CPU seconds, memory, and the bytes of predictions.parquet if there is one."""
    with tempfile.TemporaryDirectory() as scratch:
        work = STEPS[name](num_photos, num_classes, Path(scratch))
        started = time.process_time()
        with _peak_mb() as grown_mb:
            kept = work()
        numbers = {"cpu_s": time.process_time() - started, "mb": grown_mb[0]}
        del kept
        for file in Path(scratch).rglob("predictions.parquet"):
            numbers["file_mb"] = file.stat().st_size / 1e6
    return numbers


@contextmanager
def _peak_mb() -> Iterator[list[float]]:
    """Give a list. After the block, it has the largest growth of anonymous memory in the block, looked at every 5 ms."""

    def anonymous_mb() -> float:
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], anonymous_mb() - before)

    before, peak, ended = anonymous_mb(), [0.0], threading.Event()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def measured(name: str, num_photos: int, num_classes: int) -> Numbers:
    command = [sys.executable, "-m", "benchmarks.scale", "--part", name, str(num_photos), str(num_classes)]
    numbers: Numbers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    print(name, num_photos, num_classes, numbers, file=sys.stderr, flush=True)
    return numbers


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Return k such that the seconds grow like size^k, between the last two sizes."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])


def rows_of(sizes: tuple[int, ...], runs: dict[str, list[Numbers]]) -> list[str]:
    lines = [
        "| Step | "
        + " | ".join(f"{n:,}: CPU s" for n in sizes)
        + " | exponent | "
        + " | ".join(f"{n:,}: MB" for n in sizes)
        + " |"
    ]
    lines.append("|---" * (2 * len(sizes) + 2) + "|")
    for name, found in runs.items():
        seconds = [n["cpu_s"] for n in found]
        cells = [f"{s:.2f}" for s in seconds] + [f"{exponent(sizes, seconds):.2f}"] + [f"{n['mb']:,.0f}" for n in found]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--part", nargs=3, metavar=("STEP", "PHOTOS", "CLASSES"), help="measure one step at one size")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(part(options.part[0], *map(int, options.part[1:]))))
        return
    by_photos = {name: [measured(name, n, CLASSES[0]) for n in PHOTOS] for name in options.steps}
    of_classes = [name for name in options.steps if name in OF_CLASSES]
    by_classes = {name: [measured(name, MANY_PHOTOS, c) for c in CLASSES] for name in of_classes}
    largest = {name: measured(name, PHOTOS[-1], CLASSES[-1]) for name in of_classes}
    lines = [
        f"# Scale: {', '.join(options.steps)}",
        "",
        f"{machine()}, {datetime.date.today()}. `python -m benchmarks.scale`",
        "",
    ]
    lines += [*re.split(r"\n\n", __doc__.strip())[1].splitlines(), "The exponent is that between the last two sizes.", ""]
    lines += ["## What is measured", "", *(f"- {name}: {STEPS[name].__doc__}" for name in options.steps), ""]
    lines += [f"## By photos, {CLASSES[0]} classes", "", *rows_of(PHOTOS, by_photos)]
    lines += [f"## By classes, {MANY_PHOTOS:,} photos", "", *rows_of(CLASSES, by_classes)]
    lines += [f"## {PHOTOS[-1]:,} photos and {CLASSES[-1]:,} classes", "", "| Step | CPU s | MB |", "|---|---|---|"]
    lines += [f"| {name} | {n['cpu_s']:.2f} | {n['mb']:,.0f} |" for name, n in largest.items()]
    if "evaluate" in largest:
        test = PHOTOS[-1] // 5
        lines += ["", f"predictions.parquet of {test:,} test photos: {largest['evaluate']['file_mb']:.0f} MB."]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
