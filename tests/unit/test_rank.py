import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from job.config import Config
from job.data.examples import SCHEMA, Examples
from job.errors import DataUnusable
from job.ranking.photos import Photos, shared_photos
from job.ranking.predictions import Predictions, compared
from job.ranking.rank import _conclusion
from job.ranking.table import Accuracy, Cost, Row, as_csv, as_text, draw, in_order, recommended, undecided
from job.storage.workdir import Workdir


def cost(millions, width=1280):
    return Cost(
        multiply_adds=millions * 1_000_000,
        parameters=400_000,
        weights_mb=1.6,
        feature_width=width,
        stored_bytes=82_000,
        forward_wall_ms=2.0,
        forward_cpu_ms=3.9,
        extract_wall_s=7.0,
        extract_cpu_s=12.0,
    )


def row(name, millions, accuracy, difference_ci95=(-0.01, 0.01), image_size=160, **more):
    interval = [accuracy - 0.02, accuracy + 0.02]
    found = Accuracy(500, accuracy, interval, sum(difference_ci95) / 2, list(difference_ci95), 0.5)
    return Row(name, image_size, "imagenet", f"{name}-{image_size}px", cost(millions), found, **more)


def failed(name, reason):
    return Row(name, 224, "nowhere.h5", f"{name}-224px", reason=reason)


ROWS = [
    row("small", 10, 0.80, (-0.12, -0.05)),
    row("middle", 30, 0.87, (-0.018, 0.004)),
    failed("broken", "The weights do not fit. " * 12),
    row("twin", 300, 0.88, (0.0, 0.0)),
    row("large", 90, 0.88, (0.0, 0.0)),
]


def test_order_is_by_accuracy_then_by_cost_and_what_failed_comes_last():
    assert [r.name for r in in_order(ROWS)] == ["large", "twin", "middle", "small", "broken"]


def test_recommended_is_the_cheapest_that_is_not_worse_at_95_percent():
    assert recommended(ROWS).name == "middle"
    worse = [
        replace(r, accuracy=replace(r.accuracy, difference_ci95=[-0.03, -0.001])) if r.name == "middle" else r for r in ROWS
    ]
    assert recommended(worse).name == "large"
    assert recommended([row("a", 10, 0.80), row("b", 10, 0.81)]).name == "b"


def test_candidate_that_may_be_as_good_or_much_worse_is_not_recommended_but_named(tmp_path):
    unclear, small = row("unclear", 30, 0.85, (-0.07, 0.01)), row("small", 10, 0.8, (-0.1, -0.06))
    rows = in_order([row("best", 90, 0.88, (0, 0)), unclear, small])
    chosen = recommended(rows)
    assert chosen.name == "best" and [r.name for r in undecided(rows, chosen)] == ["unclear"]
    photos = Photos(tuple(map(str, range(500))), np.zeros(500), np.arange(500), ("a", "b"), 0, "of a head")
    said = "\n".join(_conclusion(rows, chosen, photos, "transfer-job run", Workdir(tmp_path)))
    # The interval is 4 points to each side. At 16/9 of the photos it would be 3 points, and would no longer reach 0.
    assert "Too few photos to tell whether unclear at 160 px (-3.0 points, -7.0 to +1.0 at 95%)" in said
    assert "about 889 would tell" in said and "small" not in said


def test_undecided_candidate_that_costs_more_than_the_recommended_one_is_not_named():
    rows = in_order([row("best", 30, 0.88, (0, 0)), row("unclear", 90, 0.85, (-0.07, 0.01))])
    assert undecided(rows, recommended(rows)) == []


def test_table_fits_120_columns_and_gives_every_reason_whole():
    long = row(
        "inception_resnet_v2_with_weights_from_a_file_of_a_very_long_name", 123_456, 0.5, (-0.4, -0.3), image_size=1024
    )
    text = as_text(in_order([*ROWS, long]), "of a head")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[1].split()[:4] == ["large", "160", "0.880", "(0.860-0.900)"]
    assert "-8.5 (-12.0 -5.0)" in text and "123,456" in text
    assert long.name in lines, "whole, on a line of its own"
    assert all(f"{heading}:" in text for heading in ("accuracy", "M MACs", "CPU ms, ms", "MB", "width", "kB", "s"))
    assert " ".join(text.split()).count("The weights do not fit.") == 12
    assert next(line for line in lines if line.startswith("broken")).split() == ["broken", "224", "-"]


def test_weights_tell_two_candidates_of_one_name_apart():
    twins = [row("a", 10, 0.8), replace(row("a", 10, 0.8), weights="random", folder="other"), row("b", 10, 0.8)]
    text = as_text(twins, "of a head")
    assert "a imagenet" in text and "a random" in text and "b imagenet" not in text


def test_csv_has_a_line_for_each_with_units_in_the_names():
    lines = list(csv.DictReader(io.StringIO(as_csv(in_order(ROWS)).decode())))
    assert [line["name"] for line in lines] == ["large", "twin", "middle", "small", "broken"]
    assert lines[2]["difference_ci95_high"] == "0.004" and lines[2]["forward_cpu_ms"] == "3.9"
    assert lines[4]["accuracy"] == "" and lines[4]["reason"].startswith("The weights do not fit.")


def test_plot_has_a_label_for_each_that_was_ranked(tmp_path):
    draw(ROWS, recommended(ROWS), "of a head", tmp_path / "rank.svg")
    svg = (tmp_path / "rank.svg").read_text()
    assert all(f"{name}, 160 px" in svg for name in ("small", "middle", "large", "twin")) and "broken" not in svg


def table(**columns):
    num = len(columns["path"])
    blank = {field.name: [0] * num for field in SCHEMA}
    filled = {**blank, "status": ["used"] * num, "row": list(range(num)), "sha256": [str(k) for k in range(num)], **columns}
    return Examples.from_columns(filled, ("a", "b"))


def test_photos_are_those_that_all_candidates_train_on_and_held_out_ones_never():
    paths = ["a/1", "a/2", "a/3", "b/1", "b/2", "b/3"]
    split = ["train", "val", "test", "train", "val", "train"]
    one = table(path=paths, label=list("aaabbb"), split=split, group=[0, 1, 2, 3, 4, 5])
    status = ["used", "used", "used", "converted", "used", "excluded"]
    reverse = [4, 4, 3, 2, 0, 0]  # Other numbers, other order; a/1 and a/2 are copies.
    other = table(path=paths[::-1], label=list("bbbaaa"), split=split[::-1], group=reverse[::-1], status=status[::-1])
    photos = shared_photos([one, other], "of a head", "train", "val")
    assert photos.paths == ("a/1", "a/2", "b/1", "b/2") and photos.num_left_out == 1
    assert photos.labels_N.tolist() == [0, 0, 1, 1] and photos.class_names == ("a", "b")
    assert photos.groups_N.tolist() == [0, 0, 2, 3]
    again = shared_photos([other, one], "of a head", "train", "val")
    assert again.paths == photos.paths and again.groups_N.tolist() == photos.groups_N.tolist()


def test_photos_that_have_nothing_in_common_are_refused():
    one = table(path=["a/1", "b/1"], label=["a", "b"], split=["train", "train"], group=[0, 1])
    other = table(path=["a/1", "b/1"], label=["a", "b"], split=["train", "test"], group=[0, 1])
    with pytest.raises(DataUnusable, match="fewer image sizes"):
        shared_photos([one, other], "of a head", "train", "val")


def test_difference_to_the_best_is_paired():
    num = 400
    labels = np.arange(num) % 2
    photos = Photos(tuple(map(str, range(num))), labels, np.arange(num), ("a", "b"), 0, "of a head")
    best, close = labels.copy(), labels.copy()
    best[:80] ^= 1
    close[:84] ^= 1  # The same mistakes and four more: 20 and 21 in a hundred, of wide intervals that overlap.
    far = labels.copy()
    far[:120] ^= 1
    probes = {name: Predictions(p.tolist(), 0.5) for name, p in (("far", far), ("close", close), ("best", best))}
    found = compared(probes, {"far": cost(1), "close": cost(2), "best": cost(3)}, photos, Config())
    assert found["best"].difference == 0 and found["best"].difference_ci95 == [0, 0]
    assert found["close"].difference == pytest.approx(-0.01) and found["far"].difference == pytest.approx(-0.1)
    assert found["best"].accuracy_ci95[0] < found["close"].accuracy < found["best"].accuracy_ci95[1]
    assert not found["close"].not_worse and not found["far"].not_worse
