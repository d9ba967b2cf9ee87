"""HEIC through the real intake, with and without its plugin."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from job.data.known import source_digest
from job.decoding import decode
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.sources.folders import FolderSource
from job.stages.intake import intake
from job.storage.workdir import Workdir
from tests.conftest import paint, paint_classes

pillow_heif = pytest.importorskip("pillow_heif", reason="it comes with pip install 'transfer-job[heif]'")

CONFIG = IntakeConfig(image_size=48, workers=1)


def write_heic(path, image, preset="medium"):
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=90, enc_params={"preset": preset})
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def folder(tmp_path):
    """Two classes; one photo of a phone in the second."""
    folder = paint_classes(tmp_path / "photos", per_class=4).resolve()
    write_heic(folder / "checks" / "phone.heic", Image.open(paint(tmp_path / "a.png", seed=99)))
    return folder


class _WithoutPlugin(FolderSource):
    """Its readers find no pillow-heif."""

    def prepare(self):
        sys.modules["pillow_heif"] = None


def take_in(source, context, config=CONFIG):
    return intake(config, source=source, listing=source.listing(), context=context)


def outcome(found, path="checks/phone.heic"):
    (index,) = np.flatnonzero(found.examples["path"] == path)
    return found.examples["status"][index], found.examples["reason"][index]


def test_photo_of_a_phone_is_used_in_decode_processes(folder, context):
    found = take_in(FolderSource(folder), context)
    assert outcome(found) == ("converted", "HEIC to RGB") and len(found.images) == 9


def test_plugin_that_is_installed_later_makes_the_next_run_decode_what_was_refused(folder, context, monkeypatch, tmp_path):
    source, poor_source = FolderSource(folder), _WithoutPlugin(folder)
    with monkeypatch.context() as patch:
        others = tuple(name for name in decode._readable_formats() if name != "HEIC")
        patch.setattr(decode, "_readable_formats", lambda: others)
        status, reason = outcome(take_in(poor_source, context))
        assert status == "quarantined" and "pip install 'transfer-job[heif]'" in reason
        without = source_digest(source, source.listing(), context)
        assert source_digest(source, source.listing(), context) == without, "nothing is installed, nothing is stale"
    assert source_digest(source, source.listing(), context) != without
    found = take_in(source, context)
    assert outcome(found) == ("converted", "HEIC to RGB")
    fresh = Context(Workdir(tmp_path / "fresh"), Telemetry(None))
    assert take_in(source, fresh).store_name == found.store_name


def test_photo_of_a_phone_that_needs_too_much_memory_is_turned_away_with_that_reason(folder, context):
    write_heic(folder / "checks" / "huge.heic", Image.new("RGB", (7000, 7000)), "ultrafast")
    found = take_in(FolderSource(folder), context, CONFIG.model_copy(update={"worker_memory_mb": 256}))
    assert outcome(found, "checks/huge.heic") == (
        "quarantined",
        "needs more memory to decode than intake.worker_memory_mb allows",
    )
    assert outcome(found)[0] == "converted"
