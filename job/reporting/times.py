"""The time of a run, by stage and by activity, from the records of its stages (docs/times.md).

A record has `wall_s` and `cpu_s` of the stage, `spent_s` (wall seconds by activity), `count` (how many photos, views or
steps it has), and `done`: how many examples each compiled loop processed after it was traced, and under `found` how many
were already finished.
"""

import math
from collections.abc import Mapping
from typing import NotRequired, TypedDict

from job.pipeline.table import STAGES


class Timing(TypedDict):
    """The fields of a stage's record that are about time."""

    wall_s: float
    cpu_s: float
    count: NotRequired[int | None]
    spent_s: NotRequired[dict[str, float]]
    done: NotRequired[dict[str, int]]


Records = Mapping[str, Timing]

OTHER = "other"
PARTS = ("decode", "forward", "training", "waiting for data", "overhead", OTHER)
_PART_OF = {"decode": "decode", "waiting for data": "waiting for data"}
_PART_OF |= dict.fromkeys(("forward", "validation"), "forward") | dict.fromkeys(("training", "start", "solving"), "training")
_PART_OF |= dict.fromkeys(("imports", "building", "tracing", "export"), "overhead")


def spent(stage: str, record: Timing) -> dict[str, float]:
    """Return the wall seconds of a stage by activity, the largest first and the unmeasured rest at the end."""
    known = {what: seconds for what, seconds in record.get("spent_s", {}).items() if seconds > 0}
    rest = max(0.0, record["wall_s"] - sum(known.values()))
    return {**dict(sorted(known.items(), key=lambda item: -item[1])), STAGES[stage].rest: rest}


def parts(stage: str, record: Timing) -> dict[str, float]:
    """Return the wall seconds of a stage for each of `PARTS`."""
    found = dict.fromkeys(PARTS, 0.0)
    for what, seconds in spent(stage, record).items():
        found[_PART_OF.get(what, OTHER)] += seconds
    return found


def shares(records: Records) -> dict[str, float]:
    """Return the share of each of `PARTS` in the total time, rounded so that the shares sum to one."""
    of_stages = [parts(stage, record) for stage, record in records.items()]
    seconds = {part: sum(found[part] for found in of_stages) for part in PARTS}
    total = sum(seconds.values())
    if not total:
        return {}
    rounded = {part: math.floor(1e4 * seconds[part] / total) / 1e4 for part in PARTS if part != OTHER}
    return {**rounded, OTHER: round(1 - sum(rounded.values()), 4)}


def rate(stage: str, record: Timing) -> float | None:
    """Return how much the stage processed per second, in its unit from the table of stages.

    None if the stage has no unit, or if everything was already finished.
    """
    worked_through = (record.get("count") or 0) - record.get("done", {}).get("found", 0)
    return worked_through / max(record["wall_s"], 1e-9) if STAGES[stage].unit and worked_through > 0 else None


def throughput(records: Records) -> dict[str, float]:
    """Return the `rate` of each stage, and of its compiled loop from the second batch on, as NAME_UNIT_per_s."""
    rates = {}
    for stage, record in records.items():
        unit, loop = STAGES[stage].unit, STAGES[stage].loop
        if whole := rate(stage, record):
            rates[f"{stage}_{unit}_per_s"] = round(whole, 1)
        if done := record.get("done", {}).get(loop):
            rates[f"{stage}_{loop}_{unit}_per_s"] = round(done / max(record["spent_s"][loop], 1e-9), 1)
    return rates
