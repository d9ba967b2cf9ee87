"""Where the job is really started: a Docker engine, a Slurm of two nodes. A bed that is missing skips its tests, with the
reason; `REQUIRE_BEDS=1`, as `.ci/run` sets it, makes that a failure.
"""

import os
from pathlib import Path
from typing import NoReturn

import pytest

from tests.clouds.fixtures import GoogleBed


def missing(reason: str) -> NoReturn:
    """This machine has not what the test runs on."""
    if os.environ.get("REQUIRE_BEDS"):
        pytest.fail(f"REQUIRE_BEDS is set and {reason}", pytrace=False)
    pytest.skip(reason)


def put_folder(google: GoogleBed, folder: Path, uri: str) -> str:
    """Every file below it, under its name; returns the URI."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        google.put(f"{uri}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return uri


def fetched(google: GoogleBed, uri: str, folder: Path) -> Path:
    """What lies below the URI, as files in the folder."""
    for name in google.names(f"{uri}/"):
        path = folder / name.removeprefix(f"{uri}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(google.get(name))
    return folder
