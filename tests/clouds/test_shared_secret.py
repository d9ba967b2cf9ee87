"""The secret of a run's workers, where the output is a bucket. test_runs.py has whole runs of two workers."""

import pytest

from job import secret
from job.errors import UsageError
from job.secret import Secret
from job.storage.mirror import Mirror
from job.storage.objects import open_objects
from job.storage.workdir import Workdir


def test_secret_lies_in_the_bucket_and_never_in_the_folder_that_is_uploaded(bed, tmp_path):
    out = f"{bed.bucket()}/x"
    chief, worker = (Workdir(tmp_path / name, Mirror(tmp_path / name, open_objects(out))) for name in ("a", "b"))
    assert secret.find(worker) is None
    bed.put(f"{out}/.secret", Secret.new().to_bytes())  # Of a run that was killed.
    with secret.shared(chief, pytest.fail) as one:
        assert secret.find(worker) == one and bed.get(f"{out}/.secret") == one.to_bytes()
        assert not list(tmp_path.rglob(".secret"))
    assert bed.names(out) == []
    bed.put(f"{out}/.secret", b"my diary")
    with pytest.raises(UsageError, match="was not made by this job"), secret.shared(chief, pytest.fail):
        pass
    assert bed.get(f"{out}/.secret") == b"my diary"
