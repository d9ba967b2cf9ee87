"""What TensorBoard's own code reads from the event file."""

import io

import numpy as np
import pytest
from PIL import Image

from job.runtime.telemetry import Telemetry


@pytest.fixture
def events(tmp_path):
    """A function that returns the events of a log, as TensorFlow reads them."""
    import tensorflow as tf

    def read():
        (file,) = (tmp_path / "tensorboard").glob("*tfevents*")
        return list(tf.compat.v1.train.summary_iterator(str(file)))

    return read


def test_tensorflow_reads_the_curves_and_pictures(tmp_path, events):
    picture = np.random.default_rng(0).integers(0, 256, (5, 300, 3)).astype(np.uint8)
    telemetry = Telemetry(tmp_path, io.StringIO())
    telemetry.scalar("fine_tune/val_loss", 0.25, 3)
    telemetry.scalar("köln", -1e9, 12_345_678_901)
    telemetry.image("confusion", picture)
    telemetry.close()
    version, *shown = events()
    assert version.file_version == "brain.Event:2" and all(event.wall_time > 1.7e9 for event in shown)
    values = [event.summary.value[0] for event in shown]
    assert [(value.tag, value.simple_value) for value in values[:2]] == [("fine_tune/val_loss", 0.25), ("köln", -1e9)]
    assert [event.step for event in shown] == [3, 12_345_678_901, 0]
    image = values[2].image
    assert (values[2].tag, image.height, image.width, image.colorspace) == ("confusion", 5, 300, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), picture)


def test_points_are_on_the_disk_after_the_next_event(tmp_path, events):
    telemetry = Telemetry(tmp_path, io.StringIO())
    telemetry.scalar("loss", 0.5, 1)
    telemetry.event("epoch")
    assert [event.summary.value[0].simple_value for event in events()[1:]] == [0.5]
    telemetry.close()
