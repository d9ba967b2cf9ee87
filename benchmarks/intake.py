"""Time and memory of intake by the number of photos, beside bare decoding: 5,000 to 60,000 small pictures.

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
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measured import ROOT, machine, median_and_spread

FLOWERS = ROOT.parent / "shared" / "data" / "flowers"
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
    from job.decoding.decode import decode
    from job.decoding.rules import DecodeRules
    from job.sections import IntakeConfig

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
    from job.decoding import processes as workers
    from job.runtime.context import Context
    from job.runtime.telemetry import Telemetry
    from job.sections import IntakeConfig
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


def _now_mb(field: str, process: int | str = "self") -> float:
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


# The driver.


def bare(folder: Path) -> Numbers:
    commands = [
        [sys.executable, "-m", "benchmarks.intake", "--part", "bare", str(folder), str(k)] for k in range(NUM_PROCESSES)
    ]
    loops = [subprocess.Popen(c, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for c in commands]
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
    command = [sys.executable, "-m", "benchmarks.intake", "--part", "intake", str(folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT)
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


def measure(scratch: Path, sizes: list[int], num_rounds: list[int]) -> list[str]:
    crops = make_crops(scratch / f"{max(sizes)}", max(sizes))
    rounds: dict[int, list[tuple[Numbers, Numbers]]] = {size: [] for size in sizes}
    for size, rounds_here in zip(sizes, num_rounds, strict=True):
        folder = scratch / f"{size}" if size == max(sizes) else subset(crops, scratch / f"{size}", size)
        for _ in range(rounds_here):
            with tempfile.TemporaryDirectory(dir=scratch) as out:
                os.sync()  # Earlier writes must not slow this part down.
                for crop in crops[:size]:  # Read the files once, so that both ways find them in memory.
                    crop.read_bytes()
                rounds[size].append((bare(folder), real(folder, Path(out))))
            loop, job = rounds[size][-1]
            print(f"{size:,}: {loop['wall_s'] / job['wall_s']:.3f} {loop} {job}", file=sys.stderr, flush=True)
    return intake_table(sizes, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[5_000, 20_000, 60_000])
    parser.add_argument("--rounds", nargs="+", type=int, default=[5, 5, 3], help="number of rounds for each size")
    parser.add_argument("--part", nargs="+", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.part:
        parts = {"bare": bare_part, "intake": intake_part}
        print(json.dumps(parts[options.part[0]](*options.part[1:])), flush=True)
        return
    if not FLOWERS.is_dir():
        raise SystemExit(f"{FLOWERS} is missing: the benchmark needs real photos.")
    num_cores = len(os.sched_getaffinity(0))
    lines = ["# Intake", ""]
    lines += [f"{machine()}, {datetime.date.today()}.", ""]
    lines += [
        f"`python -m benchmarks.intake {' '.join(sys.argv[1:])}`".replace(" `", "`") + f": {CROP_PX} px crops of flowers,"
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
    file = folder / f"intake_{num_cores}-core-cpu_{datetime.date.today()}.md"
    file.write_text("\n".join(lines) + "\n")
    print(file)


if __name__ == "__main__":
    main()
