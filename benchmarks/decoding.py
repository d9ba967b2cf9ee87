"""CPU time of intake compared with bare libjpeg-turbo on the same bytes: `python -m benchmarks.decoding`.

Photos of ../shared/data/flowers are resized to 256x192, 500x375 and 4000x3000 (JPEG quality 90, 4:2:0). The bare loop only
calls `simplejpeg.decode_jpeg`, which scales during decoding as far as the stored size allows. It is compared with the job's
decoder and SHA-256 in this process, and with the real intake in a fresh process with one worker.
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
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import simplejpeg
from PIL import Image

ROOT = Path(__file__).parent.parent
FLOWERS = ROOT.parent / "shared" / "data" / "flowers"
PHOTOS = {(256, 192): 400, (500, 375): 400, (4000, 3000): 60}  # Width and height: number of photos.
STORED_PX = (160, 224)


@dataclass(frozen=True)
class Row:
    """CPU milliseconds per photo, for each round.

    `start_ms` is the fixed cost of an intake in CPU milliseconds. `job_ms` does not include it.
    """

    what: str
    size: tuple[int, int]
    stored_px: int
    photos: int
    bare_ms: list[float]
    job_ms: list[float]
    start_ms: float = 0.0

    @property
    def ratios(self) -> list[float]:
        return [bare / job for bare, job in zip(self.bare_ms, self.job_ms, strict=True)]


def measure(rounds: int = 7) -> list[Row]:
    """Measure all sizes. This takes some minutes on one core. Raises: FileNotFoundError, if the photos are missing."""
    rows = []
    for size, count in PHOTOS.items():
        photos = make_photos(size, count)
        with tempfile.TemporaryDirectory() as scratch:
            few, all_of_them = _folder(Path(scratch) / "few", photos[:2]), _folder(Path(scratch) / "all", photos)
            for stored_px in STORED_PX:
                sample = photos[:60]
                bare, job = _bare(stored_px), _digest_and_decode(stored_px)
                pairs = [(_cpu_ms(bare, sample), _cpu_ms(job, sample)) for _ in range(rounds)]
                rows.append(Row("decoder", size, stored_px, len(sample), *map(list, zip(*pairs, strict=True))))
                start_ms = statistics.median(_intake_cpu_ms(few, stored_px) for _ in range(3))
                pairs = [(_cpu_ms(bare, photos), _intake_cpu_ms(all_of_them, stored_px)) for _ in range(rounds)]
                loops, intakes = zip(*pairs, strict=True)
                intake_ms = [(total - start_ms) / count for total in intakes]
                rows.append(Row("intake", size, stored_px, count, list(loops), intake_ms, start_ms))
    return rows


def make_photos(size: tuple[int, int], count: int) -> list[bytes]:
    paths = sorted(FLOWERS.rglob("*.jpg"))
    if len(paths) < count:
        raise FileNotFoundError(f"{FLOWERS}: {len(paths)} photos, and the benchmark needs {count} real ones.")
    photos = []
    for path in paths[:: len(paths) // count][:count]:
        with Image.open(path) as opened:
            resized = opened.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        resized.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
        photos.append(buffer.getvalue())
    return photos


def _folder(folder: Path, photos: list[bytes]) -> Path:
    for number, photo in enumerate(photos):
        path = folder / f"class-{number % 2}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo)
    return folder


def _bare(stored_px: int) -> Callable[[bytes], object]:
    return lambda payload: simplejpeg.decode_jpeg(payload, "RGB", min_width=stored_px, min_height=stored_px)


def _digest_and_decode(stored_px: int) -> Callable[[bytes], object]:
    from job.decoding.decode import decode
    from job.decoding.rules import DecodeRules
    from job.sections import IntakeConfig

    config = IntakeConfig(image_size=stored_px)
    rules = DecodeRules(**{name: getattr(config, name) for name in DecodeRules.__dataclass_fields__})
    return lambda payload: (sha256(payload).hexdigest(), decode(payload, rules))


def _cpu_ms(work: Callable[[bytes], object], photos: list[bytes]) -> float:
    """Return CPU milliseconds per photo."""
    started = time.process_time()
    for photo in photos:
        work(photo)
    return (time.process_time() - started) / len(photos) * 1000


def _intake_cpu_ms(folder: Path, stored_px: int) -> float:
    """Return CPU milliseconds of a whole intake: main process and worker, without the start of Python."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        command = [sys.executable, "-m", "benchmarks.decoding", "--intake", folder, out, stored_px]
        process = subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True, text=True)
    return float(json.loads(process.stdout)["cpu_ms"])


def _intake(folder: str, out: str, stored_px: str) -> float:
    from job.runtime.context import Context
    from job.runtime.telemetry import Telemetry
    from job.sections import IntakeConfig
    from job.sources.folders import FolderSource
    from job.stages.intake import intake
    from job.storage.workdir import Workdir

    telemetry = Telemetry(None, open(os.devnull, "w"))  # noqa: SIM115
    config = IntakeConfig(image_size=int(stored_px), workers=1)
    started = time.process_time()
    source = FolderSource(Path(folder))
    listing = source.listing()
    found = intake(config, source=source, listing=listing, context=Context(Workdir(Path(out)), telemetry))
    assert len(found.images) == len(listing.entries) and set(found.examples["status"]) <= {"used"}
    return (time.process_time() - started + telemetry.decoders_cpu_s) * 1000


def table(rows: list[Row]) -> list[str]:
    lines = [
        "Ratio: CPU time of the bare loop over that of the job. Medians of the rounds, lowest to highest in brackets.",
        "`decoder` is `decode` of `job.decoding.decode` and the SHA-256; `intake` is the whole stage with one worker,",
        "from the listing to the published table, per photo, without its start, which the last column has, in all.",
        "",
        "| photos | stored px | what | ratio | bare CPU ms | job CPU ms | of so many | start, CPU ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = ["{}x{}".format(*row.size), str(row.stored_px), row.what, _spread(row.ratios, 2)]
        cells += [_spread(row.bare_ms, 3), _spread(row.job_ms, 3), str(row.photos)]
        lines.append("| " + " | ".join([*cells, f"{row.start_ms:.0f}" if row.what == "intake" else ""]) + " |")
    return [*lines, ""]


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--intake", nargs=3, help="used by the benchmark itself")
    options = parser.parse_args()
    if options.intake:
        print(json.dumps({"cpu_ms": _intake(*options.intake)}))
        return
    if not FLOWERS.is_dir():
        raise SystemExit(f"{FLOWERS} is missing: the benchmark needs real photos.")
    from benchmarks.measured import machine

    lines = ["# Decoding: intake per core against bare libjpeg-turbo", "", f"{machine()}, {datetime.date.today()}.", ""]
    lines += [f"`python -m benchmarks.decoding`, {options.rounds} rounds, one core.", "", *table(measure(options.rounds))]
    print("\n".join(lines))
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"decoding_{len(os.sched_getaffinity(0))}-core-cpu_{datetime.date.today()}.md"
    file.write_text("\n".join(lines))
    print(file)


if __name__ == "__main__":
    main()
