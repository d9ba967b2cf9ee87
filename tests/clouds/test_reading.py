"""Photos in a bucket that are read once more, by the export's check and by the next run; and what predict asks first."""

import csv
import re
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from job.decoding.rules import DecodeRules
from job.errors import UsageError
from job.runtime.children import start
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import ExportConfig, IntakeConfig
from job.serving import answers, parity
from job.serving import folder as model_folder
from job.serving.predict import Wanted, predict
from job.sources.open import open_source
from job.stages import export
from job.stages.evaluate import Evaluation
from job.stages.intake import Intake
from job.storage.workdir import Workdir
from tests.clouds.test_runs import node, started, wait_for
from tests.conftest import ROOT, quick_settings, run_job

PHOTO_READ = r"^GET .*photos.*alt=media"
FAILURES = (
    (503, 74, r"Error: gs://\S+: Google Cloud Storage failed for \d+ s \("),
    (403, 2, r"Error: gs://\S+: no permission"),
)


@pytest.fixture
def impatient(tmp_path):
    """The environment of a program that tries again for 2 s, and so do the processes that it starts."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import job.storage.bucket.objects\njob.storage.bucket.objects.RETRY_FOR_S = 2.0\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}", **node(tmp_path / "node")}


@pytest.fixture(scope="module")
def photos(photos_in_bucket):
    return photos_in_bucket


@pytest.fixture
def out(finished_run, tmp_path):
    """Results of a run over the same photos, when they lay in a local folder."""
    return shutil.copytree(finished_run, tmp_path / "out", symlinks=True)


def photos_read(bed):
    return [path for method, path, _ in bed.requests() if re.search(PHOTO_READ, f"{method} {path}")]


def test_photos_uploaded_again_with_the_same_bytes_are_read_in_one_run_and_not_in_the_next(google, painted, out):
    uri = google.put_folder(painted, f"{google.bucket()}/photos")

    def num_read_by_a_run():
        google.requests()
        done = run_job("run", "--data", uri, "--out", out, *quick_settings())
        assert done.returncode == 0 and not re.search(r"^\w+ +runs", done.stderr, re.MULTILINE), done.stderr
        return len(photos_read(google))

    assert num_read_by_a_run() == 82  # Each once, though the plan and the run both ask for them.
    assert num_read_by_a_run() == 0
    for name in ("checks/turned.jpg", "stripes/broken.jpg"):
        google.put(f"{uri}/{name}", (painted / name).read_bytes())
    assert num_read_by_a_run() == 2
    assert num_read_by_a_run() == 0


def test_photos_that_cannot_be_read_for_the_exports_check_end_the_run_as_anywhere_else(google, photos, out, impatient):
    arguments = ("run", "--data", photos, "--out", out, *quick_settings())
    patient = {"TMPDIR": impatient["TMPDIR"]}
    assert run_job(*arguments, **patient).returncode == 0
    (out / "stages" / "export.json").unlink()
    for status, code, said in FAILURES:
        with google.faults(statuses={status: 1.0}, only=PHOTO_READ):
            done = run_job(*arguments, **impatient)
        assert done.returncode == code and re.search(said, done.stderr), done.stderr
        assert "export    runs" in done.stderr and "Traceback" not in done.stderr
    again = run_job(*arguments, **patient)
    assert again.returncode == 0 and (out / "model" / "parity.json").exists(), again.stderr


def test_photo_that_has_changed_since_it_was_listed_is_not_counted_as_undecodable(google, painted, finished_run):
    uri = google.put_folder(painted, f"{google.bucket()}/photos")
    source = open_source(uri)
    entries = {e.path: e for e in source.listing().entries}
    context = Context(Workdir(finished_run), Telemetry(None))
    taken_in, intake = Intake.load(context), IntakeConfig(image_size=48)
    rules = DecodeRules(**{name: getattr(intake, name) for name in DecodeRules.__dataclass_fields__})
    changed = pq.read_table(finished_run / "predictions.parquet")["path"].to_pylist()[1]
    google.put(f"{uri}/{changed}", (painted / changed).read_bytes())
    with start(parity.__name__) as checker:
        model = (finished_run / "model").resolve()
        found = export._check_parity(
            checker,
            ExportConfig(),
            model,
            rules,
            Evaluation.load(context).acceptance,
            taken_in.examples,
            taken_in.images,
            source,
            entries,
            context,
        )
    counts = {name: found["bytes"][name] for name in ("num_photos", "not_decodable_in_graph", "not_readable")}
    assert counts == {"num_photos": found["num_photos"] - 1, "not_decodable_in_graph": 0, "not_readable": 1}
    assert found["agrees"]


def labelled(model, data, out, context, **wanted):
    told = {"telemetry": context.telemetry, "stop": context.stop}
    return predict(str(model), data, out, Wanted(**wanted), tfds_dir=None, batch_size=64, **told)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("gs://no-such-bucket/answer.csv", "there is no bucket gs://no-such-bucket"),
        ("s3://no-such-bucket/answer.csv", "there is no bucket s3://no-such-bucket"),
        ("ftp://x/answer.csv", "there is no storage for ftp://"),
    ],
)
def test_predict_refuses_a_wrong_place_for_its_answer_before_it_reads_a_photo(
    google, amazon, photos, finished_run, context, out, said
):
    google.requests()
    with pytest.raises(UsageError, match=said):
        labelled(finished_run / "model", photos, out, context)
    assert not [path for _, path, _ in google.requests() if "photos" in path]


def test_predict_without_permission_for_its_answer_ends_before_it_reads_a_photo(google, photos, finished_run, context):
    out = f"{google.bucket()}/answer.csv"
    google.requests()
    with google.faults(statuses={403: 1.0}, only="answer"), pytest.raises(UsageError, match=r"answer.csv: no permission"):
        labelled(finished_run / "model", photos, out, context)
    assert not [path for _, path, _ in google.requests() if "photos" in path]


def test_predict_fetches_nothing_of_a_folder_that_is_no_model(google, finished_run, context, tmp_path):
    whole_run = f"{google.bucket()}/x"
    google.put_folder(finished_run / "model", f"{whole_run}/model")
    google.requests()
    for model in (whole_run, f"{whole_run}/"):
        with pytest.raises(UsageError, match=r"no model\.json in it; give the model/ folder of a run"):
            labelled(model, str(tmp_path), str(tmp_path / "answer.csv"), context)
    assert not [path for _, path, _ in google.requests() if "alt=media" in path]
    with pytest.raises(UsageError, match="there is no bucket"):
        labelled("gs://no-such-bucket/model", str(tmp_path), str(tmp_path / "answer.csv"), context)


def test_objects_that_predict_did_not_write_stay(bed, context, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uri = bed.bucket()
    bed.put(f"{uri}/mine.csv", b"path,label\n")
    bed.put(f"{uri}/photos/1.csv", b"a photo")

    def place(name, **options):
        return answers.place(
            f"{uri}/{name}", **{"overwrite": False, "model": f"{uri}/x/model", "data": f"{uri}/photos"} | options
        )

    for name, options, words in (
        ("mine.csv", {}, "predict did not write it"),
        ("mine.csv", {"data": f"{uri}/mine.csv", "overwrite": True}, "this is the table that --data names"),
        ("x/model/answer.csv", {}, "which predict does not change"),
    ):
        with pytest.raises(UsageError, match=words):
            place(name, **options)
    source = open_source(f"{uri}/photos", labelled=False)
    with pytest.raises(UsageError, match="this is one of the files of --data"):
        place("photos/1.csv", overwrite=True).refuse_inputs(source, source.listing().entries)
    rows = [{"path": "0.jpg", "error": ""}]
    for name, options in (("mine.csv", {"overwrite": True}), ("new.csv", {}), ("new.csv", {}), ("new.parquet", {})):
        place(name, **options).write(rows, context.stop)
    assert bed.get(f"{uri}/new.csv") == bed.get(f"{uri}/mine.csv") and b"0.jpg" in bed.get(f"{uri}/new.csv")
    late = place("new.parquet")
    bed.put(f"{uri}/new.parquet", b"somebody else's")
    with pytest.raises(UsageError, match=r"another object has got this name in the meantime(.|\n)*the answer is in "):
        late.write(rows, context.stop)
    assert bed.get(f"{uri}/new.parquet") == b"somebody else's"


def test_model_that_is_just_being_replaced_in_a_bucket_is_taken_from_the_published_set(google, finished_run):
    uri = google.bucket()
    for part in ("model", "versions"):
        google.put_folder(finished_run / part, f"{uri}/{part}")
    google.put(f"{uri}/model/saved_model.pb", b"of the next model")
    with pytest.raises(UsageError, match="missing or changed since the export: saved_model.pb"):
        model_folder.load(f"{uri}/model", None, print)
    google.put(f"{uri}/published.json", (finished_run / "published.json").read_bytes())
    assert model_folder.load(f"{uri}/model", None, print).card.class_names == ["checks", "stripes"]


@pytest.mark.parametrize(("status", "code", "said"), FAILURES)
def test_answer_that_the_bucket_does_not_take_is_kept_on_this_machine(
    google, painted, finished_run, impatient, status, code, said
):
    out = f"{google.bucket()}/answer.csv"
    with google.faults(statuses={status: 1.0}, only="^(POST|PUT) "):
        done = run_job("predict", "--model", finished_run / "model", "--data", painted, "--out", out, **impatient)
    assert done.returncode == code and re.search(said, done.stderr) and "Traceback" not in done.stderr, done.stderr
    kept = Path(re.search(r"the answer is in (\S+)\.$", done.stderr, re.MULTILINE)[1])
    assert kept.is_relative_to(impatient["TMPDIR"]) and len(list(csv.DictReader(kept.open()))) == 82


def test_stopped_while_the_bucket_does_not_take_its_answer_predict_says_where_it_is(google, painted, finished_run, tmp_path):
    out = f"{google.bucket()}/answer.csv"
    with google.faults(statuses={503: 1.0}, only="^(POST|PUT) "):
        google.requests()
        arguments = ("predict", "--model", finished_run / "model", "--data", painted, "--out", out)
        process = started(node(tmp_path / "node"), *arguments)
        with process:
            wait_for(lambda: any(method in ("POST", "PUT") for method, _, _ in google.requests()), process)
            process.send_signal(signal.SIGTERM)
            said = process.stderr.read()
            assert process.wait(30) == 143
    kept = Path(re.search(r"the answer is in (\S+)\.$", said, re.MULTILINE)[1])
    assert len(kept.read_text().splitlines()) == 1 + 82


def test_neighbours_come_from_the_features_of_a_run_in_a_bucket(in_bucket, finished_run, painted, tmp_path, context):
    found = labelled(in_bucket, str(painted), str(tmp_path / "a.parquet"), context, neighbours=2)
    local = labelled(finished_run, str(painted), str(tmp_path / "b.parquet"), context, neighbours=2)
    assert found["neighbours"].to_pylist() == local["neighbours"].to_pylist() and found["neighbours"].null_count < len(found)
