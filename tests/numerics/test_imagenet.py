"""Files of ImageNet weights, fetched from a web server as Keras' is one."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import h5py
import pytest

from job.errors import StorageFailed
from job.model import imagenet


@pytest.fixture
def server(tmp_path):
    """The address of a server of one file, and the SHA-256 of it."""
    folder = tmp_path / "server"
    folder.mkdir()
    with h5py.File(folder / "weights.h5", "w") as file:
        file["layer"] = list(range(1000))
    service = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=service.serve_forever, daemon=True).start()
    digest = hashlib.sha256((folder / "weights.h5").read_bytes()).hexdigest()
    yield f"http://127.0.0.1:{service.server_port}/weights.h5", digest
    service.shutdown()
    service.server_close()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "weights.h5"


@pytest.mark.parametrize("knows_digest", [True, False])
@pytest.mark.parametrize("before", [None, b"", "half", "whole"])
def test_damaged_file_is_fetched_again_and_a_whole_one_is_not(server, home, before, knows_digest):
    origin, digest = server
    whole = (home.parent.parent / "server" / "weights.h5").read_bytes()
    content = {"half": whole[: len(whole) // 2], "whole": whole}.get(before, before)
    if content is not None:
        home.write_bytes(content)
        number = home.stat().st_ino
    assert imagenet._file("weights.h5", origin, "vgg16", digest if knows_digest else None) == home
    assert home.read_bytes() == whole
    assert before != "whole" or home.stat().st_ino == number, "it was left alone"


def test_what_comes_damaged_is_refused_and_leaves_nothing(server, home):
    with pytest.raises(
        StorageFailed,
        match=f"{home} does not exist, and {server[0]} could not be downloaded .the downloaded file is damaged",
    ):
        imagenet._file("weights.h5", server[0], "vgg16", "0" * 64)
    assert not list(home.parent.iterdir())
