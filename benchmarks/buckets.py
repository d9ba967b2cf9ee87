"""Speed of reading photos from a bucket with 30 ms latency: `python -m benchmarks.buckets`.

The emulator of the tests holds 1,000 crops of ../shared/data/flowers (96 x 96, JPEG quality 92, about 5 kB). It delays each
answer by 30 ms and runs on the same two cores. The crops are read in three ways: 60 of them by a sequential loop, as in the
documentation of google-cloud-storage; all by the job's source in one process; and all by the whole intake in a fresh process
with two decode processes, timed from the listing to the published table. The same intake from a local folder is the limit
that decoding sets.
"""

import argparse
import datetime
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from benchmarks.measured import SHARED, machine
from job.sources.buckets import BucketSource
from job.sources.fetch import THREADS
from job.sources.open import open_source
from job.storage.bucket.objects import is_remote
from job.storage.bucket.open import open_objects
from tests.clouds.fixtures import GoogleBed, environment, started

ROOT = Path(__file__).parent.parent
FLOWERS = SHARED / "data" / "flowers"
LATENCY_S, NUM_PHOTOS, NUM_IN_LOOP, NUM_PROCESSES = 0.03, 1000, 60, 2
CROP_PX, QUALITY = 96, 92
WANTED = 15  # The goal: this many times the rate of the sequential loop.
THREADS_TRIED = (4, 8, 16, 32, 48)

Numbers = dict[str, float]


def loop(uri: str) -> Numbers:
    """Read one object after the other, as in the documentation of google-cloud-storage."""
    from google.cloud.storage import Client

    bucket_name, _, prefix = uri.partition("://")[2].partition("/")
    bucket = Client(project="none").bucket(bucket_name)
    names = [f"{prefix}/{entry.path}" for entry in open_source(uri).listing().entries[: NUM_IN_LOOP + 1]]
    bucket.blob(names.pop()).download_as_bytes()  # The first one opens the connection.
    begun = _now()
    for name in names:
        bucket.blob(name).download_as_bytes()
    return _since(begun, len(names))


def one_process(uri: str, threads: int) -> Numbers:
    source = _source(uri, threads)
    source.prepare()
    entries = source.listing().entries
    begun = _now()
    assert all(isinstance(payload, bytes) for payload in source.read(entries))
    return _since(begun, len(entries))


def intake(data: str, threads: int) -> Numbers:
    """Run `intake_part` in a fresh process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "benchmarks.buckets", "--intake", data, out, str(threads)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def intake_part(data: str, out: str, threads: str) -> Numbers:
    from job.runtime.context import Context
    from job.runtime.telemetry import Telemetry
    from job.sections import IntakeConfig
    from job.stages.intake import intake
    from job.storage.workdir import Workdir

    telemetry = Telemetry(None, open(os.devnull, "w"))  # noqa: SIM115
    context = Context(Workdir(Path(out)), telemetry)
    begun = _now()
    source = _source(data, int(threads)) if is_remote(data) else open_source(data)
    listing = source.listing()
    listed_s = time.monotonic() - begun[0]
    config = IntakeConfig(image_size=CROP_PX, workers=NUM_PROCESSES)
    found = intake(config, source=source, listing=listing, context=context)
    assert len(found.images) == len(listing.entries) and set(found.examples["status"]) == {"used"}
    return {**_since(begun, len(listing.entries), telemetry.decoders_cpu_s), "listed_s": listed_s}


def _source(uri: str, threads: int) -> BucketSource:
    return BucketSource(open_objects(uri, connections=threads), threads=threads)


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _since(begun: tuple[float, float], num_photos: int, decoders_cpu_s: float = 0.0) -> Numbers:
    wall_s, cpu_s = (now - before for now, before in zip(_now(), begun, strict=True))
    return {
        "photos_per_s": num_photos / wall_s,
        "cpu_ms": (cpu_s + decoders_cpu_s) / num_photos * 1000,
        "wall_s": wall_s,
    }


@contextmanager
def emulator() -> Iterator[tuple[GoogleBed, str, Path]]:
    """Yield the emulator, the URI of the photos in it, and a folder with the same photos."""
    with tempfile.TemporaryDirectory() as scratch, started("tests.clouds.google") as url:
        bed = GoogleBed(url)
        uri = f"{bed.bucket()}/photos"
        for name, payload in crops():
            file = Path(scratch) / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(payload)
            bed.put(f"{uri}/{name}", payload)
        with environment(bed.environment), bed.faults(latency_s=LATENCY_S):
            yield bed, uri, Path(scratch)


def crops() -> Iterator[tuple[str, bytes]]:
    """Return the bytes of each crop by its name in five class folders. Crops are from the middle and corners of photos."""
    photos = sorted(FLOWERS.rglob("*.jpg"))
    for number in range(NUM_PHOTOS):
        turn, which = divmod(number, len(photos))
        with Image.open(photos[which]) as photo:
            right, bottom = photo.width - CROP_PX, photo.height - CROP_PX
            left, top = [(right // 2, bottom // 2), (0, 0), (right, 0), (0, bottom), (right, bottom)][turn]
            buffer = io.BytesIO()
            photo.convert("RGB").crop((left, top, left + CROP_PX, top + CROP_PX)).save(buffer, "JPEG", quality=QUALITY)
        yield f"class-{number % 5}/{number:04d}.jpg", buffer.getvalue()


def measure(rounds: int) -> tuple[list[str], float]:
    """Return the lines of the report, and the rate of the intake as a multiple of the loop's rate."""
    found: dict[str, list[Numbers]] = {}
    with emulator() as (_, uri, folder):
        mean_kb = statistics.mean(file.stat().st_size for file in folder.rglob("*.jpg")) / 1000
        cases: dict[str, Callable[[], Numbers]] = {"loop": lambda: loop(uri)}
        for threads in THREADS_TRIED:
            cases[f"one process, {threads} threads"] = lambda threads=threads: one_process(uri, threads)
        for threads in THREADS_TRIED:
            cases[f"intake, 2 x {threads} threads"] = lambda threads=threads: intake(uri, threads)
        cases["intake of the local folder"] = lambda: intake(str(folder), 1)
        for _ in range(rounds):
            for what, work in cases.items():
                found.setdefault(what, []).append(work())
                print(what, json.dumps(found[what][-1]), flush=True)
    per_s = {what: statistics.median(n["photos_per_s"] for n in numbers) for what, numbers in found.items()}
    lines = ["| what | photos/s | times the loop | CPU ms a photo | seconds |", "|---|---|---|---|---|"]
    for what, numbers in found.items():
        rates = [n["photos_per_s"] for n in numbers]
        cells = [what, f"{per_s[what]:.0f} ({min(rates):.0f} to {max(rates):.0f})", f"{per_s[what] / per_s['loop']:.1f}"]
        cells += [f"{statistics.median(n[key] for n in numbers):.2f}" for key in ("cpu_ms", "wall_s")]
        lines.append(f"| {' | '.join(cells)} |")
    listed_s = statistics.median(n["listed_s"] for n in found[f"intake, 2 x {THREADS} threads"])
    lines += ["", f"{mean_kb:.1f} kB a photo; the listing takes {listed_s:.2f} s of an intake from the bucket."]
    return lines, per_s[f"intake, 2 x {THREADS} threads"] / per_s["loop"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--intake", nargs=3, help="used by the benchmark itself")
    options = parser.parse_args()
    if options.intake:
        print(json.dumps(intake_part(*options.intake)))
        return
    if not FLOWERS.is_dir():
        raise SystemExit(f"{FLOWERS} is missing: the benchmark needs real photos.")
    rows, times = measure(options.rounds)
    lines = ["# Photos in a bucket 30 ms away", "", f"{machine()}, {datetime.date.today()}.", ""]
    lines += [f"`python -m benchmarks.buckets`, {options.rounds} rounds, medians, lowest to highest in brackets.", ""]
    lines += [line for line in (__doc__ or "").splitlines()[2:] if line] + ["", *rows]
    lines += [f"Goal: {WANTED} times the loop. The intake with {THREADS} threads per process: {times:.1f} times.", ""]
    print("\n".join(lines))
    file = ROOT / "benchmarks" / "results" / f"buckets_{len(os.sched_getaffinity(0))}-core-cpu_{datetime.date.today()}.md"
    file.write_text("\n".join(lines))
    print(file)


if __name__ == "__main__":
    main()
