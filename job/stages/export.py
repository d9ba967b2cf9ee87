"""export: save the shipped model as SavedModel and .keras, and publish it if it agrees with what was measured."""

import errno
import importlib.metadata
import inspect
import json
import os
import pickle
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from job.data.examples import Examples
from job.decoding.rules import DecodeRules
from job.errors import Diverged, GateNotMet
from job.measure import accepted
from job.measure.models import ShippedModel
from job.measure.predictions import Measured
from job.model.familiarity import Acceptance
from job.runtime.children import ask, start
from job.runtime.context import Context
from job.sections import ExportConfig, IntakeConfig
from job.serving import parity, preprocess
from job.serving.parity import Parity
from job.sources.base import Entry, Source
from job.storage.files import digest_of_file, storage_failed
from job.stores.arrays import ArrayStore
from job.version import __version__

if TYPE_CHECKING:
    import keras

    from job.serving.graph_decode import Limits

MODEL = "stages/export/model"
PARITY = "stages/export/parity.json"
_NUMBERS = re.compile("^IMAGE_SIZE, RESIZE, BIT_DEPTH = .*$", re.MULTILINE)


def export(
    config: ExportConfig,
    intake: IntakeConfig,
    *,
    bit_depth: int,
    examples: Examples,
    images: ArrayStore,
    source: Source,
    entries: Mapping[str, Entry],
    shipped: ShippedModel,
    context: Context,
) -> None:
    """Save the shipped model, check it in a fresh process, and publish it.

    `bit_depth` is that of the data set. `entries` are the source's entries by path.

    Raises:
        Diverged: if a weight is not finite.
        GateNotMet: if the exported model disagrees with what was measured. Nothing is published then.
        StorageFailed, UsageError: if the photos cannot be read again for this check.
    """
    from job.serving.graph_decode import Limits  # It imports TensorFlow.

    classifier = shipped.classifier
    _check_numbers(classifier)
    rules = DecodeRules.of(intake, bit_depth)
    limits = Limits(rules.max_pixels, rules.min_side_px, rules.max_aspect_ratio)

    def build(folder: Path) -> Parity:
        _save(classifier, folder, rules, examples.class_names, limits)
        (folder / "preprocess.py").write_text(preprocessing(rules))
        context.stop.check()
        result = _check_parity(
            checker, config, folder, rules, shipped.acceptance, examples, images, source, entries, context
        )
        (folder / "parity.json").write_text(json.dumps(result, indent=2) + "\n")
        card = _described(folder, rules, limits, examples, shipped, result)
        (folder / "model.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if not result["agrees"]:
            context.workdir.write_json(PARITY, result)
            raise GateNotMet(
                f"The exported model disagrees with what was measured: {'; '.join(result['faults'])}. "
                f"Nothing was published; the numbers are in {context.workdir.shown(PARITY)}."
            )
        return result

    with start(parity.__name__) as checker:  # It loads TensorFlow's library while this process saves the model.
        try:
            with context.workdir.writing_folder(MODEL) as folder:
                result = build(folder)
        finally:
            checker.kill()
    context.workdir.write_json(PARITY, result)


def preprocessing(rules: DecodeRules) -> str:
    """Return the text of model/preprocess.py: that of `job.serving.preprocess`, with the numbers of these rules."""
    numbers = f'IMAGE_SIZE, RESIZE, BIT_DEPTH = {rules.image_size}, "{rules.resize}", {rules.bit_depth}'
    return _NUMBERS.sub(numbers, inspect.getsource(preprocess), count=1)


def _check_numbers(classifier: "keras.Model") -> None:
    """Raise Diverged if a weight is not finite."""
    bad = [v.path for v in classifier.variables if not np.isfinite(np.asarray(v)).all()]
    if bad:
        raise Diverged(
            f"{len(bad)} variables of the model contain numbers that are not finite; the first one is {bad[0]}. Nothing is "
            "exported. Check the weights of the backbone, or lower fine_tune.learning_rate."
        )


def _save(
    classifier: "keras.Model", folder: Path, rules: DecodeRules, class_names: tuple[str, ...], limits: "Limits"
) -> None:
    """Write the model in both forms, as a SavedModel and for Keras. Raises: StorageFailed."""
    from job.serving.graph import save

    with _tensorflows_storage_errors(folder, sum(4 * int(np.prod(v.shape)) for v in classifier.variables)):
        save(
            classifier,
            folder,
            image_size=rules.image_size,
            resize=rules.resize,
            class_names=class_names,
            limits=limits,
            bit_depth=rules.bit_depth,
        )
        classifier.save(folder / "model.keras")


@contextmanager
def _tensorflows_storage_errors(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn errors of TensorFlow and HDF5 about a full or failing disk into StorageFailed. They quote the system's text."""
    try:
        yield
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            if os.strerror(number) in str(error):
                raise storage_failed(OSError(number, os.strerror(number)), folder, 2 * needed_bytes) from error
        raise


def _check_parity(
    checker: subprocess.Popen[str],
    config: ExportConfig,
    folder: Path,
    rules: DecodeRules,
    acceptance: Acceptance,
    examples: Examples,
    images: ArrayStore,
    source: Source,
    entries: Mapping[str, Entry],
    context: Context,
) -> Parity:
    from job.serving.graph import tensors

    measured = Measured.read(context.workdir, config.parity_photos)
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos.pickle"
        photos.write_bytes(pickle.dumps((measured.outputs, source, [entries[path] for path in measured.paths])))
        request = parity.Request(
            model=str(folder),
            tensors=tensors(folder),
            images=str(images.index_file),
            rows=examples.rows_of(measured.paths),
            photos=str(photos),
            rules=asdict(rules),
            limits=acceptance.limits,
        )
        result = cast(Parity, ask(checker, asdict(request), "The parity check", context.stop))
    faults = _faults(config, result)
    return {**result, "faults": faults, "agrees": not faults}


def _faults(config: ExportConfig, result: Parity) -> list[str]:
    arrays, by_bytes, exif = result["arrays"], result["bytes"], result["exif"]
    faults = []
    if not arrays["largest_difference"] <= arrays["tolerance"]:
        faults.append(f"probabilities from the same pixels differ by {arrays['largest_difference']:.2g}")
    if by_bytes["changed_labels_with_clear_margin"]:
        faults.append(f"{by_bytes['changed_labels_with_clear_margin']} confident labels change when predicted from bytes")
    if by_bytes["changed_labels"] > config.max_changed_fraction * by_bytes["num_photos"]:
        faults.append(f"{by_bytes['changed_labels']} of {by_bytes['num_photos']} labels change when predicted from bytes")
    faults += accepted.faults(arrays)
    if by_bytes["changed_accepted"] > config.max_changed_fraction * by_bytes["num_photos"]:
        faults.append(f"{by_bytes['changed_accepted']} photos are accepted from bytes and not from pixels, or reverse")
    if not exif["largest_difference"] <= exif["tolerance"]:
        faults.append("the EXIF orientation is ignored")
    return faults


def _described(
    folder: Path, rules: DecodeRules, limits: "Limits", examples: Examples, shipped: ShippedModel, found: Parity
) -> dict[str, object]:
    """Return the content of model.json: what the model takes and gives, how it was made, and the digests of its files."""
    from job.serving.graph import OUTPUTS, tensors
    from job.serving.graph_decode import FORMATS

    signatures = tensors(folder)
    given = {name for signature in signatures.values() for name in signature}
    held_out = {name: found["bytes"][name] for name in ("num_photos", "not_decodable_in_graph", "notice")}
    return {
        "schema": 1,
        "class_names": list(examples.class_names),
        "image_size": rules.image_size,
        "resize": rules.resize,
        "backbone": shipped.network.config.name,
        "bit_depth": rules.bit_depth,
        "decoder": {name: getattr(rules, name) for name in ("max_pixels", "min_side_px", "max_aspect_ratio")},
        "signatures": {
            name: "image_bytes: string (N)" if "image_bytes" in signature else "uint8 (N, size, size, 3)"
            for name, signature in signatures.items()
        },
        "outputs": {name: text for name, text in OUTPUTS.items() if name in given},
        "acceptance": {**shipped.acceptance.limits, "target_precision": shipped.acceptance.target_precision},
        # What `serving_default` decodes. Other pictures are not `valid`; see docs/security.md.
        "image_bytes": {"formats": list(FORMATS), "limits": asdict(limits), "held_out": held_out},
        "temperature": shipped.calibration.temperature,
        "class_offsets": shipped.calibration.offsets_C.tolist(),
        "versions": {
            "transfer-job": __version__,
            **{p: importlib.metadata.version(p) for p in ("keras", "numpy", "pillow")},
        },
        "sha256": {p.relative_to(folder).as_posix(): digest_of_file(p) for p in sorted(folder.rglob("*")) if p.is_file()},
        "shipped": "head" if shipped.tuned is None else "fine_tuned",
        "mirrors": shipped.mirrors,
    }
