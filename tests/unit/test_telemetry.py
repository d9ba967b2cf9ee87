import io
import json

import numpy as np

from job import telemetry
from job.telemetry import Telemetry


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_no_terminal_gets_a_line_every_few_seconds_and_never_one_a_batch(monkeypatch):
    clock = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with Telemetry(None, stream).progress("decode", 40, "photos") as progress:
        for _ in range(40):
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4 and lines[0] == "  decode: 10 of 40 photos, 2/s, 15 s to go"


def test_terminal_gets_a_bar_with_rate():
    stream = _Terminal()
    with Telemetry(None, stream).progress("decode", 2, "photos") as progress:
        progress.advance(2)
    assert "decode" in stream.getvalue() and "photos/s" in stream.getvalue()


def test_events_are_json_lines(tmp_path):
    recorder = Telemetry(tmp_path / "logs", io.StringIO())
    recorder.event("epoch", epoch=1, name="ü \udcff")
    recorder.close()
    (line,) = (tmp_path / "logs" / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "epoch"


def test_scalars_and_pictures_reach_tensorboard(tmp_path):
    recorder = Telemetry(tmp_path / "logs", io.StringIO())
    recorder.scalar("loss", 0.25, 3)
    recorder.image("confusion", np.zeros((4, 4, 3), np.uint8))
    recorder.close()
    (file,) = (tmp_path / "logs" / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes() and b"confusion" in file.read_bytes()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = Telemetry(None, io.StringIO())
    recorder.event("x")
    recorder.scalar("loss", 0.25, 3)
    assert not list(tmp_path.iterdir())
