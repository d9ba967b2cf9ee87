"""Bare limits on arrays in memory, each compared with the same work in the job. Both take turns in one process.

forward  the backbone's forward pass: the Keras model in a tf.function, and the same graph with its variables as constants
step     one optimizer step of the layers above the job's cut with the head: a plain Keras optimizer in a tf.function
decode   only libjpeg-turbo (simplejpeg), which scales while decoding, on photos of 500x375 and of 12 megapixels

`side_by_side` runs each part in its own process. `gpu` uses the first two for every backbone.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from job.config import Config
from job.decoding.decode import decode
from job.decoding.jpeg import reduction_for
from job.decoding.rules import DecodeRules
from job.runtime.telemetry import Telemetry
from job.sections import BackboneConfig, ExtractConfig, FineTuneConfig, IntakeConfig
from job.train.recipe import Recipe

PARTS = ("forward", "step", "decode")
DECODED_SIZES = {"500x375": ((500, 375), 60), "4000x3000": ((4000, 3000), 6)}  # Width and height, number of photos.
JPEG_QUALITY = 90
NUM_CLASSES, NUM_PHOTOS = 5, 512

Works = dict[str, Callable[[], int]]  # Each call processes some photos and returns their number.
Rounds = dict[str, list[dict[str, float]]]


def in_turn(works: Works, rounds: int, seconds: float) -> Rounds:
    """Run the works in turn, each for at least this many seconds per round, so that noise affects all of them."""
    for work in works.values():
        work()  # Traces, and fills caches.
    measured: Rounds = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            count, cpu_s, started = 0, time.process_time(), time.monotonic()
            while not count or time.monotonic() - started < seconds:
                count += work()
            wall_s = time.monotonic() - started
            measured[name].append({"photos": count, "wall_s": wall_s, "cpu_s": time.process_time() - cpu_s})
    return measured


def rules_of(image_size: int) -> DecodeRules:
    config = IntakeConfig(image_size=image_size)
    return DecodeRules(**{name: getattr(config, name) for name in DecodeRules.__dataclass_fields__})


def photos_in_memory(folder: Path, image_size: int, count: int = NUM_PHOTOS) -> np.ndarray:
    """Return photos spread over the folder, decoded as the job does, uint8 (count, S, S, 3)."""
    paths = sorted(folder.rglob("*.jpg"))
    rules = rules_of(image_size)
    chosen = [paths[k] for k in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]
    pixels = np.stack([decode(path.read_bytes(), rules).pixels_HWC for path in chosen])
    return np.resize(pixels, (count, *pixels.shape[1:]))


def bare_forward(config: BackboneConfig, pixels_NHWC: np.ndarray, batch_size: int, *, jit: bool = False) -> Works:
    """Return the forward passes `keras` and, unless XLA compiles, `constants`: photos in memory to features."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from job.model import backbones

    backbone, scaling = backbones.build(config, pixels_NHWC.shape[1]), backbones.scaling_layers(config)
    backbone.trainable = False

    @tf.function(jit_compile=jit, input_signature=[tf.TensorSpec((batch_size, *pixels_NHWC.shape[1:]), tf.uint8)])
    def forward(pixels: Any) -> Any:
        x = tf.cast(pixels, tf.float32)
        for layer in scaling:
            x = layer(x)
        return backbone(x, training=False)

    batches = [tf.constant(p) for p in _batches(pixels_NHWC, batch_size)]

    def run(function: Callable[..., Any]) -> int:
        results = [function(batch) for batch in batches]
        np.asarray(tf.nest.flatten(results[-1])[0])  # Waits for the device.
        return len(batches) * batch_size

    works: Works = {"keras": lambda: run(forward)}
    if not jit:
        constants = convert_variables_to_constants_v2(forward.get_concrete_function())
        works["constants"] = lambda: run(constants)
    return works


def job_forward(network: Any, pixels_NHWC: np.ndarray, batch_size: int) -> Works:
    """Return the forward pass of the extract stage without augmentation: arrays to activations at the cut and features."""
    step = network.compiled()

    def run() -> int:
        return sum(len(features) for _, features in _through(network, step, pixels_NHWC, batch_size))

    return {"job": run}


def activations_of(network: Any, pixels_NHWC: np.ndarray, batch_size: int) -> np.ndarray:
    """Return random activations at the cut, float16."""
    return np.concatenate([a for a, _ in _through(network, network.compiled(), pixels_NHWC, batch_size)])


def _through(network: Any, step: Callable[..., Any], pixels_NHWC: np.ndarray, batch_size: int) -> Iterator[list[np.ndarray]]:
    from job.train.feed import run_batches

    def load(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
        return (pixels_NHWC[numbers],)

    return run_batches(network.replicas, step, load, len(pixels_NHWC), batch_size, Telemetry(None))


def bare_step(
    config: BackboneConfig, image_size: int, activations_NHWC: np.ndarray, batch_size: int, *, jit: bool = False
) -> Works:
    """Return a plain training step of the layers above the job's cut and a head, on float32 tensors in memory."""
    import keras
    import tensorflow as tf

    from job.model import backbones, cut

    backbone = backbones.build(config, image_size)
    point = cut.choose(config.unfreeze, cut.cut_points(backbone))
    assert point is not None
    _, above = cut.cut(backbone, point)
    above.trainable = True
    for layer in above.layers:  # As the job does.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    model = keras.Model(above.input, keras.layers.Dense(NUM_CLASSES, dtype="float32")(above.output))
    optimizer = keras.optimizers.AdamW(1e-3)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=jit)
    def step(inputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(inputs, training=False)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    inputs = [tf.constant(a.astype(np.float32)) for a in _batches(activations_NHWC, batch_size)]
    targets = [tf.constant(t) for t in _batches(_targets(len(activations_NHWC)), batch_size)]

    def run() -> int:
        losses = [step(*batch) for batch in zip(inputs, targets, strict=True)]
        assert np.isfinite(np.asarray(losses[-1]))  # Waits for the device as well.
        return len(inputs) * batch_size

    return {"bare": run}


class _InMemory:
    """Inputs of the trainer: activations in memory, in the form in which the store gives them."""

    def __init__(self, activations_NHWC: np.ndarray) -> None:
        self._activations_NHWC = activations_NHWC

    def plain(self, rows_B: np.ndarray) -> tuple[np.ndarray, ...]:
        return (self._activations_NHWC[rows_B],)

    def on_device(self, arrays: Any, *, training: bool) -> Any:  # noqa: ARG002 - the trainer's protocol.
        return arrays[0]


def job_step(network: Any, activations_NHWC: np.ndarray, batch_size: int, precision: str = "float32") -> Works:
    """Return the training step of the fine-tuning stage, on float16 arrays in memory."""
    from job.model.heads import Head
    from job.train.loop import Trainer
    from job.train.schedule import Schedule

    recipe = Recipe(epochs=1000, global_batch_size=batch_size, learning_rate=1e-3, views=1)
    schedule = Schedule.resolve(recipe, num_examples=len(activations_NHWC), warmup_fraction=0.1, seed=0)
    model = network.tuned(Head.zeros(network.feature_width, NUM_CLASSES), precision)
    trainer = Trainer(
        model,
        schedule,
        network.replicas,
        _InMemory(activations_NHWC),
        weight_decay=FineTuneConfig().weight_decay,
        ema=False,
        telemetry=Telemetry(None),
    )
    ones = np.ones(batch_size)
    batches = [
        ((lambda _, a=a: (a,)), t, ones)
        for a, t in zip(
            _batches(activations_NHWC, batch_size), _batches(_targets(len(activations_NHWC)), batch_size), strict=True
        )
    ]

    def run() -> int:
        for batch in batches:
            trainer.step(batch)
        return len(batches) * batch_size

    return {"job": run}


def decode_works(folder: Path, size: tuple[int, int], count: int, image_size: int) -> Works:
    """Return `bare`, which only decodes, and `job`: SHA-256, decoder with its checks, resize and perceptual hash."""
    payloads = enlarged(folder, size, count)
    rules = rules_of(image_size)
    reduction = reduction_for(size, (image_size, image_size))
    width, height = (-(-side // reduction) for side in size)

    def bare() -> int:
        for payload in payloads:
            simplejpeg.decode_jpeg(payload, "RGB", min_width=width, min_height=height)
        return len(payloads)

    def job() -> int:
        for payload in payloads:
            sha256(payload).hexdigest()
            decode(payload, rules)
        return len(payloads)

    return {"bare": bare, "job": job}


def enlarged(folder: Path, size: tuple[int, int], count: int) -> list[bytes]:
    """Return JPEG files of this width and height, made of landscape photos spread over the folder."""
    paths = sorted(folder.rglob("*.jpg"))
    payloads: list[bytes] = []
    for k in np.random.default_rng(0).permutation(len(paths)):
        with Image.open(paths[k]) as photo:
            if photo.width <= photo.height:
                continue
            buffer = io.BytesIO()
            photo.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=JPEG_QUALITY)
        payloads.append(buffer.getvalue())
        if len(payloads) == count:
            break
    return payloads


def _batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return the full batches of an array, without the rest."""
    return [rows[start : start + batch_size] for start in range(0, len(rows) - batch_size + 1, batch_size)]


def _targets(count: int) -> np.ndarray:
    """Return smoothed random targets, so that gradients are as large as in training."""
    from job.model.heads import smoothed_one_hot

    return smoothed_one_hot(np.arange(count) % NUM_CLASSES, NUM_CLASSES, FineTuneConfig().label_smoothing).astype(np.float32)


def measure(
    part: str, config: BackboneConfig, image_size: int, data: Path, rounds: int, seconds: float
) -> dict[str, Rounds]:
    """Return the rounds of each comparison of this part."""
    if part == "decode":
        return {
            name: in_turn(decode_works(data, size, count, image_size), rounds, seconds)
            for name, (size, count) in DECODED_SIZES.items()
        }
    from job.cluster.devices import Devices
    from job.model.network import Network

    network = Network(config, image_size, Devices(), seed=0)
    pixels = photos_in_memory(data, image_size)
    batch_size = ExtractConfig().batch_size
    if part == "forward":
        works = {**bare_forward(config, pixels, batch_size), **job_forward(network, pixels, batch_size)}
        return {"forward": in_turn(works, rounds, seconds)}
    activations = activations_of(network, pixels, batch_size)
    batch_size = Recipe.resolve(Config(), num_examples=2500).global_batch_size
    works = {
        **bare_step(config, image_size, activations, batch_size),
        **job_step(network, activations, batch_size),
    }
    return {"step": in_turn(works, rounds, seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, required=True, help="a folder of JPEG photos")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--alpha", type=float, required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds per work and round")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    options = parser.parse_args()
    config = BackboneConfig(weights=options.weights, alpha=options.alpha, unfreeze=0.4)
    found = measure(options.part, config, options.image_size, options.data, options.rounds, options.seconds)
    options.out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
