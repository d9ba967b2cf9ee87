"""How often a threshold is proven for a target precision, and how often held-out photos keep it, over many splits.

    python -m benchmarks.thresholds RUN

RUN is a finished run with a fine-tuned model; its stored features are used. `head`: for each split of all photos (68% for
training, 12% for validation, 20% held out), heads are trained anew by the stage `head`. `fine-tuned`: the model of RUN, for
which its validation and test photos are divided anew; its temperature is fitted anew.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from benchmarks.measured import machine
from job.config import Config, with_dotted_names
from job.data.duplicates import folds_of_groups
from job.data.examples import Examples
from job.measure.calibration import Calibration, temperature
from job.measure.models import tuned_logits
from job.measure.predicted import Predicted
from job.measure.thresholds import Answers, is_almost_certain, out_of_fold_answers, proof
from job.pipeline.job import Job
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import HeadConfig
from job.stages.head import head
from job.storage.workdir import Workdir
from job.stores.views import StoredViews
from job.train.checkpoint import Checkpoints

FOLDS, TEST_FOLDS, VAL_FOLDS = 25, 5, 3
Split = tuple[Predicted, Answers, Answers, np.ndarray]  # On held-out photos; of validation, of training; held-out labels.


def opened(out: Path) -> Job:
    context = Context(Workdir(out), Telemetry(None, open(os.devnull, "w")))  # noqa: SIM115
    run = context.workdir.read_json("run.json")
    return Job(Config.load(None, (), dict(with_dotted_names(run["config"]))), None, context)


def of_heads(job: Job, seed: int) -> Split:
    """Train heads for a split of all photos."""
    examples, plain = job["audit"].examples, job["extract"].features.plain
    used = examples.of()
    fold = folds_of_groups(examples.units[used], examples.labels[used], FOLDS, seed)
    split = examples["split"].copy()
    split[used] = np.where(fold < TEST_FOLDS, "test", np.where(fold < TEST_FOLDS + VAL_FOLDS, "val", "train"))
    examples = examples.with_columns(split=split)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Workdir(Path(folder) / "out"), job.context.telemetry)
        features = StoredViews(plain, None, np.sort(examples["row"][examples.of("train")]), 1)
        checkpoints = Checkpoints(context, "head", {})
        trained = head(HeadConfig(), examples=examples, features=features, checkpoints=checkpoints, context=context).head
        val, test = examples.of("val"), examples.of("test")
        logits = {name: trained.logits(plain.rows(examples["row"][of])) for name, of in (("val", val), ("test", test))}
        return split_of(
            examples, val, test, logits["val"], logits["test"], out_of_fold_answers(examples, plain, np.zeros(1), context)
        )


def split_of(
    examples: Examples, val: np.ndarray, test: np.ndarray, logits_VC: np.ndarray, logits_TC: np.ndarray, of_training: Answers
) -> Split:
    calibration = Calibration(temperature(examples.labels[val], logits_VC))
    on_val = Predicted.of(examples.labels[val], logits_VC, calibration)
    on_test = Predicted.of(examples.labels[test], logits_TC, calibration)
    return on_test, Answers.of(on_val, examples.labels[val], examples.units[val]), of_training, examples.labels[test]


def of_tuned(job: Job, seeds: int) -> Iterator[Split]:
    """Divide validation and test photos of the run anew, with the same fine-tuned model."""
    examples = job["audit"].examples
    val, test = examples.of("val"), examples.of("test")
    both = np.concatenate([val, test])
    weights = job["fine_tune"].models[job["evaluate"].numbers["seeds"]["chosen"]]
    telemetry = job.context.telemetry
    batches = tuned_logits(job.network, weights, job.inputs, examples["row"][both], telemetry)
    logits_NC = np.concatenate(list(batches))
    of_training = out_of_fold_answers(examples, job["extract"].features.plain, np.zeros(1), job.context)
    for seed in range(seeds):
        fold = folds_of_groups(examples.units[both], examples.labels[both], round(10 * len(both) / len(val)), seed)
        is_val = fold < 10
        yield split_of(examples, both[is_val], both[~is_val], logits_NC[is_val], logits_NC[~is_val], of_training)


def tell(model: str, splits: list[Split], targets: list[float]) -> None:
    """Print a row for each target and each choice of photos that count."""
    for target in targets:
        for way in ("validation", "with training photos", "as the job does"):
            proven, coverages, below, clearly_below = 0, [], 0, 0
            for on_test, validation, of_training, labels in splits:
                alone = way == "validation" or (way != "with training photos" and is_almost_certain(validation, target))
                made = proof(validation if alone else validation.with_others(of_training), target)
                if made is None:
                    continue
                accepted = on_test.confidence_N >= made.threshold
                right, count = int((on_test.class_N == labels)[accepted].sum()), int(accepted.sum())
                proven += 1
                coverages.append(count / len(labels))
                below += right < target * count
                clearly_below += binomtest(right, count, target, alternative="less").pvalue < 0.05
            coverage = f"{np.mean(coverages):.0%} ({min(coverages):.0%} to {max(coverages):.0%})" if coverages else ""
            print(f"| {model} | {target} | {way} | {proven} | {coverage} | {below} | {clearly_below} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--targets", type=float, nargs="*", default=[0.95, 0.98])
    chosen = parser.parse_args()
    job = opened(chosen.run)
    print(f"{machine()}\n")
    print("| Model | Target | Photos that count | Proven | Coverage | Held-out precision below | Clearly below |")
    print("|---|---|---|---|---|---|---|")
    tell("head", [of_heads(job, seed) for seed in range(chosen.splits)], chosen.targets)
    tell("fine-tuned", list(of_tuned(job, chosen.splits)), chosen.targets)


if __name__ == "__main__":
    main()
