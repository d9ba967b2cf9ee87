"""The exported graph and what anybody may send to it."""

import csv
import re
import struct
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from job.decoding.decode import decode
from job.decoding.rules import BadPhoto, DecodeRules
from job.model.familiarity import Acceptance, Familiarity
from job.model.heads import Head
from job.serving import graph as serving
from job.serving import graph_decode
from job.serving.graph_decode import Limits
from job.serving.runtime import SavedModel
from tests.conftest import ROOT, encoded
from tests.numerics.conftest import SIZE

NAMES = ("dog", "Kätzchen", "=cow")
LIMITS = Limits(max_pixels=1_000_000, min_side_px=8, max_aspect_ratio=20)
RULES = DecodeRules(SIZE, "squash", LIMITS.max_pixels, LIMITS.min_side_px, LIMITS.max_aspect_ratio)


def familiar_features(network):
    """Features of some training photos, their labels, and features of validation photos."""
    photos = np.random.default_rng(5).integers(0, 256, (60, SIZE, SIZE, 3)).astype(np.uint8)
    features = np.asarray(network.activations_and_features(photos)[1])
    return features[:30], np.arange(30) % 3, features[30:]


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    """The folder of a saved model with a head of random weights."""
    rng = np.random.default_rng(1)
    head = Head(rng.normal(size=(network.feature_width, len(NAMES))).astype("float32"), np.zeros(len(NAMES), "float32"))
    folder = tmp_path_factory.mktemp("served") / "model"
    familiarity = Familiarity.fit(*familiar_features(network), "frozen", seed=0)
    classifier = network.assembled(network.tuned(head), acceptance=Acceptance(familiarity, 0.05, 0.5))
    serving.save(classifier, folder, image_size=SIZE, resize="squash", class_names=NAMES, limits=LIMITS)
    return folder


@pytest.fixture(scope="module")
def model(saved):
    """The model in memory."""
    import tensorflow as tf

    return tf.saved_model.load(saved)


@pytest.fixture(scope="module")
def answer(model):
    """A function from payloads to arrays, which holds what is true of every answer."""
    import tensorflow as tf

    def ask(payloads):
        sent = tf.constant(payloads, tf.string, shape=[len(payloads)])
        found = {name: value.numpy() for name, value in model.signatures["serving_default"](image_bytes=sent).items()}
        valid, probabilities = found["valid"], found["probabilities"]
        assert {len(value) for value in found.values()} == {len(payloads)} and probabilities.shape[1] == len(NAMES)
        assert np.allclose(probabilities.sum(axis=1), valid, atol=1e-5)  # And so finite: 1 where it is valid, 0 elsewhere.
        assert np.array_equal(found["probability"], probabilities.max(axis=1))
        chosen = [NAMES[k].encode() if ok else b"" for k, ok in zip(probabilities.argmax(axis=1), valid, strict=True)]
        assert list(found["label"]) == chosen
        return found

    return ask


def photo(seed=5, mode="RGB", size=(64, 60)):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunks, size=(64, 60)):
    plain = encoded(photo(size=size), "PNG")
    return plain[:33] + chunks + plain[33:]  # Behind the header.


def progressive_with(num_scans):
    plain = encoded(photo(), "JPEG", progressive=True)
    last = plain[plain.rindex(b"\xff\xda\x00") : -2]
    return plain[:-2] + last * (num_scans - plain.count(b"\xff\xda\x00")) + plain[-2:]


def gif_of(num_frames, comments=b""):
    """Frames that are all the first one. `comments` are blocks in front of it."""
    plain = encoded(photo(mode="L"), "GIF")
    start = 13 + 768
    assert plain[start : start + 1] == b","
    return plain[:start] + comments + plain[start:-1] * num_frames + b";"


def with_16_bits(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def animated(kind, **options):
    return encoded(photo(), kind, save_all=True, append_images=[photo(6), photo(7)], **options)


GOOD = encoded(photo(), "JPEG")
TEXT = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000)))

ODD = {
    "nothing": (b"", False),
    "a zero": (b"\0", False),
    "only a signature": (b"\xff\xd8\xff", False),
    "junk": (b"junk " * 1000, False),
    "zeros": (bytes(100_000), False),
    "a cut JPEG": (GOOD[: len(GOOD) // 2], False),
    "a cut PNG": (encoded(photo(), "PNG")[:-500], False),
    "a cut GIF": (encoded(photo(mode="P"), "GIF")[:-100], False),
    "a cut BMP": (encoded(photo(), "BMP")[:-100], False),
    "a cut WebP": (encoded(photo(), "WEBP")[:-100], False),
    "a CMYK JPEG": (encoded(photo(mode="CMYK"), "JPEG"), True),
    "a progressive JPEG": (encoded(photo(), "JPEG", progressive=True), True),
    "a PNG of 16 bits": (encoded(with_16_bits(photo()), "PNG"), True),
    "an APNG": (animated("PNG"), True),
    "an animated GIF": (animated("GIF"), True),
    "an animated WebP": (animated("WEBP"), False),
    "a WebP without loss": (encoded(photo(mode="RGBA"), "WEBP", lossless=True), True),
    "a BMP with a palette": (encoded(photo(mode="P"), "BMP"), True),
    "an ICO": (encoded(photo(), "ICO"), False),
    "a TIFF": (encoded(photo(), "TIFF"), False),
    "a PNG that says JPEG": (b"\xff\xd8\xff" + encoded(photo(), "PNG")[3:], False),
}


@pytest.mark.thorough
def test_c_library_gives_the_answers_of_the_python_package(saved, answer, model):
    import tensorflow as tf

    alone = SavedModel(str(saved), serving.tensors(saved))
    payloads = [encoded(photo(seed), "JPEG", quality=90) for seed in range(3)] + [b"no picture"]
    probabilities, valid = alone.run("serving_default", {"image_bytes": payloads}, "probabilities", "valid")
    expected = answer(payloads)
    assert np.array_equal(valid, [True, True, True, False]) and np.array_equal(valid, expected["valid"])
    assert np.allclose(probabilities, expected["probabilities"], atol=1e-6)
    pixels = np.random.default_rng(3).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
    (found,) = alone.run("pixels", {"pixels": pixels}, "probabilities")
    assert np.allclose(found, model.signatures["pixels"](pixels=tf.constant(pixels))["probabilities"], atol=1e-6)


def test_c_library_says_why_it_cannot_load_or_run_a_model(saved, tmp_path):
    with pytest.raises(RuntimeError, match="Could not find SavedModel"):
        SavedModel(str(tmp_path), {})
    alone = SavedModel(str(saved), serving.tensors(saved))
    with pytest.raises(RuntimeError, match="shape"):
        alone.run("pixels", {"pixels": np.zeros((1, SIZE + 8, SIZE, 3), np.uint8)}, "probabilities")
    assert len(alone.run("pixels", {"pixels": np.zeros((1, SIZE, SIZE, 3), np.uint8)}, "probabilities")[0]) == 1


def test_bad_picture_costs_the_others_of_its_batch_nothing(answer):
    found = answer([GOOD, b"junk", encoded(photo(6), "PNG"), b"", GOOD[:-300]])
    assert list(found["valid"]) == [True, False, True, False, False]
    alone = [answer([payload])["probabilities"][0] for payload in (GOOD, encoded(photo(6), "PNG"))]
    assert np.allclose(found["probabilities"][[0, 2]], alone, atol=1e-5)


def test_every_odd_picture_gets_its_row(answer):
    found = answer([payload for payload, _ in ODD.values()])
    assert dict(zip(ODD, found["valid"], strict=True)) == {name: valid for name, (_, valid) in ODD.items()}


@pytest.mark.parametrize("payloads", [[], [b""]])
def test_batch_without_a_picture_has_an_answer(answer, payloads):
    found = answer(payloads)
    assert {len(value) for value in found.values()} == {len(payloads)} and not np.any(found["valid"])


def test_empty_batch_of_pixels_has_an_answer(model):
    found = model.signatures["pixels"](pixels=np.zeros((0, SIZE, SIZE, 3), np.uint8))
    assert {len(value) for value in found.values()} == {0} and "valid" not in found


def test_class_names_are_read_from_the_graph(model):
    assert serving.class_names(model) == list(NAMES)


def test_outputs_are_those_that_model_json_describes(model):
    assert set(model.signatures["serving_default"].structured_outputs) == set(serving.OUTPUTS) - {"features"}
    assert set(model.signatures["pixels"].structured_outputs) == set(serving.OUTPUTS) - {"features", "valid"}
    assert set(model.signatures["features"].structured_outputs) == {"features"}


def test_signature_features_gives_those_of_the_frozen_backbone(model, network, pixels):
    found = model.signatures["features"](pixels=pixels)["features"].numpy()
    assert np.allclose(found, network.activations_and_features(pixels)[1], atol=0.01)  # Rounded to float16 at the cut.


def test_answer_is_accepted_if_its_probability_and_its_familiarity_reach_the_limits(model, network):
    photos = np.random.default_rng(6).integers(0, 256, (40, SIZE, SIZE, 3)).astype(np.uint8)
    photos[::2] //= 8
    found = {name: value.numpy() for name, value in model.signatures["pixels"](pixels=photos).items()}
    expected = Familiarity.fit(*familiar_features(network), "frozen", seed=0)
    familiarity_N = expected.of(np.asarray(network.activations_and_features(photos)[1]))
    assert found["familiarity"] == pytest.approx(familiarity_N, abs=1e-3)
    assert found["accepted"].any() and not found["accepted"][::2].any()  # None of the dark ones is familiar.
    assert np.array_equal(found["accepted"], (found["probability"] >= 0.5) & (found["familiarity"] >= 0.05))


def test_picture_that_is_not_decoded_is_neither_familiar_nor_accepted(answer):
    found = answer([b"no picture"])
    assert not found["accepted"][0] and found["familiarity"][0] == 0


# What is just allowed, and the limit with which it is not.
AT_THE_LIMIT = {
    "max_encoded_bytes": (GOOD, len(GOOD) - 1),
    "max_jpeg_scans": (progressive_with(12), 11),
    "max_png_texts": (png_with(3 * TEXT), 2),
    "max_gif_steps": (gif_of(1, comments=20 * b"!\xfe\1a\0"), 60),
    "min_side_px": (encoded(photo(size=(64, 20)), "PNG"), 21),
    "max_aspect_ratio": (encoded(photo(size=(64, 16)), "PNG"), 3.99),
}


def refused(payload, limits):
    import tensorflow as tf

    try:
        graph_decode.pixels_of(payload, SIZE, "squash", limits)
    except tf.errors.InvalidArgumentError:
        return True
    return False


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_every_limit_refuses_what_is_beyond_it(name):
    payload, limit = AT_THE_LIMIT[name]
    assert not refused(payload, LIMITS) and refused(payload, replace(LIMITS, **{name: limit}))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": False}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    ],
)
def test_sides_in_the_header_are_held_against_max_pixels(kind, options):
    payload = encoded(photo(size=(300, 200), mode="P" if kind == "GIF" else "RGB"), kind, **options)
    assert not refused(payload, replace(LIMITS, max_pixels=60_000)) and refused(payload, replace(LIMITS, max_pixels=59_999))


def test_every_limit_has_a_test():
    assert {field.name for field in fields(Limits)} == {*AT_THE_LIMIT, "max_pixels"}


def test_page_on_security_has_every_limit():
    page = (ROOT / "docs" / "security.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", page, re.MULTILINE))
    assert {field.name: f"{field.default:,}" for field in fields(Limits) if isinstance(field.default, int)} == told


def test_only_the_first_frame_of_a_gif_is_looked_at(answer):
    many, one = gif_of(30_000), gif_of(1)
    found = answer([many, one, one[:-1] + b"," + b"junk" * 100, many[:-200]])
    assert found["valid"].all() and (found["probabilities"] == found["probabilities"][0]).all()


def test_film_behind_a_photo_does_not_count_as_scans(answer):
    assert answer([GOOD + 1000 * b"\xff\xda\x17", GOOD + bytes(2_000_000)])["valid"].all()


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_png_of_few_bits_has_the_decoders_pixels(bits, mode):
    image = photo(mode="L").point(lambda v: v >> (8 - bits))
    if mode == "P":
        image = photo().quantize(2**bits)
    plain = encoded(image, "PNG", bits=bits)
    if mode == "L":  # Pillow writes gray levels in 1 or 8 bits only.
        rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()) for row in np.asarray(image)]
        data = b"".join(b"\0" + row.tobytes() for row in rows)
        header = struct.pack(">IIBBBBB", *image.size, bits, 0, 0, 0, 0)
        parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
        plain = plain[:8] + b"".join(parts)
    assert plain[24] == bits
    found = graph_decode.pixels_of(plain, SIZE, "squash", LIMITS).numpy().astype(int)
    assert np.abs(found - decode(plain, RULES).pixels_HWC).max() <= 1


def test_hostile_files_end_nothing_and_are_decoded_as_in_training(shared, answer):
    """1,640 files. Known to differ: what is transparent in a GIF, and EXIF or XMP of other formats than JPEG."""
    import tensorflow as tf

    with open(shared / "data" / "hostile" / "EXPECT.tsv", newline="") as file:
        names = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][1:]
    payloads = [(shared / "data" / "hostile" / name).read_bytes() for name in names]
    places, pixels = [], []
    pictures = tf.function(
        lambda batch: serving.decoded(batch, SIZE, "squash", LIMITS), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    for start in range(0, len(payloads), 128):
        batch = payloads[start : start + 128]
        valid = answer(batch)["valid"]
        found, at = pictures(tf.constant(batch))
        assert list(np.flatnonzero(valid)) == list(at)
        pixels += list(found.numpy())
        places += [start + int(k) for k in at]
    different, num_compared = [], 0
    for place, found in zip(places, pixels, strict=True):
        try:
            expected = decode(payloads[place], RULES)
        except BadPhoto:
            continue
        is_known = "transparency" in expected.converted and expected.facts.format == "GIF"
        if not is_known and not re.search("orientation|i_trns", names[place]):
            num_compared += 1
            if np.abs(found.astype(int) - expected.pixels_HWC).mean() > 2:
                different.append(names[place])
    assert num_compared > 600 and not different
