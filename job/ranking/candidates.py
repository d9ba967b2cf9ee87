"""The candidates that `rank` compares: each is a backbone with an image size and weights, named on the command line."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from job.config import Config
from job.errors import UsageError
from job.model import backbones
from job.model.hub.names import PREFIX
from job.sections import NAMED_WEIGHTS

_KEYS = ("alpha", "weights", "image_size")
_BRIEF_EPOCHS = 2
_SYNTAX = "NAME[:alpha=A][:weights=imagenet|preset|random|PLACE][:image_size=S], separated by commas"


@dataclass(frozen=True)
class Candidate:
    """A backbone to compare. `config` is the configuration of the run, changed so that the comparison is cheap."""

    config: Config

    @property
    def fine_tunes(self) -> bool:
        return self.config.backbone.unfreeze != "none"

    @property
    def image_size(self) -> int:
        return self.config.intake.image_size

    @property
    def label(self) -> str:
        """The name in tables. Candidates that differ only in image size or weights have the same one."""
        backbone = self.config.backbone
        return backbone.name if backbone.alpha is None else f"{backbone.name} {backbone.alpha:g}"

    @property
    def folder(self) -> str:
        """The folder name, which is the same in each call. Weights from a file are named by a digest of their content."""
        backbone = self.config.backbone
        weights = backbone.weights
        if weights not in NAMED_WEIGHTS:
            weights = backbones.fingerprint(backbone)[:8]
        label = re.sub(r"[^\w.-]+", "-", self.label)
        return "-".join([label, f"{self.image_size}px", weights, *(["fine_tuned"] if self.fine_tunes else [])])


def candidates(
    listed: Sequence[str], image_sizes: Sequence[str], base: Config, cache_dir: str, *, fine_tune: bool = False
) -> list[Candidate]:
    """Return a candidate for each entry of the lists and each of its image sizes.

    Image sizes are those of the entry, or `image_sizes`, or that of the configuration. Weights are those of the entry or of
    the configuration. Two equal candidates become one. With `fine_tune`, each is fine-tuned, for few epochs unless the
    configuration says how many.

    Raises:
        UsageError: with a line for each mistake.
    """
    mistakes: list[str] = []
    if base.backbone.alpha is not None:
        mistakes.append(
            "backbone.alpha: the configuration sets it for all; leave it out there and say NAME:alpha=... in --backbones"
        )
    if fine_tune and (base.backbone.unfreeze == "none" or base.fine_tune.epochs == 0):
        mistakes.append("--fine-tune: backbone.unfreeze is none, or fine_tune.epochs is 0, so nothing would be fine-tuned")
    sizes = [size for text in image_sizes for size in _image_sizes(text, f"--image-size {text}", mistakes)]
    sizes = sizes or [base.intake.image_size]
    compared = _compared(base, cache_dir, fine_tune)
    found: list[Candidate] = []
    for text in (part.strip() for one in listed for part in one.split(",")):
        found += _named(text, sizes, compared, mistakes) if text else ()
    if not found and not mistakes:
        mistakes.append(f"--backbones: there is no name in it; expected {_SYNTAX}")
    if mistakes:
        raise UsageError("The candidates have mistakes:", *(f"  {mistake}" for mistake in dict.fromkeys(mistakes)))
    return list({candidate.folder: candidate for candidate in found}.values())


def recommended(base: Config, chosen: Candidate) -> Config:
    """Return the configuration of a run with the backbone, image size and cache of a candidate."""
    own = chosen.config
    backbone = own.backbone.model_copy(update={"unfreeze": base.backbone.unfreeze})
    return base.model_copy(update={"backbone": backbone, "intake": own.intake, "cache": own.cache})


def _image_sizes(text: str, where: str, mistakes: list[str]) -> Iterator[int]:
    for part in text.split(","):
        if re.fullmatch("[0-9]{1,9}", part.strip()):  # int() refuses thousands of digits with its own error.
            yield int(part)
        else:
            mistakes.append(f"{where}: {part!r} is not a number of pixels; expected 160, or --image-size 96,160,224")


def _named(text: str, sizes: Sequence[int], base: Config, mistakes: list[str]) -> list[Candidate]:
    """Return the candidates of one entry of the list, one for each image size; none if it has mistakes, which are added."""
    first, *parts = re.split(":(?!//)", text.removeprefix(PREFIX))
    name = f"{PREFIX}{first}" if text.startswith(PREFIX) else first
    where, said = f"--backbones {text}", len(mistakes)
    if not backbones.is_known(name):
        mistakes.append(f"{where}: there is no backbone {name!r}; {backbones.suggestion(name)}")
    values: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not value or key not in _KEYS or key in values:
            again = "is given twice" if key in values else f"is not one of {', '.join(f'{k}=...' for k in _KEYS)}"
            mistakes.append(
                f"{where}: {part!r} {again}; expected {_SYNTAX}. A path with a colon or a comma goes to --weights"
            )
        values[key] = value
    own_sizes = list(_image_sizes(values["image_size"], where, mistakes)) if "image_size" in values else sizes
    if len(mistakes) > said:
        return []
    flags = {"backbone.name": name, "backbone.weights": values.get("weights", base.backbone.weights)}
    alpha = [f"backbone.alpha={values['alpha']}"] if "alpha" in values else []
    found = []
    for size in own_sizes:
        try:
            checked = Config.load(None, alpha, {**flags, "intake.image_size": size})
        except UsageError as error:
            mistakes += [f"{where}: {line.strip()}" for line in error.args[1:] or error.args]
            continue
        wrong = [*backbones.check(checked.backbone), *backbones.check_image_size(name, size)]
        mistakes += [f"{where}: {mistake}" for mistake in wrong]
        if not wrong:
            backbone = checked.backbone.model_copy(update={"unfreeze": base.backbone.unfreeze})
            intake = base.intake.model_copy(update={"image_size": size})
            found.append(Candidate(base.model_copy(update={"backbone": backbone, "intake": intake})))
    return found


def _compared(base: Config, cache_dir: str, fine_tune: bool) -> Config:
    """Return the configuration that all candidates share.

    Without fine-tuning there is no cut and no augmented view, so that extract stores one row of features for each photo.
    """
    cache = base.cache.model_copy(update={"dir": base.cache.dir or cache_dir})
    if fine_tune:
        epochs = _BRIEF_EPOCHS if base.fine_tune.epochs == "auto" else base.fine_tune.epochs
        train = base.train.model_copy(update={"seeds": 1})
        briefly = base.fine_tune.model_copy(update={"epochs": epochs})
        return base.model_copy(update={"cache": cache, "train": train, "fine_tune": briefly})
    frozen = base.backbone.model_copy(update={"unfreeze": "none"})
    once = base.augment.model_copy(update={"views": 1})
    nothing = base.fine_tune.model_copy(update={"inputs": "auto"})
    return base.model_copy(update={"backbone": frozen, "augment": once, "fine_tune": nothing, "cache": cache})
