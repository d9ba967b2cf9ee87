"""Where the time of a run went, from the records of its stages (docs/times.md).

A record has `wall_s` and `cpu_s` of the stage, `spent_s` (wall seconds by what they went into), `count` (what the stage
worked through) and `done` (examples that went through a compiled loop once it was traced, and how many an earlier run had
`found` finished).
"""

import math
from collections.abc import Mapping
from typing import NotRequired, TypedDict

from job.pipeline.table import STAGES


class Timing(TypedDict):
    """The part of a record that is about the time of its stage."""

    wall_s: float
    cpu_s: float
    count: NotRequired[int | None]
    spent_s: NotRequired[dict[str, float]]
    done: NotRequired[dict[str, int]]


Records = Mapping[str, Timing]

OTHER = "other"
PARTS = ("decode", "forward", "training", "waiting for data", "overhead", OTHER)
_PART_OF = {"decode": "decode", "forward": "forward", "validation": "forward", "training": "training"}
_PART_OF |= {"start": "training", "waiting for data": "waiting for data"}
_PART_OF |= dict.fromkeys(("imports", "building", "tracing", "export"), "overhead")
_PART_OF |= {"solving": "training"}


def spent(stage: str, record: Timing) -> dict[str, float]:
    """Wall seconds of a stage by what they went into, the largest first and the rest at the end."""
    known = {what: seconds for what, seconds in record.get("spent_s", {}).items() if seconds > 0}
    rest = max(0.0, record["wall_s"] - sum(known.values()))
    return {**dict(sorted(known.items(), key=lambda item: -item[1])), STAGES[stage].rest: rest}


def parts(stage: str, record: Timing) -> dict[str, float]:
    """Wall seconds of a stage by `PARTS`."""
    found = dict.fromkeys(PARTS, 0.0)
    for what, seconds in spent(stage, record).items():
        found[_PART_OF.get(what, OTHER)] += seconds
    return found


def shares(records: Records) -> dict[str, float]:
    """Return the share of the total time that went into each of `PARTS`, rounded so that the shares sum to one."""
    of_stages = [parts(stage, record) for stage, record in records.items()]
    seconds = {part: sum(found[part] for found in of_stages) for part in PARTS}
    total = sum(seconds.values())
    if not total:
        return {}
    rounded = {part: math.floor(1e4 * seconds[part] / total) / 1e4 for part in PARTS if part != OTHER}
    return {**rounded, OTHER: round(1 - sum(rounded.values()), 4)}


def rate(stage: str, record: Timing) -> float | None:
    """Return how much the stage works through in a second, in the unit of the table of stages.

    None where it counts nothing, or found everything there.
    """
    worked_through = (record.get("count") or 0) - record.get("done", {}).get("found", 0)
    return worked_through / max(record["wall_s"], 1e-9) if STAGES[stage].unit and worked_through > 0 else None


def throughput(records: Records) -> dict[str, float]:
    """`rate` of each stage, and of the loops in them from the second batch on, as NAME_UNIT_per_s."""
    rates = {}
    for stage, record in records.items():
        unit, loop = STAGES[stage].unit, STAGES[stage].loop
        if whole := rate(stage, record):
            rates[f"{stage}_{unit}_per_s"] = round(whole, 1)
        if done := record.get("done", {}).get(loop):
            rates[f"{stage}_{loop}_{unit}_per_s"] = round(done / max(record["spent_s"][loop], 1e-9), 1)
    return rates
