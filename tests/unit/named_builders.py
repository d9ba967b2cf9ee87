"""Data sets of tensorflow-datasets that the tests prepare themselves. It knows them by name once this is imported."""

import io
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from tests.conftest import paint

KINDS = ("stripes", "checks")  # Not sorted, as class names of data sets often are not.
SIDE_PX = 48


class Painted(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`splits` says how many examples each split has, `label_of` what the example of a number is."""

    VERSION = tfds.core.Version("1.2.0")
    splits: ClassVar[dict[str, int]]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=KINDS)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name, count) for name, count in self.splits.items()}

    def _generate_examples(self, split, count):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(count):
                label, kind = self.label_of(split, number), ("jpg", "png")[number // 2 % 2]
                seed = 100 * list(self.splits).index(split) + number
                photo = paint(Path(folder) / f"{number}.{kind}", seed, KINDS[label], (SIDE_PX, SIDE_PX))
                yield f"{split}-{number}", {"image": io.BytesIO(photo.read_bytes()), "label": label}

    def label_of(self, split: str, number: int) -> int:
        return number % 2


class PaintedPhotos(Painted):
    splits: ClassVar = {"train": 40, "validation": 10, "test": 10}


class OnlyTraining(Painted):
    splits: ClassVar = {"train": 8, "extra": 4}


class NothingToTrain(Painted):
    splits: ClassVar = {"test": 4, "corrupted": 4}


class HiddenLabels(Painted):
    splits: ClassVar = {"train": 8, "test": 4}

    def label_of(self, split: str, number: int) -> int:
        return -1 if split == "test" else number % 2


class Failing(Painted):
    splits: ClassVar = {"train": 4}

    def label_of(self, split: str, number: int) -> int:
        raise LookupError("there is no label\nin the archive")


class Sized(Painted):
    """With configurations, the default one of which is not the first by name."""

    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name, version="2.0.0") for name in ("large", "huge")]
    splits: ClassVar = {"train": 4}


class OtherTasks(tfds.core.GeneratorBasedBuilder):
    """Data sets that a classifier of images cannot learn from, a configuration each."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name)
        for name in ("two_pictures", "boxes", "text", "depth", "segments", "two_labels", "named_pair", "nested")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        from tensorflow_datasets import features as f

        label, image = f.ClassLabel(num_classes=3), f.Image()
        features, named = {
            "two_pictures": ({"low": image, "high": f.Image(), "label": label}, ("low", "high")),
            "boxes": ({"image": image, "objects": f.Sequence({"box": f.BBoxFeature(), "label": label})}, None),
            "text": ({"text": f.Text(), "label": label}, ("text", "label")),
            "depth": ({"image": f.Image(shape=(None, None, 1), dtype=np.float32), "label": label}, None),
            "segments": ({"image": f.LabeledImage(labels=3, shape=(None, None, 1)), "label": label}, None),
            "two_labels": ({"image": image, "colour": label, "shape": f.ClassLabel(num_classes=2)}, None),
            "named_pair": ({"image": image, "label": label, "species": f.ClassLabel(num_classes=2)}, ("image", "label")),
            "nested": ({"id": f.Text(), "photo": {"image": image, "kind": label}}, None),
        }[self.builder_config.name]
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features), supervised_keys=named)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(3):
                photo = io.BytesIO(paint(Path(folder) / f"{number}.png", number).read_bytes())
                if self.builder_config.name == "nested":
                    yield number, {"id": str(number), "photo": {"image": photo, "kind": number}}
                else:
                    yield number, {"image": photo, "label": number, "species": 0}


class PackedFolder(tfds.core.GeneratorBasedBuilder):
    """The photos of SPLIT/CLASS/ below `folder`."""

    VERSION = tfds.core.Version("1.0.0")
    folder: Path

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=KINDS)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split.name: self._generate_examples(split) for split in sorted(self.folder.iterdir())}

    def _generate_examples(self, split: Path):
        for photo in sorted(split.glob("*/*")):
            yield f"{photo.parent.name}/{photo.name}", {"image": str(photo), "label": photo.parent.name}


def prepare(builder: type[tfds.core.GeneratorBasedBuilder], data_dir: Path, num_shards: int = 2, **how) -> Path:
    """The prepared folder."""
    made = builder(data_dir=str(data_dir), config=how.pop("config", None), version=how.pop("version", None))
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=num_shards), **how)
    return Path(made.data_dir)
