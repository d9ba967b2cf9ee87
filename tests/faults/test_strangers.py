"""A stranger at the ports of a real chief and a real worker. tests/unit/test_strangers.py tries more, on threads."""

import json
import re
import socket
import stat
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from job.cluster.secret import Secret
from tests.faults.several import Run

DEEP = b"[" * 100_000 + b"\n"


class Looking(Run):
    """Workers that only look at the photos: they need no TensorFlow."""

    def __init__(self, *places, **options):
        super().__init__(*places, stop_after="explore", **options)

    @property
    def control_port(self):
        return int(self._addresses[0].rpartition(":")[2]) - 1

    def status_of(self, k, what):
        """A number from the kernel's status of a worker's process."""
        text = Path(f"/proc/{self.processes[k].pid}/status").read_text()
        return int(re.findall(rf"^{what}:\s+(\d+)", text, re.MULTILINE)[0])


def call(port):
    return socket.create_connection(("localhost", port), timeout=10)


def say(port, text):
    """Send this to the chief, and wait until it closes the connection."""
    with call(port) as stranger, suppress(ConnectionError):
        stranger.sendall(text)
        while stranger.recv(65_536):
            pass


def drip(slow):
    """Send one byte after the other on a connection, until the other end closes it."""
    with slow, suppress(OSError):
        while True:
            slow.sendall(b"{")
            time.sleep(0.1)


def is_replay_refused(port, secret):
    """Prove that we know the secret, and send the same proof on another connection. Return whether only that is refused."""
    with call(port) as first, first.makefile("rb") as heard:
        nonce, own = json.loads(heard.readline())["nonce"], "0" * 32
        recorded = json.dumps({"nonce": own, "proof": secret.proof("worker", nonce, own)}).encode() + b"\n"
        first.sendall(recorded)
        is_taken = json.loads(heard.readline()) == {"proof": secret.proof("chief", nonce, own)}
    with call(port) as second, second.makefile("rb") as heard:
        second.sendall(recorded * 5)
        with suppress(ConnectionError):
            return is_taken and len(heard.read().splitlines()) == 1  # The greeting, and then the end.
        return is_taken


def test_chief_under_attack_goes_on_and_its_secret_is_nowhere_but_in_its_file(tmp_path, painted):
    out = tmp_path / "out"
    run = Looking(painted, out, missing=[1])
    run.wait_until(lambda: (out / ".secret").exists() and "intake" in run.said(0))
    assert stat.S_IMODE((out / ".secret").stat().st_mode) == 0o600
    secret = Secret.parse(text := (out / ".secret").read_bytes())
    key = text.split()[-1]
    threading.Thread(target=drip, args=(call(run.control_port),), daemon=True).start()
    assert is_replay_refused(run.control_port, secret)
    before = {what: run.status_of(0, what) for what in ("VmRSS", "Threads")}
    hello = json.dumps({"index": 1, "count": 2, "made_from": "0" * 64}).encode() + b"\n"
    for text in (
        b'{"failed": 2, "text": "end"}\n',
        hello,
        DEEP,
        b"x" * 2**28,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\n[1]\n{}\n",
    ):
        say(run.control_port, text)
    with ExitStack() as opened:
        for _ in range(400):
            opened.enter_context(call(run.control_port))
        time.sleep(0.5)
        assert run.status_of(0, "Threads") < before["Threads"] + 80
        assert run.status_of(0, "VmRSS") < before["VmRSS"] + 64_000
        run.start(1)  # While the strangers hold all the places that there are.
        assert run.codes() == [0, 0], run.said(0) + run.said(1)
    assert not (out / ".secret").exists()
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert key not in written + (run.said(0) + run.said(1)).encode()


def test_worker_is_not_ended_by_what_listens_in_place_of_the_chief(tmp_path, painted):
    run = Looking(painted, tmp_path / "out", missing=[0, 1])
    answers = [b"", b"HTTP/1.1 400\r\n\r\n", DEEP, b"x" * 2**24, b'{"token": "t"}\n', b'{"end": 2, "text": "the end"}\n']
    heard = 0
    with socket.create_server(("localhost", run.control_port)) as server:
        run.start(1)
        for text in answers:
            with server.accept()[0] as worker, suppress(ConnectionError):
                worker.sendall(text)
            heard += 1
    run.start(0)
    assert run.codes() == [0, 0], run.said(0) + run.said(1)
    assert heard == len(answers) and "Waiting for the chief at localhost:" in run.said(1)


@pytest.mark.parametrize("left", [b"", b"transfer-job secret " + b"0" * 64 + b"\n"], ids=["none", "another"])
def test_worker_that_never_sees_the_secret_ends_with_2_where_there_is_none_and_else_with_75(tmp_path, painted, left):
    run = Looking(painted, tmp_path / "out", "cluster.start_timeout_s=2", missing=[0, 1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".secret").write_bytes(left)

    def greet():
        with suppress(OSError):
            while True:
                with server.accept()[0] as worker:
                    worker.sendall(b'{"secret": "0123456789abcdef", "nonce": "00000000000000000000000000000000"}\n')

    with socket.create_server(("localhost", run.control_port)) as server:
        thread = threading.Thread(target=greet)
        thread.start()
        run.start(1)
        codes = run.codes()
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert codes[1] == (75 if left else 2), run.said(1)
    assert ("has another secret" if left else "finds none in its own") in run.said(1)
