"""The state of a run: its configuration, its source of photos, and the artifacts of its stages."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, Self, overload

from job.cluster.devices import Devices
from job.cluster.environment import Cluster
from job.cluster.tensorflow import import_tensorflow
from job.config import Config
from job.errors import UsageError
from job.pipeline.budget import Budget, spent_before
from job.pipeline.records import Records
from job.pipeline.settings import settings_digest
from job.pipeline.table import STAGES
from job.runtime.context import Context
from job.runtime.stop import StopRequest
from job.sources.base import Listing, Source
from job.storage.files import digest_of
from job.storage.workdir import LOG
from job.train.recipe import Recipe, with_quality

if TYPE_CHECKING:
    from job.data.corrections import Corrections
    from job.measure.models import ShippedModel
    from job.model.inputs import Inputs
    from job.model.network import Network
    from job.stages.audit import Audit
    from job.stages.evaluate import Evaluation
    from job.stages.extract import Extraction
    from job.stages.fine_tune import FineTuned
    from job.stages.head import ChosenHead
    from job.stages.intake import Intake
    from job.stages.split import Refusal, SplitExamples
    from job.train.checkpoint import Checkpoints


class Artifact(Protocol):
    """The outcome of a stage."""

    @classmethod
    def load(cls, context: Context) -> Self:
        """Read the artifact of an earlier run from the work directory."""
        ...


class Job:
    """The state of a run. `done` are the stages of this run that are up to date, in order.

    `given` is the configuration that was given, and `config` the one in use, without auto where the quality decides.
    `exports` says whether this run is meant to export a model. `source` may be None if the stages that run read no photos.
    """

    def __init__(
        self,
        config: Config,
        source: Source | None,
        context: Context,
        *,
        labels: str | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.given, self.config = config, with_quality(config)
        self._source, self.context, self.labels = source, context, labels
        self.cluster = cluster or Cluster()
        self.devices = Devices(
            self.cluster, logical_cpus=config.cluster.logical_cpus, require_gpu=config.cluster.require_gpu
        )
        self.workdir = context.workdir
        self._artifacts: dict[str, Artifact] = {}
        self.exports = False
        self.done: list[str] = []
        self.records = Records(self.workdir, context.cache)
        self.budget: Budget | None = None
        if (limit_s := config.train.budget_s) is not None:
            if self.cluster.num_workers > 1:
                raise UsageError(
                    f"--budget (train.budget_s) works with one worker, and this run has {self.cluster.num_workers}. Leave "
                    "it out, and give --quality."
                )
            self.budget = Budget(limit_s, spent_before(self.workdir.path(LOG)))

    def configure(self, config: Config) -> None:
        """Set the configuration that the budget has chosen."""
        if "network" in vars(self):
            self.network = self.network.recut(config.backbone.unfreeze)
        self.config = config

    @property
    def source(self) -> Source:
        assert self._source is not None  # Only a job whose stages read no photos has none.
        return self._source

    @cached_property
    def listing(self) -> Listing:
        """The files of the source."""
        return self.source.listing()

    @cached_property
    def corrections(self) -> Corrections:
        """The decisions about labels that the run was given; none without a table. Raises: UsageError, DataUnusable."""
        from job.data.corrections import Corrections, read_corrections

        place = self.config.intake.corrections
        return read_corrections(place, self.listing.class_names) if place else Corrections()

    @property
    def stop(self) -> StopRequest:
        return self.context.stop

    @cached_property
    def network(self) -> Network:
        """The backbone and its head.

        TensorFlow is imported here, quietly, before a stage that computes with the network imports it by its name.
        """
        from job.model.network import Network

        import_tensorflow()
        return Network(self.config.backbone, self.config.intake.image_size, self.devices, seed=self.config.seed)

    def look_for_weights(self) -> None:
        """Load the pre-trained backbone now, so that wrong or missing weights show before the work begins.

        With several workers it is loaded later: TensorFlow must not compute before their servers are connected.
        """
        if self.config.backbone.weights != "random" and self.cluster.num_workers == 1:
            _ = self.network.backbone

    @property
    def recipe(self) -> Recipe:
        """The settings that follow from the number of training photos after split."""
        return Recipe.resolve(self.config, num_examples=len(self["split"].examples.of("train")))

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs of fine-tuning: stored activations, or photos that are augmented in each epoch, as extract decided."""
        from job.data.augment import Augmentation
        from job.model.inputs import OnlineInputs, StoredInputs

        extraction = self["extract"]
        if extraction.inputs.kind == "stored":
            return StoredInputs(extraction.activations)
        augmentation = Augmentation(self.config.augment, self.config.intake.image_size)
        return OnlineInputs(self["intake"].images, self.network, augmentation)

    @cached_property
    def shipped(self) -> ShippedModel:
        """The model that evaluate has chosen, built once for all stages that use it."""
        return self["evaluate"].shipped(self.network, self["head"].head, self["fine_tune"].models)

    @property
    def refusals(self) -> Sequence[Refusal]:
        """The reasons why the data cannot be trained on as it is; empty if it can."""
        return self["split"].refusals

    @property
    def gate_met(self) -> bool:
        """True if the model is good enough to be exported."""
        return self["evaluate"].numbers["gate"]["met"]

    def made_from(self, stage: str, done: Sequence[str]) -> dict[str, str]:
        """Return digests of all that a stage depends on: its settings, the source, and each `done` stage before it."""
        made_from = {"its settings": settings_digest(stage, self.config)}
        if not STAGES[stage].after:
            from job.data.known import source_digest

            made_from["the source"] = source_digest(self.source, self.listing, self.context)
        if stage == "split" and self.corrections.decisions:
            made_from["the corrections"] = digest_of(self.corrections.decisions)
        outcomes = {before: self.records.outcome(before) for before in STAGES[stage].after if before in done}
        return made_from | {before: outcome for before, outcome in outcomes.items() if outcome}

    def why_stale(self, stage: str, done: Sequence[str]) -> str:
        """Return why a stage has to run; empty if it does not. `done` are the stages of this run before it."""
        return self.records.why_stale(stage, self.made_from(stage, done))

    def checkpoints(self, stage: str, repetition: int = 0) -> Checkpoints:
        """Return the checkpoints of a stage, or of one of its repetitions, counted from 0."""
        from job.train.checkpoint import Checkpoints

        code = {"its code": str(STAGES[stage].schema)}
        name = f"{stage}_{repetition}" if repetition else stage
        return Checkpoints(self.context, name, {**code, **self.made_from(stage, self.done)})

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
    def __getitem__(self, stage: str) -> Artifact:
        """Return the artifact of a stage, from this run or an earlier one."""
        if stage not in self._artifacts:
            module = importlib.import_module(f"job.stages.{stage}")
            self._artifacts[stage] = getattr(module, STAGES[stage].artifact).load(self.context)
        return self._artifacts[stage]

    def keep(self, stage: str, artifact: Artifact) -> None:
        """Keep the artifact of a stage that has just run."""
        self._artifacts[stage] = artifact

    def forget(self) -> None:
        """Drop the loaded artifacts, because another worker may have made new ones."""
        self._artifacts.clear()
