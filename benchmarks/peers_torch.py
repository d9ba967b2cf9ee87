"""timm and fastai on the same photos and weights. `side_by_side --torch-python` runs them in an environment of their own.

d  timm's usual recipe for fine-tuning: all layers, AdamW with layer decay 0.75, one epoch of warm-up and a cosine,
   RandomResizedCrop, RandAugment, label smoothing, an average of the weights (EMA), which is the model. Ten epochs. Below
   512 training photos, a batch has an eighth of them instead of 64, and the average goes over fewer steps.
e  fastai: vision_learner, aug_transforms, fine_tune(5), all with fastai's own settings: one epoch of the head, then five of
   all layers.

Both load the Keras file that the job uses, and hold their features against those of Keras before they train. The environment
needs torch, timm, fastai and h5py, and a Pillow below 12 (newer ones refuse a value that RandAugment draws):

    python3 -m venv torch-env && torch-env/bin/pip install torch timm fastai h5py "pillow<12"
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import timm
import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.measured import save_peer

EPOCHS = {"d": 10, "e": 5}
LIKE_KERAS = {"pad_type": "same", "bn_eps": 1e-3}
HALF = (0.5, 0.5, 0.5)  # Mean and standard deviation that scale pixels to -1 to 1.
MAX_DIFFERENCE = 1e-4
BATCH_SIZE, STEPS_PER_EPOCH, WORKERS = 64, 8, 2  # At least so many steps.
LEARNING_RATE, WEIGHT_DECAY, LAYER_DECAY, SMOOTHING, EMA_DECAY = 1e-3, 0.05, 0.75, 0.1, 0.99


@dataclass(frozen=True)
class Network:
    """A network of timm, and the Keras weights for it."""

    name: str
    weights: Path
    features: Path  # Pixels, and the features that Keras computes from them.

    def load(self, model: torch.nn.Module) -> None:
        """Give a model without classes the weights, and hold its features against those of Keras."""
        load_keras_weights(model, self.weights)
        expected = np.load(self.features)
        pixels = torch.from_numpy(expected["pixels"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            difference = float(np.abs(model.eval()(pixels).numpy() - expected["features"]).max())
        if difference > MAX_DIFFERENCE:
            raise SystemExit(f"The features differ from those of Keras by {difference:g}: these are not the same weights.")


def load_keras_weights(model: torch.nn.Module, file: Path) -> None:
    """Copy the weights of keras.applications' MobileNetV2 to timm's, which has the same layers in the same order."""
    with h5py.File(file) as stored:
        layers = [[np.asarray(stored[n][w]) for w in stored[n].attrs["weight_names"]] for n in stored.attrs["layer_names"]]
    modules = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for module, weights in zip(modules, filter(None, layers), strict=True):
            if isinstance(module, torch.nn.Conv2d):
                # Keras has (height, width, in, out), and (height, width, channels, 1) where each channel has its own filter.
                order = (2, 3, 0, 1) if module.groups > 1 else (3, 2, 0, 1)
                module.weight.copy_(torch.from_numpy(weights[0].transpose(order)))
            else:
                targets = (module.weight, module.bias, module.running_mean, module.running_var)
                for target, values in zip(targets, weights, strict=True):
                    target.copy_(torch.from_numpy(values))


class Clock:
    """Seconds and validation accuracy of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self._start = self._now()

    def lap(self, phase: str, val_accuracy: float) -> None:
        wall_s, cpu_s = (end - start for end, start in zip(self._now(), self._start, strict=True))
        self.epochs.append({"phase": phase, "wall_s": wall_s, "cpu_s": cpu_s, "val_accuracy": val_accuracy})
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()


def timm_recipe(network: Network, folder: Path, image_size: int, epochs: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Train all layers. Return an entry for each epoch, and the predicted class of each test file."""
    size = {"input_size": image_size, "mean": HALF, "std": HALF}
    augment = create_transform(**size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bilinear")
    plain = create_transform(**size, crop_pct=1.0, crop_mode="squash", interpolation="bilinear")
    sets = {split: ImageFolder(folder / split, augment if split == "train" else plain) for split in ("train", "val", "test")}
    batch_size = min(BATCH_SIZE, len(sets["train"]) // STEPS_PER_EPOCH)
    loaders = {
        split: DataLoader(photos, batch_size, shuffle=split == "train", drop_last=split == "train", num_workers=WORKERS)
        for split, photos in sets.items()
    }
    model = timm.create_model(network.name, num_classes=0, **LIKE_KERAS)
    network.load(model)
    model.reset_classifier(len(sets["train"].classes))
    optimizer = create_optimizer_v2(model, "adamw", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY)
    schedule = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-6, warmup_t=1, warmup_lr_init=1e-6, warmup_prefix=True
    )
    ema = ModelEmaV3(model, decay=min(EMA_DECAY, 1 - 4 / (epochs * len(loaders["train"]))))
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    clock = Clock()
    for epoch in range(epochs):
        model.train()
        for step, (photos, labels) in enumerate(loaders["train"]):
            schedule.step(epoch + step / len(loaders["train"]))
            optimizer.zero_grad()
            loss_of(model(photos), labels).backward()
            optimizer.step()
            ema.update(model)
        answers = _answers(ema.module, loaders["val"])
        clock.lap("all layers", float((answers == np.asarray(sets["val"].targets)).mean()))
    answers = _answers(ema.module, loaders["test"])
    classes = sets["test"].classes
    names = [Path(file).name for file, _ in sets["test"].samples]
    return clock.epochs, {name: classes[answer] for name, answer in zip(names, answers, strict=True)}


def _answers(model: torch.nn.Module, loader: Any) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return np.concatenate([model(photos).argmax(1).numpy() for photos, _ in loader])


def fastai_recipe(
    network: Network, folder: Path, image_size: int, epochs: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Train the head for an epoch and then all layers. Return an entry for each epoch, and the predicted classes."""
    from fastai.vision import all as fastai

    loaders = fastai.ImageDataLoaders.from_folder(
        folder,
        valid="val",
        bs=BATCH_SIZE,
        num_workers=WORKERS,
        item_tfms=fastai.Resize(image_size, method="squish"),
        batch_tfms=[*fastai.aug_transforms(), fastai.Normalize.from_stats(HALF, HALF)],
    )
    learner = fastai.vision_learner(
        loaders, network.name, normalize=False, pretrained=False, metrics=fastai.accuracy, **LIKE_KERAS
    )
    network.load(learner.model[0].model)
    learner.freeze()
    clock = Clock()

    class Laps(fastai.Callback):
        order = 60  # After the Recorder, which has the accuracy.

        def after_epoch(self) -> None:
            frozen = learner.opt.frozen_idx > 0
            clock.lap("head" if frozen else "all layers", float(learner.recorder.values[-1][-1]))

    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs, cbs=[Laps()])
        files = fastai.get_image_files(folder / "test")
        probabilities, _ = learner.get_preds(dl=loaders.test_dl(files))
    answers = probabilities.argmax(1)
    return clock.epochs, {file.name: loaders.vocab[answer] for file, answer in zip(files, answers, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=EPOCHS)
    parser.add_argument("--folder", type=Path, required=True, help="folder with train/, val/ and test/")
    parser.add_argument("--weights", type=Path, required=True, help="the .h5 file of keras.applications")
    parser.add_argument("--features", type=Path, required=True, help="pixels and features: `benchmarks.peers features`")
    parser.add_argument("--alpha", type=float, required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    options = parser.parse_args()
    started = time.monotonic()
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # RandAugment and fastai draw from it.
    network = Network(f"mobilenetv2_{options.alpha * 100:03.0f}", options.weights, options.features)
    train = timm_recipe if options.recipe == "d" else fastai_recipe
    epochs, predicted = train(network, options.folder, options.image_size, EPOCHS[options.recipe])
    label_of = {file.name: file.parent.name for file in (options.folder / "test").glob("*/*")}
    save_peer(options.out, started, epochs, predicted, label_of)


if __name__ == "__main__":
    main()
