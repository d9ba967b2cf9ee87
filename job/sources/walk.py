"""The walk through the folders of a source. It makes an entry for each file; `layout.py` decides what folders mean."""

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from job.sources.base import Entry, Split
from job.sources.local import IMAGE_EXTENSIONS, LEAVING, Child, Files, is_named_like_a_photo, to_text
from job.sources.opening import raise_of_the_machine

_JUNK = re.compile(
    r"\._.*|[._]DS_Store|(eh)?thumbs\.db|desktop\.ini|\.directory|\.gitkeep|\.keep|\.gitignore|\.gitattributes",
    re.IGNORECASE,
)
_DOCUMENTS = re.compile(r"(README|LICEN[SC]E)(\..*)?", re.IGNORECASE)
# Folders that operating systems, network drives and editors leave beside photos.
_JUNK_FOLDERS = re.compile(
    r"\.ipynb_checkpoints|__MACOSX|\.git|__pycache__|\.thumbnails|\.thumb|lost\+found|\$RECYCLE\.BIN|RECYCLER"
    r"|System Volume Information|#recycle|#snapshot|@eaDir|@Recycle|@Recently-Snapshot|\.snapshot|\.Trash(es|-\d+)?"
    r"|\.Spotlight-V100|\.fseventsd|\.TemporaryItems|\.AppleDouble|\.AppleDB|\.AppleDesktop|\.dvc|\.cache|\.picasaoriginals",
    re.IGNORECASE,
)


def is_junk(name: str) -> bool:
    is_document = _DOCUMENTS.fullmatch(name) is not None and not is_named_like_a_photo(name)
    return is_document or _JUNK.fullmatch(name) is not None


def is_junk_folder(name: str) -> bool:
    return _JUNK_FOLDERS.fullmatch(name) is not None


def is_folder(child: Child) -> bool:
    """Return whether a child is a folder or a link to one. A link to itself, or to where nobody may look, is not."""
    try:
        return child.is_dir()
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EACCES):
            raise
        return False


def ignored(path: str, reason: str) -> Entry:
    return Entry(path, None, None, 0, "", "ignored", reason)


def quarantined(path: str, label: str | None, split: Split | None, reason: str, num_bytes: int = 0) -> Entry:
    return Entry(path, label, split, num_bytes, "", "quarantined", reason)


@dataclass
class Walk:
    """A walk that gathers an entry for each file. `outputs` are the paths of outputs of this job, which it skips."""

    files: Files
    entries: list[Entry] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    # The folders that class folders lie in: no link is followed back there.
    _above: set[object] = field(default_factory=set)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about folders that were left out, for the user."""
        outputs = ", ".join(sorted(self.outputs))
        notes: tuple[str, ...] = (f"Outputs of this job, which were not looked into: {outputs}.",) if outputs else ()
        if leaving := [entry.path for entry in self.entries if entry.reason == LEAVING]:
            notes += (
                f"{len(leaving):,} links, the first of them {leaving[0]}, lead out of the source. To follow them: --set "
                "intake.follow_links=true --set 'intake.link_roots=[\"FOLDER THAT THEY LEAD TO\"]'",
            )
        return notes

    def followed(self, child: Child) -> Child | str:
        """Return the child, or the target of a link; or, in words, what is wrong with the link."""
        return self.files.follow(child) if child.is_symlink() else child

    def folders_beside_files(self, folder: str, prefix: str) -> list[Child]:
        """Return the folders in a folder that may hold photos. Everything else in it becomes an ignored entry."""
        folders = []
        self._above.add(self.files.identity(folder))
        for child in self.files.children(folder):
            path = prefix + to_text(child.name)
            if child.is_symlink() and is_folder(child) and self.files.identity(child.path) in self._above:
                self.entries.append(ignored(path, "a link that leads back to a folder above it"))
            elif is_junk_folder(child.name) or (child.name[:1] in ("", ".") and is_folder(child)):
                self.entries.append(_unopened_folder(path))
            elif not is_folder(child):
                followed = self.followed(child)
                reason = followed if isinstance(followed, str) else "outside every class folder"
                self.entries.append(ignored(path, reason))
            elif not self._is_output(child, path):
                folders.append(child)
        return folders

    def folder(self, folder: Child, path: str, label: str | None, split: Split | None) -> None:
        """Gather the files of a folder and of all folders below it, under one label and split."""
        followed = self.followed(folder)
        if isinstance(followed, str):
            self.entries.append(quarantined(path, label, split, followed))
        else:
            self.below(followed.path, path + "/", label, split)

    def below(self, folder: str, prefix: str = "", label: str | None = None, split: Split | None = None) -> None:
        """Gather the files of a folder, which is given by its `Child.path` ("" for the root), and of all folders below."""
        seen = set(self._above)
        waiting = [(folder, prefix)]  # No recursion, because folders can be nested deeper than Python's stack.
        while waiting:
            folder, prefix = waiting.pop()
            try:
                identity = self.files.identity(folder)
                if identity in seen:
                    continue
                seen.add(identity)
                children = self.files.children(folder)
            except OSError as error:
                if not prefix:  # The source itself cannot be listed, so nothing is known about it.
                    raise
                raise_of_the_machine(error, folder)
                reason = f"cannot be listed, so how many photos are in it is unknown: {error.strerror}"
                self.entries.append(quarantined(prefix.rstrip("/"), label, split, reason))
                continue
            waiting += reversed([(child.path, path + "/") for child, path in self._files(children, prefix, label, split)])

    def _is_output(self, folder: Child, path: str) -> bool:
        """Return whether a folder is an output of this job. If it is, it becomes one ignored entry."""
        found = self.files.is_output(folder.path)
        if found:
            self.outputs.append(path)
            self.entries.append(ignored(f"{path}/", "an output of this job: nothing in it is looked at"))
        return found

    def _files(
        self, children: Sequence[Child], prefix: str, label: str | None, split: Split | None
    ) -> Iterator[tuple[Child, str]]:
        """Make an entry for each file, and yield the folders beside them with their paths."""
        for child in children:
            path = prefix + to_text(child.name)
            if is_junk_folder(child.name):  # Checked before the folder is opened, because it may be unreadable.
                self.entries.append(_unopened_folder(path))
                continue
            found = self.followed(child)
            if isinstance(found, str):
                self.entries.append(quarantined(path, label, split, found))
            elif not found.is_dir():
                self.entries.append(self._file(found, path, label, split))
            elif not self._is_output(found, path):
                if PurePath(child.name).suffix.lower() in IMAGE_EXTENSIONS:
                    self.entries.append(ignored(path, "a folder named like a photo"))
                yield found, path

    def _file(self, file: Child, path: str, label: str | None, split: Split | None) -> Entry:
        if is_junk(file.name):
            return ignored(path, "a file that systems and people leave beside photos")
        try:
            status = self.files.status(file)
        except OSError as error:
            return quarantined(path, label, split, f"cannot be read: {error.strerror}")
        if not status:
            return ignored(path, "not a regular file")
        return Entry(path, label, split, *status, real_path=self.files.real_path(file, path))


def _unopened_folder(path: str) -> Entry:
    """Return one ignored entry for a whole folder: one that is hidden, or cannot have the user's photos in it."""
    if path.startswith(".") and not is_junk_folder(path):
        return ignored(f"{path}/", "a hidden folder; rename it if it is a class")
    return ignored(f"{path}/", "a folder that systems leave beside photos")
