"""The import of TensorFlow: quiet, and with the threads that a container allows."""

import os
import sys
from types import ModuleType

from job.runtime.cgroups import usable_cores
from job.runtime.telemetry import spent_once


def import_tensorflow() -> ModuleType:
    """Import TensorFlow without the lines about itself that it writes to standard error below Python while it loads."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    standard_error = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with spent_once("imports"):
            import tensorflow
        is_given = "TF_NUM_INTRAOP_THREADS" in os.environ
        if usable_cores() < len(os.sched_getaffinity(0)) and not is_given:  # A share of their time: twice as fast.
            tensorflow.config.threading.set_intra_op_parallelism_threads(usable_cores())
            tensorflow.config.threading.set_inter_op_parallelism_threads(usable_cores())
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        os.close(nowhere)
    return tensorflow
