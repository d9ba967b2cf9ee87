"""How well familiarity tells photos of other things from held-out photos, by AUROC, with several kinds of features.

    python -m benchmarks.familiarity RUN [--foreign FOLDER]     # RUN is the --out of a finished run, with its cache

Foreign photos (by default those of trashnet), noise and grey pictures are compared with the held-out photos of the run. For
"one class left out", the prototypes are made without a class, and its photos are compared with those of the other classes,
on average over the classes. Fine-tuned features have seen this class in training, so the row says nothing for them.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.measured import SHARED, machine
from job.cluster.devices import Devices
from job.cluster.tensorflow import import_tensorflow
from job.config import Config
from job.data.examples import Examples
from job.decoding.decode import decode
from job.decoding.rules import DecodeRules
from job.model.familiarity import Familiarity
from job.model.heads import Head
from job.model.network import Network
from job.serving.folder import load
from job.stores.arrays import ArrayStore

_PICTURES = 500
_BATCH_SIZE = 64


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--foreign", type=Path, default=SHARED / "data" / "trashnet")
    given = arguments.parse_args()
    config = Config.model_validate(json.loads((given.run / "run.json").read_text())["config"])
    network = Network(config.backbone, config.intake.image_size, Devices(), seed=config.seed)
    examples = Examples.load(given.run / "examples.parquet")
    images = ArrayStore(next((given.run / "cache").glob("images-*/index-*.json")))
    model = load(str(given.run / "model"), None, print)
    pictures = {f"photos of {given.foreign.name}": _decoded(given.foreign, config), **_drawn(config.intake.image_size)}
    print(f"{machine()}\n")
    print(f"| Score | {' | '.join(pictures)} | one class left out | held-out photos rejected |\n|{'---|' * 6}")
    held_out = _in_batches(model.probabilities, images.rows(examples["row"][examples.of("test")])).max(axis=1)
    values = [roc_auc_score(*_sides(held_out, _in_batches(model.probabilities, p).max(axis=1))) for p in pictures.values()]
    print(f"| largest probability | {' | '.join(f'{v:.3f}' for v in values)} | | |")
    for source, features_of in _features(given.run, network).items():
        _print_row(source, features_of, examples, images, pictures)


def _print_row(
    source: str,
    features_of: Callable[[np.ndarray], np.ndarray],
    examples: Examples,
    images: ArrayStore,
    pictures: dict[str, np.ndarray],
) -> None:
    train, val, test = (
        (_in_batches(features_of, images.rows(examples["row"][of])), examples.labels[of])
        for of in map(examples.of, ("train", "val", "test"))
    )
    whole = Familiarity.fit(*train, val[0], "frozen", seed=0)
    known = whole.similarities(test[0])
    values = [roc_auc_score(*_sides(known, whole.similarities(_in_batches(features_of, p)))) for p in pictures.values()]
    without = []
    for label in range(len(examples.class_names)):
        kept = [(features[labels != label], labels[labels != label]) for features, labels in (train, val, test)]
        part = Familiarity.fit(*kept[0], kept[1][0], "frozen", seed=0)
        left_out = part.similarities(test[0][test[1] == label])
        without.append(roc_auc_score(*_sides(part.similarities(kept[2][0]), left_out)))
    rejected = (whole.of(test[0]) < 0.05).mean()
    columns = " | ".join(f"{v:.3f}" for v in (*values, np.mean(without)))
    print(f"| {source} features, {len(whole.prototypes_PD)} prototypes | {columns} | {rejected:.1%} |")


def _sides(known: np.ndarray, foreign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[np.ones(len(known)), np.zeros(len(foreign))], np.r_[known, foreign]


def _features(run: Path, network: Network) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return functions from pixels to features: of the frozen network and, if there is one, of the fine-tuned one."""
    tf = import_tensorflow()
    import keras

    found = {"frozen": lambda pixels: network.activations_and_features(tf.constant(pixels))[1].numpy()}
    with np.load(run / "stages/fine_tune/weights.npz") as arrays:
        names = sorted(name for name in arrays.files if name.startswith("0/") or "/" in name)
        weights = [arrays[name] for name in names if name.split("/")[0] == names[0].split("/")[0]]
    tuned = network.tuned(Head.zeros(network.feature_width, weights[-1].shape[0]))
    tuned.set_weights(weights)
    below_head = keras.Model(tuned.input, tuned.get_layer("head").input)
    found["fine-tuned"] = lambda pixels: below_head(
        tf.cast(network.activations(tf.constant(pixels)), tf.float32), training=False
    ).numpy()
    return found


def _in_batches(function: Callable[[np.ndarray], np.ndarray], pixels_NHWC: np.ndarray) -> np.ndarray:
    return np.concatenate([function(pixels_NHWC[k : k + _BATCH_SIZE]) for k in range(0, len(pixels_NHWC), _BATCH_SIZE)])


def _decoded(folder: Path, config: Config) -> np.ndarray:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    rules = DecodeRules.of(config.intake, 16)
    return np.stack([decode(file.read_bytes(), rules).pixels_HWC for file in files[:: -(-len(files) // _PICTURES)]])


def _drawn(size: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (_PICTURES, size, size, 3), np.uint8)
    grey = np.broadcast_to(np.linspace(0, 255, _PICTURES).astype(np.uint8)[:, None, None, None], noise.shape)
    return {"noise": noise, "grey": grey}


if __name__ == "__main__":
    main()
