"""Scores of fine-tuned models that differ only by the seed of their training."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from job.measure.metrics import log_loss, log_losses, preferred
from job.measure.predicted import Predicted

MEAN_OF_WEIGHTS = "mean of the weights"


class Seeds(TypedDict):
    """Scores of each seed and, if there are several, of the mean of their weights, by name.

    A score is `val_accuracy`, `val_log_loss`, `test_accuracy` or `test_log_loss`. `chosen` names the fine-tuned model.
    `mean` and `spread`, a standard deviation, are over the seeds. `spread` is None if there is only one.
    """

    chosen: str
    models: dict[str, dict[str, float]]
    mean: dict[str, float]
    spread: dict[str, float] | None


def compared_seeds(predicted: Mapping[str, Predicted], labels_N: np.ndarray, num_val: int) -> Seeds:
    """Compare models on N photos, of which the first `num_val` are validation photos and the others are held out.

    `predicted` is by name: the mean of the weights is called `MEAN_OF_WEIGHTS`, and the others are seeds. The mean is chosen
    unless a seed is clearly better on the validation photos (docs/decisions/0033-seeds.md).
    """
    models = {name: _scores(found, labels_N, num_val) for name, found in predicted.items()}
    of_seeds = [scores for name, scores in models.items() if name != MEAN_OF_WEIGHTS]
    by_score = {name: [one[name] for one in of_seeds] for name in of_seeds[0]}
    return Seeds(
        chosen=preferred({name: log_losses(predicted[name].of_label_N[:num_val]) for name in reversed(list(models))}),
        models=models,
        mean={name: float(np.mean(values)) for name, values in by_score.items()},
        spread={name: float(np.std(values, ddof=1)) for name, values in by_score.items()} if len(of_seeds) > 1 else None,
    )


def _scores(found: Predicted, labels_N: np.ndarray, num_val: int) -> dict[str, float]:
    correct_N = found.class_N == labels_N
    return {
        "val_accuracy": float(correct_N[:num_val].mean()),
        "val_log_loss": log_loss(found.of_label_N[:num_val]),
        "test_accuracy": float(correct_N[num_val:].mean()),
        "test_log_loss": log_loss(found.of_label_N[num_val:]),
    }
