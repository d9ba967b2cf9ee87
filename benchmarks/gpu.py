"""Speed on a GPU: forward pass, extraction, fine-tuning step and augmentation, each compared with its bare limit.

It uses arrays in memory and random weights, so it needs no photos and no network. The job chooses XLA and the precision
itself. The bare limits are measured with XLA off and on, in float32 and in mixed bfloat16. Without a GPU the result says so
instead of giving numbers; `--try-on-cpu` then runs the code on tiny inputs.
"""

import argparse
import datetime
import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limits import activations_of, bare_forward, bare_step, in_turn, job_forward, job_step
from benchmarks.measured import ROOT, machine, median_and_spread
from job.data.augment import Augmentation
from job.runtime.telemetry import Telemetry
from job.sections import AugmentConfig, BackboneConfig

BACKBONES = ("mobilenet_v2", "resnet50", "efficientnet_v2_b0", "convnext_tiny", "dinov2_small")
BATCH_SIZES = (64, 256)
PRECISIONS = ("float32", "mixed_bfloat16")
NUM_BATCHES = 4

Case = tuple[
    str, str, str, Callable[[], dict[str, Callable[[], int]]]
]  # Name, precision, XLA, function that makes the work.


def cases(config: BackboneConfig, network: Any, image_size: int, batch_size: int, jits: tuple[bool, ...]) -> Iterator[Case]:
    import keras

    shape = (NUM_BATCHES * batch_size, image_size, image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    own = "on" if jits[-1] else "off"  # The choice of Trainer.
    activations = activations_of(network, pixels, batch_size)

    def under(precision: str, make: Callable[[], Any]) -> Any:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(precision)
        try:
            return make()
        finally:
            keras.config.set_dtype_policy(before)

    for precision, jit in product(PRECISIONS, jits):
        xla = "on" if jit else "off"

        def forward(precision: str = precision, jit: bool = jit) -> Any:
            return under(precision, lambda: bare_forward(config, pixels, batch_size, jit=jit))

        def step(precision: str = precision, jit: bool = jit) -> Any:
            return under(precision, lambda: bare_step(config, image_size, activations, batch_size, jit=jit))

        yield "forward", precision, xla, forward
        yield "step", precision, xla, step
    yield "forward", "float32", "off", lambda: job_forward(network, pixels, batch_size)
    for precision in PRECISIONS:
        yield "step", precision, own, lambda p=precision: job_step(network, activations, batch_size, p)
    yield "augment", "float32", "off", lambda: augmentation(network, pixels, batch_size, forward=False)
    yield "augment + forward (extract)", "float32", "off", lambda: augmentation(network, pixels, batch_size, forward=True)


def augmentation(network: Any, pixels_NHWC: np.ndarray, batch_size: int, *, forward: bool) -> dict[str, Callable[[], int]]:
    """Make random views on the device, as the extract stage does; with `forward`, run the network on them, too."""
    import tensorflow as tf

    from job.train.feed import run_batches

    engine = Augmentation(AugmentConfig(), pixels_NHWC.shape[1])
    keys, views = np.arange(len(pixels_NHWC), dtype=np.uint64), np.ones(len(pixels_NHWC), np.int64)

    def only_views(*batch: Any) -> Any:
        return (tf.reduce_mean(engine.device(*batch), axis=(1, 2, 3)),)  # Means, because fetching pictures would take time.

    def load(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
        return engine.host(pixels_NHWC[numbers], keys[numbers], views[numbers])

    step = network.compiled(engine) if forward else network.replicas.compiled(only_views)

    def work() -> int:
        batches = run_batches(network.replicas, step, load, len(keys), batch_size, Telemetry(None))
        return sum(len(outputs[0]) for outputs in batches)

    return {"job": work}


def rows(backbone: str, image_size: int, batch_size: int, *, on_gpu: bool, rounds: int, seconds: float) -> Iterator[str]:
    """Yield one line for each case as soon as it is measured."""
    import tensorflow as tf

    from job.cluster.devices import Devices
    from job.model.network import Network

    config = BackboneConfig(name=backbone, weights="random", unfreeze=0.4)
    network = Network(config, image_size, Devices(), seed=0)
    for what, precision, xla, make in cases(config, network, image_size, batch_size, (False, True) if on_gpu else (False,)):
        if on_gpu:
            tf.config.experimental.reset_memory_stats("GPU:0")
        try:
            measured = in_turn(make(), rounds, seconds)
        except tf.errors.OpError as error:  # Out of memory, or XLA cannot compile it. Continue.
            yield f"| {backbone} | {batch_size} | {what} | - | {precision} | {xla} | failed: {type(error).__name__} | - |"
            continue
        peak_mb = f"{tf.config.experimental.get_memory_info('GPU:0')['peak'] / 2**20:,.0f}" if on_gpu else "-"
        for work, found in measured.items():
            rate = median_and_spread([r["photos"] / r["wall_s"] for r in found], 0)
            yield f"| {backbone} | {batch_size} | {what} | {work} | {precision} | {xla} | {rate} | {peak_mb} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=list(BATCH_SIZES))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--try-on-cpu", action="store_true", help="only test the code on a CPU; the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="file for the table; default: benchmarks/results/gpu_...")
    options = parser.parse_args()
    from job.cluster.tensorflow import import_tensorflow

    tf = import_tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    device = f"{len(gpus)}x{names[0].replace(' ', '-')}" if gpus else f"{len(os.sched_getaffinity(0))}-core-cpu"
    file = options.out or ROOT / "benchmarks" / "results" / f"gpu_{device}_{datetime.date.today()}.md"
    lines = ["# On GPUs", "", f"{', '.join(names) or 'No GPU'}; {machine()}, {datetime.date.today()}.", ""]
    if not gpus:
        lines += ["**No GPU: nothing here was measured on one.** Run `python -m benchmarks.gpu` on a machine with a GPU."]
    if gpus or options.try_on_cpu:
        lines += [
            "",
            f"TensorFlow {tf.__version__}, {options.image_size} px, arrays in memory; photos/s: median (lowest to highest).",
            "`job`: as the stages do it, on all GPUs. `keras`, `constants`, `bare`: the limit on one GPU.",
            "",
            "| backbone | batch | | | precision | XLA | photos/s | peak MB on the device |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for backbone, batch_size in product(options.backbones, options.batch_sizes):
            timing = {"rounds": 5, "seconds": 1.0} if gpus else {"rounds": 1, "seconds": 0.0}
            for line in rows(backbone, options.image_size, batch_size, on_gpu=bool(gpus), **timing):
                print(line, flush=True)
                lines.append(line)
                file.write_text("\n".join(lines) + "\n")
    file.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(file)


if __name__ == "__main__":
    main()
