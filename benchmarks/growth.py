"""What growing data costs: intake and extract after photos are added, removed, renamed, relabelled, moved or split anew.

The command `run --stop-after extract` works again and again in one output directory, while its data change. For each change
the table has the files that were decoded, the views that were computed, and the CPU seconds of both stages. What one more
photo costs is the start of the decoders, of TensorFlow and of its graphs; `apart` leaves it out on both sides. At the end
the stores are compared with those of a run that begins with the final data.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import ROOT, SHARED, WEIGHTS, machine
from job.demo.drawings import draw
from job.stores.arrays import ArrayStore

SEED = 0
STAGES = ("intake", "extract")
ONE = "one photo more, which sorts first"
Numbers = dict[str, Any]


class Run:
    """The stages up to extract, in one output directory."""

    def __init__(self, out: Path, data: Path, settings: Sequence[str]) -> None:
        self.out, self.data, self.settings = out, data, list(settings)

    def __call__(self, *more: str) -> Numbers:
        """Run what is stale. Return what it cost; a stage that was skipped costs nothing."""
        before = {stage: self.record(stage) for stage in STAGES}
        words = [word for setting in (*self.settings, *more) for word in ("--set", setting)]
        command = [sys.executable, "-P", "-m", "job", "run", "--data", self.data, "--out", self.out, *words]
        subprocess.run([*map(str, command), "--stop-after", "extract"], cwd=ROOT, check=True, capture_output=True)
        numbers: Numbers = {"cpu_s": 0.0}
        for stage in STAGES:
            record = self.record(stage)
            ran = record != before[stage]
            numbers[stage] = record["count"] - record["done"].get("found", 0) if ran else 0
            numbers["cpu_s"] += record["cpu_s"] if ran else 0.0
        return numbers

    def record(self, stage: str) -> Numbers:
        file = self.out / "stages" / f"{stage}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def stores(self) -> dict[str, ArrayStore]:
        return {name: ArrayStore(self.out / "cache" / name) for stage in STAGES for name in self.record(stage)["stores"]}


def photos_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.[jp][pn]g") if p.is_file())


def changes(data: Path, aside: Path, run: Run) -> list[tuple[str, Callable[[], Numbers]]]:
    """Return the changes in order, each with a function that makes it and runs the job."""
    rng = np.random.default_rng(SEED)
    waiting = photos_of(aside)
    count = len(waiting)

    def put(photos: Sequence[Path], name: Callable[[Path], str]) -> Numbers:
        for photo in photos:
            shutil.move(photo, data / photo.relative_to(aside).parent / name(photo))
        return run()

    def drawn(count: int) -> list[Path]:
        there = photos_of(data)
        return [there[k] for k in rng.choice(len(there), count, replace=False)]

    def put_one() -> Numbers:
        """Add photos one by one until one is drawn for training, so that both passes start."""
        while (numbers := put([waiting.pop(0)], lambda photo: f"0-{photo.name}"))["extract"] < 2:
            pass
        return numbers

    def remove() -> Numbers:
        for photo in drawn(count):
            photo.unlink()
        return run()

    def rename() -> Numbers:
        for photo in drawn(count):
            photo.rename(photo.with_name(f"renamed-{photo.name}"))
        return run()

    def relabel() -> Numbers:
        folders = sorted(p for p in data.iterdir() if p.is_dir())
        for photo in drawn(count):
            other = next(f for f in folders if f != photo.parent)
            photo.rename(other / f"relabelled-{photo.name}")
        return run()

    def move() -> Numbers:
        run.data = data.rename(data.with_name("moved"))
        return run()

    return [
        ("first run", run),
        ("nothing", run),
        (ONE, put_one),
        ("1% more photos", lambda: put(waiting, lambda photo: photo.name)),
        ("1% removed", remove),
        ("1% renamed", rename),
        ("1% relabelled", relabel),
        ("moved to another folder", move),
        ("another split", lambda: run("split.seed=1")),
    ]


def measure(folder: Path, data: Path, settings: Sequence[str]) -> tuple[list[tuple[str, Numbers]], bool]:
    """Return the numbers of each change, and whether the stores are those of a fresh run, bit by bit."""
    aside = folder / "aside"
    photos = photos_of(data)
    for k in np.random.default_rng(SEED).choice(len(photos), 8 + len(photos) // 101, replace=False):
        place = aside / photos[k].relative_to(data)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(photos[k], place)
    run = Run(folder / "out", data, settings)
    rows = [(name, change()) for name, change in changes(data, aside, run)]
    fresh = Run(folder / "fresh", run.data, settings)
    fresh("split.seed=1")
    grown, expected = run.stores(), fresh.stores()
    same = grown.keys() == expected.keys() and all(
        np.array_equal(grown[name].rows(range(len(store))), store.rows(range(len(store))))
        for name, store in expected.items()
    )
    return rows, same


def table(rows: Sequence[tuple[str, Numbers]]) -> list[str]:
    costs = dict(rows)
    whole, start = costs["first run"]["cpu_s"], costs[ONE]["cpu_s"]
    lines = ["| change | decoded | views | CPU s | of the first run | apart |", "|---|---|---|---|---|---|"]
    for name, numbers in rows:
        apart = f"{max(0.0, numbers['cpu_s'] - start) / (whole - start):.1%}" if numbers["cpu_s"] else "0"
        shares = f"{numbers['cpu_s'] / whole:.1%} | {apart}"
        lines.append(f"| {name} | {numbers['intake']:,} | {numbers['extract']:,} | {numbers['cpu_s']:.1f} | {shares} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawn", type=int, help="draw so many pictures instead of copying flowers")
    parser.add_argument("--image-size", type=int, default=160)
    arguments = parser.parse_args()
    settings = [f"intake.image_size={arguments.image_size}", "backbone.alpha=0.35", f"backbone.weights={WEIGHTS}"]
    settings.append("intake.max_quarantined_fraction=0.1")
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        if arguments.drawn:
            draw(data, seed=SEED, photos_per_class=arguments.drawn // 7)
        else:
            for part in ("train", "val"):  # One folder for each class, so that the job draws the split.
                shutil.copytree(SHARED / "data" / "flowers" / part, data, dirs_exist_ok=True)
        what = f"{len(photos_of(data)):,} {'drawn pictures' if arguments.drawn else 'photos of flowers'}"
        rows, same = measure(Path(scratch), data, settings)
    print(f"# Growing data: {what} at {arguments.image_size} px\n")
    print(f"{machine()}, {datetime.date.today()}. MobileNetV2 0.35. CPU seconds of intake and extract together.\n")
    print("\n".join(table(rows)))
    print(f"\nThe stores have {'the same' if same else 'OTHER'} bits as those of a run that begins with the final data.")


if __name__ == "__main__":
    main()
