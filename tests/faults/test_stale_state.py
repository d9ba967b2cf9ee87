"""What somebody changes between two runs: exactly what depends on it is done again, and a mix of old and new is refused."""

import os
import shutil

import pytest

from job.pipeline.records import Records
from job.pipeline.table import STAGES
from job.storage.files import read_json
from job.storage.workdir import Workdir
from tests.conftest import paint, quick_settings, run_job, would_run

ALL = set(STAGES)
FROM_EXTRACT = {"extract", "audit", "head", "fine_tune", "evaluate", "heatmaps", "export", "convert", "report"}
FROM_HEAD = FROM_EXTRACT - {"extract", "audit"}


@pytest.fixture
def folder(finished_run, painted, tmp_path):
    """A finished run and its photos, to change."""
    shutil.copytree(painted, tmp_path / "photos")
    shutil.copytree(finished_run, tmp_path / "out", symlinks=True)
    return tmp_path


def photo(folder):
    return folder / "photos" / "stripes" / "stripes-003.jpg"


def change_a_byte(folder):
    data = bytearray(photo(folder).read_bytes())
    data[len(data) // 2] ^= 1
    photo(folder).write_bytes(data)


def touch(folder):
    os.utime(photo(folder), (1, 1))


def rename(folder):
    photo(folder).rename(photo(folder).with_name("another.jpg"))


def add_class(folder):
    for k in range(9):
        paint(folder / "photos" / "dots" / f"{k}.jpg", seed=5000 + k)


def rename_class(folder):
    (folder / "photos" / "stripes").rename(folder / "photos" / "lines")


def older_code(folder):
    workdir = Workdir(folder / "out")
    Records(workdir).write("head", {**(Records(workdir)["head"] or {}), "schema": -1})


def flip_a_bit_of_a_record(folder):
    file = folder / "out" / "stages" / "head.json"
    file.write_text(file.read_text().replace('"outputs"', '"outputt"'))


def flip_a_bit_of_the_run(folder):
    file = folder / "out" / "run.json"
    file.write_text(file.read_text().replace('"fingerprint"', '"fingerprinu"'))


def cut_output(folder):
    file = folder / "out" / "stages" / "fine_tune" / "weights.npz"
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        (change_a_byte, ALL),
        (touch, set()),
        (rename, ALL),
        (add_class, ALL),
        (rename_class, ALL),
        (older_code, FROM_HEAD),
        (flip_a_bit_of_a_record, FROM_HEAD),
        (flip_a_bit_of_the_run, set()),
        (cut_output, {"fine_tune", "evaluate", "heatmaps", "export", "convert", "report"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_change_makes_stale_what_depends_on_it(folder, change, runs):
    change(folder)
    assert would_run(folder / "photos", folder / "out") == runs


@pytest.mark.parametrize(
    ("setting", "runs"),
    [
        ("seed=5", ALL - {"intake", "split"}),
        ("split.seed=5", ALL - {"intake"}),
        ("intake.image_size=64", ALL),
        ("backbone.alpha=0.5", FROM_EXTRACT),
        ("checkpoint.every_s=1", set()),
    ],
)
def test_a_changed_setting_makes_stale_what_depends_on_it(finished_run, painted, setting, runs):
    assert would_run(painted, finished_run, setting) == runs


def test_other_weights_make_stale_what_they_go_into(finished_run, painted, shared):
    weights = shared / "weights" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    assert would_run(painted, finished_run, f"backbone.weights={weights}") == FROM_EXTRACT


def test_cut_shard_is_made_again_with_the_same_bytes_and_nothing_else(folder):
    shards = sorted((folder / "out" / "cache").glob("activations-*/*.npy"))
    content, others = shards[0].read_bytes(), {p: p.stat().st_mtime_ns for p in shards[1:]}
    os.truncate(shards[0], len(content) // 2)
    done = run_job("run", "--data", folder / "photos", "--out", folder / "out", *quick_settings("fine_tune.epochs=3"))
    assert done.returncode == 0, done.stderr
    assert shards[0].read_bytes() == content and {p: p.stat().st_mtime_ns for p in others} == others
    assert "head      skipped: unchanged" in done.stderr and "fine_tune runs" in done.stderr


def test_changed_data_are_decoded_where_they_are_new_and_give_the_bits_of_a_fresh_run(folder):
    """A new time and the same bytes: asked for by content. Another byte, a photo more, one less: as a fresh run ends."""
    touch(folder)
    call = ("run", "--data", folder / "photos", "--out", folder / "out", *quick_settings())
    assert "runs" not in run_job(*call).stderr
    change_a_byte(folder)
    paint(folder / "photos" / "checks" / "0-new.jpg", seed=4711, kind="checks")  # It comes before all others.
    (folder / "photos" / "checks" / "checks-007.jpg").unlink()
    lenient = quick_settings("export.max_changed_fraction=0.5")  # Predictions of random weights are close to each other.
    done = run_job(*call, *lenient)
    assert done.returncode == 0 and "intake    runs" in done.stderr, done.stderr
    records = {name: read_json(folder / "out" / "stages" / f"{name}.json") for name in ("intake", "extract")}
    assert records["intake"]["count"] - records["intake"]["done"]["found"] == 2, "two photos were decoded"
    fresh = ("run", "--data", folder / "photos", "--out", folder / "fresh", *lenient, "--stop-after", "evaluate")
    assert run_job(*fresh).returncode == 0
    made = {"split": "examples.parquet", "fine_tune": "weights.npz", "head": "head.npz", "evaluate": "predictions.parquet"}
    for name in (f"stages/{stage}/{file}" for stage, file in made.items()):
        assert (folder / "out" / name).read_bytes() == (folder / "fresh" / name).read_bytes(), name


def test_page_of_a_mix_of_two_runs_is_refused_with_what_differs(folder):
    evaluation = folder / "out" / "stages" / "evaluate" / "evaluation.json"
    evaluation.write_text(evaluation.read_text().replace('"shipped"', '"shipped" '))
    page = (folder / "out" / "report.html").read_bytes()
    done = run_job("report", folder / "out")
    assert done.returncode == 2 and "results that do not belong together" in done.stderr
    assert "stages/evaluate/evaluation.json: evaluate left" in done.stderr and "export: made from" not in done.stderr
    assert (folder / "out" / "report.html").read_bytes() == page


def test_page_of_a_run_that_stopped_early_shows_nothing_of_the_settings_before(folder):
    call = ("run", "--data", folder / "photos", "--out", folder / "out", "--stop-after", "explore")
    assert run_job(*call, *quick_settings("fine_tune.epochs=3")).returncode == 0
    place = folder / "out" / "attempt" / "report.html"
    page = place.read_bytes()
    place.unlink()
    assert run_job("report", folder / "out").returncode == 0
    assert place.read_bytes() == page and b'id="times"' in page and b"fine_tuned" not in page


def test_stage_of_another_run_is_refused_with_what_differs(folder):
    workdir = Workdir(folder / "out")
    Records(workdir).write("head", {**(Records(workdir)["head"] or {}), "outputs": {}})
    done = run_job("report", folder / "out")
    assert done.returncode == 2 and "fine_tune: made from head" in done.stderr and "head left nothing" in done.stderr


def test_record_with_a_flipped_bit_is_made_again_by_the_next_run(folder):
    flip_a_bit_of_a_record(folder)
    flip_a_bit_of_the_run(folder)
    refused = run_job("report", folder / "out")
    assert refused.returncode == 2 and "run.json is missing or damaged" in refused.stderr
    done = run_job("run", "--data", folder / "photos", "--out", folder / "out", *quick_settings())
    assert done.returncode == 0 and "head      runs" in done.stderr and "extract   skipped" in done.stderr, done.stderr
    assert run_job("report", folder / "out").returncode == 0


def test_copy_of_a_model_with_a_changed_byte_is_refused(folder):
    model = shutil.copytree(folder / "out" / "model", folder / "model")
    variables = next((model / "variables").glob("*.data-*"))
    data = bytearray(variables.read_bytes())
    data[len(data) // 2] ^= 1
    variables.write_bytes(data)
    call = ("--data", folder / "photos", "--out", folder / "labels.csv")
    done = run_job("predict", "--model", model, *call)
    assert done.returncode == 2 and f"variables/{variables.name}" in done.stderr and not (folder / "labels.csv").exists()
