"""Photos and settings of the command `demo`: the whole pipeline on drawn pictures."""

from pathlib import Path

from job.config import Config
from job.demo.drawings import draw
from job.storage.workdir import Workdir

_PHOTOS, _SEED = "photos", "seed.json"


def draw_photos(workdir: Workdir, seed: int) -> Path:
    """Draw the pictures, unless those of this seed already exist. Return their folder."""
    if workdir.read_json(_SEED) != {"seed": seed} or not workdir.exists(_PHOTOS):
        with workdir.writing_folder(_PHOTOS) as photos:
            draw(photos, seed=seed)
        workdir.write_json(_SEED, {"seed": seed})
    return workdir.path(_PHOTOS)


def config(seed: int) -> Config:
    """Return the settings: a small backbone, mostly trained, from random weights, because nothing may be downloaded."""
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
