"""The check that the exported model gives the measured probabilities. It runs as `python -m job.serving.parity`.

This process loads TensorFlow's C library and answers one request (`job.runtime.children`). The model is read from the disk,
and runs as in a server: without TensorFlow's Python code.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from job.decoding.decode import decode
from job.decoding.rules import DecodeRules
from job.measure.accepted import FAMILIARITY_TOLERANCE, ComparedAcceptance, compared
from job.runtime.children import answer
from job.serving.runtime import SavedModel, library
from job.stores.arrays import ArrayStore

# Largest difference of probabilities from the same pixels. Float32 rounding is below it.
ARRAY_TOLERANCE = 1e-4
# A label that changes although the probabilities of the two best classes differ by more than this is a fault.
CLEAR_MARGIN = 0.2
# Largest difference of probabilities for a rotated photo if the graph respects its EXIF orientation.
EXIF_TOLERANCE = 0.02
# If the graph cannot decode more than this share of the photos, the user is told.
NOTABLE_FRACTION = 0.01
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Request:
    """The model to check, and what to compare it with.

    `tensors` are the names of its tensors, as `graph.tensors` returns them.
    `photos` is a file that the process that sends the request has pickled. It has, for the photos in `rows` of the image
    store, what was measured (see `Measured.outputs`), and the source and the entries of their original bytes. `limits` are
    `min_probability` and `min_familiarity`.
    """

    model: str
    tensors: dict[str, dict[str, str]]
    images: str
    rows: list[int]
    photos: str
    rules: dict[str, Any]
    limits: dict[str, float]


class ByPixels(ComparedAcceptance):
    """The comparison of answers to the stored pixels."""

    largest_difference: float
    tolerance: float
    changed_labels: int
    familiarity_tolerance: float


class Parity(TypedDict):
    """The content of parity.json. The export stage adds `faults`, in words, and the verdict `agrees`."""

    num_photos: int
    arrays: ByPixels
    bytes: dict[str, Any]
    exif: dict[str, float]
    faults: NotRequired[list[str]]
    agrees: NotRequired[bool]


def check(request: Request) -> Parity:
    """Compare the exported model with the request. Return the content of parity.json without the verdict."""
    model = SavedModel(request.model, request.tensors)
    measured, source, entries = pickle.loads(Path(request.photos).read_bytes())  # noqa: S301  # The exporting process wrote it.
    source.prepare()
    expected, outputs = measured["probabilities"], list(measured)
    pixels = ArrayStore(Path(request.images)).rows(request.rows)
    by_pixels = _by_pixels(model, pixels, outputs)
    by_bytes, valid, readable = _by_bytes(model, source.read(entries), outputs)
    of_pixels, of_bytes = by_pixels["probabilities"], by_bytes["probabilities"][valid]
    difference = np.abs(of_bytes - expected[valid])
    # Expected probabilities of many classes are rounded, so those from pixels tell which class is first.
    best_two = np.sort(of_pixels[valid], axis=1)[:, -2:]
    changed = of_bytes.argmax(1) != of_pixels[valid].argmax(1)
    not_decodable = int((readable & ~valid).sum())
    return {
        "num_photos": len(expected),
        "arrays": {
            "largest_difference": float(np.abs(of_pixels - expected).max()),
            "tolerance": ARRAY_TOLERANCE,
            "changed_labels": int((of_pixels.argmax(1) != expected.argmax(1)).sum()),
            "familiarity_tolerance": FAMILIARITY_TOLERANCE,
            **compared(measured, by_pixels, request.limits, ARRAY_TOLERANCE),
        },
        "bytes": {
            "num_photos": int(valid.sum()),
            "not_decodable_in_graph": not_decodable,
            "not_readable": int((~readable).sum()),
            "notice": _notice(not_decodable, int(readable.sum())),
            "largest_difference": float(difference.max()) if len(difference) else 0.0,
            "mean_difference": float(difference.mean()) if len(difference) else 0.0,
            "changed_labels": int(changed.sum()),
            "changed_labels_with_clear_margin": int((changed & (best_two[:, 1] - best_two[:, 0] > CLEAR_MARGIN)).sum()),
            "clear_margin": CLEAR_MARGIN,
            "changed_accepted": int((by_bytes["accepted"] != measured["accepted"])[valid].sum()),
        },
        "exif": _exif(request, pixels[0], model, outputs),
    }


def _notice(not_decodable: int, num_photos: int) -> str:
    """Return a sentence for the last line of the run, the report and model.json; empty if it concerns few photos."""
    if not_decodable <= NOTABLE_FRACTION * num_photos:
        return ""
    return (
        f"The exported model cannot decode {not_decodable:,} of {num_photos:,} held-out photos "
        f"({not_decodable / num_photos:.1%}) from their bytes. Label photos of these formats with transfer-job predict."
    )


def _by_pixels(model: SavedModel, pixels_NHWC: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    batches = (pixels_NHWC[k : k + _BATCH_SIZE] for k in range(0, len(pixels_NHWC), _BATCH_SIZE))
    found = [model.run("pixels", {"pixels": batch}, *outputs) for batch in batches]
    return {name: np.concatenate(of) for name, of in zip(outputs, zip(*found, strict=True), strict=True)}


def _by_bytes(
    model: SavedModel, payloads: Iterator[bytes | OSError], outputs: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return the outputs for all photos, whether the graph decoded each, and whether its file could be read."""
    results, readable = [], []
    while batch := list(islice(payloads, _BATCH_SIZE)):
        readable += [isinstance(payload, bytes) for payload in batch]
        image_bytes = [payload if isinstance(payload, bytes) else b"" for payload in batch]
        results.append(model.run("serving_default", {"image_bytes": image_bytes}, *outputs, "valid"))
    *found, valid = (np.concatenate(of) for of in zip(*results, strict=True))
    return dict(zip(outputs, found, strict=True)), valid, np.asarray(readable)


def _exif(request: Request, pixels_HWC: np.ndarray, model: SavedModel, outputs: Sequence[str]) -> dict[str, float]:
    """Compare probabilities from bytes and from pixels for a photo that is stored rotated, with an EXIF orientation.

    It asks for the same `outputs` as before, because TensorFlow would optimize the graph again for others.
    """
    from PIL import Image

    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    rules = DecodeRules(**request.rules)
    side = min(max(rules.image_size, rules.min_side_px), math.isqrt(rules.max_pixels))  # A size that the rules accept.
    lying = Image.fromarray(pixels_HWC).transpose(Image.Transpose.ROTATE_90).resize((side, side))
    lying.save(buffer, "JPEG", quality=95, exif=exif)
    upright = decode(buffer.getvalue(), rules).pixels_HWC
    by_array = _by_pixels(model, upright[None], outputs)["probabilities"]
    by_bytes = _by_bytes(model, iter([buffer.getvalue()]), outputs)[0]["probabilities"]
    return {"largest_difference": float(np.abs(by_array - by_bytes).max()), "tolerance": EXIF_TOLERANCE}


def main() -> None:
    answer(Request, check, prepare=library)


if __name__ == "__main__":
    main()
