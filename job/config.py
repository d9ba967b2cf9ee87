"""The configuration: one TOML file, `--set section.key=value` on top, a section for each stage.

Sections are frozen pydantic models; unknown keys are refused, and all mistakes are reported together, each with its
dotted path, the value given and the values allowed. What a stage depends on is what `digest_of` sees of its sections.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypedDict, TypeVar, Unpack

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from job.console.places import place, read_named, refuse_odd_name, refused_at_start
from job.errors import UsageError
from job.text.wording import explain

Value = TypeVar("Value")


class _Limits(TypedDict, total=False):
    ge: float
    gt: float
    le: float
    lt: float
    min_length: int


def _how(default: Value, description: str, **limits: Unpack[_Limits]) -> Value:
    """Define a setting that says how the work is done and not what comes out: it makes no finished stage stale."""
    return Field(default, description=description, json_schema_extra={"how": True}, **limits)


def _what(default: Value, description: str, **limits: Unpack[_Limits]) -> Value:
    return Field(default, description=description, **limits)


PLACES = ("backbone.weights", "intake.tfds_dir", "cache.dir")  # Settings that are paths.
_BY_SIZE = "auto follows the number of training photos (docs/defaults.md)."


def _ordered_pair(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    if pair is not None and not 0 <= pair[0] <= pair[1]:
        raise ValueError("two numbers, 0 or more, the smaller first")
    return pair


def _zoom(value: float | tuple[float, float]) -> float | tuple[float, float]:
    low, high = (1 - value, 1 + value) if isinstance(value, float) else value
    if not 0 < low <= high:
        raise ValueError("a number from 0 to below 1 (meaning 1 - z to 1 + z), or two numbers above 0, the smaller first")
    return value


def _shift(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    if value == () or (not isinstance(value, tuple) and value < 0):
        raise ValueError("a number, 0 or more (2.0: from -2 to 2; 2: -1, 0 or 1), or a list to choose from")
    return value


def _unfreeze(value: float | str) -> float | str:
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a share lies between 0 and 1; say none or all for the ends")
    return value


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def what(self) -> dict[str, object]:
        """Return the values that decide what comes out of a stage."""
        how = {name for name, field in type(self).model_fields.items() if _is_how(field)}
        return self.model_dump(mode="json", exclude=how)


class IntakeConfig(Section):
    image_size: int = _what(224, "Height and width in pixels of the stored pictures.", ge=32, le=1024)
    resize: Literal["squash", "crop", "pad"] = _what(
        "squash", "How a photo becomes a square: whole but distorted, its middle, or whole with black borders."
    )
    max_pixels: int = _what(50_000_000, "A file that claims more pixels is quarantined from its header.", ge=1)
    min_side_px: int = _what(8, "A photo with a shorter side is quarantined.", ge=1)
    max_aspect_ratio: float = _what(20.0, "A photo longer than this times its width is quarantined.", ge=1)
    max_quarantined_fraction: float = _what(
        0.05, "The run ends with exit code 65 where a larger share of the files is quarantined.", ge=0, le=1
    )
    drop_small_classes: bool = _what(
        False, "Leave out classes that cannot be trained and measured, instead of ending with exit code 65."
    )
    tfds_dir: str | None = _how(
        None, "Folder or bucket of prepared tensorflow-datasets, for --data tfds:NAME; left out, TFDS decides."
    )
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = _how(
        "auto", "Decode processes; auto means one for each usable core."
    )
    decode_timeout_s: float = _what(30.0, "A file that takes longer to decode is quarantined.", gt=0)
    worker_memory_mb: int = _what(2048, "Address space of a decode process, above what it starts with.", ge=256)


class SplitConfig(Section):
    seed: int | None = _what(None, "Seed of the split; the run's seed where it is left out.", ge=0, lt=2**63)
    val_fraction: float = _what(0.15, "Share of the groups for validation, where the data has no such split.", gt=0, lt=0.5)
    test_fraction: float = _what(0.15, "Share of the groups held out, where the data has no such split.", gt=0, lt=0.5)
    near_duplicate_bits: int = _what(
        4, "Photos whose 64-bit perceptual hashes differ in at most this many bits are compared pixel by pixel.", ge=0, le=6
    )


class ExploreConfig(Section):
    samples_per_class: int = _what(10, "Example pictures of each class in the report.", ge=1, le=50)


class BackboneConfig(Section):
    name: str = _what("mobilenet_v2", "A backbone of keras.applications; docs/backbones.md lists them.")
    alpha: float | None = _what(None, "Width multiplier of the MobileNets; 1.0 where it is left out.", gt=0, le=2)
    weights: str = _what(
        "imagenet", "imagenet, random, or a file, here or in a bucket (.weights.h5, or a legacy .h5 without top)."
    )
    unfreeze: Annotated[float | str, AfterValidator(_unfreeze)] = _what(
        0.4,
        "What is fine-tuned: none, all, the share of the backbone's multiply-adds above the cut, or the layer to cut after.",
    )


_SCALED = "the model itself scales pixels as its pre-trained backbone wants them, before export and after it"
REFUSED: Mapping[str, str] = {  # Keys of ImageDataGenerator that a user may bring along, with the reason.
    **dict.fromkeys(("augment.featurewise_center", "augment.featurewise_std_normalization"), _SCALED),
    **dict.fromkeys(("augment.samplewise_center", "augment.samplewise_std_normalization"), _SCALED),
    **dict.fromkeys(("augment.rescale", "augment.preprocessing_function"), _SCALED),
    **dict.fromkeys(("augment.zca_whitening", "augment.zca_epsilon"), "no pre-trained backbone has seen whitened photos"),
    "augment.data_format": "photos are stored with their channels last, and every stage reads them so",
    "augment.validation_split": "say split.val_fraction",
    "augment.dtype": "pictures are float32; say fine_tune.precision for the arithmetic of training",
}


class AugmentConfig(Section):
    """The vocabulary and the meaning of the values are those of Keras' ImageDataGenerator; see docs/augmentation.md."""

    seed: int | None = _what(None, "Seed of the drawn transformations; the run's seed where it is left out.", ge=0, lt=2**63)
    engine: Literal["batched", "image_data_generator"] = _what(
        "batched", "batched: one warp for a whole batch, on the device. image_data_generator: Keras' class, one by one."
    )
    views: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = _what(
        "auto", f"Stored views of each training photo; the first is the photo itself. {_BY_SIZE}"
    )
    rotation_range: float = _what(20.0, "Degrees to either side.", ge=0, le=360)
    width_shift_range: Annotated[int | float | tuple[float, ...], AfterValidator(_shift)] = _what(
        0.1, "0.1: up to this share of the width to either side; 5.0: pixels; 5: whole pixels below 5; a list: one of these."
    )
    height_shift_range: Annotated[int | float | tuple[float, ...], AfterValidator(_shift)] = _what(
        0.1, "The same for the height."
    )
    shear_range: float = _what(0.0, "Shear angle in degrees, to either side.", ge=0, lt=90)
    zoom_range: Annotated[float | tuple[float, float], AfterValidator(_zoom)] = _what(
        (0.6, 1.0), "z for 1 - z to 1 + z, or [low, high]; below 1 enlarges."
    )
    channel_shift_range: float = _what(0.0, "Largest shift of all channels together, of 255.", ge=0, le=255)
    brightness_range: Annotated[tuple[float, float] | None, AfterValidator(_ordered_pair)] = _what(
        (0.8, 1.2), "[low, high] factors; [1, 1] leaves it alone."
    )
    horizontal_flip: bool = _what(True, "Mirror half of the views left to right.")
    vertical_flip: bool = _what(False, "Mirror half of the views top to bottom.")
    fill_mode: Literal["nearest", "reflect", "constant", "wrap"] = _what("reflect", "What lies outside the photo.")
    cval: float = _what(0.0, "The value outside, where fill_mode is constant.", ge=0, le=255)
    interpolation_order: Literal[1] = _what(1, "1: linear, once. Splines of other orders are not computed on the device.")


class CacheConfig(Section):
    dir: str | None = _how(
        None, "Folder or bucket for photos, features and activations, which runs may share; OUT/cache where it is left out."
    )
    max_gb: float | None = _how(
        None,
        "The stores of a run may take this much. More is refused: photos before they are decoded, the rest before the "
        "backbone runs.",
        gt=0,
    )


class CheckpointConfig(Section):
    every_s: float = _how(30.0, "Seconds between checkpoints of head and fine_tune: what a kill can cost at most.", ge=0)
    grace_s: float = _how(
        10.0, "Seconds that a signal leaves the run to save its work; then it ends, with what was saved before.", ge=0
    )


class ExtractConfig(Section):
    batch_size: int = _what(64, "Pictures in one forward pass of the frozen backbone.", ge=1)


class AuditConfig(Section):
    min_similarity: float = _what(
        0.8, "Photos whose features have at least this cosine similarity are compared pixel by pixel.", gt=0, le=1
    )
    folds: int = _what(5, "Folds of the out-of-fold predictions that label issues are found by.", ge=2, le=20)
    shown: int = _what(24, "How many label issues, unusual photos and groups of copies the report shows.", ge=0, le=200)


class HeadConfig(Section):
    c_grid: tuple[Annotated[float, Field(gt=0)], ...] = _what(
        (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        "Inverse regularisation strengths to solve for; validation log-loss chooses.",
        min_length=1,
    )
    class_weight: Literal["none", "balanced"] = _what("none", "balanced gives every class the same total weight.")
    max_iterations: int = _what(2000, "L-BFGS iterations for each strength.", ge=1)


class TrainConfig(Section):
    seed: int | None = _what(None, "Seed of the order of examples; the run's seed where it is left out.", ge=0, lt=2**63)


class FineTuneConfig(Section):
    inputs: Literal["auto", "stored", "online"] = _what(
        "auto",
        "stored: activations of the stored views; online: photos, augmented anew and run through the frozen layers in every "
        "epoch; auto decides by the cut point, the views, the disk and the memory, and says why.",
    )
    epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = _what(
        "auto", f"Passes over the training photos; 0 leaves fine-tuning out. {_BY_SIZE}"
    )
    global_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = _what(
        "auto",
        f"Examples in a step, over all devices; one that does not fit into their memory is computed in parts. {_BY_SIZE}",
    )
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = _what(
        "auto", f"Peak learning rate of AdamW. {_BY_SIZE}"
    )
    warmup_fraction: float = _what(0.1, "Share of the steps in which the learning rate rises.", ge=0, le=0.9)
    weight_decay: float = _what(1e-4, "Decoupled weight decay of AdamW.", ge=0)
    label_smoothing: float = _what(0.1, "Share of a label's weight that is spread over all classes.", ge=0, lt=1)
    ema: bool = _what(False, "Evaluate and ship the exponential moving average of the weights.")
    precision: Literal["auto", "float32", "float64", "mixed_bfloat16"] = _what(
        "auto", "Arithmetic of the trained layers; auto means mixed_bfloat16 on GPUs that have it, else float32."
    )
    keep: Literal["last", "best"] = _what("last", "The epoch whose weights are kept; best is by validation log-loss.")
    patience: int = _what(5, "With keep = best: epochs without improvement after which training stops.", ge=1)
    class_weight: Literal["none", "balanced"] = _what("none", "balanced gives every class the same total weight.")


class EvaluateConfig(Section):
    bootstrap_samples: int = _what(2000, "Resamples for bootstrap intervals.", ge=100)
    ece_bins: int = _what(15, "Equally wide bins of confidence for the expected calibration error.", ge=2)
    ship_margin: float = _what(
        0.02, "The fine-tuned model ships if it is more accurate and, at 95%, not worse by more than this.", ge=0, le=1
    )
    min_accuracy: float | None = _what(
        None, "Quality gate: below it nothing is exported and the exit code is 3.", ge=0, le=1
    )
    mistakes: int = _what(24, "Most confident mistakes shown in the report.", ge=0, le=200)


class ExportConfig(Section):
    parity_photos: int = _what(1000, "Held-out photos that go through the exported model, at most.", ge=1)
    max_changed_fraction: float = _what(0.03, "Share of labels that may differ between bytes and training path.", ge=0, le=1)


class ReportConfig(Section):
    title: str = _what("", "Heading of the report; the name of the data where it is left out.")


class ClusterConfig(Section):
    start_timeout_s: float = _how(300.0, "Seconds that the workers of a run wait for each other at the start.", gt=0)
    logical_cpus: int | None = _how(
        None, "Split the CPU into this many TensorFlow devices, to try replicas out.", ge=1, le=64
    )


class Config(Section):
    seed: int = _what(0, "Decides everything random, unless a section has a seed of its own.", ge=0, lt=2**63)
    intake: IntakeConfig = IntakeConfig()
    split: SplitConfig = SplitConfig()
    explore: ExploreConfig = ExploreConfig()
    backbone: BackboneConfig = BackboneConfig()
    augment: AugmentConfig = AugmentConfig()
    cache: CacheConfig = CacheConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    extract: ExtractConfig = ExtractConfig()
    audit: AuditConfig = AuditConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    report: ReportConfig = ReportConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _seeds(cls, values: object) -> object:
        """Give every section whose seed is left out that of the run."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name in ("split", "augment", "train"):
            section = values.get(name, {})
            if isinstance(section, dict) and section.get("seed") is None:
                values[name] = {**section, "seed": values.get("seed", 0)}
        return values

    @classmethod
    def load(cls, file: Path | None, assignments: Sequence[str] = (), flags: Mapping[str, object] | None = None) -> Self:
        """Read the file, lay `section.key=value` assignments and then flags (dotted names) over it.

        Raises:
            UsageError: naming every mistake at once.
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
    """Every setting with its dotted name, in the order of the file."""
    found: list[tuple[str, FieldInfo]] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += fields(field.annotation, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field))
    return found


def _is_how(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("how"))


def _read_toml(file: Path) -> dict[str, object]:
    with refused_at_start(f"--config {file}", file):
        data = read_named(file)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        fault = "tables in it are nested too deep" if isinstance(error, RecursionError) else error
        raise UsageError(f"--config {file}: not TOML: {fault}.") from error


def _parse_value(text: str) -> object:
    """Return a TOML value, or text where it is none: `--set backbone.name=mobilenet_v2` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _put(values: dict[str, object], dotted: str, value: object, mistakes: list[str]) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            mistakes.append(f"{dotted}: {section} is a value, not a section")
            return
        values = inner
    values[key] = value


def as_toml(config: Config) -> str:
    """The configuration as a file that gives the same one again. Keys that are left out by default stay out."""
    lines: list[str] = []
    section = ""
    for dotted, _ in fields():
        *sections, key = dotted.split(".")
        value: object = config
        for name in (*sections, key):
            value = getattr(value, name)
        if sections and sections[0] != section:
            section = sections[0]
            lines += ["", f"[{section}]"]
        if value is not None:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)
