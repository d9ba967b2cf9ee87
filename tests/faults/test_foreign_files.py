"""Whatever lies in an output and is not the job's stays as it is: at any operation, after a kill at any other, in any place.

What runs is `crash_points.work`, a job's storage layer from the claim to the publication, in a process of its own.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from job.errors import UsageError
from tests.faults.crash_points import content, work
from tests.faults.disk import KILLED, FaultyDisk, in_child

MINE = b"a file of somebody else"
# Names whose last part is a digest can only be a file of the job; everything else may be anybody's.
OF_ANYBODY = (
    "notes.txt",
    ".DS_Store",
    "model.json.bak",
    "cache/notes",
    "cache/features-1/x.npy",
    "checkpoints/fine_tune/notes",
)
OF_ANYBODY += (f"cache/features-1/{'0' * 32}.json", f"cache/images-{'0' * 16}/x.npy", ".report.html.0a0a0a0a0a0a.part")
OF_ANYBODY += (f"checkpoints/fine_tune/0000000009-{'a' * 64}/state.json", f"versions/{'0' * 16}/model/weights")


@pytest.fixture(scope="module")
def memory():
    """A folder in memory where that can be: thousands of syncs of nothing."""
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def names(memory):
    """Every name that the job itself gives, but for those that hold a digest, and some that nobody gives."""
    work(memory / "reference")
    own = {name for name in content(memory / "reference") if not name.startswith(("cache/", "checkpoints/", "versions/"))}
    folders = {"logs", "stages", "model", "stages/export", "published.json", "logs/events.jsonl", "stages/end.json"}
    return sorted(own | folders | {f"{name}/mine" for name in ("model", "stages/export/model", "logs")} | {*OF_ANYBODY})


class Intruder(FaultyDisk):
    """A disk on which somebody else makes a file just before some operation, and which stops at another."""

    def __init__(self, out, puts, stop_at):
        super().__init__(out, stop_at)
        self._puts = puts

    def operation(self, name, path, do, half=lambda: None):
        for foreign in self._puts.pop(len(self.operations), ()) if path.startswith(self.root) else ():
            put(Path(self.root), foreign)
        return super().operation(name, path, do, half)


def put(out, name):
    """Make a file of somebody else, where nothing has its name."""
    place = os.path.join(out, name)
    if not os.path.lexists(place) and all(os.path.isdir(p) or not os.path.lexists(p) for p in Path(place).parents):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(os.open(place, os.O_CREAT | os.O_WRONLY), "wb", buffering=0) as file:
            os.write(file.fileno(), MINE)
        with open(os.path.join(os.path.dirname(out), "puts"), "a") as log:
            log.write(f"{name}\n")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_files_of_others_survive_a_kill_at_any_operation(memory, names, data):
    out = memory / "out"
    shutil.rmtree(out, ignore_errors=True)
    (memory / "puts").write_text("")
    for _ in range(data.draw(st.integers(1, 3), "kills")):
        places = data.draw(st.lists(st.tuples(st.integers(0, 700), st.sampled_from(names)), max_size=4), "files of others")
        puts = {}
        for number, name in places:
            puts.setdefault(number, []).append(name)
        stop_at = data.draw(st.integers(5, 800), "stops at")

        def disturbed(puts=puts, stop_at=stop_at):
            Intruder(out, puts, stop_at).install()
            work(out)

        code, said = in_child(disturbed)
        assert code in (0, KILLED) or said.startswith(UsageError.__name__), said
        check(memory, out)
    code, said = in_child(lambda: work(out))
    assert code == 0 or said.startswith(UsageError.__name__), said
    check(memory, out)


def check(memory, out):
    for name in (memory / "puts").read_text().splitlines():
        assert (out / name).read_bytes() == MINE, name


@pytest.mark.parametrize("name", ["cache/x", "model/x", "metrics.json", ".lease", "run.json", "checkpoints/a", "stages/x"])
def test_folder_that_is_somebody_elses_is_refused_before_anything_is_written(memory, name):
    out = memory / f"mine-{name.replace('/', '-')}"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(MINE)
    code, said = in_child(lambda: work(out))
    assert code == 1 and said.startswith("UsageError: --out") and Path(name).parts[0] in said
    assert [p for p in out.rglob("*") if p.is_file()] == [out / name] and (out / name).read_bytes() == MINE
