"""The scripts of slurm/, with the lines edited that a user edits, on a real Slurm of two nodes."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from job import errors
from job.cluster.variables import numbered
from job.config import Config
from tests.clouds.fixtures import GoogleBed
from tests.conftest import ROOT, paint_classes, quick_settings
from tests.faults.killer import faults, leftovers, outcome
from tests.launch.slurm_bed import Slurm, started

RETRIED = {errors.StorageFailed.exit_code, errors.TryAgainLater.exit_code, errors.Stopped.exit_code}
ENDS = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)} | RETRIED
# For workers, and for stand-ins that do nothing.
WORKER = ("--cpus-per-task=1", "--mem=2500M")
NOTHING = ("--cpus-per-task=1", "--mem=50M", "--gres=none")
# Float64, so that the order in which workers add up is far from changing a result.
SHORT = quick_settings("fine_tune.precision=float64", "cluster.require_gpu=false")  # The GPUs of this bed are only files.
# Seconds of fine-tuning, to be met in it.
LONG = quick_settings(
    "fine_tune.epochs=25", "fine_tune.global_batch_size=8", "checkpoint.every_s=0.3", "cluster.require_gpu=false"
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with started(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than fit into one shard, so that two workers have something to divide."""
    return paint_classes(tmp_path_factory.mktemp("photos"), per_class=160)


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A long job that works while the first tests wait: its number, and where its result will be."""
    folder = tmp_path_factory.mktemp("undisturbed")
    script = edited("single-node", folder, DATA=photos, OUT=folder / "out", OPTIONS=LONG)
    return slurm.submit(script, *WORKER), folder / "out"


@pytest.fixture(scope="module")
def one_worker(slurm: Slurm, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short job on one node leaves."""
    folder = tmp_path_factory.mktemp("one-worker")
    script = edited("single-node", folder, DATA=photos, OUT=folder / "out", OPTIONS=SHORT)
    number = slurm.submit(script, *WORKER)
    assert slurm.finished(number)["JobState"] == "COMPLETED", slurm.log(number)
    return folder / "out"


def edited(name: str, folder: Path, **lines: object) -> Path:
    """A script of slurm/ with lines changed that a user may change."""
    text = (ROOT / "slurm" / f"{name}.sbatch").read_text()
    for variable, value in {"VENV": sys.prefix, **lines}.items():
        words = f"({shlex.join(value)})" if isinstance(value, list) else shlex.quote(str(value))
        text, count = re.subn(rf"^{variable}=.*$", f"{variable}={words}", text, flags=re.MULTILINE)
        assert count == 1, f"{name} has no line for {variable}"
    script = folder / f"{name}.sbatch"
    script.write_text(text)
    return script


def stand_in(program: Path, body: str) -> Path:
    """A program of a few lines of shell, to see what a script makes of what it does."""
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(0o755)
    return program


def before_others(slurm: Slurm, program: Path) -> Slurm:
    """Jobs submitted to this find the program first."""
    return told(slurm, PATH=f"{program.parent}:{os.environ['PATH']}")


def told(slurm: Slurm, **environment: str) -> Slurm:
    """Jobs submitted to this have these variables."""
    return replace(slurm, environment={**slurm.environment, **environment})


def bits(out: Path) -> dict[str, Any]:
    """What must be the same to the bit, but for the page, which names the folder."""
    assert not faults(out) and not leftovers(out)
    return {what: value for what, value in outcome(out).items() if what != "report"}


def assert_equal(found: Path, expected: Path, tolerance: float) -> None:
    """The same result, by metrics, predictions and weights, up to the order in which workers add up."""
    now, then = (json.loads((out / "metrics.json").read_text()) for out in (found, expected))
    assert (now["shipped"], now["class_names"]) == (then["shipped"], then["class_names"])
    for model in ("head", "fine_tuned"):
        for part in then[model]:
            for name, value in then[model][part].items():
                assert now[model][part][name] == pytest.approx(value, abs=tolerance), f"{name} of {model}, {part}"
    now, then = (pq.read_table(out / "predictions.parquet").to_pydict() for out in (found, expected))
    assert (now["path"], now["label"]) == (then["path"], then["label"])
    for column in ("head_probabilities", "fine_tuned_probabilities"):
        np.testing.assert_allclose(now[column], then[column], atol=tolerance, err_msg=column)
    now, then = (np.load(out / "stages/fine_tune/weights.npz") for out in (found, expected))
    assert set(now) == set(then)
    for name in then:
        np.testing.assert_allclose(now[name], then[name], atol=tolerance, err_msg=name)


def test_scripts_start_again_what_is_worth_it_and_only_so_often(slurm, undisturbed, photos, tmp_path):
    jobs = {}
    for name in ("single-node", "multi-node"):
        for code in sorted(ENDS):
            folder = tmp_path / f"{name}-{code}"
            python = stand_in(folder / "venv/bin/python", f"echo start ${{SLURM_RESTART_COUNT:-0}}; exit {code}")
            lines = {"DATA": photos, "OUT": folder / "out", "VENV": python.parent.parent, "MAX_RESTARTS": 1}
            jobs[name, code] = slurm.submit(edited(name, folder, **lines), *NOTHING)
    for (_, code), number in jobs.items():
        job, said = slurm.finished(number), slurm.log(number)
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", f"{code}:0"), said
        assert int(job["Restarts"]) == (code in RETRIED), said
        assert ("start 1" in said) == ("not started again" in said) == (code in RETRIED), said


def test_array_tries_its_configurations_and_starts_again_only_the_one_that_asks_for_it(slurm, undisturbed, photos, tmp_path):
    python = stand_in(
        tmp_path / "venv/bin/python",
        # The last one, because its job has the number of the whole array.
        '[[ $SLURM_ARRAY_TASK_ID == 3 && -z $SLURM_RESTART_COUNT ]] && exit 75\necho "arguments: $*"',
    )
    script = edited("array", tmp_path, DATA=photos, OUT=tmp_path / "out", VENV=python.parent.parent)
    number = slurm.submit(script, "--array=0-3", *NOTHING)
    for k in range(4):
        job, said = slurm.finished(f"{number}_{k}"), slurm.log(f"{number}_{k}")
        assert (job["JobState"], job["Restarts"]) == ("COMPLETED", str(int(k == 3))), said
        assert f"--out {tmp_path}/out/{{array}} " in said
        settings = [numbered(word, {"SLURM_ARRAY_TASK_ID": str(k)}) for word in re.findall(r"--set (\S+)", said)]
        config = Config.load(None, settings)
        assert (config.cache.dir, config.train.seed) == (f"{tmp_path}/out/cache", k)


@pytest.mark.parametrize("name", ["single-node", "array"])
def test_where_requeue_is_refused_a_new_job_goes_on(slurm, undisturbed, photos, tmp_path, name):
    scontrol = stand_in(tmp_path / "bin/scontrol", 'echo "Requested operation is presently disabled" >&2; exit 1')
    python = stand_in(tmp_path / "venv/bin/python", "echo start ${RESTARTS:-0}; exit $((RESTARTS ? 0 : 75))")
    script = edited(name, tmp_path, DATA=photos, OUT=tmp_path / "out", VENV=python.parent.parent)
    sizes = "\n".join(f"#SBATCH {option}" for option in NOTHING)  # The second job has only the options in the script.
    script.write_text(re.sub(r"#SBATCH --cpus(.*\n)+?#SBATCH --time.*", sizes, script.read_text()))
    number = before_others(slurm, scontrol).submit(script, *(["--array=1"] if name == "array" else []))
    task = "_1" if name == "array" else ""
    assert slurm.finished(number + task)["ExitCode"] == "75:0"
    said = slurm.log(number + task)
    assert "Submitted batch job" in said, said
    (second,) = re.findall(r"Submitted batch job (\d+)", said)
    job, said = slurm.finished(second + task), slurm.log(second + task)
    assert job["JobState"] == "COMPLETED" and "start 1" in said, said


def test_a_site_may_want_gpus_per_node(slurm, undisturbed, photos, tmp_path):
    python = stand_in(tmp_path / "venv/bin/python", "echo GPUs $CUDA_VISIBLE_DEVICES of $SLURM_GPUS_ON_NODE")
    script = edited("single-node", tmp_path, DATA=photos, OUT=tmp_path / "out", VENV=python.parent.parent)
    script.write_text(script.read_text().replace("--gres=gpu:1", "--gpus-per-node=2"))
    number = slurm.submit(script, "--cpus-per-task=1", "--mem=50M")
    assert slurm.finished(number)["JobState"] == "COMPLETED"
    assert "GPUs 0,1 of 2" in slurm.log(number)


def test_cancelled_job_keeps_what_it_has_made_and_stays_cancelled(slurm, undisturbed, photos, tmp_path):
    python = stand_in(
        tmp_path / "venv/bin/python",
        f"touch {tmp_path}/out/.transfer-job; trap 'sleep 1; echo saved; exit 143' TERM; echo works; "
        "while :; do sleep 0.1; done",
    )
    lines = {"DATA": photos, "OUT": tmp_path / "out", "VENV": python.parent.parent, "LOCAL_DISK": tmp_path / "local"}
    number = slurm.submit(edited("single-node", tmp_path, **lines), *NOTHING)
    slurm.wait_until(lambda: "works" in slurm.log(number), number)
    (stores,) = (tmp_path / "local").iterdir()
    (stores / "shard.npy").write_text("made on the node")
    slurm("scancel", number)
    slurm.wait_until(lambda: not stores.exists(), number)
    assert (tmp_path / "out/cache/shard.npy").read_text() == "made on the node"
    job = slurm.finished(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0") and "saved" in slurm.log(number)


def test_containers_get_the_same_arguments_and_see_data_and_output(slurm, undisturbed, photos, tmp_path):
    apptainer = stand_in(
        tmp_path / "bin/apptainer",
        f'echo "apptainer $*"; while [[ $1 != *.sif ]]; do shift; done; shift; exec {sys.executable} -m job "$@"',
    )
    lines = {"DATA": photos, "OUT": tmp_path / "out", "OPTIONS": ["--stop-after", "explore"], "RUNTIME": "apptainer"}
    lines |= {"SCRATCH": "/tmp"}
    number = before_others(slurm, apptainer).submit(
        edited("single-node", tmp_path, **lines, IMAGE="/images/job.sif"), *WORKER
    )
    said, mounts = slurm.finished(number) and slurm.log(number), f"/tmp:/tmp,{photos}:{photos},{tmp_path}/out:{tmp_path}/out"
    assert f"apptainer run --nv --bind {mounts} /images/job.sif run --data {photos} --out {tmp_path}/out" in said
    assert slurm.job(number)["JobState"] == "COMPLETED" and (tmp_path / "out/report.html").exists(), said

    srun = stand_in(tmp_path / "bin-of-pyxis/srun", 'echo "srun $*"')  # The real one has the plugin's options.
    lines |= {"RUNTIME": "pyxis", "IMAGE": "/images/job.sqsh", "WEIGHTS": tmp_path / "weights"}
    number = before_others(slurm, srun).submit(edited("multi-node", tmp_path, **lines), *NOTHING)
    said = slurm.finished(number) and slurm.log(number)
    mounts += f",{tmp_path}/weights:{tmp_path}/weights"
    program = f"--container-image=/images/job.sqsh --container-mounts={mounts} python -P -m job run --data {photos}"
    assert program in said and f"--weights {tmp_path}/weights\n" in said

    lines |= {
        "WEIGHTS": "gs://bucket/weights",
        "DATA": "gs://bucket/photos",
        "OUT": "gs://bucket/runs/first",
        "SCRATCH": tmp_path,
    }
    number = before_others(slurm, srun).submit(edited("multi-node", tmp_path, **lines), *NOTHING)
    said = slurm.finished(number) and slurm.log(number)
    assert f"--container-mounts={tmp_path}:{tmp_path} python -P -m job run --data gs://bucket/photos" in said
    assert "--weights gs://bucket/weights\n" in said
    assert not (slurm.folder / "gs:").exists()


def test_job_at_its_time_limit_saves_starts_again_and_ends_as_one_without_a_limit(slurm, undisturbed, photos, tmp_path):
    number_without, without = undisturbed
    assert slurm.finished(number_without)["JobState"] == "COMPLETED", slurm.log(number_without)
    lines = {"DATA": photos, "OUT": tmp_path / "out", "OPTIONS": LONG, "LOCAL_DISK": tmp_path / "local"}
    script = edited("single-node", tmp_path, **lines)
    number = slurm.submit(script, "--signal=TERM@170", *WORKER)
    checkpoints = tmp_path / "out/checkpoints/fine_tune"
    slurm.wait_until(lambda: any(checkpoints.glob("[0-9]*")), number)
    # Slurm looks at time limits every 30 s. That the training is not over then, it is held so long.
    slurm("scancel", "--signal=STOP", number)
    slurm("scontrol", "update", f"jobid={number}", "timelimit=3")
    slurm.wait_until(lambda: "CANCELLED" in slurm.log(number), number)
    with suppress(AssertionError):  # Slurm refuses if it has ended the job already.
        slurm("scancel", "--signal=CONT", number)
    slurm.wait_until(lambda: slurm.job(number)["Restarts"] == "1", number)
    slurm("scontrol", "update", f"jobid={number}", "timelimit=60")
    job, said = slurm.finished(number), slurm.log(number)
    assert job["JobState"] == "COMPLETED", said
    # In one log: it was told, saved, and went on from there.
    events = ("Stopped by SIGTERM in fine_tune", "is saved", "resuming from the checkpoint", "Accuracy")
    places = [said.find(event) for event in events]
    assert -1 not in places and places == sorted(places), said
    assert not list((tmp_path / "local").iterdir())
    assert bits(tmp_path / "out") == bits(without)


def test_job_that_gets_too_little_memory_says_so_and_does_not_start_again(slurm, photos, tmp_path):
    script = edited("single-node", tmp_path, DATA=photos, OUT=tmp_path / "out", OPTIONS=SHORT)
    number = slurm.submit(script, "--cpus-per-task=1", "--mem=250M")
    job, said = slurm.finished(number), slurm.log(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "137:0", "0"), said
    assert "exceeded memory limit" in said and "raise --mem" in said, said


def test_job_that_gets_gpus_and_finds_none_ends_with_2_and_does_not_start_again(slurm, photos, tmp_path):
    script = edited("single-node", tmp_path, DATA=photos, OUT=tmp_path / "out", OPTIONS=quick_settings())
    number = slurm.submit(script, *WORKER)
    job, said = slurm.finished(number), slurm.log(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), said
    assert "cluster.require_gpu is true" in said, said


def test_two_nodes_with_a_bucket_between_them_end_as_one_does(slurm, one_worker, photos, google: GoogleBed, tmp_path):
    data, out = google.put_folder(photos, f"{google.bucket()}/photos"), f"{google.bucket()}/runs/first"
    script = edited("multi-node", tmp_path, DATA=data, OUT=out, OPTIONS=SHORT, SCRATCH=tmp_path)
    number = told(slurm, **google.environment).submit(script, *WORKER)
    job, said = slurm.finished(number), slurm.log(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), said
    assert "this is the chief of 2 workers: n1:" in said and "this is worker 1 of 2 workers: n1:" in said, said
    assert f"Report: {out}/report.html" in said
    assert_equal(google.fetched(out, tmp_path / "fetched"), one_worker, tolerance=1e-6)


def test_configurations_of_an_array_meet_in_a_bucket(slurm, photos, google: GoogleBed, tmp_path):
    data, out = google.put_folder(photos, f"{google.bucket()}/photos"), f"{google.bucket()}/runs"
    settings = quick_settings("backbone.unfreeze=none", "augment.views=1", "cluster.require_gpu=false")
    num_read = []
    for k in (0, 1):
        node = tmp_path / f"node-{k}"
        node.mkdir()
        script = edited("array", node, DATA=data, OUT=out, SCRATCH=node, OPTIONS=[*settings, "--stop-after", "extract"])
        google.requests()
        number = told(slurm, **google.environment).submit(script, f"--array={k}", *WORKER)
        assert slurm.finished(f"{number}_{k}")["JobState"] == "COMPLETED", slurm.log(f"{number}_{k}")
        num_read.append(sum("/photos%2F" in path for _, path, _ in google.requests()))
    assert num_read == [320, 0]


def test_job_on_a_node_that_is_lost_starts_again_and_ends_the_same(slurm, one_worker, photos, tmp_path):
    script = edited("multi-node", tmp_path, DATA=photos, OUT=tmp_path / "out", OPTIONS=SHORT)
    number = slurm.submit(script, *WORKER)
    slurm.wait_until(lambda: "extract   runs" in slurm.log(number), number)
    slurm("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    slurm.wait_until(lambda: slurm.job(number)["Restarts"] == "1", number)
    with suppress(AssertionError):  # Slurm refuses if the node has come back by itself.
        slurm("scontrol", "update", "nodename=n2", "state=resume")
    job, said = slurm.finished(number), slurm.log(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), said
    assert_equal(tmp_path / "out", one_worker, tolerance=1e-6)


def test_two_nodes_do_not_start_again_where_the_data_cannot_be_used(slurm, tmp_path):
    photos = paint_classes(tmp_path / "photos", per_class=4, kinds=("stripes",))
    script = edited("multi-node", tmp_path, DATA=photos, OUT=tmp_path / "out", OPTIONS=SHORT)
    number = slurm.submit(script, *WORKER)
    job, said = slurm.finished(number), slurm.log(number)
    # The largest of the workers' codes is what srun gives.
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "65:0", "0"), said
