"""Messages as JSON objects, the termination log of Kubernetes, and the result on the last line."""

import io
import json
import os
import sys

import pytest

from job.console import log, streams
from job.console.log import Log
from job.errors import DataUnusable, Stopped
from job.runtime.telemetry import Telemetry
from tests.unit.test_untrusted import ODD, SHOWN

KEYS = ["time", "level", "run_id", "worker", "stage", "message", "fields"]


def begun(*arguments, **environ):
    said = Log(io.StringIO())
    said.begin(["run", *arguments], {"TERMINATION_LOG": "/nowhere/at/all", **environ})
    return said


def lines_of(said):
    return [json.loads(line) for line in said.stream.getvalue().splitlines()]


@pytest.mark.parametrize("given", [("--log-format", "json"), ("--log-format=json",)])
def test_message_is_an_object_with_the_same_keys_in_each(given):
    said = begun(*given)
    said.worker, said.stage = 1, "intake"
    said.say(f"  {ODD}", "warning", {"count": 3})
    said.say("second")
    first, second = lines_of(said)
    assert list(first) == list(second) == KEYS and said.stream.getvalue().isascii()
    assert first["time"].endswith("Z") and first["message"] == SHOWN.strip() and first["fields"] == {"count": 3}
    assert (first["level"], first["worker"], first["stage"]) == ("warning", 1, "intake") and second["level"] == "info"
    assert first["run_id"] == second["run_id"] == said.run_id and len(said.run_id) == 16


def test_text_stays_as_it_was():
    said = begun("--log-format", "text")
    said.say("  decode: 1 of 2", fields={"done": 1})
    with pytest.raises(SystemExit):
        said.end(Stopped("by SIGTERM", "  and so on"))
    assert said.stream.getvalue() == "  decode: 1 of 2\n\nStopped: by SIGTERM\n  and so on\n"


def test_error_and_bug_are_one_object_each():
    said = begun("--log-format", "json")
    with pytest.raises(SystemExit) as ended:
        said.end(DataUnusable("One class.", "  Add another."))
    try:
        raise ValueError(ODD)
    except ValueError as error:
        said.bug(ValueError, error, error.__traceback__)
    wrong, bug = lines_of(said)
    assert ended.value.code == 65 and wrong["message"] == "One class.\n  Add another."
    assert (wrong["level"], wrong["fields"]) == ("error", {"error": "DataUnusable", "exit_code": 65})
    assert bug["message"] == f"ValueError: {SHOWN}" and bug["fields"]["error"] == "ValueError"
    assert bug["fields"]["traceback"].startswith("Traceback") and "test_log.py" in bug["fields"]["traceback"]


def test_termination_log_gets_the_last_message_and_no_more_than_kubernetes_keeps(tmp_path):
    file = tmp_path / "termination-log"
    file.write_text("what was there before, and is longer than the message")
    said = begun(TERMINATION_LOG=str(file))
    said.finish("Accuracy 91.0%.", "Report: here")
    assert file.read_text() == "exit code 0: Accuracy 91.0%.\nReport: here\n"
    with pytest.raises(SystemExit):
        said.end(DataUnusable("x" * 10_000))
    assert file.read_text() == ("exit code 65: " + "x" * 10_000)[:4096]


def test_termination_log_is_never_made_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        begun(TERMINATION_LOG=str(place)).finish("done")
    assert not (tmp_path / "missing").exists()
    assert log._TERMINATION_LOG == "/dev/termination-log"


def test_result_is_the_last_line_of_standard_output_whatever_the_end(capsys):
    said = begun("--json")
    said.finish("Accuracy 91.0%.", accuracy=0.91, report=None)
    with pytest.raises(SystemExit):
        said.end(Stopped("by SIGTERM"))
    text, good, stopped = capsys.readouterr().out.splitlines()
    assert text == "Accuracy 91.0%."
    assert json.loads(good) == {"result": "ok", "exit_code": 0, "run_id": said.run_id, "accuracy": 0.91, "report": None}
    assert json.loads(stopped) == {"result": "stopped", "exit_code": 143, "run_id": said.run_id, "error": "by SIGTERM"}


def test_lines_that_libraries_write_to_standard_error_become_messages(monkeypatch):
    said = begun("--log-format", "json")
    monkeypatch.setattr(streams, "LOG", said)
    standard_error = streams._text(streams._Messages(2))
    print("WARNING: first\r\nsec", end="", file=standard_error)
    print("ond", file=standard_error, flush=True)
    assert [(line["level"], line["message"]) for line in lines_of(said)] == [
        ("warning", "WARNING: first"),
        ("warning", "second"),
    ]
    assert sys.stderr is not standard_error


def test_lines_of_a_run_have_its_stage_and_its_numbers(tmp_path, monkeypatch):
    said = begun("--log-format", "json")
    monkeypatch.setattr("job.runtime.telemetry.LOG", said)
    telemetry = Telemetry(tmp_path, run_id=said.run_id)
    telemetry.begin("intake")
    telemetry.line("  halfway", {"count": 2})
    telemetry.finish("intake", 1.5, 2.0)
    telemetry.join("the chief's id")
    telemetry.line("after it")
    begin, halfway, end, after = lines_of(said)
    assert begin["message"] == "intake    runs" and begin["stage"] == halfway["stage"] == end["stage"] == "intake"
    assert halfway["fields"] == {"count": 2} and end["fields"] == {"wall_s": 1.5, "cpu_s": 2.0}
    assert after["stage"] is None and after["run_id"] == "the chief's id"
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {event["run_id"] for event in events} == {end["run_id"]}
