"""Faults in data that the job finds, on real photos with planted and natural faults. `make bench` runs it, too.

The faults are damaged and odd files (hostile), duplicates and leaks (flowers), planted wrong labels (trashnet, flowers,
tiny-flowers) and planted shortcuts (flowers). One process runs at a time. The result is a table in benchmarks/results/.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measured import ROOT, SHARED, WEIGHTS, machine
from job.data.examples import Examples
from job.data.neighbours import principal_components
from job.measure.probes import out_of_fold
from job.measure.shortcuts import shortcuts
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.sources.folders import FolderSource
from job.stages.intake import intake
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore
from tests.unit.watched import Watched

NATURAL = {
    "one photo, two classes": ("train/roses/15922772266_1167a06620.jpg", "train/tulips/15922772266_1167a06620.jpg"),
    "daisies across the split": ("10466290366", "10994032453"),
    "roses across the split": ("1775233884", "2093263381"),
}
PLANTED_SHARE, SEEDS = 0.05, (0, 1, 2)


def run_job(data: Path, out: Path, stop_after: str) -> None:
    settings = ("intake.image_size=160", "backbone.alpha=0.35", "augment.views=1")
    words = [word for s in settings for word in ("--set", s)]
    command = [sys.executable, "-m", "job", "run", "--data", data, "--out", out, "--weights", WEIGHTS, *words]
    subprocess.run([*map(str, command), "--stop-after", stop_after], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


def hostile(here: Path) -> list[str]:
    photos = here / "hostile"
    for folder in (SHARED / "data" / "hostile").iterdir():
        if folder.is_dir():
            shutil.copytree(folder, photos / folder.name)
    source = Watched(FolderSource(photos), here / "peaks")
    started = time.monotonic()
    config = IntakeConfig(image_size=160, max_quarantined_fraction=1, workers=1)
    context = Context(Workdir(here / "hostile-out"), Telemetry(None))
    examples = intake(config, source=source, listing=source.listing(), context=context).examples
    wall_s = time.monotonic() - started
    return [
        "## Odd files (`hostile`, one worker)",
        "",
        f"{len(examples):,} files in {wall_s:.1f} s: {dict(Counter(examples['status'].tolist()))}; "
        f"crashes and timeouts {sum('crashed' in r or 'took longer' in r for r in examples['reason'])}; "
        f"the decode process grew by {source.growth_mb():.0f} MB over an idle one.",
        "",
    ]


def leaks(out: Path) -> list[str]:
    before, after = (Examples.load(out / "stages" / stage / "examples.parquet") for stage in ("split", "audit"))
    lines = ["## Duplicates and leaks (`flowers`, natural)", "", "| Case | Found |", "|---|---|"]
    for case, names in NATURAL.items():
        rows = [k for k, path in enumerate(after["path"]) if any(name in path for name in names)]
        what = {f"{after['status'][k]}: {after['reason'][k]}" if after["reason"][k] else after["status"][k] for k in rows}
        lines.append(f"| {case} | {'; '.join(sorted(what))} |")
    used = np.isin(after["status"], ("used", "converted"))
    pairs = Counter(after["sha256"][used & (after["label"] == "sunflowers")].tolist())
    exact = sum(count == 2 for count in pairs.values())
    lines.append(f"| byte-identical pairs in train/sunflowers | {exact}, each in one group |")
    late = before["status"] != after["status"]
    lines += [
        "",
        f"The audit excluded {late.sum()} more photos as copies across splits:",
        "",
    ]
    lines += [f"- `{after['path'][k]}`: {after['reason'][k]}" for k in np.flatnonzero(late)]
    return [*lines, ""]


def _stores(out: Path) -> dict[str, str]:
    return json.loads((out / "stages/extract/extract.json").read_text())["stores"]


def wrong_labels(name: str, out: Path) -> list[str]:
    examples, features = (
        Examples.load(out / "stages/split/examples.parquet"),
        ArrayStore(out / "cache" / _stores(out)["features"]),
    )
    usable = examples.of()
    components = principal_components(features, examples["row"][usable], 256)
    labels, groups, num_classes = examples.labels[usable], examples["group"][usable], len(examples.class_names)
    lines = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        planted = rng.choice(len(labels), round(PLANTED_SHARE * len(labels)), replace=False)
        given = labels.copy()
        given[planted] = (labels[planted] + rng.integers(1, num_classes, len(planted))) % num_classes
        started = time.process_time()
        probabilities = out_of_fold(components, given, groups, num_classes, 5, 0, lambda: None)
        cpu_s = time.process_time() - started
        ranking = np.argsort(probabilities[np.arange(len(given)), given], kind="stable")
        found = np.isin(planted, ranking[: 2 * len(planted)]).mean()
        righted = (probabilities[planted].argmax(1) == labels[planted]).mean()
        lines.append(f"| {name} | {seed} | {len(planted)} | {found:.1%} | {righted:.1%} | {cpu_s:.1f} |")
    return lines


def told_by_files(name: str, out: Path, here: Path) -> list[str]:
    found = shortcuts(Examples.load(out / "stages/split/examples.parquet"), 0)
    lines = [_shortcut_row(name, found)]
    if name == "flowers":
        photos = here / "as-png"
        shutil.copytree(SHARED / "data" / "flowers" / "train", photos)
        for path in (photos / "tulips").iterdir():
            with Image.open(path) as photo:
                photo.resize((300, 300)).save(path.with_suffix(".png"))
            path.unlink()
        subprocess.run(
            [sys.executable, "-m", "job", "explore", "--data", photos, "--out", here / "as-png-out"],
            cwd=ROOT,
            check=True,
            stderr=subprocess.DEVNULL,
        )
        planted = shortcuts(Examples.load(here / "as-png-out" / "examples.parquet"), 0)
        lines.append(_shortcut_row("flowers, tulips saved as PNG at 300 x 300", planted))
    return lines


def _shortcut_row(name: str, found: dict) -> str:
    warned = [fact["fact"] for fact in found["facts"] if fact["warning"]]
    best = max(found["facts"], key=lambda fact: fact["accuracy"])
    low, high = found["file"]["accuracy_ci95"]
    return (
        f"| {name} | {found['largest_class']:.3f} | {found['file']['accuracy']:.3f} ({low:.3f} to {high:.3f}) "
        f"| {best['fact']} {best['accuracy']:.3f} | {', '.join(warned) or 'none'} |"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED} is missing: the benchmark needs real photos and weights.")
    lines = [f"# What is found in the data, {datetime.date.today()}", "", machine(), ""]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        lines += hostile(here)
        for name in ("flowers", "trashnet", "tiny-flowers"):
            run_job(SHARED / "data" / name, here / name, "audit" if name == "flowers" else "extract")
        lines += leaks(here / "flowers")
        lines += ["## Wrong labels (5% of the labels moved to a wrong class)", ""]
        lines += [
            "| Data | Seed | Planted | Within twice as many rows | Right class suggested | CPU s |",
            "|---|---|---|---|---|---|",
        ]
        for name in ("flowers", "trashnet", "tiny-flowers"):
            lines += wrong_labels(name, here / name)
        lines += ["", "## Shortcuts", "", "| Data | Largest class | All file facts | Best single fact | Warning |"]
        lines += ["|---|---|---|---|---|"]
        for name in ("flowers", "trashnet", "tiny-flowers"):
            lines += told_by_files(name, here / name, here)
    result = ROOT / "benchmarks" / "results" / f"data_quality_2-core-cpu_{datetime.date.today()}.md"
    result.write_text("\n".join([*lines, ""]))
    print(result.read_text())


if __name__ == "__main__":
    main()
