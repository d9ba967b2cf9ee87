"""Ideas for fine-tuning, compared by cross-validation on the training photos of flowers.

    python -m benchmarks.quality --work DIR --folds 0 1 2 --seeds 0 1 2 -- today "head 0.1"
    python -m benchmarks.quality --work DIR                                   # only the table of what is there

The held-out photos of flowers and all other data sets take no part. In each of three folds, the job runs up to the head, on
two thirds of the photos; a tenth of all photos is for validation. Then each idea is trained on that head with the job's own
functions, and scored on the last third. The logits of each run are kept in DIR, so that a later call adds to the table.

Differences are those to the mean of `today` over all its seeds, on the same photos, with the standard error over photos.
Other models of `today` are compared with the plain one of the same runs. Log loss is that at the temperature that fits the
validation photos. CPU seconds are those of fine-tuning one fold from stored views, which all runs share.
"""

import argparse
import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

import job
from benchmarks.measured import SHARED, WEIGHTS
from job.config import Config, with_dotted_names
from job.measure.calibration import temperature
from job.pipeline.job import Job
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sources.open import open_source
from job.storage.workdir import Workdir

PHOTOS = SHARED / "data" / "flowers" / "train"
FOLDS, SEEDS = 3, 3
TELEMETRY = Telemetry(None)


@dataclass(frozen=True)
class Idea:
    """A way to fine-tune. The defaults are those of the job for 1,500 to 20,000 photos.

    `views`: stored views of each photo, None for new ones in every epoch. `head_rate`: the learning rate of the head, times
    that of the other layers. `layer_decay`: the rate of each block, times that of the block above it. `by_size`: rates in
    proportion to the size of a layer's weights. `depthwise`: whether depthwise kernels learn. `after`: another idea, from
    whose weights this one starts. `mean_of`: another idea. The mean of the weights of this seed and the next one of 0, 1
    and 2 is scored, and nothing is trained.
    """

    unfreeze: float | str = 0.4
    views: int | None = 2
    epochs: int = 6
    learning_rate: float = 1e-3
    label_smoothing: float = 0.1
    head_rate: float = 1.0
    layer_decay: float = 1.0
    by_size: bool = False
    depthwise: bool = True
    after: str = ""
    mean_of: str = ""


IDEAS = {
    "today": Idea(),
    "head 0.1": Idea(head_rate=0.1),
    "head 0.1, 2e-3": Idea(head_rate=0.1, learning_rate=2e-3),
    "layer decay 0.75": Idea(layer_decay=0.75),
    "rates by size": Idea(by_size=True),
    "smoothing 0.03": Idea(label_smoothing=0.03),
    "head 0.1, smoothing 0.03": Idea(head_rate=0.1, label_smoothing=0.03),
    "head 0.1, then 3 epochs of all at 5e-4": Idea("all", None, 3, learning_rate=5e-4, head_rate=0.1, after="head 0.1"),
    "head 0.1, 0.66, 4 views, 8 epochs": Idea("block_2_add", 4, 8, head_rate=0.1),
    "0.66, 4 views, 8 epochs": Idea("block_2_add", 4, 8),
    "depthwise frozen": Idea(depthwise=False),
    "0.66, 4 views, 8 epochs, depthwise frozen": Idea("block_2_add", 4, 8, depthwise=False),
    "0.66, 4 views, 7 epochs": Idea("block_2_add", 4, 7),
    "0.66, 4 views, 7 epochs, layer decay 0.75": Idea("block_2_add", 4, 7, layer_decay=0.75),
    "0.66, 4 views, 8 epochs, mean of 2 seeds": Idea("block_2_add", 4, mean_of="0.66, 4 views, 8 epochs"),
    "0.66 online, 20 epochs": Idea("block_2_add", None, 20),
    "0.66, 8 views, 16 epochs": Idea("block_2_add", 8, 16),
    "0.66, 8 views, 16 epochs, mean of 2 seeds": Idea("block_2_add", 8, mean_of="0.66, 8 views, 16 epochs"),
    "all online, 8 epochs": Idea("all", None, 8),
}
WISE = (0.6, 0.8)  # Shares of the way from the pre-trained to the tuned weights (Wortsman et al., WiSE-FT, 2022).


def prepared(fold: int, work: Path) -> Job:
    """Run the job up to the head, with this fold as its test set, and return it. All folds share their stores."""
    table, out = work / f"fold-{fold}.csv", work / f"fold-{fold}"
    settings = {
        "intake.image_size": 160,
        "backbone.alpha": 0.35,
        "backbone.weights": str(WEIGHTS),
        "split.val_fraction": 0.1,
        "cache.dir": str(work / "cache"),
    }
    if not (out / "stages" / "head.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        write_table(table, fold)
        job.run(PHOTOS, out, config=settings, labels=table, stop_after="head")
    config = Config.load(None, (), dict(with_dotted_names(settings)))
    context = Context(Workdir(out), Telemetry(None), config.seed, caching=config.cache)
    return Job(config, open_source(str(PHOTOS), str(table), settings=config.intake), context)


def write_table(file: Path, fold: int) -> None:
    """Write a table of the photos, in which this fold is the test set. Each class is dealt out evenly."""
    rng = np.random.default_rng(0)
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "label", "split"])
        for folder in sorted(p for p in PHOTOS.iterdir() if p.is_dir()):
            photos = sorted(folder.iterdir())
            for photo, place in zip(photos, rng.permutation(len(photos)) % FOLDS, strict=True):
                rows.writerow([photo.relative_to(PHOTOS), folder.name, "test" if place == fold else "train"])


def measure(name: str, fold: int, seed: int, work: Path) -> None:
    """Fine-tune as an idea says. Write the weights, and the logits of validation and test photos, into a file."""
    from job.model.network import Network
    from job.stages import fine_tune
    from job.train.loop import Trainer
    from job.train.recipe import Recipe

    job_of_fold, file = prepared(fold, work), run_file(name, fold, seed, work)
    idea, config, examples = IDEAS[name], job_of_fold.config, job_of_fold["audit"].examples
    images, head, features = job_of_fold["intake"].images, job_of_fold["head"].head, job_of_fold["extract"].features
    backbone = config.backbone.model_copy(update={"unfreeze": idea.unfreeze})
    network = Network(backbone, config.intake.image_size, job_of_fold.devices, seed=0)
    inputs = inputs_of(idea, job_of_fold, network, work)
    tuning = config.fine_tune.model_copy(update={"label_smoothing": idea.label_smoothing})
    recipe = Recipe(idea.epochs, 64, idea.learning_rate, idea.views or 1)
    started = time.process_time()
    feed = fine_tune._Feed(tuning, recipe, examples, inputs, seed)
    model = network.tuned(fine_tune._start(tuning, examples, features, head))
    if idea.after:
        tuned = weights_in(file.with_name(file.name.replace(slug(name), slug(idea.after))))
        model.set_weights([*model.get_weights()[: -len(tuned)], *tuned])
    for layer in model.layers:
        if not idea.depthwise and type(layer).__name__ == "DepthwiseConv2D":
            layer.trainable = False
    first = model.get_weights()
    trainer = Trainer(
        model,
        feed.schedule,
        network.replicas,
        inputs,
        weight_decay=tuning.weight_decay,
        ema=False,
        telemetry=TELEMETRY,
        rate_factors=factors(model, idea),
    )
    cpu_s_before = 0.0
    if idea.mean_of:
        files = [run_file(idea.mean_of, fold, k, work) for k in (seed, (seed + 1) % SEEDS)]
        cpu_s_before = sum(float(np.load(of_seed)["cpu_s"]) for of_seed in files)
        model.set_weights([(a + b) / 2 for a, b in zip(*map(weights_in, files), strict=True)])
    for result in () if idea.mean_of else trainer.epochs(feed.batch, lambda _: None):
        print(f"{name}, seed {seed}, epoch {result.epoch}: training loss {result.train_loss:.3f}", flush=True)
    cpu_s, last = time.process_time() - started + cpu_s_before, trainer.final_weights()
    val, test = examples.of("val"), examples.of("test")
    rows = examples["row"][np.concatenate([val, test])].astype(np.int64)
    logits = {"plain": trainer.logits(rows), "mirrored": mirrored_logits(model, network, images, rows)}
    for share in WISE if name == "today" else ():
        model.set_weights([a + share * (b - a) for a, b in zip(first, last, strict=True)])
        logits[f"wise {share}"] = trainer.logits(rows)
    weights = {f"weight_{k}": weight for k, weight in enumerate(last)}
    logits["head"] = head.logits(features.plain.rows(rows))
    known = {"val_labels": examples.labels[val], "labels": examples.labels[test], "cpu_s": np.asarray(cpu_s)}
    arrays: dict[str, Any] = {**logits, **weights, **known}
    np.savez(file, **arrays)


def weights_in(file: Path) -> list[np.ndarray]:
    """Return the weights of the trained layers in the file of a run."""
    with np.load(file) as run:
        return [run[f"weight_{k}"] for k in range(sum(key.startswith("weight_") for key in run.files))]


def inputs_of(idea: Idea, job_of_fold: Job, network: Any, work: Path) -> Any:
    """Return inputs with the layers and the views of an idea. Stored views lie in `work` for all folds and seeds."""
    from job.data.augment import Augmentation
    from job.model.inputs import OnlineInputs

    config, examples = job_of_fold.config, job_of_fold["audit"].examples
    images = job_of_fold["intake"].images
    online = OnlineInputs(images, network, Augmentation(config.augment, config.intake.image_size))
    if idea.views is None:
        return online
    keys_N = np.zeros(len(images), np.uint64)
    keys_N[examples["row"][examples.of()].astype(np.int64)] = examples.keys[examples.of()]
    return _Stored([stored(view, keys_N, online, work) for view in range(idea.views)])


def stored(view: int, keys_N: np.ndarray, online: Any, work: Path) -> np.ndarray:
    """Return a view of all photos at the cut of the network, from the disk. It is computed if it is not there."""
    from job.train.feed import run_batches

    network, file = online.network, work / "activations" / online.network.cut_point.name / f"view-{view}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shape, part = (len(keys_N), *network.cut_point.shape), file.with_suffix(".part")
        views_NX = np.lib.format.open_memmap(part, "w+", np.float16, shape)

        def load(rows: np.ndarray) -> Any:
            return online.training(rows, keys_N[rows], np.full(len(rows), view)) if view else online.plain(rows)

        step = network.replicas.compiled(lambda *arrays: (online.on_device(arrays, training=view > 0),))
        done = 0
        for (views_BX,) in run_batches(network.replicas, step, load, len(keys_N), 256, TELEMETRY):
            views_NX[done : done + len(views_BX)] = views_BX
            done += len(views_BX)
        views_NX.flush()
        part.rename(file)
    return np.load(file, mmap_mode="r")


class _Stored:
    """Stored views of all photos: `views[v]` has the activations of view v, by the rows of the image store."""

    def __init__(self, views: list[np.ndarray]) -> None:
        self._views, self.num_views = views, len(views)

    def training(self, rows_B: np.ndarray, keys_B: np.ndarray, views_B: np.ndarray) -> tuple[np.ndarray]:  # noqa: ARG002
        return (np.stack([self._views[view][row] for row, view in zip(rows_B, views_B, strict=True)]),)

    def plain(self, rows_B: np.ndarray) -> tuple[np.ndarray]:
        return (self._views[0][rows_B],)

    def on_device(self, arrays: tuple[Any], *, training: bool) -> Any:  # noqa: ARG002
        return arrays[0]


def factors(model: Any, idea: Idea) -> list[float]:
    """Return factors of the learning rate for the trainable variables, from the bottom up. The last two are the head's."""
    from job.model.layer_decay import learning_rate_factors

    *body, _, _ = [float(np.sqrt(np.mean(np.square(v)))) for v in model.trainable_variables]
    typical = np.exp(np.mean(np.log(body)))
    *by_depth, _, _ = learning_rate_factors(model, idea.layer_decay)
    by_size = [size / typical if idea.by_size else 1.0 for size in body]
    return [*(a * b for a, b in zip(by_depth, by_size, strict=True)), idea.head_rate, idea.head_rate]


def mirrored_logits(model: Any, network: Any, images: Any, rows: np.ndarray) -> np.ndarray:
    """Return the logits of the mirrored photos."""
    import tensorflow as tf

    from job.train.feed import all_rows, run_batches

    def forward(pixels: Any) -> tuple[Any]:
        return (model(tf.cast(network.activations(pixels), tf.float32), training=False),)

    def load(numbers: np.ndarray) -> tuple[np.ndarray]:
        return (np.ascontiguousarray(images.rows(rows[numbers])[:, :, ::-1]),)

    step = network.replicas.compiled(forward)
    return all_rows(run_batches(network.replicas, step, load, len(rows), 256, TELEMETRY))[0]


def slug(name: str) -> str:
    return name.replace(" ", "_")


def scores(file: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return correctness and log loss of each test photo, at the temperature that fits the validation photos."""
    with np.load(file) as run:
        logits_NC = (run["plain"] + run["mirrored"]) / 2 if kind == "both" else run[kind]
        labels_N, val_labels_V = run["labels"], run["val_labels"]
    val_logits_VC, logits_NC = np.split(logits_NC.astype(np.float64), [len(val_labels_V)])
    log_probabilities_NC = log_softmax(logits_NC / temperature(val_labels_V, val_logits_VC), axis=1)
    return logits_NC.argmax(1) == labels_N, -log_probabilities_NC[np.arange(len(labels_N)), labels_N]


def row(name: str, kind: str, work: Path) -> str:
    """Return a row of the table: the runs of an idea, and their gain over the mean of today's runs on the same folds."""
    own = runs_of(name, kind, work)
    today = own if name == "today" else runs_of("today", "plain", work)
    values = []
    for k in (0, 1):  # Accuracy, log loss.
        of_folds = [np.mean([scores(file, kind)[k] for file in own[fold]], axis=0) for fold in own]
        before = [np.mean([scores(file, "plain")[k] for file in today[fold]], axis=0) for fold in own]
        gain_N = np.concatenate(of_folds) - np.concatenate(before)
        values += [np.concatenate(of_folds).mean(), gain_N.mean(), gain_N.std() / np.sqrt(len(gain_N))]
    cpu_s = np.mean([np.load(file)["cpu_s"] for files in own.values() for file in files])
    what = name if kind == "plain" else f"{name}: {kind.replace('both', 'mean with the mirrored photo')}"
    accuracy, points, points_error, log_loss, nats, nats_error = values
    seeds = ", ".join(f"{fold}: {len(files)}" for fold, files in own.items())
    gains = f"{100 * points:+.1f} ± {100 * points_error:.1f} | {log_loss:.3f} | {nats:+.3f} ± {nats_error:.3f}"
    return f"| {what} | {seeds} | {accuracy:.3f} | {gains} | {cpu_s:.0f} |"


def runs_of(name: str, kind: str, work: Path) -> dict[int, list[Path]]:
    """Return the files of the runs that have the logits of this kind, by fold."""
    wanted = "mirrored" if kind == "both" else kind
    files = {fold: sorted(work.glob(f"{slug(name)}-fold-{fold}-seed-*.npz")) for fold in range(FOLDS)}
    with_kind = {fold: [file for file in files[fold] if wanted in np.load(file).files] for fold in files}
    return {fold: found for fold, found in with_kind.items() if found}


def table(work: Path) -> list[str]:
    lines = [
        "| idea | seeds by fold | accuracy | points against today | log loss | against today | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in IDEAS:
        kinds = ("plain", "both", *(f"wise {share}" for share in WISE), *(["head"] if name == "today" else []))
        lines += [row(name, kind, work) for kind in kinds if runs_of(name, kind, work)]
    return lines


def run_file(name: str, fold: int, seed: int, work: Path) -> Path:
    return work / f"{slug(name)}-fold-{fold}-seed-{seed}.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ideas", nargs="*", metavar="IDEA", help=", ".join(IDEAS))
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, weights and logits")
    parser.add_argument("--folds", type=int, nargs="+", default=range(FOLDS), choices=range(FOLDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    for seed in options.seeds:
        for fold in options.folds:
            for name in options.ideas:
                if not run_file(name, fold, seed, options.work).exists():
                    measure(name, fold, seed, options.work)
    print("\n".join(table(options.work)))


if __name__ == "__main__":
    main()
