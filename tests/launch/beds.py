"""Where the job is really started: a Docker engine, a Slurm of two nodes. A bed that is missing skips its tests, with the
reason; `REQUIRE_BEDS=1`, as `.ci/run` sets it, makes that a failure.
"""

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """This machine has not what the test runs on."""
    if os.environ.get("REQUIRE_BEDS"):
        pytest.fail(f"REQUIRE_BEDS is set and {reason}", pytrace=False)
    pytest.skip(reason)
