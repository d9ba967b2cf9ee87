"""The job compared with other recipes and with bare limits, on the same photos, weights and machine. `make bench` runs it.

One process runs at a time. The parts take turns in every repetition, so that noise affects all of them. Each measurement is
written at once to benchmarks/results/side_by_side_MACHINE_DATE.json; a table is written beside it. `--only` measures some
parts again and keeps the others.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import limits
from benchmarks.measured import ROOT, SHARED, machine, run_measured
from benchmarks.side_by_side_table import PEERS, WITH_TORCH, table
from job.data.examples import Examples
from job.pipeline.table import STAGES

RESULTS = ROOT / "benchmarks" / "results"
_ONCE = ("b", "c", "d", "e")  # They take long, and the differences are much larger than the noise.
_LETTER = {"train": "t", "val": "v", "test": "h"}  # The split of a row of examples.parquet; "-" if it is no example.

Run = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A part of the benchmark and its data. A peer that runs fewer epochs than its recipe says is extrapolated."""

    name: str
    data: str
    weights: str
    alpha: float
    image_size: int
    epochs: int = 10
    epochs_run: int = 10
    once: bool = False  # Run only in the first repetition.
    settings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return SHARED / "data" / self.data

    def network(self) -> list[Any]:
        weights = SHARED / "weights" / self.weights
        return ["--weights", weights, "--alpha", self.alpha, "--image-size", self.image_size]


_WEIGHTS_035 = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
SIZES = {
    size.name: size
    for size in (
        Size("160 px, alpha 0.35", "flowers", _WEIGHTS_035, 0.35, 160),
        Size(
            "224 px, alpha 1.0",
            "flowers",
            "mobilenet_v2_1.00_224_no_top.from_int8.weights.h5",
            1.0,
            224,
            epochs_run=2,
            once=True,
        ),
        Size(
            "quick (a smoke run: its figures say nothing)",
            "tiny-flowers",
            _WEIGHTS_035,
            0.35,
            96,
            epochs=1,
            epochs_run=1,
            once=True,
            settings=("augment.views=2", "fine_tune.epochs=1", "head.c_grid=[0.01,0.1]"),
            limits=("--rounds", "1", "--seconds", "0.1"),
        ),
    )
}
SMALL, LARGE, QUICK = SIZES.values()


def run_job(size: Size, seed: int, settings: list[str], scratch: Path) -> Run:
    """Run the whole job, from the folder of photos to the exported model and the report, in a fresh folder."""
    out = scratch / "out"
    settings = [f"intake.image_size={size.image_size}", f"backbone.alpha={size.alpha}", *size.settings, *settings]
    command = [sys.executable, "-m", "job", "run", "--data", size.folder, "--out", out]
    command += ["--weights", SHARED / "weights" / size.weights, "--set", f"seed={seed}", "--set", f"split.seed={seed}"]
    run: Run = {"seed": seed, **run_measured([*command, *(word for s in settings for word in ("--set", s))])}
    metrics = json.loads((out / "metrics.json").read_text())
    records = {name: json.loads((out / f"stages/{name}.json").read_text()) for name in STAGES}
    run |= {name: metrics[name] for name in ("shipped", "timings", "throughput")}
    run["counts"] = {name: record["count"] for name, record in records.items() if record.get("count")}
    run |= {f"{name}_accuracy": metrics[name]["test"]["accuracy"] for name in ("head", "fine_tuned") if metrics[name]}
    run["test_accuracy"] = metrics[metrics["shipped"]]["test"]["accuracy"]
    run["val_accuracy"] = metrics[metrics["shipped"]]["val"]["accuracy"]
    examples = Examples.load(out / "examples.parquet")
    predictions = pq.read_table(out / "predictions.parquet").to_pydict()
    predicted = dict(zip(predictions["path"], predictions["predicted"], strict=True))
    test = examples.of("test")
    run["split"] = "".join(letters(examples))
    run["labels"] = _numbers([examples["label"][k] for k in test], examples.class_names)
    run["predicted"] = _numbers([predicted[examples["path"][k]] for k in test], examples.class_names)
    return run


def letters(examples: Examples) -> list[str]:
    """Return the letter of the split of each row, or "-" if the row is no example."""
    found = np.full(len(examples), "-")
    for split, letter in _LETTER.items():
        found[examples.of(split)] = letter
    return found.tolist()


def run_peer(size: Size, recipe: str, job: Run, scratch: Path, torch_python: str | None) -> Run:
    """Run a recipe on the job's training, validation and test photos."""
    folder, out = scratch / "photos", scratch / "result.json"
    held_out, class_names = link_photos(size.folder, job["split"], folder)
    own: list[Any] = [sys.executable, "-m", "benchmarks.peers"]
    if recipe in WITH_TORCH:
        features = scratch / "features.npz"
        run_measured([*own, "features", *size.network(), "--out", features])
        command = [torch_python, "-m", "benchmarks.peers_torch", recipe, "--features", features]
    else:
        command = [*own, recipe, "--epochs", size.epochs_run]
    outside = run_measured([*command, "--folder", folder, *size.network(), "--seed", job["seed"], "--out", out])
    found = json.loads(out.read_text())
    wanted = {} if recipe in WITH_TORCH else {"epochs_wanted": size.epochs}
    return {
        "seed": job["seed"],
        **outside,
        "epochs": found["epochs"],
        **wanted,
        "val_accuracy": found["val_accuracy"],
        "test_accuracy": found["test_accuracy"],
        "predicted": _numbers([found["predicted"][name] for name in held_out], class_names),
    }


def link_photos(data: Path, split: str, folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Make folders train/, val/ and test/ with class folders for the recipes, with links to the job's photos.

    Returns the names of the links of the held-out photos, in order, and the class names.
    """
    from job.sources.folders import FolderSource

    listing = FolderSource(data.resolve()).listing()
    if len(listing.entries) != len(split):
        raise SystemExit(f"{data} has changed since the job was measured on it: measure all parts again.")
    held_out = []
    folders = {letter: folder / name for name, letter in _LETTER.items()}
    for target in folders.values():
        for name in listing.class_names:
            (target / name).mkdir(parents=True)
    for number, (entry, letter) in enumerate(zip(listing.entries, split, strict=True)):
        if letter in folders:
            link = folders[letter] / str(entry.label) / f"{number:06d}{Path(entry.path).suffix.lower()}"
            link.symlink_to(data.resolve() / entry.path)
            if letter == _LETTER["test"]:
                held_out.append(link.name)
    return held_out, listing.class_names


def run_limit(size: Size, part: str, scratch: Path) -> Run:
    out = scratch / "result.json"
    command = [sys.executable, "-m", "benchmarks.limits", part, "--data", size.folder, *size.network(), *size.limits]
    outside = run_measured([*command, "--out", out])
    return {**outside, "rounds": json.loads(out.read_text())}


def measure(size: Size, parts: list[str], options: argparse.Namespace, file: Path) -> None:
    """Measure the parts in turn, and write file and table after each."""
    results = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "sizes": {}}
    runs: dict[str, dict[str, Run]] = results["sizes"].setdefault(size.name, {})
    for path in sorted(p for p in size.folder.rglob("*") if p.is_file()):
        path.read_bytes()  # Read the photos once, so that every part finds them in memory.
    for repetition in range(1 if size.once else options.repetitions):
        for part in parts:
            if repetition and part in _ONCE:
                continue
            with tempfile.TemporaryDirectory() as folder:
                os.sync()  # The writes of one part must not slow down the next.
                if part == "job":
                    run = run_job(size, repetition, options.settings, Path(folder))
                elif part in PEERS:
                    if str(repetition) not in runs.get("job", {}):
                        raise SystemExit(f"Recipe {part} needs the job's split: measure the job of {size.name} first.")
                    run = run_peer(size, part, runs["job"][str(repetition)], Path(folder), options.torch_python)
                else:
                    run = run_limit(size, part, Path(folder))
            stamp = {"measured": datetime.datetime.now().isoformat(timespec="minutes"), "revision": revision()}
            runs.setdefault(part, {})[str(repetition)] = {**stamp, **run}
            print(f"{size.name}, {part} {repetition}: {run['wall_s']:.1f} s wall, {run['cpu_s']:.1f} CPU s", flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=1) + "\n")
            file.with_suffix(".md").write_text(table(results))


def revision() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _numbers(labels: list[str], class_names: tuple[str, ...]) -> str:
    """Join class numbers into one string, because the JSON file would have a line for each number of a list."""
    number = {name: str(k) for k, name in enumerate(class_names)}
    return " ".join(number[label] for label in labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repetitions", type=int, default=3, help="of the job, of recipe a and of the limits; the others run once"
    )
    parser.add_argument(
        "--only", help="parts to measure, of job,a,b,c,d,e,forward,step,decode,limits; keeps the results of the others"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--large", action="store_true", help="also measure the large size, once, with two epochs per phase for peers"
    )
    which.add_argument("--only-large", action="store_true", help="measure only the large size")
    which.add_argument("--quick", action="store_true", help="only test that everything works: tiny-flowers, one epoch, once")
    parser.add_argument("--data", help="folder in ../shared/data to measure on")
    parser.add_argument("--settings", nargs="*", default=[], help="more section.key=value for the job")
    parser.add_argument(
        "--torch-python", help="Python of an environment with timm and fastai, for the parts d and e; see peers_torch.py"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the results; the table is written beside it")
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED} is missing: the benchmark needs real photos and weights.")
    peers = [peer for peer in PEERS if options.torch_python or peer not in WITH_TORCH]
    known = ["job", *peers, *limits.PARTS]
    words = (options.only or ",".join(known)).replace("limits", ",".join(limits.PARTS)).split(",")
    if unknown := set(words) - set(known):
        parser.error(f"--only {','.join(sorted(unknown))}: there are {','.join(known)},limits")
    name = f"side_by_side_{len(os.sched_getaffinity(0))}-core-cpu_{datetime.date.today()}.json"
    file = options.out or RESULTS / name
    if not options.only and not options.only_large:
        file.unlink(missing_ok=True)
    sizes = [QUICK] if options.quick else [LARGE] if options.only_large else [SMALL, *([LARGE] if options.large else [])]
    if options.data:
        sizes = [replace(size, name=f"{size.name}, {options.data}", data=options.data) for size in sizes]
    for size in sizes:
        measure(size, [part for part in known if part in words], options, file)
    print(file.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
