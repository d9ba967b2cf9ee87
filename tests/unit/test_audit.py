"""The audit on made-up features: pictures are drawn, features are numbers around a centre for each class."""

import csv

import numpy as np
import pytest
from PIL import Image, ImageOps

from job.data.corrections import Corrections
from job.errors import DataUnusable
from job.sections import AuditConfig
from job.stages.audit import Audit, audit
from job.stores.arrays import StoreWriter
from tests.conftest import examples_of
from tests.unit.test_registration import SIDE, scene

PER_CLASS, WIDTH = 40, 16
NAMES, NONE = ("daisy", "rose"), Corrections()


class Drawn:
    """Two classes of different scenes, every fourth one held out; then whatever a test changes."""

    def __init__(self):
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(2, WIDTH)) * 2
        self.photos, self.features, self.records = [], [], []
        for k in range(2 * PER_CLASS):
            split = ("train", "train", "val", "test")[k // 2 % 4]
            self.photos.append(np.asarray(scene(k)))
            self.features.append(centres[k % 2] + rng.normal(size=WIDTH))
            self.records.append(
                {"path": f"{k:03d}.jpg", "label": NAMES[k % 2], "split": split, "status": "used", "group": k, "row": k}
                | {"sha256": rng.bytes(32).hex(), "reason": "", "format": "JPEG", "mode": "RGB", "width": 9, "height": 9}
                | {"given_label": None}
                | {"num_bytes": 1, "phash": 0, "brightness": 0.5, "contrast": 0.2, "has_exif": False}
            )

    def mirror(self, source, copy):
        """Photo `copy` becomes the mirrored photo `source`; their features are nearly the same."""
        self.photos[copy] = np.asarray(ImageOps.mirror(Image.fromarray(self.photos[source])))
        self.features[copy] = self.features[source] + 0.01

    def audit(self, context, corrections=NONE, **config):
        images = self._store(context, "images", np.stack(self.photos), (SIDE, SIDE, 3), "uint8")
        features = self._store(context, "features", np.stack(self.features), (WIDTH,), "float32")
        examples = examples_of(self.records, NAMES)
        given = {"images": images, "features": features, "corrections": corrections, "context": context}
        return audit(AuditConfig(**config), examples=examples, **given)

    def _store(self, context, name, values, shape, dtype):
        writer = StoreWriter(context.workdir.path(f"cache/{name}"), shape, dtype)
        keys = [str(k) for k in range(len(values))]
        writer.write(keys, values)
        return writer.finish(keys)


@pytest.fixture
def drawn():
    return Drawn()


def row(found, index):
    return {name: found.examples[name][index] for name in ("status", "reason", "group")}


def test_nothing_is_excluded_where_nothing_is_wrong(drawn, context):
    found = drawn.audit(context)
    assert found.numbers["late_copies"]["num_groups"] == 0 and set(found.examples["status"]) == {"used"}
    loaded = Audit.load(context)
    assert loaded.examples.to_parquet() == found.examples.to_parquet() and loaded.numbers == found.numbers


def test_mirrored_training_copy_of_a_held_out_photo_is_excluded(drawn, context):
    drawn.mirror(source=6, copy=8)  # test, train
    found = drawn.audit(context)
    assert (
        row(found, 8)["status"] == "excluded"
        and row(found, 8)["reason"] == "a copy of 006.jpg, which is in the test set (held out)"
    )
    assert row(found, 6)["status"] == "used" and row(found, 6)["group"] == row(found, 8)["group"] == 6
    late = found.numbers["late_copies"]
    assert late["num_groups"] == 1 and late["torn_by_job"] == {"num_groups": 1, "num_left_out": 1}
    assert found.numbers["left_out"] == {"008.jpg": row(found, 8)["reason"]}
    assert context.workdir.exists(late["groups"][0]["strip"])
    assert found.numbers["splits"]["train"] == PER_CLASS - 1


def test_look_alikes_are_not_called_copies(drawn, context):
    drawn.features[8] = drawn.features[6] + 0.01
    assert drawn.audit(context).numbers["late_copies"]["num_groups"] == 0


def test_copies_under_two_labels_are_both_excluded(drawn, context):
    drawn.mirror(source=0, copy=9)
    found = drawn.audit(context)
    assert [row(found, k)["status"] for k in (0, 9)] == ["excluded", "excluded"]
    assert row(found, 9)["reason"] == "label conflict: the same picture as 000.jpg"


def test_two_training_copies_of_one_class_stay(drawn, context):
    drawn.mirror(source=0, copy=8)
    assert set(drawn.audit(context).examples["status"]) == {"used"}


def test_class_that_the_audit_would_empty_ends_the_run_with_its_name(drawn, context):
    for index, record in enumerate(drawn.records):
        if record["label"] == "rose" and record["split"] == "train" and index > 1:
            record["status"] = "quarantined"
    drawn.mirror(source=7, copy=1)
    with pytest.raises(DataUnusable, match=r"No training photo is left of rose.*Add photos"):
        drawn.audit(context)


def test_wrong_labels_are_listed_first_and_nothing_is_relabelled(drawn, context):
    planted = (1, 16, 33)
    for index in planted:
        drawn.records[index]["label"] = NAMES[1 - index % 2]
    found = drawn.audit(context, shown=2)
    with context.workdir.path("stages/audit/label_issues.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["path"] for r in rows[:4]} >= {f"{k:03d}.jpg" for k in planted}
    wrong = next(r for r in rows if r["path"] == "001.jpg")
    assert (wrong["given_label"], wrong["suggested_label"], wrong["likely"]) == ("daisy", "rose", "True")
    order = [(r["likely"] != "True", float(r["score"])) for r in rows]
    assert order == sorted(order), "the likely issues come first, then those with the lowest score"
    assert found.examples["label"][1] == "daisy" and len(found.numbers["label_issues"]["shown"]) == 2


def test_decided_photos_are_listed_at_the_end_with_their_decision_and_count_no_more(drawn, context):
    before = drawn.audit(context).numbers["label_issues"]
    for index in (1, 16):
        drawn.records[index]["label"] = NAMES[1 - index % 2]
    drawn.records[16] |= {"given_label": drawn.records[16]["label"]}
    digest, gone = drawn.records[16]["sha256"], "0" * 64
    found = drawn.audit(context, corrections=Corrections({digest: "keep", gone: "drop"}))
    with context.workdir.path("stages/audit/label_issues.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["sha256"], row["decision"]) for row in rows[-2:]] == [
        ("016.jpg", digest, "keep"),
        ("", gone, "drop"),
    ]
    assert "001.jpg" in {row["path"] for row in rows[:-2]} and not any(row["decision"] for row in rows[:-2])
    issues = found.numbers["label_issues"]
    assert issues["num_listed"] == len(rows) - 2 and issues["num_likely"] <= before["num_likely"] + 1
    assert "016.jpg" not in {photo["path"] for photo in issues["shown"]}


def test_labels_to_look_at_first_are_the_likely_ones_and_at_most_25(drawn, context):
    for index in range(0, 2 * PER_CLASS, 3):
        drawn.records[index]["label"] = NAMES[1 - index % 2]
    issues = drawn.audit(context, shown=40).numbers["label_issues"]
    assert issues["num_likely"] >= issues["num_first"] == sum(photo["likely"] for photo in issues["shown"][:25])
    assert issues["num_first"] == min(25, issues["num_likely"])


@pytest.mark.parametrize(("noise", "trust"), [(1, "good"), (7, "little"), (60, "none")])
def test_trust_in_label_issues_falls_with_the_agreement(drawn, context, noise, trust):
    rng = np.random.default_rng(5)
    drawn.features = [feature + noise * rng.normal(size=WIDTH) for feature in drawn.features]
    issues = drawn.audit(context).numbers["label_issues"]
    assert issues["trust"] == trust, issues["agreement"]


def test_agreement_that_a_large_class_gives_by_chance_earns_no_trust(drawn, context):
    for index in range(1, 2 * PER_CLASS, 2):
        drawn.features[index] = drawn.features[index - 1] + 0.5
        drawn.records[index]["label"] = NAMES[index % 20 == 1]
    issues = drawn.audit(context).numbers["label_issues"]
    assert issues["agreement"] > 0.85 and issues["trust"] == "none"


def test_path_that_a_spreadsheet_would_compute_is_kept_from_it(drawn, context):
    drawn.records[1] |= {"label": "daisy", "path": '=HYPERLINK("x")\n,"'}
    drawn.audit(context)
    with context.workdir.path("stages/audit/label_issues.csv").open(encoding="utf-8-sig", newline="") as file:
        paths = [r["path"] for r in csv.DictReader(file)]
    assert '\'=HYPERLINK("x")\n,"' in paths


def test_photo_unlike_all_others_is_found_with_its_similarity(drawn, context):
    drawn.features[11] = -3 * drawn.features[11] + 20 * np.eye(WIDTH)[3]
    found = drawn.audit(context).numbers["outliers"]
    assert found["shown"][0]["path"] == "011.jpg" and found["num_found"] == len(found["shown"]) <= 2
    assert found["shown"][0]["similarity"] < found["threshold"] < found["median"]


def test_where_no_photo_is_unlike_all_others_none_is_shown(drawn, context):
    assert drawn.audit(context).numbers["outliers"]["shown"] == []


def test_of_many_outliers_the_least_similar_ones_are_shown(drawn, context):
    rng = np.random.default_rng(1)
    for k in range(0, 20, 2):
        drawn.features[k] = 30 * rng.normal(size=WIDTH)
    found = drawn.audit(context, shown=3).numbers["outliers"]
    assert found["num_found"] > 3 and len(found["shown"]) == 3
    similarities = [photo["similarity"] for photo in found["shown"]]
    assert similarities == sorted(similarities)


def test_curve_is_over_training_photos_on_validation_photos(drawn, context):
    curve = drawn.audit(context).numbers["learning_curve"]
    assert curve["num_val"] == 20 and [p["num_examples"] for p in curve["points"]] == [4, 10, 20, 40]


def test_two_audits_leave_the_same_bytes(drawn, context):
    drawn.mirror(source=6, copy=8)
    drawn.audit(context)
    first = context.workdir.digests(("stages/audit",))
    drawn.audit(context)
    assert context.workdir.digests(("stages/audit",)) == first and len(first) >= 4
