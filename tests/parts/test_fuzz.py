"""Seeded mutations of good files of every format we accept, fed through real decode processes."""

import io
import random
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec

import pytest
from PIL import Image, features

from job.sections import IntakeConfig
from job.sources.base import Entry, Listing
from job.stages.intake import intake
from tests.conftest import ROOT
from tests.unit.bad_inputs import animation, chunk, encoded, file, photo, png, turned
from tests.unit.deep_files import picture, tiff
from tests.unit.reasons import unexplained
from tests.unit.watched import Watched

CONFIG = IntakeConfig(image_size=48, workers=1, max_quarantined_fraction=1, decode_timeout_s=10)
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    return encoded(photo(7), "JPEG", exif=exif)


def _heic() -> bytes:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo(49)).save(buffer, quality=80)
    return buffer.getvalue()


@cache
def good_files() -> tuple[bytes, ...]:
    makers: list[Callable[[], bytes]] = [
        file(1),
        file(2, progressive=True),
        file(3, mode="L"),
        file(4, mode="CMYK"),
        file(5, restart_marker_blocks=2, subsampling=0),
        _with_exif,
        animation(8, "MPO", 2),
        file(10, "PNG"),
        file(11, "PNG", "P"),
        file(12, "PNG", "RGBA"),
        lambda: png(64, 48, 16, 0),
        lambda: png(64, 48, 16, 2),
        lambda: png(64, 48, 16, 4),
        lambda: tiff(picture(3)),
        lambda: tiff(picture(3), compressed=True),
        lambda: png(64, 48, 8, 2, chunk(b"tEXt", b"Comment\0here"), chunk(b"gAMA", bytes(4))),
        animation(13, "PNG"),
        file(16, "GIF"),
        animation(17, "GIF", mode="P"),
        file(20, "BMP"),
        file(21, "BMP", "P"),
        file(22, "BMP", "RGBA"),
        file(23, "TIFF"),
        file(24, "TIFF", compression="tiff_lzw"),
        file(25, "TIFF", compression="tiff_adobe_deflate"),
        file(26, "TIFF", "1", compression="group4"),
        turned(27, 6, "TIFF"),
        animation(28, "TIFF"),
        lambda: encoded(photo(31, (64, 64)), "ICO"),
        file(32, "PPM"),
        file(33, "PPM", "L"),
    ]
    more = [file(40, "WEBP"), file(41, "WEBP", lossless=True), file(42, "WEBP", "RGBA"), animation(43, "WEBP")]
    makers += more if features.check("webp") else []
    makers += [file(46, "AVIF")] if features.check("avif") else []
    makers += [_heic] if find_spec("pillow_heif") else []
    makers += [file(47, "JPEG2000"), file(48, "JPEG2000", irreversible=True)] if features.check("jpg_2000") else []
    return tuple(make() for make in makers)


def _span(rng: random.Random, payload: bytearray, longest: int = 64) -> slice:
    start = rng.randrange(len(payload))
    return slice(start, start + rng.randint(1, longest))


def flip_bits(rng: random.Random, payload: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 30))):
        payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)


def flip_bits_near_the_start(rng: random.Random, payload: bytearray) -> None:
    for _ in range(rng.randint(1, 4)):
        payload[rng.randrange(min(64, len(payload)))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, payload: bytearray) -> None:
    del payload[rng.randrange(1, len(payload)) :]


def insert_block(rng: random.Random, payload: bytearray) -> None:
    place = rng.randrange(len(payload))
    payload[place:place] = rng.randbytes(rng.randint(1, 64))


def duplicate_block(rng: random.Random, payload: bytearray) -> None:
    place = rng.randrange(len(payload))
    payload[place:place] = payload[_span(rng, payload, 400)]


def swap_blocks(rng: random.Random, payload: bytearray) -> None:
    size = rng.randint(1, max(1, len(payload) // 4))
    a, b = sorted(rng.randrange(max(1, len(payload) - size)) for _ in range(2))
    payload[a : a + size], payload[b : b + size] = payload[b : b + size], payload[a : a + size]


def clear_block(rng: random.Random, payload: bytearray) -> None:
    span = _span(rng, payload)
    payload[span] = bytes(len(payload[span]))


def extreme_number(rng: random.Random, payload: bytearray) -> None:
    """What claims of sizes, counts and offsets are made of."""
    kind = rng.choice(("<H", ">H", "<I", ">I"))
    place = rng.randrange(min(200, max(1, len(payload) - 4)))
    number = struct.pack(kind, rng.choice(EXTREMES) & (0xFFFF if kind[1] == "H" else 0xFFFFFFFF))
    payload[place : place + len(number)] = number


def splice(rng: random.Random, payload: bytearray) -> None:
    """The header of one file before the rest of another."""
    other = rng.choice(good_files())
    place = rng.randrange(min(len(payload), len(other), 300))
    payload[:place] = other[:place]


MUTATIONS = (
    flip_bits,
    flip_bits_near_the_start,
    cut,
    insert_block,
    duplicate_block,
    swap_blocks,
    clear_block,
    extreme_number,
    splice,
)


def with_right_checksums(payload: bytearray) -> bytearray:
    """A PNG whose chunks are all well-formed whatever they say: else every mutant would end at its checksum."""
    place = 8
    while payload.startswith(b"\x89PNG") and place + 12 <= len(payload):
        (length,) = struct.unpack_from(">I", payload, place)
        end = place + 8 + length
        if end + 4 > len(payload):
            break
        payload[end : end + 4] = struct.pack(">I", zlib.crc32(payload[place + 4 : end]))
        place = end + 4
    return payload


def mutant(seed: int) -> bytes:
    rng = random.Random(seed)
    payload = bytearray(rng.choice(good_files()))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(MUTATIONS)(rng, payload)
        payload = payload or bytearray(1)
    return bytes(with_right_checksums(payload) if rng.random() < 0.7 else payload)


@dataclass(frozen=True)
class Mutants:
    """A source that makes its bytes of the number in each entry's name, so that nothing needs to be written."""

    first: int
    count: int
    uri: str = "mutants"
    patience_s: float = 0.0

    def prepare(self) -> None:
        pass

    def listing(self) -> Listing:
        numbers = range(self.first, self.first + self.count)
        entries = [Entry(f"{k % 2}/{k:08d}.jpg", str(k % 2), None, 1, str(k)) for k in numbers]
        return Listing(tuple(sorted(entries, key=lambda e: e.path)), ("0", "1"))

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        for entry in entries:
            yield mutant(int(entry.path[2:10]))


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_mutants_are_judged_one_by_one_within_300_mb(context, tmp_path, record_property, count):
    source = Watched(Mutants(first=20_000, count=count), tmp_path / "peaks")
    found = intake(CONFIG, source=source, listing=source.listing(), context=context).examples
    statuses = Counter(found["status"])
    broke = [(p, r) for p, r in zip(found["path"], found["reason"], strict=True) if re.search("crashed|took longer", r)]
    record_property("outcome", {**statuses, "broke a decode process": broke, "growth_mb": source.growth_mb()})
    print(count, dict(statuses), f"growth {source.growth_mb():.0f} MB, broke a decode process: {broke}")
    assert sum(statuses.values()) == count and set(statuses) == {"used", "converted", "quarantined"}
    assert [part for reason in found["reason"] for part in unexplained(reason)] == []
    assert [
        p for p, s, r in zip(*(found[c] for c in ("path", "status", "reason")), strict=True) if s != "used" and not r
    ] == []
    assert dict(zip(found["path"], found["status"], strict=True)).items() >= {p: "quarantined" for p, _ in broke}.items()
    assert source.growth_mb() <= 300


def test_good_files_are_all_taken(context):
    """Before they are mutated; otherwise nothing behind their headers would ever be reached."""
    from job.decoding.decode import decode
    from job.decoding.rules import DecodeRules

    rules = DecodeRules(48, "squash", CONFIG.max_pixels, CONFIG.min_side_px, CONFIG.max_aspect_ratio)
    assert {decode(payload, rules).pixels_HWC.shape for payload in good_files()} == {(48, 48, 3)}


def test_mutants_are_the_same_in_every_process():
    program = (
        "import hashlib, tests.parts.test_fuzz as t; print(hashlib.sha256(b''.join(map(t.mutant, range(40)))).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == sha256(b"".join(map(mutant, range(40)))).hexdigest()
    assert len({mutant(k) for k in range(40)}) > 30
