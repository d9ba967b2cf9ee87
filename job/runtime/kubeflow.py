"""Progress for Kubeflow Trainer 2.2 or later, which shows it in the status of the TrainJob.

Trainer sets three variables in the pods of a TrainJob: the address of its server, and the paths of the server's certificate
and of a token. The token is replaced now and then, so it is read for every message.
"""

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from job.runtime.sending import sending
from job.runtime.telemetry import Telemetry

SECONDS_BETWEEN_MESSAGES = 5.0
_TIMEOUT_S = 3.0
_LAST_WITHIN_S = 5.0
_VARIABLES = ("KUBEFLOW_TRAINER_SERVER_URL", "KUBEFLOW_TRAINER_SERVER_CA_CERT", "KUBEFLOW_TRAINER_SERVER_TOKEN")


@contextmanager
def reported(telemetry: Telemetry, environ: Mapping[str, str]) -> Iterator[None]:
    """Give a block whose progress a thread sends to Kubeflow Trainer, if these variables name its server.

    Whatever is wrong with the server, the run goes on: the first fault is a line in the log. After a block that ended well,
    100% is sent, too, and waited for at most 5 seconds.
    """
    url, certificate, token = (environ.get(name, "") for name in _VARIABLES)
    if not (url and certificate and token):
        yield
        return

    def send(_: bool | None) -> None:
        if status := _status(telemetry):
            _post(url, Path(certificate), Path(token), status)

    def tell(error: Exception) -> None:
        telemetry.line(
            f"Kubeflow Trainer at {url} does not take the progress of this run: {error}. The run goes on. "
            "Check that the NetworkPolicy of this pod lets it connect there.",
            level="warning",
        )

    with sending(send, tell, every_s=SECONDS_BETWEEN_MESSAGES, last_within_s=_LAST_WITHIN_S):
        yield


def _status(telemetry: Telemetry) -> dict[str, object] | None:
    """Return the message; None before the run has a forecast."""
    if telemetry.forecast is None:
        return None
    progress = telemetry.forecast.now()
    left = {} if progress.remaining_s is None else {"estimatedRemainingSeconds": progress.remaining_s}
    metrics = [{"name": name, "value": f"{value:.6g}"} for name, value in sorted(telemetry.latest.items())]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"progressPercentage": progress.percent, **left, "metrics": metrics, "lastUpdatedTime": now}


def _post(server: str, certificate: Path, token: Path, status: Mapping[str, object]) -> None:
    """Send one message. Raises: OSError, ValueError or HTTPException, if the server does not take it."""
    url = urlsplit(server)
    secret = "".join(token.read_text().split())  # A line break in it would be an error that quotes the token.
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    trusted = ssl.create_default_context(cafile=certificate)
    # This module and not urllib, which would use the proxy of the environment.
    connection = HTTPSConnection(url.hostname or "", url.port, timeout=_TIMEOUT_S, context=trusted)
    try:
        connection.request("POST", url.path, json.dumps({"trainerStatus": status}), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"it answered {answer.status} {answer.reason}")
    finally:
        connection.close()
