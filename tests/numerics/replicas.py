"""One of the workers that do the same work on one device, on two, or on several workers' devices; writes what came out.

python -m tests.numerics.replicas OUT.npz LOGICAL_CPUS [ADDRESSES INDEX]
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

from job.cluster.devices import Devices
from job.cluster.environment import Cluster
from job.model.heads import Head, smoothed_one_hot
from job.model.layer_decay import learning_rate_factors
from job.model.network import Network
from job.runtime.peers import Peers
from job.runtime.stop import STOP
from job.runtime.telemetry import Telemetry
from job.sections import BackboneConfig
from job.train.feed import all_rows, run_batches
from job.train.loop import Trainer
from job.train.recipe import Recipe
from job.train.schedule import Schedule
from tests.numerics.test_training import Given

SIZE, EXAMPLES = 32, 24


def main(out: str, logical_cpus: str, addresses: str = "", index: str = "0") -> None:
    devices = Devices(Cluster(tuple(addresses.split(",")), int(index)), logical_cpus=int(logical_cpus) or None)
    devices.join(Peers(), STOP, 60)
    network = Network(BackboneConfig(alpha=0.35, weights="random", unfreeze=0.2), SIZE, devices, seed=3)
    rng = np.random.default_rng(0)
    shape, width = network.cut_point.shape, network.feature_width
    activations = rng.normal(0, 1, (EXAMPLES, *shape)).astype(np.float16)
    targets = smoothed_one_hot(rng.integers(0, 3, EXAMPLES), 3, 0.1)
    weights = rng.uniform(0.5, 2, EXAMPLES).astype(np.float32)
    head = Head(rng.normal(0, 0.2, (width, 3)).astype(np.float32), np.zeros(3, np.float32))
    pixels = rng.integers(0, 255, (11, SIZE, SIZE, 3)).astype(np.uint8)
    made: dict[str, np.ndarray] = {"num_replicas": np.asarray(devices.all.num)}
    order: list[int] = []

    def trained(name, precision, limit, learning_rate, layer_decay=1.0):
        # Batches of 5: neither the batch nor the last one of an epoch is even for two replicas or three.
        recipe = Recipe(10, 5, learning_rate, views=1)
        schedule = Schedule.resolve(recipe, num_examples=EXAMPLES, warmup_fraction=0.1, seed=1)
        model = network.tuned(head, precision, devices.all)
        made[f"{name}_start"] = _flat(model.get_weights())
        telemetry, inputs, factors = Telemetry(None), Given(activations), learning_rate_factors(model, layer_decay)
        options = {"weight_decay": 1e-3, "ema": True, "telemetry": telemetry, "rate_factors": factors}
        trainer = Trainer(model, schedule, devices.all, inputs, **options)
        losses = []
        for step in range(limit):
            chosen = schedule.batch(step)
            order.extend(chosen.tolist())
            batch = (lambda numbers, chosen=chosen: (activations[chosen[numbers]],)), targets[chosen], weights[chosen]
            losses.append(trainer.step(batch)[0])
        made[f"{name}_losses"], made[f"{name}_weights"] = np.concatenate(losses), _flat(model.get_weights())
        made[f"{name}_logits"] = trainer.logits(np.arange(EXAMPLES), largest_batch=7)
        # After one step AdamW's first moment is a tenth of the gradient.
        made[f"{name}_moments"] = _flat([np.asarray(m) for m in trainer.optimizer._momentums])

    trained("float64", "float64", 50, 1e-2)
    trained("decayed", "float64", 5, 1e-2, layer_decay=0.7)
    trained("float32", "float32", 1, 6e-4)
    batches = run_batches(network.replicas, network.compiled(), lambda n: (pixels[n],), len(pixels), 4, Telemetry(None))
    made["features"], made["order"] = all_rows(batches)[1], np.asarray(order)
    np.savez(out, **made)


def _flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])


if __name__ == "__main__":
    main(*sys.argv[1:])
