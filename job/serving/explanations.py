"""Heatmaps of the photos that predict labels: a folder with a PNG for each photo, or one HTML page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from job.cluster.replicas import Replicas
from job.cluster.tensorflow import import_tensorflow
from job.errors import UsageError
from job.reporting.charts import as_data_uri
from job.reporting.gallery import with_heatmap
from job.reporting.rendering import rendered
from job.runtime.telemetry import Telemetry
from job.serving import folder as model_folder
from job.serving.answers import try_to_write
from job.serving.folder import ModelCard
from job.serving.pages import check_page, refuse_output, write_page
from job.storage.bucket.objects import is_remote
from job.storage.claim import is_of_a_system
from job.storage.files import beside, digest_of_file, storage_errors, writing
from job.text.untrusted import csv_of
from job.train.feed import all_rows, run_batches

INDEX = "heatmaps.csv"
_COLUMNS = ("file", "path", "label", "probability", "sha256")
_OPTION, _COMMAND = "--explain", "predict"
_BATCH_SIZE, _PAGE_PX, _SHOWN = 32, 168, 3
_NOT_IN_NAMES = re.compile("[^A-Za-z0-9._-]+")


class _Explained(TypedDict):
    path: str
    label: str
    probability: float
    picture: bytes


class Explanations:
    """Heatmaps of up to `count` photos, to be written to `place`, a folder or an HTML page."""

    def __init__(self, place: str, count: int, *, model: str, out: str) -> None:
        """Check the place before any work. Nothing is left there.

        Raises:
            UsageError: if it is in a bucket, in the folder of the model, or in the output of a run; if `out` lies in it; or
                if it has files that predict did not write, or that were changed since.
            StorageFailed.
        """
        self._place, self._count = place, count
        self._wanted: frozenset[str] = frozenset()
        self._found: list[_Explained] = []
        if is_remote(place):
            raise UsageError(f"{_OPTION} {place}: give a folder on this machine, or a name that ends in .html.")
        if model_folder.is_below(place, model):
            raise UsageError(
                f"{_OPTION} {place} lies in --model {model}, which predict does not change. Give another place."
            )
        if self._is_page:
            check_page(place, _OPTION, _COMMAND)
            return
        if not is_remote(out) and Path(out).resolve().is_relative_to(Path(place).resolve()):
            raise UsageError(f"{_OPTION} {place}: --out {out} lies in it. Give a folder of its own.")
        refuse_output(f"{place}/{INDEX}", _OPTION)
        self._own_files()
        try_to_write(f"{place}/{INDEX}", _OPTION)

    @property
    def _is_page(self) -> bool:
        return self._place.endswith(".html")

    def begin(
        self, paths: Sequence[str], model: str, model_sha256: str | None, card: ModelCard, telemetry: Telemetry
    ) -> None:
        """Load model.keras, which must belong to `card`, and take the first of the photos at these paths.

        Raises:
            UsageError: if the model is incomplete, damaged, or another one than `card` describes.
        """
        from job.model.gradcam import grad_cam

        tf = import_tensorflow()
        import keras

        with model_folder.verified(model, model_sha256) as (folder, found):
            if found != card:
                raise UsageError(f"--model {model} is being replaced. Start the same command again.")
            classifier = keras.models.load_model(folder / "model.keras")
        self._replicas, self._telemetry = Replicas(tf.distribute.get_strategy()), telemetry
        self._step = self._replicas.compiled(grad_cam(classifier))
        self._class_names, self._wanted = card.class_names, frozenset(paths[: self._count])
        if len(paths) > self._count:
            telemetry.line(
                f"Heatmaps of the first {self._count:,} of {len(paths):,} photos: give --explain-photos for more."
            )

    def add(self, paths: Sequence[str], pixels_NSSD: np.ndarray) -> None:
        """Make heatmaps for those of the decoded photos that were chosen."""
        chosen = [k for k, path in enumerate(paths) if path in self._wanted]
        if not chosen:
            return
        photos_KSSD = pixels_NSSD[chosen]
        replicas, step = self._replicas, self._step
        batches = run_batches(replicas, step, lambda k: (photos_KSSD[k],), len(chosen), _BATCH_SIZE, self._telemetry)
        for k, heatmap_GG, probabilities_C in zip(chosen, *all_rows(batches), strict=True):
            best = int(probabilities_C.argmax())
            label, probability = self._class_names[best], float(probabilities_C[best])
            picture = self._picture(pixels_NSSD[k], heatmap_GG)
            self._found.append({"path": paths[k], "label": label, "probability": probability, "picture": picture})

    def write(self) -> None:
        """Write the pictures. Those that an earlier call wrote to the place are replaced. Raises as `__init__` does."""
        self._found.sort(key=lambda photo: photo["path"])
        if self._is_page:
            photos = [{**photo, "picture": as_data_uri(".jpg", photo["picture"])} for photo in self._found]
            write_page(self._place, rendered("explained.html.j2", title="Heatmaps", photos=photos), _OPTION, _COMMAND)
            return
        names = [f"{k:05d}-{_NOT_IN_NAMES.sub('_', Path(x['path']).stem)[:80]}.png" for k, x in enumerate(self._found, 1)]
        rows = [
            (name, photo["path"], photo["label"], round(photo["probability"], 6), sha256(photo["picture"]).hexdigest())
            for name, photo in zip(names, self._found, strict=True)
        ]
        folder = Path(self._place).resolve()
        for name in self._own_files():
            (folder / name).unlink()
        # The index comes first: after an interruption, the next call knows the pictures that are there.
        contents = {INDEX: csv_of([_COLUMNS, *rows])}
        contents |= {name: photo["picture"] for name, photo in zip(names, self._found, strict=True)}
        for name, content in contents.items():
            with writing(folder / name, beside(folder / name), len(content)) as part:
                part.write_bytes(content)

    def _own_files(self) -> list[str]:
        """Return the names of the pictures in the folder. Raises: UsageError, if one is not from an earlier call."""
        folder = Path(self._place).resolve()
        with storage_errors(folder):
            if not folder.exists():
                return []
            if not folder.is_dir():
                raise UsageError(f"{_OPTION} {self._place}: this is a file. Give a folder, or a name that ends in .html.")
            digests = _listed(folder / INDEX)
            names = sorted(path.name for path in folder.iterdir() if not is_of_a_system(path.name))
            pictures = [name for name in names if name != INDEX or not digests]
            foreign = [n for n in pictures if not (folder / n).is_file() or digest_of_file(folder / n) != digests.get(n)]
        if foreign:
            raise UsageError(
                f"{_OPTION} {self._place} holds files that predict did not write, or that were changed since: "
                f"{', '.join(foreign[:_SHOWN])}. Give a folder that is empty or does not exist."
            )
        return pictures

    def _picture(self, photo_SSD: np.ndarray, heatmap_GG: np.ndarray) -> bytes:
        """Return a photo and its heatmap, side by side, as an encoded picture."""
        side = _PAGE_PX if self._is_page else len(photo_SSD)
        drawn, encoded = Image.new("RGB", (2 * side, side)), io.BytesIO()
        drawn.paste(Image.fromarray(photo_SSD).resize((side, side), Image.Resampling.LANCZOS), (0, 0))
        drawn.paste(with_heatmap(photo_SSD, heatmap_GG, side), (side, 0))
        drawn.save(encoded, "JPEG" if self._is_page else "PNG", quality=85)
        return encoded.getvalue()


def _listed(index: Path) -> dict[str, str]:
    """Return the names and digests of the pictures in an index; none if predict did not write it."""
    if not index.is_file():
        return {}
    with suppress(csv.Error):
        rows = list(csv.reader(io.StringIO(index.read_text(encoding="utf-8", errors="replace"))))
        return {row[0]: row[-1] for row in rows[1:] if row} if rows and tuple(rows[0]) == _COLUMNS else {}
    return {}
