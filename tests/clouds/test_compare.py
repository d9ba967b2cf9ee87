"""The command compare on runs in a bucket."""

import pyarrow.parquet as pq

import job
from tests.variants import other_answers, variant


def test_run_in_a_bucket_is_compared_with_pictures_and_only_what_is_needed_is_read(bed, in_bucket, finished_run, tmp_path):
    predictions = pq.read_table(finished_run / "predictions.parquet").to_pylist()
    right = [k for k, row in enumerate(predictions) if row["predicted"] == row["label"]][:3]
    other = variant(finished_run, tmp_path / "other", {"fine_tune.epochs": 7}, other_answers(right))
    before = {name: bed.get(name) for name in bed.names(f"{in_bucket}/")}
    bed.requests()
    found = job.compare(in_bucket, other, out=tmp_path / "page.html")
    asked = [(method, path) for method, path, _ in bed.requests()]
    assert {method for method, _ in asked} <= {"GET", "HEAD"}
    assert not [path for _, path in asked if "saved_model" in path or "model.keras" in path or "versions" in path]
    assert {name: bed.get(name) for name in bed.names(f"{in_bucket}/")} == before
    local = job.compare(finished_run, other)
    assert found.numbers["versus"] == local.numbers["versus"] and found.numbers["versus"][0]["right_to_wrong"] == 3
    assert found.numbers["groups"][0]["runs"][0]["run"] == in_bucket
    assert found.page.read_text().count("data:image/jpeg") == 3
