"""Which backbone? On drawn photos with random weights, and on real photos with real ones."""

import csv
import json
import re
import shlex
import signal
import subprocess

import pyarrow.parquet as pq
import pytest

from tests.conftest import WAIT_S, run_job, start_job

SMALL, LARGE = "mobilenet_v2-0.35-48px-random", "mobilenet_v2-0.5-48px-random"


def arguments(painted, folder):
    broken = folder / "broken.weights.h5"
    broken.write_bytes(b"no weights at all")
    backbones = f"mobilenet_v2:alpha=0.35,mobilenet_v2:alpha=0.5,mobilenet:weights={broken}"
    words = ["rank", "--data", painted, "--out", folder / "out", "--backbones", backbones, "--image-size", 48]
    return [*map(str, words), "--weights", "random"]


@pytest.fixture(scope="module")
def ranked(painted, tmp_path_factory):
    """A rank that is stopped after the first candidate's features, then called again until it is done."""
    folder = tmp_path_factory.mktemp("rank")
    words = arguments(painted, folder)
    with start_job(*words, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("extract   done"):
                process.send_signal(signal.SIGTERM)
                break
        process.communicate(timeout=WAIT_S)
    stopped = process.returncode
    done = run_job(*words)
    assert done.returncode == 0, done.stderr
    return folder, words, stopped, done


@pytest.mark.thorough
def test_interrupted_rank_goes_on_where_it_stopped(ranked):
    _, _, stopped, done = ranked
    assert stopped == 143
    assert done.stderr.count("extract   runs") == 1, "the second candidate; the third one cannot be built"
    assert len(re.findall(r"  [\d,]+ million multiply-adds for each photo; about [\d,]+ s for all photos", done.stderr)) == 1
    assert "intake    runs" not in done.stderr


def test_table_is_sorted_and_shows_what_could_not_be_built(ranked):
    folder, _, _, done = ranked
    lines = done.stdout.splitlines()
    shown = [float(match[1]) for line in lines if (match := re.match(r"mobilenet_v2 0\.\d+ +48 +(\d\.\d+)", line))]
    assert len(shown) == 2 and shown == sorted(shown, reverse=True) and max(map(len, lines[:6])) <= 120
    assert "mobilenet at 48 px is not ranked: --weights" in done.stdout and "broken.weights.h5" in done.stdout
    with (folder / "out" / "rank.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["mobilenet"]["accuracy"] == "" and "no file of Keras weights" in rows["mobilenet"]["reason"]
    small, large = rows["mobilenet_v2 0.35"], rows["mobilenet_v2 0.5"]
    assert int(small["multiply_adds"]) < int(large["multiply_adds"]) and int(small["parameters"]) == 410_208
    assert float(small["accuracy_ci95_low"]) < float(small["accuracy"]) < float(small["accuracy_ci95_high"])
    assert all(float(row["forward_cpu_ms"]) > 0 for row in (small, large))
    assert "mobilenet_v2 0.35, 48 px" in (folder / "out" / "rank.svg").read_text()


def test_only_training_and_validation_photos_are_probed(ranked):
    folder = ranked[0] / "out"
    rows = pq.read_table(folder / SMALL / "stages/split/examples.parquet").to_pylist()
    used = [row for row in rows if row["status"] in ("used", "converted")]
    num_probed = sum(row["split"] in ("train", "val") for row in used)
    assert 0 < num_probed < len(used)
    numbers = json.loads((folder / "rank.json").read_text())
    assert numbers["num_photos"] == num_probed
    for name in (SMALL, LARGE):
        assert len(json.loads((folder / name / "probe.json").read_text())["predicted"]) == num_probed


def test_second_rank_works_on_nothing_again_and_says_the_same(ranked):
    folder, words, _, done = ranked
    cache = folder / "out" / "cache"
    before = {path: path.stat().st_mtime_ns for path in (*cache.rglob("*.npy"), *folder.rglob("probe.json"))}
    again = run_job(*words)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert again.stderr.count(" runs") == 0 and "multiply-adds" not in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before} and before


def test_recommended_command_finds_what_rank_stored(ranked, tmp_path):
    folder, _, _, done = ranked
    command = shlex.split(done.stdout.splitlines()[-1])
    words = command[command.index("run") :]
    cache = folder / "out" / "cache"
    assert f"cache.dir={cache}" in words
    words[words.index("--out") + 1] = str(tmp_path / "out")
    before = set(cache.rglob("*.npy"))
    plain = ["--set", "backbone.unfreeze=none", "--set", "augment.views=1", "--stop-after", "extract"]
    ran = run_job(*words, *plain)
    assert ran.returncode == 0, ran.stderr
    assert set(cache.rglob("*.npy")) == before


@pytest.mark.thorough
def test_fine_tuned_candidates_are_compared_on_the_validation_photos(painted, tmp_path):
    words = ["rank", "--data", painted, "--out", tmp_path / "out", "--image-size", 48, "--weights", "random", "--fine-tune"]
    words += ["--backbones", "mobilenet_v2:alpha=0.35,mobilenet_v2:alpha=0.5", "--set", "fine_tune.learning_rate=1e-3"]
    done = run_job(*words)
    assert done.returncode == 0, done.stderr
    assert "after fine-tuning, on validation photos" in done.stdout
    folder = tmp_path / "out" / f"{SMALL}-fine_tuned"
    rows = pq.read_table(folder / "stages/audit/examples.parquet").to_pylist()
    val = {row["path"]: row["label"] for row in rows if row["split"] == "val" and row["status"] in ("used", "converted")}
    tuned = json.loads((folder / "tuned.json").read_text())
    assert set(tuned["paths"]) == set(val)
    right = sum(val[path] == name for path, name in zip(tuned["paths"], tuned["predicted"], strict=True))
    history = json.loads((folder / "stages/fine_tune/fine_tune.json").read_text())["history"]
    assert right / len(val) == pytest.approx(history[-1]["val_accuracy"]) and len(history) == 3, "the start and two epochs"
    numbers = json.loads((tmp_path / "out" / "rank.json").read_text())
    (small,) = [c for c in numbers["candidates"] if c["name"] == "mobilenet_v2 0.35"]
    assert small["accuracy"]["accuracy"] == pytest.approx(right / len(val)) and numbers["num_photos"] == len(val)
    command = done.stdout.splitlines()[-1]
    assert "fine_tune.learning_rate=1e-3" in command and "epochs" not in command, "the brief epochs are not recommended"
    again = run_job(*words)
    assert again.stdout == done.stdout and " runs" not in again.stderr


def test_where_nothing_can_be_built_it_ends_with_2_and_every_reason(painted, tmp_path):
    (tmp_path / "broken.h5").write_bytes(b"no weights")
    backbones = f"mobilenet:weights={tmp_path / 'broken.h5'},mobilenet_v2:weights={tmp_path / 'broken.h5'}"
    done = run_job("rank", "--data", painted, "--out", tmp_path / "out", "--backbones", backbones, "--image-size", 48)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "mobilenet-48px" in done.stderr and "mobilenet_v2-48px" in done.stderr
    assert not (tmp_path / "out" / "rank.csv").exists()


def test_wrong_candidates_end_with_2_before_anything_is_written(painted, tmp_path):
    done = run_job("rank", "--data", painted, "--out", tmp_path / "out", "--backbones", "mobilenetv2,xception:image_size=64")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "did you mean mobilenet_v2?" in done.stderr and "71 px" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_real_weights_on_real_photos(shared, tmp_path):
    weights = shared / "weights"
    small = weights / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    large = weights / "mobilenet_v2_0.50_96_no_top.weights.h5"
    backbones = (
        f"mobilenet_v2:alpha=0.35:image_size=160:weights={small},mobilenet_v2:alpha=0.5:image_size=96:weights={large}"
    )
    data = shared / "data" / "tiny-flowers"
    done = run_job("rank", "--data", data, "--out", tmp_path / "out", "--backbones", backbones)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "out" / "rank.json").read_text())
    found = {c["name"]: c for c in numbers["candidates"]}
    assert all(c["accuracy"]["accuracy"] > 0.6 for c in found.values()), "a fifth would be chance"
    assert found["mobilenet_v2 0.35"]["image_size"] == 160 and found["mobilenet_v2 0.5"]["image_size"] == 96
    assert found["mobilenet_v2 0.5"]["cost"]["multiply_adds"] < found["mobilenet_v2 0.35"]["cost"]["multiply_adds"]
