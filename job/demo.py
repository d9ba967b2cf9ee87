"""The demo: the same pipeline on drawn pictures."""

import shutil
from pathlib import Path

from job.config import Config
from job.drawings import draw
from job.storage.workdir import Workdir

_MARK = "seed.json"


def draw_photos(out: Path, seed: int) -> Path:
    """Draw the pictures into `out`/photos unless they are there; returns that folder."""
    workdir = Workdir(out)
    photos = out / "photos"
    if workdir.read_json(_MARK) != {"seed": seed}:
        shutil.rmtree(photos, ignore_errors=True)
        photos.mkdir(parents=True)
        draw(photos, seed=seed)
        workdir.write_json(_MARK, {"seed": seed})
    return photos


def config(seed: int) -> Config:
    """A small backbone with random weights, because nothing may be downloaded; most of it is therefore trained."""
    return Config.load(
        None,
        (),
        {
            "seed": seed,
            "intake.image_size": 96,
            "backbone.name": "mobilenet_v2",
            "backbone.alpha": 0.35,
            "backbone.weights": "random",
            "backbone.unfreeze": 0.72,
            "augment.views": 3,
            "fine_tune.learning_rate": 1e-3,
            "fine_tune.global_batch_size": 32,
            "fine_tune.epochs": 14,
        },
    )
