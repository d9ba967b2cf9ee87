"""The whole job through the command line, as users meet it."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from job.pipeline.table import STAGES
from tests.conftest import (
    ROOT,
    WAIT_S,
    contents,
    linked_files,
    paint,
    quick_settings,
    run_installed,
    run_job,
    start_job,
    wait_until,
    would_run,
)


def last_event(out):
    return json.loads((out / "logs" / "events.jsonl").read_text().splitlines()[-1])


@pytest.fixture
def copy_of_run(finished_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished_run, out, symlinks=True)
    return out


def test_every_artifact_of_the_contract_is_there(finished_run, painted):
    names = ("run.json", "examples.parquet", "metrics.json", "predictions.parquet", "report.html", "logs/events.jsonl")
    for name in names:
        assert (finished_run / name).stat().st_size > 0, name
    for name in ("saved_model.pb", "model.keras", "model.json", "parity.json"):
        assert (finished_run / "model" / name).stat().st_size > 0, name
    assert list((finished_run / "logs" / "tensorboard").iterdir())
    assert {p.stem for p in (finished_run / "stages").glob("*.json")} == set(STAGES)
    run = json.loads((finished_run / "run.json").read_text())
    assert run["command"].startswith("transfer-job run ") and str(painted) in run["command"]
    assert run["versions"]["keras"] and run["fingerprint"]["cpu"]


def test_files_that_the_report_links_to_lie_beside_it(finished_run):
    linked = linked_files(finished_run / "report.html")
    assert [file.name for file in linked] == ["examples.parquet", "label_issues.csv", "metrics.json", "predictions.parquet"]
    assert all(file.is_file() for file in linked)


def test_last_event_has_the_result_and_the_id_of_the_run(finished_run):
    event = last_event(finished_run)
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert (event["event"], event["result"], event["exit_code"]) == ("run_ended", "ok", 0)
    assert event["accuracy"] == metrics[metrics["shipped"]]["test"]["accuracy"]
    assert metrics["run_id"] == json.loads((finished_run / "run.json").read_text())["run_id"]


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("evaluate.ece_bins=7", "evaluate"),
        pytest.param("fine_tune.keep=best", "fine_tune", marks=pytest.mark.thorough),
        pytest.param("export.parity_photos=5", "export", marks=pytest.mark.thorough),
    ],
)
def test_tensorflow_prints_nothing_in_whichever_stage_it_is_first_used(copy_of_run, painted, setting, first):
    done = run_installed("run", "--data", painted, "--out", copy_of_run, *quick_settings(setting), "--stop-after", first)
    begun = done.stderr.partition(f"{first:<10}runs\n")[2].splitlines()
    assert done.returncode == 0 and begun, done.stderr
    known = re.compile(r"(\w+ +(runs|skipped|done in) ?.*|  (epoch|fine.tune|familiarity).*)")
    assert [line for line in begun if not known.fullmatch(line)] == []


@pytest.mark.thorough
def test_tensorflow_prints_nothing_in_predict(finished_run, painted, tmp_path):
    done = run_installed("predict", "--model", finished_run, "--data", painted / "checks", "--out", tmp_path / "a.csv")
    said = [line for line in done.stderr.splitlines() if not line.startswith("  predict: ")]  # A busy machine tells how far.
    assert (done.returncode, said) == (0, [])


def test_run_json_that_a_kill_has_left_out_is_written_by_the_next_run(copy_of_run, painted):
    (copy_of_run / "run.json").unlink()
    done = run_job("run", "--data", painted, "--out", copy_of_run, *quick_settings())
    assert done.returncode == 0 and not re.search(r"^\w+ +runs", done.stderr, re.MULTILINE), done.stderr
    assert json.loads((copy_of_run / "run.json").read_text())["out"] == str(copy_of_run)


def test_table_lists_every_file_and_what_became_of_it(finished_run, painted):
    table = pq.read_table(finished_run / "examples.parquet").to_pylist()
    files = {p.relative_to(painted).as_posix() for p in painted.rglob("*") if p.is_file()}
    assert {row["path"] for row in table} == files
    row = {r["path"]: r for r in table}
    assert row["stripes/broken.jpg"]["status"] == "quarantined" and row["stripes/broken.jpg"]["reason"] == "an HTML page"
    assert "turned upright" in row["checks/turned.jpg"]["reason"]
    assert (row["checks/turned.jpg"]["width"], row["checks/turned.jpg"]["height"]) == (60, 72)


def test_metrics_agree_with_the_predictions(finished_run):
    metrics = json.loads((finished_run / "metrics.json").read_text())
    rows = pq.read_table(finished_run / "predictions.parquet").to_pylist()
    examples = pq.read_table(finished_run / "examples.parquet").to_pylist()
    held_out = [e["path"] for e in examples if e["split"] == "test" and e["status"] in ("used", "converted")]
    assert sorted(r["path"] for r in rows) == sorted(held_out)  # Every held-out example once.
    for name in ("head", "fine_tuned"):
        probabilities = np.asarray([r[f"{name}_probabilities"] for r in rows])
        labels = np.asarray([metrics["class_names"].index(r["label"]) for r in rows])
        assert metrics[name]["test"]["num_examples"] == len(rows)
        assert metrics[name]["test"]["accuracy"] == pytest.approx((probabilities.argmax(1) == labels).mean())
        low, high = metrics[name]["test"]["accuracy_ci95"]
        assert low <= metrics[name]["test"]["accuracy"] <= high
    assert metrics["shipped"] in ("head", "fine_tuned") and set(metrics["timings"]) >= {"intake", "extract", "fine_tune"}


def test_time_of_every_stage_is_accounted_for(finished_run):
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert set(metrics["timings"]) == set(STAGES)
    for stage, times in metrics["timings"].items():
        # CPU seconds of decoding stand for wall seconds, and clocks of processes tick more coarsely.
        assert sum(times["spent_s"].values()) <= times["wall_s"] + 0.05, stage
    spent = {what for times in metrics["timings"].values() for what in times["spent_s"]}
    assert spent >= {"decode", "drawing", "imports", "building", "tracing", "forward", "training", "waiting for data"}
    assert round(sum(metrics["share"].values()), 9) == 1 and min(metrics["share"].values()) >= 0
    assert metrics["share"]["overhead"] > metrics["share"]["decode"] > 0  # On 81 small pictures.
    throughput = metrics["throughput"]
    assert throughput["extract_forward_views_per_s"] > throughput["extract_views_per_s"] > 0
    assert throughput["fine_tune_training_examples_per_s"] > throughput["fine_tune_examples_per_s"] > 0
    assert throughput["intake_photos_per_s"] > 0 and throughput["evaluate_photos_per_s"] > 0


def test_exported_model_is_proven_to_agree(finished_run):
    parity = json.loads((finished_run / "model" / "parity.json").read_text())
    assert parity["agrees"] and parity["arrays"]["largest_difference"] <= 1e-4
    assert parity["exif"]["largest_difference"] <= 0.02 and parity["bytes"]["num_photos"] == parity["num_photos"] > 5


def difference_of_keras_file(out: Path) -> float:
    """The largest difference of model.keras, loaded in a process of its own without KerasHub, to predictions.parquet."""
    script = (
        "import sys\nsys.modules['keras_hub'] = None\n"
        "import sys, json, keras, numpy as np, pyarrow.parquet as pq\n"
        "from pathlib import Path\n"
        "from job.stores.arrays import ArrayStore\n"
        "from job.data.examples import Examples\n"
        "out = Path(sys.argv[1])\n"
        "model = keras.saving.load_model(out / 'model' / 'model.keras', safe_mode=True)\n"
        "shipped = json.loads((out / 'metrics.json').read_text())['shipped']\n"
        "rows = pq.read_table(out / 'predictions.parquet').to_pylist()\n"
        "examples = Examples.load(out / 'examples.parquet')\n"
        "place = dict(zip(examples['path'], examples['row']))\n"
        "name = json.loads((out / 'stages' / 'intake' / 'intake.json').read_text())['images']\n"
        "pixels = ArrayStore(out / 'cache' / name).rows([place[r['path']] for r in rows])\n"
        "expected = np.asarray([r[shipped + '_probabilities'] for r in rows])\n"
        "found = model.predict(pixels, verbose=0)\n"
        "assert found.keys() == {'probabilities', 'familiarity', 'accepted', 'features'}, found.keys()\n"
        "assert (found['accepted'] == [r['accepted'] for r in rows]).all()\n"
        "print(float(np.abs(found['probabilities'] - expected).max()))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])


def test_keras_file_loads_in_safe_mode_and_predicts_the_same(finished_run):
    assert difference_of_keras_file(finished_run) < 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("family", [pytest.param("DINOV2", marks=pytest.mark.long), "DINOV3"])
def test_backbone_of_kerashub_goes_through_the_whole_job(tmp_path, painted, family):
    import keras_hub

    backbone = getattr(keras_hub.models, f"{family}Backbone")
    sizes = {"patch_size": 16, "num_layers": 2, "hidden_dim": 24, "num_heads": 2, "intermediate_dim": 48}
    backbone(image_shape=(48, 48, 3), num_register_tokens=2, **sizes).save_to_preset(str(tmp_path / "preset"))
    settings = ["intake.image_size=48", "augment.views=2", "fine_tune.epochs=2", "backbone.unfreeze=block_1"]
    words = [word for setting in (*settings, "backbone.name=hub:tiny") for word in ("--set", setting)]
    out = tmp_path / "out"
    done = run_job("run", "--data", painted, "--out", out, "--weights", tmp_path / "preset", *words)
    assert done.returncode == 0, done.stderr
    parity = json.loads((out / "model" / "parity.json").read_text())
    assert parity["agrees"] and parity["arrays"]["largest_difference"] <= 1e-4
    assert difference_of_keras_file(out) < 1e-4


def test_finished_run_is_left_alone_without_importing_anything_heavy(finished_run, painted):
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*") if p.is_file() and p.name != "events.jsonl"}
    script = (
        "import sys\nfrom job.__main__ import start\n"
        "try: start()\n"
        "except SystemExit as e: print('EXIT', e.code)\n"
        "print('HEAVY', sorted({'tensorflow', 'keras', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    arguments = ["run", "--data", str(painted), "--out", str(finished_run), *quick_settings()]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "EXIT 0" in done.stdout and "HEAVY []" in done.stdout, done.stdout + done.stderr
    assert "Accuracy" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize(
    ("setting", "runs"),
    [
        ("fine_tune.epochs=3", {"fine_tune", "evaluate", "heatmaps", "export", "convert", "report"}),
        ("fine_tune.layer_decay=0.75", {"fine_tune", "evaluate", "heatmaps", "export", "convert", "report"}),
        ("train.seed=9", {"fine_tune", "evaluate", "heatmaps", "export", "convert", "report"}),
        ("head.c_grid=[0.01]", {"head", "fine_tune", "evaluate", "heatmaps", "export", "convert", "report"}),
        (
            "augment.views=3",
            {"extract", "audit", "head", "fine_tune", "evaluate", "heatmaps", "export", "convert", "report"},
        ),
        ("explore.samples_per_class=3", {"explore", "report"}),
        ("report.title=Other", {"report"}),
        ("intake.image_size=64", set(STAGES)),
        ("intake.workers=1", set()),
    ],
)
def test_a_changed_setting_makes_stale_what_depends_on_it(finished_run, painted, setting, runs):
    assert would_run(painted, finished_run, setting) == runs


def test_changed_epochs_run_only_fine_tune_and_what_follows(copy_of_run, painted):
    changed = quick_settings("fine_tune.epochs=1")
    records = {p: p.stat().st_mtime_ns for p in (copy_of_run / "stages").glob("*.json")}
    done = run_job("run", "--data", painted, "--out", copy_of_run, *changed)
    assert done.returncode == 0, done.stderr
    touched = {p.stem for p, mtime in records.items() if p.stat().st_mtime_ns != mtime}
    assert touched == {"fine_tune", "evaluate", "heatmaps", "export", "convert", "report"}


def test_layers_below_the_head_keep_their_weights_if_rates_fall_to_almost_nothing(copy_of_run, painted):
    """So two seeds end with the same weights, but for the kernel and the bias of the head."""
    settings = quick_settings("fine_tune.layer_decay=1e-20", "train.seeds=2")
    done = run_job("run", "--data", painted, "--out", copy_of_run, *settings, "--stop-after", "fine_tune")
    assert done.returncode == 0, done.stderr
    with np.load(copy_of_run / "stages/fine_tune/weights.npz") as weights:
        *body, kernel, bias = (name for name in weights if name.startswith("seed 0"))
        same = {name: np.array_equal(weights[name], weights[name.replace("seed 0", "seed 1")]) for name in weights}
    assert body and all(same[name] for name in body) and not same[kernel] and not same[bias]


def test_missing_store_is_made_again_only_when_it_is_needed(copy_of_run, painted):
    shutil.rmtree(copy_of_run / "cache")
    assert would_run(painted, copy_of_run) == set()
    needed = would_run(painted, copy_of_run, "fine_tune.epochs=1")
    assert needed == {"intake", "extract", "fine_tune", "evaluate", "heatmaps", "export", "convert", "report"}


def test_run_that_stops_early_leaves_the_model_in_service_and_what_it_saw_beside_it(copy_of_run, painted):
    done = run_job("explore", "--data", painted, "--out", copy_of_run, *quick_settings("explore.samples_per_class=2"))
    assert done.returncode == 0 and not (copy_of_run / "attempt").exists()
    assert 'id="results"' in (copy_of_run / "report.html").read_text()  # The page still shows what still holds.
    before = contents(copy_of_run, "model", "metrics.json", "predictions.parquet", "report.html")
    done = run_job("explore", "--data", painted, "--out", copy_of_run, *quick_settings("intake.image_size=64"))
    assert done.returncode == 0, done.stderr
    assert contents(copy_of_run, "model", "metrics.json", "predictions.parquet", "report.html") == before
    page = copy_of_run / "attempt" / "report.html"
    assert 'id="results"' not in page.read_text() and linked_files(page) and all(f.is_file() for f in linked_files(page))
    looked_at, last = done.stdout.splitlines()
    assert "files looked at. Report: " in looked_at and "attempt/report.html" in looked_at
    assert last.startswith("The earlier model stays published: ") and "accuracy" in last
    back = run_job("run", "--data", painted, "--out", copy_of_run, *quick_settings())
    assert back.returncode == 0 and not (copy_of_run / "attempt").exists(), back.stderr


@pytest.mark.thorough
def test_table_of_doubtful_labels_that_its_user_edited_is_kept_beside_the_new_one(copy_of_run, painted):
    table = copy_of_run / "label_issues.csv"
    table.write_text("edited")
    done = run_job("run", "--data", painted, "--out", copy_of_run, *quick_settings("fine_tune.epochs=1"))
    assert done.returncode == 0, done.stderr
    assert (copy_of_run / "label_issues.edited.csv").read_text() == "edited" and table.read_text("utf-8-sig").startswith(
        "path,"
    )


def test_damaged_output_is_made_again(copy_of_run, painted):
    (copy_of_run / "stages/evaluate/predictions.parquet").write_bytes(b"half")
    assert "evaluate" in would_run(painted, copy_of_run)
    whole = (copy_of_run / "metrics.json").read_bytes()
    (copy_of_run / "metrics.json").write_bytes(b"half")
    shutil.rmtree(copy_of_run / "model")
    assert run_job("report", copy_of_run).returncode == 2  # It says what is damaged, and leaves the rest as it is.
    (copy_of_run / "stages/evaluate/predictions.parquet").write_bytes((copy_of_run / "predictions.parquet").read_bytes())
    done = run_job("run", "--data", painted, "--out", copy_of_run, *quick_settings())
    assert done.returncode == 0 and "runs" not in done.stderr, done.stderr
    assert (copy_of_run / "metrics.json").read_bytes() == whole and (copy_of_run / "model" / "model.json").exists()


def test_dry_run_prints_configuration_plan_and_cut_and_touches_nothing(painted, tmp_path):
    done = run_job("run", "--data", painted, "--out", tmp_path / "out", "--dry-run", *quick_settings())
    assert done.returncode == 0, done.stderr
    assert 'name = "mobilenet_v2"' in done.stdout and "cut after" in done.stdout
    assert "intake     runs: it has not been finished before" in done.stdout
    assert not (tmp_path / "out").exists()


def test_quality_is_an_option_that_trains_more_layers_unless_a_setting_says_otherwise(painted, copy_of_run, tmp_path):
    dry = ("run", "--data", painted, "--out", tmp_path / "out", "--dry-run", "--set", "backbone.weights=random")
    fast, best = run_job(*dry), run_job(*dry, "--quality", "best")
    assert "unfreeze = 0.4" in fast.stdout and "unfreeze = 0.68" in best.stdout and "mirror = true" in best.stdout
    assert 'unfreeze = "none"' in run_job(*dry, "--quality", "best", "--set", "backbone.unfreeze=none").stdout
    wrong = run_job(*dry, "--quality", "good")
    assert wrong.returncode == 2 and "train.quality: got 'good'; allowed: fast or balanced or best" in wrong.stderr
    assert {"extract", "fine_tune"} <= would_run(painted, copy_of_run, "train.quality=balanced")


def test_explore_alone_leaves_a_page_and_trains_nothing(painted, tmp_path):
    done = run_job("explore", "--data", painted, "--out", tmp_path / "out", *quick_settings())
    assert done.returncode == 0, done.stderr
    assert [file.is_file() for file in linked_files(tmp_path / "out" / "report.html")] == [True]
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert not (tmp_path / "out" / "cache" / "features").exists()
    assert done.stdout.strip().endswith("report.html")


def test_report_is_drawn_again_from_the_artifacts(copy_of_run):
    page = (copy_of_run / "report.html").read_bytes()
    (copy_of_run / "report.html").unlink()
    shutil.rmtree(copy_of_run / "cache")
    done = run_job("report", copy_of_run)
    assert done.returncode == 0, done.stderr
    assert len((copy_of_run / "report.html").read_bytes()) == pytest.approx(len(page), rel=0.02)
    assert run_job("report", copy_of_run / "stages").returncode == 2


def test_stop_signal_ends_with_143_and_the_same_command_goes_on(painted, tmp_path):
    out = tmp_path / "out"
    arguments = ("run", "--data", painted, "--out", out, *quick_settings("fine_tune.epochs=500"))
    process = start_job(*arguments, stderr=subprocess.PIPE, text=True)
    log = out / "logs" / "events.jsonl"
    wait_until(lambda: log.exists() and '"epoch"' in log.read_text(), is_alive=lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143, errors
    assert re.search(r"^SIGTERM received in fine_tune: stopping", errors, re.MULTILINE)
    assert re.search(r"^  epoch 1 of 500: training loss \d\.\d{3}, validation accuracy \d+\.\d%$", errors, re.MULTILINE)
    assert last_event(out)["result"] == "stopped" and last_event(out)["exit_code"] == 143
    assert "Stopped by SIGTERM" in errors and "same command goes on" in errors and "Traceback" not in errors
    finished = {p.stem for p in (out / "stages").glob("*.json")}
    assert finished == {"intake", "split", "explore", "extract", "audit", "head"}
    again = would_run(painted, out, "fine_tune.epochs=500")
    assert not again & finished and "fine_tune" in again


def test_quality_gate_that_is_not_met_ends_with_3_and_exports_nothing(copy_of_run, painted):
    settings = quick_settings("evaluate.min_accuracy=1.0", "head.c_grid=[1e-9]", "fine_tune.epochs=0")
    done = run_job("run", "--data", painted, "--out", copy_of_run, *settings)
    assert done.returncode == 3, done.stderr
    event, metrics = last_event(copy_of_run), json.loads((copy_of_run / "attempt" / "metrics.json").read_text())
    assert (event["result"], event["exit_code"]) == ("failed", 3)
    assert event["accuracy"] == metrics["head"]["test"]["accuracy"] and event["run_id"] == metrics["run_id"]
    assert "The quality gate was not met" in done.stderr and "evaluate.min_accuracy = 1.0 asks for" in done.stderr
    assert not (copy_of_run / "attempt" / "model").exists() and (copy_of_run / "attempt" / "report.html").exists()
    assert (copy_of_run / "model").exists() and "The earlier model stays published" in done.stderr
    assert "held-out photos, the earlier model has an accuracy of" in done.stderr
    assert (copy_of_run / "attempt" / "comparison.parquet").exists() and not (copy_of_run / "comparison.parquet").exists()
    again = run_job("run", "--data", painted, "--out", copy_of_run, *settings)
    assert again.returncode == 3 and "runs" not in again.stderr


def test_predict_labels_what_it_can_and_lists_the_rest(finished_run, painted, tmp_path):
    photos = tmp_path / "new"
    for k in range(5):
        paint(photos / f"{k}.jpg", seed=800 + k)
    paint(photos / "deeper" / 'name, with "quotes".png', seed=900, kind="checks")
    (photos / "broken.jpg").write_bytes(b"<html>")
    (photos / "notes.txt").write_text("nothing")
    for name in ("out.parquet", "out.csv"):
        done = run_job("predict", "--model", finished_run / "model", "--data", photos, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "6 photos labelled, 1 could not be read" in done.stdout
    rows = {r["path"]: r for r in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    assert rows["broken.jpg"]["error"] == "an HTML page" and rows["broken.jpg"]["label"] is None
    assert rows["0.jpg"]["label"] in ("checks", "stripes") and 0.5 <= rows["0.jpg"]["probability"] <= 1
    assert next(iter(json.loads(rows["0.jpg"]["top_3"]))) == rows["0.jpg"]["label"]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 8


def test_predict_agrees_with_the_runs_own_predictions(finished_run, painted, tmp_path):
    done = run_job("predict", "--model", finished_run / "model", "--data", painted, "--out", tmp_path / "p.parquet")
    assert done.returncode == 0, done.stderr
    new = {r["path"]: r for r in pq.read_table(tmp_path / "p.parquet").to_pylist()}
    shipped = json.loads((finished_run / "metrics.json").read_text())["shipped"]
    for row in pq.read_table(finished_run / "predictions.parquet").to_pylist():
        assert new[row["path"]]["label"] == row["predicted"]
        assert new[row["path"]]["probability"] == pytest.approx(max(row[f"{shipped}_probabilities"]), abs=1e-4)


def test_wrong_model_or_output_is_a_usage_error(finished_run, painted, tmp_path):
    assert run_job("predict", "--model", tmp_path, "--data", painted, "--out", "x.csv").returncode == 2
    assert run_job("predict", "--model", finished_run / "model", "--data", painted, "--out", "x.txt").returncode == 2


def test_output_where_nothing_can_be_made_ends_with_2(painted):
    done = run_job("run", "--data", painted, "--out", "/proc/nowhere", *quick_settings())
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.thorough
def test_messy_folder_says_why_and_runs_when_it_may(shared, tmp_path):
    data, out = shared / "data" / "messy", tmp_path / "out"
    done = run_job("run", "--data", data, "--out", out, *quick_settings())
    assert done.returncode == 65
    assert "git lfs pull" in done.stderr and "intake.max_quarantined_fraction" in done.stderr
    text = re.sub("<[^>]+>", "", (out / "report.html").read_text())
    assert "This data cannot be used for training as it is." in text and "train/tulips/bitrot.jpg" in text
    again = run_job("run", "--data", data, "--out", out, *quick_settings())
    assert again.returncode == 65 and "runs" not in again.stderr, "what is known needs no work"
    budget = quick_settings("intake.max_quarantined_fraction=0.5")
    done = run_job("run", "--data", data, "--out", out, *budget)
    assert done.returncode == 65
    for name in ("single_photo_class", "class_only_in_val", "empty_class", "intake.drop_small_classes=true"):
        assert name in done.stderr
    allowed = quick_settings("intake.max_quarantined_fraction=0.5", "intake.drop_small_classes=true")
    done = run_job("run", "--data", data, "--out", out, *allowed)
    assert done.returncode == 0, done.stderr
    status = {r["path"]: r for r in pq.read_table(out / "examples.parquet").to_pylist()}
    assert status["val/tulips/leaked_resaved.jpg"]["status"] == "used"
    assert status["train/tulips/13562266594_69b807f90c.jpg"]["status"] == "excluded"
    half, whole = (status[f"train/daisy/{n}.jpg"] for n in ("near_dup_half_size", "4565255237_9ba29c4d4e_n"))
    assert half["group"] == whole["group"] and half["split"] == whole["split"]
    assert status["train/tulips/also_a_rose.jpg"]["status"] == "quarantined"
    assert status["train/tulips/bitrot.jpg"]["status"] == "quarantined"


@pytest.mark.thorough
def test_real_photos_with_real_weights(shared, tmp_path):
    weights = shared / "weights" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    out = tmp_path / "out"
    arguments = ("--set", "intake.image_size=96", "--set", "backbone.alpha=0.35", "--weights", weights)
    done = run_job("run", "--data", shared / "data" / "tiny-flowers", "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Accuracy ") and "40 held-out photos" in done.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["head"]["test"]["accuracy"] > 0.5  # A guess is right once in five.
    assert len(done.stderr.splitlines()) < 80 and "oneDNN" not in done.stderr


@pytest.mark.thorough
def test_two_logical_devices_run_the_whole_job(painted, tmp_path):
    done = run_job("run", "--data", painted, "--out", tmp_path / "out", *quick_settings("cluster.logical_cpus=2"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "model" / "parity.json").read_text())["agrees"]


def test_demo_draws_runs_and_says_where_the_report_is(tmp_path):
    done = run_job("demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    report = Path(done.stdout.split("Report: ")[1].strip())
    assert report.exists()
    metrics = json.loads((tmp_path / "demo" / "run" / "metrics.json").read_text())
    assert len(metrics["class_names"]) >= 6
    assert metrics[metrics["shipped"]]["test"]["accuracy"] > 2 / len(metrics["class_names"])
    statuses = set(pq.read_table(tmp_path / "demo" / "run" / "examples.parquet")["status"].to_pylist())
    assert {"used", "converted", "quarantined", "ignored"} <= statuses


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (("fine_tune.keep=best", "fine_tune.patience=1", "fine_tune.epochs=4"), "the lowest validation log loss"),
        (("fine_tune.learning_rate=30.0", "fine_tune.epochs=4"), "Training collapsed in epoch"),
        (
            ("fine_tune.ema=true", "fine_tune.precision=mixed_bfloat16", "fine_tune.epochs=1"),
            "The weights of the last epoch (1) are kept",
        ),
    ],
)
@pytest.mark.thorough
def test_epoch_that_is_kept(copy_of_run, painted, settings, note):
    arguments = quick_settings(*settings)
    done = run_job("run", "--data", painted, "--out", copy_of_run, "--stop-after", "fine_tune", *arguments)
    assert done.returncode == 0, done.stderr
    summary = json.loads((copy_of_run / "stages" / "fine_tune" / "fine_tune.json").read_text())
    assert note in summary["note"]
    losses = [epoch["val_log_loss"] for epoch in summary["history"]]
    if "keep=best" in settings[0]:
        assert f"epoch {losses.index(min(losses))} of" in summary["note"]


def test_diverging_training_ends_with_70_and_publishes_nothing(copy_of_run, painted):
    settings = quick_settings("fine_tune.learning_rate=1e30")
    done = run_job("run", "--data", painted, "--out", copy_of_run, *settings)
    assert done.returncode == 70 and "fine_tune.learning_rate" in done.stderr
    assert not (copy_of_run / "attempt").exists() and (copy_of_run / "model" / "model.json").exists()
