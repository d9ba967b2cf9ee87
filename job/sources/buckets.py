"""Photos in object storage: class folders, or a table, below a prefix of a bucket.

The slashes in the names of objects make a tree of folders. After that, the rules for local folders and tables apply.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from posixpath import normpath
from typing import NamedTuple

from job.errors import UsageError
from job.sections import IntakeConfig
from job.sources.base import Entry, Listing
from job.sources.fetch import PATIENCE_S, THREADS, limit_arenas, read_ordered
from job.sources.folders import list_files
from job.sources.local import OUTSIDE, Child, Files, FoundFile, from_text
from job.storage.bucket.objects import Objects, Stored, is_remote, join
from job.storage.ledger import MARK


@dataclass(frozen=True)
class BucketSource:
    """Class folders below a prefix of a bucket. If an object has changed after the listing, it is not read."""

    objects: Objects
    labelled: bool = True
    settings: IntakeConfig = IntakeConfig()
    threads: int = THREADS

    @property
    def uri(self) -> str:
        return self.objects.uri

    @property
    def patience_s(self) -> float:
        return PATIENCE_S + 5.0  # A little more, because `read` gives up after PATIENCE_S with a better message.

    def prepare(self) -> None:
        limit_arenas()
        self.objects.prepare()

    def listing(self) -> Listing:
        """Return the objects below the prefix, with the labels of their folders. Raises as `list_files` does."""
        found = list_files(self.files(), self.settings, labelled=self.labelled)
        return replace(found, entries=_with_own_paths(found.entries))

    def files(self) -> "ObjectFiles":
        files = ObjectFiles(self.uri, self.objects.list())
        if not files.children(""):
            raise UsageError(
                f"--data {self.uri}: there is nothing there: no object has a name that begins with {self.uri}/."
            )
        return files

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        wanted = ((from_text(e.path), e.version or None, e.num_bytes) for e in entries)
        return read_ordered(self.objects, wanted, self.threads)

    def location(self, entry: Entry) -> str:
        return join(self.uri, from_text(entry.path))


def _with_own_paths(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Make paths unique: the entry of a folder may have the same path as an object, and then gets a slash behind it."""
    own: dict[str, Entry] = {}
    for entry in entries:
        path = entry.path
        while path in own:
            path += "/"
        own[path] = entry if path == entry.path else entry._replace(path=path)
    return tuple(own[path] for path in sorted(own))


class _Child(NamedTuple):
    """An object, with its name as `path`; or a folder, with the prefix of its objects, which ends in `/`, as `path`."""

    name: str
    path: str
    num_bytes: int = 0
    version: str = ""  # Every object has one, and no folder does.

    def is_dir(self) -> bool:
        return not self.version

    def is_symlink(self) -> bool:
        return False


class ObjectFiles(Files):
    """The objects of a bucket as files in folders. Web consoles keep an empty folder as an object named `folder/`."""

    def __init__(self, uri: str, stored: Iterable[Stored]) -> None:
        self.uri = uri
        self._children: dict[str, list[_Child]] = {"": []}
        self._files: dict[str, _Child] = {}
        self._stems_of_folder: dict[str, dict[str, list[str]]] = {}
        for found in stored:
            folder = found.name[: found.name.rfind("/") + 1]
            self._make(folder)
            if found.name != folder or found.num_bytes:
                child = _Child(found.name[len(folder) :], found.name, found.num_bytes, found.version)
                self._files[found.name] = child
                self._children[folder].append(child)

    def children(self, folder: str) -> list[_Child]:
        return sorted(self._children[folder], key=lambda child: (child.name, child.is_dir()))

    def glance(self, folder: str) -> Iterator[_Child]:
        yield from self._children[folder]

    def identity(self, folder: str) -> str:
        return folder

    def is_output(self, folder: str) -> bool:
        return f"{folder}{MARK}" in self._files

    def status(self, file: Child) -> tuple[int, str]:
        found = self._files[file.path]
        return found.num_bytes, found.version

    def follow(self, link: Child) -> Child:
        return link

    def real_path(self, file: Child, path: str) -> str:  # noqa: ARG002  # There are no links.
        return ""

    def _make(self, folder: str) -> None:
        missing = []
        while folder not in self._children:
            missing.append(folder)
            folder = folder[: folder.rfind("/", 0, -1) + 1]
        for made in reversed(missing):
            self._children[made] = []
            self._children[folder].append(_Child(made[len(folder) : -1], made))
            folder = made

    def _look(self, name: str) -> FoundFile | str:
        path = self._below_root(name)
        if path is None:
            return OUTSIDE
        if path in self._files:
            return FoundFile(path, self._files[path].num_bytes, self._files[path].version)
        return "it is a folder" if path == "." or f"{path}/" in self._children else ""

    def _below_root(self, name: str) -> str | None:
        root = f"{self.uri}/"
        if is_remote(name) and not name.startswith(root):
            return None
        name = name.removeprefix(root)
        if not name or name in self._files:  # Names of objects may contain `..` and `//`, so an exact match goes first.
            return name
        path = normpath(name)
        return None if path == ".." or path.startswith(("../", "/")) else path

    def _names_in(self, folder: str) -> Sequence[str]:
        return sorted(child.name for child in self._children.get(folder, ()) if not child.is_dir())
