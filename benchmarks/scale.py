"""Time and memory of intake, duplicates, neighbours and head by the number of photos: 5,000 to 60,000 small pictures.

Crops of ../shared/data/flowers (128 x 128, JPEG quality 85, seeded) are decoded in two ways, which take turns for several
rounds. The bare loop is two processes that each read half of the files and only call job.decoding.decode.decode. The other
way is the real intake, in a fresh process with a fresh output directory. Both are timed after the imports. The intake is
timed from the listing and the start of its workers to the published table and store.
"""

import argparse
import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent

FLOWERS = ROOT.parent / "shared" / "data" / "flowers"
HEADS = ((5_000, 10), (60_000, 10), (3_600, 600), (20_000, 1_000))  # Numbers of photos and of classes.
CROP_PX, IMAGE_SIZE, NUM_CLASSES, NUM_PROCESSES = 128, 96, 5, 2

Numbers = dict[str, Any]


def make_crops(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Make about the same number of crops from each photo. Crop k is in class folder k mod 5."""
    rng = np.random.default_rng(seed)
    photos = sorted(FLOWERS.rglob("*.jpg"))
    crops = [folder / f"class-{k % NUM_CLASSES}" / f"crop-{k:06d}.jpg" for k in range(count)]
    for number in range(NUM_CLASSES):
        (folder / f"class-{number}").mkdir(parents=True)
    for number, path in enumerate(photos):
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        for crop in crops[number :: len(photos)]:
            left, top = (int(rng.integers(0, max(1, side - CROP_PX))) for side in photo.size)
            photo.crop((left, top, left + CROP_PX, top + CROP_PX)).save(crop, quality=85)
    return crops


def subset(crops: list[Path], folder: Path, count: int) -> Path:
    """Make a folder with the first crops."""
    for crop in crops[:count]:
        link = folder / crop.parent.name / crop.name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(crop, link)
    return folder


# The parts. Each runs in its own process and prints one line of JSON.


def bare_part(folder: str, part: str) -> Numbers:
    """Read and decode every second file, after a line has arrived on standard input."""
    from job.config import IntakeConfig
    from job.decoding.decode import DecodeRules, decode

    config = IntakeConfig(image_size=IMAGE_SIZE)
    rules = DecodeRules(**{name: getattr(config, name) for name in DecodeRules.__dataclass_fields__})
    paths = sorted(map(str, Path(folder).rglob("*.jpg")))[int(part) :: NUM_PROCESSES]
    print("ready", flush=True)
    sys.stdin.readline()
    cpu_s = time.process_time()
    for path in paths:
        with open(path, "rb") as file:
            decode(file.read(), rules)
    return {"cpu_s": time.process_time() - cpu_s, "photos": len(paths)}


def intake_part(folder: str, out: str) -> Numbers:
    from job.config import IntakeConfig
    from job.decoding import processes as workers
    from job.runtime.context import Context
    from job.runtime.telemetry import Telemetry
    from job.sources.folders import FolderSource
    from job.stages.intake import intake
    from job.storage.workdir import Workdir

    first_news: list[float] = []
    receive = workers._Worker.receive

    def timed_receive(self: Any) -> Any:
        first_news.append(time.monotonic())
        workers._Worker.receive = receive  # type: ignore[method-assign]
        return receive(self)

    workers._Worker.receive = timed_receive  # type: ignore[method-assign]
    telemetry = Telemetry(None, open(os.devnull, "w"))  # noqa: SIM115
    at_start_mb, cpu_s, started = _now_mb("VmRSS"), time.process_time(), time.monotonic()
    source = FolderSource(Path(folder))
    listing = source.listing()
    listed = time.monotonic()
    found = intake(
        IntakeConfig(image_size=IMAGE_SIZE, workers=NUM_PROCESSES),
        source=source,
        listing=listing,
        context=Context(Workdir(Path(out)), telemetry),
    )
    ended = time.monotonic()
    assert len(found.images) == len(listing.entries) and set(found.examples["status"]) <= {"used"}
    return {
        "wall_s": ended - started,
        "listing_s": listed - started,
        "first_news_s": first_news[0] - listed,
        "main_cpu_s": time.process_time() - cpu_s,
        "workers_cpu_s": telemetry.decoders_cpu_s,
        "main_growth_mb": _now_mb("VmHWM") - at_start_mb,
    }


def split_part(out: str) -> Numbers:
    """Find copies as the split stage does, among the photos that intake left in `out`."""
    from job.data.duplicates import confirmed, group_ids, near_pairs
    from job.runtime.context import Context
    from job.runtime.telemetry import Telemetry
    from job.stages.intake import Intake
    from job.storage.workdir import Workdir

    found = Intake.load(Context(Workdir(Path(out)), Telemetry(None)))
    usable = found.examples.of()
    numbers: Numbers = {"before_mb": _now_mb("VmRSS")}
    pairs = _timed(
        numbers, "near_pairs", lambda: near_pairs(found.examples["phash"][usable], 4, found.examples["brightness"][usable])
    )
    rows = found.examples["row"][usable][pairs]
    same = _timed(numbers, "confirmed", lambda: confirmed(rows, found.images))
    groups = _timed(numbers, "group_ids", lambda: group_ids(len(usable), pairs[same]))
    grown_mb = _now_mb("VmHWM") - numbers["before_mb"]
    return {
        **numbers,
        "pairs": len(pairs),
        "copies": int(same.sum()),
        "groups": len(np.unique(groups)),
        "grown_mb": grown_mb,
    }


def nearest_part(count: str) -> Numbers:
    """Run neighbours.nearest on clustered unit vectors of 256 dimensions, of which one in ten is a near copy of another."""
    from job.data.neighbours import nearest

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 256))
    vectors = (centres[rng.integers(0, 100, int(count))] + rng.normal(size=(int(count), 256))).astype(np.float32)
    copies = np.arange(0, int(count), 10)
    vectors[copies] = vectors[copies + 1] + rng.normal(0, 0.05, (len(copies), 256)).astype(np.float32)
    numbers: Numbers = {"before_mb": _now_mb("VmRSS")}
    found = _timed(numbers, "nearest", lambda: nearest(vectors, 10))
    share = float((found.position_NM[copies, 0] == copies + 1).mean())
    return {**numbers, "copies_found": share, "grown_mb": _now_mb("VmHWM") - numbers["before_mb"]}


def head_part(count: str, num_classes: str) -> Numbers:
    """Run the stage head and the predictions of audit on Gaussian classes of 1,280 features, without augmented views."""
    from job.config import HeadConfig
    from job.data.examples import Examples
    from job.data.neighbours import principal_components
    from job.measure.probes import out_of_fold
    from job.runtime.context import Context
    from job.runtime.telemetry import Telemetry
    from job.stages.head import SUMMARY, head
    from job.storage.workdir import Workdir
    from job.stores.arrays import StoreWriter
    from job.stores.views import StoredViews
    from job.train.checkpoint import Checkpoints

    num, classes, rng = int(count), int(num_classes), np.random.default_rng(0)
    labels, names = np.arange(num) % classes, [f"{k:04d}" for k in range(classes)]
    splits = np.asarray(["train", "train", "train", "train", "val", "test"])[np.arange(num) // classes % 6]
    shown = {"path": [f"{k}.jpg" for k in range(num)], "label": [names[k] for k in labels], "split": splits.tolist()}
    zeros = dict.fromkeys(("width", "height", "num_bytes", "phash", "brightness", "contrast", "has_exif"), [0] * num)
    shown |= zeros | {"status": ["used"] * num, "row": list(range(num)), "sha256": [f"{k:064x}" for k in range(num)]}
    examples = Examples.from_columns(shown, names)
    with tempfile.TemporaryDirectory() as folder:
        writer, centres = StoreWriter(Path(folder) / "store", (1280,), "float32"), 0.15 * rng.normal(size=(classes, 1280))
        keys = [str(row) for row in range(num)]
        for start in range(0, num, writer.max_rows):
            part = labels[start : start + writer.max_rows]
            writer.write(
                keys[start : start + len(part)], (centres[part] + rng.normal(size=(len(part), 1280))).astype(np.float32)
            )
        store = writer.finish(keys)
        features = StoredViews(store, None, np.flatnonzero(splits == "train"), 1)
        context = Context(Workdir(Path(folder) / "out"), Telemetry(None, open(os.devnull, "w")))  # noqa: SIM115
        numbers: Numbers = {"before_mb": _now_mb("VmRSS")}
        checkpoints = Checkpoints(context, "head", {})
        _timed(
            numbers,
            "head",
            lambda: head(HeadConfig(), examples=examples, features=features, checkpoints=checkpoints, context=context),
        )
        numbers["grown_mb"] = _now_mb("VmHWM") - numbers["before_mb"]
        components = principal_components(store, np.arange(num), 256)
        _timed(numbers, "folds", lambda: out_of_fold(components, labels, np.arange(num), classes, 5, 0, lambda: None))
        return {**numbers, "chosen": context.workdir.read_json(SUMMARY)["chosen"]}


def _timed(numbers: Numbers, name: str, work: Callable[[], Any]) -> Any:
    wall_s, cpu_s = time.monotonic(), time.process_time()
    result = work()
    numbers[f"{name}_s"], numbers[f"{name}_cpu_s"] = time.monotonic() - wall_s, time.process_time() - cpu_s
    return result


def _now_mb(field: str, process: int | str = "self") -> float:
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


# The driver.


def bare(folder: Path) -> Numbers:
    commands = [[sys.executable, __file__, "--part", "bare", str(folder), str(k)] for k in range(NUM_PROCESSES)]
    loops = [subprocess.Popen(c, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for c in commands]
    for loop in loops:
        assert loop.stdout and loop.stdout.readline() == "ready\n"
    started = time.monotonic()
    for loop in loops:
        assert loop.stdin
        loop.stdin.write("go\n")
        loop.stdin.flush()
    numbers = [json.loads(loop.stdout.readline()) for loop in loops if loop.stdout]
    wall_s = time.monotonic() - started
    for loop in loops:
        loop.communicate()
    return {"wall_s": wall_s, "cpu_s": sum(n["cpu_s"] for n in numbers)}


def real(folder: Path, out: Path) -> Numbers:
    """Run the intake, and measure the memory of its workers from outside."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--part", "intake", str(folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    first_mb: dict[str, float] = {}
    most_mb: dict[str, float] = {}
    while process.poll() is None:
        for pid in _session(process.pid):
            try:
                first_mb.setdefault(pid, _now_mb("VmRSS", pid))
                most_mb[pid] = _now_mb("VmHWM", pid)
            except OSError:
                continue
        time.sleep(0.2)
    assert process.returncode == 0 and process.stdout
    numbers: Numbers = json.loads(process.stdout.read())
    numbers["process_wall_s"] = time.monotonic() - started
    numbers["worker_growth_mb"] = max(most_mb[pid] - first_mb[pid] for pid in most_mb)
    numbers["worker_peak_mb"] = max(most_mb.values())
    return numbers


def _session(leader: int) -> list[str]:
    """Return the processes of a session without its leader."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and status.parent.name != str(leader):
            found.append(status.parent.name)
    return found


def part(*arguments: object) -> Numbers:
    command = [sys.executable, __file__, "--part", *map(str, arguments)]
    numbers: Numbers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return numbers


def median_and_spread(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def exponent(sizes: list[int], seconds: list[float]) -> str:
    """Return k such that the time grows like (number of photos)^k, between neighbouring sizes and from first to last."""
    pairs = [*zip(range(len(sizes) - 1), range(1, len(sizes)), strict=True), (0, len(sizes) - 1)]
    powers = [math.log(seconds[b] / seconds[a]) / math.log(sizes[b] / sizes[a]) for a, b in pairs if b > a]
    return ", ".join(f"{p:.2f}" for p in powers[:-1]) + f"; {powers[-1]:.2f} overall" if powers else "-"


def intake_table(sizes: list[int], rounds: dict[int, list[tuple[Numbers, Numbers]]]) -> list[str]:
    lines = [
        "## Intake",
        "",
        "Medians of the rounds, lowest to highest in brackets. The ratio is photos/s of intake to those of the bare loop of",
        "the same round; the CPU ratio is the bare loop's CPU seconds over all of intake's, which others at work sway less.",
        "`cold start`: from the end of the listing to the first word of a worker, part of intake's seconds.",
        "`main over start`: peak memory of intake's process over that before the listing; `worker`: peak of the largest.",
        "",
        "| photos | bare photos/s | intake photos/s | ratio | CPU ratio | bare wall s | intake wall s | bare CPU s "
        "| intake CPU s: workers | main | listing s | cold start s | main over start MB | worker MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        loops, intakes = zip(*rounds[size], strict=True)
        ratios = [b["wall_s"] / i["wall_s"] for b, i in rounds[size]]

        def middle(runs: tuple[Numbers, ...], name: str, digits: int = 1) -> str:
            return f"{statistics.median(r[name] for r in runs):,.{digits}f}"

        cells = [
            f"{size:,}",
            *(median_and_spread([size / r["wall_s"] for r in runs], 0) for runs in (loops, intakes)),
            median_and_spread(ratios, 3),
            median_and_spread([b["cpu_s"] / (i["workers_cpu_s"] + i["main_cpu_s"]) for b, i in rounds[size]], 3),
            middle(loops, "wall_s"),
            middle(intakes, "wall_s"),
            middle(loops, "cpu_s"),
            middle(intakes, "workers_cpu_s"),
            middle(intakes, "main_cpu_s"),
            *(middle(intakes, name, 2) for name in ("listing_s", "first_news_s")),
            *(middle(intakes, name, 0) for name in ("main_growth_mb", "worker_peak_mb")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seconds = [statistics.median(i["wall_s"] for _, i in rounds[size]) for size in sizes]
    return [*lines, "", f"Growth of intake's wall seconds with the count, as an exponent: {exponent(sizes, seconds)}.", ""]


def growth_table(title: str, about: str, runs: dict[int, Numbers], timed: list[str], counted: list[str]) -> list[str]:
    head = ["photos", *(f"{name} s" for name in timed), *counted]
    lines = [f"## {title}", "", about, "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for size, numbers in runs.items():
        cells = [f"{size:,}", *(f"{numbers[f'{name}_s']:.2f}" for name in timed)]
        cells += [f"{numbers[name]:,.3g}" if isinstance(numbers[name], float) else f"{numbers[name]:,}" for name in counted]
        lines.append("| " + " | ".join(cells) + " |")
    powers = [f"{name} {exponent(list(runs), [n[f'{name}_s'] for n in runs.values()])}" for name in timed]
    return [*lines, "", "Exponents of growth: " + ". ".join(powers) + ".", ""]


def head_table(runs: dict[tuple[int, int], Numbers]) -> list[str]:
    lines = [
        "## Head",
        "",
        "The stage head and the out-of-fold predictions of audit, CPU seconds, on Gaussian classes of 1,280 features; two",
        "thirds of the photos are trained on. `grown`: peak memory of the stage head over that before it.",
        "",
        "| photos | classes | head CPU s | chosen | grown MB | out of fold CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for (count, classes), n in runs.items():
        cells = [f"{count:,}", f"{classes:,}", f"{n['head_cpu_s']:.1f}", n["chosen"], f"{n['grown_mb']:,.0f}"]
        lines.append("| " + " | ".join([*cells, f"{n['folds_cpu_s']:.1f}"]) + " |")
    return [*lines, ""]


def measure(scratch: Path, sizes: list[int], num_rounds: list[int]) -> list[str]:
    crops = make_crops(scratch / f"{max(sizes)}", max(sizes))
    rounds: dict[int, list[tuple[Numbers, Numbers]]] = {size: [] for size in sizes}
    splits: dict[int, Numbers] = {}
    for size, rounds_here in zip(sizes, num_rounds, strict=True):
        folder = scratch / f"{size}" if size == max(sizes) else subset(crops, scratch / f"{size}", size)
        for _ in range(rounds_here):
            with tempfile.TemporaryDirectory(dir=scratch) as out:
                os.sync()  # Earlier writes must not slow this part down.
                for crop in crops[:size]:  # Read the files once, so that both ways find them in memory.
                    crop.read_bytes()
                rounds[size].append((bare(folder), real(folder, Path(out))))
                if size not in splits:
                    splits[size] = part("split", out)
            loop, job = rounds[size][-1]
            print(f"{size:,}: {loop['wall_s'] / job['wall_s']:.3f} {loop} {job}", file=sys.stderr, flush=True)
    neighbours = {size: part("nearest", size) for size in sizes}
    about_split = (
        "What split does about copies with the table and the store of the intake: `pairs` are near in hash, `copies`"
    )
    about_nearest = "job.data.neighbours.nearest, 10 neighbours of 256-dimensional vectors in 100 clusters; `copies_found`:"
    return [
        *intake_table(sizes, rounds),
        *growth_table(
            "Duplicates",
            f"{about_split} of them on pixels as well.",
            splits,
            ["near_pairs", "confirmed", "group_ids"],
            ["pairs", "copies", "groups", "grown_mb"],
        ),
        *growth_table(
            "Neighbours",
            f"{about_nearest} share of the planted copies whose original comes first.",
            neighbours,
            ["nearest"],
            ["copies_found", "grown_mb"],
        ),
        *head_table({size: part("head", *size) for size in HEADS}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[5_000, 20_000, 60_000])
    parser.add_argument("--rounds", nargs="+", type=int, default=[5, 5, 3], help="number of rounds for each size")
    parser.add_argument("--part", nargs="+", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.part:
        parts = {"bare": bare_part, "intake": intake_part, "split": split_part, "nearest": nearest_part, "head": head_part}
        print(json.dumps(parts[options.part[0]](*options.part[1:])), flush=True)
        return
    if not FLOWERS.is_dir():
        raise SystemExit(f"{FLOWERS} is missing: the benchmark needs real photos.")
    from benchmarks.measured import machine  # Here, because the parts run as a script, without the package.

    num_cores = len(os.sched_getaffinity(0))
    lines = ["# Scale: intake, duplicates, neighbours, head", ""]
    lines += [f"{machine()}, {datetime.date.today()}.", ""]
    lines += [
        f"`python -m benchmarks.scale {' '.join(sys.argv[1:])}`".replace(" `", "`") + f": {CROP_PX} px crops of flowers,"
    ]
    lines += [
        f"stored at {IMAGE_SIZE} px, {NUM_PROCESSES} processes on each side; rounds: {', '.join(map(str, options.rounds))}.",
        "",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        lines += measure(Path(scratch), options.sizes, options.rounds)
    print("\n".join(lines))
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"scale_{num_cores}-core-cpu_{datetime.date.today()}.md"
    file.write_text("\n".join(lines) + "\n")
    print(file)


if __name__ == "__main__":
    main()
