"""The results of `side_by_side` as tables: ratios, then the measurements behind them, then an explanation of each line."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.measured import median_and_spread
from job.measure.metrics import bootstrap

PEERS = {
    "a": "a: image_dataset_from_directory + fit",
    "b": "b: ImageDataGenerator + fit",
    "c": "c: as a, Dataset.cache()",
    "d": "d: timm, AdamW, RandAugment, EMA",
    "e": "e: fastai, fine_tune(5)",
}
WITH_TORCH = ("d", "e")
TRAINING = ("extract", "head", "fine_tune")
RESAMPLES = 2000
_KINDS = {"cpu_s": "CPU", "wall_s": "wall"}

Runs = dict[str, dict[str, Any]]  # The runs of one part, by repetition.


def table(results: dict[str, Any]) -> str:
    lines = ["# Side by side: the job, other recipes, bare limits", "", f"{results['machine']}. No GPU was used.", ""]
    for name, runs in results["sizes"].items():
        lines += [f"# {name}", "", *ratios(runs), *processes(runs), *stages(runs.get("job", {})), *rates(runs)]
    return "\n".join([*lines, *BEHIND])


def whole(run: dict[str, Any], kind: str) -> float:
    """Return the seconds of a whole run. Missing epochs of a peer are extrapolated.

    Each missing epoch counts as the median of the epochs of its phase without the first one, which includes tracing.
    """
    seconds = float(run[kind])
    for phase in dict.fromkeys(epoch["phase"] for epoch in run.get("epochs", [])):
        epochs = [epoch[kind] for epoch in run["epochs"] if epoch["phase"] == phase]
        if len(epochs) < run.get("epochs_wanted", 0):
            seconds += (run["epochs_wanted"] - len(epochs)) * statistics.median(epochs[1:])
    return seconds


def is_extrapolated(run: dict[str, Any]) -> bool:
    return any(
        sum(e["phase"] == phase for e in run["epochs"]) < run.get("epochs_wanted", 0)
        for phase in {e["phase"] for e in run["epochs"]}
    )


def accuracy_difference(jobs: Runs, peers: Runs) -> tuple[float, float, float] | None:
    """Return the job's test accuracy minus the peer's: the mean over common repetitions, and its 95% bootstrap interval.

    The bootstrap draws photos, each with all its repetitions. None if a peer was not trained to the end.
    """
    gains: dict[int, list[float]] = {}
    for repetition in jobs.keys() & peers.keys():
        job, peer = jobs[repetition], peers[repetition]
        if is_extrapolated(peer):
            return None
        rows = [k for k, letter in enumerate(job["split"]) if letter == "h"]
        answers = [run.split() for run in (job["labels"], job["predicted"], peer["predicted"])]
        for row, label, ours, theirs in zip(rows, *answers, strict=True):
            gains.setdefault(row, []).append(float(ours == label) - float(theirs == label))
    if not gains:
        return None
    mean_N = np.asarray([statistics.mean(values) for values in gains.values()])
    counts = np.stack([mean_N, np.ones(len(mean_N))], axis=1)
    low, high = bootstrap(counts, np.arange(len(mean_N)), lambda s: s[:, :1] / s[:, 1:], RESAMPLES, 0)[:, 0]
    return float(mean_N.mean()), float(low), float(high)


def ratios(runs: dict[str, Runs]) -> list[str]:
    lines = ["## Ratios", "", "| | median (lowest to highest) | n | wanted | |", "|---|---|---|---|---|"]
    jobs = runs.get("job", {})
    for kind, word in _KINDS.items():
        for peer in PEERS:
            pairs = _pairs(jobs, runs.get(peer, {}))
            wanted = kind == "cpu_s" and peer in "ab"
            both = [whole(p, kind) / whole(j, kind) for j, p in pairs]
            alone = [whole(p, kind) / _seconds(j, kind, TRAINING) for j, p in pairs]
            lines += _line(f"{word} s of ({peer}) / of the whole job", both, 4 if wanted else None)
            lines += _line(f"{word} s of ({peer}) / of {' + '.join(TRAINING)}", alone, 6 if wanted else None)
    for peer in PEERS:
        if (found := accuracy_difference(jobs, runs.get(peer, {}))) is not None:
            mean, low, high = found
            wanted_text, met = ("includes 0 or better", _verdict(high >= 0)) if peer == "a" else ("", "")
            interval = f"{100 * mean:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f} at 95%)"
            pairs = _pairs(jobs, runs[peer])
            lines.append(f"| held-out accuracy, job less ({peer}) | {interval} | {len(pairs)} | {wanted_text} | {met} |")
    return [*lines, *_limit_ratios(runs), ""]


def _limit_ratios(runs: dict[str, Runs]) -> list[str]:
    lines: list[str] = []
    jobs = runs.get("job", {})
    for stage, part, bares, unit in (
        ("extract", "forward", ("keras", "constants"), "views"),
        ("fine_tune", "step", ("bare",), "examples"),
    ):
        limits = runs.get(part, {})
        for bare in bares:
            beside = f"bare {part}" if bare == "bare" else f"bare {part} ({bare})"
            for kind, word in _KINDS.items():
                stage_of = [
                    j["counts"][stage] / j["timings"][stage][kind] / _rate(limit["rounds"][part][bare], kind)
                    for j, limit in _pairs(jobs, limits)
                ]
                wanted = 0.95 if stage == "extract" else None
                lines += _line(f"{unit} per {word} s, {stage} stage as a whole / {beside}", stage_of, wanted)
            for name, rates_of in _loops(jobs, stage).items():
                loop = [rates_of[k] / _rate(limits[k]["rounds"][part][bare], "wall_s") for k in rates_of if k in limits]
                lines += _line(f"`{name}` of the run / {beside}", loop, 0.95)
            lines += _in_one_process(limits, part, bare, f"the job's {part} in the same process / {beside}", 0.95)
    decoded = runs.get("decode", {})
    for size, wanted in (("500x375", 0.45), ("4000x3000", 0.78)):
        lines += _in_one_process(
            decoded, size, "bare", f"digest, decode, hash, resize of {size} / scaled libjpeg-turbo", wanted
        )
    return lines


def _in_one_process(limits: Runs, comparison: str, bare: str, what: str, wanted: float) -> Iterable[str]:
    for kind, word in _KINDS.items():
        ratio = [
            (ours["photos"] / ours[kind]) / (theirs["photos"] / theirs[kind])
            for limit in limits.values()
            for ours, theirs in zip(limit["rounds"][comparison]["job"], limit["rounds"][comparison][bare], strict=True)
        ]
        yield from _line(f"photos per {word} s, {what}", ratio, wanted)


def _loops(jobs: Runs, stage: str) -> dict[str, dict[str, float]]:
    """Return the rates of a stage's loops, which the job measures itself, by name and repetition."""
    found: dict[str, dict[str, float]] = {}
    for repetition, job in jobs.items():
        of_stage = job["counts"][stage] / job["timings"][stage]["wall_s"]
        for name, value in job["throughput"].items():
            is_rate = name.startswith(f"{stage}_") and name.endswith("_per_s") and isinstance(value, (int, float))
            if is_rate and abs(value / of_stage - 1) > 0.02:
                found.setdefault(name, {})[repetition] = value
    return found


def processes(runs: dict[str, Runs]) -> list[str]:
    lines = ["## Whole runs, from start to end of the process", ""]
    lines += ["| | n | wall s | CPU s | peak MB, largest process | peak MB, together | held-out accuracy | validation |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for part, name in {"job": "the job", **PEERS}.items():
        these = list(runs.get(part, {}).values())
        if not these:
            continue
        extrapolated = part in PEERS and any(map(is_extrapolated, these))
        accuracies = [
            "-" if extrapolated else median_and_spread([run[key] for run in these], 4)
            for key in ("test_accuracy", "val_accuracy")
        ]
        of_epochs = f" (extrapolated from {len(these[0]['epochs'])} epochs)" if extrapolated else ""
        cells = [name + of_epochs, str(len(these))]
        cells += [median_and_spread([whole(run, kind) for run in these], 0) for kind in ("wall_s", "cpu_s")]
        cells += [median_and_spread([run[key] for run in these], 0) for key in ("peak_mb", "peak_together_mb")]
        lines.append("| " + " | ".join([*cells, *accuracies]) + " |")
    jobs = list(runs.get("job", {}).values())
    if jobs:
        both = [
            f"{name} {median_and_spread([j[key] for j in jobs], 4)}" for key, name in _MODELS if all(key in j for j in jobs)
        ]
        shipped = ", ".join(j["shipped"] for j in jobs)
        lines += ["", f"The job's models: {'; '.join(both)}. Shipped: {shipped}."]
    return [*lines, ""]


_MODELS = (("head_accuracy", "head"), ("fine_tuned_accuracy", "fine-tuned"))


def stages(jobs: Runs) -> list[str]:
    if not jobs:
        return []
    lines = ["## The job's stages", "", "| stage | wall s | CPU s |", "|---|---|---|"]
    for stage in next(iter(jobs.values()))["timings"]:
        values = [[job["timings"][stage][kind] for job in jobs.values()] for kind in ("wall_s", "cpu_s")]
        lines.append(f"| {stage} | {median_and_spread(values[0], 1)} | {median_and_spread(values[1], 1)} |")
    lines += ["", "| `throughput` in metrics.json | |", "|---|---|"]
    for name, value in next(iter(jobs.values()))["throughput"].items():
        told = [job["throughput"].get(name) for job in jobs.values()]
        is_number = all(isinstance(v, (int, float)) for v in told)
        lines.append(f"| `{name}` | {median_and_spread(told, 3 if max(told) < 10 else 0) if is_number else value} |")
    return [*lines, ""]


def rates(runs: dict[str, Runs]) -> list[str]:
    lines = ["## Limits", "", "| | | photos/s | photos per CPU s | rounds |", "|---|---|---|---|---|"]
    for part in ("forward", "step", "decode"):
        limits = list(runs.get(part, {}).values())
        for comparison in limits[0]["rounds"] if limits else ():
            for work in limits[0]["rounds"][comparison]:
                rounds = [r for limit in limits for r in limit["rounds"][comparison][work]]
                cells = [median_and_spread([r["photos"] / r[kind] for r in rounds], 0) for kind in ("wall_s", "cpu_s")]
                lines.append(f"| {comparison} | {work} | {cells[0]} | {cells[1]} | {len(rounds)} |")
    stamps = sorted({f"{run['measured']} ({run['revision']})" for part in runs.values() for run in part.values()})
    return [*lines, "", f"Measured from {stamps[0]} to {stamps[-1]}." if stamps else "", ""]


def _pairs(jobs: Runs, others: Runs) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the pairs of runs of the same repetition."""
    return [(jobs[k], others[k]) for k in sorted(jobs.keys() & others.keys(), key=int)]


def _seconds(job: dict[str, Any], kind: str, of_stages: Iterable[str]) -> float:
    return sum(float(job["timings"][stage][kind]) for stage in of_stages)


def _rate(rounds: list[dict[str, float]], kind: str) -> float:
    """Return photos per second, the median of the rounds."""
    return statistics.median(r["photos"] / r[kind] for r in rounds)


def _line(what: str, values: list[float], wanted: float | None) -> list[str]:
    if not values:
        return []
    met = "" if wanted is None else _verdict(statistics.median(values) >= wanted)
    return [
        f"| {what} | {median_and_spread(values, 2)} | {len(values)} | {'' if wanted is None else f'>= {wanted:g}'} | {met} |"
    ]


_verdict: Callable[[bool], str] = {True: "met", False: "**not met**"}.__getitem__

BEHIND = """## Explanation

- **Order**: one process at a time; all parts take turns in each repetition. A ratio compares two parts of one repetition (of
  one round, if they run in the same process). The tables show the median, the lowest and the highest ratio, and n, their
  number. Photos are read once before, so every part finds them in memory.
- **Wall seconds**: from the start of the process to its end. **CPU seconds**: of the process and of all processes that it
  starts, as the kernel counts them, with imports. **Peak memory**: of the largest process, with pages of mapped files; and
  of all processes together, with shared pages counted once, sampled every second.
- **The job** does everything from the folder of photos to the exported model and the report, with the defaults, in a fresh
  folder. Its seed is the number of the repetition. **The peers** train on the job's training photos, with its validation
  photos, and predict its test photos. They check no data, export no model and write no report.
- **(a)** TensorFlow's tutorial "Transfer learning and fine-tuning": batches of 32, random flip and rotation, ten epochs of
  the head (Adam, 1e-3), ten epochs with the layers from the hundredth on (RMSprop, 1e-4). These learning rates are ten times
  those of the tutorial, because its accuracy on `flowers` is then 0.86 instead of 0.79. **(b)** is like (a) with
  `ImageDataGenerator.flow_from_directory` (which rotates, flips and scales; bilinear). **(c)** is like (a) with
  `cache().shuffle(1000)`. **(d)** is timm's usual recipe and **(e)** fastai's `fine_tune(5)`, both with PyTorch and the same
  weights, from the same file (`benchmarks/peers_torch.py`). (a) runs in every repetition, the others once.
- **Extrapolated** peers (at the large size) run two epochs of each phase. Each missing epoch counts like the second one.
- **Accuracy difference**: paired by photo, mean over the repetitions, 95% bootstrap interval over photos.
- **Bare forward**: the backbone on uint8 arrays in memory, in batches of the job's size: as a Keras model in a `tf.function`
  (`keras`), and as the same graph with constants instead of variables (`constants`). `job` is the forward pass of `extract`
  with one view. The stage as a whole also includes start-up, augmentation and writing of the stores.
- **Bare step**: forward, backward and AdamW of the layers above the job's cut and a head, on float32 tensors in memory.
  `job` is the step of the fine-tuning stage, on float16 arrays in memory. The stage as a whole also includes its start and
  validation. All steps and forward passes use deterministic operations, which the job turns on for the whole process.
- **Decode**: photos enlarged to this size and saved with JPEG quality 90, on one core. `bare` is only simplejpeg, at the
  scale that the job chooses. `job` is SHA-256 and `job.decoding.decode.decode`: checks, decode, resize, hash.
""".splitlines()
