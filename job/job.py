"""A run under way: the configuration, where its photos are, and what the stages have made so far."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from job.config import Config, digest_of
from job.context import Context
from job.data.sources import Listing, Source, open_source
from job.pipeline import STAGES
from job.records import outcome, read_record
from job.train.cluster import Cluster
from job.train.recipe import Recipe

if TYPE_CHECKING:
    from job.data.examples import Examples
    from job.model.inputs import Inputs
    from job.model.network import Network
    from job.stages.extract import Extraction
    from job.train.checkpoint import Checkpoints


class Job:
    """A run under way: the configuration and what the stages have made so far."""

    def __init__(
        self,
        config: Config,
        data: str,
        context: Context,
        command: Sequence[str] = (),
        *,
        labels: str | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.config, self.context, self.command = config, context, command
        self.cluster = cluster or Cluster(logical_cpus=config.cluster.logical_cpus)
        self.workdir = context.workdir
        self.source: Source = open_source(data, labels, tfds_dir=config.intake.tfds_dir)
        self.labels = labels
        self._artifacts: dict[str, Any] = {}
        self.done: list[str] = []  # The stages of this run that are up to date.
        self.intact_stores: set[str] = set()  # Those that were read whole; it takes a while, and is done once.

    @cached_property
    def listing(self) -> Listing:
        return self.source.listing()

    @cached_property
    def network(self) -> Network:
        from job.model.network import Network

        return Network(self.config.backbone, self.config.intake.image_size, self.cluster, seed=self.config.seed)

    def look_for_weights(self) -> None:
        """Load the pre-trained backbone, so that weights that are missing or do not fit show before the work begins.

        Several workers load it later: TensorFlow must compute nothing before their servers are connected.
        """
        if self.config.backbone.weights != "random" and self.cluster.num_workers == 1:
            _ = self.network.backbone

    @property
    def recipe(self) -> Recipe:
        """What follows from the number of training photos, as split left them."""
        return Recipe.resolve(self.config, num_examples=len(self["split"].examples.of("train")))

    @cached_property
    def inputs(self) -> Inputs:
        """What fine-tuning works on, as extract decided."""
        from job.data.augment import Augmentation
        from job.model.inputs import OnlineInputs, StoredInputs

        extraction: Extraction = self["extract"]
        if extraction.inputs.kind == "stored":
            return StoredInputs(extraction.activations)
        augmentation = Augmentation(self.config.augment, self.config.intake.image_size)
        return OnlineInputs(self["intake"].images, self.network, augmentation)

    @property
    def examples(self) -> Examples:
        """The table as the last stage that decided about photos left it."""
        examples: Examples = self["audit" if "audit" in self.done else "split"].examples
        return examples

    def made_from(self, stage: str, done: list[str]) -> dict[str, str]:
        """All that a stage depends on, by content: digests of the source, its settings, and each `done` stage before it."""
        made_from = {"its settings": digest_of(STAGES[stage].settings(self.config))}
        if stage == "intake":
            from job.stages.intake import source_digest

            made_from["the source"] = source_digest(self.source, self.listing, self.workdir)
        for before in STAGES[stage].after:
            record = read_record(self.workdir, before) if before in done else None
            if record:
                made_from[before] = outcome(record)
        return made_from

    def checkpoints(self, stage: str) -> Checkpoints:
        from job.train.checkpoint import Checkpoints

        code = {"its code": str(STAGES[stage].schema)}
        return Checkpoints(self.context, stage, {**code, **self.made_from(stage, self.done)})

    def __getitem__(self, stage: str) -> Any:
        """What a stage made, now or in an earlier run."""
        if stage not in self._artifacts:
            self._artifacts[stage] = STAGES[stage].load(self.context)
        return self._artifacts[stage]

    def keep(self, stage: str, artifact: Any) -> None:
        self._artifacts[stage] = artifact

    def forget(self) -> None:
        """What was loaded: somebody else may have made it anew."""
        self._artifacts.clear()
