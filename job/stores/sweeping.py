"""The files that belong to the stores of a cache, and the removal of those that no store needs any more."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from job.storage.files import read_json
from job.stores.arrays import Shard, index_name, record_name


def wanted(kept: Iterable[Path]) -> set[Path] | None:
    """Return every file of the stores with these index files, or None if one of them cannot be read."""
    found: set[Path] = set()
    for index_file in kept:
        if not (names := named_by(index_file)):
            return None
        found |= {index_file.parent / name for name in names}
    return found


def named_by(file: Path) -> set[str]:
    """Return the names of the files that an index or a shard record refers to, its own name included.

    The result is empty for any other file, and for one whose name does not fit its content.
    """
    return names_in(file.name, read_json(file))


def names_in(name: str, content: Any) -> set[str]:
    """Return the names that a file with this name and this parsed content refers to; see `named_by`."""
    try:
        if name == index_name(content):
            shards = [Shard(**shard) for shard in content["shards"]]
        else:
            shards = [Shard(**content)]
            if name != record_name(shards[0].key):
                return set()
        names = {name, *(inner for s in shards for inner in (s.array_name, record_name(s.key)))}
        return names if not any("/" in inner for inner in names) else set()
    except (KeyError, TypeError, AttributeError):
        return set()


def unwanted(root: Path, kept: Iterable[Path]) -> list[Path]:
    """Return the files in the store folders of `root` that belong to none of the stores with these index files.

    Only files that an index or a record refers to are returned, and none at all if one of `kept` cannot be read. Indexes
    come first, so that if their removal is interrupted, no index is left without its shards.
    """
    needed = wanted(kept)
    if needed is None:
        return []
    files = [file for file in root.glob("*/*.json") if file.is_file()]
    found = {file.parent / name for file in files for name in named_by(file)} - needed
    return sorted(found, key=lambda path: (not path.name.startswith("index-"), path))


def sweep(files: Iterable[Path]) -> None:
    """Remove these files, and their folders if they are empty then."""
    for path in files:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
