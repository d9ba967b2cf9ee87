"""`export --to serving` into a bucket, from a run on this machine."""

from tests.conftest import contents, run_job


def test_version_in_a_bucket_is_that_of_a_folder_and_replaces_nothing(bed, finished_run, tmp_path):
    base = f"{bed.bucket()}/models/shapes"
    bed.put(f"{base}/3/mine", b"mine")
    for place in (base, tmp_path / "shapes"):
        done = run_job("export", finished_run, "--to", "serving", place, **bed.environment)
        assert done.returncode == 0 and f"{place}/{4 if place == base else 1}" in done.stdout, done.stderr
    there = contents(bed.fetched(base, tmp_path / "fetched"))
    assert there.pop(tmp_path / "fetched" / "3" / "mine") == b"mine"
    expected = contents(tmp_path / "shapes" / "1")
    assert {path.relative_to(tmp_path / "fetched" / "4"): data for path, data in there.items()} == {
        path.relative_to(tmp_path / "shapes" / "1"): data for path, data in expected.items()
    }
