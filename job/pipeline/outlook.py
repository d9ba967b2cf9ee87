"""The seconds that each stage of a run will take, as they are known before it begins.

They are guesses for photos of half a megapixel and a small backbone on CPUs (docs/scale.md), until rates are measured.
"""

from collections.abc import Sequence

from job.pipeline.budget import Budget, percent_before
from job.pipeline.job import Job
from job.pipeline.plan import Step, wanted
from job.pipeline.quality import AUDIT_S_PER_PHOTO, CONVERT_S, HEAD_S_PER_VALUE, LATER_S
from job.runtime.cgroups import usable_cores
from job.runtime.forecast import Forecast
from job.serving.formats.table import FORMATS
from job.storage.workdir import LOG
from job.train.recipe import Recipe

_DECODE_S, _TABLES_S = 2.7e-3, 50e-6  # For each photo, on one core.
_PIXELS_PER_S = 300 * 160**2  # Of forward passes, on one core.
_FEATURE_WIDTH = 1280
_SHARES_LATER = {"evaluate": 0.15, "heatmaps": 0.2, "export": 0.55, "report": 0.1}  # Of the seconds after fine_tune.
_SHARE_ABOVE = {"none": 0.0, "all": 1.0}
_MEASURED = {"extract", "fine_tune"}  # Their seconds depend on the backbone and the device: nothing but a rate tells them.


def outlook(job: Job, steps: Sequence[Step], stop_after: str | None) -> Forecast:
    """Return the forecast of a run that begins."""
    guesses = _guesses(job)
    runs = {step.stage: guesses[step.stage] for step in steps if step.runs and step.stage in wanted(stop_after)}
    forecast = Forecast(runs, _MEASURED & runs.keys(), percent_before(job.workdir.path(LOG)))
    if job.budget:
        take_choice(forecast, job.budget)
    return forecast


def take_choice(forecast: Forecast, budget: Budget) -> None:
    """Take the prediction of the quality that the time budget has chosen, if it has."""
    chosen = budget.chosen
    if chosen is None:
        return
    expected = {"fine_tune": chosen.tuning_s, **{stage: share * chosen.later_s for stage, share in _SHARES_LATER.items()}}
    if budget.settled_s is not None:
        after_s = chosen.later_s + forecast.expected_s.get("convert", 0.0)
        before_s = chosen.seconds - budget.settled_s - chosen.tuning_s - after_s
        expected["extract"] = max(0.0, before_s - sum(forecast.expected_s.get(stage, 0.0) for stage in ("audit", "head")))
    forecast.expect(expected)


def _guesses(job: Job) -> dict[str, float]:
    config, num_photos, cores = job.config, len(job.listing.entries), usable_cores()
    num_train = round(num_photos * (1 - config.split.val_fraction - config.split.test_fraction))
    recipe, unfreeze = Recipe.resolve(config, num_examples=num_train), config.backbone.unfreeze
    share = unfreeze if isinstance(unfreeze, float) else _SHARE_ABOVE.get(unfreeze, 0.5)
    pass_s = config.intake.image_size**2 / (_PIXELS_PER_S * cores)
    values = recipe.views * num_train * _FEATURE_WIDTH * len(job.listing.class_names)
    return {
        "intake": 0.5 + num_photos * _DECODE_S / cores,
        "split": 0.5 + num_photos * _TABLES_S,
        "explore": 1.0,
        "extract": 3.0 + (num_photos + (recipe.views - 1) * num_train) * pass_s,
        "audit": 2.0 + num_photos * AUDIT_S_PER_PHOTO,
        "head": 1.5 + values * HEAD_S_PER_VALUE,
        "fine_tune": 3.0 + recipe.forward_passes(num_train, share, stored=True) * pass_s,
        "convert": CONVERT_S * len(FORMATS.keys() & set(config.export.formats)),
        **{stage: share * LATER_S for stage, share in _SHARES_LATER.items()},
    }
