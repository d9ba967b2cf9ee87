"""convert: write the exported model in other formats, and compare each with what was measured, photo by photo."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from subprocess import Popen
from typing import cast

import numpy as np

from job.data.examples import Examples
from job.errors import JobError, Stopped, StorageFailed, TryAgainLater
from job.measure import accepted
from job.measure.metrics import wilson
from job.measure.predictions import Measured
from job.reporting.summaries import Compared, FormatParity
from job.runtime.children import ask, start
from job.runtime.context import Context
from job.sections import ExportConfig
from job.serving.formats import conversion, trial
from job.serving.formats.base import OUTPUTS
from job.serving.formats.table import FORMATS, Format, require
from job.serving.formats.trial import Trial
from job.storage.files import digest_of_file
from job.stores.arrays import ArrayStore
from job.text.numbers import percent

FOLDER = "stages/convert/model"
SUMMARY = "stages/convert/formats.json"
_EXPORTED = "stages/export/model"
_CALIBRATION_PHOTOS = 128  # docs/decisions/0043-formats.md
_TIMED_PHOTOS = 32
_PHOTOS_ARE_GONE = "the stored photos are gone"


def convert(config: ExportConfig, *, examples: Examples, images: ArrayStore | None, context: Context) -> None:
    """Write the formats of `config.formats` beside savedmodel and keras, which are there already, and formats.json.

    `images` are the stored photos; None if they are gone. Then nothing can be compared, and a format that needs training
    photos is not written. A format that disagrees, or that cannot be written, is left out of the model; its numbers have
    the `faults`.

    Raises:
        UsageError: if packages are missing.
        StorageFailed, Stopped, TryAgainLater.
    """
    names, found = [name for name in config.formats if name in FORMATS], dict[str, FormatParity]()
    require(names)
    if names:
        with context.workdir.writing_folder(FOLDER) as folder:
            found = {name: _written(name, folder, config, examples, images, context) for name in names}
            _complete(folder, found, context)
    else:
        context.workdir.remove(FOLDER)
    context.workdir.write_json(SUMMARY, found)


def _written(
    name: str, folder: Path, config: ExportConfig, examples: Examples, images: ArrayStore | None, context: Context
) -> FormatParity:
    """Write a format into the folder, and compare it. Return its numbers. If it has faults, its file is removed again."""
    file = folder / FORMATS[name].file
    context.telemetry.line(f"  {name}: converting")
    try:
        _convert(name, file, examples, images, context)
        found = _compared(name, file, config, examples, images, context)
    except (Stopped, StorageFailed, TryAgainLater):
        raise
    except JobError as error:
        said = error.args[0] if len(error.args) == 1 else f"{error.args[0]} {error.args[-1]}"  # Without a traceback.
        found = FormatParity(file=file.name, file_bytes=0, num_photos=0, compared=None, faults=[said])
    if found["faults"]:
        file.unlink(missing_ok=True)
    context.telemetry.line(f"  {name}: {in_words(found)}")
    return found


def _convert(name: str, file: Path, examples: Examples, images: ArrayStore | None, context: Context) -> None:
    """Convert model.keras in a process of its own. Raises: JobError."""
    rows: list[int] = []
    if FORMATS[name].needs_photos:
        if images is None:
            raise JobError(f"{_PHOTOS_ARE_GONE}, by which the ranges of its numbers are set: run the job again")
        train = examples["row"][examples.of("train")]
        chosen = np.random.default_rng(context.seed).permutation(train)[:_CALIBRATION_PHOTOS]
        rows = sorted(map(int, chosen))
    request = conversion.Request(
        keras=str(context.workdir.path(f"{_EXPORTED}/model.keras")),
        format=name,
        file=str(file),
        class_names=list(examples.class_names),
        images=str(images.index_file) if images is not None else "",
        rows=rows,
    )
    with context.telemetry.spent("building"), _child(conversion.__name__) as child:
        ask(child, asdict(request), f"The conversion to {name}", context.stop)


def _compared(
    name: str, file: Path, config: ExportConfig, examples: Examples, images: ArrayStore | None, context: Context
) -> FormatParity:
    """Run the file on the held-out photos with the runtime of its format, and compare its answers with the measured ones.

    Raises: JobError, if the runtime cannot run it.
    """
    measured = Measured.read(context.workdir, config.parity_photos)
    rows, store = (examples.rows_of(measured.paths), str(images.index_file)) if images is not None else ([], "")

    def run(rows: list[int], scratch: str, *, one_core: bool = False) -> tuple[Trial, dict[str, np.ndarray]]:
        answers = f"{scratch}/answers.npz"
        request = trial.Request(name, str(file), store, rows, answers, one_core)
        with context.telemetry.spent("forward"), _child(trial.__name__) as child:
            answer = ask(child, asdict(request), f"The trial of {name}", context.stop)
        with np.load(answers) as arrays:
            return cast(Trial, answer), dict(arrays)

    with tempfile.TemporaryDirectory() as scratch:
        on_one_core, _ = run(rows[:_TIMED_PHOTOS], scratch, one_core=True)
        on_all, found = run(rows, scratch)
    numbers = FormatParity(file=file.name, file_bytes=file.stat().st_size, num_photos=len(rows), compared=None, faults=[])
    if rows:
        limits = context.workdir.read_json(f"{_EXPORTED}/model.json")["acceptance"]
        answers = compared(FORMATS[name], measured, found, limits, examples.class_names, on_one_core, on_all)
        numbers |= {"compared": answers, "faults": faults(FORMATS[name], answers, len(rows), config)}
    return numbers


def compared(
    row: Format,
    measured: Measured,
    found: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    class_names: Sequence[str],
    on_one_core: Trial,
    on_all: Trial,
) -> Compared:
    """Return how the outputs of a format differ from the measured ones. `limits` are those of acceptance."""
    difference_NC = np.abs(found["probabilities"] - measured.probabilities_NC)
    labels_N = [class_names[k] for k in found["probabilities"].argmax(1)]
    num_correct = sum(map(str.__eq__, labels_N, measured.labels))
    return {
        "largest_difference": float(difference_NC.max()),
        "mean_difference": float(difference_NC.mean()),
        "changed_labels": sum(map(str.__ne__, labels_N, measured.predicted)),
        "accuracy": num_correct / len(labels_N),
        "accuracy_ci95": wilson(num_correct, len(labels_N)),
        "measured_accuracy": sum(map(str.__eq__, measured.predicted, measured.labels)) / len(labels_N),
        **accepted.compared(measured.outputs, found, limits, row.tolerance or 0.0),
        "ms_one_core": on_one_core["ms"],
        "ms_all_cores": on_all["ms"],
        "peak_memory_bytes": on_all["peak_memory_bytes"],
    }


def faults(row: Format, numbers: Compared, num_photos: int, config: ExportConfig) -> list[str]:
    """Return the reasons, in words, why a format must not be published."""
    found = []
    if row.tolerance is not None and not numbers["largest_difference"] <= row.tolerance:
        found.append(f"probabilities differ by up to {numbers['largest_difference']:.2g}; {row.tolerance:g} is allowed")
    if row.tolerance is not None:
        found += accepted.faults(numbers)
    limit = config.max_changed_int8 if row.tolerance is None else config.max_changed_float
    setting = "export.max_changed_int8" if row.tolerance is None else "export.max_changed_float"
    for what, changed in (("labels", numbers["changed_labels"]), ("values of accepted", numbers["changed_accepted"])):
        if changed > limit * num_photos:
            found.append(f"{changed} of {num_photos:,} {what} change; {setting} = {limit:g} is allowed")
    return found


def in_words(found: FormatParity) -> str:
    """Return a sentence about a format, for the log and the last lines of a run."""
    if found["faults"]:
        return f"not published: {'; '.join(found['faults'])}"
    numbers = found["compared"]
    if numbers is None:
        return f"not proven: its runtime loads it, but {_PHOTOS_ARE_GONE}. Run the job again to compare it"
    return (
        f"of {found['num_photos']:,} photos, {numbers['changed_labels']} labels and {numbers['changed_accepted']} values of "
        f"accepted changed, accuracy {percent(numbers['accuracy'])} (measured: {percent(numbers['measured_accuracy'])})"
    )


def _complete(folder: Path, found: Mapping[str, FormatParity], context: Context) -> None:
    """Write parity.json and model.json of the export again, with the formats added."""
    card, parity = (context.workdir.read_json(f"{_EXPORTED}/{name}") for name in ("model.json", "parity.json"))
    (folder / "parity.json").write_text(json.dumps(parity | {"formats": found}, indent=2) + "\n")
    outputs = {name: text for name, text in OUTPUTS.items() if name != "familiarity" or name in card["outputs"]}
    card["formats"] = {
        name: {"file": numbers["file"], "input": "pixels: uint8 (N, size, size, 3)", "outputs": outputs}
        for name, numbers in found.items()
        if not numbers["faults"]
    }
    card["sha256"] |= {path.name: digest_of_file(path) for path in sorted(folder.iterdir())}
    (folder / "model.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _child(module: str) -> Iterator[Popen[str]]:
    with start(module) as child:
        try:
            yield child
        finally:
            child.kill()
