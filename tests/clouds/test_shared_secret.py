"""The secret of a run's workers, where the output is a bucket. test_runs.py has whole runs of two workers."""

import pytest

from job.cluster import secret
from job.cluster.secret import Secret
from job.errors import UsageError
from job.storage.bucket.open import open_objects
from job.storage.bucket.workdir import BucketWorkdir


def test_secret_lies_in_the_bucket_and_never_in_the_folder_that_is_uploaded(bed, tmp_path):
    out = f"{bed.bucket()}/x"
    chief, worker = (BucketWorkdir(tmp_path / name, open_objects(out)) for name in ("a", "b"))
    assert secret.find(worker) is None
    open_objects(out).write(".secret", Secret.new().to_bytes())  # A run that was killed has left it.
    with secret.shared(chief, pytest.fail) as one:
        assert secret.find(worker) == one and bed.get(f"{out}/.secret") == one.to_bytes()
        assert not list(tmp_path.rglob(".secret"))
    assert bed.names(out) == []
    with secret.shared(chief, pytest.fail):
        other = Secret.new()
        open_objects(out).write(".secret", other.to_bytes())  # Another run has taken the output over.
    assert secret.find(worker) == other
    open_objects(out).remove(".secret")
    bed.put(f"{out}/.secret", b"my diary")
    with pytest.raises(UsageError, match="this job did not make it"), secret.shared(chief, pytest.fail):
        pass
    assert bed.get(f"{out}/.secret") == b"my diary"
