"""Several seeds of the default recipe, compared by cross-validation on the training photos of flowers.

    python -m benchmarks.seeds --work DIR --seeds 3

In each of three folds, the job runs up to the head, as in `benchmarks.quality`, and this head is fine-tuned with each seed.
Then each group of seeds is scored on the last third: the mean of its members, the member with the lowest log loss on the
validation photos, the mean of the weights (Wortsman et al., "Model soups", 2022), the job's choice between these, and the
mean of the probabilities. Each is at the temperature that fits the validation photos.

Gains are those over the mean of the members, in points of accuracy, with the standard error over photos.
"""

import argparse
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.special import log_softmax, logsumexp

from benchmarks.quality import FOLDS, TELEMETRY, prepared
from job.measure.calibration import temperature
from job.measure.metrics import preferred
from job.pipeline.job import Job

KINDS = (
    "mean of the members",
    "best on validation",
    "mean of the weights",
    "the job's choice",
    "mean of the probabilities",
)


def measure(job_of_fold: Job, num_seeds: int, file: Path) -> None:
    """Fine-tune with each seed. Write the logits of each seed, and of each mean of weights, into `file`."""
    from job.stages import fine_tune
    from job.train.loop import Trainer

    job, network, config = job_of_fold, job_of_fold.network, job_of_fold.config.fine_tune
    examples, inputs = job["audit"].examples, job.inputs
    val, test = examples.of("val"), examples.of("test")
    rows = examples["row"][np.concatenate([val, test])].astype(np.int64)
    feeds = [fine_tune._Feed(config, job.recipe, examples, inputs, seed) for seed in range(num_seeds)]
    model = network.tuned(fine_tune._start(config, examples, job["extract"].features, job["head"].head))
    how = {"weight_decay": config.weight_decay, "ema": False, "telemetry": TELEMETRY}
    trainer = Trainer(model, feeds[0].schedule, network.replicas, inputs, **how)
    start, members, logits, cpu_s = trainer.state(), [], {}, []
    for feed in feeds:
        started = time.process_time()
        trainer.restore(start)
        for result in trainer.epochs(feed.batch, lambda _: None):
            print(f"seed {feed.schedule.seed}, epoch {result.epoch}: training loss {result.train_loss:.3f}", flush=True)
        members.append(trainer.final_weights())
        cpu_s.append(time.process_time() - started)
    for group in groups(num_seeds):
        model.set_weights([np.mean(weights, axis=0) for weights in zip(*(members[k] for k in group), strict=True)])
        logits[name_of(group)] = trainer.logits(rows)
    known = {"val_labels": examples.labels[val], "labels": examples.labels[test], "cpu_s": np.asarray(cpu_s)}
    np.savez(file, **logits, **known)


def groups(num_seeds: int) -> list[tuple[int, ...]]:
    """Return every group of seeds, those of one seed first."""
    return [group for size in range(1, num_seeds + 1) for group in combinations(range(num_seeds), size)]


def name_of(group: tuple[int, ...]) -> str:
    return "seeds " + " ".join(map(str, group))


def scores(logits_NC: np.ndarray, val_labels_V: np.ndarray, labels_T: np.ndarray) -> list[np.ndarray]:
    """Return correctness and log loss of each test photo, and the log loss of each validation photo."""
    val_logits_VC, test_logits_TC = np.split(logits_NC.astype(np.float64), [len(val_labels_V)])
    fitted = temperature(val_labels_V, val_logits_VC)
    losses_V, losses_T = (
        -log_softmax(logits / fitted, axis=1)[np.arange(len(labels)), labels]
        for logits, labels in ((val_logits_VC, val_labels_V), (test_logits_TC, labels_T))
    )
    return [test_logits_TC.argmax(1) == labels_T, losses_T, losses_V]


def compared(file: Path, group: tuple[int, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return correctness and log loss of each test photo of a fold, for each of `KINDS`."""
    with np.load(file) as run:
        val_labels, labels = run["val_labels"], run["labels"]
        members, soup = [run[name_of((k,))] for k in group], run[name_of(group)]
    of_members, of_soup = [scores(logits, val_labels, labels) for logits in members], scores(soup, val_labels, labels)
    best = min(of_members, key=lambda found: found[2].mean())
    models = {str(k): found for k, found in enumerate([of_soup, *of_members])}
    chosen = models[preferred({name: found[2] for name, found in models.items()})]
    together = logsumexp([log_softmax(logits.astype(np.float64), axis=1) for logits in members], axis=0)
    mean = tuple(np.mean([found[k] for found in of_members], axis=0) for k in (0, 1))
    found = (mean, best[:2], of_soup[:2], chosen[:2], scores(together, val_labels, labels)[:2])
    return dict(zip(KINDS, found, strict=True))


def table(files: list[Path], num_seeds: int) -> list[str]:
    lines = ["| Seeds | Model | Accuracy | Points | Log loss | Gain |", "|---|---|---|---|---|---|"]
    for size in range(2, num_seeds + 1):
        of_size = [group for group in groups(num_seeds) if len(group) == size]
        found = [[compared(file, group) for group in of_size] for file in files]
        base_accuracy, base_loss = (_photos(found, KINDS[0], k) for k in (0, 1))
        for kind in KINDS:
            accuracy, loss = (_photos(found, kind, k) for k in (0, 1))
            gain, nats = accuracy - base_accuracy, base_loss - loss
            errors = gain.std() / np.sqrt(len(gain)), nats.std() / np.sqrt(len(nats))
            points = f"{100 * gain.mean():+.2f} ± {100 * errors[0]:.2f}"
            less = f"{nats.mean():+.4f} ± {errors[1]:.4f}"
            lines.append(f"| {size} | {kind} | {accuracy.mean():.4f} | {points} | {loss.mean():.4f} | {less} |")
    cpu_s = np.concatenate([np.load(file)["cpu_s"] for file in files])
    return [*lines, "", f"Fine-tuning with one seed took {cpu_s.mean():.0f} CPU s, the first one of a fold included."]


def _photos(found: list[list[dict[str, tuple[np.ndarray, np.ndarray]]]], kind: str, k: int) -> np.ndarray:
    """Return one number for each photo of all folds: the mean over the groups of seeds."""
    return np.concatenate([np.mean([one[kind][k] for one in of_fold], axis=0) for of_fold in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stores and logits")
    parser.add_argument("--folds", type=int, nargs="+", default=range(FOLDS), choices=range(FOLDS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    options = parser.parse_args()
    files = [options.work / f"seeds-fold-{fold}-of-{options.seeds}.npz" for fold in options.folds]
    for fold, file in zip(options.folds, files, strict=True):
        if not file.exists():
            measure(prepared(fold, options.work), options.seeds, file)
    print("\n".join(table(files, options.seeds)))


if __name__ == "__main__":
    main()
