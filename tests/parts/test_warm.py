"""What tests start from a warm process is given the same as what starts in a new interpreter."""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT
from tests.warm import WarmStart


def told(start, code="7", **environment):
    """What a process says about itself, and how it ends."""
    command, pipe = [sys.executable, "-m", "tests.parts.told", code, "-x"], subprocess.PIPE
    environment = {**os.environ, **environment}
    with start(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        said, errors = process.communicate("hello")
    return {**json.loads(said), "errors": errors, "code": process.returncode}


def test_process_is_given_what_it_would_be_given_by_an_ordinary_start(tmp_path):
    warm = told(WarmStart, TMPDIR=str(tmp_path))
    assert warm == {**told(subprocess.Popen, TMPDIR=str(tmp_path)), "is_warm": True}
    assert warm["temporary"] == str(tmp_path) and warm["parent"] == os.getpid()
    assert (warm["read"], warm["errors"], warm["code"]) == ("hello", "told\nover\n", 7)


def test_process_that_fails_ends_as_an_ordinary_one_does():
    warm, ordinary = (told(start, code="seven") for start in (WarmStart, subprocess.Popen))
    assert warm["code"] == ordinary["code"] == 1
    assert warm["errors"].splitlines()[-2:] == ordinary["errors"].splitlines()[-2:]


def test_start_is_a_warm_one_unless_the_environment_changes_what_libraries_read_on_import():
    assert told(WarmStart, AWS_PROFILE="x")["is_warm"]
    # What libraries have set in the environment of the tests, because tests import them, too.
    assert told(WarmStart, TF2_BEHAVIOR="1", KMP_INIT_AT_FORK="FALSE")["is_warm"]
    assert not told(WarmStart, TF2_BEHAVIOR="0")["is_warm"]
    assert not told(WarmStart, OMP_NUM_THREADS="1")["is_warm"]
