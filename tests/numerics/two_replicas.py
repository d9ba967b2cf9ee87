"""One replica against two logical CPU devices on the same work; prints the differences as JSON."""

import json
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

from job.config import BackboneConfig
from job.model.heads import Head, smoothed_one_hot
from job.model.network import Network
from job.telemetry import Telemetry
from job.train.cluster import Cluster
from job.train.feed import all_rows, run_batches
from job.train.loop import Trainer
from job.train.recipe import Recipe
from job.train.schedule import Schedule
from tests.numerics.test_training import Given

SIZE, EXAMPLES = 32, 24


def main() -> None:
    two = Cluster(logical_cpus=2)
    two.strategy  # Devices first.  # noqa: B018
    one = Cluster()
    config = BackboneConfig(alpha=0.35, weights="random", unfreeze=0.2)
    networks = [Network(config, SIZE, cluster, seed=3) for cluster in (one, two)]
    networks[1].backbone.set_weights(networks[0].backbone.get_weights())
    rng = np.random.default_rng(0)
    activations = rng.normal(0, 1, (EXAMPLES, *networks[0].cut_point.shape)).astype(np.float16)
    targets = smoothed_one_hot(rng.integers(0, 3, EXAMPLES), 3, 0.1)
    head = Head(rng.normal(0, 0.2, (networks[0].feature_width, 3)).astype(np.float32), np.zeros(3, np.float32))
    pixels = rng.integers(0, 255, (11, SIZE, SIZE, 3)).astype(np.uint8)

    def trained(network, precision, epochs, limit, learning_rate):
        # Batches of 5: neither the batch nor the last one of an epoch is even for two replicas.
        recipe = Recipe(epochs, 5, learning_rate, views=1)
        schedule = Schedule.resolve(recipe, num_examples=EXAMPLES, warmup_fraction=0.1, seed=1)
        model = network.tuned(head, precision)
        start = [w.copy() for w in model.get_weights()]
        trainer = Trainer(model, schedule, network.cluster, Given(), weight_decay=1e-3, ema=False, telemetry=Telemetry(None))
        seen = 0
        for step in range(limit):
            chosen = schedule.batch(step)
            losses, _, _ = trainer.step(((activations[chosen],), targets[chosen], np.ones(len(chosen), np.float32)))
            seen += len(losses)
        return model.get_weights(), start, seen, trainer

    def largest(first, second):
        return float(max(np.abs(a - b).max() for a, b in zip(first, second, strict=True)))

    fifty = [trained(network, "float64", 10, 50, 1e-2) for network in networks]
    single = [trained(network, "float32", 10, 1, 6e-4) for network in networks]
    # After one step AdamW's first moment is a tenth of the gradient.
    moments = [[np.asarray(m) for m in run[3].optimizer._momentums] for run in single]
    scale = max(np.abs(m).max() for m in moments[0])
    features = [
        all_rows(run_batches(n.cluster, n.compiled(), lambda rows: (pixels[rows],), len(pixels), 4, Telemetry(None)))[1]
        for n in networks
    ]
    print(
        json.dumps(
            {
                "num_replicas": [n.cluster.num_replicas for n in networks],
                "num_examples_seen": [run[2] for run in fifty],
                "float64_after_50_steps": largest(fifty[0][0], fifty[1][0]),
                "float64_moved_by": largest(fifty[0][0], fifty[0][1]),
                "float32_gradients_of_one_step": largest(*moments) / float(scale),
                "float32_after_one_step": largest(single[0][0], single[1][0]),
                "features": largest([features[0]], [features[1]]),
            }
        )
    )


if __name__ == "__main__":
    main()
