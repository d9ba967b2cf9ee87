"""Ends the job at instants over its whole duration, starts it again, and compares what is left in the end with what a run
leaves that nobody disturbed.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np

from job.storage.files import digest_of_file, digest_of_folder
from job.storage.lease import NAME as LEASE
from job.storage.ledger import TEMPORARY
from job.stores.arrays import ArrayStore
from tests.conftest import QUICK, ROOT, WAIT_S, paint_classes
from tests.warm import WarmStart

# Enough training for kills to meet it, with all the state that training can have: an average, a best epoch, patience.
SETTINGS = (
    *QUICK,
    "fine_tune.epochs=30",
    "fine_tune.global_batch_size=8",
    "fine_tune.ema=true",
    "fine_tune.keep=best",
    "fine_tune.patience=30",
    "checkpoint.every_s=0.3",
)
_STAGE = re.compile(r"^(\w+) +runs$", re.MULTILINE)


def command(data: Path | str, out: Path | str, *settings: str) -> list[str]:
    sets = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return [sys.executable, "-m", "job", "run", "--data", str(data), "--out", str(out), *sets]


def run(data: Path, out: Path, start: type[subprocess.Popen[Any]] = WarmStart) -> None:
    """Run the job to its end."""
    said = out.parent / "said.txt"
    with said.open("w") as file, start(command(data, out), cwd=ROOT, stdout=file, stderr=file) as process:
        pass
    assert process.returncode == 0, said.read_text()[-3000:]


def run_until(data: Path, out: Path, seconds: float, number: signal.Signals) -> tuple[int, str]:
    """End the run after so many seconds: its exit code, and what it said."""
    said = out.parent / "said.txt"
    with said.open("w") as file:
        process = WarmStart(command(data, out), cwd=ROOT, stdout=file, stderr=file)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        return process.wait(WAIT_S), said.read_text()


def run_until_in(data: Path, out: Path, stage: str, seconds: float, number: signal.Signals) -> tuple[int, str]:
    """End the run when it has been in a stage for so many seconds: its exit code, and what it said."""
    said = out.parent / "said.txt"
    with said.open("w") as file, WarmStart(command(data, out), cwd=ROOT, stdout=file, stderr=file) as process:
        while process.poll() is None and stage not in _STAGE.findall(said.read_text()):
            time.sleep(0.01)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        return process.wait(WAIT_S), said.read_text()


def outcome(out: Path) -> dict[str, Any]:
    """Everything that must be the same to the bit, however often the run was ended on the way."""
    metrics = json.loads((out / "metrics.json").read_text())
    names = ["examples.parquet", "predictions.parquet", "label_issues.csv"]
    names += [f"stages/{name}" for name in ("head/head.npz", "head/head.json", "fine_tune/weights.npz")]
    names += ["stages/fine_tune/fine_tune.json", "stages/evaluate/evaluation.json", "stages/extract/extract.json"]
    checkpoints = sorted((out / "checkpoints" / "fine_tune").glob("[0-9]*"))
    parity = json.loads((out / "model" / "parity.json").read_text())
    return {
        "metrics": {k: v for k, v in metrics.items() if k not in ("run_id", "timings", "throughput", "share")},
        "files": {name: digest_of_file(out / name) for name in names},
        "last checkpoint": checkpoints[-1].name,  # With the digest of model, optimizer, average, best epoch, history.
        "stores": {file.relative_to(out): digest_of_rows(file) for file in (out / "cache").glob("*/index-*.json")},
        "model": {k: v for k, v in parity.items() if k in ("arrays", "bytes")},
        "report": digest_of_page((out / "report.html").read_text()),
    }


def digest_of_rows(index_file: Path) -> str:
    """A store's keys and rows in their order, wherever they lie: that depends on when rows were made."""
    store = ArrayStore(index_file)
    return sha256(json.dumps(store.keys).encode() + store.rows(range(len(store))).tobytes()).hexdigest()


def digest_of_page(page: str) -> str:
    """The page without its time stamp, and without the section on where the time went."""
    page = re.sub(r'<section id="times">.*?</section>', "", page, flags=re.DOTALL)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page)


def faults(out: Path) -> list[str]:
    """What is not whole, at any moment after a kill."""
    found = []
    for path in out.rglob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            found.append(f"{path} is not JSON")
    if (out / "model").exists():
        card = json.loads((out / "model" / "model.json").read_text())
        found += [f"model/{n}" for n, digest in card["sha256"].items() if digest_of_file(out / "model" / n) != digest]
    for index in (out / "cache").glob("*/index-*.json"):
        found += [] if ArrayStore.is_intact(index) else [f"{index} is of a store that is not whole"]
    for stage in (out / "checkpoints").glob("*"):
        folders = list(stage.glob("[0-9]*"))
        found += [str(f) for f in folders if digest_of_folder(f) != f.name.partition("-")[2]]
        found += [f"{len(folders)} checkpoints"] if len(folders) > 3 else []  # Two, and one that is about to go.
    return found


def leftovers(out: Path) -> list[str]:
    found = [name for name in (TEMPORARY, LEASE) if (out / name).exists()]
    too_many = [str(stage) for stage in (out / "checkpoints").glob("*") if len(list(stage.glob("*"))) > 2]
    return found + too_many


@dataclass
class Tally:
    """What happened to so many runs that were ended."""

    num_kills: int = 0
    num_runs: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    met_in: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Undisturbed:
    """A run to its end: its photos, its output, which tests change, a copy of the output, and what must be the same."""

    data: Path
    out: Path
    finished: Path
    stages_s: dict[str, float]
    outcome: dict[str, Any]

    @classmethod
    def of(cls, data: Path, folder: Path) -> Self:
        """Look at the run that has left `out` in this folder, and its copy `finished`."""
        finished = folder / "finished"
        timings = json.loads((finished / "metrics.json").read_text())["timings"]
        stages_s = {stage: timing["wall_s"] for stage, timing in timings.items()}
        return cls(data, folder / "out", finished, stages_s, outcome(finished))

    @property
    def duration_s(self) -> float:
        """How long the run took without its start."""
        return sum(self.stages_s.values())

    def finish_again(self) -> None:
        """Have in its place what it left but for its log, whatever a test has made of it since."""
        shutil.rmtree(self.out)
        shutil.copytree(self.finished, self.out, symlinks=True)
        shutil.rmtree(self.out / "logs")


def kills_in_every_stage(undisturbed: Undisturbed, number: signal.Signals, seed: int = 0) -> Tally:
    """End one run at the beginning of each stage, and at a random moment of each long one; then let it come to its end."""
    rng = np.random.default_rng([seed, int(number)])
    out, tally = undisturbed.out, Tally(num_runs=1)
    shutil.rmtree(out)
    for stage, duration_s in undisturbed.stages_s.items():
        for seconds in (0.0, duration_s * rng.uniform()) if duration_s > 1 else (0.0,):
            if (out / "stages" / f"{stage}.json").exists():  # The last signal came after the stage that it was meant for.
                break
            code, said = run_until_in(undisturbed.data, out, stage, seconds, number)
            if code != 0:
                _count_kill(tally, code, number, said, out)
    run(undisturbed.data, out)
    tally.problems += leftovers(out) + differences(undisturbed)
    return tally


def differences(undisturbed: Undisturbed) -> list[str]:
    """What another run in the same place has left otherwise."""
    found = outcome(undisturbed.out)
    return [f"another {what}" for what, then in undisturbed.outcome.items() if found[what] != then]


def _count_kill(tally: Tally, code: int, number: signal.Signals, said: str, out: Path) -> None:
    stages = _STAGE.findall(said)
    tally.num_kills += 1
    tally.codes[code] += 1
    tally.met_in[stages[-1] if stages else "start"] += 1
    tally.problems += _wrong_end(code, number, said) + faults(out)


def kills(undisturbed: Undisturbed, number: signal.Signals, count: int, seed: int = 0) -> Tally:
    """End runs until so many were met alive. One that was ended is started again, and may be ended again until it finishes.

    The instants are spread over the duration of a whole run, in random order. All work in the same place, because the page
    names it.
    """
    rng = np.random.default_rng([seed, int(number)])
    out, tally = undisturbed.out, Tally()
    instants = 0.1 + (rng.permutation(count) + rng.uniform(size=count)) / count * undisturbed.duration_s
    while tally.num_kills < count:
        shutil.rmtree(out)
        tally.num_runs += 1
        code, before = -1, tally.num_kills
        while code != 0:
            seconds = float(instants[tally.num_kills]) if tally.num_kills < count else 600.0
            code, said = run_until(undisturbed.data, out, seconds, number)
            if code != 0:
                _count_kill(tally, code, number, said, out)
        if tally.num_kills == before:  # Faster than the first time: the next instant is no longer within a run.
            instants *= 0.9
        tally.problems += leftovers(out) + differences(undisturbed)
    return tally


def _wrong_end(code: int, number: signal.Signals, said: str) -> list[str]:
    if number == signal.SIGKILL:
        return [] if code == -signal.SIGKILL else [f"ended with {code}: {said[-2000:]}"]
    if code == -number and not said:
        return []  # Before Python was up.
    is_told = f"Stopped by {number.name}" in said and "the same command goes on from there" in said
    return [] if code == 143 and is_told else [f"ended with {code}: {said[-2000:]}"]


def cycles(folder: Path, count: int) -> dict[str, Any]:
    """Kill a training that never ends at each second checkpoint, and go on: what grows?"""
    endless = ("fine_tune.epochs=100000", "fine_tune.patience=100000", "fine_tune.learning_rate=1e-6")
    data, out = paint_classes(folder / "photos", per_class=40), folder / "out"
    memory_mb, steps, problems = [], [], []
    checkpoints = out / "checkpoints" / "fine_tune"
    for _ in range(count):
        before = set(checkpoints.glob("[0-9]*"))
        process = WarmStart(command(data, out, *endless), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(set(checkpoints.glob("[0-9]*")) - before) < 2:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.05)
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory_mb.append(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024)
        process.kill()
        process.wait()
        problems += faults(out)
        steps.append(int(max(checkpoints.glob("[0-9]*")).name[:10]))
    assert steps == sorted(set(steps)), "a cycle did not go on"
    half = count // 2
    drift = np.median(memory_mb[half:]) / np.median(memory_mb[:half]) - 1
    files = sum(1 for p in out.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    return {
        "cycles": count,
        "steps": steps[-1],
        "memory_mb": memory_mb,
        "drift": drift,
        "files": files,
        "problems": problems,
    }
