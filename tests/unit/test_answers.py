import pytest

from job.errors import UsageError
from job.serving.answers import place
from job.storage.ledger import MARK


@pytest.mark.parametrize("name", ["versions/0/model/a.csv", "stages/a.csv", "attempt/a.csv", "predictions.parquet"])
def test_answer_does_not_go_into_an_output_under_a_name_that_the_job_writes(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / MARK).touch()
    with pytest.raises(UsageError, match=r"lies in the output of a run, .*/run, .* Give another name"):
        place(str(tmp_path / "run" / name), overwrite=True, model=str(tmp_path / "model"), data=str(tmp_path / "data"))


def test_answer_may_lie_beside_what_the_job_writes(tmp_path):
    (tmp_path / MARK).touch()
    found = place(str(tmp_path / "mine.csv"), overwrite=False, model=str(tmp_path / "m"), data=str(tmp_path / "d"))
    assert not found.is_foreign
