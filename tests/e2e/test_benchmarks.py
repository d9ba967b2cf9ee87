"""The benchmarks run from end to end. What they measure here means nothing."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_side_by_side_measures_every_part_and_one_again_without_the_others(shared, tmp_path):
    file = tmp_path / "side_by_side.json"
    done = run("benchmarks.side_by_side", "--quick", "--out", file)
    assert done.returncode == 0, done.stderr
    (runs,) = json.loads(file.read_text())["sizes"].values()
    assert set(runs) == {"job", "a", "b", "c", "forward", "step", "decode"}
    held_out = runs["job"]["0"]["split"].count("h")
    assert held_out > 0
    for part in "abc":
        assert len(runs[part]["0"]["predicted"].split()) == held_out
        assert [epoch["phase"] for epoch in runs[part]["0"]["epochs"]] == ["frozen", "unfrozen"]
    text = file.with_suffix(".md").read_text()
    for start in (
        "| CPU s of (a) / of the whole job |",
        "| held-out accuracy, job less (b) |",
        "| views per CPU s, extract stage as a whole / bare forward (constants) |",
        "| photos per CPU s, the job's step in the same process / bare step |",
        "| photos per CPU s, digest, decode, hash, resize of 4000x3000 / scaled libjpeg-turbo |",
    ):
        assert start in text
    done = run("benchmarks.side_by_side", "--quick", "--only", "decode,a", "--out", file)
    assert done.returncode == 0, done.stderr
    (again,) = json.loads(file.read_text())["sizes"].values()
    assert {part for part in runs if runs[part] != again[part]} == {"decode", "a"}


def test_without_a_gpu_the_gpu_benchmark_says_so_instead_of_a_number(tmp_path):
    file = tmp_path / "gpu.md"
    done = run("benchmarks.gpu", "--out", file, CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    assert "No GPU: nothing here was measured on one." in text and "photos/s" not in text


@pytest.mark.long
def test_the_code_of_the_gpu_benchmark_runs_on_a_cpu_as_well(tmp_path):
    file = tmp_path / "gpu.md"
    small = ("--backbones", "mobilenet_v2", "--batch-sizes", 4, "--image-size", 64)
    done = run("benchmarks.gpu", "--try-on-cpu", *small, "--out", file, CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 0, done.stderr
    lines = [line for line in file.read_text().splitlines() if line.startswith("| mobilenet_v2")]
    assert len(lines) == 11 and not any("failed" in line for line in lines)
