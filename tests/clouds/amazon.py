"""Amazon S3 for the tests: moto, behind the server that fails on demand.

    python -m tests.clouds.amazon PORT

Preconditions, pages, checksums and metadata are moto's own.
"""

import io
import threading
from urllib.parse import unquote_to_bytes, urlsplit

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.test import run_wsgi_app

from tests.clouds.faulty import Answer, Call, serve

_CODES = {400: "ExpiredToken", 403: "AccessDenied", 409: "ConditionalRequestConflict", 429: "TooManyRequests"}
_CODES |= {500: "InternalError", 503: "SlowDown"}


class Amazon:
    def __init__(self) -> None:
        self._app = create_backend_app("s3")
        self._lock = threading.Lock()

    def answer(self, call: Call) -> Answer:
        environ = {
            "REQUEST_METHOD": call.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(call.path).decode("latin-1"),
            "QUERY_STRING": urlsplit(call.target).query,
            "RAW_URI": call.target,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": call.headers["Host"].rpartition(":")[2],
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(call.body)),
            "CONTENT_TYPE": call.headers.get("Content-Type", ""),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(call.body),
        }
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in call.headers.items()}
        environ.pop("HTTP_TRANSFER_ENCODING", None)  # It has been decoded.
        with self._lock:
            body, status, headers = run_wsgi_app(self._app, environ, buffered=True)
            content = b"".join(body)
        return Answer(int(status.split()[0]), dict(headers), content)

    def error(self, status: int, message: str) -> Answer:
        code = _CODES.get(status, "Error")
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        return Answer(status, {"Content-Type": "application/xml"}, text.encode())

    def named(self, call: Call) -> str:
        return ""


if __name__ == "__main__":
    serve(Amazon())
