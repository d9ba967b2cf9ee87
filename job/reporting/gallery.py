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
from job.reporting.summaries import Pictured
from job.storage.files import storage_errors
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore

TILE_PX = 112
_GAP_PX = 4
_PHOTOS_IN_STRIP = 8
# Heatmaps have colours from black over red to yellow.
_HEATS = (0.0, 0.25, 0.5, 0.75, 1.0)
_COLOURS = np.asarray([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32)  # "inferno".
_STRENGTH = 0.55  # Of the colour against the photo.


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


def surest(is_one_T: np.ndarray, predicted: Predicted, count: int) -> np.ndarray:
    """Return the positions of the `count` most confident predictions among those of the photos that `is_one_T` flags."""
    found = np.flatnonzero(is_one_T)
    return found[np.argsort(-predicted.confidence_N[found], kind="stable")][:count]


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


def with_heatmap(photo_SSD: np.ndarray, heatmap_GG: np.ndarray, side_px: int) -> Image.Image:
    """Return a picture, `side_px` wide, of a photo, uint8 (S, S, 3), in grey under its heatmap, with values from 0 on."""
    size, largest = (side_px, side_px), float(heatmap_GG.max())
    scaled_GG = heatmap_GG.astype(np.float32) / largest if largest > 0 else np.zeros(heatmap_GG.shape, np.float32)
    heat_SS = np.asarray(Image.fromarray(scaled_GG).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colour_SSD = np.stack([np.interp(heat_SS, _HEATS, channel) for channel in _COLOURS.T], axis=-1)
    grey_SS = np.asarray(Image.fromarray(photo_SSD).convert("L").resize(size, Image.Resampling.LANCZOS))
    blended_SSD = (1 - _STRENGTH) * grey_SS[..., None] + _STRENGTH * colour_SSD
    return Image.fromarray(blended_SSD.astype(np.uint8))
