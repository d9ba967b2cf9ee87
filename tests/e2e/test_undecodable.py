"""Photos that intake takes and TensorFlow's decoders do not: the run ends with 0 and says what share of them it found."""

import json
import struct

import numpy as np
import pytest
from PIL import Image

from tests.conftest import paint_classes, quick_settings, run_job

pytestmark = pytest.mark.thorough


def as_bmp_of_16_bits(image):
    """A BMP whose pixels have 5, 6 and 5 bits, as some cameras' displays and old Windows programs write it."""
    red, green, blue = (np.asarray(image.convert("RGB")).astype(np.uint16)[::-1, :, k] for k in range(3))
    pixels = ((red >> 3) << 11 | (green >> 2) << 5 | blue >> 3).astype("<u2")
    data = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2))).tobytes()
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, image.width, image.height, 1, 16, 3, len(data), 2835, 2835, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 66 + len(data), 0, 0, 66) + header + masks + data


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The output of a run over photos of which a third are such BMPs."""
    folder = paint_classes(tmp_path_factory.mktemp("undecodable") / "photos", per_class=24)
    for path in sorted(folder.rglob("*.jpg"))[::3]:
        path.with_suffix(".bmp").write_bytes(as_bmp_of_16_bits(Image.open(path)))
        path.unlink()
    out = folder.parent / "out"
    done = run_job("run", "--data", folder, "--out", out, *quick_settings("fine_tune.epochs=1", "intake.min_side_px=50"))
    assert done.returncode == 0, done.stderr
    (out.parent / "said").write_text(done.stdout)
    return out


def test_photos_that_the_graph_cannot_decode_are_counted_and_end_nothing(out):
    parity = json.loads((out / "model" / "parity.json").read_text())
    bad, num_photos = parity["bytes"]["not_decodable_in_graph"], parity["num_photos"]
    assert parity["agrees"] and bad > 0 and bad + parity["bytes"]["num_photos"] == num_photos
    said = f"The exported model cannot decode {bad} of {num_photos} held-out photos ({bad / num_photos:.1%})"
    assert said in (out.parent / "said").read_text().splitlines()[-1]
    assert said in (out / "report.html").read_text()


def test_model_json_says_what_the_graph_takes(out):
    card, parity = (json.loads((out / "model" / name).read_text()) for name in ("model.json", "parity.json"))
    taken = card["image_bytes"]
    assert taken["held_out"].items() <= parity["bytes"].items()
    assert taken["formats"] == ["JPEG", "PNG", "GIF", "BMP", "WebP"]
    assert taken["limits"].items() >= {**card["decoder"], "max_jpeg_scans": 64}.items() and "valid" in card["outputs"]
