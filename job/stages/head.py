"""head: train a new classifier on the features, for a path of regularisation strengths; validation chooses one."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from sklearn.metrics import log_loss

from job.config import HeadConfig
from job.context import Context
from job.data.examples import Examples
from job.data.stores import StoredViews
from job.model.heads import COARSE, Head, class_weights, regression_on_views, smoothed_one_hot

ARRAYS = "stages/head/head.npz"
SUMMARY = "stages/head/head.json"
_WORSE_BEFORE_STOP = 2


@dataclass(frozen=True)
class ChosenHead:
    """The head, the strength `c` that validation chose for it, and one entry for each strength that was solved."""

    head: Head
    c: float
    path: list[dict[str, Any]]

    @classmethod
    def load(cls, context: Context) -> Self:
        summary = context.workdir.read_json(SUMMARY)
        with np.load(context.workdir.path(ARRAYS), allow_pickle=False) as arrays:
            head = Head(arrays["kernel_DC"], arrays["bias_C"])
        return cls(head, summary["c"], summary["path"])


@dataclass(frozen=True)
class _Tried:
    c: float
    val_log_loss: float
    val_accuracy: float
    num_iterations: int
    converged: bool


def head(config: HeadConfig, *, examples: Examples, features: StoredViews, context: Context) -> ChosenHead:
    """
    Strengths are solved from the strongest regularisation on, each from the solution before it, and no further once
    validation has become worse twice in a row; the chosen one is then solved to the end.
    """
    num_classes = len(examples.class_names)
    train = examples.in_store_order("train")
    labels_T = examples.labels[train]
    weights_T = class_weights(labels_T, num_classes, config.class_weight)
    targets_TC = smoothed_one_hot(labels_T, num_classes, 0.0)
    regression = regression_on_views(features, examples["row"][train], targets_TC, weights_T)
    val = examples.of("val")
    val_features, val_labels = features.plain.rows(examples["row"][val]), examples.labels[val]
    current = Head.zeros(features.plain.row_shape[0], num_classes)
    tried: list[tuple[_Tried, Head]] = []
    with context.telemetry.progress("head", len(config.c_grid), "strengths") as progress:
        for c in sorted(config.c_grid):
            context.stop.check()
            solution = regression.solve(c, current, config.max_iterations, tolerance=COARSE, on_iteration=context.stop.check)
            current = solution.head
            probabilities = current.probabilities(val_features)
            loss = float(log_loss(val_labels, probabilities, labels=range(num_classes)))
            accuracy = float((probabilities.argmax(1) == val_labels).mean())
            tried.append((_Tried(c, loss, accuracy, solution.num_iterations, solution.converged), current))
            context.telemetry.scalar("head/val_log_loss", loss, len(tried))
            progress.advance()
            best, _ = min(tried, key=lambda t: t[0].val_log_loss)
            if len(tried) - [t for t, _ in tried].index(best) > _WORSE_BEFORE_STOP:
                break
    best, coarse = min(tried, key=lambda t: t[0].val_log_loss)
    chosen = regression.solve(best.c, coarse, config.max_iterations, on_iteration=context.stop.check).head
    path = [asdict(t) for t, _ in tried]
    with context.workdir.writing(ARRAYS) as file, file.open("wb") as stream:
        np.savez(stream, kernel_DC=chosen.kernel_DC, bias_C=chosen.bias_C)
    context.workdir.write_json(SUMMARY, {"c": best.c, "path": path})
    return ChosenHead(chosen, best.c, path)
