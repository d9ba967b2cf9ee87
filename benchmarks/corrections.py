"""Accuracy against the number of labels that a person looks at, in the order of label_issues.csv, on flowers.

Labels are moved to a random other class, in all splits. A person who knows the truth then decides about the first rows of
the list, and the run is repeated with these corrections. Features are computed once, because they do not depend on labels.
"""

import argparse
import csv
import hashlib
import tempfile
from pathlib import Path

import numpy as np

import job
from benchmarks.measured import SHARED, WEIGHTS
from job.text.untrusted import csv_of

PHOTOS = SHARED / "data" / "flowers"
Truth = dict[str, str]  # The right label of each photo, by the SHA-256 of its file.


def planted(share: float, seed: int, file: Path) -> Truth:
    """Write a table of labels, of which a share is wrong. Return the right ones."""
    photos = sorted(PHOTOS.rglob("*.jpg"))
    classes = sorted({photo.parent.name for photo in photos})
    rng = np.random.default_rng(seed)
    wrong = set(rng.choice(len(photos), round(share * len(photos)), replace=False).tolist())
    rows = []
    for k, photo in enumerate(photos):
        label = photo.parent.name
        given = str(rng.choice([name for name in classes if name != label])) if k in wrong else label
        rows.append((photo.relative_to(PHOTOS).as_posix(), given, photo.relative_to(PHOTOS).parts[0]))
    file.write_bytes(csv_of([("path", "label", "split"), *rows]))
    return {hashlib.sha256(photo.read_bytes()).hexdigest(): photo.parent.name for photo in photos}


def measured(out: Path, labels: Path, cache: Path, corrections: Path | None, *, fine_tunes: bool) -> job.Result:
    config: dict[str, object] = {"intake.image_size": 128, "backbone.alpha": 0.35, "backbone.weights": str(WEIGHTS)}
    config |= {"cache.dir": str(cache)} | ({} if fine_tunes else {"augment.views": 1, "fine_tune.epochs": 0})
    config |= {"intake.corrections": str(corrections)} if corrections else {}
    return job.run(PHOTOS, out, labels=labels, config=config, stop_after="evaluate")


def line(share: float, seed: int, looked_at: int, result: job.Result, truth: Truth) -> str:
    """Return a row of the table: what is left of the wrong labels, and the accuracy by three kinds of labels."""
    used = [row for row in result.examples.to_pylist() if row["status"] in ("used", "converted")]
    left = sum(row["label"] != truth[row["sha256"]] for row in used)
    answers = result.predictions.to_pylist()
    true = np.mean([row["predicted"] == truth[row["sha256"]] for row in answers])
    assert result.metrics
    found = result.metrics["corrections"]
    by_corrected = result.metrics[result.metrics["shipped"]]["test"]["accuracy"]
    by_given = found["by_given_labels"]["accuracy"] if found else by_corrected
    return f"| {share:.0%} | {seed} | {looked_at} | {left} | {by_given:.3f} | {by_corrected:.3f} | {true:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.05, 0.1])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--looked-at", type=int, nargs="*", default=[25, 100, 200, 400])
    parser.add_argument("--fine-tune", action="store_true", help="fine-tune, instead of training the head alone")
    chosen = parser.parse_args()
    print("| Wrong | Seed | Looked at | Wrong labels left | By given labels | By corrected labels | By the truth |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for share in chosen.shares:
            for seed in chosen.seeds:
                labels, out = here / f"labels-{share}-{seed}.csv", here / f"out-{share}-{seed}"
                truth = planted(share, seed, labels)
                first = measured(out, labels, here / "cache", None, fine_tunes=chosen.fine_tune)
                print(line(share, seed, 0, first, truth), flush=True)
                with (out / "label_issues.csv").open(encoding="utf-8-sig", newline="") as file:
                    listed = [row["sha256"] for row in csv.DictReader(file)]
                for looked_at in chosen.looked_at:
                    corrections = here / f"corrections-{share}-{seed}-{looked_at}.csv"
                    rows = [(digest, truth[digest]) for digest in listed[:looked_at]]
                    corrections.write_bytes(csv_of([("sha256", "decision"), *rows]))
                    again = measured(out, labels, here / "cache", corrections, fine_tunes=chosen.fine_tune)
                    print(line(share, seed, looked_at, again, truth), flush=True)


if __name__ == "__main__":
    main()
