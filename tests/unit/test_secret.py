"""Where the secret of a run's workers lies: in the output, for one start, for one user."""

import os
import stat

import pytest

from job.cluster import secret
from job.cluster.secret import Secret
from job.errors import UsageError
from job.storage.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


@pytest.fixture(autouse=True)
def careless():
    """A user whose new files everybody may read."""
    before = os.umask(0)
    yield
    os.umask(before)


def shared(workdir):
    return secret.shared(workdir, pytest.fail)


def test_secret_is_there_for_its_user_alone_and_for_one_start(workdir):
    file = workdir.path(".secret")
    with shared(workdir) as first:
        assert secret.find(workdir) == first and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not file.exists() and secret.find(workdir) is None
    with pytest.raises(KeyError), shared(workdir) as second:
        raise KeyError
    assert not file.exists() and second != first and second.public_id != first.public_id


def test_secret_is_in_no_text_but_its_file():
    one = Secret.new()
    key = one.to_bytes().split()[-1].decode()
    assert len(bytes.fromhex(key)) == 32 and Secret.parse(one.to_bytes()) == one
    assert key not in f"{one} {one!r} {one.public_id} {one.proof('worker', 'a', 'b')}"


def test_proof_depends_on_each_word_and_where_it_ends():
    one = Secret.new()
    proofs = [
        one.proof(*words) for words in (("worker", "ab", "c"), ("worker", "a", "bc"), ("chief", "ab", "c"), ("worker",))
    ]
    assert len(set(proofs)) == 4 and Secret.new().proof("worker", "ab", "c") not in proofs


def test_secret_of_a_killed_run_is_replaced(workdir):
    workdir.path(".secret").write_bytes(Secret.new().to_bytes())
    with shared(workdir) as new:
        assert secret.find(workdir) == new and stat.S_IMODE(workdir.path(".secret").stat().st_mode) == 0o600


def test_secret_of_another_run_that_has_taken_the_output_over_stays(workdir):
    with shared(workdir):
        other = Secret.new()
        workdir.path(".secret").write_bytes(other.to_bytes())
    assert secret.find(workdir) == other


@pytest.mark.parametrize("kind", ["file", "empty", "cut", "more", "link", "pipe", "folder"])
def test_what_somebody_else_has_under_that_name_is_left_alone(workdir, tmp_path, kind):
    file = workdir.path(".secret")
    (tmp_path / "elsewhere").write_bytes(Secret.new().to_bytes())
    make = {
        "file": lambda: file.write_text("my diary\n"),
        "empty": file.touch,
        "cut": lambda: file.write_bytes(Secret.new().to_bytes()[:-1]),
        "more": lambda: file.write_bytes(Secret.new().to_bytes() + b"my notes\n"),
        "link": lambda: file.symlink_to(tmp_path / "elsewhere"),
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
    }
    make[kind]()
    before = file.lstat()
    with pytest.raises(UsageError, match="this job did not make it"), shared(workdir):
        pass
    assert file.lstat().st_ino == before.st_ino and file.lstat().st_mtime_ns == before.st_mtime_ns


def test_secret_that_may_not_be_read_is_a_mistake_of_the_user(workdir):
    if os.geteuid():
        pytest.skip("another user is needed, and only root can become one")
    with shared(workdir):
        os.seteuid(65_534)
        try:
            with pytest.raises(UsageError, match="user 65534 cannot read it. Start the chief and all workers as one user"):
                secret.find(workdir)
        finally:
            os.seteuid(0)
