"""The hubs of weights, as far as this machine can have them: a proxy that answers for them, with certificates of its own.

The programs under test ask their real addresses with their real clients, as on a machine whose network has such a proxy.
"""

import datetime
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

KERAS, KAGGLE, HUGGING_FACE = "storage.googleapis.com", "api.kaggle.com", "huggingface.co"
REVISION = "5" * 40  # Of each repository on Hugging Face.


class Hubs:
    """Files by host and path, and the requests that came. `environment` leads a program here."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        authority, self.context = _certificates(folder)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hubs": self}))
        proxy = f"http://127.0.0.1:{self.server.server_port}"
        self.environment = {"SSL_CERT_FILE": str(authority), "REQUESTS_CA_BUNDLE": str(authority)}
        self.environment |= dict.fromkeys(("HTTPS_PROXY", "https_proxy"), proxy)
        self.environment |= dict.fromkeys(("NO_PROXY", "no_proxy"), "")

    def put_preset(self, handle: str, **files: bytes) -> None:
        """Put a preset where its handle says: kaggle://OWNER/MODEL/keras/VARIATION/VERSION or hf://OWNER/MODEL."""
        scheme, _, path = handle.partition("://")
        for name, content in files.items():
            self.files[KAGGLE if scheme == "kaggle" else HUGGING_FACE, f"{path}/{name}"] = content


@contextmanager
def hubs(folder: Path) -> Iterator[Hubs]:
    """Hubs without any files yet."""
    found = Hubs(folder)
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hubs: Hubs
    protocol_version = "HTTP/1.1"
    host = ""

    def do_CONNECT(self) -> None:
        """Answer in place of the host, encrypted."""
        self.host = self.path.partition(":")[0]
        self.send_response(200)
        self.end_headers()
        self.connection = self.hubs.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.lstrip("/")
        self.hubs.requests.append((self.host, path))
        if self.host == HUGGING_FACE:
            path = re.sub(f"/resolve/(main|{REVISION})/", "/", path)
        self._answer(self.hubs.files.get((self.host, path)))

    def do_POST(self) -> None:
        """Answer Kaggle's request for a file of a model."""
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        version = asked.get("versionNumber")
        path = f"{asked['ownerSlug']}/{asked['modelSlug']}/keras/{asked['instanceSlug']}/{version}/{asked['path']}"
        self.hubs.requests.append((self.host, path))
        self._answer(self.hubs.files.get((self.host, path)))

    def _answer(self, content: bytes | None) -> None:
        self.send_response(404 if content is None else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")  # How Hugging Face tells a missing file.
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content or b"")

    def log_message(self, *_: Any) -> None:
        pass


def _certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return the certificate of an authority, and what a server needs that it has signed for the hubs."""
    now, name = datetime.datetime.now(datetime.UTC), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    keys = {role: ec.generate_private_key(ec.SECP256R1()) for role in ("authority", "server")}
    hosts = x509.SubjectAlternativeName([x509.DNSName(host) for host in (KERAS, KAGGLE, HUGGING_FACE)])
    for role, extension in (("authority", x509.BasicConstraints(ca=True, path_length=0)), ("server", hosts)):
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, role)])
        made = x509.CertificateBuilder().serial_number(x509.random_serial_number()).issuer_name(name)
        made = made.subject_name(name if role == "authority" else subject).public_key(keys[role].public_key())
        made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        signed = made.add_extension(extension, critical=True).sign(keys["authority"], hashes.SHA256())
        (folder / f"{role}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = keys["server"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return folder / "authority.pem", context
