"""split: put copies of one picture into one group, and every group into one of train, val and test.

Splits that the user gives are kept. If they separate the copies of a group, the held-out copy stays and the training copy
is excluded. Other splits are drawn by a hash of the group's content. What an earlier run in the same output directory has
drawn is kept, so that a model is measured on photos that no earlier one was trained on.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple, Self

import numpy as np

from job.data.changes import changes, in_words
from job.data.corrections import Corrections
from job.data.duplicates import confirmed, conflicts, exact_pairs, group_ids, near_pairs, without_conflicts, without_leaks
from job.data.examples import Examples, Status
from job.errors import DataUnusable
from job.runtime.context import Context
from job.sections import SplitConfig
from job.sources.unlabelled import named_part
from job.stores.arrays import ArrayStore

TABLE = "stages/split/examples.parquet"
REFUSALS = "stages/split/refusals.json"
CORRECTIONS = "stages/split/corrections.json"
DRAWN_WITH = "stages/split/drawn_with.json"


class Refusal(NamedTuple):
    """A reason why this data cannot be used for training: the finding, its cases, and what to do."""

    finding: str
    details: list[str]
    action: str

    @property
    def lines(self) -> list[str]:
        return [self.finding, *(f"  {detail}" for detail in self.details), self.action]


@dataclass(frozen=True)
class SplitExamples:
    """The table with `split` and `group`, and with the status and reason of photos that must not be used."""

    examples: Examples
    refusals: tuple[Refusal, ...]  # If there are any, the data can be explored but not trained on.
    corrections: Corrections = Corrections()  # Those that are applied in the table.

    @classmethod
    def load(cls, context: Context) -> Self:
        return cls(
            Examples.load(context.workdir.path(TABLE)),
            tuple(Refusal(*r) for r in context.workdir.read_json(REFUSALS)),
            Corrections(context.workdir.read_json(CORRECTIONS)),
        )


def split(
    config: SplitConfig,
    *,
    examples: Examples,
    images: ArrayStore,
    max_quarantined_fraction: float,
    drop_small_classes: bool,
    context: Context,
    corrections: Corrections = Corrections(),
) -> SplitExamples:
    """Correct labels, group copies, and assign every group to a split. No later stage sees a label that is not corrected.

    Raises:
        DataUnusable: if there is no usable photo at all. Other reasons against training are returned in `refusals`.
    """
    draft = _Draft(corrections.applied(_with_groups(examples, config.group_from)))
    draft.quarantine_label_conflicts()
    draft.check_budget(max_quarantined_fraction)
    draft.group(config.near_duplicate_bits, images)
    draft.exclude_label_conflicts()
    draft.take_given_splits()
    draft.drop_or_refuse_small_classes(drop_small_classes)
    result = draft.examples()
    if not len(result.of()):
        raise DataUnusable(*(line for refusal in draft.refusals for line in refusal.lines))
    drawn_with = [config.seed, config.test_fraction, config.val_fraction]
    earlier = _earlier(context) if context.workdir.read_json(DRAWN_WITH) == drawn_with else None
    draft.assign(config, _splits(earlier))
    result = without_leaks(draft.examples())
    context.workdir.write_json(REFUSALS, draft.refusals)
    context.workdir.write_json(CORRECTIONS, corrections.decisions)
    context.workdir.write_bytes(TABLE, result.to_parquet())
    context.workdir.write_json(DRAWN_WITH, drawn_with)  # Last: with the table of other settings, it would keep their split.
    for line in (*corrections.notes(result), result.in_words()):
        context.telemetry.line(f"  {line}")
    if earlier and (changed := in_words(changes(earlier, result), "the last run")):
        context.telemetry.line(f"  {changed}")
    return SplitExamples(result, tuple(draft.refusals), corrections)


def _earlier(context: Context) -> Examples | None:
    """Return the table that the last run left, or None if there is none or it is damaged."""
    try:
        return Examples.load(context.workdir.path(TABLE))
    except (OSError, ValueError, KeyError):
        return None


def _splits(earlier: Examples | None) -> dict[str, str]:
    """Return the split of each file by its SHA-256. The strongest counts if copies were in several."""
    found: dict[str, str] = {}
    if earlier:
        for name in ("train", "val", "test"):
            found |= dict.fromkeys(earlier["sha256"][earlier["split"] == name], name)
    return found


def _with_groups(examples: Examples, group_from: str | None) -> Examples:
    """Return the examples with groups from their paths (`split.group_from`), if the source gives none."""
    if group_from is None:
        return examples
    pattern = re.compile(group_from)
    of_source = zip(examples["given_group"], examples["path"], strict=True)
    given = [group or named_part(pattern, path, "group") for group, path in of_source]
    if given and not any(given):
        raise DataUnusable(
            f"split.group_from: {group_from!r} matches no photo, for example not {examples['path'][0]}. "
            "A pattern without a slash must match the file name from its beginning."
        )
    return examples.with_columns(given_group=np.asarray(given, object))


class _Draft:
    """The columns of the table that this stage changes. Each method decides about one question."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._label, self._path, self._digest = (examples[name] for name in ("label", "path", "sha256"))
        self._class_names = list(examples.class_names)
        self.status = examples["status"].copy()
        self.reason = examples["reason"].copy()
        self.group_of = examples["group"].copy()
        self.split = examples["split"].copy()
        self.given = examples["given_split"].copy()
        self.refusals: list[Refusal] = []

    def examples(self) -> Examples:
        columns = {"status": self.status, "reason": self.reason, "group": self.group_of, "split": self.split}
        changed = self._examples.with_columns(**columns)
        return Examples(changed.columns, tuple(self._class_names))

    def check_budget(self, max_quarantined_fraction: float) -> None:
        quarantined = np.flatnonzero(self.status == "quarantined")
        candidates = len(quarantined) + len(self._usable())
        if len(quarantined) <= max_quarantined_fraction * candidates:
            return
        kinds = Counter(re.sub(r"\b\d+(x\d+)?\b", "N", self.reason[k]).split(" (")[0] for k in quarantined)
        self._refuse(
            f"{len(quarantined):,} of {candidates:,} files are quarantined ({len(quarantined) / candidates:.1%}), more than "
            f"intake.max_quarantined_fraction ({max_quarantined_fraction:.1%}) allows.",
            [f"{count:,} x {reason}" for reason, count in kinds.most_common(12)]
            + [f"{self._path[k]}: {self.reason[k]}" for k in quarantined[:10]],
            "Repair or remove them. If you can do without them, raise intake.max_quarantined_fraction.",
        )

    def quarantine_label_conflicts(self) -> None:
        for index, other in conflicts(self._examples, self._examples.grouped("sha256", self._usable())):
            self._set(index, "quarantined", f"label conflict: the same bytes as {self._path[other]}")

    def group(self, max_bits: int, images: ArrayStore) -> None:
        usable = self._usable()
        digest, phash, brightness, row = (self._examples[n][usable] for n in ("sha256", "phash", "brightness", "row"))
        exact = exact_pairs(digest)
        first_of_its_bytes = np.setdiff1d(np.arange(len(usable)), exact[:, 1])
        pairs = first_of_its_bytes[near_pairs(phash[first_of_its_bytes], max_bits, brightness[first_of_its_bytes])]
        pairs = pairs[confirmed(row[pairs], images)]
        self.group_of[usable] = usable[group_ids(len(usable), np.concatenate([exact, pairs]))]

    @cached_property
    def units(self) -> np.ndarray:
        """The `units` of the examples, which no split divides. They are computed once, so use them only after `group`."""
        return self.examples().units

    def exclude_label_conflicts(self) -> None:
        resolved = without_conflicts(self.examples())
        self.status, self.reason = resolved["status"], resolved["reason"]

    def take_given_splits(self) -> None:
        """Take the user's splits. Without a test set, val becomes the test set. Splits without train are refused."""
        names = {self.given[i] for i in self._usable()}
        if "train" in names and len(names) > 1:
            held_out = "test" if "test" in names else "val"
            for index in self._usable():
                self.split[index] = "test" if self.given[index] == held_out else self.given[index]
        elif names & {"val", "test"}:
            found = " and ".join(sorted(n for n in names if n))
            self._refuse(
                f"The source has photos for {found}, but none for train.", [], "Put the training photos into train/."
            )

    def drop_or_refuse_small_classes(self, drop: bool) -> None:
        """Drop or refuse small classes. A class needs two training photos if splits are given, otherwise three groups."""
        of_class = defaultdict(list)
        for index in self._usable():
            of_class[self._label[index]].append(index)
        problems = {name: p for name in self._class_names if (p := self._problem(name, of_class[name]))}
        if problems and not drop:
            self._refuse(
                "Some classes cannot be trained and measured.",
                [f"{name}: {problem}" for name, problem in problems.items()],
                "Add photos, remove these classes, or leave them out: --set intake.drop_small_classes=true",
            )
            return
        for index in self._usable():
            if self._label[index] in problems:
                self._set(index, "ignored", f"class left out: {problems[self._label[index]]}")
        self._class_names = [name for name in self._class_names if name not in problems]
        if len(self._class_names) < 2:
            self._refuse(f"Usable classes: {len(self._class_names)}.", [], "A classifier needs two or more: add photos.")

    def _problem(self, name: str, indices: list[int]) -> str:
        if not indices:
            refused = [i for i in range(len(self.status)) if self._label[i] == name and self.status[i] == "quarantined"]
            first = f" ({len(refused)} quarantined; the first: {self.reason[refused[0]]})" if refused else ""
            return f"no usable photos{first}"
        groups = {self.units[i] for i in indices}
        what = "groups of photos" if self._examples.has_given_groups else "different photos"
        copies = f" ({len(indices)} photos in all)" if len(indices) > len(groups) else ""
        if not any(self.split[i] for i in indices):
            return "" if len(groups) >= 3 else f"{len(groups)} {what}{copies}; train, val and test need one each"
        training = {self.group_of[i] for i in indices if self.split[i] == "train"}
        if not training:
            return f"photos only in {' and '.join(sorted({self.given[i] for i in indices}))}, none in train"
        return "" if len(training) >= 2 else f"{len(training)} training photo{copies}; at least 2 are needed"

    def assign(self, config: SplitConfig, earlier: Mapping[str, str]) -> None:
        """Draw the splits that the user has not given. `earlier` has those of an earlier run by SHA-256, which are kept.

        A group with photos of several splits goes to the strongest: test before val before train.
        """
        usable = self._usable()
        made_here = {"train", "val", "test"} - {self.split[i] for i in usable if self.split[i] != "train"}
        if made_here == {"train"}:
            return
        fractions = {"test": config.test_fraction, "val": config.val_fraction}
        wanted: dict[str, float] = {name: fractions[name] for name in ("test", "val") if name in made_here}
        pool: dict[int, list[int]] = defaultdict(list)
        torn = {self.units[i] for i in usable if self.split[i] in ("val", "test")}
        for index in usable:
            if self.split[index] in (None, "train") and self.units[index] not in torn:
                pool[self.units[index]].append(index)
        content = {g: min(self._digest[m]) for g, m in pool.items()}
        kept: dict[int, str] = {}
        for name in ("train", *reversed(wanted)):  # A later name replaces an earlier one.
            kept |= dict.fromkeys((g for g, m in pool.items() if name in {earlier.get(self._digest[i]) for i in m}), name)
        split_of_group = _draw(content, self._rarest_label(pool), wanted, config.seed, kept)
        for group, members in pool.items():
            for index in members:
                self.split[index] = split_of_group[group]
        for index in usable:
            self.split[index] = self.split[index] or "train"

    def _refuse(self, finding: str, details: list[str], action: str) -> None:
        self.refusals.append(Refusal(finding, details, action))

    def _usable(self) -> np.ndarray:
        return np.flatnonzero(np.isin(self.status, ("used", "converted")))

    def _set(self, index: int, status: Status, reason: str) -> None:
        self.status[index], self.reason[index] = status, reason

    def _rarest_label(self, pool: dict[int, list[int]]) -> dict[int, str]:
        """Return the label that is the rarest in all groups, for each group: of that class, each split needs a group."""
        counts = Counter(self._label[index] for members in pool.values() for index in members)
        return {g: min(self._label[members], key=lambda label: (counts[label], label)) for g, members in pool.items()}


def _draw(
    content: Mapping[int, str], label: Mapping[int, str], wanted: Mapping[str, float], seed: int, kept: Mapping[int, str]
) -> dict[int, str]:
    """Return the split of each group: that in `kept`, or one drawn class by class by thresholds on a hash of its content.

    If that gives a split no group of a class, it gets the next new group in the order of the hashes, as long as one is left
    for train.
    """
    position = {g: int(sha256(f"{seed}:{c}".encode()).hexdigest()[:13], 16) / 16**13 for g, c in content.items()}
    of_class = defaultdict(list)
    for group in sorted(position, key=lambda g: position[g]):
        of_class[label[group]].append(group)
    drawn = dict(kept)
    for groups in of_class.values():
        has = {kept[g] for g in groups if g in kept}
        remaining, low = [g for g in groups if g not in kept], 0.0
        names = [*wanted, "train"]
        for number, (name, fraction) in enumerate(wanted.items()):
            spare = max(0, len(remaining) - len(set(names[number + 1 :]) - has))  # Leave one for each split that has none.
            inside = [g for g in remaining if low <= position[g] < low + fraction]
            taken = set(inside[:spare] or remaining[: min(name not in has, spare)])
            drawn |= dict.fromkeys(taken, name)
            remaining = [g for g in remaining if g not in taken]
            low += fraction
        drawn |= dict.fromkeys(remaining, "train")
        _fill_empty(drawn, groups, names)
    return drawn


def _fill_empty(drawn: dict[int, str], groups: Sequence[int], names: Sequence[str]) -> None:
    """Give each split without a group one of the others, because photos that an earlier run drew for it may be gone.

    A group of the test set is taken only if no other split has two.
    """
    for name in names:
        of_split = {other: [g for g in groups if drawn[g] == other] for other in names}
        if not of_split[name]:
            donors = (other for other in names if len(of_split[other]) > 1)
            for donor in sorted(donors, key=lambda n: (n == "test", -len(of_split[n])))[:1]:
                drawn[of_split[donor][0]] = name
