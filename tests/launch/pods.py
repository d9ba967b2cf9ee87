"""The pods of a Job as processes on this machine, each with a network, a host name, a hosts file and scratch of its own, and
started again as the Job says. What a cluster would do with them, no API server being here, is done by hand.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.beds import missing
from tests.conftest import ROOT
from tests.launch.rendered import Rendered

ADDRESSES = ("10.0.0.1", "10.0.0.2")
DEADLINE_S = 900  # For all attempts together: so that a hang ends.
_CLONE_NEWNET = 0x40000000  # From sched.h.


@contextmanager
def networks() -> Iterator[list[str]]:
    """A network for each of two pods, with a cable between them. In one network they could not both have port 2222, because
    TensorFlow listens on all addresses."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        missing("networks for pods need root and iproute2")
    names = [f"pod-{os.getpid()}-{k}" for k in range(len(ADDRESSES))]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def reaching(url: str, names: Sequence[str]) -> Iterator[None]:
    """A block in which a server on this machine's loopback is found under the same URL in these networks."""
    port = urlsplit(url).port
    assert port is not None
    with ExitStack() as stack:
        for name in names:
            with ThreadPoolExecutor(1) as thread:  # A socket stays in the network that its thread was in.
                listener = thread.submit(_listener, name, port).result()
            stack.callback(listener.close)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)  # Closing alone wakes nobody who waits.
            threading.Thread(target=_relay, args=(listener, port), daemon=True).start()
        yield


def _listener(network: str, port: int) -> socket.socket:
    """Leaves the calling thread in that network."""
    with Path("/run/netns", network).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {network}")
    return socket.create_server(("127.0.0.1", port))


def _relay(listener: socket.socket, port: int) -> None:
    with suppress(OSError):  # Until it is closed.
        while True:
            near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _exit_code(process: "subprocess.Popen[str]") -> int:
    """What a shell and Kubernetes make of how a process has ended."""
    return 128 - process.returncode if process.returncode < 0 else process.returncode


class Pods:
    """Those of a rendered Indexed Job, also in a JobSet: with their environment, their command line and their volumes.

    `at`: where on this machine the volumes lie that outlive a pod, by the path in the container. An emptyDir is a new folder
    for every pod.
    """

    def __init__(self, rendered: Rendered, networks: Sequence[str], folder: Path, **environment: str) -> None:
        self._rendered, self._networks, self._folder, self._given = rendered, networks, folder, environment
        self._name = rendered.job["metadata"]["name"]
        (service,) = rendered.names("Service")
        lines = [f"{a} {self._name}-{k}.{service} {self._name}-{k}" for k, a in enumerate(ADDRESSES)]
        self._hosts = folder / "hosts"
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        self.at: dict[str, Path] = {}
        self._scratch: dict[str, str] = {}
        for mount in rendered.container["volumeMounts"]:
            if "emptyDir" in rendered.volume(mount["name"]):
                self._scratch[mount["mountPath"]] = mount["name"]
            else:
                self.at[mount["mountPath"]] = folder / mount["name"]
                self.at[mount["mountPath"]].mkdir(exist_ok=True)
        for name, text in rendered.files().items():
            self._outside(Path(name), 0).write_text(text)

    def run(self, meanwhile: Callable[["Pods"], None] = lambda pods: None) -> dict[int, list[int]]:
        """Start all, and those that failed again: each by itself, as an Indexed Job does it, or all together, as a JobSet
        does it. Return the exit codes of each index."""
        exits: dict[int, list[int]] = {k: [] for k in range(len(ADDRESSES))}
        self.running = {k: self._start(k) for k in exits}
        waiting: dict[int, float] = {}
        deadline = time.monotonic() + DEADLINE_S
        try:
            while self.running or waiting:
                assert time.monotonic() < deadline, self.logs()
                time.sleep(0.1)
                meanwhile(self)
                for k in [k for k, process in self.running.items() if process.poll() is not None]:
                    exits[k].append(_exit_code(self.running.pop(k)))
                    if exits[k][-1] != 0:
                        assert self._rendered.verdict(exits[k][-1]) != "FailJob", self.logs()
                        waiting[k] = time.monotonic() + 10 * 2 ** (len(exits[k]) - 1)
                if self._rendered.job_set and waiting:
                    self._end_all(exits)
                    waiting = dict.fromkeys(exits, 0.0)
                for k in [k for k, since in waiting.items() if since < time.monotonic()]:
                    del waiting[k]
                    self.running[k] = self._start(k)
        finally:
            for k in list(self.running):
                self.lose(k)
        return exits

    def _end_all(self, exits: dict[int, list[int]]) -> None:
        """Stop what still runs, as Kubernetes stops the pods of a Job that has failed."""
        for process in self.running.values():
            process.terminate()
        for k in list(self.running):
            with suppress(subprocess.TimeoutExpired):
                self.running[k].wait(self._rendered.pod["terminationGracePeriodSeconds"])
            self.lose(k)
            exits[k].append(_exit_code(self.running.pop(k)))

    def lose(self, k: int) -> None:
        """Everything that runs in the pod, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.running[k].pid, signal.SIGKILL)
        self.running[k].wait()

    def log(self, k: int) -> str:
        return (self._folder / f"log-{k}").read_text()

    def logs(self) -> str:
        return "\n".join(f"--- worker {k} ---\n{self.log(k)[-4000:]}" for k in range(len(ADDRESSES)))

    def _start(self, k: int) -> "subprocess.Popen[str]":
        for name in self._scratch.values():
            shutil.rmtree(self._folder / f"pod-{k}" / name, ignore_errors=True)
            (self._folder / f"pod-{k}" / name).mkdir(parents=True)
        script = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
        pod = ["ip", "netns", "exec", self._networks[k], "unshare", "--uts", "sh", "-c", script, "pod"]
        entrypoint = [sys.executable, "-P", "-m", "job"]  # The image's; the manifest has the arguments.
        arguments = [self._mapped(argument, k) for argument in self._rendered.arguments(k)]
        with (self._folder / f"log-{k}").open("a") as log:
            return subprocess.Popen(
                [*pod, f"{self._name}-{k}", self._hosts, *entrypoint, *arguments],
                cwd=ROOT,
                env=self._environment(k),
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def _environment(self, k: int) -> dict[str, str]:
        """What Kubernetes sets, and what every process needs."""
        scratch = str(self._outside(Path("/tmp"), k))
        given = {name: self._mapped(value, k) for name, value in self._rendered.environment(k).items()}
        return {"PATH": os.environ["PATH"], "HOME": scratch, "TMPDIR": scratch, **given, **self._given}

    def _mapped(self, text: str, k: int) -> str:
        """`--out=/out/run`, `/tmp/keras` and the like, with the path's place on this machine."""
        name, equals, value = text.rpartition("=")
        return f"{name}{equals}{self._outside(Path(value), k)}" if value.startswith("/") else text

    def _outside(self, path: Path, k: int) -> Path:
        """Where a path of the container of pod k lies on this machine."""
        folders = self.at | {mount: self._folder / f"pod-{k}" / name for mount, name in self._scratch.items()}
        (mount,) = (mount for mount in folders if path.is_relative_to(mount))
        return folders[mount] / path.relative_to(mount)
