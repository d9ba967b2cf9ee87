"""Tracking in MLflow: settings, metrics by epoch, results, report and model of a run, as `tracking.mlflow` asks for it.

The output of the run is what counts. MLflow gets copies from it: epochs while the run works, and all else at its end. If a
server is away, the run goes on, and the same command, started again, sends what is missing. A run that is started again
with the same settings goes on in the same run of MLflow, which is found by a tag.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from job.config import with_dotted_names
from job.errors import DataUnusable, Diverged, GateNotMet, UsageError
from job.pipeline import publishing
from job.pipeline.job import Job
from job.runtime.sending import sending
from job.runtime.telemetry import events_in
from job.storage.files import digest_of
from job.storage.published import Published
from job.storage.workdir import LOG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

SECONDS_BETWEEN_MESSAGES = 10.0
LAST_WITHIN_S = 300.0  # A large model needs a while. A server that hangs is given up after a minute.
_PARAMS_AT_ONCE = 100  # A limit of MLflow.
_KEY, _SET = "transfer_job.key", "transfer_job.set"
_OF_EPOCHS = ("train_loss", "train_accuracy", "val_log_loss", "val_accuracy", "learning_rate")
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # By default, it tries for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def tracked(job: Job) -> Iterator[None]:
    """Give a block in which the job runs, and send its results to MLflow if `tracking.mlflow` is set.

    Raises:
        UsageError: if the package mlflow-skinny is missing. Nothing that a server does raises an error.
    """
    uri = job.config.tracking.mlflow
    if uri is None:
        yield
        return
    if find_spec("mlflow") is None:
        raise UsageError("tracking.mlflow needs a package: pip install 'transfer-job[mlflow]'. Or leave the setting out.")
    tracker, ended = _Tracker(job, uri), (GateNotMet, DataUnusable, Diverged)
    with sending(
        tracker.send, tracker.tell, every_s=SECONDS_BETWEEN_MESSAGES, last_within_s=LAST_WITHIN_S, last_after=ended
    ):
        yield


class _Tracker:
    """The run of MLflow that belongs to a job."""

    def __init__(self, job: Job, uri: str) -> None:
        self._job, self._uri, self._name = job, uri, job.config.tracking.name
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._num_sent = len(self._epochs())  # Those of earlier starts come at the end.

    def tell(self, error: Exception) -> None:
        """Print a line about the first fault."""
        self._job.context.telemetry.line(
            f"MLflow at {self._uri} does not take the results: {' '.join(str(error).split())[:300]}. The run goes on. Start "
            "the same command again once the server is there, and it gets what is missing.",
            level="warning",
        )

    def send(self, ended: bool | None) -> None:
        """Send new epochs, and at the end everything. Raises whatever is wrong with the server."""
        epochs = self._epochs()
        if ended is None:
            if len(epochs) > self._num_sent:
                client = self._connected()
                client.log_batch(self._run_id, metrics=self._metrics(epochs[self._num_sent :]))
                self._num_sent = len(epochs)
            return
        client, published = self._connected(), Published.load(self._job.workdir)
        if client.get_run(self._run_id).data.tags.get(_SET) != _results_of(published):
            self._send_results(client, published, epochs)
            client.set_tag(self._run_id, _SET, _results_of(published))
        client.set_terminated(self._run_id, "FINISHED" if ended else "FAILED")

    def _connected(self) -> "MlflowClient":
        """Return the client, after finding the run of MLflow by its tag, or making one."""
        if self._client is None:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient

            client, job = MlflowClient(self._uri, self._uri), self._job
            known = client.get_experiment_by_name(self._name)
            experiment = known.experiment_id if known else client.create_experiment(self._name)
            settings = job.given.model_dump(mode="json", exclude={"tracking"})
            key = digest_of([job.workdir.uri, job.source.uri, settings])
            if found := client.search_runs([experiment], f"tags.`{_KEY}` = '{key}'", max_results=1):
                self._run_id = found[0].info.run_id
                client.update_run(self._run_id, "RUNNING")
            else:
                name = job.config.report.title or os.path.basename(job.source.uri.rstrip("/"))  # noqa: PTH119  # Or a URI.
                tags = {_KEY: key, "data": job.source.uri, "out": job.workdir.uri}
                self._run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
            self._client = client
        return self._client

    def _send_results(self, client: "MlflowClient", published: Published, epochs: list[dict[str, float]]) -> None:
        from mlflow.entities import Metric, Param

        job, now_ms = self._job, int(time.time() * 1000)
        config = job.config.model_dump(mode="json", exclude={"tracking"})
        params = [Param(name, json.dumps(value)) for name, value in with_dotted_names(config)]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            client.log_batch(self._run_id, params=params[start : start + _PARAMS_AT_ONCE])
        client.log_batch(self._run_id, metrics=self._metrics(self._kept(epochs)))
        place = publishing.place(job.workdir)
        if "evaluate" in job.done:
            metrics = job.workdir.read_json(f"{place}metrics.json")
            for split, scores in metrics[metrics["shipped"]].items():
                values = scores or {}
                found = [Metric(f"{split}/{k}", v, now_ms, 0) for k, v in values.items() if isinstance(v, float)]
                client.log_batch(self._run_id, metrics=found)
        for name in ("report.html", "metrics.json", "run.json"):
            path = job.workdir.path(name if name == "run.json" else place + name)
            if path.exists():
                client.log_artifact(self._run_id, str(path))
        if published.has_model and not published.attempt:
            self._register(client)

    def _register(self, client: "MlflowClient") -> None:
        """Upload the published model, and make it the next version of the registered model."""
        from mlflow.exceptions import MlflowException

        model = self._job.workdir.path("model")
        if not model.is_dir():  # It is in a bucket, and this start has not changed it.
            return
        client.log_artifacts(self._run_id, str(model), "model")
        try:
            client.get_registered_model(self._name)
        except MlflowException:
            client.create_registered_model(self._name)
        source = f"{client.get_run(self._run_id).info.artifact_uri}/model"
        client.create_model_version(self._name, source, self._run_id, await_creation_for=0)

    def _epochs(self) -> list[dict[str, float]]:
        """Return the epochs in the log of this output: seed, epoch, time, and metrics. Earlier starts are included."""
        return [event for event in events_in(self._job.workdir.path(LOG)) if event["event"] == "epoch"]

    def _kept(self, epochs: list[dict[str, float]]) -> list[dict[str, float]]:
        """Return all epochs of the training that counts, with their times in the log: MLflow stores a point only once."""
        if "fine_tune" not in self._job.done:
            return []
        times = {(epoch["seed"], epoch["epoch"]): epoch["time"] for epoch in epochs}
        start = min(times.values(), default=time.time())  # For the entry from before training, which is in no log.
        return [
            {**entry, "time": times.get((entry["seed"], entry["epoch"]), start)} for entry in self._job["fine_tune"].history
        ]

    def _metrics(self, epochs: list[dict[str, float]]) -> list["Metric"]:
        from mlflow.entities import Metric

        several = self._job.recipe.seeds > 1
        return [
            Metric(f"seed_{e['seed']}/{what}" if several else what, e[what], round(1000 * e["time"]), int(e["epoch"]))
            for e in epochs
            for what in _OF_EPOCHS
            if what in e
        ]


def _results_of(published: Published) -> str:
    """Return a name of what a run has left: of its set, or of the files of an attempt without a model."""
    return digest_of([published.set, published.attempt])
