"""Checkpoints: the complete state of a stage, from which it can resume. They are written while the stage works on.

A checkpoint is a folder with arrays.npy and state.json. Its name contains the step and the SHA-256 of its files, so every
byte is verified before it is used. It appears complete or not at all. The two newest are kept.
"""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from job.errors import StorageFailed
from job.runtime.context import Context
from job.storage.files import digest_of_folder, remove_tree, storage_errors, sync, sync_all

_KEPT = 2
_FILES = ("arrays.npy", "state.json")


@dataclass(frozen=True)
class TrainState:
    """The state of a stage after `step` steps: arrays by name, and `notes` that JSON can represent."""

    step: int
    arrays: dict[str, np.ndarray]
    notes: dict[str, Any] = field(default_factory=dict)

    def listed(self, name: str) -> list[np.ndarray]:
        """Return the list of arrays that `numbered(name, ...)` has named."""
        return [self.arrays[key] for key in sorted(self.arrays) if key.startswith(f"{name}-")]


def numbered(name: str, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Give a list of arrays names that keep their order: name-00000, name-00001, ..."""
    return {f"{name}-{k:05d}": array for k, array in enumerate(arrays)}


class Checkpoints:
    """The checkpoints of a stage, in `checkpoints/` of the output directory. The end of the block waits for the disk.

    `made_from` has a digest of everything that the work depends on. A checkpoint is used only if it was made from the same.
    """

    def __init__(self, context: Context, stage: str, made_from: dict[str, str]) -> None:
        self._context, self._stage, self._made_from = context, stage, made_from
        self._name = f"checkpoints/{stage}"
        self._folder = context.workdir.path(self._name)
        self._mine: list[Path] = []  # The checkpoints to keep.
        self._made: set[Path] = set()
        self._saved_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        self._thread.shutdown()
        if error_type is None:
            self.finish()

    def newest(self) -> TrainState | None:
        """Return the newest undamaged checkpoint with the same `made_from`. Report and skip others.

        A skipped checkpoint is removed when the next one is written.
        """
        self._context.workdir.bring(self._name)
        for folder in sorted(self._folder.glob("[0-9]*"), reverse=True):
            found = _read(folder)
            if found is None:
                self._tell(f"the checkpoint {folder} is damaged and is not used")
                continue
            made_from, state = found
            changed = [what for what in self._made_from | made_from if self._made_from.get(what) != made_from.get(what)]
            if not changed:
                self._tell(f"resuming from the checkpoint at step {state.step:,}")
                self._mine.append(folder)
                return state
            self._tell(f"the checkpoint at step {state.step:,} is stale and is not used: {', '.join(changed)} changed")
        return None

    def newest_of_chief(self) -> TrainState | None:
        """Return, on all workers, the newest checkpoint that the chief sees.

        Raises:
            StorageFailed: if another worker does not see it, or sees it damaged.
        """
        return self._same(self.newest() if self._context.peers.is_chief else None)

    def begin_together(self, state: TrainState) -> TrainState:
        """Return the chief's state on all workers. Their own can differ in the last bits if their CPUs differ.

        Raises:
            StorageFailed: if the chief cannot write it, or another worker cannot read it.
        """
        self.save(state)
        self.finish()
        return self._same(state) or state

    def _same(self, state: TrainState | None) -> TrainState | None:
        peers = self._context.peers
        name = peers.same(self._mine[-1].name if peers.is_chief and state else "")
        if peers.is_chief or not name:
            return state
        self._context.workdir.refresh()
        self._context.workdir.bring(self._name)
        found = _read(self._folder / name)
        if found is None:
            raise StorageFailed(
                f"{self._folder / name}: this worker cannot read the checkpoint that the chief uses. Give all workers the "
                "same --out, then start all again."
            )
        return found[1]

    def offer(self, state: Callable[[], TrainState]) -> None:
        """Save the state if the last checkpoint is `every_s` old. If the run was asked to stop, save it and stop.

        Raises:
            Stopped: after the state is on the disk.
            StorageFailed: if a checkpoint could not be written.
        """
        stop = self._context.stop
        if not self._context.peers.is_chief:
            stop.check()
            return
        if stop.is_asked:
            self.save(state())
            self.finish()
            stop.check()
        is_time = time.monotonic() - self._saved_at >= self._context.saving.every_s
        if is_time and (self._writing is None or self._writing.done()):
            self.save(state())

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint in a thread, on the chief only. The arrays must not change any more.

        Raises:
            StorageFailed: if the checkpoint before this one could not be written.
        """
        if not self._context.peers.is_chief:
            return
        self.finish()
        self._saved_at = time.monotonic()
        self._writing = self._thread.submit(self._write, state)

    def finish(self) -> None:
        """Wait until the last saved checkpoint is on the disk. Raises: StorageFailed."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, state: TrainState) -> None:
        workdir = self._context.workdir
        temporary = workdir.temporary()
        with storage_errors(self._folder, sum(array.nbytes for array in state.arrays.values())):
            temporary.mkdir(parents=True)
            try:
                self._fill(temporary, state)
                sync_all(temporary)
                new = self._folder / f"{state.step:010d}-{digest_of_folder(temporary)}"
                with workdir.held():
                    _put_in_place(temporary, new)
                sync(self._folder)
            finally:
                remove_tree(temporary)
            self._made.add(new)
            self._mine = [*(folder for folder in self._mine if folder != new), new][-_KEPT:]
            with workdir.held():
                for old in set(self._folder.glob("[0-9]*")) - set(self._mine):
                    self._remove(old)
        workdir.commit()
        self._context.stop.note_saved(f"everything up to step {state.step:,}")
        self._context.telemetry.event("checkpoint", stage=self._stage, step=state.step)

    def _fill(self, folder: Path, state: TrainState) -> None:
        with (folder / "arrays.npy").open("wb") as file:  # No .npz, which would compute another checksum of all arrays.
            for array in state.arrays.values():
                _append(file, array)
        rest = {"step": state.step, "arrays": list(state.arrays), "notes": state.notes, "made_from": self._made_from}
        (folder / "state.json").write_text(json.dumps(rest))

    def _remove(self, folder: Path) -> None:
        """Remove a checkpoint. A damaged one stays, and one with other files in its folder."""
        names = {path.name for path in folder.iterdir()}
        is_own = folder in self._made or digest_of_folder(folder) == folder.name.partition("-")[2]
        if is_own and names == set(_FILES):
            temporary = self._context.workdir.temporary()
            temporary.parent.mkdir(exist_ok=True)
            os.replace(folder, temporary)
            remove_tree(temporary)

    def _tell(self, text: str) -> None:
        self._context.telemetry.line(f"  {self._stage}: {text}")


def _put_in_place(built: Path, final: Path) -> None:
    """Move a built checkpoint to its final name. If there is a checkpoint with that name, replace its files."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        for name in _FILES:
            os.replace(built / name, final / name)
    else:
        os.replace(built, final)


def _append(file: BinaryIO, array: np.ndarray) -> None:
    """Append an array to a .npy file. `numpy.save` writes without Python's file object, so its errors lack the cause."""
    array = np.asarray(array, order="C")
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.data)


def _read(folder: Path) -> tuple[dict[str, str], TrainState] | None:
    """Return the `made_from` of a checkpoint and its state; None if its digest is wrong."""
    if digest_of_folder(folder) != folder.name.partition("-")[2]:
        return None
    rest = json.loads((folder / "state.json").read_text())
    with (folder / "arrays.npy").open("rb") as file:
        arrays = {name: np.load(file, allow_pickle=False) for name in rest["arrays"]}
    return rest["made_from"], TrainState(rest["step"], arrays, rest["notes"])
