"""Local copies of objects in scratch space, for readers that need a file."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from job.errors import UsageError
from job.storage.bucket.objects import Objects, Stored, split_object
from job.storage.bucket.open import open_objects
from job.storage.bucket.parallel import each
from job.storage.files import own_mark, remove_tree, writing


def scratch(uri: str) -> Path:
    """Return the local folder for files that belong to `uri`, below TMPDIR and private to this user. Raises: UsageError."""
    root = Path(tempfile.gettempdir()) / f"transfer-job-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise UsageError(f"{root} belongs to another user. Set TMPDIR to a folder of your own.")
    return root / hashlib.sha256(os.fsencode(uri)).hexdigest()[:16]


def fetch(objects: Objects, name: str, file: Path, version: str | None = None) -> None:
    """Download an object to a file, which appears whole or not at all. Raises: NoSuchObject, StorageFailed."""
    with writing(file, file.with_name(f".{own_mark()}.part")) as part:
        objects.download(name, part, version)


def local_copy(uri: str) -> Path:
    """Return an object as a local file. The file of an earlier call is used again if the object has not changed.

    Raises:
        UsageError: if there is no such object.
    """
    folder, name = split_object(uri)
    objects = open_objects(folder)
    found = objects.find(name)
    if found is None:
        next(objects.list(name), None)  # It raises if there is no bucket.
        raise UsageError(f"{uri}: there is no such object. Check the name.")
    file = scratch(f"{uri} {found.version}") / name
    if not file.exists():
        fetch(objects, name, file, found.version)
    return file


def local_folder(uri: str) -> Path:
    """Return everything below a prefix as a local folder. That of an earlier call is used again if nothing has changed.

    Raises:
        UsageError: if there is nothing below the prefix.
    """
    objects = open_objects(uri)
    found = list(objects.list())
    folder = scratch(f"{objects.uri} {found}")
    if not found:
        raise UsageError(f"{uri}: there is nothing below it. Check the prefix.")
    if not folder.exists():
        part = folder.with_name(f".{own_mark()}.part")

        def bring(stored: Stored) -> None:
            inside = part / stored.name
            if not stored.name.endswith("/") and inside.resolve().is_relative_to(part.resolve()):
                fetch(objects, stored.name, inside, stored.version)

        try:
            each(bring, found)
            with suppress(OSError):  # Another process was faster.
                part.rename(folder)
        finally:
            remove_tree(part)
    return folder
