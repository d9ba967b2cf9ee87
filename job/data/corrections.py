"""Corrections of labels: decisions of people about photos, from a table such as an edited label_issues.csv.

A photo is known by the SHA-256 of its bytes, so a decision holds for all copies of a file. The source is not changed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from job.console.places import check_readable
from job.data.examples import Examples
from job.errors import DataUnusable, UsageError
from job.sources.base import folded
from job.sources.grids import Grid, plain, read_grid
from job.storage.bucket.downloads import local_copy
from job.storage.bucket.objects import is_remote
from job.text.numbers import counted

KEEP, DROP = "keep", "drop"
DROPPED = "left out by a correction"  # The reason in the table of examples.
_CLASS = "class:"  # Written before the name of a class, if the name alone would mean something else.
_NAMES = ("sha256", "decision")
_FAULTS_SHOWN = 10


@dataclass(frozen=True)
class Corrections:
    """Decisions by the SHA-256 of the photos that they are about. A decision is KEEP, DROP, or a class.

    A class is its name, or `class:` and its name if the name is keep, drop, or itself begins with `class:`.
    """

    decisions: Mapping[str, str] = field(default_factory=dict)

    def applied(self, examples: Examples) -> Examples:
        """Return the examples with corrected labels, and without the dropped photos, which are excluded.

        `given_label` of each photo with a decision is the label that the source gives it.
        """
        columns = {name: examples[name].copy() for name in ("label", "given_label", "status", "reason")}
        usable = set(examples.of().tolist())
        for index, digest in enumerate(examples["sha256"]):
            if (decision := self.decisions.get(digest)) is None:
                continue
            columns["given_label"][index] = columns["label"][index]
            if decision == DROP and index in usable:
                columns["status"][index], columns["reason"][index] = "excluded", DROPPED
            elif decision not in (KEEP, DROP):
                columns["label"][index] = decision.removeprefix(_CLASS)
        return examples.with_columns(**columns)

    def notes(self, examples: Examples) -> tuple[str, ...]:
        """Return a line about what was corrected, from examples that are corrected; none if there is no decision."""
        if not self.decisions:
            return ()
        changed, dropped = (int(column.sum()) for column in (examples.is_relabelled, examples["reason"] == DROPPED))
        others = int(examples.is_decided.sum()) - changed - dropped
        parts = [counted(changed, "label was changed", "labels were changed")]
        parts += [counted(dropped, "photo was left out", "photos were left out")] if dropped else []
        parts += [counted(others, "label stays", "labels stay")] if others else []
        missing = len(self.decisions.keys() - set(examples["sha256"]))
        absent = f" {missing:,} of {len(self.decisions):,} are about photos that are not here." if missing else ""
        return (f"Corrections: {', '.join(parts)}.{absent}",)


def read_corrections(place: str, class_names: Sequence[str]) -> Corrections:
    """Return the decisions of a table with the columns sha256 and decision, on this machine or in a bucket.

    Rows without a decision do not count. Classes are found without regard to letter case, spaces and Unicode form.

    Raises:
        UsageError: if there is no such file.
        DataUnusable: if it is not such a table, names unknown classes, or decides about a photo in two ways.
    """
    if not is_remote(place):
        if not Path(place).is_file():
            raise UsageError(f"--corrections {place}: no such file. Give an edited copy of label_issues.csv.")
        check_readable(f"--corrections {place}", Path(place))
    grid = read_grid(local_copy(place) if is_remote(place) else Path(place), place, frozenset(_NAMES))
    at = [_column(grid, name, place) for name in _NAMES]
    classes = {folded(name): name for name in class_names}
    found: dict[str, tuple[str, int]] = {}  # The decision about each photo, and the row that has it first.
    faults: list[str] = []
    for number, cells in grid.rows:
        digest, text = ((cells[k] if k < len(cells) else "").strip() for k in at)
        digest = digest.lower()
        decision = _decision(text, classes)
        if len(cells) > len(grid.names):
            faults.append(f"row {number} has {len(cells)} fields instead of {len(grid.names)}: quote text with separators.")
        elif text and not re.fullmatch("[0-9a-f]{64}", digest):
            faults.append(f"row {number} has a decision, and {digest[:70]!r} is not the SHA-256 of a photo.")
        elif text and not decision:
            faults.append(f"row {number}: {text!r} is neither keep, nor drop, nor a class.{_similar(text, class_names)}")
        elif decision and found.setdefault(digest, (decision, number))[0] != decision:
            first, row = found[digest]
            faults.append(f"row {number} says {decision!r} about a photo, and row {row} says {first!r} about the same.")
    if faults:
        more = [f"  and {len(faults) - _FAULTS_SHOWN:,} more"] if len(faults) > _FAULTS_SHOWN else []
        raise DataUnusable(
            f"--corrections {place}: {counted(len(faults), 'row', 'rows')} cannot be taken:",
            *(f"  {fault}" for fault in faults[:_FAULTS_SHOWN]),
            *more,
            "The column decision takes keep, drop, or the name of a class that the data has. Exact copies share a decision.",
        )
    return Corrections({digest: decision for digest, (decision, _) in sorted(found.items())})


def in_a_table(label: str) -> str:
    """Return the decision that gives a photo this label."""
    return f"{_CLASS}{label}" if folded(label) in (KEEP, DROP) or label.startswith(_CLASS) else label


def _decision(text: str, classes: Mapping[str, str]) -> str:
    """Return what a cell decides; empty if nothing is known by that name. The words go before classes of that name."""
    if folded(text) in (KEEP, DROP):
        return folded(text)
    named = text if folded(text) in classes else text.removeprefix(_CLASS)
    return in_a_table(classes[folded(named)]) if folded(named) in classes else ""


def _similar(text: str, class_names: Sequence[str]) -> str:
    similar = get_close_matches(text, class_names, n=1, cutoff=0.6)
    return f" Did you mean {similar[0]!r}?" if similar else ""


def _column(grid: Grid, name: str, place: str) -> int:
    at = [k for k, found in enumerate(grid.names) if plain(found) == name]
    if len(at) == 1:
        return at[0]
    fault = f"{len(at)} columns are called {name!r}" if at else f"it has no column {name!r}"
    raise DataUnusable(
        f"--corrections {place}: {fault}. Its columns: {', '.join(grid.names)}. Give an edited copy of label_issues.csv, or "
        "a table with the columns sha256 and decision."
    )
