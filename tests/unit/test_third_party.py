"""THIRD_PARTY.md against the lock files, and against the metadata of the packages that are installed."""

import re
import sys

import pytest

from docs.make_third_party import PAGE, ROOT, packages, page


def test_page_lists_the_packages_of_the_lock_files():
    listed = dict(re.findall(r"^\| ([\w.-]+) \| (\d[\w.]*) \|", PAGE.read_text(), re.MULTILINE))
    assert listed == packages(), "the lock files have changed: run `make docs`"


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the images have Python 3.11, and another one has other packages"
)
def test_page_has_the_licences_that_the_packages_state():
    assert PAGE.read_text() == page(), "run `make docs`"


def test_packages_of_another_platform_are_left_out():
    assert {"tensorflow", "tensorflow-cpu", "nvidia-cudnn-cu12"} <= set(packages())
    assert "colorama" not in packages()  # For Windows only.


def test_no_lock_file_has_a_second_tensorflow():
    """KerasHub, with which the tests compare, asks for tensorflow-text, which brings another TensorFlow."""
    for name in ("cpu", "gpu", "dev"):
        locked = re.findall(
            r"^(tensorflow[\w-]*|keras-hub)==", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE
        )
        assert "tensorflow-text" not in locked
        assert len({"tensorflow", "tensorflow-cpu"} & set(locked)) == 1
        assert ("keras-hub" in locked) == (name == "dev")
