"""A worker or the chief that dies, hangs, is stopped or never comes: the others end soon, and the same command goes on."""

import itertools
import shutil
import signal
import time

import numpy as np
import pytest

from tests.conftest import run_job
from tests.faults import killer
from tests.faults.several import Run

# A deadline of the contract, in seconds, and as much for a machine that runs other tests at the same time.
LEAVES_WITHIN_S, LEAVES_A_HUNG_ONE_WITHIN_S, SPARE_S = 15, 25, 30


def num_epochs(out):
    """The number of epochs that are over, in all starts together."""
    log = out / "logs" / "events.jsonl"
    return log.read_text().count('"epoch"') if log.exists() else 0


def lose(run, undisturbed_workers, victim, number=signal.SIGKILL):
    """End one of two workers. Return what is wrong with how the other one ends, and with what is left."""
    rest = 1 - victim
    run.send(victim, number)
    codes = run.codes(LEAVES_WITHIN_S + SPARE_S)
    if codes[rest] == 0:  # When all was done, and published, which concerns nobody any more.
        problems = killer.differences(undisturbed_workers)
    elif codes[victim] != -number or codes[rest] != 75 or "is lost" not in run.said(rest):
        problems = [f"{codes}: {run.said(rest)[-2000:]}"]
    else:
        problems = []
    return problems + killer.faults(undisturbed_workers.out)


def go_on(undisturbed_workers):
    """Let both workers come to the end. Return what differs from a run that nobody disturbed."""
    again = Run(undisturbed_workers.data, undisturbed_workers.out)
    if (codes := again.codes()) != [0, 0]:
        return [f"going on: {codes}: {again.said(0)[-2000:]} {again.said(1)[-2000:]}"]
    return killer.differences(undisturbed_workers) + killer.leftovers(undisturbed_workers.out)


def test_others_end_with_75_when_one_is_killed_and_the_run_goes_on_to_the_same_bits(undisturbed_workers):
    """Each is killed once in each long stage: two in which all workers work, and one that is the chief's alone."""
    shutil.rmtree(undisturbed_workers.out)
    for stage, victim in itertools.product(("extract", "fine_tune", "export"), (0, 1)):
        before = num_epochs(undisturbed_workers.out)
        run = Run(undisturbed_workers.data, undisturbed_workers.out)
        run.wait_until(lambda run=run, stage=stage: f"{stage:<9} runs" in run.said(0))
        run.wait_until(lambda run=run: "Connected to the chief." in run.said(1))  # Or one waits minutes for the other.
        if stage == "fine_tune":
            run.wait_until(lambda before=before: num_epochs(undisturbed_workers.out) > before)
        assert lose(run, undisturbed_workers, victim) == [], (stage, victim)
    assert go_on(undisturbed_workers) == []


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1], ids=["chief", "worker"])
def test_others_end_wherever_one_is_killed(undisturbed_workers, victim):
    """Killed at ten random moments, each in a run from the start."""
    rng, count = np.random.default_rng(10 + victim), 10
    for seconds in 0.5 + (np.arange(count) + rng.uniform(size=count)) / count * (undisturbed_workers.duration_s - 0.5):
        shutil.rmtree(undisturbed_workers.out)
        run = Run(undisturbed_workers.data, undisturbed_workers.out)
        time.sleep(seconds)
        if run.is_running():  # It may be faster than the first time.
            assert lose(run, undisturbed_workers, victim) + go_on(undisturbed_workers) == [], f"after {seconds:.1f} s"


@pytest.mark.parametrize("victim", [0, 1], ids=["chief", "worker"])
def test_others_end_with_75_when_one_hangs(undisturbed_workers, victim):
    undisturbed_workers.finish_again()
    run = Run(undisturbed_workers.data, undisturbed_workers.out, "fine_tune.epochs=2000")
    run.wait_until(lambda: num_epochs(undisturbed_workers.out))
    run.send(victim, signal.SIGSTOP)
    process = run.processes[1 - victim]
    assert process.wait(LEAVES_A_HUNG_ONE_WITHIN_S + SPARE_S) == 75, run.said(1 - victim)
    run.kill()


@pytest.mark.parametrize("asked", [0, 1], ids=["chief", "worker"])
def test_signal_to_any_worker_ends_all_with_143_after_a_checkpoint(undisturbed_workers, asked):
    undisturbed_workers.finish_again()
    settings = ("fine_tune.epochs=2000", "checkpoint.every_s=1000")
    run = Run(undisturbed_workers.data, undisturbed_workers.out, *settings)
    run.wait_until(lambda: num_epochs(undisturbed_workers.out))
    run.send(asked, signal.SIGTERM)
    assert run.codes() == [143, 143], run.said(0) + run.said(1)
    assert "Stopped by SIGTERM" in run.said(0) and "everything up to step" in run.said(0)
    found = sorted(p.name[:10] for p in (undisturbed_workers.out / "checkpoints" / "fine_tune").glob("[0-9]*"))
    assert len(found) == 2 and int(found[0]) == 0 < int(found[1])  # The one that all began with, and this.
    again = Run(undisturbed_workers.data, undisturbed_workers.out, *settings)
    again.wait_until(lambda: "resuming from the checkpoint at step" in again.said(0))
    again.kill()


@pytest.mark.parametrize("missing", [0, 1], ids=["chief", "worker"])
def test_worker_that_never_comes_ends_the_others_with_75_and_its_name(tmp_path, painted, missing):
    run = Run(painted, tmp_path / "out", "cluster.start_timeout_s=3", missing=[missing])
    codes = run.codes()
    assert codes[1 - missing] == 75
    said = run.said(1 - missing)
    assert "cluster.start_timeout_s (3)" in said and "start all workers again" in said
    assert ("worker 1 (localhost:" if missing else "The chief at localhost:") in said


@pytest.mark.parametrize("missing", [0, 1], ids=["chief", "worker"])
def test_signal_is_obeyed_while_others_are_waited_for(tmp_path, painted, missing):
    run = Run(painted, tmp_path / "out", missing=[missing])
    run.wait_until(lambda: "Cluster:" in run.said(1 - missing))
    time.sleep(2)
    run.send(1 - missing, signal.SIGTERM)
    assert run.codes(10 + SPARE_S)[1 - missing] == 143


def test_worker_that_was_started_otherwise_is_refused(tmp_path, painted):
    out = tmp_path / "out"
    run = Run(painted, out, other=(out, "seed=7"))
    assert run.codes() == [2, 2], run.said(0) + run.said(1)
    assert all("started with another command line, configuration or version" in run.said(k) for k in (0, 1))


def test_worker_that_sees_another_output_ends_with_2_and_the_chief_waits_for_it_in_vain(tmp_path, painted):
    """Who does not know the secret is a stranger to the chief, and cannot end it."""
    (tmp_path / "elsewhere").mkdir()
    short = "cluster.start_timeout_s=20"
    run = Run(painted, tmp_path / "out", short, other=(tmp_path / "elsewhere" / "out", short))
    assert run.codes() == [75, 2] and "Give all workers the same --out" in run.said(1)
    assert "its --out is another folder than the chief's" in run.said(0) and "worker 1 (localhost:" in run.said(0)


def test_worker_that_comes_when_all_is_done_ends_with_0(undisturbed_workers):
    undisturbed_workers.finish_again()
    alone = Run(undisturbed_workers.data, undisturbed_workers.out, missing=[0])
    assert alone.codes()[1] == 0 and "The run is finished" in alone.said(1)
    chief = Run(undisturbed_workers.data, undisturbed_workers.out, missing=[1])
    assert chief.codes()[0] == 0 and "skipped: unchanged" not in chief.said(0)


def test_worker_that_came_first_and_looked_at_an_older_run_works_on_the_new_one(undisturbed_workers):
    undisturbed_workers.finish_again()
    older = [*killer.command(undisturbed_workers.data, undisturbed_workers.out, "split.seed=3")[3:], "--stop-after", "head"]
    assert run_job(*older).returncode == 0
    run = Run(undisturbed_workers.data, undisturbed_workers.out, missing=[0])
    run.wait_until(lambda: "Waiting for the chief" in run.said(1))
    run.start(0)
    assert run.codes() == [0, 0], run.said(0) + run.said(1)
    assert killer.differences(undisturbed_workers) == []
