"""Start the job in a second instead of five: fork a process that has already imported TensorFlow.

`WarmStart` is a `subprocess.Popen`. What it starts is a real process, and a child of the process that asked: arguments,
environment, current folder, standard streams, signals and exit code are its own, and `job.__main__` runs in it from the
first line. It differs from an ordinary start in two ways: libraries are imported already, though TensorFlow has no context
and no threads yet, and Python does not free its objects at the end. A start is an ordinary one if the environment differs in
anything that libraries read on import. What libraries set on import makes no difference: tests import them, too.

    python -m tests.warm DESCRIPTOR    the server, which forks once for each request on this socket

The job itself starts a process for the parity check. A second server, forked before the job begins, starts that one.
"""

import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import PIL.Image

import job

ROOT = Path(__file__).parent.parent
# Variables that may differ between the server and what it starts: no library reads them on import.
_READ_LATE = (
    "API_ENDPOINT_OVERRIDE",
    "AWS_",
    "CLUSTER_",
    "DISABLE_GCS_",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "JOB_",
    "KUBEFLOW_",
    "PYTEST_",
    "SLURM_",
    "STORAGE_EMULATOR_HOST",
    "TERMINATION_LOG",
    "TF_CONFIG",
    "TMPDIR",
)
_PR_SET_CHILD_SUBREAPER = 36
_SIZE_BYTES = 4


@dataclass(frozen=True)
class _Request:
    """A module to run as the main program."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str

    @classmethod
    def of(cls, command: Any, environment: dict[str, str], folder: Any) -> Self | None:
        """Return None where the command is not `python -m MODULE` or `python -P -m MODULE`."""
        words = [] if isinstance(command, (str, bytes)) else [os.fspath(word) for word in command]
        if words[1:2] == ["-P"]:
            del words[1]
        if words[:2] != [sys.executable, "-m"]:
            return None
        return cls(words[2], words[3:], environment, os.fspath(folder or Path.cwd()))

    def run(self) -> None:
        """Be the process that was asked for."""
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        tempfile.tempdir = None  # A library has asked for it on import, and Python looks at TMPDIR only once.
        sys.argv[1:] = self.arguments
        sys.orig_argv[:] = [sys.executable, "-m", self.module, *self.arguments]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


class _Server:
    """A process that forks, as seen by the process that asks it.

    `environments` are the one that its libraries were imported with, and what they made of it. A server without them starts
    whatever it is asked for.
    """

    def __init__(self, requests: socket.socket, environments: Sequence[Mapping[str, str]] = ()) -> None:
        self._requests, self._environments = requests, environments
        self._lock = threading.Lock()

    @classmethod
    def started(cls) -> Self:
        own, far = socket.socketpair()
        with far:
            subprocess.Popen([sys.executable, "-m", "tests.warm", str(far.fileno())], cwd=ROOT, pass_fds=[far.fileno()])
        given = dict(os.environ)
        return cls(own, [given, json.loads(_received(own, int.from_bytes(_received(own, _SIZE_BYTES))))])

    def may_start(self, request: _Request) -> bool:
        wanted, known = request.environment, self._environments
        names = {name for environment in known for name in (*environment, *wanted) if not name.startswith(_READ_LATE)}
        return all(any(wanted.get(name) == environment.get(name) for environment in known) for name in names)

    def start(self, request: _Request, streams: list[int]) -> int:
        """Return the number of a new process, a child of this one."""
        message = json.dumps(asdict(request)).encode()
        with self._lock:
            _adopt_orphans(True)
            try:
                socket.send_fds(self._requests, [len(message).to_bytes(_SIZE_BYTES)], streams)
                self._requests.sendall(message)
                return int.from_bytes(_received(self._requests, _SIZE_BYTES))
            finally:
                _adopt_orphans(False)


class WarmStart(subprocess.Popen):
    """A `Popen` that forks for `[sys.executable, "-m", MODULE, ...]`. Other commands are started as `Popen` does."""

    server: ClassVar[_Server | None] = None

    def _execute_child(self, *values: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*values).arguments
        environment = dict(os.environ if given["env"] is None else given["env"])
        request = _Request.of(given["args"], environment, given["cwd"])
        if sys.platform != "linux" or request is None or not self._server().may_start(request):
            super()._execute_child(*values)
            return
        ends = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self.pid = self._server().start(request, [own if end == -1 else end for own, end in enumerate(ends)])
        self._child_created = True
        self._close_pipe_fds(*(given[f"{pipe}{end}"] for pipe in ("p2c", "c2p", "err") for end in ("read", "write")))

    @classmethod
    def _server(cls) -> _Server:
        if cls.server is None:
            cls.server = _Server.started()
        return cls.server


def _adopt_orphans(wanted: bool) -> None:
    """Become the parent of processes below this one that lose theirs, or stop that."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _serve(requests: socket.socket) -> _Request:
    """Fork for each request. Return the request in the new process. End the server when nobody can ask any more."""
    while True:
        head, streams, _, _ = socket.recv_fds(requests, _SIZE_BYTES, 3)
        if not head:
            os._exit(0)
        request = _Request(**json.loads(_received(requests, int.from_bytes(head))))
        near, far = os.pipe()
        between = os.fork()
        if between == 0:
            if child := os.fork():  # Its parent ends at once, so that the process that asked becomes its parent.
                os.write(far, child.to_bytes(_SIZE_BYTES))
                os._exit(0)
            requests.close()
            _become(streams)
            _close(near, far, *streams)
            return request
        os.waitpid(between, 0)
        requests.sendall(os.read(near, _SIZE_BYTES))
        _close(near, far, *streams)


def _received(requests: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = requests.recv(size - len(found))
        assert part, "the process that forks for the tests has ended"
        found += part
    return found


def _become(streams: list[int]) -> None:
    """Make these descriptors the standard streams."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def import_libraries() -> None:
    """Import all modules of the job and the libraries that it imports later, and compile the templates of the report."""
    from job.cluster.tensorflow import import_tensorflow

    import_tensorflow()
    import cleanlab  # noqa: F401
    import faiss  # noqa: F401
    import keras  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import tensorboardX  # noqa: F401

    from job.reporting import card, rendering

    for module in pkgutil.walk_packages(job.__path__, "job."):
        if module.name != "job.__main__":
            importlib.import_module(module.name)
    PIL.Image.init()
    card.template()
    for name in rendering.templates().list_templates(filter_func=lambda name: name != card.TEMPLATE):
        rendering.templates().get_template(name)
    gc.freeze()  # So that fewer pages are copied after a fork.


def _exit_code_of(request: _Request) -> int:
    """Be the process that was asked for. Return the exit code that Python would give to it."""
    try:
        request.run()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """Do what Python does at its end, except to free all objects one by one.

    That would copy the memory that is shared with the server: a quarter of a CPU second for each process.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def main() -> None:
    import_libraries()
    requests = socket.socket(fileno=int(sys.argv[1]))
    environment = json.dumps(dict(os.environ)).encode()
    requests.sendall(len(environment).to_bytes(_SIZE_BYTES) + environment)
    request = _serve(requests)
    own, far = socket.socketpair()
    if os.fork():
        far.close()
        WarmStart.server = _Server(own)
        subprocess.Popen = WarmStart
    else:
        own.close()
        nowhere = os.open(os.devnull, os.O_RDWR)
        _become([nowhere] * 3)
        _close(nowhere)
        request = _serve(far)
    _end(_exit_code_of(request))


if __name__ == "__main__":
    main()
