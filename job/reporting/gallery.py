"""Thumbnails of stored photos for the report. They remain when the cache is deleted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from job.data.examples import Examples
from job.measure.predicted import Predicted
from job.reporting.data_summaries import Copies, Crossings
from job.reporting.heatmaps import with_heatmap
from job.reporting.summaries import Pictured
from job.storage.files import storage_errors
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore

TILE_PX = 112
_GAP_PX = 4
_PHOTOS_IN_STRIP = 8


class Gallery:
    """Pictures in a folder, which appears when all are drawn. Methods return names relative to the output directory."""

    def __init__(self, built: Path, folder: str, images: ArrayStore) -> None:
        self._built, self._folder, self._images = built, folder, images

    @classmethod
    @contextmanager
    def drawing(cls, workdir: Workdir, folder: str, images: ArrayStore) -> Iterator[Self]:
        """Yield a gallery to fill. If the block ends without an error, it replaces the previous gallery."""
        with workdir.writing_folder(folder) as built:
            yield cls(built, folder, images)

    def add(self, name: str, draw: Callable[[Path], None]) -> str:
        """Add the picture that `draw` writes to the path that it is given."""
        with storage_errors(self._built / name):
            draw(self._built / name)
        return f"{self._folder}/{name}"

    def photo(self, row: int, name: str) -> str:
        """Add one photo, given by its row in the image store."""
        return self.sheet([row], name, columns=1)

    def sheet(self, rows: Sequence[int] | np.ndarray, name: str, columns: int, side_px: int = TILE_PX) -> str:
        """Add photos in rows of `columns` on a gray background, each `side_px` wide."""
        photos, step = self._images.rows(rows), side_px + _GAP_PX
        size = (min(columns, len(photos)) * step - _GAP_PX, -(-len(photos) // columns) * step - _GAP_PX)
        drawn = Image.new("RGB", size, (128, 128, 128))
        for k, photo in enumerate(photos):
            tile = Image.fromarray(photo).resize((side_px, side_px), Image.Resampling.LANCZOS)
            drawn.paste(tile, ((k % columns) * step, (k // columns) * step))
        return self.add(f"{name}.jpg", lambda path: drawn.save(path, "JPEG", quality=85))

    def heatmap(self, row: int, heatmap_GG: np.ndarray, name: str) -> str:
        """Add one photo under its heatmap."""
        drawn = with_heatmap(self._images.rows([row])[0], heatmap_GG, TILE_PX)
        return self.add(f"{name}.jpg", lambda path: drawn.save(path, "JPEG", quality=75))

    def copies(self, examples: Examples, indices: Sequence[int], name: str) -> Copies:
        """Describe a group of copies, and draw the first of them side by side."""
        columns = ("path", "label", "given_split", "split", "status", "reason")
        return {
            "photos": [{column: examples[column][i] for column in columns} for i in indices],
            "exact": len({examples["sha256"][i] for i in indices}) == 1,
            **crossings(examples, indices),
            "strip": self.sheet(examples["row"][list(indices[:_PHOTOS_IN_STRIP])], name, _PHOTOS_IN_STRIP),
        }


def surest(
    folder: str,
    is_one_T: np.ndarray,
    count: int,
    examples: Examples,
    predicted: Predicted,
    images: ArrayStore,
    workdir: Workdir,
) -> list[Pictured]:
    """Describe the `count` most confident predictions among those of the T test photos that `is_one_T` flags.

    The photos are drawn in `folder`.
    """
    found = np.flatnonzero(is_one_T)
    order = found[np.argsort(-predicted.confidence_N[found], kind="stable")]
    return pictured(folder, order[:count], examples, predicted, images, workdir)


def pictured(
    folder: str, chosen: np.ndarray, examples: Examples, predicted: Predicted, images: ArrayStore, workdir: Workdir
) -> list[Pictured]:
    """Describe the predictions for these test photos, given by their positions among them, and draw them in `folder`."""
    test = examples.of("test")
    with Gallery.drawing(workdir, folder, images) as gallery:
        return [
            {
                "path": examples["path"][test[k]],
                "label": examples["label"][test[k]],
                "predicted": examples.class_names[predicted.class_N[k]],
                "probability": float(predicted.confidence_N[k]),
                "probability_of_label": float(predicted.of_label_N[k]),
                "thumbnail": gallery.photo(examples["row"][test[k]], f"{number:03d}"),
            }
            for number, k in enumerate(chosen)
        ]


def crossings(examples: Examples, indices: Sequence[int]) -> Crossings:
    """Return what a group of copies crosses: the splits of the job, the splits that the user has given, labels."""
    splits, given, labels = ({examples[c][i] for i in indices} - {None, ""} for c in ("split", "given_split", "label"))
    return {"crosses_splits": len(splits) > 1, "crosses_given": len(given) > 1, "crosses_labels": len(labels) > 1}
