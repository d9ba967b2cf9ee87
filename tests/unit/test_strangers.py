"""What somebody who does not know the secret can do to a chief or a worker: nothing. tests/faults/ has whole processes."""

import json
import os
import resource
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest

from job.cluster import listener
from job.cluster.secret import Secret
from job.errors import TryAgainLater, UsageError
from tests.conftest import free_ports
from tests.unit.test_peers import SECRET, chief, connected

DEEP = b"[" * 100_000 + b"\n"
ONCE = "0" * 32
HELLO = {"index": 1, "count": 2, "made_from": "same"}


def line(**message):
    return json.dumps(message).encode() + b"\n"


def call(port):
    return socket.create_connection(("localhost", port), timeout=10)


def is_closed(stranger):
    """Whether the other end closes the connection; what it says before that does not count."""
    with suppress(ConnectionError):
        while stranger.recv(65_536):
            pass
    return True


@contextmanager
def unharmed(port, **options):
    """A chief that must still take its worker, and give it an order, when the block is over."""
    with chief(port, **options) as leader:
        yield leader
        worker = connected(port)
        leader.order(stage="intake")
        assert next(worker.orders()) == {"stage": "intake"} and not leader._stop.is_asked
        worker._line.close()


@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b"{}\n" * 50,
        b"[" * 1_000 + b"\n",
        DEEP,
        line(**HELLO),
        line(failed=2, text="the chief must end"),
        line(nonce=1, proof=[]),
        line(nonce=ONCE, proof="\u00e9" * 64),
        line(nonce=ONCE, proof="\ud800" * 64),
        line(nonce="\ud800", proof="0" * 64),
        line(nonce=ONCE, proof=Secret.new().proof("worker", ONCE, ONCE)),
        line(nonce="9" * 2_000, proof="a"),
        b'{"nonce": ' + b"9" * 900 + b"}\n",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_chief_closes_on_who_cannot_prove_anything(text):
    with unharmed(port := free_ports(1)[0]) as leader, call(port) as stranger:
        stranger.sendall(text)
        assert is_closed(stranger)
    assert "Connections refused: 1, the last one from 127.0.0.1" in leader._listener.refused


def test_line_without_an_end_is_cut_short():
    with unharmed(port := free_ports(1)[0]), call(port) as stranger:
        sent = 0
        with suppress(ConnectionError):
            while sent < 2**28:
                sent += stranger.send(b"x" * 65_536)
        assert sent < 2**25  # What the kernel holds; the chief itself read 64 kB.


def test_recorded_proof_is_worth_nothing():
    port = free_ports(1)[0]
    with chief(port, count=3) as leader, call(port) as recorded:
        reader = recorded.makefile("rb")
        nonce = json.loads(reader.readline())["nonce"]
        proof = line(nonce=ONCE, proof=SECRET.proof("worker", nonce, ONCE))
        recorded.sendall(proof)
        assert json.loads(reader.readline()) == {"proof": SECRET.proof("chief", nonce, ONCE)}
        with call(port) as stranger:
            stranger.sendall(proof + line(**HELLO))
            assert is_closed(stranger) and not leader._workers


def test_proof_of_the_chief_is_none_of_a_worker():
    with unharmed(port := free_ports(1)[0]), call(port) as stranger:
        nonce = json.loads(stranger.makefile("rb").readline())["nonce"]
        stranger.sendall(line(nonce=ONCE, proof=SECRET.proof("chief", nonce, ONCE)))
        assert is_closed(stranger)


def test_slow_line_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(listener, "_PROVES_WITHIN_S", 0.5)
    with unharmed(port := free_ports(1)[0]), call(port) as stranger, pytest.raises(ConnectionError):
        while True:
            stranger.sendall(b"{")
            time.sleep(0.05)


def test_of_many_idle_connections_64_stay():
    with unharmed(port := free_ports(1)[0]) as leader, ExitStack() as opened:
        before = threading.active_count()
        idle = [opened.enter_context(call(port)) for _ in range(200)]
        assert all(is_closed(stranger) for stranger in idle[:136])
        assert len(leader._listener._strangers) <= 64 and threading.active_count() <= before + 70
        assert idle[-1].recv(1_000).startswith(b'{"secret"')
        idle[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)  # It is one of those that stay.


def test_chief_without_a_free_descriptor_accepts_again_later():
    port = free_ports(1)[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with unharmed(port):
        free = os.dup(0)
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
            with call(port):  # It has the last one.
                time.sleep(0.3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_chief_does_not_listen_any_more_when_all_are_there():
    port = free_ports(1)[0]
    with chief(port) as leader:
        worker = connected(port)
        leader.order(stage="intake")
        with pytest.raises(ConnectionRefusedError):
            call(port)
        worker._line.close()


def test_error_of_a_chief_whose_workers_do_not_come_says_who_was_refused():
    port = free_ports(1)[0]
    with (
        pytest.raises(TryAgainLater, match="did not connect .* Connections refused: 1, the last one from 127"),
        chief(port, start_timeout_s=0.5) as leader,
    ):
        with call(port) as stranger:
            stranger.sendall(b"?\n")
            is_closed(stranger)
        leader.order(stage="intake")


MEANINGLESS = [
    b"[1]\n",
    b"null\n",
    DEEP,
    b"x" * (2**20 + 2) + b"\n",
    line(failed=[], text=""),
    line(failed=2),
    line(met="x"),
    b'{"met": 1e999}\n',
    line(end={}, text=""),
    b'{"end": 1e999, "text": ""}\n',
    line(end=2),
]


@pytest.mark.parametrize("text", MEANINGLESS[:8], ids=lambda text: repr(text[:24]))
def test_worker_that_talks_nonsense_is_lost(text):
    port = free_ports(1)[0]
    with pytest.raises(TryAgainLater, match=r"worker 1 \(host-1:1\) is lost: it sent"), chief(port) as leader:
        worker = connected(port)
        leader.order(stage="intake")
        with suppress(OSError):
            worker._line._socket.sendall(text)
        leader.meet()


@pytest.mark.parametrize("text", [*MEANINGLESS[:4], *MEANINGLESS[8:]], ids=lambda text: repr(text[:24]))
def test_chief_that_talks_nonsense_is_lost(text):
    port = free_ports(1)[0]
    with chief(port) as leader:
        worker = connected(port)
        leader.order(stage="intake")  # Only then has the chief surely taken the worker in.
        orders = worker.orders()
        assert next(orders) == {"stage": "intake"}
        leader._workers[1]._socket.sendall(text)
        with pytest.raises(TryAgainLater, match="the chief is lost: it sent"):
            next(orders)
        worker._line.close()


def test_message_that_is_repeated_counts_once():
    port = free_ports(1)[0]
    with chief(port) as leader:
        worker = connected(port)
        leader.order(stage="intake")
        worker._line._socket.sendall(line(met=1) * 5 + line(ready=True) * 5)
        leader.meet()
        threading.Timer(0.3, lambda: worker._line.say(met=2)).start()
        started = time.monotonic()
        leader.meet()
        assert time.monotonic() - started > 0.2  # Else the repeated ones had counted as the second meeting.
        worker._line.close()


@contextmanager
def impostor(answer, port=0):
    """Something that listens where a chief should be. `answer` is called with each connection."""
    with socket.create_server(("localhost", port)) as server:

        def serve():
            with suppress(OSError):
                while True:
                    with server.accept()[0] as connected, suppress(OSError, ValueError, KeyError):
                        answer(connected)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def greeting(secret=SECRET):
    return line(secret=secret.public_id, nonce=ONCE)


def reflects(connected):
    connected.sendall(greeting())
    answer = json.loads(connected.makefile("rb").readline())
    connected.sendall(line(proof=answer["proof"]))
    time.sleep(0.1)


IMPOSTORS = {
    "closes": lambda connected: None,
    "is a web server": lambda connected: connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "never ends a line": lambda connected: connected.sendall(b"x" * 2**24),
    "nests": lambda connected: connected.sendall(DEEP),
    "says an older protocol's word": lambda connected: connected.sendall(line(token="t")),
    "knows the public id alone": lambda connected: connected.sendall(greeting() + line(proof="0" * 64)),
    "gives the worker's proof back": reflects,
}


@pytest.mark.parametrize("answer", IMPOSTORS.values(), ids=IMPOSTORS)
def test_worker_waits_for_the_chief_where_somebody_else_listens(answer):
    said = []
    with impostor(answer) as port:
        thread = threading.Thread(target=lambda: found.append(connected(port, tell=said.append)), daemon=True)
        found = []
        thread.start()
        while not said:
            time.sleep(0.01)
    with chief(port) as leader:
        leader.order(stage="intake")
        thread.join()
        assert next(found[0].orders()) == {"stage": "intake"} and "Waiting for the chief" in said[0]
        found[0]._line.close()


def test_worker_gives_up_with_75_where_the_chief_never_comes_in_place_of_another():
    for answer in (IMPOSTORS["is a web server"], lambda connected: time.sleep(1.2)):
        with impostor(answer) as port, pytest.raises(TryAgainLater, match="was not found within"):
            connected(port, start_timeout_s=0.2)


@pytest.mark.parametrize(
    ("found", "error", "said"),
    [(None, UsageError, "finds none in its own"), (Secret.new(), TryAgainLater, "has another secret")],
    ids=["none", "another"],
)
def test_worker_without_the_secret_of_the_chief_looks_again_and_then_ends(found, error, said):
    port, looks = free_ports(1)[0], []
    with chief(port):
        with pytest.raises(error, match=said):
            connected(port, start_timeout_s=1.0, find_secret=lambda: looks.append(1) or found)
        assert len(looks) > 1
        late = iter([found, found])
        worker = connected(port, find_secret=lambda: next(late, SECRET))
        worker._line.close()


@pytest.mark.parametrize(
    ("host", "bound"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        (socket.gethostname(), "::"),
        ("no-such-name.invalid", "::"),
        ("0.0.0.0", "::"),
        ("192.0.2.1", "::"),  # Nobody's.
    ],
)
def test_chief_listens_on_one_address_only_where_it_is_certainly_its_own(host, bound):
    with listener._listening(host, free_ports(1)[0]) as found:
        assert found.getsockname()[0] in ({bound, "0.0.0.0"} if bound == "::" else {bound})


def test_nothing_that_a_connection_sends_or_shows_holds_the_secret():
    port = free_ports(1)[0]
    with chief(port, count=3), call(port) as stranger:
        said = stranger.makefile("rb").readline()
    key = SECRET.to_bytes().split()[-1].decode()
    assert key not in said.decode() and key not in repr(SECRET)
