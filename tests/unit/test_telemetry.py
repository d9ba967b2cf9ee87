import io
import json
import re

import numpy as np
import pytest

from job.errors import StorageFailed
from job.runtime import telemetry
from job.runtime.telemetry import Telemetry, spent_once
from job.text.numbers import about


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


def test_line_beside_a_bar_is_a_line_of_its_own():
    stream = _Terminal()
    recorder = Telemetry(None, stream)
    with recorder.progress("fine-tune", 2, "steps") as progress:
        progress.advance()
        recorder.line("  epoch 1 of 9: [red]loss :smile: 0.5[/red] \x1b[2J")
    shown = re.split(r"\r|\n|\x1b\[2K|\x1b\[1A", stream.getvalue())
    assert r"  epoch 1 of 9: [red]loss :smile: 0.5[/red] \x1b[2J" in shown
    recorder.line("after it")
    assert stream.getvalue().endswith("after it\n")


def test_estimated_times_have_no_more_digits_than_are_known():
    assert [about(s) for s in (0.4, 75.2, 400, 9_000)] == ["0 s", "75 s", "7 min", "2.5 h"]


def test_events_are_json_lines(tmp_path):
    recorder = Telemetry(tmp_path / "logs", io.StringIO())
    recorder.event("epoch", epoch=1, name="ü \udcff")
    recorder.close()
    (line,) = (tmp_path / "logs" / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "epoch"


def test_event_after_a_line_that_was_cut_has_a_line_of_its_own(tmp_path):
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "events.jsonl"
    log.write_text('{"time": 1, "eve')
    for kind in ("run_started", "stage_started"):
        recorder = Telemetry(tmp_path / "logs", io.StringIO())
        recorder.event(kind)
        recorder.close()
    cut, *lines = log.read_text().splitlines()
    assert cut == '{"time": 1, "eve' and [json.loads(line)["event"] for line in lines] == ["run_started", "stage_started"]


def test_scalars_and_pictures_reach_tensorboard(tmp_path):
    recorder = Telemetry(tmp_path / "logs", io.StringIO())
    recorder.scalar("loss", 0.25, 3)
    recorder.image("confusion", np.zeros((4, 4, 3), np.uint8))
    recorder.close()
    (file,) = (tmp_path / "logs" / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes() and b"confusion" in file.read_bytes()


def test_tensorboard_that_cannot_be_written_ends_the_run_and_holds_nothing_up(tmp_path):
    telemetry = Telemetry(tmp_path)
    (tmp_path / "tensorboard").touch()
    with pytest.raises(StorageFailed, match="tensorboard"):
        telemetry.scalar("loss", 1.0, 0)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = Telemetry(None, io.StringIO())
    recorder.event("x")
    recorder.scalar("loss", 0.25, 3)
    assert not list(tmp_path.iterdir())


def test_what_is_done_once_for_the_process_is_counted_once(clock):
    recorder = Telemetry(None, io.StringIO())
    with recorder.spent("forward"):
        clock.wait(1)
        with spent_once("building"):
            clock.wait(2)
            with spent_once("imports"):
                clock.wait(4)
        clock.wait(8)
    seconds, _ = recorder.take_spent()
    assert seconds == {"forward": 9, "building": 2, "imports": 4}


def test_stages_are_told_what_they_spent_themselves(clock):
    recorder = Telemetry(None, io.StringIO())
    with recorder.spent("writing"), spent_once("imports"):
        clock.wait(1)
    assert recorder.take_spent()[0] == {"writing": 0, "imports": 1}
    with spent_once("imports"):
        clock.wait(2)
    recorder.add_spent("decode", 0.5)
    assert recorder.take_spent() == ({"decode": 0.5, "imports": 2}, {})
    assert Telemetry(None, io.StringIO()).take_spent() == ({}, {})


def test_first_call_of_a_step_is_tracing_and_its_examples_do_not_count(clock):
    def step():
        """Any object that can be told from another."""

    recorder = Telemetry(None, io.StringIO())
    for seconds, count in ((9, 64), (1, 64), (2, 10)):
        with recorder.spent_tracing(step, "forward", count):
            clock.wait(seconds)
    with recorder.spent_tracing(lambda: None, "forward", 64):
        clock.wait(5)
    assert recorder.take_spent() == ({"tracing": 14, "forward": 3}, {"forward": 74})
