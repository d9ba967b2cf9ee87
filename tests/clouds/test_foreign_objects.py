"""Objects that the job did not make stay as they are, whoever puts them where and whenever, and whenever a run is ended."""

import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from job.errors import UsageError
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.storage.bucket.open import open_objects
from job.storage.bucket.workdir import BucketWorkdir
from job.storage.lease import NAME as LEASE
from tests.faults.crash_points import rounds

MINE = b"an object of somebody else"
NAMES = ("notes.txt", "cache/notes", f"cache/images-{'0' * 16}/x.npy", "model/mine", "model/weights", "model/model.json")
NAMES += ("metrics.json", "report.html", "run.json", "published.json", "stages/end.json", "examples.parquet", "attempt/a")
NAMES += (f"checkpoints/fine_tune/0000000009-{'a' * 64}/state.json", "logs/mine", "predictions.parquet", "stages/mine")


class Killed(BaseException):
    pass


class Disturbed:
    """Objects among which somebody else puts some before a write, and whose writer is ended at another."""

    def __init__(self, objects, puts, stop_at):
        self._objects, self._puts, self._stop_at, self.writes = objects, puts, stop_at, 0

    def __getattr__(self, name):
        return getattr(self._objects, name)

    def write(self, name, data, replaces=None):
        if name == LEASE:  # A thread keeps it.
            return self._objects.write(name, data, replaces)
        self.writes += 1
        if self.writes >= self._stop_at:
            raise Killed  # In every thread that is left.
        for put in self._puts.pop(self.writes, ()):
            put()
        return self._objects.write(name, data, replaces)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_objects_of_others_survive_a_kill_at_any_write(bed, tmp_path, data):
    uri = f"{bed.bucket()}/runs/x"
    mine = set()

    def put(name):
        if f"{uri}/{name}" not in bed.names(uri):
            bed.put(f"{uri}/{name}", MINE)
            mine.add(name)

    for attempt in range(3):
        puts = {}
        if attempt < 2:
            for number, name in data.draw(st.lists(st.tuples(st.integers(3, 60), st.sampled_from(NAMES)), max_size=3)):
                puts.setdefault(number, []).append(lambda name=name: put(name))
        root = tmp_path / "node"
        shutil.rmtree(root, ignore_errors=True)
        objects = Disturbed(open_objects(uri), puts, data.draw(st.integers(2, 70)) if attempt < 2 else 10**6)
        with suppress(Killed, UsageError):
            rounds(Context(BucketWorkdir(root, objects), Telemetry(None)))
        assert all(bed.get(f"{uri}/{name}") == MINE for name in sorted(mine))


def test_prefix_that_is_somebody_elses_is_refused_before_anything_is_written(bed, tmp_path):
    uri = f"{bed.bucket()}/runs/x"
    bed.put(f"{uri}/cache/photo.jpg", MINE)
    with pytest.raises(UsageError, match="holds files that this job did not make: cache/photo.jpg"):
        rounds(Context(BucketWorkdir(tmp_path, open_objects(uri)), Telemetry(None)))
    assert bed.names(uri) == [f"{uri}/cache/photo.jpg"]
