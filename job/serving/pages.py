"""HTML pages that commands write where the user says. Each one may replace only a page that the same command wrote."""

import os
from pathlib import Path

from job.errors import UsageError
from job.serving.answers import output_around, try_to_write
from job.storage.bucket.objects import is_remote
from job.storage.files import beside, storage_errors, writing

_HEAD_BYTES = 1000


def check_page(place: str, option: str, command: str) -> None:
    """Check that a command may write a page. Nothing is left there. `option` is the one that names the place.

    Raises:
        UsageError: if `place` is not a local .html file, is a file that the command did not write, or lies in the output of
            a run under a name that the job writes itself.
        StorageFailed.
    """
    if not place.endswith(".html") or is_remote(place):
        raise UsageError(f"{option} {place}: give the name of a file on this machine that ends in .html.")
    refuse_output(place, option)
    _refuse_foreign(place, option, command)
    try_to_write(place, option)


def refuse_output(place: str, option: str) -> None:
    """Refuse a place in the output of a run that has a name which the job uses itself. Raises: UsageError."""
    if (owner := output_around(place)) is not None:
        raise UsageError(
            f"{option} {place} lies in the output of a run, {owner}, under a name that the job writes itself. Give another "
            "name."
        )


def write_page(place: str, html: bytes, option: str, command: str) -> Path:
    """Write a page, whose generator must be the command, and return its path. Raises as `check_page` does."""
    assert _mark(command) in html[:_HEAD_BYTES]
    _refuse_foreign(place, option, command)
    final = Path(place).resolve()
    with writing(final, beside(final), len(html)) as part:
        part.write_bytes(html)
    return final


def _refuse_foreign(place: str, option: str, command: str) -> None:
    file = Path(place).resolve()
    if not os.path.lexists(file):
        return
    with storage_errors(file):
        is_own = file.is_file() and _mark(command) in file.open("rb").read(_HEAD_BYTES)
    if not is_own:
        raise UsageError(f"{option} {place}: there is such a file, and {command} did not write it. Give another name.")


def _mark(command: str) -> bytes:
    return f'<meta name="generator" content="transfer-job {command}">'.encode()
