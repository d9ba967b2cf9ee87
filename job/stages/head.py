"""head: train a new last layer on the features with several regularisation strengths; validation chooses one."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from sklearn.metrics import log_loss

from job.config import HeadConfig
from job.data.examples import Examples
from job.model.heads import COARSE, Head, class_weights, regression_on_views, smoothed_one_hot
from job.reporting.summaries import HeadPath, TriedStrength
from job.runtime.context import Context
from job.stores.arrays import StoredViews
from job.train.checkpoint import Checkpoints, TrainState, numbered

ARRAYS = "stages/head/head.npz"
SUMMARY = "stages/head/head.json"
_WORSE_BEFORE_STOP = 2


@dataclass(frozen=True)
class ChosenHead:
    """The head, the strength `c` that validation chose for it, and an entry for each strength that was tried."""

    head: Head
    c: float
    path: list[TriedStrength]

    @classmethod
    def load(cls, context: Context) -> Self:
        summary: HeadPath = context.workdir.read_json(SUMMARY)
        with np.load(context.workdir.path(ARRAYS), allow_pickle=False) as arrays:
            head = Head(arrays["kernel_DC"], arrays["bias_C"])
        return cls(head, summary["c"], summary["path"])


def head(
    config: HeadConfig, *, examples: Examples, features: StoredViews, checkpoints: Checkpoints, context: Context
) -> ChosenHead:
    """Train heads with regularisation strengths from `c_grid` and return the best one on validation.

    The strongest regularisation comes first, and each solution starts from the one before it. The search ends after two
    strengths without a lower validation log loss. The chosen strength is then solved to full precision.
    """
    num_classes = len(examples.class_names)
    train = examples.in_store_order("train")
    labels_T = examples.labels[train]
    weights_T = class_weights(labels_T, num_classes, config.class_weight)
    targets_TC = smoothed_one_hot(labels_T, num_classes, 0.0)
    regression = regression_on_views(features, examples["row"][train], targets_TC, weights_T)
    val = examples.of("val")
    val_features, val_labels = features.plain.rows(examples["row"][val]), examples.labels[val]
    tried = _restored(checkpoints.newest())
    with checkpoints, context.telemetry.progress("head", len(config.c_grid), "strengths") as progress:

        def on_iteration() -> None:
            checkpoints.offer(lambda: _state(tried))

        for c in sorted(config.c_grid)[len(tried) :]:
            if _is_enough(tried):
                break
            current = tried[-1][1] if tried else Head.zeros(features.plain.row_shape[0], num_classes)
            solution = regression.solve(c, current, config.max_iterations, tolerance=COARSE, on_iteration=on_iteration)
            current = solution.head
            probabilities = current.probabilities(val_features)
            loss = float(log_loss(val_labels, probabilities, labels=range(num_classes)))
            accuracy = float((probabilities.argmax(1) == val_labels).mean())
            result = TriedStrength(
                c=c,
                val_log_loss=loss,
                val_accuracy=accuracy,
                num_iterations=solution.num_iterations,
                converged=solution.converged,
            )
            tried.append((result, current))
            context.telemetry.scalar("head/val_log_loss", loss, len(tried))
            progress.advance()
        best, coarse = min(tried, key=lambda t: t[0]["val_log_loss"])
        chosen = regression.solve(best["c"], coarse, config.max_iterations, on_iteration=on_iteration).head
    path = [t for t, _ in tried]
    with context.workdir.writing(ARRAYS) as file, file.open("wb") as stream:
        np.savez(stream, kernel_DC=chosen.kernel_DC, bias_C=chosen.bias_C)
    context.workdir.write_json(SUMMARY, HeadPath(c=best["c"], path=path))
    return ChosenHead(chosen, best["c"], path)


def _is_enough(tried: list[tuple[TriedStrength, Head]]) -> bool:
    losses = [t["val_log_loss"] for t, _ in tried]
    return bool(losses) and len(losses) - losses.index(min(losses)) > _WORSE_BEFORE_STOP


def _state(tried: list[tuple[TriedStrength, Head]]) -> TrainState:
    kernels, biases = [head.kernel_DC for _, head in tried], [head.bias_C for _, head in tried]
    arrays = {**numbered("kernel_DC", kernels), **numbered("bias_C", biases)}
    return TrainState(len(tried), arrays, {"path": [t for t, _ in tried]})


def _restored(state: TrainState | None) -> list[tuple[TriedStrength, Head]]:
    if state is None:
        return []
    heads = map(Head, state.listed("kernel_DC"), state.listed("bias_C"))
    return list(zip(state.notes["path"], heads, strict=True))
