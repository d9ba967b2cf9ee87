"""The function that opens the source of photos that a command names."""

from pathlib import Path
from typing import TYPE_CHECKING

from job.console.places import check_readable
from job.errors import UsageError
from job.sources.base import Reading, Source
from job.sources.folders import FileSource, FolderSource
from job.sources.tree import is_table
from job.storage.bucket.objects import is_remote

if TYPE_CHECKING:
    from job.config import IntakeConfig


def open_source(
    uri: str, labels: str | None = None, *, labelled: bool = True, settings: "IntakeConfig | None" = None
) -> Source:
    """Return the source that `--data` and `--labels` name. Without `labelled`, every file becomes an entry without a label.

    Raises:
        UsageError: if the scheme of the URI is unknown, or the folder, table, bucket or data set does not exist.
    """
    # This imports pyarrow, which is slow.
    from job.sources.tables import KINDS, TableSource, local_table

    reading = Reading.of(settings) if settings else Reading()
    for root in reading.link_roots:
        if not Path(root).expanduser().is_dir():
            raise UsageError(f"intake.link_roots: {root} is not a folder. Give the folders that links may lead to.")
    if uri.startswith("tfds:"):
        from job.sources.tfds import open_named

        if labels is not None:
            raise UsageError(f"--labels {labels}: --data {uri} has labels of its own.")
        return open_named(uri, settings.tfds_dir if settings else None, labelled=labelled)
    if is_remote(uri):
        from job.sources.buckets import open_bucket

        return open_bucket(uri, labels, labelled=labelled, reading=reading)
    data = Path(uri)
    if not data.exists():
        raise UsageError(f"--data {uri}: no such folder or table.")
    check_readable(f"--data {uri}", data)
    if not data.is_dir():
        if data.is_file() and not is_table(data.name) and not labelled:
            return FileSource(data.parent.resolve(), labelled, reading, data.name)
        if not data.is_file() or not is_table(data.name):
            raise UsageError(f"--data {uri}: this is a file; give a folder of class folders or {KINDS}.")
        if labels is not None:
            raise UsageError(f"--labels {labels}: --data {uri} is a table itself; give the folder of the photos as --data.")
        folder = data.parent.resolve()
        return TableSource(
            FolderSource(folder, reading=reading), str(folder / data.name), labelled=labelled, reading=reading
        )
    photos = FolderSource(data.resolve(), labelled, reading)
    if labels is None:
        return photos
    if is_remote(labels):
        raise UsageError(
            f"--labels {labels}: the table is in a bucket, but --data {uri} is on this machine. Copy the table here."
        )
    return TableSource(photos, local_table(labels), lists_folder=True, labelled=labelled, reading=reading)
