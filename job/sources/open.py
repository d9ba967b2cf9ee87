"""Opens the source of photos that a command names."""

from pathlib import Path

from job.console.places import check_readable
from job.errors import UsageError
from job.sources.base import Source
from job.sources.folders import FolderSource
from job.storage.bucket.objects import is_remote


def open_source(uri: str, labels: str | None = None, *, labelled: bool = True, tfds_dir: str | None = None) -> Source:
    """The source that `--data`, `--labels` and `--tfds-dir` name. Where labels are not wanted, every file is an entry.

    Raises:
        UsageError: for a scheme that does not exist, or a folder, table, bucket or data set that is not there.
    """
    # pyarrow takes its time.
    from job.sources.tables import TABLE_EXTENSIONS, TableSource, local_table

    if uri.startswith("tfds:"):
        from job.sources.tfds import open_named

        if labels is not None:
            raise UsageError(f"--labels {labels}: --data {uri} has labels of its own.")
        return open_named(uri, tfds_dir, labelled=labelled)
    if is_remote(uri):
        from job.sources.buckets import open_bucket

        return open_bucket(uri, labels, labelled=labelled)
    kinds = f"a table ({', '.join(TABLE_EXTENSIONS)})"
    data = Path(uri)
    if not data.exists():
        raise UsageError(f"--data {uri}: no such folder or table.")
    check_readable(f"--data {uri}", data)
    if not data.is_dir():
        if not data.is_file() or data.suffix.lower() not in TABLE_EXTENSIONS:
            raise UsageError(f"--data {uri}: this is a file; give a folder of class folders or {kinds}.")
        if labels is not None:
            raise UsageError(f"--labels {labels}: --data {uri} is a table itself; give the folder of the photos as --data.")
        folder = data.parent.resolve()
        return TableSource(FolderSource(folder), str(folder / data.name), labelled=labelled)
    if labels is None:
        return FolderSource(data.resolve(), labelled)
    if is_remote(labels):
        raise UsageError(f"--labels {labels}: --data {uri} is on this machine; copy the table beside it.")
    return TableSource(FolderSource(data.resolve()), local_table(labels), lists_folder=True, labelled=labelled)
