"""Progress for Kubeflow Trainer, sent to a TLS server on the loopback interface that fails, hangs and changes the token."""

import datetime
import io
import ipaddress
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from job.runtime import kubeflow
from job.runtime.forecast import Forecast
from job.runtime.kubeflow import reported
from job.runtime.telemetry import Telemetry
from tests.conftest import quick_settings, run_job, wait_until

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs/first/status"


class Trainer(ThreadingHTTPServer):
    """The server of Kubeflow Trainer. `takes` is the token that it expects, and it answers only once `answers` is set."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.takes, self.status, self.answers = "first", 200, threading.Event()
        self.answers.set()
        self.messages, self.refused = [], []
        certificate, key = certificate_of(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.token = folder / "token"
        self.token.write_text("first\n")
        self.environ = {
            "KUBEFLOW_TRAINER_SERVER_URL": f"https://127.0.0.1:{self.server_port}{PATH}",
            "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(certificate),
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(self.token),
        }

    def handle_error(self, request, client_address):
        """Say nothing: clients that distrust the certificate break the connection."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.answers.wait()
        is_good = self.headers["Authorization"] == f"Bearer {self.server.takes}" and self.path == PATH
        status = self.server.status if is_good else 401
        (self.server.messages if status == 200 else self.server.refused).append(json.loads(body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def certificate_of(folder):
    """A certificate that signs itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(here, critical=True).sign(key, hashes.SHA256())
    (folder / "ca.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return folder / "ca.crt", folder / "key"


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(kubeflow, "SECONDS_BETWEEN_MESSAGES", 0.02)
    server = Trainer(tmp_path)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.answers.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run():
    """The reports of a run that has begun, with what it prints in `said`."""
    recorder = Telemetry(None, io.StringIO())
    recorder.said = recorder._log.stream
    recorder.forecast = Forecast({"extract": 600.0, "fine_tune": 600.0}, {"fine_tune"})
    recorder.forecast.begin("extract")
    return recorder


def test_message_has_the_form_that_trainer_documents_and_the_last_one_says_100(trainer, run):
    with reported(run, trainer.environ):
        wait_until(lambda: trainer.messages)
        run.scalar("fine_tune/val_accuracy", 0.9125, 3)
        run.forecast.expect({"fine_tune": 100.0})
        wait_until(lambda: trainer.messages[-1]["trainerStatus"]["metrics"])
        run.forecast.complete()
    first, last = (trainer.messages[k]["trainerStatus"] for k in (0, -1))
    assert list(first) == ["progressPercentage", "metrics", "lastUpdatedTime"], "nobody can know the remaining time yet"
    assert first["progressPercentage"] == 0 and first["metrics"] == []
    assert datetime.datetime.strptime(first["lastUpdatedTime"], "%Y-%m-%dT%H:%M:%SZ")
    assert (last["progressPercentage"], last["estimatedRemainingSeconds"]) == (100, 0)
    assert last["metrics"] == [{"name": "fine_tune/val_accuracy", "value": "0.9125"}]
    percentages = [message["trainerStatus"]["progressPercentage"] for message in trainer.messages]
    assert percentages == sorted(percentages) and not run.said.getvalue()


def test_token_is_read_for_every_message(trainer, run):
    with reported(run, trainer.environ):
        wait_until(lambda: trainer.messages)
        trainer.takes = "second"
        wait_until(lambda: trainer.refused)
        trainer.token.write_text("second")
        count = len(trainer.messages)
        wait_until(lambda: len(trainer.messages) > count)
    assert run.said.getvalue().count("it answered 401 Unauthorized. The run goes on.") == 1


def test_server_that_fails_is_told_once_and_tried_again(trainer, run):
    trainer.status = 500
    with reported(run, trainer.environ):
        wait_until(lambda: len(trainer.refused) > 2)
        trainer.status = 200
        wait_until(lambda: trainer.messages)
    (line,) = run.said.getvalue().splitlines()
    assert "does not take the progress of this run: it answered 500" in line and "NetworkPolicy" in line


def test_server_that_hangs_holds_up_neither_the_work_nor_the_end(trainer, run, monkeypatch):
    monkeypatch.setattr(kubeflow, "_LAST_WITHIN_S", 0.1)
    trainer.answers.clear()
    with reported(run, trainer.environ):
        pass
    assert not trainer.messages, "the block has ended before the server has answered"
    with pytest.raises(ZeroDivisionError), reported(run, trainer.environ):
        raise ZeroDivisionError
    assert not trainer.messages and not trainer.answers.is_set()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("KUBEFLOW_TRAINER_SERVER_CA_CERT", "/nowhere/ca.crt", "No such file"),
        ("KUBEFLOW_TRAINER_SERVER_TOKEN", "/nowhere/token", "No such file"),
        ("KUBEFLOW_TRAINER_SERVER_URL", "https://127.0.0.1:1/status", "refused"),
        ("KUBEFLOW_TRAINER_SERVER_URL", "https://127.0.0.1:x/status", "Port could not be cast"),
    ],
)
def test_whatever_is_wrong_is_one_line(trainer, run, name, value, said):
    with reported(run, {**trainer.environ, name: value}):
        wait_until(run.said.getvalue)
    (line,) = run.said.getvalue().splitlines()
    assert said in line and not trainer.messages


def test_server_with_another_certificate_gets_no_token(trainer, run, tmp_path):
    (tmp_path / "other").mkdir()
    other, _ = certificate_of(tmp_path / "other")
    with reported(run, {**trainer.environ, "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(other)}):
        wait_until(run.said.getvalue)
    assert "CERTIFICATE_VERIFY_FAILED" in run.said.getvalue() and not trainer.messages + trainer.refused


def test_without_all_three_variables_no_thread_is_started(trainer, run):
    trainer.environ.popitem()
    before = threading.active_count()
    with reported(run, trainer.environ):
        assert threading.active_count() == before
    assert not run.said.getvalue()


def test_command_line_reports_the_whole_run(trainer, painted, tmp_path):
    done = run_job("explore", "--data", painted, "--out", tmp_path / "out", *quick_settings(), **trainer.environ)
    assert done.returncode == 0 and "Kubeflow" not in done.stderr, done.stderr
    last = trainer.messages[-1]["trainerStatus"]
    assert (last["progressPercentage"], last["estimatedRemainingSeconds"]) == (100, 0)
