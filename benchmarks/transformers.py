"""Speed of a small vision transformer: extract against its bare forward pass, a step of fine_tune against a bare step.

It has four blocks as wide as a ViT-S, and random weights in a preset that KerasHub saves, so it needs no network. KerasHub's
own model of it is measured, too. Works take turns, and ratios are of CPU seconds, so that other programs disturb little.
"""

import argparse
import datetime
import os
import statistics
import tempfile
from collections.abc import Callable

import numpy as np

from benchmarks.limits import activations_of, bare_forward, bare_step, in_turn, job_forward, job_step
from benchmarks.measured import ROOT, machine
from job.sections import BackboneConfig

IMAGE_SIZE, BATCH_SIZE, NUM_BATCHES = 224, 16, 2
SMALL = {"patch_size": 16, "num_layers": 4, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}


def hub_forward(preset: str, pixels_NHWC: np.ndarray) -> Callable[[], int]:
    """Return the forward pass of KerasHub's own model, without the scaling of pixels."""
    import keras_hub
    import tensorflow as tf

    model = keras_hub.models.ViTBackbone.from_preset(preset)
    forward = tf.function(lambda pixels: model(tf.cast(pixels, tf.float32), training=False))
    batches = [tf.constant(batch) for batch in np.split(pixels_NHWC, NUM_BATCHES)]

    def run() -> int:
        return sum(len(np.asarray(forward(batch))) for batch in batches)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    from job.cluster.devices import Devices
    from job.cluster.tensorflow import import_tensorflow

    tf = import_tensorflow()
    import keras_hub

    from job.model.network import Network

    pixels = np.random.default_rng(0).integers(0, 256, (NUM_BATCHES * BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as preset:
        keras_hub.models.ViTBackbone(image_shape=(IMAGE_SIZE, IMAGE_SIZE, 3), **SMALL).save_to_preset(preset)
        config = BackboneConfig(name="hub:small", weights=preset, unfreeze=0.4)
        network = Network(config, IMAGE_SIZE, Devices(), seed=0)
        activations = activations_of(network, pixels, BATCH_SIZE)
        forward = {
            **bare_forward(config, pixels, BATCH_SIZE),
            "KerasHub": hub_forward(preset, pixels),
            **job_forward(network, pixels, BATCH_SIZE),
        }
        step = {**bare_step(config, IMAGE_SIZE, activations, BATCH_SIZE), **job_step(network, activations, BATCH_SIZE)}
        found = {("forward", name): r for name, r in in_turn(forward, options.rounds, 0.0).items()}
        found |= {("step", name): r for name, r in in_turn(step, options.rounds, 0.0).items()}
    lines = [
        "# A vision transformer of four blocks",
        "",
        f"{machine()}, {datetime.date.today()}; TensorFlow {tf.__version__}, {IMAGE_SIZE} px, batches of {BATCH_SIZE}.",
        "",
        "| | | CPU ms per photo, median | speed of the job, times this: median of rounds |",
        "|---|---|---|---|",
    ]
    for (what, name), results in found.items():
        cpu = [r["cpu_s"] / r["photos"] for r in results]
        job = [r["cpu_s"] / r["photos"] for r in found[what, "job"]]
        ratio = statistics.median(a / b for a, b in zip(cpu, job, strict=True))
        lines.append(f"| {what} | {name} | {1000 * statistics.median(cpu):.1f} | {ratio:.2f} |")
    device = f"{len(os.sched_getaffinity(0))}-core-cpu"
    file = ROOT / "benchmarks" / "results" / f"transformers_{device}_{datetime.date.today()}.md"
    file.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
