"""A run under way: the configuration, where its photos are, and what the stages have made so far."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, Self, overload

from job.cluster.devices import Devices
from job.cluster.environment import Cluster
from job.config import Config
from job.pipeline.records import Records
from job.pipeline.settings import settings_digest
from job.pipeline.table import STAGES
from job.runtime.context import Context
from job.sources.base import Listing, Source
from job.train.recipe import Recipe

if TYPE_CHECKING:
    from job.model.inputs import Inputs
    from job.model.network import Network
    from job.stages.audit import Audit
    from job.stages.evaluate import Evaluation
    from job.stages.export import Exported
    from job.stages.extract import Extraction
    from job.stages.fine_tune import FineTuned
    from job.stages.head import ChosenHead
    from job.stages.intake import Intake
    from job.stages.split import Refusal, SplitExamples
    from job.train.checkpoint import Checkpoints


class Artifact(Protocol):
    """The outcome of a stage, which `load` reads from what an earlier run left."""

    @classmethod
    def load(cls, context: Context) -> Self: ...


class Job:
    """A run under way: the configuration and what the stages have made so far."""

    def __init__(
        self,
        config: Config,
        source: Source,
        context: Context,
        *,
        labels: str | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.config, self.source, self.context, self.labels = config, source, context, labels
        self.cluster = cluster or Cluster()
        self.devices = Devices(self.cluster, logical_cpus=config.cluster.logical_cpus)
        self.workdir = context.workdir
        self._artifacts: dict[str, Artifact] = {}
        self.exports = False  # Whether this run is to come to a model.
        self.done: list[str] = []  # The stages of this run that are up to date.
        self.records = Records(self.workdir, context.cache)

    @cached_property
    def listing(self) -> Listing:
        return self.source.listing()

    @cached_property
    def network(self) -> Network:
        from job.model.network import Network

        return Network(self.config.backbone, self.config.intake.image_size, self.devices, seed=self.config.seed)

    def look_for_weights(self) -> None:
        """Load the pre-trained backbone, so that weights that are missing or do not fit show before the work begins.

        Several workers load it later: TensorFlow must compute nothing before their servers are connected.
        """
        if self.config.backbone.weights != "random" and self.cluster.num_workers == 1:
            _ = self.network.backbone

    @property
    def recipe(self) -> Recipe:
        """The settings that follow from the number of training photos after split."""
        return Recipe.resolve(self.config, num_examples=len(self["split"].examples.of("train")))

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs of fine-tuning that extract decided on."""
        from job.data.augment import Augmentation
        from job.model.inputs import OnlineInputs, StoredInputs

        extraction = self["extract"]
        if extraction.inputs.kind == "stored":
            return StoredInputs(extraction.activations)
        augmentation = Augmentation(self.config.augment, self.config.intake.image_size)
        return OnlineInputs(self["intake"].images, self.network, augmentation)

    @property
    def refusals(self) -> Sequence[Refusal]:
        """Why nobody can train on the data as it is; empty where somebody can."""
        return self["split"].refusals

    @property
    def gate_met(self) -> bool:
        """Whether the model is good enough to be exported."""
        return self["evaluate"].numbers["gate"]["met"]

    def made_from(self, stage: str, done: Sequence[str]) -> dict[str, str]:
        """Return digests of all that a stage depends on: its settings, the source, and each `done` stage before it."""
        made_from = {"its settings": settings_digest(stage, self.config)}
        if not STAGES[stage].after:
            from job.stages.intake import source_digest

            made_from["the source"] = source_digest(self.source, self.listing, self.workdir)
        outcomes = {before: self.records.outcome(before) for before in STAGES[stage].after if before in done}
        return made_from | {before: outcome for before, outcome in outcomes.items() if outcome}

    def why_stale(self, stage: str, done: Sequence[str]) -> str:
        """Return why a stage has to run; empty where it does not. `done` are the stages of this run that stand before it."""
        return self.records.why_stale(stage, self.made_from(stage, done))

    def checkpoints(self, stage: str) -> Checkpoints:
        from job.train.checkpoint import Checkpoints

        code = {"its code": str(STAGES[stage].schema)}
        return Checkpoints(self.context, stage, {**code, **self.made_from(stage, self.done)})

    @overload
    def __getitem__(self, stage: Literal["intake"]) -> Intake: ...
    @overload
    def __getitem__(self, stage: Literal["split"]) -> SplitExamples: ...
    @overload
    def __getitem__(self, stage: Literal["extract"]) -> Extraction: ...
    @overload
    def __getitem__(self, stage: Literal["audit"]) -> Audit: ...
    @overload
    def __getitem__(self, stage: Literal["head"]) -> ChosenHead: ...
    @overload
    def __getitem__(self, stage: Literal["fine_tune"]) -> FineTuned: ...
    @overload
    def __getitem__(self, stage: Literal["evaluate"]) -> Evaluation: ...
    @overload
    def __getitem__(self, stage: Literal["export"]) -> Exported: ...
    def __getitem__(self, stage: str) -> Artifact:
        """Return what a stage made, now or in an earlier run."""
        if stage not in self._artifacts:
            module = importlib.import_module(f"job.stages.{stage}")
            self._artifacts[stage] = getattr(module, STAGES[stage].artifact).load(self.context)
        return self._artifacts[stage]

    def keep(self, stage: str, artifact: Artifact) -> None:
        self._artifacts[stage] = artifact

    def forget(self) -> None:
        """Drop what was loaded, because somebody else may have made it anew."""
        self._artifacts.clear()
