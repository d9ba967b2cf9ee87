"""A decode process that a photo has taken over: whatever it writes costs that photo, never the run and never its memory."""

import json
import os
import pickle
import resource
from dataclasses import fields
from multiprocessing import Pipe

import pytest
from pydantic import ValidationError

from job.decoding.processes import Limits, ShardTask, decode_shards
from job.decoding.rules import DecodeRules, Facts
from job.decoding.wire import MAX_LINE_BYTES, Lines, RecordLine
from tests.conftest import paint, paint_classes
from tests.unit.hijacked import Hijacked

GOOD = {"status": "used", "reason": "", "num_bytes": 1, "sha256": "", **vars(Facts(brightness=0.5))}
RULES = DecodeRules(48, "squash", 10**8, 8, 20)


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def as_line(**changed):
    return json.dumps({**GOOD, **changed}).encode() + b"\n"


NONSENSE = {
    "a pickle": lambda mark: pickle.dumps(Bomb(mark)) + b"\n",
    "the frame of a pickled message": lambda mark: len(p := pickle.dumps(Bomb(mark))).to_bytes(4, "big") + p + b"\n",
    "no JSON": lambda _: b"\xff\xfe\n",
    "another value": lambda _: b"[]\n",
    "an unknown key": lambda _: as_line(more=1),
    "a wrong type": lambda _: as_line(reason=7),
    "a status of its own": lambda _: as_line(status="trusted"),
    "a number beyond its column": lambda _: as_line(width=2**31),
    "no number": lambda _: as_line(brightness=float("nan")),
    "half a surrogate": lambda _: as_line(reason="\ud800"),
    "deep nesting": lambda _: b"[" * 60_000 + b"\n",
    "a line that is too long": lambda _: as_line(reason="x" * MAX_LINE_BYTES),
    "a line without an end": lambda _: b"x" * (40 << 20),
}


def decoded(source, tmp_path, context):
    entries = source.listing().entries
    (tmp_path / "shard").write_bytes(b"")
    tasks = [ShardTask("key", entries, tmp_path / "shard")]
    (task,) = decode_shards(tasks, source, RULES, Limits(1, 30.0, 1024), context.telemetry, context.stop)
    return dict(zip((e.path for e in entries), task.records, strict=True))


@pytest.mark.parametrize("pipe", ["records", "news"])
def test_nonsense_of_a_decode_process_costs_its_photo_only(tmp_path, context, pipe):
    folder, source = paint_classes(tmp_path / "photos", per_class=1), Hijacked(tmp_path / "photos", pipe)
    for number, said in enumerate(NONSENSE.values()):
        paint(folder / "checks" / f"hijack-{number:02d}.jpg", 50)
        source.said(f"hijack-{number:02d}.jpg").write_bytes(said(tmp_path / "unpickled"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = {path: r["reason"] for path, r in decoded(source, tmp_path, context).items() if r["status"] != "used"}
    assert list(refused) == [f"checks/hijack-{number:02d}.jpg" for number in range(len(NONSENSE))]
    assert {reason.partition(" (")[0] for reason in refused.values()} == {"the decoder crashed on it twice"}
    assert not (tmp_path / "unpickled").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB"


def test_more_records_than_photos_are_cut_off(tmp_path, context):
    paint_classes(tmp_path / "photos", per_class=2)
    source = Hijacked(tmp_path / "photos")
    source.said("stripes-001.jpg").write_bytes(500 * as_line())
    assert len(decoded(source, tmp_path, context)) == 4


def test_a_record_line_has_the_facts_of_the_decoder():
    assert list(RecordLine.model_fields) == ["status", "reason", "num_bytes", "sha256", *(f.name for f in fields(Facts))]
    assert RecordLine.model_validate_json(as_line()).model_dump() == GOOD
    with pytest.raises(ValidationError):
        RecordLine.model_validate_json(as_line(brightness=2.0))


def test_what_is_not_finished_is_taken_when_it_is_and_never_beyond_the_limit():
    near, far = Pipe(duplex=False)
    lines = Lines(near)
    os.write(far.fileno(), b"one\ntw")
    assert lines.take() == [b"one"] and lines.take() == []
    os.write(far.fileno(), b"o\n" + b"x" * (MAX_LINE_BYTES - 10))
    assert lines.take() == [b"two"] and not lines.is_too_long
    os.write(far.fileno(), b"x" * 20)
    assert lines.take() == [] and lines.is_too_long
    far.close()
    assert lines.take() == [] and lines.has_ended
