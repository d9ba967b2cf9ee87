"""Which model to ship when photos are few: the head, the fine-tuned model, the choice of the job, or the mean of both.

    python -m benchmarks.few_photos --work DIR          # measures what is missing in DIR, then prints the table

With `--torch-python`, TensorFlow's tutorial and timm's recipe of `side_by_side` learn from the same photos.

Training and validation photos are parts of flowers' training photos, 60 to 400 of them, or four fifths of tiny-flowers. The
test photos of a part are 800 other training photos of flowers, those of a fold are the photos left out. No held-out photo of
flowers takes part. Each run is a whole job up to `evaluate`, with the defaults.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import job
from benchmarks.measured import SHARED, WEIGHTS
from benchmarks.side_by_side import SMALL, letters, run_peer
from job.data.examples import Examples
from job.sources.folders import FolderSource

FLOWERS, TINY = SHARED / "data" / "flowers" / "train", SHARED / "data" / "tiny-flowers"
SIZES, PARTS, FOLDS, TEST_PHOTOS = (60, 120, 250, 400), 5, 5, 800
PEERS = {"a": "tutorial", "d": "timm"}


@dataclass(frozen=True)
class Part:
    """Photos to train on, with some for validation, and photos to test on."""

    name: str
    data: Path
    train: list[Path]
    test: list[Path]


def parts() -> list[Part]:
    photos = _photos(FLOWERS)
    found = []
    for size in SIZES:
        for seed in range(PARTS):
            order = np.random.default_rng([size, seed]).permutation(len(photos))
            train, test = order[:size], order[-TEST_PHOTOS:]
            found.append(Part(f"{size}", FLOWERS, [photos[k] for k in train], [photos[k] for k in test]))
    photos = _photos(TINY)
    order = np.random.default_rng(0).permutation(len(photos))
    for fold in range(FOLDS):
        test = order[fold::FOLDS]
        rest = np.setdiff1d(order, test)
        found.append(Part("tiny-flowers", TINY, [photos[k] for k in rest], [photos[k] for k in test]))
    return found


def _photos(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))


def measure(part: Part, out: Path, work: Path, seed: int) -> dict[str, list[bool]]:
    """Run the job on a part. Return for each model which test photos it gets right."""
    table = out.with_suffix(".csv")
    with table.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "label", "split"])
        for split, photos in (("train", part.train), ("test", part.test)):
            rows.writerows([photo.relative_to(part.data), photo.parent.name, split] for photo in photos)
    settings = {
        "seed": seed,
        "intake.image_size": 160,
        "backbone.alpha": 0.35,
        "backbone.weights": str(WEIGHTS),
        "cache.dir": str(work / "cache"),
    }
    job.run(part.data, out, config=settings, labels=table, stop_after="evaluate")
    predictions = pq.read_table(out / "predictions.parquet")
    class_names = np.asarray(predictions.schema.metadata[b"class_names"].decode().split("\n"))
    labels = np.asarray(predictions["label"].to_pylist())
    of_model = {name: np.asarray(predictions[f"{name}_probabilities"].to_pylist()) for name in ("head", "fine_tuned")}
    of_model["mean"] = (of_model["head"] + of_model["fine_tuned"]) / 2
    right = {name: (class_names[p.argmax(1)] == labels).tolist() for name, p in of_model.items()}
    return right | {"shipped": (np.asarray(predictions["predicted"].to_pylist()) == labels).tolist()}


def measure_peer(recipe: str, part: Part, out: Path, seed: int, torch_python: str) -> dict[str, float]:
    """Run another recipe on the photos of a job's run. Return its accuracy on the test photos."""
    examples = Examples.load(out / "examples.parquet")
    letter_of = dict(zip(examples["path"], letters(examples), strict=True))
    listing = FolderSource(part.data.resolve()).listing()
    split = "".join(letter_of.get(entry.path, "-") for entry in listing.entries)
    size = replace(SMALL, data=str(part.data.relative_to(SHARED / "data")))
    with tempfile.TemporaryDirectory() as scratch:
        found = run_peer(size, recipe, {"seed": seed, "split": split}, Path(scratch), torch_python)
    return {PEERS[recipe]: found["test_accuracy"]}


def table(results: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the accuracy of each model by number of photos, and its difference to what the job ships."""
    models = list(next(iter(results.values()))[0])
    lines = [f"| photos | parts | {' | '.join(models)} |", f"|---|---|{'---|' * len(models)}"]
    for name, runs in results.items():
        accuracy = {model: np.asarray([run[model] for run in runs]) for model in models}
        cells = []
        for model in models:
            gain = accuracy[model] - accuracy["shipped"]
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else float("nan")
            told = "" if model == "shipped" else f" ({100 * gain.mean():+.1f} ± {100 * error:.1f})"
            cells.append(f"{accuracy[model].mean():.3f}{told}")
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, runs and results")
    parser.add_argument("--torch-python", help="Python of an environment with timm; see peers_torch.py")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, float]]] = {}
    if options.torch_python:  # In a process of its own: `run_peer` takes all children of this one for those of the recipe.
        subprocess.run([sys.executable, "-m", "benchmarks.few_photos", "--work", options.work], check=True)
    for seed, part in sorted(enumerate(parts()), key=lambda numbered: numbered[0] % PARTS):
        out = options.work / f"run-{seed}"
        file = options.work / f"part-{seed}.json"
        if not file.exists():
            file.write_text(json.dumps(measure(part, out, options.work, seed)))
        accuracy = {model: float(np.mean(right)) for model, right in json.loads(file.read_text()).items()}
        for recipe in PEERS if options.torch_python else ():
            file = options.work / f"part-{seed}-{recipe}.json"
            if not file.exists():
                file.write_text(json.dumps(measure_peer(recipe, part, out, seed, options.torch_python)))
            accuracy |= json.loads(file.read_text())
        results.setdefault(part.name, []).append(accuracy)
        print(part.name, seed, accuracy, flush=True)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
