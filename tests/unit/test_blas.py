"""Linear algebra in one thread."""

from pathlib import Path

import threadpoolctl

from job.runtime.blas import one_thread


def num_threads() -> list[int]:
    """Those of the libraries that NumPy and SciPy bring. Other tests may have loaded more."""
    libraries = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    return [
        library["num_threads"] for library in libraries if {"numpy.libs", "scipy.libs"} & {*Path(library["filepath"]).parts}
    ]


def test_libraries_of_numpy_and_scipy_use_one_thread_while_the_block_lasts():
    with one_thread():
        pass  # Now both are loaded.
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert num_threads() == [2, 2]
        with one_thread():
            assert num_threads() == [1, 1]
        assert num_threads() == [2, 2]
