"""One device, two, and two or three workers: the same examples in the same order, and the same numbers."""

import functools
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, WAIT_S, free_ports
from tests.warm import WarmStart

pytestmark = pytest.mark.thorough


@functools.cache
def run(folder, num_workers=1, logical_cpus=0):
    """What each worker made. Processes of their own, because devices are set up before TensorFlow starts."""
    addresses = ",".join(f"localhost:{port}" for port in free_ports(num_workers))
    files = [folder / f"{num_workers}-{logical_cpus}-{k}.npz" for k in range(num_workers)]
    started = [
        WarmStart(
            [sys.executable, "-m", "tests.numerics.replicas", str(file), str(logical_cpus), addresses, str(k)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k, file in enumerate(files)
    ]
    for process in started:
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0 and "tf.function retracing" not in said, said
    return [dict(np.load(file)) for file in files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def one(folder):
    return run(folder)[0]


@pytest.mark.parametrize(("num_workers", "logical_cpus"), [(1, 2), (2, 0), (3, 0)])
def test_results_do_not_depend_on_the_number_of_devices_or_workers(folder, one, num_workers, logical_cpus):
    for found in run(folder, num_workers, logical_cpus):
        assert found["num_replicas"] == max(num_workers, logical_cpus) and one["num_replicas"] == 1
        assert np.array_equal(found["order"], one["order"])

        def difference(name, found=found):
            assert found[name].shape == one[name].shape  # Each example once, those of uneven batches, too.
            return np.abs(found[name] - one[name]).max()

        for name in ("float64", "decayed"):
            assert difference(f"{name}_weights") < 1e-10 and difference(f"{name}_losses") < 1e-9
            assert np.abs(one[f"{name}_weights"] - one[f"{name}_start"]).max() > 1e-2
        assert difference("float32_moments") < 1e-5 * np.abs(one["float32_moments"]).max()
        assert difference("float32_weights") < 1e-6 and difference("float32_logits") < 1e-4
        assert difference("features") == 0


def test_all_workers_end_with_the_same_bits(folder):
    first, second = run(folder, 2, 0)  # As above, where it was kept.
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
