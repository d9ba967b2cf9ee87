"""Parsers for the environment variables of schedulers: numbers, and Slurm's short forms of lists."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from job.errors import UsageError

_MAX_WORKERS, _MAX_SHOWN = 10_000, 100
_NUMBERED_BY = {
    "{index}": ("JOB_COMPLETION_INDEX", "an Indexed Job (k8s/overlays/sweep)"),
    "{array}": ("SLURM_ARRAY_TASK_ID", "a Slurm array (slurm/array.sbatch)"),
}


def number(environ: Mapping[str, str], name: str) -> int:
    """Return the number in a variable. Raises: KeyError, ValueError."""
    if not re.fullmatch(r"[0-9]{1,18}", environ[name].strip()):
        raise ValueError(f"{name} is not a number: {environ[name]!r}")
    return int(environ[name])


def numbered(word: str, environ: Mapping[str, str]) -> str:
    """Return an argument with the number of this pod in place of `{index}`, and of this array task in place of `{array}`.

    So one command line starts different runs, as an Indexed Job of Kubernetes and a Slurm array need it.

    Raises:
        UsageError: if the scheduler has not set that number.
    """
    for mark, (name, started_by) in _NUMBERED_BY.items():
        if mark in word:
            if name not in environ:
                raise UsageError(f"{word}: {mark} stands for {name}, which is not set. Write a number, or use {started_by}.")
            word = word.replace(mark, environ[name])
    return word


def check_count(count: int, where: str) -> None:
    """Refuse more than 10,000 workers before memory is taken for a list of them. Raises: ValueError."""
    if count > _MAX_WORKERS:
        raise ValueError(f"{where[:_MAX_SHOWN]} means more than {_MAX_WORKERS:,} workers")


@contextmanager
def refused(variable: str, way_out: str) -> Iterator[None]:
    """Turn a missing or unreadable variable in the block into a UsageError that says how to correct it."""
    otherwise = f"Unset {variable} for a single worker, or {way_out}."
    try:
        yield
    except KeyError as error:
        raise UsageError(f"{variable} is set, but {error.args[0]} is not. {otherwise}") from error
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{error}. {otherwise}") from error


def expand_hosts(text: str) -> list[str]:
    """Expand Slurm's short form of a host list: `n[1-3,07],login` is n1, n2, n3, n07, login. Raises: ValueError."""
    hosts: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for fixed, listed in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            parts = [fixed] if fixed else _numbers(listed)
            check_count(len(hosts) + len(names) * len(parts), text)
            names = [name + part for name in names for part in parts]
        hosts += names
    return hosts


def _numbers(listed: str) -> list[str]:
    numbers: list[str] = []
    for part in listed.split(","):
        first, _, last = part.partition("-")
        span = range(int(first), int(last or first) + 1)
        check_count(len(numbers) + span.stop - span.start, listed)
        numbers += [f"{k:0{len(first)}d}" for k in span]
    return numbers


def expand_counts(text: str) -> list[int]:
    """Expand Slurm's short form of a list of counts: `2(x3),1` is 2, 2, 2, 1. Raises: ValueError."""
    counts: list[int] = []
    total = 0
    for match in filter(None, (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(","))):
        count, times = int(match[1]), int(match[2] or 1)
        total += max(count, 1) * times
        check_count(total, text)
        counts += [count] * times
    return counts


def task_nodes(on_nodes: list[int], distribution: str) -> list[int]:
    """Return the index of each task's node, in the order of the tasks. `on_nodes` has the number of tasks on each node.

    Raises:
        UsageError: if the distribution of tasks is neither block nor cyclic.
    """
    how = distribution.partition(":")[0].partition(",")[0]
    if how == "cyclic":
        return [node for place in range(max(on_nodes)) for node, count in enumerate(on_nodes) if place < count]
    if how in ("block", "*", ""):
        return [node for node, count in enumerate(on_nodes) for _ in range(count)]
    raise UsageError(f"srun --distribution={distribution} does not tell which task is where. Use srun --distribution=block.")
