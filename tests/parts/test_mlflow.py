"""Tracking in MLflow, with its real server."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request

import pytest

from job.config import Config
from job.errors import UsageError
from tests.conftest import contents, free_ports, quick_settings, run_job, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server with a data base and a place for artifacts of its own."""
    folder, (port,) = tmp_path_factory.mktemp("mlflow"), free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]

    def answers():
        try:
            return urllib.request.urlopen(f"{url}/health").status == 200
        except OSError:
            return False

    # Without its queue of jobs, which is eight more processes, and without its report to the makers of MLflow.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    options = {"cwd": folder, "env": environment}
    with open(folder / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log, **options) as process:
        wait_until(answers, is_alive=lambda: process.poll() is None, every_s=0.5)
        yield url
        process.terminate()


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(server, server)


@pytest.fixture
def out(finished_run, tmp_path):
    """A copy of the finished run, in which nothing is stale."""
    return shutil.copytree(finished_run, tmp_path / "out")


def tracked(data, out, url, *more):
    return run_job("run", "--data", data, "--out", out, *quick_settings(*more), "--set", f"tracking.mlflow={url}")


def runs_of(client, out):
    experiment = client.get_experiment_by_name("transfer-job")
    return client.search_runs([experiment.experiment_id], f"tags.out = '{out}'") if experiment else []


@pytest.mark.thorough
def test_finished_run_is_sent_once_with_all_that_it_has(server, client, painted, out):
    before = contents(out, "model", "metrics.json")
    for _ in range(2):
        done = tracked(painted, out, server)
        assert done.returncode == 0 and "MLflow" not in done.stderr, done.stderr
    assert contents(out, "model", "metrics.json") == before
    (run,) = runs_of(client, out)
    assert run.info.status == "FINISHED"
    config = json.loads((out / "run.json").read_text())["config"]
    assert run.data.params["backbone.name"] == json.dumps(config["backbone"]["name"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert run.data.metrics["test/accuracy"] == metrics[metrics["shipped"]]["test"]["accuracy"]
    history = json.loads((out / "stages" / "fine_tune" / "fine_tune.json").read_text())["history"]
    points = client.get_metric_history(run.info.run_id, "val_accuracy")
    assert [(p.step, p.value) for p in points] == [(e["epoch"], e["val_accuracy"]) for e in history]
    there = {artifact.path for folder in ("", "model") for artifact in client.list_artifacts(run.info.run_id, folder)}
    assert {"report.html", "metrics.json", "run.json", "model/model.json", "model/README.md"} <= there
    (version,) = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    assert version.name == "transfer-job" and version.status == "READY" and version.source.endswith("/model")


@pytest.mark.thorough
def test_what_a_server_missed_is_sent_by_the_same_command_later(server, client, painted, out):
    with open(out / "logs" / "events.jsonl", "a") as log:  # The machine stopped while an earlier start wrote this line.
        log.write('{"time": 1.0, "run_id": "a", "event": "epoch", "se')
    (port,) = free_ports(1)
    done = tracked(painted, out, f"http://127.0.0.1:{port}")
    assert done.returncode == 0 and done.stderr.count("MLflow at") == 1, done.stderr
    assert "The run goes on. Start the same command again" in done.stderr
    assert tracked(painted, out, server).returncode == 0
    (run,) = runs_of(client, out)
    assert run.info.status == "FINISHED" and "test/accuracy" in run.data.metrics


@pytest.mark.thorough
def test_run_that_misses_its_gate_is_a_failed_one_with_its_metrics(server, client, painted, out):
    done = tracked(painted, out, server, "evaluate.min_accuracy=1.0", "evaluate.bootstrap_samples=100")
    (run,) = runs_of(client, out)
    assert (done.returncode, run.info.status) in {(3, "FAILED"), (0, "FINISHED")}
    assert "test/accuracy" in run.data.metrics and "report.html" in {a.path for a in client.list_artifacts(run.info.run_id)}


@pytest.mark.parametrize("uri", ["http://user:secret@host", "postgresql://me:secret@db/x", "http://host/?token=secret"])
def test_credentials_in_the_address_are_refused_and_not_shown(uri):
    with pytest.raises(UsageError) as refused:
        Config.load(None, [f'tracking.mlflow="{uri}"'])
    assert "secret" not in str(refused.value) and "MLFLOW_TRACKING_PASSWORD" in str(refused.value)


def test_tracking_makes_nothing_stale():
    with_tracking = Config.load(None, ["tracking.mlflow=http://host"])
    assert with_tracking.tracking.what() == {}
