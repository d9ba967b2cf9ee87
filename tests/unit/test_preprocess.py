"""model/preprocess.py against the canonical decoder: on odd, damaged and fuzzed files, and on photos drawn here."""

import ast
import runpy

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from job.decoding.decode import decode
from job.decoding.rules import BadPhoto, DecodeRules
from job.stages.export import preprocessing
from tests.conftest import encoded

LIMITS = {"max_pixels": 50_000_000, "min_side_px": 8, "max_aspect_ratio": 20.0}
DEEP_COLOUR = "Pillow cannot read all bits of this photo"


def written(folder, **rules):
    """The rules, and the function in the file that the export writes for them."""
    made = DecodeRules(**{"image_size": 96, "resize": "squash", **LIMITS, **rules})
    file = folder / "preprocess.py"
    file.write_text(preprocessing(made))
    return made, runpy.run_path(str(file))["preprocess"]


def test_reference_needs_nothing_but_numpy_and_pillow(tmp_path):
    text = preprocessing(DecodeRules(160, "pad", **LIMITS, bit_depth=12))
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {getattr(node, "module", None) or node.names[0].name for node in imports} == {"io", "numpy", "PIL"}
    assert 'IMAGE_SIZE, RESIZE, BIT_DEPTH = 160, "pad", 12\n' in text


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.filterwarnings("ignore")
def test_reference_gives_the_same_bits_for_every_odd_photo(shared, tmp_path, resize):
    rules, preprocess = written(tmp_path, resize=resize)
    num_equal, refused, different = 0, [], []
    for file in (f for name in ("hostile", "messy") for f in (shared / "data" / name).rglob("*") if f.is_file()):
        payload = file.read_bytes()
        try:
            expected = decode(payload, rules)
        except BadPhoto:
            continue
        try:
            is_equal = np.array_equal(preprocess(payload), expected.pixels_HWC)
        except ValueError as error:
            assert DEEP_COLOUR in str(error) and "bit scaled to 8" in expected.converted, file
            refused.append(file)
            continue
        num_equal += is_equal
        if not is_equal:
            different.append(payload)
    assert num_equal > 1000 and len(refused) == 24
    for payload in different:  # A chroma subsampling that no camera writes: the decoder does not scale these.
        with pytest.raises(ValueError, match="subsampling"):
            simplejpeg.decode_jpeg_header(payload)


def drawn(size=(700, 460), mode="RGB", seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1] // 20, size[0] // 20, 4)).astype(np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


def oriented(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


PHOTOS = {
    **{f"{w}x{h}": encoded(drawn((w, h)), "JPEG") for w, h in [(1600, 800), (768, 768), (767, 191), (192, 760), (97, 1500)]},
    **{f"turned {k}": encoded(drawn(), "JPEG", exif=oriented(k)) for k in range(9)},
    "turned PNG": encoded(drawn((300, 200)), "PNG", exif=oriented(6)),
    "turned TIFF": encoded(drawn((300, 200)), "TIFF", exif=oriented(8)),
    "malformed EXIF": encoded(drawn(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    "gray": encoded(drawn(mode="L"), "JPEG"),
    "CMYK": encoded(drawn(mode="CMYK"), "JPEG"),
    "progressive": encoded(drawn(), "JPEG", progressive=True),
    "no subsampling": encoded(drawn((1500, 1000)), "JPEG", subsampling=0),
    "RGBA": encoded(drawn(mode="RGBA")),
    "LA": encoded(drawn(mode="LA")),
    "palette": encoded(drawn(mode="P"), "GIF", transparency=3),
    "32 bit": encoded(Image.fromarray(np.linspace(-5, 7e4, 120 * 100).reshape(100, 120).astype(np.int32)), "TIFF"),
    "float": encoded(Image.fromarray(np.linspace(-5, 7, 120 * 100).reshape(100, 120).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.filterwarnings("ignore")
def test_reference_gives_the_same_bits_for_each_kind_of_photo(tmp_path, resize):
    rules, preprocess = written(tmp_path, resize=resize)
    wrong = [name for name, data in PHOTOS.items() if not np.array_equal(preprocess(data), decode(data, rules).pixels_HWC)]
    assert wrong == []


@pytest.mark.parametrize(("bit_depth", "peak"), [(12, 4095), (12, 4099), (16, 65535), (9, 511)])
def test_reference_scales_16_bits_by_the_bit_depth_of_the_model(tmp_path, bit_depth, peak):
    rules, preprocess = written(tmp_path, bit_depth=bit_depth)
    payload = encoded(Image.fromarray(np.linspace(0, peak, 150 * 100).reshape(100, 150).astype(np.uint16)))
    assert np.array_equal(preprocess(payload), decode(payload, rules).pixels_HWC)
    keyed = encoded(Image.fromarray(np.full((100, 150), 77, np.uint16)), transparency=77)
    assert (preprocess(keyed) == 255).all() and (decode(keyed, rules).pixels_HWC == 255).all()
