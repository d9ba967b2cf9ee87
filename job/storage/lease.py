"""One run, one owner: a file in the output directory that says which process works there, and shows that it still does.

Whoever wants to read or change the file locks it for that moment, which the system undoes when a process dies. The owner
touches the file every few seconds. An owner on this machine is looked up; one elsewhere is watched, by this machine's clock
alone: it is alive if it touches the file, and dead if it has not for long. Then another run takes over, and the old one,
should it wake up, cannot publish anything.
"""

import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from job.errors import JobError, TryAgainLater, UsageError
from job.storage.files import open_own

NAME = ".lease"
_TOUCHED_EVERY_S = 1.0
DEAD_AFTER_S = 40.0  # Well beyond the few seconds for which network file systems remember old times.
_LOCK_TIMEOUT_S = 3.0
_LOOKS_EVERY_S = 0.2
_BEGINS = b'{"token": "'
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Owner:
    """A process, known by its number and start within `world`, which is a boot of a machine and a namespace of processes."""

    token: str
    host: str
    world: str
    pid: int
    born: str
    since: str

    @classmethod
    def here(cls) -> Self:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(secrets.token_hex(8), platform.node(), _world(), os.getpid(), _born(os.getpid()), since)

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """Return the owner that a lease names; None where there is none, or one that died while it wrote its name.

        Raises:
            ValueError: where the text is no lease.
        """
        if not text or (text.startswith(_BEGINS) and not text.endswith(b"}")):
            return None
        found = json.loads(text)
        values = {field.name: found.get(field.name) for field in fields(cls)} if isinstance(found, dict) else {}
        if any(not isinstance(value, int if name == "pid" else str) for name, value in values.items()) or not values:
            raise ValueError("no lease")
        return cls(**values)  # type: ignore[arg-type]  # The kinds were just checked.

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"the run on {self.host}, process {self.pid}, since {self.since}"

    @property
    def is_dead(self) -> bool | None:
        """None where that cannot be known from here."""
        if not self.world or self.world != _world():
            return None
        return _born(self.pid) != self.born


class Lease:
    """The right to write to a directory, until it is released or lost."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self._file, self._owner = folder / NAME, owner
        self._released = threading.Event()
        threading.Thread(target=self._keep_touching, daemon=True).start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Give a block in which nobody can take over the lease.

        Raises:
            TryAgainLater: where somebody has.
        """
        with _locked(self._file) as descriptor:
            self._check(descriptor)
            yield

    def release(self) -> None:
        self._released.set()
        with suppress(JobError, OSError), _locked(self._file) as descriptor:
            self._check(descriptor)
            self._file.unlink()

    def _check(self, descriptor: int) -> None:
        now = _read(descriptor, self._file)
        if now != self._owner:
            raise TryAgainLater(
                f"{self._file.parent} was taken over by {now or 'another run'}, because this one seemed to be dead. "
                "Nothing was published after that."
            )

    def _keep_touching(self) -> None:
        while not self._released.wait(_TOUCHED_EVERY_S):
            # Where the lock is held for long, by a thread of this process above all, the next touch will do.
            with suppress(OSError, JobError), _locked(self._file) as descriptor:
                if _read(descriptor, self._file) != self._owner:
                    return
                os.utime(descriptor)


def acquire(
    folder: Path,
    tell: Callable[[str], None],
    check_stop: Callable[[], None],
    dead_after_s: float = DEAD_AFTER_S,
    called: str = "",
) -> Lease:
    """The lease on a directory that exists; `called`: the name by which its user knows it.

    Raises:
        TryAgainLater: where its owner is alive, within a few seconds.
        UsageError: where somebody else's file has the name.
        OSError.
    """
    file, owner = folder / NAME, Owner.here()
    seen: tuple[Owner, int] | None = None
    seen_at = time.monotonic()
    while True:
        with _locked(file) as descriptor:
            other, touched = _read(descriptor, file), os.fstat(descriptor).st_mtime_ns
            waited_s = time.monotonic() - seen_at
            if other is None or other.is_dead or ((other, touched) == seen and waited_s > dead_after_s):
                if other is not None:
                    tell(f"Going on after {other}, which has ended without a word")
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, owner.to_bytes(), 0)
                return Lease(folder, owner)
        if other.is_dead is False or (seen is not None and (other, touched) != seen):
            raise in_use(called or folder, other)
        if seen is None:
            tell(f"{called or folder} belongs to {other}: watching for {dead_after_s:.0f} s whether it is alive")
            seen = other, touched
        check_stop()
        time.sleep(_LOOKS_EVERY_S)


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """The open file, which nobody else has locked."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        descriptor = open_own(file, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise in_use(file.parent, _read(descriptor, file)) from None
                time.sleep(0.01)
                continue
            except OSError:
                pass  # This file system has no locks: the checks are made without.
            if _is_still(file, descriptor):  # Its last owner may have removed it in between.
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_still(file: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(file.lstat(), os.fstat(descriptor))
    return False


def _read(descriptor: int, file: Path) -> Owner | None:
    """Return the owner. Raises: UsageError, where the file is somebody else's."""
    text = os.pread(descriptor, _MAX_BYTES, 0)
    try:
        return Owner.parse(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{file} is in the way: it is no lease of this job. Move it somewhere else.") from None


def in_use(folder: Path | str, owner: Owner | None) -> TryAgainLater:
    return TryAgainLater(f"{folder} is in use by {owner or 'another run'}. Wait until it has ended, or give another --out.")


def _world() -> str:
    """Return an identifier that two processes share if they can see each other; empty if the system does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _born(pid: int) -> str:
    """When a process was started, in clock ticks since the boot; empty where there is none, or only its remains."""
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if after_name[0] in "ZX" else after_name[19]
    return ""
