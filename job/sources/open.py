"""The function that opens the source of photos that a command names."""

from pathlib import Path

from job.console.places import check_readable
from job.errors import UsageError
from job.sections import IntakeConfig
from job.sources.base import PhotoFolder, Source
from job.sources.folders import FileSource, FolderSource
from job.sources.tree import TABLE_EXTENSIONS, is_table
from job.storage.bucket.objects import is_remote, split_object
from job.storage.bucket.open import open_objects

_KINDS = f"a table ({', '.join(TABLE_EXTENSIONS[:6])})"


def open_source(
    uri: str, labels: str | None = None, *, labelled: bool = True, settings: IntakeConfig = IntakeConfig()
) -> Source:
    """Return the source that `--data` and `--labels` name. Without `labelled`, every file becomes an entry without a label.

    Raises:
        UsageError: if the scheme of the URI is unknown, or the folder, table, bucket or data set does not exist.
    """
    for root in settings.link_roots:
        if not Path(root).expanduser().is_dir():
            raise UsageError(f"intake.link_roots: {root} is not a folder. Give the folders that links may lead to.")
    if uri.startswith("tfds:"):
        from job.sources.tfds import open_named

        if labels is not None:
            raise UsageError(f"--labels {labels}: --data {uri} has labels of its own.")
        return open_named(uri, settings.tfds_dir, labelled=labelled)
    from job.sources.tables import TableSource  # It imports pyarrow, which is slow.

    in_bucket, data = is_remote(uri), Path(uri)
    if not in_bucket:
        _check_local(data, uri, labelled)
    is_file = is_table(uri) if in_bucket else not data.is_dir()
    if is_file and not in_bucket and not is_table(data.name):
        return FileSource(data.parent.resolve(), labelled, settings, data.name)
    if is_file and labels is not None:
        raise UsageError(f"--labels {labels}: --data {uri} is a table itself; give the folder of the photos as --data.")
    if in_bucket:
        from job.sources.buckets import BucketSource
        from job.sources.fetch import THREADS

        objects = open_objects(split_object(uri)[0] if is_file else uri, connections=THREADS)
        photos: PhotoFolder = BucketSource(objects, labelled, settings)
    else:
        photos = FolderSource((data.parent if is_file else data).resolve(), labelled, settings)
    if is_file:
        table = uri if in_bucket else str(data.parent.resolve() / data.name)
        return TableSource(photos, table, labelled=labelled, settings=settings)
    if labels is None:
        return photos
    return TableSource(photos, _checked_table(labels, uri), lists_folder=True, labelled=labelled, settings=settings)


def _check_local(data: Path, uri: str, labelled: bool) -> None:
    """Check that there is a folder or a table, or without `labelled` any regular file. Raises: UsageError."""
    if not data.exists():
        raise UsageError(f"--data {uri}: no such folder or table.")
    check_readable(f"--data {uri}", data)
    if not data.is_dir() and not (data.is_file() and (is_table(data.name) or not labelled)):
        raise UsageError(f"--data {uri}: this is a file; give a folder of class folders or {_KINDS}.")


def _checked_table(labels: str, uri: str) -> str:
    """Return the URI or absolute path of the table that `--labels` names. Raises: UsageError, if there is none."""
    if is_remote(labels):
        if not is_remote(uri):
            raise UsageError(
                f"--labels {labels}: the table is in a bucket, but --data {uri} is on this machine. Copy the table here."
            )
    elif not (table := Path(labels)).is_file():
        raise UsageError(f"--labels {labels}: {'this is not a file' if table.exists() else 'no such file'}; give {_KINDS}.")
    if not is_table(labels):
        raise UsageError(f"--labels {labels}: give {_KINDS}.")
    if is_remote(labels):
        return labels
    check_readable(f"--labels {labels}", table)
    return str(table.resolve())
