"""Threads that transfer objects."""

import time
import weakref

from job.storage.bucket.parallel import Threads


class Large:
    """Something that takes memory."""


def test_thread_that_waits_for_more_work_keeps_nothing():
    with Threads(1) as threads:
        result = threads.begin(Large).result()
        kept = weakref.ref(result)
        del result
        deadline = time.monotonic() + 60
        while kept() is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # The thread is just about to wait.
        assert kept() is None
