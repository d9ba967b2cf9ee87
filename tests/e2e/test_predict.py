"""predict: which model it takes, and which files it never replaces."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from job.data.examples import Examples
from job.errors import DataUnusable, StorageFailed, UsageError
from job.serving import answers
from job.serving import folder as model_folder
from job.serving.predict import Wanted, predict
from job.storage.files import digest_of_file, swap
from job.storage.published import Published
from job.storage.workdir import Workdir
from tests.conftest import contents, paint, quick_settings, run_job


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for k in range(2):
        paint(folder / f"{k}.jpg", seed=800 + k)
    return folder


@pytest.fixture
def out(finished_run, tmp_path):
    """A copy of a run, to change."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def model(finished_run, tmp_path):
    """A copy of its model alone."""
    return shutil.copytree(finished_run / "model", tmp_path / "alone" / "model")


def digest_of(model):
    return hashlib.sha256((model / "model.json").read_bytes()).hexdigest()


def labelled(model, data, out, context, model_sha256=None, overwrite=False, **wanted):
    return predict(
        str(model),
        str(data),
        str(out),
        Wanted(**wanted),
        tfds_dir=None,
        batch_size=64,
        telemetry=context.telemetry,
        stop=context.stop,
        model_sha256=model_sha256,
        overwrite=overwrite,
    )


def load(model, digest):
    """Load what must be loaded, or refused, without another model in its place."""
    said = []
    try:
        return model_folder.load(model, digest, said.append)
    finally:
        assert not said


def assert_refused(folder, *arguments, match, **options):
    before = contents(folder)
    with pytest.raises(UsageError, match=match):
        labelled(*arguments, **options)
    assert contents(folder) == before


def test_nothing_but_the_answer_appears_beside_it(finished_run, photos, tmp_path, context):
    (tmp_path / "answers").mkdir()
    for name in ("a.csv", "a.parquet", "a.csv", "a.parquet"):  # Its own answers it replaces.
        assert len(labelled(finished_run / "model", photos, tmp_path / "answers" / name, context)) == 2
    assert sorted(path.name for path in (tmp_path / "answers").iterdir()) == ["a.csv", "a.parquet"]
    assert sorted(path.name for path in photos.iterdir()) == ["0.jpg", "1.jpg"]
    in_csv = pyarrow.csv.read_csv(tmp_path / "answers" / "a.csv").to_pylist()
    in_parquet = pq.read_table(tmp_path / "answers" / "a.parquet").to_pylist()
    assert [row["label"] for row in in_csv] == [row["label"] for row in in_parquet]


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_file_of_somebody_else_stays_unless_it_may_be_replaced(finished_run, photos, tmp_path, context, name):
    mine = tmp_path / name
    tables = {b"path,label\n0.jpg,cat\n", b"", b"path,label,probability,top_3,mine\n", b"PAR1"}
    for content in (*tables, (finished_run / "predictions.parquet").read_bytes()):
        mine.write_bytes(content)
        assert_refused(
            tmp_path, finished_run / "model", photos, mine, context, match="predict did not write it.*--overwrite"
        )
    mine.unlink()
    mine.symlink_to(photos / "0.jpg")
    assert_refused(tmp_path, finished_run / "model", photos, mine, context, match="predict did not write it")
    mine.unlink()
    mine.mkdir()
    assert_refused(tmp_path, finished_run / "model", photos, mine, context, match="this is a folder", overwrite=True)
    mine.rmdir()
    os.mkfifo(mine)
    assert_refused(tmp_path, finished_run / "model", photos, mine, context, match="this is no regular file", overwrite=True)
    mine.unlink()
    mine.write_bytes(b"mine")
    labelled(finished_run / "model", photos, mine, context, overwrite=True)
    labelled(finished_run / "model", photos, mine, context)


def test_inputs_are_never_replaced(model, photos, tmp_path, context):
    table = tmp_path / "labels.csv"
    table.write_text("path\nphotos/0.jpg\n")
    (tmp_path / "linked.csv").symlink_to(table)
    (tmp_path / "same.csv").hardlink_to(table)
    for out in (table, tmp_path / "linked.csv", tmp_path / "same.csv", tmp_path / "photos" / ".." / "labels.csv"):
        assert_refused(tmp_path, model, table, out, context, match="this is the table that --data names", overwrite=True)
    (tmp_path / "photo.csv").symlink_to(photos / "0.jpg")
    (tmp_path / "hard.csv").hardlink_to(photos / "1.jpg")
    for name in ("photo.csv", "hard.csv"):
        for data in (photos, table) if name == "photo.csv" else (photos,):
            words = "this is one of the files of --data"
            assert_refused(tmp_path, model, data, tmp_path / name, context, match=words, overwrite=True)


def test_answer_of_predict_is_no_place_for_the_next_one_where_it_is_the_table(finished_run, photos, tmp_path, context):
    answer = tmp_path / "answer.csv"
    labelled(finished_run / "model", photos, answer, context)
    assert_refused(tmp_path, finished_run / "model", answer, answer, context, match="this is the table that --data names")


def test_nothing_is_written_into_a_model(model, photos, tmp_path, context):
    (tmp_path / "link").symlink_to(model)
    for out in (model / "answer.csv", model / "assets" / "a.parquet", tmp_path / "link" / "answer.csv"):
        assert_refused(tmp_path, model, photos, out, context, match=r"lies in --model .*, which predict does not change")
        assert_refused(
            tmp_path, tmp_path / "link", photos, out, context, match="which predict does not change", overwrite=True
        )


def test_file_that_appears_while_predict_works_stays_and_the_answer_is_kept(tmp_path, context, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    place = answers.place(str(tmp_path / "a.csv"), overwrite=False, model=str(tmp_path / "model"), data=str(tmp_path))
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"predict did not write it(.|\n)*the answer is in ") as error:
        place.write([{"path": "0.jpg", "error": "an HTML page"}], context.stop)
    assert (tmp_path / "a.csv").read_text() == "mine"
    kept = Path(str(error.value).rpartition("the answer is in ")[2].removesuffix("."))
    assert pyarrow.csv.read_csv(kept).to_pylist()[0]["error"] == "an HTML page"


def test_answer_that_cannot_be_written_is_kept(tmp_path, context, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    place = answers.place(str(tmp_path / "file" / "a.csv"), overwrite=False, model="model", data=str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed, match=r"File exists(.|\n)*the answer is in "):
        place.write([{"path": "0.jpg", "error": ""}], context.stop)


NO_CARDS = {
    "no JSON": b"{",
    "a list": b"[]",
    "nothing in it": b"{}",
    "nested deeply": b"[" * 100_000,
    "wrong types": b'{"class_names": 1, "image_size": "x", "resize": "squash", "decoder": {}, "sha256": {}}',
}


@pytest.mark.parametrize("card", NO_CARDS.values(), ids=NO_CARDS)
def test_model_json_that_is_none_is_refused(model, card):
    (model / "model.json").write_bytes(card)
    with pytest.raises(UsageError, match=r"its model.json is incomplete or not from this job"):
        load(str(model), None)


def changed_card(model, **change):
    card = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**card, **change}))


def test_what_is_no_file_in_a_model_is_not_waited_for(model):
    (model / "fingerprint.pb").unlink()
    os.mkfifo(model / "fingerprint.pb")
    with pytest.raises(UsageError, match=r"missing or changed since the export: fingerprint.pb\."):
        load(str(model), None)
    changed_card(model, sha256={"fingerprint.pb": "", "a\0b": "0", "../../x": "0", "variables": "0", "model.json/x": "0"})
    with pytest.raises(UsageError, match="missing or changed since the export"):
        load(str(model), None)
    (model / "model.json").unlink()
    os.mkfifo(model / "model.json")
    with pytest.raises(UsageError, match=r"there is no model.json in it"):
        load(str(model), None)
    with pytest.raises(UsageError, match=r"there is no model.json in it"):
        load(str(model / "model.json"), None)


def test_model_is_known_by_the_digest_that_its_run_printed(model):
    digest = digest_of(model)
    assert load(str(model), digest.upper()).card.class_names == ["checks", "stripes"]
    with pytest.raises(UsageError, match=r"the SHA-256 of its model.json is .*, not "):
        load(str(model), digest[::-1])
    with pytest.raises(UsageError, match="give the 64 hexadecimal digits"):
        load(str(model), "abc")


def test_files_that_model_json_does_not_name_are_refused_with_the_digest(model):
    (model / "assets.extra").mkdir(exist_ok=True)
    (model / "assets.extra" / "more\x1b[31m").touch()
    (model / "aside").symlink_to("assets")
    load(str(model), None)
    with pytest.raises(UsageError) as error:
        load(str(model), digest_of(model))
    assert r"files that its model.json does not name: aside, assets.extra/more\x1b[31m." in str(error.value)


def test_class_names_and_image_size_of_model_json_are_held_against_the_graph(model):
    changed_card(model, class_names=["stripes", "checks"])
    with pytest.raises(UsageError, match=r"the class names of its model.json have 'stripes', but its graph has 'checks'"):
        load(str(model), None)
    changed_card(model, class_names=["checks"])
    with pytest.raises(UsageError, match="have None, but its graph has 'stripes'"):
        load(str(model), None)
    changed_card(model, image_size=64)
    with pytest.raises(UsageError, match=r"photos of 64 px, but its graph takes \[48, 48, 3\]"):
        load(str(model), None)


@pytest.mark.parametrize("graph", [b"", b"no graph", None], ids=["empty", "nonsense", "missing"])
def test_graph_that_is_none_is_refused(model, graph):
    (model / "saved_model.pb").unlink()
    if graph is not None:
        (model / "saved_model.pb").write_bytes(graph)
    changed_card(model, sha256={})
    with pytest.raises(UsageError, match="TensorFlow cannot load its graph"):
        load(str(model), None)


def test_model_is_read_from_the_folder_that_was_opened_whatever_takes_its_name(model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    (other / "model.json").write_text("another one")
    card = (model / "model.json").read_bytes()
    with model_folder._opened("model", str(model)) as folder:
        swap(other, model)
        assert (folder / "model.json").read_bytes() == card and (model / "model.json").read_text() == "another one"
        model_folder._loaded("model", folder, model_folder._checked("model", folder, None))


def test_model_that_is_just_being_replaced_is_taken_from_the_published_set_with_a_line(out):
    published = Published.load(Workdir(out))
    model, digest, said = str(out / "model"), published.files["model/model.json"], []
    (out / "model" / "saved_model.pb").write_bytes(b"of the next model")
    assert model_folder.load(model, digest, said.append).card.class_names == ["checks", "stripes"]
    shutil.rmtree(out / "model")
    model_folder.load(model, digest, said.append)
    line = f"{model} is being replaced, or damaged: using the published model in "
    assert said == 2 * [f"{line}{out}/versions/{published.set}/model instead."]
    with pytest.raises(UsageError, match="there is no model.json in it"):
        load(str(out / "models"), None)
    with pytest.raises(UsageError, match=r"the SHA-256 of its model.json is"):
        load(model, digest[::-1])
    (out / "published.json").write_text("{}")
    with pytest.raises(UsageError, match="there is no model.json in it"):
        load(model, digest)


def test_answer_goes_to_a_folder_whose_name_is_not_utf_8(model, photos, tmp_path, context):
    out = tmp_path / os.fsdecode(b"caf\xe9") / "answer.csv"
    assert len(labelled(model, photos, out, context)) == 2
    assert out.is_file() and [path.name for path in out.parent.iterdir()] == ["answer.csv"]


def test_single_photo_is_labelled_with_the_model_of_a_run(finished_run, photos, tmp_path, context):
    labelled(finished_run, photos / "0.jpg", tmp_path / "one.parquet", context)
    labelled(finished_run / "model", photos, tmp_path / "all.parquet", context)
    one, both = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("one", "all"))
    assert one == both[:1] and one[0]["path"] == "0.jpg"


def test_file_that_is_no_photo_is_an_error_with_its_name(finished_run, tmp_path, context):
    (tmp_path / "list.txt").write_text("no photo")
    with pytest.raises(DataUnusable, match="photo"):
        labelled(finished_run, tmp_path / "list.txt", tmp_path / "answer.csv", context)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_every_class_gets_a_column_if_probabilities_are_asked_for(finished_run, photos, tmp_path, context, kind):
    (photos / "broken.jpg").write_bytes(b"<html>")
    out = tmp_path / f"answer.{kind}"
    returned = labelled(finished_run, photos, out, context, probabilities=True)
    read = pyarrow.csv.read_csv(out) if kind == "csv" else pq.read_table(out)
    assert read.column_names == returned.column_names
    assert read.column_names[-3:] == ["error", "probability:checks", "probability:stripes"]
    good, broken = read.to_pylist()[:2], read.to_pylist()[2]
    for row in good:
        assert row["probability"] == max(row["probability:checks"], row["probability:stripes"])
        assert row["probability"] == row[f"probability:{row['label']}"]
        assert row["probability:checks"] + row["probability:stripes"] == pytest.approx(1)
    assert broken["path"] == "broken.jpg" and broken["probability:checks"] is broken["probability:stripes"] is None
    assert "probability:checks" not in labelled(finished_run, photos, out, context).column_names


def rows_of(table):
    return {row["path"]: row for row in table.to_pylist()}


@pytest.fixture
def odd_photos(finished_run, painted, tmp_path):
    """Two training photos of the run, and a red picture, which is unlike them, even with random weights."""
    folder = tmp_path / "odd"
    folder.mkdir()
    examples = Examples.load(finished_run / "examples.parquet")
    for k, index in enumerate(examples.of("train")[:2]):
        shutil.copy(painted / examples["path"][index], folder / f"known{k}.jpg")
    Image.new("RGB", (72, 60), (255, 0, 0)).save(folder / "red.png")
    return folder


def test_picture_unlike_the_photos_is_not_accepted_and_can_be_left_out(finished_run, odd_photos, tmp_path):
    done = run_job("predict", "--model", finished_run, "--data", odd_photos, "--out", tmp_path / "all.csv", "--json")
    assert done.returncode == 0, done.stderr
    rows = rows_of(pyarrow.csv.read_csv(tmp_path / "all.csv"))
    assert rows["red.png"]["familiarity"] == 0 and rows["red.png"]["accepted"] is False
    assert rows["known0.jpg"]["familiarity"] > 0.05 and rows["known0.jpg"]["accepted"] is True
    (odd_photos / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    done = run_job(
        *("predict", "--model", finished_run, "--data", odd_photos, "--out", tmp_path / "all.csv", "--accepted-only")
    )
    assert done.returncode == 0 and "Left out because the answer is not accepted: 1 photo of 4." in done.stderr
    assert rows_of(pyarrow.csv.read_csv(tmp_path / "all.csv")).keys() == {"known0.jpg", "known1.jpg", "broken.jpg"}


def test_neighbours_are_the_most_similar_training_photos_of_the_run(finished_run, odd_photos, tmp_path, context):
    examples = Examples.load(finished_run / "examples.parquet")
    table = labelled(finished_run, odd_photos, tmp_path / "a.parquet", context, neighbours=3)
    rows = rows_of(table)
    train = examples["path"][examples.of("train")]
    for k in range(2):
        found = json.loads(rows[f"known{k}.jpg"]["neighbours"])
        assert next(iter(found)) == train[k] and len(found) == 3 and found.keys() <= set(train)
        assert list(found.values()) == sorted(found.values(), reverse=True) and found[train[k]] == pytest.approx(1, abs=1e-3)
    assert labelled(finished_run, odd_photos, tmp_path / "a.parquet", context).column_names == table.column_names[:-1]


def test_neighbours_are_refused_before_any_work_if_the_run_does_not_have_them(out, model, photos, tmp_path, context):
    answer = tmp_path / "a.csv"
    assert_refused(tmp_path, model, photos, answer, context, match="does not lie in the output of its run", neighbours=3)
    (record := out / "stages" / "export.json").rename(tmp_path / "kept.json")
    assert_refused(tmp_path, out, photos, answer, context, match="holds results of another run", neighbours=3)
    (tmp_path / "kept.json").rename(record)
    for name in ("extract/extract.json", "audit/examples.parquet"):
        (file := out / "stages" / name).rename(tmp_path / "kept")
        assert_refused(tmp_path, out, photos, answer, context, match="the features of the training photos", neighbours=3)
        (tmp_path / "kept").rename(file)
    shutil.rmtree(out / "cache")
    match = r"the features of the training photos are not in .*cache any more\. .* again with --set heatmaps.photos=1:"
    assert_refused(tmp_path, out / "model", photos, answer, context, match=match, neighbours=3)


@pytest.mark.thorough
def test_heatmaps_bring_the_features_back_for_neighbours(out, painted, photos, tmp_path, context):
    shutil.rmtree(out / "cache")
    model = digest_of_file(out / "model" / "model.json")
    done = run_job("run", "--data", painted, "--out", out, *quick_settings("heatmaps.photos=1"))
    assert done.returncode == 0 and "fine_tune runs" not in done.stderr, done.stderr
    assert digest_of_file(out / "model" / "model.json") == model
    assert "neighbours" in labelled(out, photos, tmp_path / "a.parquet", context, neighbours=3).column_names


def as_of_0_12(model):
    """Save the model again with the outputs that models had before version 0.13."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(model))
    pixels = loaded.signatures["pixels"]

    @tf.function(input_signature=[tf.TensorSpec(pixels.structured_input_signature[1]["pixels"].shape, tf.uint8, "pixels")])
    def before(pixels):
        found = loaded.signatures["pixels"](pixels=pixels)
        return {name: found[name] for name in ("probabilities", "probability", "class_names", "label")}

    loaded.before = before
    tf.saved_model.save(loaded, model, signatures={"pixels": before})
    digests = {p.relative_to(model).as_posix(): digest_of_file(p) for p in model.rglob("*") if p.is_file()}
    changed_card(model, sha256={name: digest for name, digest in digests.items() if name != "model.json"})


def test_older_model_labels_photos_but_neither_accepts_nor_compares_them(out, photos, tmp_path, context):
    shutil.rmtree(out / "versions")
    as_of_0_12(out / "model")
    table = labelled(out / "model", photos, tmp_path / "a.parquet", context)
    assert set(table["familiarity"].to_pylist()) == set(table["accepted"].to_pylist()) == {None}
    assert set(table["label"].to_pylist()) <= {"checks", "stripes"}
    for option, words in (("accepted_only", "--accepted-only.*of version 0.13"), ("neighbours", "gives no features")):
        assert_refused(tmp_path, out / "model", photos, tmp_path / "b.csv", context, match=words, **{option: 1})


def test_answer_of_an_earlier_version_may_be_replaced(finished_run, photos, tmp_path, context):
    (tmp_path / "a.csv").write_text('"path","label","probability","top_3","error"\n')
    assert len(labelled(finished_run, photos, tmp_path / "a.csv", context)) == 2


@pytest.mark.thorough
def test_familiarity_can_be_taken_from_the_tuned_features_or_turned_off(out, painted, photos, tmp_path, context):
    for source in ("tuned", "off"):
        done = run_job("run", "--data", painted, "--out", out, *quick_settings(f"evaluate.familiarity={source}"))
        assert done.returncode == 0, done.stderr
        found = json.loads((out / "metrics.json").read_text())["familiarity"]
        outputs = json.loads((out / "model" / "model.json").read_text())["outputs"]
        table = labelled(out, photos, tmp_path / "a.parquet", context)
        assert None not in table["accepted"].to_pylist()
        if source == "tuned":
            assert found["share_added"] == 0 and "familiarity" in outputs and table["familiarity"].null_count == 0
        else:
            assert found is None and "familiarity" not in outputs and table["familiarity"].null_count == len(table)
            assert all(table["accepted"].to_pylist()) and 'id="familiarity"' not in (out / "report.html").read_text()
