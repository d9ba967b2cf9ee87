"""Cost of a random view: the batched engine, TensorFlow's own warp, and Keras' ImageDataGenerator.

Each engine gets the same decoded photos of ../shared/data/flowers as uint8 arrays, and makes random views as float32 arrays.
The engines take turns, for several rounds.
"""

import argparse
import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measured import SHARED, machine
from job.cluster.devices import Devices
from job.cluster.tensorflow import import_tensorflow
from job.data.augment import Augmentation, draw
from job.sections import AugmentConfig

ROOT = Path(__file__).parent.parent
FLOWERS = SHARED / "data" / "flowers"
SETTINGS = {
    "defaults": {},
    "every argument": {"shear_range": 10, "channel_shift_range": 20, "vertical_flip": True},
    "defaults, constant": {"fill_mode": "constant"},
}
Way = Callable[[int], np.ndarray]


def photos_of(count: int, size: int) -> np.ndarray:
    pictures = []
    for path in sorted(FLOWERS.rglob("*.jpg"))[:: max(1, 3670 // count)][:count]:
        with Image.open(path) as opened:
            pictures.append(np.asarray(opened.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
    return np.stack(pictures)


def ways_of(arguments: dict, photos: np.ndarray) -> dict[str, Way]:
    """Return functions that take the number of a pass and return one view of each photo."""
    import tensorflow as tf

    size, keys = photos.shape[1], np.arange(len(photos), dtype=np.uint64)
    config = AugmentConfig(**arguments)
    names = ("rotation_range", "width_shift_range", "height_shift_range", "shear_range", "zoom_range", "brightness_range")
    names += ("channel_shift_range", "horizontal_flip", "vertical_flip", "fill_mode", "cval")
    real = tf.keras.preprocessing.image.ImageDataGenerator(**{name: getattr(config, name) for name in names})

    def by_engine(engine: str) -> Way:
        augmentation = Augmentation(config.model_copy(update={"engine": engine}), size)
        in_graph = tf.function(augmentation.device)

        def way(number: int) -> np.ndarray:
            batch = augmentation.host(photos, keys, np.full(len(photos), number + 1))
            return in_graph(*map(tf.constant, batch)).numpy()

        return way

    own_colours = Augmentation(config, size)._coloured

    @tf.function
    def own_warp(pixels, matrices, shift, brightness):
        images = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(pixels, tf.float32),
            transforms=matrices,
            output_shape=[size, size],
            fill_value=config.cval,
            interpolation="BILINEAR",
            fill_mode=config.fill_mode.upper(),
        )
        return own_colours(images, shift, brightness)

    def by_tensorflow(number: int) -> np.ndarray:
        drawn = draw(config, keys, np.full(len(photos), number + 1), size)
        factors = (drawn.channel_shift.astype(np.float32), drawn.brightness.astype(np.float32))
        return own_warp(*map(tf.constant, (photos, drawn.matrices(size), *factors))).numpy()

    return {
        "engine batched": by_engine("batched"),
        "ImageProjectiveTransformV3": by_tensorflow,
        "engine image_data_generator": by_engine("image_data_generator"),
        "ImageDataGenerator alone": lambda _: np.stack([real.random_transform(x) for x in photos.astype(np.float32)]),
    }


def measure(ways: dict[str, Way], rounds: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Return wall and CPU seconds of one pass for each engine and round. Fast engines do several passes per round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        way(0)  # Traces and compiles.
    for number in range(rounds):
        for name, way in ways.items():
            passes = 1 if "generator" in name.lower() else repeats
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            for k in range(passes):
                way(number * repeats + k)
            found[name].append(((time.perf_counter() - wall_s) / passes, (time.process_time() - cpu_s) / passes))
    return found


def table(title: str, found: dict[str, list[tuple[float, float]]], batch: int) -> list[str]:
    lines = [f"## {title}", "", "| | views/s | CPU ms a view | CPU against the batched engine |", "|---|---|---|---|"]
    cheapest = statistics.median(cpu_s for _, cpu_s in found["engine batched"])
    for name, passes in found.items():
        per_s = [batch / wall_s for wall_s, _ in passes]
        cpu_ms = [cpu_s / batch * 1e3 for _, cpu_s in passes]
        lines.append(
            f"| {name} | {statistics.median(per_s):,.0f} ({min(per_s):,.0f} to {max(per_s):,.0f}) "
            f"| {statistics.median(cpu_ms):.2f} ({min(cpu_ms):.2f} to {max(cpu_ms):.2f}) "
            f"| {statistics.median(cpu_ms) / 1e3 * batch / cheapest:.1f} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[160, 224], help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=8, help="passes per round of the fast engines")
    options = parser.parse_args()
    if not FLOWERS.is_dir():
        raise SystemExit(f"{FLOWERS} is missing: the benchmark needs real photos.")
    tf = import_tensorflow()
    assert Devices().local.strategy  # Sets the devices up as the job does.
    gpus = [tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in tf.config.list_physical_devices("GPU")]
    kind = f"{len(os.sched_getaffinity(0))}-core-{'gpu' if gpus else 'cpu'}"
    command = " ".join(["python -m benchmarks.augmentation", *sys.argv[1:]])
    lines = ["# Cost of a random view", ""]
    lines += [f"{machine()}, {datetime.date.today()}. {', '.join(gpus) or 'No GPU'}.", ""]
    lines += [
        f"`{command}`: {options.batch} photos of flowers at a time, uint8 in, float32 out, drawing included.",
        f"Medians of {options.rounds} rounds, lowest to highest in brackets; the engines take turns in each round.",
        "`ImageProjectiveTransformV3` is TensorFlow's own warp, with the same colours after it.",
        "Other programs on the machine change views/s more than CPU ms.",
        "",
    ]
    for size in options.sizes:
        photos = photos_of(options.batch, size)
        for name, arguments in SETTINGS.items():
            found = measure(ways_of(arguments, photos), options.rounds, options.repeats)
            lines += table(f"{size} px, {name}", found, options.batch)
    print("\n".join(lines))
    file = ROOT / "benchmarks" / "results" / f"augmentation_{kind}_{datetime.date.today()}.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    print(file)


if __name__ == "__main__":
    main()
