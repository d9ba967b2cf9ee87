"""The import of TensorFlow: without its start-up messages, and with as many threads as a container may use cores."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from job.runtime.cgroups import usable_cores
from job.runtime.telemetry import spent_once

# TensorFlow's switch for the kernels of oneDNN. Without it, they are off on CPUs that have no AVX-512 VNNI. There, they take
# half the time, and the other kernels give a photo other last bits at another place in a batch (docs/decisions/0028).
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"


def onednn() -> str:
    """Return the value of `ONEDNN` with which this process has imported TensorFlow, or will import it.

    In Python, TensorFlow may have been imported before the job was called. It is too late for the switch then.
    """
    return os.environ.get(ONEDNN, "default" if "tensorflow" in sys.modules else "1")


def leave_out_keras() -> None:
    """Make this process import TensorFlow without Keras, which halves the time. An exported graph runs without it.

    The variable is TensorFlow's own. It asks for the package of Keras 2, and TensorFlow does without if that is missing.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"


def import_tensorflow() -> ModuleType:
    """Import TensorFlow. Hide the messages that its C++ code writes to standard error during the import."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault(ONEDNN, "1")
    sys.stderr.flush()
    standard_error = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with spent_once("imports"), _no_search_for_garbage():
            import tensorflow
        is_given = "TF_NUM_INTRAOP_THREADS" in os.environ
        # TensorFlow starts a thread for each core that it sees. With a CPU limit below that, fewer are twice as fast.
        if usable_cores() < len(os.sched_getaffinity(0)) and not is_given:
            tensorflow.config.threading.set_intra_op_parallelism_threads(usable_cores())
            tensorflow.config.threading.set_inter_op_parallelism_threads(usable_cores())
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        os.close(nowhere)
    return tensorflow


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Turn Python's cyclic garbage collector off: it takes a fifth of the time of a large import, and finds nothing.

    Later it leaves alone what has been imported, which would take a quarter of a second each time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_on:
            gc.enable()
