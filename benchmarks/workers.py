"""Speed of two workers compared with one, on the same work, each pinned to its own core.

A worker computes in one thread. The rates do not include the import of TensorFlow, building the backbone and tracing graphs,
which every worker does itself. `together` is the share of a step with two workers that communication takes (all-reduce,
gathering, waiting for the slower one). It is the difference to a step of one worker with half the batch.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measured import ROOT, SHARED, machine

_BATCH = 64  # The job's default for more than 1,500 photos.
_PORT = 21_431
_SETTINGS = (
    "backbone.weights=random",
    "intake.workers=1",
    "augment.views=1",
    "head.c_grid=[0.1]",
    "fine_tune.inputs=online",
    "backbone.unfreeze=0.3",
    "extract.batch_size=32",
)
_SETUP = ("imports", "building", "tracing", "start", "validation")


def run(data: Path, out: Path, num_workers: int, batch: int, settings: list[str]) -> dict[str, Any]:
    """Return the records of extract and fine_tune."""
    addresses = [f"localhost:{_PORT + k}" for k in range(num_workers)]
    words = [f"fine_tune.global_batch_size={batch}", *_SETTINGS, *settings]
    command = ["run", "--data", data, "--out", out, "--stop-after", "fine_tune"]
    command += [word for setting in words for word in ("--set", setting)]
    started = []
    for k in range(num_workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": k}}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"TF_CONFIG": json.dumps(task)} if num_workers > 1 else {})
        pinned = ["taskset", "--cpu-list", str(k), sys.executable, "-m", "job", *map(str, command)]
        started.append(subprocess.Popen(pinned, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(said[-3000:])
    return {name: json.loads((out / "stages" / f"{name}.json").read_text()) for name in ("extract", "fine_tune")}


def rates(records: dict[str, Any]) -> dict[str, float]:
    """Return photos per second in extract, examples per second in fine_tune, and seconds per example of a step."""
    extract, tuning = records["extract"], records["fine_tune"]
    work_s = extract["wall_s"] - sum(extract["spent_s"].get(what, 0.0) for what in _SETUP)
    steps_s = tuning["spent_s"]["training"] + tuning["spent_s"].get("waiting for data", 0.0)
    return {
        "extract": extract["count"] / work_s,
        "extract, whole stage": extract["count"] / extract["wall_s"],
        "fine_tune": tuning["done"]["training"] / steps_s,
        "fine_tune, whole stage": tuning["count"] / tuning["wall_s"],
    }


def copy_photos(folder: Path, count: int) -> Path:
    """Copy `count` photos of flowers, the same number of each class."""
    classes = sorted(path for path in (SHARED / "data" / "flowers" / "train").iterdir() if path.is_dir())
    for source in classes:
        (folder / source.name).mkdir(parents=True)
        for photo in sorted(source.iterdir())[: count // len(classes)]:
            shutil.copy(photo, folder / source.name)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--photos", type=int, default=1536)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    settings = [f"backbone.name={options.backbone}", f"intake.image_size={options.image_size}", "fine_tune.epochs=1"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = copy_photos(Path(folder) / "photos", options.photos)
        for number in range(options.rounds):
            found = {
                (workers, batch): rates(run(data, Path(folder) / f"{number}-{workers}-{batch}", workers, batch, settings))
                for workers, batch in ((1, _BATCH), (2, _BATCH), (1, _BATCH // 2))
            }
            one, two, half = found[1, _BATCH], found[2, _BATCH], found[1, _BATCH // 2]
            step_s, half_step_s = _BATCH / two["fine_tune"], _BATCH // 2 / half["fine_tune"]
            for what in one:
                together = f"{1 - half_step_s / step_s:.1%}" if what == "fine_tune" else ""
                rows.append(f"| {what} | {two[what] / one[what]:.2f} | {one[what]:.2f} | {two[what]:.2f} | {together} |")
    text = "\n".join(
        [
            "# Two workers against one",
            "",
            f"{machine()}. {options.backbone} with random weights at {options.image_size} px, {options.photos} photos, "
            f"batches of {_BATCH}, 30% of the multiply-adds fine-tuned online; {options.rounds} rounds.",
            "",
            "| | times as fast | photos/s of one | of two | together, of a step |",
            "|---|---|---|---|---|",
            *sorted(rows),
            "",
            *str(__doc__).strip().splitlines()[2:],
            "",
        ]
    )
    name = f"workers_{options.backbone}_2-core-cpu_{datetime.date.today()}.md"
    (ROOT / "benchmarks" / "results" / name).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
