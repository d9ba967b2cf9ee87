"""The checks before a run, with what can be wrong with files, mounts, ports, processors, GPUs and settings."""

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from job.cluster.devices import Devices
from job.cluster.environment import Cluster
from job.config import Config
from job.errors import Stopped, TryAgainLater, UsageError
from job.pipeline.output import make_workdir
from job.preflight import checks, gpus
from job.preflight.base import Finding, Planned
from job.preflight.checks import CHECKS
from job.runtime.stop import StopRequest
from job.sources.open import open_source
from job.storage import lease
from job.storage.workdir import Workdir
from tests.conftest import PROGRAM, free_ports, paint_classes, quick_settings, run_job


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_classes(tmp_path_factory.mktemp("photos"), per_class=6)


@pytest.fixture
def plan(photos: Path, tmp_path: Path) -> Callable[..., Planned]:
    def made(data: Path = photos, out: Path = tmp_path / "out", cluster: Cluster | None = None, **settings: Any) -> Planned:
        config = Config.model_validate(settings)
        return Planned(
            config,
            cluster or Cluster(),
            StopRequest(),
            lambda: make_workdir(str(out), folders=[str(data)]),
            lambda: open_source(str(data), settings=config.intake),
        )

    return made


def found(name: str, run: Planned) -> Finding:
    """What one check finds. Raises: JobError, as the check does."""
    (check,) = (check for check in CHECKS if check.name == name)
    (finding,) = check.look(run)
    return finding


def test_output_that_is_missing_is_tried_and_not_made(plan: Callable[..., Planned], tmp_path: Path) -> None:
    run = plan(out=tmp_path / "runs" / "first")
    assert found("output", run).level == "ok" and found("clock", run).level == "ok"
    assert not list(tmp_path.iterdir())


def test_output_that_a_living_run_holds_is_in_use(plan: Callable[..., Planned], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    held = lease.acquire(tmp_path / "out", lambda _: None, lambda: None)
    try:
        with pytest.raises(TryAgainLater, match="in use by the run on"):
            found("output", plan())
    finally:
        held.release()
    assert found("output", plan()).level == "ok"


def test_output_that_a_run_elsewhere_may_hold_warns(plan: Callable[..., Planned], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    elsewhere = lease.Owner("token", "n2", "another boot", 7, "1", "2026-11-30T01:00:00+00:00")
    (tmp_path / "out" / lease.NAME).write_bytes(elsewhere.to_bytes())
    (tmp_path / "out" / ".transfer-job").touch()
    finding = found("output", plan())
    assert finding.level == "warning" and "may be in use by the run on n2" in finding.text


def test_output_inside_the_data_does_not_hide_what_is_wrong_elsewhere(plan: Callable[..., Planned], photos: Path) -> None:
    run = plan(out=photos / "out", backbone={"weights": "random"})
    names = ("data", "photos", "output", "clock")
    findings = {f.check: f for f, _ in zip(checks.examine(run), names, strict=False)}
    assert [findings[name].level for name in names] == ["ok", "ok", "error", "skipped"]
    assert "lie inside each other" in findings["output"].text and "'output'" in findings["clock"].text


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, which is gone after the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=False)


def read_only(disk: Path) -> Path:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    return disk


def test_output_that_is_mounted_read_only_is_refused(plan: Callable[..., Planned], mounted: Path) -> None:
    with pytest.raises(UsageError, match="mounted read-only"):
        found("output", plan(out=read_only(mounted) / "out"))


def test_cache_that_cannot_be_written_to_is_refused(plan: Callable[..., Planned], mounted: Path) -> None:
    with pytest.raises(UsageError, match=r"cache\.dir .*mounted read-only"):
        found("output", plan(cache={"dir": str(read_only(mounted) / "cache")}))


def test_clock_of_the_file_system_is_compared_with_ours(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workdir, "probe", lambda _: -120.0)
    finding = found("clock", plan())
    assert finding.level == "warning" and "-120 s" in finding.text
    monkeypatch.setattr(time, "time", lambda: 3600.0)
    assert "1970" in found("clock", plan()).text


def test_photos_that_nobody_can_read_are_refused_and_single_ones_told(plan: Callable[..., Planned], tmp_path: Path) -> None:
    data = paint_classes(tmp_path / "photos", per_class=4)
    run = plan(data)
    assert len(run.listing.entries) == 8
    (data / "stripes" / "stripes-000.jpg").unlink()
    finding = found("photos", run)
    assert finding.level == "warning" and "1 of 8 files" in finding.text and "stripes-000.jpg" in finding.text
    for file in data.rglob("*.jpg"):
        file.unlink()
    with pytest.raises(UsageError, match="8 of 8 files"):
        found("photos", run)
    run.config = Config.model_validate({"intake": {"max_quarantined_fraction": 1.0}})  # Such a run may go on.
    assert found("photos", run).level == "warning"


@pytest.mark.parametrize(
    ("flags", "is_refused"), [("fpu sse4_2 avx avx2", False), ("fpu sse4_2 avx", False), ("fpu sse4_2", True)]
)
def test_processor_without_avx_is_refused_before_tensorflow_crashes(
    plan: Callable[..., Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, is_refused: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n")
    monkeypatch.setattr(checks, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(checks.platform, "machine", lambda: "x86_64")
    if is_refused:
        with pytest.raises(UsageError, match="no AVX.*another machine"):
            found("processor", plan())
    else:
        assert found("processor", plan()).level == "ok"


def test_less_than_a_core_and_little_memory_warn(plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("memory", plan()).level == "ok"
    monkeypatch.setattr(checks, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(checks, "memory_bytes", lambda: 512 * 2**20)
    assert "0.5 CPU cores" in found("processor", plan()).text
    finding = found("memory", plan())
    assert finding.level == "warning" and "536.9 MB for this job" in finding.text and "--memory" in finding.text


def test_shared_memory_counts_from_two_gpus_on(
    plan: Callable[..., Planned], mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_SHM", mounted)
    (check,) = (check for check in CHECKS if check.name == "shared memory")
    assert not list(check.look(plan(cluster=Cluster(num_gpus=1))))
    finding = found("shared memory", plan(cluster=Cluster(num_gpus=4)))
    assert finding.level == "warning" and "has 1.1 MB" in finding.text and "2.0 GB for 4 GPUs" in finding.text


def test_ports_of_this_worker_must_be_free(plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_TRIES_FOR_S", 0.0)
    own, other = free_ports(2)
    cluster = Cluster((f"localhost:{own}", f"localhost:{other}"))
    assert found("ports", plan(cluster=cluster)).level == "ok"
    for taken, who in ((own, "TensorFlow's server"), (own - 1, "The chief")):
        with (
            socket.create_server(("", taken)),
            pytest.raises(TryAgainLater, match=f"{who} cannot listen on port {taken}"),
        ):
            found("ports", plan(cluster=cluster))
    with socket.create_server(("", other)):  # Not ours.
        assert found("ports", plan(cluster=cluster)).level == "ok"


def test_port_of_a_process_that_is_just_ending_is_waited_for(plan: Callable[..., Planned]) -> None:
    own, other = free_ports(2)
    ending = socket.create_server(("", own))
    threading.Timer(0.2, ending.close).start()
    assert found("ports", plan(cluster=Cluster((f"localhost:{own}", f"localhost:{other}")))).level == "ok"


def test_worker_whose_machine_answers_can_be_reached_and_one_without_a_name_cannot(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_TRIES_FOR_S", 0.0)
    own, other = free_ports(2)
    assert found("workers", plan(cluster=Cluster((f"localhost:{own}", f"localhost:{other}")))).level == "ok"
    with pytest.raises(TryAgainLater, match=r"1 of 2 other workers .*nowhere\.invalid:2222 \("):
        found("workers", plan(cluster=Cluster((f"localhost:{own}", f"localhost:{other}", "nowhere.invalid:2222"))))


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What `doctor --json` says, by the name of the check."""
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == told["exit_code"] and "Traceback" not in done.stderr, done.stderr
    return {one["check"]: one for one in told["findings"]}


def test_doctor_finds_nothing_wrong_and_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    told = lines(run_job("doctor", "--data", photos, "--out", tmp_path / "out", "--json", *quick_settings()))
    assert {one["level"] for one in told.values()} == {"ok"}
    assert {"data", "photos", "output", "processor", "gpus", "weights", "memory", "disk"} <= told.keys()
    assert not list(tmp_path.iterdir())


def test_doctor_tells_all_that_is_wrong_in_one_call_and_ends_with_2(photos: Path, mounted: Path) -> None:
    """Photos that are not there, an output that is mounted read-only, and no GPU where one is needed."""
    read_only(mounted)
    done = run_job(
        "doctor", "--data", photos / "none", "--out", mounted / "out", "--set", "cluster.require_gpu=true", *quick_settings()
    )
    assert done.returncode == 2
    said = {line[8:22].strip(): (line[:8].strip(), line[22:]) for line in done.stdout.splitlines()}
    assert said["data"] == ("error", f"--data {photos / 'none'}: no such folder or table.")
    assert said["photos"][0] == "skipped" and "mounted read-only" in said["output"][1]
    assert said["gpus"][0] == "error" and "cluster.require_gpu" in said["gpus"][1]
    assert said["weights"][0] == "ok"


def test_disk_without_room_for_the_model_ends_doctor_with_75(photos: Path, mounted: Path) -> None:
    told = lines(run_job("doctor", "--data", photos, "--out", mounted / "out", "--json", *quick_settings()))
    assert told["disk"]["exit_code"] == 74 and "Free some space" in told["disk"]["text"]
    assert {one["level"] for name, one in told.items() if name != "disk"} == {"ok"}


def test_weights_that_are_missing_and_out_of_reach_are_told(photos: Path, tmp_path: Path) -> None:
    settings = quick_settings("backbone.weights=imagenet")
    proxy = {"KERAS_HOME": str(tmp_path / "keras"), "https_proxy": "http://127.0.0.1:9", "TMPDIR": str(tmp_path)}
    told = lines(run_job("doctor", "--data", photos, "--out", tmp_path / "out", "--json", *settings, **proxy))
    assert told["weights"]["exit_code"] == 74 and "could not be downloaded" in told["weights"]["text"]


def test_settings_that_are_wrong_are_the_error_of_the_result(photos: Path, tmp_path: Path) -> None:
    done = run_job("doctor", "--data", photos, "--out", tmp_path / "out", "--json", "--set", "fine_tune.epoch=1")
    result = json.loads(done.stdout)
    assert result["exit_code"] == done.returncode == 2 and "did you mean fine_tune.epochs?" in result["error"]


def test_run_that_needs_a_gpu_and_finds_none_ends_with_2_before_it_reads_photos(photos: Path, tmp_path: Path) -> None:
    settings = quick_settings("cluster.require_gpu=true")
    done = run_job("run", "--data", photos, "--out", tmp_path / "out", *settings)
    assert done.returncode == 2 and "cluster.require_gpu=false" in done.stderr
    assert "intake    runs" not in done.stderr
    explored = run_job("explore", "--data", photos, "--out", tmp_path / "out", *settings)  # This needs none.
    assert explored.returncode == 0, explored.stderr


def test_tensorflow_that_finds_no_gpu_is_refused_where_one_is_needed() -> None:
    with pytest.raises(UsageError, match=r"TensorFlow finds none.*cluster\.require_gpu=false"):
        _ = Devices(require_gpu=True).local


def test_run_whose_port_is_taken_ends_with_75_before_it_starts(photos: Path, tmp_path: Path) -> None:
    own, other = free_ports(2)
    task = {"cluster": {"worker": [f"localhost:{own}", f"localhost:{other}"]}, "task": {"type": "worker", "index": 0}}
    with socket.create_server(("", own)):
        done = run_job("run", "--data", photos, "--out", tmp_path / "out", *quick_settings(), TF_CONFIG=json.dumps(task))
    assert done.returncode == 75 and f"TensorFlow's server cannot listen on port {own}" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_photo_that_root_may_not_read_is_a_warning_and_the_run_goes_on(tmp_path: Path) -> None:
    """As on a file server that takes the rights of root away."""
    data = paint_classes(tmp_path / "photos", per_class=20)
    closed = data / "checks" / "checks-000.jpg"
    os.chown(closed, 10_001, 10_001)
    closed.chmod(0o600)
    powerless = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner"]
    command = [PROGRAM, "explore", "--data", data, "--out", tmp_path / "out", *quick_settings()]
    done = subprocess.run([*powerless, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Warning \(photos\): 1 of 8 files .*user root .*mode 0600.*root_squash", done.stderr), done.stderr


def test_trial_computes_and_sums_on_each_device() -> None:
    """On two logical CPUs, because there is no GPU here."""
    seen = gpus.Seen({}, 2, None, None, gpus.Answer(None))
    (finding,) = gpus.judge_trial(seen, gpus.attempt(lambda: None, logical_cpus=2), required=True)
    assert (finding.level, finding.text) == ("ok", "kernel, xla, all_reduce: done on 2 GPUs")


def test_program_that_hangs_is_given_up_and_one_is_ended_by_a_stop() -> None:
    started = time.monotonic()
    assert gpus._answer(("sleep", "60"), 0.1, lambda: None).exit_code is None

    def stop() -> None:
        raise Stopped("SIGTERM")

    with pytest.raises(Stopped):
        gpus._answer(("sleep", "60"), 60.0, stop)
    assert time.monotonic() - started < 60


def test_nvidia_smi_is_asked_where_there_are_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that answers as one did with two GPUs, and repeats what it was asked."""
    line = "0, GPU-5c1b2f0e, NVIDIA L4, 550.90.07, 8.9, 23034, 22565"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{line}'\necho \"$@\" >&2\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    seen = gpus.look(Cluster(num_gpus=2), lambda: None)
    assert [(gpu.name, gpu.capability, gpu.free_mib) for gpu in seen.gpus] == [("NVIDIA L4", 8.9, 22565)]
    assert "--format=csv,noheader,nounits" in seen.query.err
    assert seen.build["is_cuda_build"] is False and seen.cuda is None  # What this environment has.
