"""The plan of a run: which stages work, and why.

A stage is skipped if its record matches everything it depends on, by content: its settings, the version of its code, the
outcome of the stages before it, and the files it left.
"""

from dataclasses import dataclass

from job.cluster.devices import Devices
from job.cluster.environment import Cluster
from job.config import Config
from job.errors import UsageError
from job.pipeline.job import Job
from job.pipeline.table import STAGES
from job.sections import PUBLISHED_WEIGHTS


@dataclass(frozen=True)
class Step:
    """A line of the plan: whether a stage runs, and why. `is_current` says that the files of its last run are valid."""

    stage: str
    runs: bool
    reason: str
    is_current: bool = False


def plan(job: Job, stop_after: str | None = None) -> list[Step]:
    """Return what a run would do. A stage that is planned because an earlier one runs may turn out to be unchanged.

    Stages after `stop_after` are in the plan if they are up to date, because the report shows them.
    """
    steps = stale(job, stop_after)
    for name in reversed(list(steps)):
        for provider in STAGES[name].reads_stores_of if steps[name].runs else ():
            if not steps[provider].runs and not job.records.stores_intact(provider):
                reason = f"{name} needs its store, which is missing or damaged"
                steps[provider] = Step(provider, True, reason, is_current=True)
    return list(steps.values())


def stale(job: Job, stop_after: str | None) -> dict[str, Step]:
    """Return the plan without checking stores, which are large."""
    steps: dict[str, Step] = {}
    for name in STAGES:
        left_out = [] if name == "report" else [s for s in STAGES[name].after if s not in steps]
        before = [s for s in STAGES[name].after if s in steps and steps[s].runs] + left_out
        reason = f"{before[0]} runs before it" if before else job.why_stale(name, list(steps))
        known = "split" in steps and not steps["split"].runs
        if not STAGES[name].looks_only and known and job.refusals:
            steps[name] = Step(name, False, "the data cannot be used as it is")
        elif STAGES[name].needs_gate and not before and not job.gate_met:
            steps[name] = Step(name, False, "the quality gate was not met")
        elif not reason or name in wanted(stop_after):
            steps[name] = Step(name, bool(reason), reason or "nothing that it depends on has changed", not reason)
    return steps


def cut_in_words(config: Config) -> str:
    """Return a line about the cut point: how much is fine-tuned, and how much is stored for it. Downloads no weights."""
    from job.model.hub.names import preset
    from job.model.network import Network

    backbone = config.backbone
    known = preset(backbone.name)
    if backbone.weights in PUBLISHED_WEIGHTS and (known is None or known.architecture):  # Only the layers matter here.
        backbone = backbone.model_copy(update={"weights": "random"})
    devices = Devices(Cluster(), logical_cpus=config.cluster.logical_cpus)
    point = Network(backbone, config.intake.image_size, devices, seed=config.seed).cut_point
    if not point:
        return f"{backbone.name}: nothing is fine-tuned."
    return (
        f"{backbone.name}: cut after {point.name}, {point.share_above:.0%} of the multiply-adds are fine-tuned; "
        f"at most {point.values_per_view * 2:,} bytes stored for each view."
    )


def wanted(stop_after: str | None) -> list[str]:
    """Return the stages that run if they are stale. Raises: UsageError, if there is no such stage."""
    names = list(STAGES)
    if stop_after is None or stop_after == "report":
        return names
    if stop_after not in STAGES:
        raise UsageError(f"stop_after {stop_after!r}: there is no such stage. Give one of {', '.join(STAGES)}.")
    found = names[: names.index(stop_after) + 1]
    return [*found, "report"] if "explore" in found else found  # Without explore there is nothing to report.
