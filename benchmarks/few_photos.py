"""Which model to ship when photos are few: the head, the fine-tuned model, the choice of the job, or the mean of both.

    python -m benchmarks.few_photos --work DIR          # measures what is missing in DIR, then prints the table

Training and validation photos are parts of flowers' training photos, 60 to 400 of them, or four fifths of tiny-flowers. The
test photos of a part are 800 other training photos of flowers, those of a fold are the photos left out. No held-out photo of
flowers takes part. Each run is a whole job up to `evaluate`, with the defaults.
"""

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import job
from benchmarks.measured import SHARED, WEIGHTS

FLOWERS, TINY = SHARED / "data" / "flowers" / "train", SHARED / "data" / "tiny-flowers"
SIZES, PARTS, FOLDS, TEST_PHOTOS = (60, 120, 250, 400), 5, 5, 800
MODELS = ("head", "fine_tuned", "shipped", "mean")


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


def table(results: dict[str, list[dict[str, list[bool]]]]) -> list[str]:
    """Return the accuracy of each model by number of photos, and its difference to what the job ships."""
    lines = [f"| photos | parts | {' | '.join(MODELS)} |", f"|---|---|{'---|' * len(MODELS)}"]
    for name, runs in results.items():
        accuracy = {model: np.asarray([np.mean(run[model]) for run in runs]) for model in MODELS}
        cells = []
        for model in MODELS:
            gain = accuracy[model] - accuracy["shipped"]
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else float("nan")
            told = "" if model == "shipped" else f" ({100 * gain.mean():+.1f} ± {100 * error:.1f})"
            cells.append(f"{accuracy[model].mean():.3f}{told}")
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, runs and results")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, list[bool]]]] = {}
    for seed, part in enumerate(parts()):
        file = options.work / f"part-{seed}.json"
        if not file.exists():
            file.write_text(json.dumps(measure(part, options.work / f"run-{seed}", options.work, seed)))
        results.setdefault(part.name, []).append(json.loads(file.read_text()))
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
