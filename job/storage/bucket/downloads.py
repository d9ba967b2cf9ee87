"""Local copies of objects, in scratch space: for what has to be a file."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from job.errors import UsageError
from job.storage.bucket.objects import Objects, Stored, split_object
from job.storage.bucket.open import open_objects
from job.storage.bucket.parallel import each
from job.storage.files import own_mark, remove_tree, sync


def scratch(uri: str) -> Path:
    """The local folder for what belongs to `uri`, below TMPDIR: always the same one on a machine, and only this user's."""
    root = Path(tempfile.gettempdir()) / f"transfer-job-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise UsageError(f"{root} belongs to somebody else; set TMPDIR to a folder of your own.")
    return root / hashlib.sha256(os.fsencode(uri)).hexdigest()[:16]


def fetch(objects: Objects, name: str, file: Path, version: str | None = None) -> None:
    """Download an object; the file is there whole or not at all. Raises: NoSuchObject."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{own_mark()}.part")
    try:
        objects.download(name, part, version)
        sync(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def local_copy(uri: str) -> Path:
    """An object as a local file, which is there already where its version has not changed.

    Raises:
        UsageError: where there is none.
    """
    folder, name = split_object(uri)
    objects = open_objects(folder)
    found = objects.find(name)
    if found is None:
        next(objects.list(name), None)  # It says so where there is not even the bucket.
        raise UsageError(f"{uri}: there is no such object.")
    file = scratch(f"{uri} {found.version}") / name
    if not file.exists():
        fetch(objects, name, file, found.version)
    return file


def local_folder(uri: str) -> Path:
    """Everything below a prefix as a local folder, which is there already where nothing has changed.

    Raises:
        UsageError: where there is nothing.
    """
    objects = open_objects(uri)
    found = list(objects.list())
    folder = scratch(f"{objects.uri} {found}")
    if not found:
        raise UsageError(f"{uri}: there is nothing below it.")
    if not folder.exists():
        part = folder.with_name(f".{own_mark()}.part")

        def bring(stored: Stored) -> None:
            inside = part / stored.name
            if not stored.name.endswith("/") and inside.resolve().is_relative_to(part.resolve()):
                fetch(objects, stored.name, inside, stored.version)

        try:
            each(bring, found)
            with suppress(OSError):  # Another process has just done the same.
                part.rename(folder)
        finally:
            remove_tree(part)
    return folder
