"""Memory of fine-tuning by the number of photos: stores of 5,000 to 60,000 photos with two views each.

Each size runs in its own process. The activations are random numbers, in the shape of MobileNetV2 0.35 at 160 px. A process
does 150 steps of 64 random examples, then computes the logits of a fifth of the store.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.measured import ROOT, machine

SIZES = (5_000, 20_000, 60_000)
BATCH_SIZE, NUM_CLASSES, NUM_STEPS = 64, 5, 150


def train(count: int, folder: Path) -> dict[str, float]:
    """Train on random rows of the store. Return the growth of memory after the tenth step."""
    from job.cluster.devices import Devices
    from job.model.heads import Head, smoothed_one_hot
    from job.model.inputs import StoredInputs
    from job.model.network import Network
    from job.runtime.telemetry import Telemetry
    from job.sections import BackboneConfig
    from job.stores.arrays import StoreWriter
    from job.stores.views import StoredViews
    from job.train.loop import Trainer
    from job.train.recipe import Recipe
    from job.train.schedule import Schedule

    network = Network(BackboneConfig(alpha=0.35, weights="random", unfreeze=0.4), 160, Devices(), seed=0)
    shape = network.cut_point.shape
    rng = np.random.default_rng(0)
    stores = []
    for name in ("plain", "views"):
        writer = StoreWriter(folder / name, shape, "float16")
        keys = [str(row) for row in range(count)]
        for start in range(0, count, writer.max_rows):
            part = keys[start : start + writer.max_rows]
            writer.write(part, rng.normal(0, 1, (len(part), *shape)).astype(np.float16))
        stores.append(writer.finish(keys))
    inputs = StoredInputs(StoredViews(stores[0], stores[1], np.arange(count), 2))
    schedule = Schedule.resolve(Recipe(1, BATCH_SIZE, 1e-3, views=2), num_examples=count, warmup_fraction=0.1, seed=0)
    telemetry = Telemetry(None)
    model = network.tuned(Head.zeros(network.feature_width, NUM_CLASSES))
    trainer = Trainer(model, schedule, network.replicas, inputs, weight_decay=1e-4, ema=False, telemetry=telemetry)
    targets = smoothed_one_hot(np.arange(count) % NUM_CLASSES, NUM_CLASSES, 0.1)
    ones = np.ones(BATCH_SIZE, np.float32)
    peaks = _Peaks()
    for step in range(NUM_STEPS):
        rows = np.sort(rng.choice(count, BATCH_SIZE, replace=False))
        arrays = inputs.training(rows, rows.astype(np.uint64), rows % 2)
        trainer.step(((lambda _, arrays=arrays: arrays), targets[rows], ones))
        if step == 10:
            peaks.start()
    started = time.process_time()
    trainer.logits(np.arange(count)[: count // 5])
    return {
        "store_mb": sum(store.num_bytes for store in stores) / 1e6,
        "own_mb_grown": peaks.stop(),
        "validation_cpu_ms_a_photo": (time.process_time() - started) / (count // 5) * 1000,
    }


class _Peaks:
    """Peak of this process's own memory above its start. Pages of files do not count, because the kernel can free them."""

    def start(self) -> None:
        self._first, self._most, self._on = _own_mb(), 0.0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while self._on:
            self._most = max(self._most, _own_mb())
            time.sleep(0.05)

    def stop(self) -> float:
        self._on = False
        self._thread.join()
        return self._most - self._first


def _own_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=int)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    if options.part:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(train(options.part, Path(scratch))))
        return
    rows = ["| photos | stores MB | memory grown MB | validation CPU ms a photo |", "|---|---|---|---|"]
    for size in options.sizes:
        command = [sys.executable, "-m", "benchmarks.fine_tune_memory", "--part", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found = json.loads(done.stdout.splitlines()[-1])
        grown, validation = f"{found['own_mb_grown']:.0f}", f"{found['validation_cpu_ms_a_photo']:.2f}"
        rows.append(f"| {size:,} | {found['store_mb']:,.0f} | {grown} | {validation} |")
        print(rows[-1], flush=True)
    today = datetime.date.today()
    file = ROOT / f"benchmarks/results/fine_tune_memory_{len(os.sched_getaffinity(0))}-core-cpu_{today}.md"
    lines = ["# Fine-tuning's memory", "", f"{machine()}, {today}.", "", *rows, "", str(__doc__).strip()]
    file.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
