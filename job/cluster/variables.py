"""What schedulers write into variables of the environment: numbers, and Slurm's short forms of lists."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from job.errors import UsageError


def number(environ: Mapping[str, str], name: str) -> int:
    """Return the number in a variable. Raises: KeyError, ValueError."""
    if not re.fullmatch(r"[0-9]{1,18}", environ[name].strip()):
        raise ValueError(f"{name} is not a number: {environ[name]!r}")
    return int(environ[name])


@contextmanager
def refused(variable: str, way_out: str) -> Iterator[None]:
    """Turn what the block cannot read in the variables that belong to `variable` into a UsageError."""
    otherwise = f"Unset {variable} for a single worker, or {way_out}."
    try:
        yield
    except KeyError as error:
        raise UsageError(f"{variable} is set, and {error.args[0]} is not. {otherwise}") from error
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{error}. {otherwise}") from error


def expand_hosts(text: str) -> list[str]:
    """Slurm's list of hosts in its short form: `n[1-3,07],login` is n1, n2, n3, n07, login."""
    hosts: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for fixed, listed in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            parts = [fixed] if fixed else [number for part in listed.split(",") for number in _numbers(part)]
            names = [name + part for name in names for part in parts]
        hosts += names
    return hosts


def _numbers(part: str) -> list[str]:
    first, _, last = part.partition("-")
    return [f"{k:0{len(first)}d}" for k in range(int(first), int(last or first) + 1)]


def expand_counts(text: str) -> list[int]:
    """`2(x3),1` is 2, 2, 2, 1."""
    counts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(c[1]) for c in counts if c for _ in range(int(c[2] or 1))]


def task_nodes(on_nodes: list[int], distribution: str) -> list[int]:
    """The node of each task, as Slurm numbers them: node by node, or in turn.

    Raises:
        UsageError: where that cannot be known.
    """
    how = distribution.partition(":")[0].partition(",")[0]
    if how == "cyclic":
        return [node for place in range(max(on_nodes)) for node, count in enumerate(on_nodes) if place < count]
    if how in ("block", "*", ""):
        return [node for node, count in enumerate(on_nodes) for _ in range(count)]
    raise UsageError(f"Which task is where does not follow from srun --distribution={distribution}: use block.")
