"""Linear algebra in one thread, where more threads would cost CPU time and save no wall time."""

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[object]:
    """Let NumPy and SciPy use one thread for linear algebra while a block lasts."""
    limiter: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limiter


@cache
def _libraries() -> ThreadpoolController:
    """Find the libraries once: it takes 7 ms, and some stages solve a hundred small problems."""
    import scipy.linalg  # noqa: F401  # It brings a library of its own, which is found only if it is loaded.

    return ThreadpoolController()
