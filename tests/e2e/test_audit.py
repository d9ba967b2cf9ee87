"""Planted faults in real photos: what the audit finds on features of real weights."""

import csv
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from tests.conftest import run_job

pytestmark = pytest.mark.thorough

WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"


@pytest.fixture(scope="module")
def planted(shared, tmp_path_factory):
    """A copy of trashnet with a twentieth of the labels moved to a wrong class, and 30 cropped and mirrored copies."""
    folder = tmp_path_factory.mktemp("trashnet") / "photos"
    source = shared / "data" / "trashnet"
    class_names = sorted(p.name for p in source.iterdir() if p.is_dir())
    for name in class_names:
        shutil.copytree(source / name, folder / name)
    photos = sorted(p.relative_to(folder) for p in folder.rglob("*.jpg"))
    rng = np.random.default_rng(0)
    moved = {}
    for k in rng.choice(len(photos), len(photos) // 20, replace=False):
        others = [name for name in class_names if name != photos[k].parts[0]]
        wrong = str(rng.choice(others))
        (folder / photos[k]).rename(folder / wrong / f"moved-{photos[k].name}")
        moved[f"{wrong}/moved-{photos[k].name}"] = photos[k].parts[0]
    stayed = [p for p in photos if (folder / p).exists()]
    copies = {}
    for number, k in enumerate(rng.choice(len(stayed), 30, replace=False)):
        photo = Image.open(folder / stayed[k])
        width, height = photo.size
        copy = ImageOps.mirror(photo.crop((6, 4, round(0.92 * width), round(0.92 * height))))
        name = f"{stayed[k].parts[0]}/copy-{number:02d}.jpg"
        copy.save(folder / name, quality=80)
        copies[name] = stayed[k].as_posix()
    return folder, moved, copies


@pytest.fixture(scope="module")
def audited(planted, shared, tmp_path_factory):
    out = tmp_path_factory.mktemp("audited") / "out"
    settings = ("intake.image_size=128", "backbone.alpha=0.35", "augment.views=1")
    assignments = [word for setting in settings for word in ("--set", setting)]
    weights = shared / "weights" / WEIGHTS
    done = run_job("run", "--data", planted[0], "--out", out, "--weights", weights, "--stop-after", "audit", *assignments)
    assert done.returncode == 0, done.stderr
    return out


def test_seven_in_ten_moved_labels_are_within_twice_as_many_rows(planted, audited):
    moved = planted[1]
    with (audited / "label_issues.csv").open(encoding="utf-8-sig", newline="") as file:
        first = list(csv.DictReader(file))[: 2 * len(moved)]
    found = {row["path"]: row["suggested_label"] for row in first if row["path"] in moved}
    assert len(found) >= 0.7 * len(moved), f"{len(found)} of {len(moved)}"
    assert sum(moved[path] == label for path, label in found.items()) > 0.7 * len(found)


def test_cropped_and_mirrored_copies_leak_nowhere(planted, audited):
    rows = {row["path"]: row for row in pq.read_table(audited / "examples.parquet").to_pylist()}
    torn = [(c, o) for c, o in planted[2].items() if rows[c]["split"] != rows[o]["split"]]
    assert len(torn) >= 8, "by chance enough copies must lie in another split than their photo"
    leaking = [pair for pair in torn if "excluded" not in {rows[path]["status"] for path in pair}]
    assert len(leaking) <= 0.25 * len(torn), leaking


def test_page_shows_what_was_planted(audited):
    page = (audited / "report.html").read_text(encoding="utf-8")
    assert "No model in this run." in page and "label_issues.csv" in page and "/moved-" in page and "/copy-" in page
