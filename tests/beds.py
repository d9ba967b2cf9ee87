"""Programs that some tests need: a Docker engine, a Slurm of two nodes, a browser. A missing one skips its tests, with the
reason; `REQUIRE_BEDS=1`, as `.ci/run` sets it, makes that a failure.
"""

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip or fail a test that cannot run on this machine."""
    if os.environ.get("REQUIRE_BEDS"):
        pytest.fail(f"REQUIRE_BEDS is set and {reason}", pytrace=False)
    pytest.skip(reason)
