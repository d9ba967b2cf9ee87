"""Heatmaps on the page and of predict, and a background that gives the class away, through the command line."""

import shutil

import numpy as np
import pyarrow.csv
import pytest
from PIL import Image, ImageDraw

import job
from tests.conftest import contents, paint, quick_settings, run_job, would_run


@pytest.fixture
def photos(tmp_path):
    for k in range(3):
        paint(tmp_path / "photos" / "some" / f"{k} ä.jpg", seed=800 + k)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    return tmp_path / "photos"


def explain(model, photos, place, *more):
    out = photos.parent / "answers.csv"
    return run_job("predict", "--model", model, "--data", photos, "--out", out, "--explain", place, *more)


def test_page_of_a_run_has_heatmaps_and_says_whether_they_can_be_trusted(finished_run, painted, tmp_path):
    out = shutil.copytree(finished_run, tmp_path / "run")
    done = run_job("run", "--data", painted, "--out", out, *quick_settings("heatmaps.photos=40", "heatmaps.checked=40"))
    assert done.returncode == 0, done.stderr
    page = (out / "report.html").read_text()
    section = page[page.index('<section id="heatmaps">') :].partition("</section>")[0]
    assert section.count('alt="heatmap"') > 3 and "percentage points on average" in section
    assert "What is left" in section and 'href="#heatmaps"' in page


def test_settings_of_heatmaps_run_nothing_but_them_and_the_report(finished_run, painted):
    assert would_run(painted, finished_run, "heatmaps.photos=3") == {"heatmaps", "report"}


def test_without_heatmaps_the_page_has_none(finished_run):
    page, pictures = (finished_run / "report.html").read_text(), finished_run / "stages/heatmaps"
    assert 'alt="heatmap"' not in page and not list(pictures.rglob("*.jpg"))


def test_predict_draws_a_picture_of_each_photo_and_lists_them(finished_run, photos, tmp_path):
    done = explain(finished_run, photos, tmp_path / "heat")
    assert done.returncode == 0, done.stderr
    rows = pyarrow.csv.read_csv(tmp_path / "heat" / "heatmaps.csv").to_pylist()
    answers = {row["path"]: row for row in pyarrow.csv.read_csv(tmp_path / "answers.csv").to_pylist() if not row["error"]}
    assert {row["path"]: row["label"] for row in rows} == {path: row["label"] for path, row in answers.items()}
    assert all(abs(row["probability"] - answers[row["path"]]["probability"]) < 1e-4 for row in rows)
    for row in rows:
        with Image.open(tmp_path / "heat" / row["file"]) as picture:
            assert picture.size == (96, 48) and picture.format == "PNG"
    assert len(list((tmp_path / "heat").iterdir())) == 4


@pytest.mark.thorough
def test_predict_replaces_its_own_pictures_and_nothing_else(finished_run, photos, tmp_path):
    heat = tmp_path / "heat"
    assert explain(finished_run, photos, heat).returncode == 0
    again = explain(finished_run, photos, heat, "--explain-photos", 2)
    assert again.returncode == 0 and "first 2 of 4 photos" in again.stderr
    pictures = sorted(heat.glob("*.png"))
    assert len(pictures) == 1 and len(list(heat.iterdir())) == 2, "one of the first two is broken"
    pictures[0].write_bytes(b"drawn over by a person")
    (heat / "notes.txt").write_text("mine")
    before = contents(heat)
    refused = explain(finished_run, photos, heat)
    assert refused.returncode == 2 and "notes.txt" in refused.stderr and pictures[0].name in refused.stderr
    assert contents(heat) == before


@pytest.mark.parametrize("content", ["x" * 200_000, "file,path,label,probability,sha256\n\nnotes.txt\n"])
def test_predict_refuses_a_folder_whose_index_is_not_its_own(finished_run, photos, tmp_path, content):
    heat = tmp_path / "heat"
    heat.mkdir()
    (heat / "heatmaps.csv").write_text(content)
    (heat / "notes.txt").write_text("mine")
    refused = explain(finished_run, photos, heat)
    assert refused.returncode == 2 and "predict did not write" in refused.stderr and "notes.txt" in refused.stderr


def test_predict_writes_one_page(finished_run, photos, tmp_path):
    page = tmp_path / "heat.html"
    for _ in range(2):
        assert explain(finished_run, photos, page).returncode == 0
    assert page.read_text().count("data:image/jpeg") == 3 and "some/" in page.read_text()
    page.write_text("<html>mine</html>")
    refused = explain(finished_run, photos, page)
    assert refused.returncode == 2 and "predict did not write it" in refused.stderr
    assert page.read_text() == "<html>mine</html>"


@pytest.mark.parametrize("place", ["run/stages/heatmaps", "run/model/heat", ".", "gs://bucket/heat", "run/report.html"])
def test_predict_refuses_places_of_others(finished_run, photos, tmp_path, place):
    shutil.copytree(finished_run, tmp_path / "run")
    before = contents(tmp_path)
    done = explain(tmp_path / "run", photos, place if "://" in place else tmp_path / place)
    assert done.returncode == 2 and "--explain" in done.stderr, done.stderr
    assert contents(tmp_path) == before


def test_other_model_than_the_one_that_was_asked_for_is_not_explained(finished_run, photos, tmp_path):
    done = explain(finished_run, photos, tmp_path / "heat", "--model-sha256", "0" * 64)
    assert done.returncode == 2 and not (tmp_path / "heat").exists()
    out = shutil.copytree(finished_run / "model", tmp_path / "alone" / "model")
    (out / "model.keras").write_bytes(b"another model")
    done = explain(out, photos, tmp_path / "heat")
    assert done.returncode == 2 and "model.keras" in done.stderr and not (tmp_path / "heat").exists()


def test_api_explains(finished_run, photos, tmp_path):
    job.predict(finished_run, photos, tmp_path / "out.csv", explain=tmp_path / "heat", explain_photos=1)
    assert (tmp_path / "heat" / "heatmaps.csv").exists()


def plant(folder, decides, per_class=120, side=96):
    """Two classes of figures on textures. One of them, the figure or the background, decides, and the other is random."""
    for label in (0, 1):
        for k in range(per_class):
            rng = np.random.default_rng([label, k])
            figure, texture = (label, int(rng.integers(2))) if decides == "figure" else (int(rng.integers(2)), label)
            place = paint(folder / "ab"[label] / f"{k:03}.jpg", [label, k], ("stripes", "checks")[texture], (side, side))
            picture = Image.open(place)
            centre, radius = side / 2 + rng.uniform(-6, 6, 2), rng.uniform(20, 26)
            angles = np.arange(3 if figure else 32) * 2 * np.pi / (3 if figure else 32) + rng.uniform(0, 6)
            corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            colour = tuple(int(c) for c in rng.integers(0, 256, 3))
            ImageDraw.Draw(picture).polygon([tuple(corner) for corner in corners.tolist()], fill=colour)
            picture.save(place, quality=90)
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("decides", ["background", "figure"])
def test_page_warns_where_the_background_decides_and_not_where_the_figure_does(shared, tmp_path, decides):
    weights = shared / "weights/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    settings = {"intake.image_size": 96, "backbone.alpha": 0.35, "backbone.weights": str(weights), "fine_tune.epochs": 0}
    job.run(plant(tmp_path / "photos", decides), tmp_path / "out", config=settings, stop_after="heatmaps")
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("The background may decide" in page) == (decides == "background")


@pytest.mark.thorough
def test_deletion_test_passes_on_flowers(shared, tmp_path):
    weights = shared / "weights/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    settings = {"intake.image_size": 160, "backbone.alpha": 0.35, "backbone.weights": str(weights), "fine_tune.epochs": 0}
    job.run(shared / "data/tiny-flowers", tmp_path / "out", config=settings, stop_after="heatmaps")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "These heatmaps can be trusted" in page and "The background may decide" not in page
