"""A web server that fails on demand: late, with an error, in the middle of a body, with a wrong body, or after the work.

Neither failed nor logged is what is asked below `/-/`, which sets the faults and reads the log, or with the header DIRECT.
"""

import base64
import json
import os
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

DIRECT = ("X-Bed", "direct")
CHECKSUMS = ("x-goog-hash", "x-amz-checksum-crc32", "x-amz-checksum-crc32c", "x-amz-checksum-crc64nvme")


@dataclass(frozen=True)
class Faults:
    """What happens to which share of the requests; with `times`, to no more than so many.

    latency_s: before each answer.
    statuses: status to share, instead of an answer.
    resets: the connection breaks in the middle of the request's body, or else of the answer's.
    shorts: half of an object with a Content-Length that says so.
    wrong_checksums: an object whose checksum in the headers is not that of its bytes.
    lost_answers: what was asked for is done, and then the connection breaks.
    halves: of a part of an upload only the first half is kept, which the answer says.
    only: a pattern that is searched in "METHOD path?query"; unless told otherwise, tokens are given without faults.
    """

    latency_s: float = 0.0
    statuses: Mapping[int, float] = field(default_factory=dict)
    resets: float = 0.0
    shorts: float = 0.0
    wrong_checksums: float = 0.0
    lost_answers: float = 0.0
    halves: float = 0.0
    only: str = r"^\w+ (?!/token)"
    times: int | None = None
    seed: int = 0

    def draw(self, rng: random.Random) -> int | str | None:
        """A status, the name of another fault, or nothing."""
        shares: dict[int | str, float] = {int(status): share for status, share in self.statuses.items()}
        shares |= {kind: getattr(self, kind) for kind in ("resets", "shorts", "wrong_checksums", "lost_answers", "halves")}
        lot = rng.random()
        for kind, share in shares.items():
            if lot < share:
                return kind
            lot -= share
        return None


class Call(NamedTuple):
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Service(Protocol):
    def answer(self, call: Call) -> Answer: ...

    def error(self, status: int, message: str) -> Answer: ...

    def named(self, call: Call) -> str:
        """What the log and the patterns have after the path of a request that names its object elsewhere: &name=NAME."""
        ...


class FaultyServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, service: Service, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.service = service
        self.lock = threading.Lock()
        self.log: list[tuple[str, str, int]] = []
        self.break_by(Faults())

    def break_by(self, faults: Faults) -> None:
        with self.lock:
            self.faults, self.rng, self.left = faults, random.Random(faults.seed), faults.times

    def drawn(self, call: str) -> tuple[float, int | str | None]:
        """The latency of a request, and what goes wrong with it."""
        with self.lock:
            if not re.search(self.faults.only, call):
                return 0.0, None
            kind = self.faults.draw(self.rng) if self.left != 0 else None
            writes = not call.startswith(("GET ", "HEAD "))
            if (kind in ("shorts", "wrong_checksums") and writes) or (kind == "lost_answers" and not writes):
                kind = None
            if kind is not None and self.left is not None:
                self.left -= 1
            return self.faults.latency_s, kind

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def serve(self) -> None:
        if self.path.startswith("/-/"):
            self._send(self._control(self._body()))
            return
        if self.headers.get(DIRECT[0]) == DIRECT[1]:
            self._send(self.server.service.answer(self._call(self._body())))
            return
        begun = self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
        self.subject = self.path + self.server.service.named(self._call(begun))
        latency_s, fault = self.server.drawn(f"{self.command} {self.subject}")
        time.sleep(latency_s)
        if fault == "resets" and begun:
            self._reset()
            return
        body = begun + self._body(len(begun))
        if isinstance(fault, int):
            self._send(self.server.service.error(fault, "This was asked for."), log=True)
            return
        if fault == "halves" and "Content-Range" in self.headers:
            body = begun
        answer = self.server.service.answer(self._call(body))
        if fault == "lost_answers":
            self._reset()
        elif fault == "resets":
            self._write(answer, len(answer.body) // 2)
            self._reset()
        elif fault == "shorts" and _is_content(answer):
            self._send(answer._replace(body=answer.body[: len(answer.body) // 2]), log=True)
        elif fault == "wrong_checksums" and _is_content(answer):
            headers = {name: _wrong(name, value) for name, value in answer.headers.items()}
            self._send(answer._replace(headers=headers), log=True)
        else:
            self._send(answer, log=True)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _call(self, body: bytes) -> Call:
        return Call(self.command, self.path, self.headers, body)  # type: ignore[arg-type]

    def _body(self, num_read: int = 0) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0) - num_read)
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _control(self, body: bytes) -> Answer:
        if self.path == "/-/faults":
            self.server.break_by(Faults(**json.loads(body)))
            return Answer(204, {}, b"")
        with self.server.lock:
            log, self.server.log = self.server.log, []
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(log).encode())

    def _send(self, answer: Answer, *, log: bool = False) -> None:
        if log:
            self._note(answer.status)
        self._write(answer, len(answer.body))

    def _write(self, answer: Answer, until: int) -> None:
        """The answer with the first `until` bytes of its body."""
        headers = dict(answer.headers)
        if self.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers |= {} if answer.status in (204, 304) else {"Content-Length": str(len(answer.body))}
        lines = [f"HTTP/1.1 {answer.status} {self.responses.get(answer.status, ('-',))[0]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        body = b"" if self.command == "HEAD" else answer.body[:until]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def _reset(self) -> None:
        self._note(0)
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # Closing the socket itself would wait for `rfile`, and say goodbye first.

    def _note(self, status: int) -> None:
        with self.server.lock:
            self.server.log.append((self.command, self.subject, status))


def _is_content(answer: Answer) -> bool:
    return answer.status in (200, 206) and len(answer.body) > 1 and any(name.lower() == "etag" for name in answer.headers)


def _wrong(name: str, value: str) -> str:
    """A checksum's header, with other bytes in its first checksum."""
    if name.lower() not in CHECKSUMS:
        return value
    before, checksum, after = re.fullmatch(r"((?:crc32c=)?)([^,]+)(.*)", value).groups()  # type: ignore[union-attr]
    return before + base64.b64encode(bytes(byte ^ 0xFF for byte in base64.b64decode(checksum))).decode() + after


def serve(service: Service) -> None:
    """The main program of a service: MODULE PORT [--with-stdin]. With it, the process ends when its standard input does."""
    server = FaultyServer(service, int(sys.argv[1]))
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    if "--with-stdin" in sys.argv:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
    else:
        server.serve_forever()
