"""The configuration: a section for each stage, from a TOML file and `--set section.key=value` over it.

Sections are frozen pydantic models. Unknown keys are refused. All mistakes are reported together, each with its dotted
name, the given value and the allowed values. A stage is stale if the digest of its sections has changed.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo

from job import sections
from job.console.places import place, read_named, refuse_odd_name, refused_at_start
from job.errors import UsageError
from job.sections import REFUSED, Section
from job.text.settings import what
from job.text.wording import explain

PLACES = ("backbone.weights", "intake.corrections", "intake.tfds_dir", "cache.dir")  # Settings that are paths.


class Config(Section):
    seed: int = what(
        0, "Seed of everything random, except the split. Some sections have a seed of their own.", ge=0, lt=2**63
    )
    intake: sections.IntakeConfig = sections.IntakeConfig()
    split: sections.SplitConfig = sections.SplitConfig()
    explore: sections.ExploreConfig = sections.ExploreConfig()
    backbone: sections.BackboneConfig = sections.BackboneConfig()
    augment: sections.AugmentConfig = sections.AugmentConfig()
    cache: sections.CacheConfig = sections.CacheConfig()
    checkpoint: sections.CheckpointConfig = sections.CheckpointConfig()
    extract: sections.ExtractConfig = sections.ExtractConfig()
    audit: sections.AuditConfig = sections.AuditConfig()
    head: sections.HeadConfig = sections.HeadConfig()
    train: sections.TrainConfig = sections.TrainConfig()
    fine_tune: sections.FineTuneConfig = sections.FineTuneConfig()
    evaluate: sections.EvaluateConfig = sections.EvaluateConfig()
    heatmaps: sections.HeatmapsConfig = sections.HeatmapsConfig()
    export: sections.ExportConfig = sections.ExportConfig()
    report: sections.ReportConfig = sections.ReportConfig()
    tracking: sections.TrackingConfig = sections.TrackingConfig()
    cluster: sections.ClusterConfig = sections.ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _seeds(cls, values: object) -> object:
        """Give the seed of the run to augment and train if their seed is left out."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name in ("augment", "train"):
            section = values.get(name, {})
            if isinstance(section, dict) and section.get("seed") is None:
                values[name] = {**section, "seed": values.get("seed", 0)}
        return values

    @classmethod
    def load(cls, file: Path | None, assignments: Sequence[str] = (), flags: Mapping[str, object] | None = None) -> Self:
        """Read a file, override it with `section.key=value` assignments, then with flags (values by dotted name).

        Raises:
            UsageError: with all mistakes in one message.
        """
        mistakes: list[str] = []
        values = _read_toml(file) if file else {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals or not name.strip():
                mistakes.append(f"--set {assignment}: expected section.key=value")
                continue
            _put(values, name.strip(), _parse_value(text.strip()), mistakes)
        for name, value in (flags or {}).items():
            if value is not None:
                _put(values, name, value, mistakes)
        for name in PLACES:
            section, _, key = name.partition(".")
            if isinstance(given := values.get(section), dict) and isinstance(given.get(key), str):
                given[key] = place(name, given[key])
                refuse_odd_name(name, given[key])
        config = None
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            mistakes.extend(explain(error, dict(fields()), cls.model_fields, REFUSED))
        if mistakes or config is None:
            raise UsageError("The configuration has mistakes:", *(f"  {line}" for line in mistakes))
        return config


def fields(section: type[Section] = Config, prefix: str = "") -> list[tuple[str, FieldInfo]]:
    """Return every setting with its dotted name, in the order of the sections."""
    found: list[tuple[str, FieldInfo]] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += fields(field.annotation, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field))
    return found


def with_dotted_names(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each value of nested mappings with its dotted name, like `("fine_tune.epochs", 20)`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from with_dotted_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _read_toml(file: Path) -> dict[str, object]:
    with refused_at_start(f"--config {file}", file):
        data = read_named(file)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        fault = "tables in it are nested too deep" if isinstance(error, RecursionError) else error
        raise UsageError(f"--config {file}: not TOML: {fault}.") from error


def _parse_value(text: str) -> object:
    """Parse a TOML value. Anything else is text, so that `--set backbone.name=mobilenet_v2` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _put(values: dict[str, object], dotted: str, value: object, mistakes: list[str]) -> None:
    *parents, key = dotted.split(".")
    for section in parents:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            mistakes.append(f"{dotted}: {section} is a value, not a section")
            return
        values = inner
    values[key] = value


def as_toml(config: Config) -> str:
    """Return the configuration as the text of a TOML file that gives the same configuration. None is left out."""
    lines: list[str] = []
    section = ""
    for dotted, _ in fields():
        *parents, key = dotted.split(".")
        value: object = config
        for name in (*parents, key):
            value = getattr(value, name)
        if parents and parents[0] != section:
            section = parents[0]
            lines += ["", f"[{section}]"]
        if value is not None:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)
