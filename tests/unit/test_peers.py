"""Words between workers, over real connections; tests/faults/test_lost_workers.py has whole runs."""

import errno
import socket
import threading
import time

import pytest

from job.cluster import chief as of_chief
from job.cluster import connection
from job.cluster.chief import Chief
from job.cluster.connection import Connection
from job.cluster.handshake import admit
from job.cluster.secret import Secret
from job.cluster.worker import Worker
from job.errors import Diverged, JobError, Stopped, StorageFailed, TryAgainLater, UsageError
from job.runtime import peers
from job.runtime.peers import Peers
from job.runtime.stop import StopRequest
from tests.conftest import free_ports

SECRET = Secret.new()


# What a worker is started with, unless a test says otherwise.
GIVEN = {
    "find_secret": lambda: SECRET,
    "made_from": "same",
    "start_timeout_s": 5.0,
    "is_needed": lambda: True,
    "prepare": lambda: None,
    "tell": lambda text: None,
}


class Heard(StopRequest):
    """Nobody's process is ended."""

    def insist(self, by="a request", error=None, *, within_s):
        self.request(by, error)


@pytest.fixture(autouse=True)
def nobody_takes_long_to_leave(monkeypatch):
    """The workers here are threads: their connections stay open until the test is over."""
    monkeypatch.setattr(of_chief, "_LEAVES_WITHIN_S", 0.2)


def chief(port, count=2, **options):
    others = [f"host-{k}:1" for k in range(1, count)]
    given = {"made_from": "same", "secret": SECRET, "start_timeout_s": 5.0, "stop": Heard(), "tell": lambda text: None}
    leader = Chief(("localhost", port), others, **{**given, **options})
    leader.be_ready()
    return leader


def connected(port, index=1, count=2, **options):
    worker = Worker(index, count, Heard())
    assert worker.connect(("localhost", port), **{**GIVEN, **options})
    return worker


def test_work_is_divided_without_a_rest_or_an_overlap():
    items = list(range(11))
    parts = [peers.part(items, k, 3) for k in range(3)]
    assert [x for part in parts for x in part] == items and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Peers().own(items) == items and Peers().same("value") == "value"


def test_orders_values_and_meetings_come_in_order_and_the_end_is_the_end():
    port, found = free_ports(1)[0], []

    def work():
        with connected(port) as worker:
            for order in worker.orders():
                found.append((order["stage"], worker.same("of the worker"), list(worker.own("abcd"))))
                worker.meet()

    thread = threading.Thread(target=work)
    with chief(port) as leader:
        thread.start()
        for stage in ("intake", "extract"):
            leader.order(stage=stage)
            assert leader.same({"choice": stage}) == {"choice": stage} and list(leader.own("abcd")) == ["a", "b"]
            leader.meet()
    thread.join(10)
    assert found == [(stage, {"choice": stage}, ["c", "d"]) for stage in ("intake", "extract")]


@pytest.mark.parametrize("error", [Stopped("by a signal"), Diverged("all is NaN"), ValueError("a bug")])
def test_workers_end_with_the_code_of_the_chief(error):
    port = free_ports(1)[0]
    with pytest.raises(type(error)), chief(port) as leader:
        worker = connected(port)
        leader.order(stage="extract")
        assert next(worker.orders()) == {"stage": "extract"}
        threading.Timer(0.1, worker._line.close).start()  # Its process ends when it has heard.
        raise error
    with pytest.raises(JobError, match=f"The chief ended: {error}") as ended:
        worker.same(None)
    assert ended.value.exit_code == getattr(error, "exit_code", 1)


def test_what_ends_a_worker_ends_the_chief_with_the_same_code():
    port = free_ports(1)[0]
    with pytest.raises(UsageError, match=r"worker 1 \(host-1:1\) ended: no such file"), chief(port) as leader:
        with pytest.raises(UsageError), connected(port) as worker:
            leader.order(stage="extract")
            raise UsageError("no such file")
        worker._line.close()
        leader.meet()


def test_worker_whose_connection_is_closed_is_lost():
    port = free_ports(1)[0]
    with (
        pytest.raises(TryAgainLater, match=r"worker 1 \(host-1:1\) is lost: its connection was closed"),
        chief(port) as leader,
    ):
        worker = connected(port)
        leader.order(stage="extract")
        worker._line._socket.shutdown(socket.SHUT_RDWR)
        leader.meet()


def test_silence_is_a_loss_and_beats_are_no_silence(monkeypatch):
    monkeypatch.setattr(connection, "LOST_AFTER_S", 0.6)
    monkeypatch.setattr(connection, "BEATS_EVERY_S", 0.1)
    port = free_ports(1)[0]
    with pytest.raises(TryAgainLater, match=r"is lost: it has been silent for 0.6 s"), chief(port) as leader:
        worker = connected(port)
        leader.order(stage="extract")
        with pytest.raises(TryAgainLater), leader._changed:
            for _ in range(10):
                leader._stop.check()
                leader._changed.wait(0.1)
            worker._line._closed.set()  # It hangs: nothing is said any more, and the connection stands.
            raise TryAgainLater
        leader.meet()


def test_silence_is_no_loss_before_somebody_is_ready(monkeypatch):
    monkeypatch.setattr(connection, "LOST_AFTER_S", 0.3)
    monkeypatch.setattr(connection, "BEATS_EVERY_S", 0.1)
    port = free_ports(1)[0]
    with chief(port) as leader:
        worker = connected(port, prepare=lambda: time.sleep(1.0))  # It loads modules.
        leader.order(stage="extract")
        assert next(worker.orders()) == {"stage": "extract"}
        worker._line.close()


def test_missing_workers_are_named():
    port = free_ports(1)[0]
    with pytest.raises(TryAgainLater) as error, chief(port, count=3, start_timeout_s=1.0) as leader:
        worker = connected(port, index=1, count=3)
        threading.Timer(1.5, worker._line.close).start()
        leader.order(stage="intake")
    assert "worker 2 (host-2:1) did not connect" in str(error.value) and "worker 1" not in str(error.value)


def test_worker_that_was_started_otherwise_ends_both_for_good():
    port = free_ports(1)[0]
    with (
        pytest.raises(UsageError, match=r"Worker 1 \(host-1:1\) was refused: it was started with another"),
        chief(port) as leader,
    ):
        with pytest.raises(UsageError, match="another command line"):
            connected(port, made_from="something else")
        leader.order(stage="intake")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"index": 5}, "worker 5 of 2, but there are 2"),
        ({"count": 3}, "are 2"),
    ],
)
def test_worker_that_does_not_belong_is_refused(options, said):
    port = free_ports(1)[0]
    with chief(port) as leader:
        with pytest.raises(UsageError, match=said):
            connected(port, **options)
        right = connected(port)
        while 1 not in leader._ready:  # Its word may still be on its way.
            time.sleep(0.01)
        leader.order(stage="intake")
        assert next(right.orders()) == {"stage": "intake"}
        right._line.close()


def test_refusal_of_another_worker_is_none_of_the_one_that_came():
    port = free_ports(1)[0]
    with chief(port) as leader:
        with pytest.raises(UsageError):
            connected(port, made_from="an earlier command line")
        right = connected(port, prepare=lambda: time.sleep(0.5))
        leader.order(stage="intake")
        assert next(right.orders()) == {"stage": "intake"}
        right._line.close()


def test_chief_may_be_silent_while_it_starts(monkeypatch):
    monkeypatch.setattr(connection, "LOST_AFTER_S", 0.3)
    heard = []
    with socket.create_server(("localhost", 0)) as server:

        def answer():
            line = Connection(server.accept()[0])
            admit(line, SECRET)
            heard.append(line.hear())
            time.sleep(1.0)  # It loads modules, which keeps its threads from running.
            line.say(welcome=True)
            heard.append(line.hear())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        worker = connected(server.getsockname()[1])
        thread.join()
        worker._line.close()
    assert heard == [{"index": 1, "count": 2, "made_from": "same"}, {"ready": True}]


def test_signal_that_comes_while_a_worker_prepares_ends_all_with_143():
    port = free_ports(1)[0]
    with chief(port) as leader:
        worker = Worker(1, 2, Heard())
        with pytest.raises(Stopped), worker:
            prepare = lambda: worker._stop.request("SIGTERM")  # noqa: E731
            worker.connect(("localhost", port), **{**GIVEN, "prepare": prepare})
        with pytest.raises(Stopped, match="worker 1"):
            leader.meet()
        worker._line.close()


def test_worker_that_comes_too_early_after_its_predecessor_may_come_again():
    port = free_ports(1)[0]
    with pytest.raises(Stopped), chief(port, count=3) as leader:
        first = connected(port, count=3)
        with pytest.raises(TryAgainLater, match="The chief is lost"):
            connected(port, count=3)  # There is such a worker, which may be dying.
        leader._stop.request()
        with pytest.raises(TryAgainLater, match="The chief is lost"):
            connected(port, made_from="the next run")  # The chief is about to end.
        first._line.close()
        leader._stop.check()


def test_chief_that_has_to_be_ended_says_how():
    port = free_ports(1)[0]
    with chief(port) as leader:
        worker = connected(port)
        leader.order(stage="extract")
        assert next(worker.orders()) == {"stage": "extract"}
        leader._stop.last_words[-1](Stopped("no point to stop at was reached"))
        with pytest.raises(Stopped, match="The chief ended: no point to stop at"):
            worker.same(None)
        worker._line.close()


def test_error_of_the_system_has_the_same_code_here_and_there():
    port = free_ports(1)[0]
    with pytest.raises(OSError), chief(port) as leader:
        worker = connected(port)
        leader.order(stage="extract")
        assert next(worker.orders()) == {"stage": "extract"}
        threading.Timer(0.1, worker._line.close).start()
        raise OSError(errno.ESTALE, "Stale file handle")
    with pytest.raises(StorageFailed):
        worker.same(None)


def test_worker_finds_out_that_nothing_is_left_to_do():
    worker = Worker(1, 2, Heard())
    assert not worker.connect(("localhost", free_ports(1)[0]), **{**GIVEN, "is_needed": lambda: False})


def test_port_that_is_taken_is_worth_a_retry():
    with socket.create_server(("", 0)) as server, pytest.raises(TryAgainLater, match="cannot listen on port"):
        chief(server.getsockname()[1])
