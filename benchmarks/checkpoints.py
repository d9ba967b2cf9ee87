"""Cost of a checkpoint: the pause of the training, and the time of the thread that writes it.

Trainers of two sizes save ten checkpoints each, one after every step. The share is that of the default interval (30 s). It
includes the time of the thread, although training continues meanwhile.
"""

import datetime
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import ROOT, machine
from job.cluster.devices import Devices
from job.model.heads import Head
from job.model.network import Network
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import BackboneConfig, CheckpointConfig
from job.storage.workdir import Workdir
from job.train.checkpoint import Checkpoints, TrainState
from job.train.loop import Trainer
from job.train.recipe import Recipe
from job.train.schedule import Schedule

_TIMES, _BATCH = 10, 8
_BACKBONES = (("mobilenet_v2", 0.35, 160), ("resnet50", None, 96))


class _Given:
    def plain(self, rows_B: np.ndarray) -> Any:
        raise NotImplementedError

    def on_device(self, arrays: Any, *, training: bool) -> Any:  # noqa: ARG002 - the protocol's signature.
        return arrays[0]


def measure(name: str, alpha: float | None, image_size: int, folder: Path) -> str:
    config = BackboneConfig(name=name, alpha=alpha, weights="random", unfreeze=0.4)
    network = Network(config, image_size, Devices(), seed=0)
    head = Head(np.zeros((network.feature_width, 5), np.float32), np.zeros(5, np.float32))
    schedule = Schedule.resolve(Recipe(10, _BATCH, 1e-4, 1), num_examples=8 * _BATCH, warmup_fraction=0.1, seed=0)
    context = Context(Workdir(folder), Telemetry(None), saving=CheckpointConfig())
    options = {"weight_decay": 1e-4, "ema": True, "telemetry": context.telemetry}
    trainer = Trainer(network.tuned(head), schedule, network.replicas, _Given(), **options)
    assert network.cut_point is not None
    shape = network.cut_point.shape
    activations = np.ones((_BATCH, *shape), np.float16)
    batch = (lambda _: (activations,)), np.full((_BATCH, 5), 0.2, np.float32), np.ones(_BATCH, np.float32)
    pauses, writes, cpus, size = [], [], [], 0
    with Checkpoints(context, name, {}) as checkpoints:
        for _ in range(_TIMES):
            trainer.step(batch)
            cpu, started = time.process_time(), time.monotonic()
            state = trainer.state()
            state = TrainState(
                state.step, {**state.arrays, "best": np.concatenate([w.ravel() for w in trainer.final_weights()])}
            )
            checkpoints.save(state)
            pauses.append(time.monotonic() - started)
            checkpoints.finish()
            writes.append(time.monotonic() - started)
            cpus.append(time.process_time() - cpu)
            size = sum(array.nbytes for array in state.arrays.values())
    every_s = context.saving.every_s
    shares = statistics.median(pauses) / every_s, statistics.median(cpus) / every_s / len(os.sched_getaffinity(0))
    cells = [
        f"{1000 * statistics.median(values):,.0f} ({1000 * min(values):,.0f} to {1000 * max(values):,.0f})"
        for values in (pauses, writes, cpus)
    ]
    what = f"{name}{f' {alpha}' if alpha else ''}, {image_size} px"
    return f"| {what} | {size / 1e6:,.1f} | {' | '.join(cells)} | {shares[0]:.2%} | {shares[1]:.2%} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(*backbone, Path(folder)) for backbone in _BACKBONES]
    text = "\n".join(
        [
            "# Checkpoints",
            "",
            f"{machine()}. {_TIMES} checkpoints each, median (lowest to highest); an average is kept.",
            "",
            "| | MB | pause, ms | until it is on the disk, ms | CPU ms | pause, of 30 s | CPU, of 30 s on all cores |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            *str(__doc__).strip().splitlines()[2:],
            "",
        ]
    )
    name = f"checkpoints_2-core-cpu_{datetime.date.today()}.md"
    (ROOT / "benchmarks" / "results" / name).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
