"""The arithmetic of the side-by-side benchmark, by hand; tests/e2e/test_benchmarks.py runs it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.side_by_side import link_photos
from benchmarks.side_by_side_table import accuracy_difference, table, whole
from tests.conftest import ROOT, paint

# Three held-out photos in rows 1, 2 and 5: the first two are predicted right by the job.
JOB = {
    "seed": 0,
    "wall_s": 100.0,
    "cpu_s": 150.0,
    "peak_mb": 1000.0,
    "peak_together_mb": 1200.0,
    "shipped": "head",
    "test_accuracy": 2 / 3,
    "val_accuracy": 0.5,
    "head_accuracy": 2 / 3,
    "timings": {
        "extract": {"wall_s": 20.0, "cpu_s": 40.0},
        "head": {"wall_s": 5.0, "cpu_s": 10.0},
        "fine_tune": {"wall_s": 25.0, "cpu_s": 50.0},
    },
    "counts": {"extract": 2000, "fine_tune": 3000},
    "throughput": {"extract_views_per_s": 100.0, "extract_forward_views_per_s": 400.0},
    "split": "thhtvh-",
    "labels": "0 1 1",
    "predicted": "0 1 0",
    "measured": "2026-01-01T00:00",
    "revision": "abc",
}
PEER = {
    "seed": 0,
    "wall_s": 400.0,
    "cpu_s": 600.0,
    "peak_mb": 900.0,
    "peak_together_mb": 900.0,
    "epochs": [{"phase": phase, "wall_s": 10.0, "cpu_s": 15.0} for phase in ("frozen", "frozen", "unfrozen", "unfrozen")],
    "epochs_wanted": 2,
    "test_accuracy": 1 / 3,
    "val_accuracy": 0.5,
    "predicted": "0 0 0",
    "measured": "2026-01-01T00:10",
    "revision": "abc",
}


def results(**parts):
    runs = {name: {"0": run} for name, run in {"job": JOB, **parts}.items()}
    return {"machine": "a machine", "sizes": {"small": runs}}


def row(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_missing_epochs_count_like_the_later_ones_of_their_phase():
    seconds = {"frozen": (30.0, 10.0), "unfrozen": (50.0, 20.0)}  # The first epoch of a phase traces its graph.
    epochs = [{"phase": phase, "cpu_s": s} for phase, both in seconds.items() for s in both]
    peer = {"cpu_s": 120.0, "epochs": epochs, "epochs_wanted": 10}
    assert whole(peer, "cpu_s") == 120 + 8 * 10 + 8 * 20
    assert whole({**peer, "epochs_wanted": 2}, "cpu_s") == 120


def test_accuracy_difference_is_paired_by_photo_and_averaged_over_repetitions():
    both_right = {**PEER, "predicted": "0 1 0"}
    mean, low, high = accuracy_difference({"0": JOB, "1": JOB}, {"0": PEER, "1": both_right})
    assert mean == pytest.approx((1 / 3 + 0) / 2)
    assert low == 0 and mean < high <= 0.5
    assert accuracy_difference({"0": JOB}, {"0": both_right}) == (0.0, 0.0, 0.0)


def test_repetitions_are_no_further_photos():
    """Else the same photos again would make the interval narrower."""
    once = accuracy_difference({"0": JOB}, {"0": PEER})
    assert accuracy_difference({"0": JOB, "1": JOB}, {"0": PEER, "1": PEER}) == once


def test_accuracy_of_a_peer_that_was_not_trained_to_the_end_is_not_compared():
    short = {**PEER, "epochs_wanted": 10}
    assert accuracy_difference({"0": JOB}, {"0": short}) is None
    text = table(results(a=short))
    assert "held-out accuracy, job less (a)" not in text
    assert row(text, "a: ")[0].endswith("(extrapolated from 4 epochs)")


def test_ratios_come_first_and_say_whether_they_are_what_is_wanted():
    text = table(results(a=PEER, b={**PEER, "cpu_s": 450.0}))
    assert text.index("## Ratios") < text.index("## Whole runs") < text.index("## Explanation")
    assert row(text, "CPU s of (a) / of the whole job") == [
        "CPU s of (a) / of the whole job", "4.00", "1", ">= 4", "met"
    ]  # fmt: skip
    assert row(text, "CPU s of (b) / of the whole job")[1:] == ["3.00", "1", ">= 4", "**not met**"]
    assert row(text, "CPU s of (a) / of extract + head + fine_tune")[1:] == ["6.00", "1", ">= 6", "met"]
    assert row(text, "held-out accuracy, job less (a)")[1].startswith("+33.33 points")


def test_extract_is_held_against_the_bare_forward_pass_as_a_whole_and_where_the_run_tells_it_as_a_loop():
    rounds = [{"photos": 500, "wall_s": 1.0, "cpu_s": 2.0}]
    forward = {**PEER, "rounds": {"forward": {"keras": rounds, "constants": rounds, "job": rounds}}}
    text = table(results(forward=forward))
    assert row(text, "views per wall s, extract stage as a whole / bare forward (keras)")[1] == "0.20"
    assert row(text, "views per CPU s, extract stage as a whole / bare forward (keras)")[1] == "0.20"
    assert row(text, "`extract_forward_views_per_s` of the run / bare forward (keras)")[1] == "0.80"
    assert "`extract_views_per_s` of the run /" not in text


def test_links_are_the_photos_of_the_split_and_held_out_ones_are_named_in_order(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "links"
    paths = [paint(data / name / f"{k}.jpg", seed=k) for name in ("ash", "oak") for k in range(3)]
    held_out, class_names = link_photos(data, "thv-ht", folder)
    assert class_names == ("ash", "oak")
    links = {p.relative_to(folder).parts[:2]: p.resolve() for p in folder.rglob("*.jpg")}
    expected = {("train", "ash"): 0, ("test", "ash"): 1, ("val", "ash"): 2, ("test", "oak"): 4, ("train", "oak"): 5}
    assert links == {place: paths[k].resolve() for place, k in expected.items()}
    assert [next(folder.rglob(name)).resolve() for name in held_out] == [paths[1].resolve(), paths[4].resolve()]
    with pytest.raises(SystemExit, match="has changed"):
        link_photos(data, "thv", tmp_path / "again")


BURN = "import time\nwhile time.process_time() < 0.6: pass"
LEAVES_ONE_BEHIND = f"import os, sys\nif os.fork() == 0:\n    exec({BURN!r})"


@pytest.mark.parametrize("program", [BURN, LEAVES_ONE_BEHIND])
def test_seconds_of_a_process_that_outlives_the_command_count(program):
    """In a process of its own, because all of its children are waited for."""
    code = "import json, sys; from benchmarks.measured import run_measured; print(json.dumps(run_measured(sys.argv[1:])))"
    command = [sys.executable, "-c", code, sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["cpu_s"] > 0.6 and found["peak_mb"] > 1
    assert np.isfinite(found["wall_s"])


def test_failure_of_what_is_measured_ends_the_benchmark_with_its_words():
    code = "import sys; from benchmarks.measured import run_measured; run_measured(sys.argv[1:])"
    command = [sys.executable, "-c", code, sys.executable, "-c", "raise SystemExit('no such photos')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no such photos" in done.stderr
