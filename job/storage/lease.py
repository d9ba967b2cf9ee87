"""The lease on an output directory: a file that names the one process that may write there, its owner.

The owner touches the file every second. A process locks the file while it reads or changes it, and the system ends that lock
when the process dies. An owner on this machine is alive if its process is. An owner elsewhere is alive if it touches the
file, and counts as dead if it has not for long, by the clock of this machine. Then another run takes over, and the old owner
cannot publish anything any more.
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
DEAD_AFTER_S = 40.0  # Network file systems may show an old time stamp for some seconds.
_LOCK_TIMEOUT_S = 3.0
_LOOKS_EVERY_S = 0.2
_BEGINS = b'{"token": "'
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease.

    `world` is one boot of a machine and one namespace of process numbers. Within it, `pid` and `born` (the time when the
    process started) belong to one process only. `token` is random.
    """

    token: str
    host: str
    world: str
    pid: int
    born: str
    since: str

    @classmethod
    def here(cls) -> Self:
        """Return this process as an owner with a new token."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(secrets.token_hex(8), platform.node(), _world(), os.getpid(), _born(os.getpid()), since)

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """Return the owner that a lease names; None if it names none, or if its owner died while it wrote the lease.

        Raises:
            ValueError: if the text is not a lease.
        """
        if not text or (text.startswith(_BEGINS) and not text.endswith(b"}")):
            return None
        found = json.loads(text)
        values = {field.name: found.get(field.name) for field in fields(cls)} if isinstance(found, dict) else {}
        if any(not isinstance(value, int if name == "pid" else str) for name, value in values.items()) or not values:
            raise ValueError("not a lease")
        return cls(**values)  # type: ignore[arg-type]  # The types were just checked.

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"the run on {self.host}, process {self.pid}, since {self.since}"

    @property
    def is_dead(self) -> bool | None:
        """True if the process has ended, False if it runs, None if it cannot be seen from here."""
        if not self.world or self.world != _world():
            return None
        return _born(self.pid) != self.born


class Watch:
    """Repeated looks at the lease of one place, to find out if it is free.

    The owner changes its lease every few seconds. So a lease that stays the same for `dead_after_s` has a dead owner.
    """

    def __init__(self, place: str, tell: Callable[[str], None], dead_after_s: float) -> None:
        self._place, self._tell, self._dead_after_s = place, tell, dead_after_s
        self._seen: tuple[Owner, str] | None = None
        self._seen_at = 0.0

    def is_free(self, owner: Owner | None, version: str) -> bool:
        """Return True if the lease may be taken. `version` must differ whenever the owner has changed the lease.

        Raises:
            TryAgainLater: if the owner is alive.
        """
        if owner is None:
            return True
        now, look = time.monotonic(), (owner, version)
        if owner.is_dead or (look == self._seen and now - self._seen_at > self._dead_after_s):
            self._tell(f"Taking over from {owner}, which stopped without releasing the lease")
            return True
        if owner.is_dead is False or self._seen not in (None, look):
            raise in_use(self._place, owner)
        if self._seen is None:
            self._tell(f"{self._place} belongs to {owner}. Waiting {self._dead_after_s:.0f} s to see if it is alive")
            self._seen, self._seen_at = look, now
        return False


class Lease:
    """The right to write to a directory, until it is released or another run takes it over."""

    def __init__(self, folder: Path, owner: Owner, called: str) -> None:
        self._file, self._owner, self._called = folder / NAME, owner, called
        self._released = threading.Event()
        threading.Thread(target=self._keep_touching, daemon=True).start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Return a context in which no other run can take over the lease. Raises: TryAgainLater, if one has."""
        with _locked(self._file, os.O_RDWR, self._called) as descriptor:
            self._check(descriptor)
            yield

    def release(self) -> None:
        """Remove the file, unless another run has taken over the lease."""
        self._released.set()
        with suppress(JobError, OSError), _locked(self._file, os.O_RDWR, self._called) as descriptor:
            self._check(descriptor)
            self._file.unlink()

    def _check(self, descriptor: int) -> None:
        now = _read(descriptor, self._file)
        if now != self._owner:
            raise TryAgainLater(
                f"{self._called} was taken over by {now or 'another run'}, because this one seemed to be dead. "
                "Nothing was published after that."
            )

    def _keep_touching(self) -> None:
        while not self._released.wait(_TOUCHED_EVERY_S):
            # Somebody may hold the lock for long, for example a thread of this process. The next touch is soon enough.
            # O_RDWR without O_CREAT: a touch that comes just after the release would leave an empty file.
            with suppress(OSError, JobError), _locked(self._file, os.O_RDWR, self._called) as descriptor:
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
    """Take the lease on a directory that exists. Messages call the directory `called`, or by its path.

    Raises:
        TryAgainLater: within a few seconds, if the owner is alive.
        UsageError: if a file of this name is not a lease.
        OSError: if the file cannot be read or written.
    """
    called = called or str(folder)
    file, owner, watch = folder / NAME, Owner.here(), Watch(called, tell, dead_after_s)
    while True:
        with _locked(file, os.O_RDWR | os.O_CREAT, called) as descriptor:
            if watch.is_free(_read(descriptor, file), str(os.fstat(descriptor).st_mtime_ns)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, owner.to_bytes(), 0)
                return Lease(folder, owner, called)
        check_stop()
        time.sleep(_LOOKS_EVERY_S)


def owner_of(folder: Path) -> Owner | None:
    """Return the process that holds the lease on a directory, or held it when it was killed. None if there is no lease.

    Raises:
        UsageError: if a file of this name is not a lease.
        OSError: if it cannot be read.
    """
    file = folder / NAME
    if not file.exists():
        return None
    descriptor = open_own(file, os.O_RDONLY)
    try:
        return _read(descriptor, file)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(file: Path, flags: int, called: str) -> Iterator[int]:
    """Return a context in which this process alone has the file open and locked. It gives the descriptor.

    Messages call the folder of the file `called`.

    Raises:
        TryAgainLater: if another process holds the lock for some seconds, or there is no file and `flags` do not create it.
        UsageError: if something that the job did not make has the name.
        OSError: if it cannot be opened.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            descriptor = open_own(file, flags)
        except FileNotFoundError:
            raise TryAgainLater(f"{called} was taken over by another run, which has ended.") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise in_use(called, _read(descriptor, file)) from None
                time.sleep(0.01)
                continue
            except OSError:
                pass  # This file system has no locks. The owner is checked without one.
            if _is_still(file, descriptor):  # The last owner may have removed it meanwhile.
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_still(file: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(file.lstat(), os.fstat(descriptor))
    return False


def _read(descriptor: int, file: Path) -> Owner | None:
    """Return the owner that the file names. Raises: UsageError, if the file is not a lease."""
    text = os.pread(descriptor, _MAX_BYTES, 0)
    try:
        return Owner.parse(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{file} is in the way: it is not a lease of this job. Move it to another folder.") from None


def in_use(folder: Path | str, owner: Owner | None) -> TryAgainLater:
    """Return the error for a directory or prefix whose owner is alive."""
    return TryAgainLater(f"{folder} is in use by {owner or 'another run'}. Wait until it has ended, or give another --out.")


def _world() -> str:
    """Return an identifier that two processes share if they can see each other; empty if the system does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _born(pid: int) -> str:
    """Return the start of a process, in clock ticks since the boot; empty if there is no such process or it is a zombie."""
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if after_name[0] in "ZX" else after_name[19]
    return ""
