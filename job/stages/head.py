"""head: train a new last layer on the features in several ways; validation chooses one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from scipy.special import log_softmax

from job.data.examples import Examples
from job.data.moments import Moments, parts
from job.measure.calibration import temperature
from job.measure.metrics import preferred
from job.model.heads import Discriminant, Head, class_weights
from job.model.regression import LogisticRegression, Solution
from job.reporting.summaries import HeadPath, Scored, TriedHead, TriedStrength
from job.runtime.context import Context
from job.sections import HeadConfig
from job.stores.views import StoredRows, StoredViews
from job.train.checkpoint import Checkpoints, TrainState, numbered

ARRAYS = "stages/head/head.npz"
SUMMARY = "stages/head/head.json"
_WORSE_BEFORE_STOP = 2
_PATH_PHOTOS = 10_000  # They find the strength that all photos find: docs/decisions/0027-large-sets.md.
_SHRINKAGES = (0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_TEMPERATURE_PHOTOS = 2_000
# With more classes than this, and fewer photos of each, the discriminant alone is as good and far cheaper.
_MANY_CLASSES, _FEW_PHOTOS = 50, 30


@dataclass(frozen=True)
class ChosenHead:
    """The head that validation chose."""

    head: Head

    @classmethod
    def load(cls, context: Context) -> Self:
        with np.load(context.workdir.path(ARRAYS), allow_pickle=False) as arrays:
            return cls(Head(arrays["kernel_DC"], arrays["bias_C"]))


def head(
    config: HeadConfig, *, examples: Examples, features: StoredViews, checkpoints: Checkpoints, context: Context
) -> ChosenHead:
    """Train heads by logistic regression and by discriminant analysis, and return the one that validation chooses.

    The regularisation strength of the regression is chosen on at most 10,000 photos without their augmented views. With
    it, one head is solved on all views and one on the photos alone. With many classes of few photos each, only the
    discriminant is tried.
    """
    train, val, num_classes = examples.in_store_order("train"), examples.of("val"), len(examples.class_names)
    training = _Training(features, examples["row"][train], examples.labels[train], num_classes, config.class_weight)
    rows = StoredRows(features.plain.rows, examples["row"][val], features.plain.row_shape)
    validation = _Validation(rows, examples.labels[val])
    search = _Search(config, training, validation, checkpoints, context)
    is_discriminant_alone = num_classes > _MANY_CLASSES and len(train) < _FEW_PHOTOS * num_classes
    with checkpoints:
        heads = {} if is_discriminant_alone else search.run()
    c = search.c if heads else None
    heads["discriminant"] = _discriminant(training.moments, validation)
    chosen = preferred({kind: validation.judged(tried)[0] for kind, tried in heads.items()})
    with context.workdir.writing(ARRAYS) as file, file.open("wb") as stream:
        np.savez(stream, kernel_DC=heads[chosen].kernel_DC, bias_C=heads[chosen].bias_C)
    tried = [TriedHead(kind=kind, **validation.scores(head)) for kind, head in heads.items()]
    context.workdir.write_json(SUMMARY, HeadPath(chosen=chosen, heads=tried, c=c, path=search.path))
    return ChosenHead(heads[chosen])


class _Training:
    """The training photos: regressions on them or on their views, and the moments of their features."""

    def __init__(
        self, features: StoredViews, rows_T: np.ndarray, labels_T: np.ndarray, num_classes: int, class_weight: str
    ) -> None:
        self.num_views, self._num_classes = features.num_views, num_classes
        self._features, self._rows_T, self._labels_T = features, rows_T, labels_T
        self._weights_T = class_weights(labels_T, num_classes, class_weight)
        self._photos = StoredRows(features.plain.rows, rows_T, features.plain.row_shape)
        self.moments = Moments.of(self._photos, labels_T, self._weights_T, num_classes)

    def zeros(self) -> Head:
        return Head.zeros(self._features.plain.row_shape[0], self._num_classes)

    def on_some_photos(self, most: int) -> LogisticRegression:
        """Return the regression on at most this many photos. Each class keeps its share, and each photo its weight."""
        count = len(self._labels_T)
        order = np.random.default_rng(0).permutation(count)
        order = order[np.argsort(self._labels_T[order], kind="stable")]
        some = np.sort(order[np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)])
        photos = StoredRows(self._features.plain.rows, self._rows_T[some], self._features.plain.row_shape)
        return LogisticRegression(photos, self._labels_T[some], self._weights_T[some], self.moments)

    def on_photos(self) -> LogisticRegression:
        return LogisticRegression(self._photos, self._labels_T, self._weights_T, self.moments)

    def on_views(self) -> LogisticRegression:
        """Return the regression on all stored views. The views of a photo share its weight."""
        positions_T, num_views, num_photos = self._features.positions_of(self._rows_T), self.num_views, len(self._rows_T)

        def read(numbers: np.ndarray) -> np.ndarray:
            if numbers[-1] < num_photos:
                return self._photos[slice(numbers[0], numbers[-1] + 1)]  # They may be in memory.
            return self._features.training(positions_T[numbers % num_photos], numbers // num_photos)

        views = StoredRows(read, np.arange(num_views * num_photos), self._features.plain.row_shape)
        weights_N = np.tile(self._weights_T, num_views) / num_views
        return LogisticRegression(views, np.tile(self._labels_T, num_views), weights_N, self.moments)


@dataclass(frozen=True)
class _Validation:
    """The validation photos, on which heads are compared."""

    features_VD: StoredRows
    labels_V: np.ndarray

    def scores(self, tried: Head) -> Scored:
        losses_V, correct_V = self.judged(tried)
        return {"val_log_loss": float(losses_V.mean()), "val_accuracy": float(correct_V.mean())}

    def calibrated(self, tried: Head) -> Head:
        """Return the head with its logits divided by the temperature that fits best."""
        some = slice(_TEMPERATURE_PHOTOS)
        return tried.at_temperature(temperature(self.labels_V[some], tried.logits(self.features_VD[some])))

    def judged(self, tried: Head) -> tuple[np.ndarray, np.ndarray]:
        """Return the log loss of each photo, float64 (V,), and whether its class is predicted, bool (V,)."""
        losses_V, correct_V = np.empty(len(self.labels_V)), np.empty(len(self.labels_V), bool)
        for part in parts(self.features_VD, len(tried.bias_C)):
            logits_BC, labels_B = tried.logits(self.features_VD[part]), self.labels_V[part]
            losses_V[part] = -log_softmax(logits_BC, axis=1)[np.arange(len(labels_B)), labels_B]
            correct_V[part] = logits_BC.argmax(axis=1) == labels_B
        return losses_V, correct_V


class _Search:
    """The search for the best regression. Its state is the list of solved heads, first those of the path."""

    def __init__(
        self, config: HeadConfig, training: _Training, validation: _Validation, checkpoints: Checkpoints, context: Context
    ) -> None:
        self._config, self._training, self._validation = config, training, validation
        self._checkpoints, self._context = checkpoints, context
        saved = checkpoints.newest()
        self.path: list[TriedStrength] = saved.notes["path"] if saved else []
        self._heads = list(map(Head, saved.listed("kernel_DC"), saved.listed("bias_C"))) if saved else []

    @property
    def c(self) -> float:
        """The strength with the lowest log loss on validation."""
        return self.path[self._best]["c"]

    @property
    def _best(self) -> int:
        losses = [tried["val_log_loss"] for tried in self.path]
        return losses.index(min(losses))

    def run(self) -> dict[str, Head]:
        """Return the heads for the chosen strength: on all stored views, if there are augmented ones, and on the photos.

        The strongest regularisation comes first, and each solution starts from the one before it. The path ends after two
        strengths without a lower log loss.
        """
        training, num_views = self._training, self._training.num_views
        num_heads = len(self._config.c_grid) + (2 if num_views > 1 else 1)
        with self._context.telemetry.progress("head", num_heads, "heads") as progress:
            regression = training.on_some_photos(_PATH_PHOTOS)
            for c in sorted(self._config.c_grid)[len(self.path) :]:
                if self.path and len(self.path) - self._best > _WORSE_BEFORE_STOP:
                    break
                self._follow(regression, c)
                progress.advance()
            del regression  # Its features need memory.
            photos = self._last(0, training.on_photos, self._heads[self._best])
            progress.advance()
            if num_views == 1:
                return {"regression on photos": photos}
            views = self._last(1, training.on_views, photos)
            progress.advance()
            return {"regression on views": views, "regression on photos": photos}

    def _follow(self, regression: LogisticRegression, c: float) -> None:
        """Add a head to the path."""
        start = self._heads[-1] if self._heads else self._training.zeros()
        solution = self._solve(regression, c, start)
        self._heads.append(solution.head)
        scores = self._validation.scores(solution.head)
        result = TriedStrength(c=c, **scores, num_iterations=solution.num_iterations, converged=solution.converged)
        self.path.append(result)
        self._context.telemetry.scalar("head/val_log_loss", scores["val_log_loss"], len(self.path))

    def _last(self, number: int, regression: Callable[[], LogisticRegression], start: Head) -> Head:
        """Return the solution for the chosen strength, or the one that a checkpoint has at this place behind the path."""
        place = len(self.path) + number
        if len(self._heads) == place:
            self._heads.append(self._solve(regression(), self.c, start).head)
        return self._heads[place]

    def _solve(self, regression: LogisticRegression, c: float, start: Head) -> Solution:
        offer = partial(self._checkpoints.offer, self._state)
        return regression.solve(c, start, self._config.max_iterations, on_iteration=offer)

    def _state(self) -> TrainState:
        kernels, biases = [head.kernel_DC for head in self._heads], [head.bias_C for head in self._heads]
        arrays = {**numbered("kernel_DC", kernels), **numbered("bias_C", biases)}
        return TrainState(len(self._heads), arrays, {"path": list(self.path)})


def _discriminant(moments: Moments, validation: _Validation) -> Head:
    """Return the calibrated discriminant with the shrinkage that has the lowest log loss on validation."""
    discriminant = Discriminant(moments)
    tried = [validation.calibrated(discriminant.head(shrinkage)) for shrinkage in _SHRINKAGES]
    return min(tried, key=lambda head: validation.scores(head)["val_log_loss"])
