"""Stores that runs share, budgets for them, and runs without them, through the command line."""

import json
import subprocess

import pyarrow.parquet as pq
import pytest

from job.stores.arrays import ArrayStore
from tests.conftest import WAIT_S, paint_classes, quick_settings, run_job, start_job

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return paint_classes(tmp_path_factory.mktemp("cache") / "photos", per_class=24)


def arguments(photos, out, *settings):
    return ["run", "--data", photos, "--out", out, *quick_settings("export.parity_photos=4", *settings)]


def evaluated(photos, out, *settings):
    """The arguments of a run that makes predictions and no model, which takes a third less time."""
    return [*arguments(photos, out, *settings), "--stop-after", "evaluate"]


def predictions_of(out):
    return pq.read_table(out / "stages/evaluate/predictions.parquet").to_pylist()


def arrays_below(folder):
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*.npy")}


def records_of(out):
    return {p.stem: json.loads(p.read_text()) for p in (out / "stages").glob("*.json")}


def test_two_runs_at_once_share_stores_and_a_third_with_another_seed_begins_at_the_head(photos, tmp_path):
    cache = tmp_path / "shared"
    outs = [tmp_path / name for name in ("a", "b", "c")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    both = [start_job(*evaluated(photos, out, f"cache.dir={cache}"), text=True, **pipes) for out in outs[:2]]
    ended = [process.communicate(timeout=WAIT_S)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    records = [records_of(out) for out in outs[:2]]
    for name in ("intake", "extract"):
        assert records[0][name]["stores"] == records[1][name]["stores"]
        assert all(ArrayStore.is_intact(cache / store) for store in records[0][name]["stores"])
    first, second = map(predictions_of, outs[:2])
    assert first == second

    before = arrays_below(cache)
    done = run_job(*evaluated(photos, outs[2], f"cache.dir={cache}", "train.seed=9", "head.c_grid=[0.05]"))
    assert done.returncode == 0, done.stderr
    assert arrays_below(cache) == before and not (outs[2] / "cache").exists()
    assert records_of(outs[2])["extract"]["stores"] == records[0]["extract"]["stores"]
    assert predictions_of(outs[2]) != first


def test_budget_is_refused_before_the_work_begins(photos, tmp_path):
    done = run_job(*arguments(photos, tmp_path / "out", "cache.max_gb=0.0001"))
    assert done.returncode == 2 and "cache.max_gb allows 0.0001" in done.stderr, done.stderr
    assert not list((tmp_path / "out").rglob("*.npy"))


@pytest.mark.parametrize("place", ["photos", "file"])
def test_cache_that_cannot_be_there_is_refused(photos, tmp_path, place):
    (tmp_path / "file").write_text("")
    folder = {"photos": photos / "cache", "file": tmp_path / "file" / "cache"}[place]
    done = run_job(*arguments(photos, tmp_path / "out", f"cache.dir={folder}"))
    assert done.returncode == 2 and str(folder) in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (photos / "cache").exists()


def test_budget_that_activations_would_break_sends_fine_tuning_online(photos, tmp_path):
    """Photos (48 of 7 kB) and features fit, activations of a low cut (18 kB for each view) do not."""
    low = ("backbone.unfreeze=Conv1_relu", "cache.max_gb=0.0015")
    done = run_job(*evaluated(photos, tmp_path / "out", *low))
    assert done.returncode == 0, done.stderr
    assert "online inputs" in done.stderr and "may take on the disk" in done.stderr
    extracted = json.loads((tmp_path / "out" / "stages/extract/extract.json").read_text())
    assert extracted["inputs"]["kind"] == "online" and set(extracted["stores"]) == {"features", "features-views"}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["fine_tuned"] is not None


def test_everything_is_trained_where_nothing_is_frozen(photos, tmp_path):
    done = run_job(*arguments(photos, tmp_path / "out", "backbone.unfreeze=all", "fine_tune.epochs=1", "augment.views=1"))
    assert done.returncode == 0, done.stderr
    assert "nothing stays frozen" in done.stderr
    assert "computed again in every epoch: nothing stays frozen" in (tmp_path / "out" / "report.html").read_text()


def test_stores_of_earlier_settings_leave_the_runs_own_cache(photos, tmp_path):
    folders = []
    for image_size in (48, 64):
        settings = (f"intake.image_size={image_size}", "fine_tune.epochs=0")
        done = run_job(*arguments(photos, tmp_path / "out", *settings), "--stop-after", "extract")
        assert done.returncode == 0, done.stderr
        folders.append({p.name for p in (tmp_path / "out" / "cache").iterdir() if not p.name.startswith("files-")})
    assert len(folders[0]) == len(folders[1]) and not folders[0] & folders[1]
    done = run_job(*arguments(photos, tmp_path / "b", f"cache.dir={tmp_path / 'out' / 'cache'}"), "--stop-after", "intake")
    assert done.returncode == 0 and done.stdout == "48 files looked at.\n", done.stderr  # Nothing to draw yet.
    theirs = arrays_below(tmp_path / "out" / "cache")
    done = run_job(*arguments(photos, tmp_path / "out", "intake.image_size=32"), "--stop-after", "intake")
    assert done.returncode == 0, done.stderr  # Another run wants them now.
    assert theirs.items() <= arrays_below(tmp_path / "out" / "cache").items()


def test_one_command_line_makes_the_runs_of_a_sweep(photos, tmp_path):
    command = ["explore", "--data", photos, "--out", tmp_path / "{index}", "--set", "intake.image_size=48"]
    for index in ("0", "1"):
        done = run_job(*command, "--set", "train.seed={index}", JOB_COMPLETION_INDEX=index)
        assert done.returncode == 0, done.stderr
        assert f"Kubernetes: pod {index}, a run of its own" in done.stderr
        recorded = json.loads((tmp_path / index / "run.json").read_text())
        assert recorded["config"]["train"]["seed"] == int(index)
        assert "{index}" not in json.dumps(recorded)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}
