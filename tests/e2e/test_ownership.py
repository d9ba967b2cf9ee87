"""Files that the job did not make are never removed, renamed or overwritten, tried through the command line."""

import json
import shutil
import subprocess

import pytest

from job.storage.ledger import MARK, is_reserved
from tests.conftest import contents, paint_classes, quick_settings, run_job, start_job

EXPLORE = quick_settings()
OWN_NAMES = ("cache/x.npy", "model/notes.txt", "metrics.json", "predictions.parquet", "report.html", "examples.parquet")
OWN_NAMES += ("run.json", "label_issues.csv", ".lease", "checkpoints/a", "stages/a.json", "versions/a", ".tmp/a", "logs/a")


def refused(before, folder, *arguments, **how):
    done = run_job(*arguments, **how)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert contents(folder) == before
    return done.stderr


@pytest.fixture
def photos(tmp_path):
    return paint_classes(tmp_path / "photos", per_class=6)


@pytest.mark.parametrize("name", OWN_NAMES)
def test_folder_with_a_file_of_its_user_is_refused_and_untouched(photos, tmp_path, name):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    said = refused(contents(tmp_path), tmp_path, "explore", "--data", photos, "--out", tmp_path / "mine")
    assert "holds files that this job did not make" in said and "runs/first" in said


def test_photos_inside_the_output_and_the_output_inside_photos_are_refused(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "x" / "cache")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    before = contents(tmp_path)
    for data, out in (
        (tmp_path / "x/cache", tmp_path / "x"),
        (tmp_path / "x/cache", tmp_path / "link"),
        (tmp_path / "link/cache", tmp_path / "x"),
        (photos, photos),
        (photos, photos / "stripes" / "out"),
        (tmp_path / "x", tmp_path / "link" / "cache" / "out"),
    ):
        said = refused(before, tmp_path, "explore", "--data", data, "--out", out)
        assert "lie inside each other" in said


def test_demo_does_not_draw_over_photos_of_its_user(photos, tmp_path):
    before = contents(tmp_path)
    assert "photos" in refused(before, tmp_path, "demo", "--out", tmp_path)


def test_table_under_a_name_of_the_job_is_refused_with_the_command_to_type(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / MARK).touch()
    (out / "label_issues.csv").write_text("path,label\n")
    before = contents(tmp_path)
    said = refused(before, tmp_path, "explore", "--data", photos, "--labels", out / "label_issues.csv", "--out", out)
    assert "under a name that the job writes itself" in said and "cp " in said


def test_what_systems_leave_and_the_runs_own_log_and_configuration_are_no_content(photos, tmp_path):
    out = tmp_path / "out"
    for folder in ("lost+found", "@eaDir", ".Trash-0"):
        (out / folder).mkdir(parents=True)
    for name in (".DS_Store", ".nfs0001", "job-4711.log"):
        (out / name).write_bytes(b"left")
    (out / "run.toml").write_text("[intake]\nimage_size = 48\n")
    arguments = ("explore", "--data", photos, "--out", out, "--config", out / "run.toml")
    with (
        (out / "log").open("w") as log,
        start_job(*arguments, environment={"SLURM_JOB_ID": "4711"}, stdout=log, stderr=log) as done,
    ):
        pass
    assert done.returncode == 0, (out / "log").read_text()
    assert (out / ".DS_Store").read_bytes() == b"left" and (out / "report.html").exists()


def test_output_of_version_1_is_refused_with_one_line(photos, tmp_path):
    out = tmp_path / "old"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"settings_of_stages": {}}))
    said = refused(contents(tmp_path), tmp_path, "explore", "--data", photos, "--out", out)
    assert "is the output of transfer-job 0.1" in said


def test_shared_cache_with_anything_but_stores_is_refused(photos, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.tex").write_bytes(b"mine")
    arguments = ("explore", "--data", photos, "--out", tmp_path / "out", "--set", f"cache.dir={tmp_path}/cache")
    assert "thesis.tex" in refused(contents(tmp_path), tmp_path, *arguments)


def test_files_put_into_an_output_stay_through_every_later_run(photos, tmp_path):
    out = tmp_path / "out"
    assert run_job("explore", "--data", photos, "--out", out, *EXPLORE).returncode == 0
    assert all(is_reserved(p.relative_to(out).as_posix()) for p in out.rglob("*"))
    stores = next((out / "cache").glob("images-*")).name
    names = ("notes.txt", "stages/explore/pictures/mine.jpg", "stages/notes", "cache/notes", f"cache/{stores}/x.npy")
    names += (f"cache/{stores}/{'0' * 32}.json", f"cache/images-{'0' * 16}/x.npy", "model/notes.txt", "metrics.json.bak")
    for name in (*names, f".report.html.{'0a' * 6}.part"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    done = run_job("explore", "--data", photos, "--out", out, *quick_settings("intake.image_size=64"))
    assert done.returncode == 0, done.stderr
    assert all((out / name).read_bytes() == b"mine" for name in names)


def test_output_that_was_moved_goes_on_where_it_was(photos, tmp_path):
    assert run_job("explore", "--data", photos, "--out", tmp_path / "out", *EXPLORE).returncode == 0
    (tmp_path / "out").rename(tmp_path / "moved")
    done = run_job("explore", "--data", photos, "--out", tmp_path / "moved", *EXPLORE)
    assert done.returncode == 0 and "runs" not in done.stderr, done.stderr


def test_of_six_starts_at_once_one_owns_the_output(photos, tmp_path):
    arguments = ("explore", "--data", photos, "--out", tmp_path / "out", *EXPLORE)
    processes = [start_job(*arguments, stderr=subprocess.PIPE) for _ in range(6)]
    ends = [(p.communicate()[1].decode(), p.returncode) for p in processes]
    codes = [code for _, code in ends]
    assert 0 in codes and set(codes) <= {0, 75}, ends  # A late one may find the first finished, and has nothing to do.
