"""The settings: a section for each stage. They are frozen pydantic models; `job.config` reads them.

The text of a setting is its help in docs/configuration.md. Settings made with `what` change the result of a stage, those
made with `how` do not.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from job.errors import UsageError
from job.text import settings
from job.text.settings import how, what

_BY_SIZE = "auto depends on the number of training photos: see docs/defaults.md."
_BY_QUALITY = "auto depends on the number of training photos and on train.quality: see docs/defaults.md."
_SEED = "If it is left out, the value of seed is used."
_CLASS_WEIGHT = "none: every photo has the same weight. balanced: every class has the same total weight."


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def what(self) -> dict[str, object]:
        """Return the settings that change the result of a stage."""
        excluded = {name for name, field in type(self).model_fields.items() if settings.is_how(field)}
        return self.model_dump(mode="json", exclude=excluded)


class IntakeConfig(Section):
    image_size: int = what(224, "Height and width of the stored pictures in pixels.", ge=32, le=1024)
    resize: Literal["squash", "crop", "pad"] = what(
        "squash", "How a photo becomes square. squash: distorted. crop: only its middle. pad: with black borders."
    )
    max_pixels: int = what(50_000_000, "A file with more pixels (width x height) in its header is quarantined.", ge=1)
    min_side_px: int = what(8, "A photo with a side shorter than this many pixels is quarantined.", ge=1)
    max_aspect_ratio: float = what(20.0, "A photo longer than this many times its shorter side is quarantined.", ge=1)
    bit_depth: Annotated[int, Field(ge=9, le=16)] | Literal["auto"] = what(
        "auto",
        "Bits that 16-bit photos use; with 12, the value 4,095 is white. auto: the fewest that hold all values.",
    )
    max_quarantined_fraction: float = what(
        0.05, "If a larger share of the files is quarantined, the run ends with exit code 65.", ge=0, le=1
    )
    drop_small_classes: bool = what(
        False, "Leave out classes with too few photos, instead of ending the run with exit code 65."
    )
    layout: Literal["auto", "classes", "splits"] = how(
        "auto",
        "What the folders at the top of --data are: classes, splits (those that are named like one), or what the job finds.",
    )
    label_from: Literal["folder", "parent", "name"] = how(
        "folder",
        "Where the label of a photo stands. folder: the folder at the top, or below the split. parent: the folder that the "
        "photo lies in. name: its file name.",
    )
    label_pattern: Annotated[str | None, AfterValidator(settings.pattern("label"))] = how(
        None,
        "Regular expression with a group (?P<label>...), for label_from = name. It is matched with the file name or, if it "
        "contains a slash, searched in the path below --data. Left out, the label stands before a number: cat.0.jpg.",
    )
    path_column: str | None = how(None, "Column of a table with the paths of the photos; left out, common names are known.")
    label_column: str | None = how(None, "Column of a table with the labels; left out, common names are known.")
    split_column: str | None = how(None, "Column of a table with the splits; left out, common names are known.")
    group_column: str | None = how(
        None, "Column of a table with what was taken together (patient, camera, place): no group is in two splits."
    )
    test_values: tuple[str, ...] = how((), "Values of the split column whose rows are held out, for example folds.")
    val_values: tuple[str, ...] = how((), "Values of the split column whose rows are for validation.")
    allow_joined_labels: bool = how(
        False, "Take labels such as 'red fish' for classes of their own, where 'red' and 'fish' are labels, too."
    )
    follow_links: bool = how(False, "Follow links that leave --data, to the folders in link_roots and nowhere else.")
    link_roots: tuple[str, ...] = how((), "Folders outside of --data that links may lead to, with follow_links.")
    tfds_dir: str | None = how(
        None, "Folder or bucket with data sets for --data tfds:NAME. If left out, the default of tensorflow-datasets."
    )
    corrections: str | None = how(
        None,
        "Table with decisions about labels (keep, drop, or a class) by the sha256 of the photos, such as an edited copy of "
        "label_issues.csv; local or in a bucket. See docs/data.md.",
    )
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = how(
        "auto", "Number of processes that decode photos. auto: one per usable CPU core."
    )
    decode_timeout_s: float = what(30.0, "A file that takes longer than this many seconds to decode is quarantined.", gt=0)
    worker_memory_mb: int = what(2048, "Memory in MB of a decode process. A photo that needs more is quarantined.", ge=256)


class SplitConfig(Section):
    group_from: Annotated[str | None, AfterValidator(settings.pattern("group"))] = what(
        None,
        "Regular expression with a group (?P<group>...): photos with the same group were taken together, and no group is in "
        "two splits. It is matched with the file name or, if it contains a slash, searched in the path below --data.",
    )
    seed: int = what(
        0,
        "Seed of the random split. It does not follow seed, so that runs with other seeds have the same test set.",
        ge=0,
        lt=2**63,
    )
    val_fraction: float = what(
        0.15, "Share of the photos for validation, if the data has no such split; copies count once.", gt=0, lt=0.5
    )
    test_fraction: float = what(
        0.15, "Share of the photos for the test set, if the data has no such split; copies count once.", gt=0, lt=0.5
    )
    near_duplicate_bits: int = what(
        4, "To find copies, photos whose perceptual hashes differ in at most this many of 64 bits are compared.", ge=0, le=6
    )


class ExploreConfig(Section):
    samples_per_class: int = what(10, "Number of example photos per class in the report.", ge=1, le=50)


PUBLISHED_WEIGHTS = ("imagenet", "preset")  # Two words for those that are published under the name of the backbone.
NAMED_WEIGHTS = (*PUBLISHED_WEIGHTS, "random")


class BackboneConfig(Section):
    name: str = what("mobilenet_v2", "The pre-trained model: a name of docs/backbones.md, or hub:PRESET of KerasHub.")
    alpha: float | None = what(None, "Width multiplier of MobileNets; 1.0 if it is left out. Smaller is faster.", gt=0, le=2)
    weights: str = what(
        "imagenet",
        "imagenet or preset: those published with the model. random. Or a place, local or in a bucket: a file (.weights.h5, "
        "or a legacy .h5 without top), the folder of a preset, or what transfer-job weights fetch has written.",
    )
    features: Literal["auto", "class", "mean", "both"] = what(
        "auto",
        "Features of a vision transformer. class: its class token, or SigLIP's pooling. mean: mean of the patches. both: "
        "side by side. auto: those of its authors' linear classifier (docs/backbones.md).",
    )
    unfreeze: Annotated[float | str, AfterValidator(settings.unfreeze)] = what(
        "auto",
        "How much is fine-tuned. none: only the head. all: every layer. A share between 0 and 1: the top layers, with this "
        "share of the backbone's multiply-adds. Or a layer: everything above it. auto depends on train.quality.",
    )


_SCALED = "the model itself scales pixels as its backbone needs it, in training and after export"
REFUSED: Mapping[str, str] = {  # Arguments of ImageDataGenerator that this job does not take, with the reason.
    **dict.fromkeys(("augment.featurewise_center", "augment.featurewise_std_normalization"), _SCALED),
    **dict.fromkeys(("augment.samplewise_center", "augment.samplewise_std_normalization"), _SCALED),
    **dict.fromkeys(("augment.rescale", "augment.preprocessing_function"), _SCALED),
    **dict.fromkeys(("augment.zca_whitening", "augment.zca_epsilon"), "no pre-trained backbone has seen whitened photos"),
    "augment.data_format": "photos are always stored with the channels last",
    "augment.validation_split": "use split.val_fraction",
    "augment.dtype": "pictures are always float32; fine_tune.precision sets the precision of training",
}


class AugmentConfig(Section):
    """Augmentation, with the names and meanings of Keras' ImageDataGenerator; see docs/augmentation.md."""

    seed: int | None = what(None, f"Seed of the random views. {_SEED}", ge=0, lt=2**63)
    engine: Literal["batched", "image_data_generator"] = what(
        "batched", "batched: a whole batch at once, on the device. image_data_generator: Keras' class, on the CPU."
    )
    views: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = what(
        "auto", f"Number of stored views per training photo. The first view is the photo itself. {_BY_QUALITY}"
    )
    rotation_range: float = what(20.0, "Largest rotation in degrees, to either side.", ge=0, le=360)
    width_shift_range: Annotated[int | float | tuple[float, ...], AfterValidator(settings.shift)] = what(
        0.1,
        "Largest horizontal shift, to either side. 0.1: share of the width. 5.0: pixels. 5: fewer than 5 whole pixels. A "
        "list: one of its values.",
    )
    height_shift_range: Annotated[int | float | tuple[float, ...], AfterValidator(settings.shift)] = what(
        0.1, "Largest vertical shift, up and down, given like width_shift_range."
    )
    shear_range: float = what(0.0, "Largest shear angle in degrees, to either side.", ge=0, lt=90)
    zoom_range: Annotated[float | tuple[float, float], AfterValidator(settings.zoom)] = what(
        (0.6, 1.0), "Zoom from low to high: [low, high], or z for [1 - z, 1 + z]. Values below 1 enlarge the photo."
    )
    channel_shift_range: float = what(0.0, "Largest value added to all channels or subtracted (0 to 255).", ge=0, le=255)
    brightness_range: Annotated[tuple[float, float] | None, AfterValidator(settings.ordered_pair)] = what(
        (0.8, 1.2), "Factor of the brightness: [low, high]. [1, 1] turns it off."
    )
    horizontal_flip: bool = what(True, "Mirror half of the views left to right.")
    vertical_flip: bool = what(False, "Mirror half of the views top to bottom.")
    fill_mode: Literal["nearest", "reflect", "constant", "wrap"] = what("reflect", "How to fill pixels outside the photo.")
    cval: float = what(0.0, "With fill_mode = constant: value of the pixels outside the photo.", ge=0, le=255)
    interpolation_order: Literal[1] = what(1, "Only 1 (linear) is supported.")


class CacheConfig(Section):
    dir: str | None = how(
        None, "Folder or bucket for decoded photos, features and activations. Runs can share it. If left out, OUT/cache."
    )
    max_gb: float | None = how(
        None, "Largest size in GB of the stores of a run in the cache. If they would need more, the run refuses.", gt=0
    )


class CheckpointConfig(Section):
    every_s: float = how(30.0, "Seconds between checkpoints of head and fine_tune. A kill loses at most this.", ge=0)
    grace_s: float = how(
        10.0, "Seconds after a signal in which the run saves its work. Then it exits with what is saved.", ge=0
    )


class ExtractConfig(Section):
    batch_size: int = what(64, "Photos per forward pass of the frozen backbone. Lower it if memory is short.", ge=1)


class AuditConfig(Section):
    min_similarity: float = what(
        0.8, "Two photos are checked for being copies if their features have at least this cosine similarity.", gt=0, le=1
    )
    folds: int = what(5, "Number of cross-validation folds for finding labels that may be wrong.", ge=2, le=20)
    shown: int = what(25, "Number of suspect labels, unusual photos and groups of copies in the report.", ge=0, le=200)


class HeadConfig(Section):
    c_grid: tuple[Annotated[float, Field(gt=0)], ...] = what(
        (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        "Values of C (inverse regularisation strength) to try. The one with the lowest validation log-loss is used.",
        min_length=1,
    )
    class_weight: Literal["none", "balanced"] = what("none", _CLASS_WEIGHT)
    max_iterations: int = what(2000, "Largest number of L-BFGS iterations per value of C.", ge=1)


class TrainConfig(Section):
    budget_s: Annotated[float | None, BeforeValidator(settings.duration)] = how(
        None,
        "Seconds that the run may take, or a time such as 90s, 20m or 2h. The best quality that fits is chosen before "
        "training, instead of train.quality; the head alone if none fits.",
        gt=0,
    )
    quality: Literal["fast", "balanced", "best"] = what(
        "fast",
        "What the job chooses where other settings are auto. balanced and best train more layers for longer: see "
        "docs/defaults.md.",
    )
    seed: int | None = what(None, f"Seed of the order of the training photos. {_SEED}", ge=0, lt=2**63)
    seeds: Annotated[int, Field(ge=1, le=100)] | Literal["auto"] = what(
        "auto",
        "Number of times that fine-tuning is done, with seed, seed + 1 and so on, to see how much of a result is chance. "
        "The mean of their weights is used, or a single one if its validation log-loss is clearly lower. auto: 1, or 2 if "
        "train.quality is best.",
    )


class FineTuneConfig(Section):
    inputs: Literal["auto", "stored", "online"] = what(
        "auto",
        "stored: store the activations of all views once and read them in every epoch. online: augment each photo anew in "
        "every epoch and run the frozen layers on it; slower, but needs less disk. auto: stored if disk and memory suffice.",
    )
    epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = what(
        "auto", f"Passes over the training photos. 0 turns fine-tuning off. {_BY_QUALITY}"
    )
    global_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = what(
        "auto",
        f"Photos per training step, on all devices; computed in parts if a device has too little memory. {_BY_SIZE}",
    )
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = what("auto", f"Peak learning rate of AdamW. {_BY_SIZE}")
    warmup_fraction: float = what(0.1, "Share of the steps in which the learning rate rises from 0.", ge=0, le=0.9)
    layer_decay: float = what(
        1.0,
        "Each block of layers learns with this factor of the rate of the block above it; the head has the full rate. 1: all "
        "have the same. For vision transformers, see docs/backbones.md.",
        gt=0,
        le=1,
    )
    weight_decay: float = what(1e-4, "Decoupled weight decay of AdamW.", ge=0)
    label_smoothing: float = what(0.1, "Share of a label's probability that is spread over all classes.", ge=0, lt=1)
    ema: bool = what(False, "Evaluate and export the exponential moving average of the weights.")
    precision: Literal["auto", "float32", "float64", "mixed_bfloat16"] = what(
        "auto", "Keras dtype policy of the trained layers. auto: mixed_bfloat16 if all GPUs support it, else float32."
    )
    keep: Literal["last", "best"] = what("last", "Epoch whose weights are kept. best: lowest validation log-loss.")
    patience: int = what(5, "With keep = best: stop after this many epochs without improvement.", ge=1)
    class_weight: Literal["none", "balanced"] = what("none", _CLASS_WEIGHT)


class EvaluateConfig(Section):
    metric: Literal["accuracy", "balanced_accuracy"] = what(
        "accuracy",
        "What the model is for. accuracy: it will meet the classes as often as in the training photos. balanced_accuracy: "
        "every class counts the same, so rare classes get higher probabilities, by as much as validation shows to be best.",
    )
    bootstrap_samples: int = what(2000, "Number of bootstrap samples for confidence intervals.", ge=100)
    ece_bins: int = what(15, "Number of equally wide bins for the expected calibration error.", ge=2)
    min_accuracy: float | None = what(
        None, "If the test accuracy (0 to 1) is lower, no model is exported and the run ends with exit code 3.", ge=0, le=1
    )
    mirror: bool | Literal["auto"] = what(
        "auto",
        "The fine-tuned model answers with the mean over a photo and its mirror image, which takes twice as long. auto: if "
        "train.quality is balanced or best, and augment.horizontal_flip is on.",
    )
    target_precision: float | None = what(
        None,
        "Share of the accepted answers that must be right, for example 0.98. The job looks for the lowest probability from "
        "which on this is proven, on validation photos; docs/thresholds.md. If it is left out, any probability will do.",
        gt=0.5,
        lt=1,
    )
    familiarity: Literal["frozen", "tuned", "off"] = what(
        "frozen",
        "The model tells how similar a photo is to the training photos. frozen: by features of the frozen backbone, which "
        "costs its layers above backbone.unfreeze once more. tuned: by features of the fine-tuned network, at no cost, but "
        "it finds fewer foreign photos. off: every photo is familiar. See docs/familiarity.md.",
    )
    mistakes: int = what(
        24,
        "Largest number of wrong predictions in the report, and of photos that flipped; the most confident ones.",
        ge=0,
        le=200,
    )


class HeatmapsConfig(Section):
    photos: int = what(
        40,
        "Largest number of held-out photos with a heatmap in the report: the mistakes that it shows, then right photos of "
        "each class. 0: none.",
        ge=0,
        le=500,
    )
    checked: int = what(
        40,
        "Number of held-out photos on which heatmaps are tested, and whether the background decides. 0: neither.",
        ge=0,
        le=10_000,
    )


ModelFormat = Literal["savedmodel", "keras", "onnx", "litert", "litert-int8"]


def _with_those_always_written(formats: tuple[ModelFormat, ...]) -> tuple[ModelFormat, ...]:
    """Return the formats in one order, so that the order in which they were given changes nothing."""
    return tuple(name for name in get_args(ModelFormat) if name in (*formats, "savedmodel", "keras"))


class ExportConfig(Section):
    formats: Annotated[tuple[ModelFormat, ...], AfterValidator(_with_those_always_written)] = what(
        ("savedmodel", "keras"),
        "Formats of the exported model; docs/formats.md compares them. savedmodel and keras are always written: predict "
        "reads the first, and the others are made from the second.",
    )
    parity_photos: int = what(1000, "Largest number of test photos on which the exported model is checked.", ge=1)
    max_changed_fraction: float = what(
        0.03, "Share of checked photos whose label may change if the model decodes the file; else exit code 3.", ge=0, le=1
    )
    max_changed_float: float = what(
        0.005,
        "Share of checked photos whose label may change in onnx and litert; else that format is not published, and the run "
        "ends with exit code 3.",
        ge=0,
        le=1,
    )
    max_changed_int8: float = what(0.05, "Like max_changed_float, for litert-int8, whose numbers have 8 bits.", ge=0, le=1)


class ReportConfig(Section):
    title: str = what("", "Heading of the report. If it is left out, the name of the data.")


def _without_credentials(uri: str | None) -> str | None:
    """Return the URI of a server. Raises: UsageError, which does not repeat it, if it may contain credentials."""
    if uri and ("@" in uri or "?" in uri):
        raise UsageError(
            "tracking.mlflow: neither credentials nor '@' nor '?' are allowed in a URI. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, instead."
        )
    return uri


class TrackingConfig(Section):
    mlflow: Annotated[str | None, AfterValidator(_without_credentials)] = how(
        None,
        "Server that gets settings, metrics, report and model of the run: http://HOST:PORT or sqlite:///FILE. Needs the "
        "extra mlflow. User name and password are read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )
    name: str = how("transfer-job", "Name of the experiment and of the registered model in MLflow.", min_length=1)


class ClusterConfig(Section):
    start_timeout_s: float = how(300.0, "Seconds that the workers of a run wait for each other at the start.", gt=0)
    require_gpu: bool = how(False, "Stop with exit code 2 if there is no GPU, instead of computing on the CPU.")
    logical_cpus: int | None = how(
        None, "For tests on one machine without GPUs: use the CPU as this many TensorFlow devices.", ge=1, le=64
    )
