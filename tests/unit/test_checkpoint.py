"""Checkpoints: whole or not at all, checked to the byte, the two newest kept, and none of other work."""

import errno
import os
import shutil

import numpy as np
import pytest

from job.errors import Stopped, StorageFailed
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import CheckpointConfig
from job.storage.ledger import TEMPORARY
from job.storage.workdir import Workdir
from job.train.checkpoint import Checkpoints, TrainState, numbered

MADE_FROM = {"head": "abc", "its settings": "def"}


class Lines(Telemetry):
    def __init__(self):
        super().__init__(None)
        self.said = []

    def line(self, text):
        self.said.append(text)


@pytest.fixture
def context(tmp_path):
    return Context(Workdir(tmp_path / "out"), Lines(), saving=CheckpointConfig(every_s=0))


def state(step):
    rng = np.random.default_rng(step)
    arrays = {
        "sums": rng.normal(size=3),
        **numbered("variable", [rng.normal(size=(50, 4)).astype(np.float32), np.array(step)]),
    }
    return TrainState(step, arrays, {"history": [{"epoch": 0, "val_log_loss": 1 / 3}]})


def save(context, *steps, made_from=MADE_FROM):
    with Checkpoints(context, "fine_tune", made_from) as checkpoints:
        for step in steps:
            checkpoints.save(state(step))
    return sorted((context.workdir.root / "checkpoints" / "fine_tune").iterdir())


def newest(context, made_from=MADE_FROM):
    with Checkpoints(context, "fine_tune", made_from) as checkpoints:
        return checkpoints.newest()


def assert_same(found, expected):
    assert found.step == expected.step and found.notes == expected.notes
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == array.dtype and np.array_equal(found.arrays[name], array), name


def test_state_comes_back_to_the_bit_and_the_two_newest_are_kept(context):
    folders = save(context, 3, 7, 11)
    assert [int(f.name[:10]) for f in folders] == [7, 11]
    assert_same(newest(context), state(11))
    assert [v.shape for v in newest(context).listed("variable")] == [(50, 4), ()]
    assert "resuming from the checkpoint at step 11" in context.telemetry.said[-1]


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place) % len(data)] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit of an array": lambda f: flip(f / "arrays.npy", 0.5),
    "the first bit": lambda f: flip(f / "arrays.npy", 0.0),
    "a bit of the rest": lambda f: flip(f / "state.json", 0.3),
    "cut short": lambda f: os.truncate(f / "arrays.npy", 100),
    "empty": lambda f: os.truncate(f / "state.json", 0),
    "a member is missing": lambda f: (f / "arrays.npy").unlink(),
    "a member too many": lambda f: (f / "more").write_text(""),
    "another name": lambda f: f.rename(f.with_name(f.name[:-1] + ("0" if f.name[-1] != "0" else "1"))),
    "an empty folder": lambda f: [p.unlink() for p in f.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_newest_one_is_noticed_and_the_previous_one_taken(context, damage):
    damage(save(context, 5, 9)[-1])
    assert_same(newest(context), state(5))
    assert "is damaged and is not used" in context.telemetry.said[0] and len(context.telemetry.said) == 2


def test_every_single_flipped_bit_is_noticed(context):
    (folder,) = save(context, 5)
    for name in ("arrays.npy", "state.json"):
        good = (folder / name).read_bytes()
        for place in range(0, len(good), 7):
            flip(folder / name, place / len(good))
            assert newest(context) is None, (name, place)
            (folder / name).write_bytes(good)
    assert newest(context) is not None


def test_damaged_ones_do_not_count_as_kept_and_are_left_where_they_are(context):
    for folder in save(context, 5, 9)[1:]:
        flip(folder / "arrays.npy", 0.5)
    with Checkpoints(context, "fine_tune", MADE_FROM) as checkpoints:
        assert checkpoints.newest().step == 5
        checkpoints.save(state(6))
        checkpoints.save(state(7))
    folders = (context.workdir.root / "checkpoints" / "fine_tune").iterdir()
    assert sorted(int(f.name[:10]) for f in folders) == [6, 7, 9]  # What does not match its digest may be somebody else's.


def test_checkpoint_that_holds_a_file_of_somebody_else_is_not_removed(context):
    (folder,) = save(context, 5)
    (folder / "notes.txt").write_bytes(b"mine")
    save(context, 6, 7, 8)
    assert (folder / "notes.txt").read_bytes() == b"mine"


def test_damaged_one_is_repaired_where_the_same_is_saved_again(context):
    (folder,) = save(context, 5)
    flip(folder / "arrays.npy", 0.5)
    save(context, 5)
    assert newest(context) is not None


def test_one_of_other_work_is_left_aside_with_what_changed_and_then_replaced(context):
    save(context, 9)
    assert newest(context, {**MADE_FROM, "head": "other"}) is None
    assert "at step 9 is stale and is not used: head" in context.telemetry.said[-1]
    folders = save(context, 2, made_from={**MADE_FROM, "head": "other"})
    assert [int(f.name[:10]) for f in folders] == [2]


def test_full_disk_keeps_the_good_one_and_is_told_at_the_next_question(context, monkeypatch):
    save(context, 5)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = "No space left.*GB are free there, and this alone needs 0.9 kB"
    with pytest.raises(StorageFailed, match=message), Checkpoints(context, "fine_tune", MADE_FROM) as checkpoints:
        monkeypatch.setattr("job.storage.files.sync", full)
        checkpoints.save(state(6))
    monkeypatch.undo()
    assert_same(newest(context), state(5))
    assert not list(context.workdir.path(TEMPORARY).iterdir())


def test_stop_saves_first_and_says_so(context):
    context.stop.request("SIGTERM")
    message = "Of fine_tune, everything up to step 4 is saved"
    with (
        pytest.raises(Stopped, match=message),
        context.stop.during("fine_tune"),
        Checkpoints(context, "fine_tune", MADE_FROM) as checkpoints,
    ):
        checkpoints.offer(lambda: state(4))
    assert_same(newest(context), state(4))


def test_nothing_is_saved_before_it_is_time(tmp_path):
    context = Context(Workdir(tmp_path), Telemetry(None), saving=CheckpointConfig(every_s=1000))
    with Checkpoints(context, "fine_tune", MADE_FROM) as checkpoints:
        checkpoints.offer(lambda: pytest.fail("asked for the state"))
    assert not (tmp_path / "checkpoints").exists()


def test_lost_folder_of_checkpoints_is_a_new_beginning(context):
    save(context, 5)
    shutil.rmtree(context.workdir.root / "checkpoints")
    assert newest(context) is None
