"""A browser, and the pages that it shows."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from job.stages.report import PAGE
from tests.beds import missing
from tests.conftest import made_once
from tests.page import pages


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without a window. It has no sandbox, because root cannot have one."""
    program = shutil.which("chromium")
    if not program:
        missing("chromium is not installed; .ci/chromium installs it")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=["--no-sandbox"]) as browser,
    ):
        yield browser


@pytest.fixture(scope="module", params=[2, *pages.MAKERS], ids="{}-classes".format)
def report_page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report page of a run with this many classes."""
    num_classes: int = request.param
    if num_classes == 2:
        return request.getfixturevalue("finished_run") / PAGE
    return made_once(f"page-of-{num_classes}-classes", tmp_path_factory, pages.MAKERS[num_classes]) / "out" / PAGE
