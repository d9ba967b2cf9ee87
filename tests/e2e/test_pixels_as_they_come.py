"""A whole run over 12-bit photos in files of 16 bits and photos of phones: the model has the depth, and so has predict."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import paint, quick_settings, run_job
from tests.faults.several import Run
from tests.unit.deep_files import png

pytestmark = pytest.mark.thorough


def as_12_bits(photo):
    """A photo as a camera of 12 bits writes it: nearly black, if all 16 bits are taken for its range."""
    return png((np.asarray(photo.convert("RGB")).astype(np.uint16) << 4) + 7)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The output of a run. A third of the held-out photos are HEIC, if there is a plugin for it."""
    here = tmp_path_factory.mktemp("pixels")
    for number, kind in enumerate(("stripes", "checks")):
        for k in range(18):
            photo = Image.open(paint(here / "painted.png", 1000 * number + k, kind))
            file = here / "photos" / ("train" if k < 12 else "val") / kind / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            if k in (12, 13):
                pillow_heif = pytest.importorskip("pillow_heif")
                buffer = io.BytesIO()
                pillow_heif.from_pillow(photo).save(buffer, quality=90)
                file.with_suffix(".heic").write_bytes(buffer.getvalue())
            else:
                file.write_bytes(as_12_bits(photo))
    done = run_job("run", "--data", here / "photos", "--out", here / "out", *quick_settings("fine_tune.epochs=1"))
    assert done.returncode == 0, done.stderr
    assert "16-bit photos are scaled as 12-bit ones" in done.stderr
    return here / "out"


def test_model_and_page_say_the_depth(out):
    assert json.loads((out / "model" / "model.json").read_text())["bit_depth"] == 12
    assert "16-bit photos are scaled as 12-bit ones" in (out / "report.html").read_text()


def test_exported_graph_agrees_on_12_bits_and_counts_heic(out):
    parity = json.loads((out / "model" / "parity.json").read_text())
    assert parity["agrees"] and parity["bytes"]["not_decodable_in_graph"] == 4
    assert parity["bytes"]["num_photos"] == 8 and parity["bytes"]["largest_difference"] < 0.02


def test_single_dark_photo_is_predicted_as_it_was_measured(out):
    """Alone, it would seem to have fewer bits."""
    photos = out.parent / "photos"
    values = np.asarray(Image.open(paint(out.parent / "dark.png", 77)).convert("RGB")).astype(np.uint16)
    (out.parent / "one").mkdir()
    (out.parent / "one" / "dark.png").write_bytes(png(values))  # Below 256 of 4,095.
    (out.parent / "one" / "known.png").write_bytes((photos / "val" / "checks" / "14.png").read_bytes())
    answer = out.parent / "answer.csv"
    done = run_job("predict", "--model", out / "model", "--data", out.parent / "one", "--out", answer)
    assert done.returncode == 0, done.stderr
    with answer.open(newline="") as file:
        from_predict = {row["path"]: float(row["probability"]) for row in csv.DictReader(file)}
    import tensorflow as tf

    serve = tf.saved_model.load(out / "model").signatures["serving_default"]
    for name in ("dark.png", "known.png"):
        served = serve(image_bytes=tf.constant([(out.parent / "one" / name).read_bytes()]))
        assert served["valid"][0] and abs(float(served["probability"][0]) - from_predict[name]) < 0.02


def test_two_workers_give_the_store_of_one(out, tmp_path):
    both = Run(out.parent / "photos", tmp_path / "out", stop_after="intake")
    assert both.codes() == [0, 0], both.said(0) + both.said(1)
    told, alone = (json.loads((folder / "stages/intake/intake.json").read_text()) for folder in (tmp_path / "out", out))
    assert told == alone and told["bit_depth"] == 12
