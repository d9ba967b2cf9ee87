"""`export --to serving`: the layout, and requests as TensorFlow Serving takes them, with its real messages."""

import base64
import json

import numpy as np
import pytest

from job.serving.tensorflow_serving import WARM_UP, lay_out
from tests.conftest import contents, run_job


@pytest.fixture(scope="module")
def base(finished_run, tmp_path_factory):
    """The model of the finished run as version 1."""
    folder = tmp_path_factory.mktemp("models") / "shapes"
    done = run_job("export", finished_run, "--to", "serving", folder)
    assert done.returncode == 0 and f"{folder}/1" in done.stdout, done.stderr
    return folder


@pytest.fixture(scope="module")
def server(base):
    """The signatures of the version, and a function that answers a PredictRequest with them as the server does."""
    import tensorflow as tf

    loaded = tf.saved_model.load(base / "1")

    def answer(request):
        given = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        outputs = loaded.signatures[request.model_spec.signature_name or "serving_default"](**given)
        return {name: value.numpy() for name, value in outputs.items()}

    return answer


@pytest.fixture(scope="module")
def size(finished_run):
    return json.loads((finished_run / "model" / "model.json").read_text())["image_size"]


def test_version_has_the_saved_model_and_nothing_else(base, finished_run):
    names = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}
    parts = {"1/saved_model.pb", "1/fingerprint.pb", "1/assets.extra/model.json", f"1/{WARM_UP}"}
    parts |= {f"1/variables/variables.{name}" for name in ("index", "data-00000-of-00001")}
    assert names == parts and [path.name for path in base.iterdir()] == ["1"]
    assert (base / "1" / "assets.extra" / "model.json").read_bytes() == (finished_run / "model" / "model.json").read_bytes()


def test_versions_count_up_and_nothing_is_overwritten(base, finished_run, tmp_path):
    folder = tmp_path / "shapes"
    for name in ("2", "10", "11.backup"):
        (folder / name).mkdir(parents=True)
        (folder / name / "mine").write_text(name)
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    assert [lay_out(str(finished_run), str(folder)) for _ in range(2)] == [f"{folder}/11", f"{folder}/12"]
    assert before.items() <= contents(folder).items()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_warm_up_is_a_file_of_prediction_logs_that_the_model_answers(base, server, size):
    import tensorflow as tf
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    records = [record.numpy() for record in tf.data.TFRecordDataset(str(base / "1" / WARM_UP))]
    logs = [PredictionLog.FromString(record) for record in records]
    assert [log.WhichOneof("log_type") for log in logs] == ["predict_log"] * 2
    requests = [log.predict_log.request for log in logs]
    assert [request.model_spec.signature_name for request in requests] == ["serving_default", "pixels"]
    for log, record in zip(logs, records, strict=True):
        assert log.SerializeToString() == record, "there are no unknown fields"
    assert server(requests[0])["valid"].tolist() == [True]
    assert tf.make_ndarray(requests[1].inputs["pixels"]).shape == (1, size, size, 3)
    assert server(requests[1])["probabilities"].sum() == pytest.approx(1, abs=1e-5)


def test_body_of_rest_and_a_request_of_grpc_have_the_same_answer(server, painted):
    import tensorflow as tf
    from tensorflow_serving.apis.predict_pb2 import PredictRequest

    photos = [path.read_bytes() for path in sorted(painted.glob("*/*.jpg"))[:3]] + [b"not a photo"]
    body = json.dumps({"instances": [{"b64": base64.b64encode(photo).decode()} for photo in photos]})
    # As the server does it: the one input of the signature gets the decoded strings, and rows have all outputs by name.
    by_rest, by_grpc = PredictRequest(), PredictRequest()
    decoded = [base64.b64decode(instance["b64"]) for instance in json.loads(body)["instances"]]
    by_rest.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(decoded))
    by_grpc.model_spec.signature_name = "serving_default"
    by_grpc.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(photos, shape=[len(photos)]))
    answer = server(PredictRequest.FromString(by_rest.SerializeToString()))
    for name, values in server(by_grpc).items():
        assert np.array_equal(answer[name], values) and len(values) == len(photos), name
    assert answer["valid"].tolist() == [True, True, True, False]
    assert set(answer["label"][:3].tolist()) <= {b"checks", b"stripes"} and answer["label"][3] == b""


def test_arrays_of_another_size_are_refused(server, size):
    import tensorflow as tf
    from tensorflow_serving.apis.predict_pb2 import PredictRequest

    def ask(pixels):
        request = PredictRequest()
        request.model_spec.signature_name = "pixels"
        request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(pixels))
        return server(request)

    assert ask(np.zeros((2, size, size, 3), np.uint8))["probabilities"].shape == (2, 2)
    for shape in [(1, size + 1, size, 3), (1, 2 * size, 2 * size, 3), (1, size, size, 1), (size, size, 3)]:
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError, TypeError)):
            ask(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "serving"], "Give a folder for TensorFlow Serving"),
        (["--to", "serving", "{run}/serving"], "it is inside of"),
        (["--to", "onnx", "{tmp}/x"], "Give a folder for TensorFlow Serving with --to serving, and only there"),
    ],
)
def test_wrong_calls_are_refused(finished_run, tmp_path, arguments, said):
    given = [text.format(run=finished_run, tmp=tmp_path) for text in arguments]
    done = run_job("export", finished_run, *given)
    assert done.returncode == 2 and said in done.stderr
    assert not (finished_run / "serving").exists()


def test_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    done = run_job("export", tmp_path / "run", "--to", "serving", tmp_path / "base")
    assert done.returncode == 2 and "there is no model.json in it" in done.stderr
    assert not (tmp_path / "base").exists()
