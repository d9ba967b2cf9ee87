"""Other recipes on the same photos and weights, written from their public documentation. `side_by_side` runs them.

a  TensorFlow's tutorial "Transfer learning and fine-tuning": image_dataset_from_directory, random flip and rotation inside
   the model, ten epochs of the head on the frozen base model with Adam, ten more with RMSprop at a tenth of the learning
   rate and the layers from the hundredth on unfrozen, batches of 32, prefetch. The learning rates are ten times those of the
   tutorial, because the accuracy on the test photos of flowers is then 0.86 instead of 0.79.
b  Like a, with Keras' ImageDataGenerator.flow_from_directory, which does the flips, rotations and scaling itself.
c  Like a, with the decoded pictures cached in memory as in the tutorial "Load and preprocess images": cache().shuffle(1000).

`features` computes the features of a few drawn pictures instead. `peers_torch` holds its network against them.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.measured import save_peer

BATCH_SIZE, LEARNING_RATE, DROPOUT, FINE_TUNE_AT = 32, 1e-3, 0.2, 100
ROTATION = 0.2  # Share of a full turn, to either side.
RECIPES = ("a", "b", "c")


def from_directory(folder: Path, image_size: int, seed: int, *, cached: bool) -> tuple[Any, Any, Any, list[str], list[str]]:
    """Return training, validation and test photos, the test files in order, and the class names."""

    def dataset(split: str, shuffle: bool) -> Any:
        return keras.utils.image_dataset_from_directory(
            folder / split, shuffle=shuffle, seed=seed, batch_size=BATCH_SIZE, image_size=(image_size, image_size)
        )

    train, val, test = dataset("train", True), dataset("val", False), dataset("test", False)
    files, names = list(test.file_paths), list(train.class_names)
    if cached:
        train, val = train.cache().shuffle(1000), val.cache()
    return (*(d.prefetch(tf.data.AUTOTUNE) for d in (train, val, test)), files, names)


def from_generator(folder: Path, image_size: int, seed: int) -> tuple[Any, Any, Any, list[str], list[str]]:
    generator = tf.keras.preprocessing.image.ImageDataGenerator
    scale = keras.applications.mobilenet_v2.preprocess_input
    augmented = generator(
        preprocessing_function=scale, rotation_range=360 * ROTATION, horizontal_flip=True, fill_mode="reflect"
    )
    plain = generator(preprocessing_function=scale)

    def flow(source: Any, split: str, shuffle: bool) -> Any:
        return source.flow_from_directory(
            folder / split,
            target_size=(image_size, image_size),
            class_mode="sparse",
            batch_size=BATCH_SIZE,
            shuffle=shuffle,
            seed=seed,
            interpolation="bilinear",
        )

    train, val, test = flow(augmented, "train", True), flow(plain, "val", False), flow(plain, "test", False)
    return train, val, test, list(test.filenames), sorted(train.class_indices, key=train.class_indices.__getitem__)


def make_model(
    weights: Path, alpha: float, image_size: int, num_classes: int, *, augments: bool
) -> tuple[keras.Model, keras.Model]:
    """Return the classifier and its base model. It maps pixels (with `augments`) or scaled pixels to logits."""
    shape = (image_size, image_size, 3)
    base = keras.applications.MobileNetV2(input_shape=shape, include_top=False, weights=str(weights), alpha=alpha)
    base.trainable = False
    inputs = x = keras.Input(shape)
    if augments:
        x = keras.layers.RandomFlip("horizontal")(x)
        x = keras.layers.RandomRotation(ROTATION)(x)
        x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = base(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(DROPOUT)(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes)(x)), base


def save_features(weights: Path, alpha: float, image_size: int, file: Path) -> None:
    """Save drawn pixels and the features that Keras computes from them."""
    shape = (image_size, image_size, 3)
    base = keras.applications.MobileNetV2(
        input_shape=shape, include_top=False, weights=str(weights), alpha=alpha, pooling="avg"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    scaled = keras.applications.mobilenet_v2.preprocess_input(pixels.astype(np.float32))
    np.savez(file, pixels=pixels, features=base.predict(scaled, verbose=0))


class EpochClock(keras.callbacks.Callback):
    """Seconds of each epoch, including its validation."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self.phase, self.epochs = phase, []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - Keras' signature.
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        wall_s, cpu_s = time.monotonic() - self._wall_s, time.process_time() - self._cpu_s
        self.epochs.append({"phase": self.phase, "wall_s": wall_s, "cpu_s": cpu_s, "val_accuracy": logs["val_accuracy"]})


def train(model: keras.Model, base: keras.Model, train_set: Any, val_set: Any, epochs: int) -> list[dict[str, Any]]:
    """Train both phases of the tutorial, `epochs` each. Return an entry for each epoch."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss=loss, metrics=["accuracy"])
    frozen = EpochClock("frozen")
    model.fit(train_set, epochs=epochs, validation_data=val_set, callbacks=[frozen], verbose=0)
    base.trainable = True
    for layer in base.layers[:FINE_TUNE_AT]:
        layer.trainable = False
    model.compile(keras.optimizers.RMSprop(LEARNING_RATE / 10), loss=loss, metrics=["accuracy"])
    unfrozen = EpochClock("unfrozen")
    model.fit(train_set, epochs=2 * epochs, initial_epoch=epochs, validation_data=val_set, callbacks=[unfrozen], verbose=0)
    return [*frozen.epochs, *unfrozen.epochs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=[*RECIPES, "features"])
    parser.add_argument("--folder", type=Path, help="folder with train/, val/ and test/ that contain class folders")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--alpha", type=float, required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=10, help="number of epochs of each of the two phases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; for features, an .npz file")
    options = parser.parse_args()
    if options.recipe == "features":
        save_features(options.weights, options.alpha, options.image_size, options.out)
        return
    started = time.monotonic()
    keras.utils.set_random_seed(options.seed)
    if options.recipe == "b":
        train_set, val_set, test_set, files, names = from_generator(options.folder, options.image_size, options.seed)
    else:
        train_set, val_set, test_set, files, names = from_directory(
            options.folder, options.image_size, options.seed, cached=options.recipe == "c"
        )
    model, base = make_model(options.weights, options.alpha, options.image_size, len(names), augments=options.recipe != "b")
    epochs = train(model, base, train_set, val_set, options.epochs)
    predicted = model.predict(test_set, verbose=0).argmax(1)
    label_of = {Path(file).name: Path(file).parent.name for file in files}
    found = {Path(file).name: names[k] for file, k in zip(files, predicted, strict=True)}
    save_peer(options.out, started, epochs, found, label_of)


if __name__ == "__main__":
    main()
