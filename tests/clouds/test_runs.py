"""The whole job from a bucket to a bucket, on nodes that keep nothing."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from job.config import Config
from job.pipeline import team
from job.pipeline.job import Job
from job.pipeline.output import make_workdir
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sources.open import open_source
from job.storage.bucket.open import open_objects
from job.storage.files import digest_of_file
from tests.clouds.fixtures import moved_to_bucket
from tests.conftest import QUICK, ROOT, contents, linked_files, quick_settings, run_job, start_job, wait_until
from tests.faults import killer
from tests.faults.several import Run


def node(folder):
    """The environment of a machine that has nothing yet."""
    folder.mkdir()
    return {"TMPDIR": str(folder)}


@pytest.fixture(scope="module")
def photos(photos_in_bucket):
    return photos_in_bucket


@pytest.fixture(scope="module")
def in_bucket(google, photos, tmp_path_factory):
    """The output of a whole quick run, made on a node that is gone."""
    out = f"{google.bucket()}/runs/x"
    node = tmp_path_factory.mktemp("node")
    done = run_job("run", "--data", photos, "--out", out, *quick_settings(), TMPDIR=str(node))
    assert done.returncode == 0, done.stderr
    assert f"Report: {out}/report.html" in done.stdout
    return out


def test_doctor_tries_the_bucket_and_leaves_nothing_in_it(google, photos, tmp_path):
    out = f"{google.bucket()}/runs/x"
    done = run_job("doctor", "--data", photos, "--out", out, *quick_settings(), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert f"output        {out} can be written to" in done.stdout and "photos        8 of them were read" in done.stdout
    writes = [path for method, path, _ in google.requests() if method in ("POST", "DELETE")]
    assert len(writes) == 2 and google.names(out) == []


def test_doctor_tells_that_there_is_no_such_bucket(google, photos, tmp_path):
    done = run_job("doctor", "--data", photos, "--out", "gs://nowhere/x", *quick_settings(), TMPDIR=str(tmp_path))
    assert done.returncode == 2 and "there is no bucket gs://nowhere" in done.stdout
    assert "photos        8 of them were read" in done.stdout


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def numbers(out):
    """All that must be the same, wherever photos and results lie."""
    metrics = json.loads((out / "metrics.json").read_text())
    table = pq.read_table(out / "predictions.parquet")
    examples = pq.read_table(out / "examples.parquet")
    return {
        "examples": examples.to_pylist(),
        "head": digest_of_file(out / "stages/head/head.npz"),
        "weights": digest_of_file(out / "stages/fine_tune/weights.npz"),
        "predictions": table.to_pylist(),
        "metrics": {k: v for k, v in metrics.items() if k not in ("run_id", "timings", "throughput", "share")},
    }


@pytest.mark.core
def test_photos_in_a_bucket_are_looked_at_once_and_the_page_is_in_a_bucket(google, photos, painted, tmp_path):
    out, settings = f"{google.bucket()}/runs/x", quick_settings()
    done = run_job("explore", "--data", photos, "--out", out, *settings, **node(tmp_path / "node"))
    assert done.returncode == 0 and f"Report: {out}/report.html" in done.stdout, done.stderr
    here = run_job("explore", "--data", painted, "--out", tmp_path / "out", *settings)
    assert here.returncode == 0, here.stderr
    table = google.fetched(out, tmp_path / "fetched") / "examples.parquet"
    assert pq.read_table(table).to_pylist() == pq.read_table(tmp_path / "out" / "examples.parquet").to_pylist()
    again = run_job("explore", "--data", photos, "--out", out, *settings, **node(tmp_path / "other"))
    assert again.returncode == 0 and not re.search(r"^\w+ +runs", again.stderr, re.MULTILINE), again.stderr
    assert not contents(tmp_path / "node") and not contents(tmp_path / "other"), "scratch is removed after a finished run"
    strict = quick_settings("intake.max_quarantined_fraction=0.0")
    refused = run_job("explore", "--data", photos, "--out", out, *strict, **node(tmp_path / "third"))
    kept = re.search(
        f"^Local files of {out} stay in (.*), for the next start on this machine.$", refused.stderr, re.MULTILINE
    )
    assert refused.returncode == 65 and kept and contents(Path(kept[1])), refused.stderr


def test_run_in_a_bucket_gives_what_a_run_on_local_folders_gives(google, in_bucket, finished_run, tmp_path):
    out = google.fetched(in_bucket, tmp_path / "out")
    assert numbers(out) == numbers(finished_run)
    assert names(out / "model") == names((finished_run / "model").resolve())
    assert not (names(finished_run) - names(out)) & {"report.html", "label_issues.csv", "logs/events.jsonl"}
    assert json.loads((out / "run.json").read_text())["out"] == in_bucket
    linked = linked_files(out / "report.html")
    assert len(linked) == 4 and all(file.is_file() for file in linked)


def test_second_run_on_another_node_finds_everything_done(google, photos, in_bucket, tmp_path):
    before = {uri: google.get(uri) for uri in google.names(in_bucket)}
    done = run_job("run", "--data", photos, "--out", in_bucket, *quick_settings(), **node(tmp_path / "node"))
    assert done.returncode == 0 and "runs" not in done.stderr.replace("runs/x", ""), done.stderr
    after = {uri: google.get(uri) for uri in google.names(in_bucket)}
    changed = {
        uri.removeprefix(f"{in_bucket}/") for uri in before.keys() | after.keys() if before.get(uri) != after.get(uri)
    }
    assert changed <= {".lease", ".manifest.json", "logs/events.jsonl"}


def test_dry_run_and_report_work_on_a_bucket(google, photos, in_bucket, tmp_path):
    environment = node(tmp_path / "node")
    done = run_job(
        "run", "--data", photos, "--out", in_bucket, *quick_settings("head.c_grid=[1.0]"), "--dry-run", **environment
    )
    assert done.returncode == 0 and re.search(r"^head +runs", done.stdout, re.MULTILINE), done.stderr
    assert re.search(r"^extract +skipped", done.stdout, re.MULTILINE)
    done = run_job("report", in_bucket, **environment)
    assert done.returncode == 0 and f"{in_bucket}/report.html" in done.stdout, done.stderr


def test_predict_takes_model_photos_and_answer_in_buckets(google, photos, in_bucket, finished_run, tmp_path):
    out = f"{in_bucket.rpartition('/')[0]}/predictions.csv"
    there = run_job("predict", "--model", f"{in_bucket}/model", "--data", photos, "--out", out, **node(tmp_path / "node"))
    assert there.returncode == 0, there.stderr
    lines = google.get(out).decode().splitlines()
    assert len(lines) == 1 + 82 and "broken.jpg" in "".join(lines)


def test_formats_are_added_to_a_run_in_a_bucket_from_another_node(google, photos, tmp_path):
    out = f"{google.bucket()}/runs/x"
    ran = run_job("run", "--data", photos, "--out", out, *quick_settings(), **node(tmp_path / "a"))
    assert ran.returncode == 0, ran.stderr
    before = json.loads(google.get(f"{out}/model/model.json"))["sha256"]
    google.requests()  # Those since the last call are returned.
    done = run_job("export", out, "--to", "litert", **node(tmp_path / "b"))
    assert done.returncode == 0 and "litert: of 14 photos, 0 labels" in done.stdout, done.stderr
    card = json.loads(google.get(f"{out}/model/model.json"))
    assert hashlib.sha256(google.get(f"{out}/model/model.tflite")).hexdigest() == card["sha256"]["model.tflite"]
    assert card["sha256"]["saved_model.pb"] == before["saved_model.pb"]
    assert not [path for _, path, _ in google.requests() if "alt=media" in path and "/photos%2F" in path]


def test_weights_may_lie_in_a_bucket(google, photos, tmp_path, shared):
    file = next(Path(shared / "weights").glob("mobilenet_v2_*_0.35_224_no_top.h5"))
    weights = f"{google.bucket()}/{file.name}"
    google.put(weights, file.read_bytes())
    arguments = ("--data", photos, "--out", tmp_path / "out", *quick_settings("intake.image_size=96", "fine_tune.epochs=0"))
    done = run_job("run", *arguments, "--weights", weights, "--stop-after", "head", **node(tmp_path / "node"))
    assert done.returncode == 0, done.stderr
    again = run_job("run", *arguments, "--weights", file, "--stop-after", "head", **node(tmp_path / "other"))
    assert "extract   skipped: unchanged" in again.stderr or "runs" not in again.stderr, again.stderr


def started(environment, *arguments):
    return start_job(*arguments, environment=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(found, process):
    """Wait for something that only this process can bring."""
    wait_until(found, lambda: process.kill() or process.stderr.read(), is_alive=lambda: process.poll() is None)


def test_fresh_node_goes_on_at_the_last_checkpoint_after_a_kill(google, photos, undisturbed_run, tmp_path):
    out = f"{google.bucket()}/x"
    arguments = killer.command(photos, out)[3:]
    first = started(node(tmp_path / "first"), *arguments)
    with first:
        wait_for(lambda: len([n for n in google.names(f"{out}/checkpoints/fine_tune") if "/0" in n]) >= 2, first)
        wait_for(lambda: "checkpoints/fine_tune" in google.get(f"{out}/.manifest.json").decode(), first)
        first.kill()
    google.requests()
    second = run_job(*arguments, **node(tmp_path / "second"))
    assert second.returncode == 0, second.stderr
    assert "resuming from the checkpoint at step" in second.stderr and "stopped without releasing the lease" in second.stderr
    assert "extract   skipped: unchanged" in second.stderr and "head      skipped: unchanged" in second.stderr
    read = [path for method, path, _ in google.requests() if "alt=media" in path and "/photos%2F" in path]
    held_out = json.loads(google.get(f"{out}/model/parity.json"))["num_photos"]
    assert len(read) <= held_out  # For the parity check; no photo was decoded anew.
    assert numbers(google.fetched(out, tmp_path / "a")) == numbers(undisturbed_run.finished)


def test_signal_saves_to_the_bucket_and_ends_with_143(google, photos, tmp_path):
    out = f"{google.bucket()}/x"
    settings = quick_settings("fine_tune.epochs=2000", "checkpoint.every_s=1000")
    process = started(node(tmp_path / "node"), "run", "--data", photos, "--out", out, *settings)
    with process:
        wait_for(lambda: any('"epoch"' in log.read_text() for log in (tmp_path / "node").rglob("events.jsonl")), process)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(30) == 143, said
    assert "everything up to step" in said
    assert any("checkpoints/fine_tune/" in name for name in google.names(out))
    again = started(node(tmp_path / "other"), "run", "--data", photos, "--out", out, *settings)
    with again:
        line = next(line for line in again.stderr if "resuming from the checkpoint" in line or "Error" in line)
        again.kill()
    assert "resuming from the checkpoint" in line


@pytest.mark.parametrize("where", ["first", "second"], ids=["the same machine", "another machine"])
def test_second_start_on_one_output_says_who_holds_it(google, photos, tmp_path, where):
    out = f"{google.bucket()}/x"
    arguments = ("run", "--data", photos, "--out", out, *quick_settings("fine_tune.epochs=2000"))
    environment = {folder: node(tmp_path / folder) for folder in ("first", "second")}
    first = started(environment["first"], *arguments)
    with first:
        wait_for(lambda: f"{out}/.lease" in google.names(out), first)
        second = run_job(*arguments, **environment[where])
        first.kill()
    assert second.returncode == 75 and f"{out} is in use by the run on" in second.stderr


def test_two_workers_that_share_only_the_bucket_give_what_two_on_one_folder_give(
    google, photos, undisturbed_workers, tmp_path
):
    out, folders = f"{google.bucket()}/x", [tmp_path / "node-0", tmp_path / "node-1"]
    for folder in folders:
        folder.mkdir()
    both = Run(photos, out, nodes=folders)
    assert both.codes() == [0, 0], both.said(0) + both.said(1)
    assert not [name for name in google.names(out) if ".secret" in name]
    assert numbers(google.fetched(out, tmp_path / "fetched")) == numbers(undisturbed_workers.finished)


def test_run_on_a_service_that_fails_gives_the_same(google, photos, in_bucket, tmp_path):
    out = f"{google.bucket()}/x"
    faults = {
        "statuses": {429: 0.15, 503: 0.15},
        "resets": 0.05,
        "shorts": 0.05,
        "wrong_checksums": 0.05,
        "lost_answers": 0.05,
    }
    with google.faults(**faults):
        done = run_job("run", "--data", photos, "--out", out, *quick_settings(), **node(tmp_path / "node"))
    assert done.returncode == 0, done.stderr
    assert numbers(google.fetched(out, tmp_path / "a")) == numbers(google.fetched(in_bucket, tmp_path / "b"))
    manifest = json.loads(google.get(f"{out}/.manifest.json"))
    for name, file in manifest["files"].items():
        assert hashlib.sha256(google.get(f"{out}/{name}")).hexdigest() == file["sha256"]
    assert {uri.removeprefix(f"{out}/") for uri in google.names(out) if "/cache/" not in uri} == {
        *manifest["files"],
        ".lease",
        ".transfer-job",
        ".manifest.json",
    }


def test_another_node_compares_its_model_with_the_one_that_is_published_in_the_bucket(
    google, photos, finished_run, tmp_path
):
    out = moved_to_bucket(google, finished_run)
    settings = quick_settings("fine_tune.epochs=0", "export.max_changed_fraction=1.0", "head.c_grid=[0.001]")
    done = run_job("run", "--data", photos, "--out", out, *settings, **node(tmp_path / "node"))
    assert done.returncode == 0, done.stderr
    fetched = google.fetched(out, tmp_path / "out")
    earlier = json.loads((fetched / "metrics.json").read_text())["earlier"]
    table = pq.read_table(fetched / "comparison.parquet")
    assert earlier["all"]["num_examples"] == len(table) and earlier["num_new"] == 0
    assert table["earlier_predicted"].null_count == 0 and "the earlier model has an accuracy of" in done.stdout


def test_asking_leaves_nothing_behind(google, photos, in_bucket, tmp_path):
    out, environment = f"{google.bucket()}/typo", node(tmp_path / "node")
    done = run_job("report", out, **environment)
    assert done.returncode == 2 and "not the output of a run" in done.stderr and google.names(out) == []
    done = run_job("run", "--data", photos, "--out", out, *quick_settings(), "--dry-run", **environment)
    assert done.returncode == 0 and google.names(out) == []
    done = run_job("run", "--data", photos, "--out", "gs://no-such-bucket/x", *quick_settings(), "--dry-run", **environment)
    assert done.returncode == 2 and "there is no bucket" in done.stderr
    google.requests()
    settings = quick_settings("fine_tune.epochs=3")
    done = run_job("run", "--data", photos, "--out", in_bucket, *settings, "--dry-run", **environment)
    assert done.returncode == 0 and re.search(r"^extract +skipped", done.stdout, re.MULTILINE), done.stdout
    read = [path for _, path, _ in google.requests() if "alt=media" in path]
    assert read and not [path for path in read if ".npy" in path or "checkpoints" in path]


def test_dry_run_sees_which_store_is_missing(google, photos, in_bucket, tmp_path):
    settings, environment = quick_settings("fine_tune.epochs=3"), node(tmp_path / "node")
    packs = {name.split("/")[-2]: name for name in google.names(f"{in_bucket}/cache") if name.endswith(".npy")}
    assert len(packs) == 5  # Photos; features and activations, each of the photos as they are and of further views.
    for folder, pack in packs.items():
        content = google.get(pack)
        open_objects(in_bucket).remove(pack.removeprefix(f"{in_bucket}/"))
        done = run_job("run", "--data", photos, "--out", in_bucket, *settings, "--dry-run", **environment)
        google.put(pack, content)
        stage = "intake" if folder.startswith("images") else "extract"
        assert re.search(rf"^{stage} +runs: .* needs its store", done.stdout, re.MULTILINE), done.stdout


def test_dry_run_in_a_folder_fetches_no_stores_of_a_bucket(google, photos, in_bucket, tmp_path):
    out = google.fetched(in_bucket, tmp_path / "out")
    shutil.rmtree(out / "cache")
    settings = quick_settings("head.c_grid=[1.0]", f"cache.dir={in_bucket}/cache")
    google.requests()
    done = run_job("run", "--data", photos, "--out", out, *settings, "--dry-run", **node(tmp_path / "node"))
    assert re.search(r"^extract +skipped", done.stdout, re.MULTILINE) and re.search(
        r"^head +runs", done.stdout, re.MULTILINE
    )
    assert not [path for _, path, _ in google.requests() if ".npy" in path and "alt=media" in path]


def test_worker_that_asks_whether_it_is_needed_fetches_no_store(google, photos, in_bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = Config.load(None, [*QUICK, "fine_tune.epochs=3"], {})
    workdir = make_workdir(in_bucket, worker=1)
    source = open_source(photos)
    job = Job(config, source, Context(workdir, Telemetry(None), caching=config.cache))
    assert team._is_needed(job, None) and not list(tmp_path.rglob("*.npy"))
    config = Config.load(None, QUICK, {})
    assert not team._is_needed(Job(config, source, Context(workdir, Telemetry(None), caching=config.cache)), None)


IMPATIENT = "import sys, job.storage.bucket.objects as s; s.RETRY_FOR_S = 2.0; from job.cli import main; main(sys.argv[1:])"


@pytest.mark.parametrize("only", ["GET .*photos", "(POST|PUT) "], ids=["photos", "results"])
def test_outage_ends_with_74_and_the_objects_name_and_the_run_goes_on_later(google, photos, tmp_path, only):
    out, environment = f"{google.bucket()}/x", {**os.environ, **node(tmp_path / "node")}
    arguments = ["run", "--data", photos, "--out", out, *quick_settings(), "--stop-after", "split"]
    with google.faults(statuses={503: 1.0}, only=only):
        done = subprocess.run(
            [sys.executable, "-c", IMPATIENT, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 74 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"Error: gs://bucket-\d+\S*: Google Cloud Storage failed for \d+ s \(.*same command again", done.stderr)
    again = run_job(*arguments, **{"TMPDIR": environment["TMPDIR"]})
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("gs://no-such-bucket/photos", "there is no bucket gs://no-such-bucket"),
        ("ftp://x/photos", "there is no storage for ftp://"),
    ],
)
@pytest.mark.parametrize("option", ["--data", "--out", "--weights"])
def test_wrong_place_is_one_clear_line_without_a_second_try(google, painted, tmp_path, uri, said, option):
    uri += "/w.h5" if option == "--weights" else ""
    arguments = {"--data": painted, "--out": tmp_path / "out", option: uri}
    google.requests()
    done = run_job("run", *(word for pair in arguments.items() for word in pair), **node(tmp_path / "node"))
    asked = google.requests()
    assert done.returncode == 2 and len(asked) == len(set(asked)), asked
    assert said in done.stderr or (option == "--weights" and "there is no such object" in done.stderr), done.stderr
    assert "Traceback" not in done.stderr
