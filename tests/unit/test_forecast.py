"""Percent and remaining seconds of a whole run, with a clock that goes on only when it is told to."""

import io
import json

import pytest

from job.pipeline.budget import percent_before
from job.runtime import telemetry
from job.runtime.forecast import Forecast, RunProgress
from job.runtime.telemetry import Telemetry


def test_percentage_is_the_share_of_time_if_the_predictions_are_right(clock):
    forecast = Forecast({"intake": 20.0, "extract": 60.0, "export": 20.0})
    found = []
    for stage, took_s in (("intake", 20), ("extract", 60), ("export", 20)):
        forecast.begin(stage)
        for _ in range(0, took_s, 10):
            clock.wait(10)
            found.append(forecast.now())
    assert [progress.remaining_s for progress in found] == list(range(90, -1, -10))
    assert [progress.percent for progress in found[:-1]] == pytest.approx(list(range(10, 100, 10)), abs=1)
    assert found[-1].percent == 99, "publishing comes after the last stage"
    forecast.complete()
    assert forecast.now() == RunProgress(100, 0)


def test_remaining_seconds_are_unknown_until_the_rates_that_decide_are_measured(clock):
    forecast = Forecast({"intake": 10.0, "extract": 10.0, "fine_tune": 10.0, "export": 5.0}, {"extract", "fine_tune"})
    forecast.begin("intake")
    clock.wait(5)
    assert forecast.now().percent > 0 and forecast.now().remaining_s is None
    forecast.begin("extract")
    forecast.measured(units_per_s=2.0, num_left=100, later={"fine_tune": 300})
    assert forecast.now().remaining_s == 50 + 150 + 5
    forecast.begin("fine_tune")
    clock.wait(10)
    assert forecast.now().remaining_s == 140 + 5
    forecast.measured(units_per_s=0.5, num_left=30, later={"fine_tune": 50})  # With the steps of another seed.
    assert forecast.now().remaining_s == 160 + 5


def test_percentage_never_goes_back_although_the_run_turns_out_to_be_longer(clock):
    forecast = Forecast({"extract": 10.0, "fine_tune": 10.0}, {"extract", "fine_tune"})
    forecast.begin("extract")
    found = []
    for rate in (100.0, 10.0, 1.0, 0.1):
        clock.wait(4)
        found.append(forecast.now().percent)
        forecast.measured(rate, 500, {"fine_tune": 500})
    clock.wait(1000)
    found.append(forecast.now().percent)
    assert found == sorted(found) and found[0] < found[-1] < 100


def test_stages_that_the_run_leaves_out_are_not_waited_for(clock):
    forecast = Forecast({"split": 1.0, "extract": 50.0, "report": 3.0}, {"extract"})
    forecast.begin("split")
    assert forecast.now().remaining_s is None
    forecast.begin("report")
    assert forecast.now().remaining_s == 3
    forecast.begin("a stage that nobody expected")
    assert forecast.now().remaining_s == 3


def test_lines_events_and_the_forecast_have_the_same_numbers(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: clock.seconds)
    stream = io.StringIO()
    recorder = Telemetry(tmp_path, stream)
    recorder.forecast = Forecast({"extract": 9.0, "fine_tune": 9.0, "export": 40.0}, {"extract", "fine_tune"})
    recorder.begin("extract")
    with recorder.progress("extract", 100, "views", {"fine_tune": 50}) as progress:
        for _ in range(3):  # The first unit waits for the compiler, and does not count.
            clock.wait(10)
            progress.advance(10)
    (first, second, _) = (line for line in stream.getvalue().splitlines() if "of 100 views" in line)
    assert first == "  extract: 10 of 100 views, 1/s, 90 s to go; run 16%"
    assert second == "  extract: 20 of 100 views, 1/s, 80 s to go; run 21%, 3 min to go"
    recorder.finish("extract", 30.0, 30.0)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["stage_started", "progress", "stage_finished"]
    assert (events[1]["percent"], events[1]["remaining_s"], events[1]["stage"]) == (16, None, "extract")
    assert events[2]["remaining_s"] == 50 + 40
    recorder.ended()
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["percent"], last["remaining_s"]) == ("run_ended", 100, 0)


def test_bar_shows_the_whole_run_too(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(telemetry, "SECONDS_BETWEEN_LINES", 0.0)
    stream = Terminal()
    recorder = Telemetry(None, stream)
    recorder.forecast = Forecast({"extract": 1e9, "export": 3600.0})
    recorder.forecast.begin("extract")
    with recorder.progress("extract", 2, "views") as progress:
        progress.advance()
    assert "run 0%" in stream.getvalue()


def test_loop_that_is_too_short_for_a_line_tells_its_rate_at_its_end(monkeypatch, clock):
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: clock.seconds)
    recorder = Telemetry(None, io.StringIO())
    recorder.forecast = Forecast({"extract": 9.0, "fine_tune": 9.0, "export": 40.0}, {"extract", "fine_tune"})
    recorder.forecast.begin("extract")
    with recorder.progress("extract", 3, "views", {"fine_tune": 50}) as progress:
        for _ in range(3):
            clock.wait(1)
            progress.advance()
    assert recorder.forecast.now().remaining_s == 50 + 40


@pytest.mark.parametrize(
    ("ends", "percent"),
    [
        ([], 40),  # Killed.
        ([{"event": "run_ended", "exit_code": 143, "percent": 45}], 45),
        ([{"event": "run_ended", "exit_code": 75, "percent": 45}], 45),
        ([{"event": "run_ended", "exit_code": 3, "percent": 99}], 0),
        ([{"event": "run_ended", "exit_code": 0, "percent": 100}], 0),
        ([{"event": "run_ended", "exit_code": 0, "percent": 100}, {"event": "stage_started"}], 0),
    ],
)
def test_start_that_resumes_goes_on_from_the_percentage_of_the_one_before(tmp_path, ends, percent):
    log = tmp_path / "events.jsonl"
    assert percent_before(log) == 0
    events = [{"event": "progress", "percent": 40}, *ends]
    log.write_text("".join(json.dumps({"time": 1.0, "run_id": "a", **event}) + "\n" for event in events) + '{"time"')
    assert percent_before(log) == percent
