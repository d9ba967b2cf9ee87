import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from job.config import Config
from job.data.examples import USED_FOR
from job.errors import StorageFailed
from job.measure.predicted import Predicted
from job.measure.thresholds import Answers, thresholds
from job.pipeline.table import STAGES
from job.reporting.gallery import with_heatmap
from job.reporting.rendering import breakable
from job.reporting.summaries import num_correct, num_wanted
from job.reporting.times import PARTS
from job.sections import AuditConfig, EvaluateConfig, HeatmapsConfig, ReportConfig
from job.stages.report import report
from job.text.numbers import percent, points, rate, seconds

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "two\nlines",
    "{{ 7 * 7 }}{% raw %}",
    "turned \u202egpj.exe",
    "not UTF-8 \udcff",
    "\N{SUNFLOWER} emoji",
    "x" * 255,
)
RUN = {
    "schema": 1,
    "data": "/data/flowers",
    "labels": None,
    "out": "/out",
    "command": "transfer-job run --data /data/flowers --out /out --set backbone.alpha=0.35",
    "config": Config.load(None, ["backbone.alpha=0.35"]).model_dump(mode="json"),
    "versions": {"transfer-job": "0.1.0", "keras": "3.15.0"},
    "fingerprint": {"cpu": "a processor", "cores": 2},
    "started": "2026-11-23T15:31:00+00:00",
}
TIMINGS = {"intake": {"wall_s": 9.3, "cpu_s": 15.2}, "explore": {"wall_s": 2.1, "cpu_s": 2.0}}
TIMINGS |= {
    name: {"wall_s": 1.5, "cpu_s": 1.0} for name in ("extract", "audit", "head", "fine_tune", "evaluate", "heatmaps")
}


def explored(context, names=("daisy", "rose"), **changed):
    """explore.json and its pictures for two or more classes, with something of everything."""
    folder = context.workdir.path("stages/explore")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in ("group", "flat", "mean", "samples"):
        Image.new("RGB", (16, 16), (200, 80, 40)).save(folder / f"{picture}.jpg")
    for figure in ("sizes", "brightness", "contrast"):
        (folder / f"{figure}.svg").write_text("<svg/>")
    five = {"min": 0.1, "p25": 0.3, "median": 0.4, "p75": 0.5, "max": 0.9}
    light = {**five, "by_class": [five] * len(names)}
    copies = [
        {"path": f"train/{names[0]}/copy.jpg", "label": names[0], "given_split": "train", "split": "train"}
        | {"status": "excluded", "reason": f"a copy of val/{names[0]}/kept.jpg, which is {USED_FOR['test']}"},
        {"path": f"val/{names[0]}/kept.jpg", "label": names[0], "given_split": "val", "split": "test"}
        | {"status": "used", "reason": ""},
    ]
    group = {
        "photos": copies,
        "exact": True,
        "crosses_splits": True,
        "crosses_given": True,
        "crosses_labels": False,
        "strip": "stages/explore/group.jpg",
    }
    small = {
        "reason": "\N{HORIZONTAL ELLIPSIS} pixels: a side is shorter than intake.min_side_px (8)",
        "count": 2,
        "files": [{"path": f"{names[0]}/{side}.png", "own": f"{side}x{side}"} for side in (1, 2)],
    }
    told = {"accuracy": 0.6, "accuracy_ci95": [0.55, 0.65], "warning": True, "best_class": names[0], "best_recall": 0.97}
    facts = [{"fact": "size", "kind": "file", **told}, {"fact": "contrast", "kind": "light", **told, "warning": False}]
    pictures = {"mean": "stages/explore/mean.jpg", "samples": "stages/explore/samples.jpg"}
    flat = {"path": f"{names[0]}/flat.jpg", "label": names[0], "why": "one flat colour"}
    flat |= {"thumbnail": "stages/explore/flat.jpg"}
    numbers = {
        "num_files": 53 * len(names),
        "statuses": {"used": 50 * len(names), "quarantined": 2 * len(names), "excluded": len(names)},
        "conflicts": {},
        "splits": {"train": 30 * len(names), "val": 8 * len(names), "test": 12 * len(names)},
        "splits_given": ["train", "val"],
        "faults": [small],
        "conversions": [],
        "ignored": [],
        "remarks": [],
        "source_notes": [],
        "groups": None,
        "classes": [{"class": n, "train": 30, "val": 8, "test": 12, "excluded": 1, "quarantined": 2} for n in names],
        "shortcuts": {"num_examples": 100, "largest_class": 0.5, "facts": facts, "file": told},
        "sizes": {"width": five, "height": five, "aspect": five, "num_bytes": five}
        | {"formats": {"JPEG": 50 * len(names)}, "modes": {"RGB": 50 * len(names)}, "with_exif": 0},
        "light": {"brightness": light, "contrast": light},
        "duplicates": {"num_groups": 1, "num_photos": 2, "num_crossing_splits": 1, "num_crossing_labels": 0}
        | {"num_label_conflicts": 0, "groups": [group], "label_conflicts": []},
        "suspicious": {"num_photos": 3, "shown": [flat]},
        "class_pictures": [{"class": n, **pictures} for n in names],
        "figures": {name: f"stages/explore/{name}.svg" for name in ("sizes", "brightness", "contrast")},
    }
    context.workdir.write_json("stages/explore/explore.json", numbers | changed)


def audited(context, names=("daisy", "rose")):
    folder = context.workdir.path("stages/audit")
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(folder / "photo.jpg")
    picture = {"thumbnail": "stages/audit/photo.jpg"}
    explore = context.workdir.read_json("stages/explore/explore.json")
    issue = {"path": f"train/{names[0]}/wrong.jpg", "given_label": names[0], "suggested_label": names[1], "score": 0.01}
    group = {**explore["duplicates"]["groups"][0], "exact": False}
    points = [{"fraction": f, "num_examples": n, "accuracies": a} for f, n, a in ((0.5, 30, [0.6, 0.62]), (1.0, 60, [0.7]))]
    first, *others = explore["classes"]
    numbers = {
        "statuses": {**explore["statuses"], "used": 50 * len(names) - 1, "excluded": len(names) + 1},
        "conflicts": explore["conflicts"],
        "left_out": {f"train/{names[0]}/late.jpg": f"a copy of val/{names[0]}/kept.jpg, which is {USED_FOR['test']}"},
        "splits": {**explore["splits"], "train": 30 * len(names) - 1},
        "classes": [{**first, "train": 29, "excluded": 2}, *others],
        "late_copies": {"num_groups": 1, "torn_by_user": {"num_groups": 1, "num_left_out": 1}}
        | {"torn_by_job": {"num_groups": 0, "num_left_out": 0}, "num_conflicts": 0, "groups": [group]},
        "label_issues": {"num_examples": 50 * len(names), "num_listed": 9, "num_likely": 4, "num_first": 4}
        | {
            "agreement": 0.91,
            "chance": 0.5,
            "trust": "good",
            "by_class": [{"class": names[0], "likely": 4}],
            "shown": [{**issue, "likely": True, "split": "train", **picture}],
        },
        "outliers": {"num_found": 31, "threshold": 0.33, "median": 0.58}
        | {"shown": [{"path": f"val/{names[0]}/sign.jpg", "label": names[0], "similarity": 0.2, **picture}]},
        "learning_curve": {"num_val": 16, "points": points, "last_doubling": [0.61, 0.7], "noise": 0.08},
    }
    context.workdir.write_json("stages/audit/audit.json", numbers)


def trained(context, num_seeds=1):
    path = [
        {"c": c, "val_log_loss": loss, "val_accuracy": 0.8, "num_iterations": 20, "converged": True}
        for c, loss in ((0.01, 0.5), (0.1, 0.4), (1.0, 0.6))
    ]
    kinds = ("regression on views", "regression on photos", "discriminant")
    heads = [{"kind": kind, "val_log_loss": 0.4, "val_accuracy": 0.8} for kind in kinds]
    context.workdir.write_json("stages/head/head.json", {"chosen": kinds[1], "heads": heads, "c": 0.1, "path": path})
    later = {"last_step": 4, "train_loss": 0.6, "train_accuracy": 0.9, "learning_rate": 1e-4}
    epochs = [{"epoch": e, "val_log_loss": 0.4, "val_accuracy": 0.8, **(later if e else {})} for e in range(3)]
    history = [{"seed": seed, **epoch} for seed in range(num_seeds) for epoch in epochs]
    context.workdir.write_json(
        "stages/fine_tune/fine_tune.json",
        {"trained": True, "note": "The weights of the last epoch (2) are kept.", "history": history},
    )


def evaluated(context, names=("daisy", "rose"), met=True, with_fine_tuned=True, num_leaks=1, with_earlier=False, **on_test):
    folder = context.workdir.path("stages/evaluate/mistakes")
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(folder / "000.jpg")
    num = 12 * len(names)
    matrix = [[12 if i == j else 0 for j in range(len(names))] for i in range(len(names))]
    matrix[0][0], matrix[0][1] = 9, 3

    def measured(count):
        shares = {"accuracy": (num - 3) / num, "accuracy_ci95": [0.69, 0.957], "balanced_accuracy": 0.875, "macro_f1": 0.874}
        sure = {"ece": 0.05, "ece_floor": 0.2, "ece_uncalibrated": 0.15, "ece_bins": 15, "mean_confidence": 0.9}
        return {"num_examples": count, **shares, "log_loss": 0.3, "log_loss_uncalibrated": 0.4, **sure}

    model = {
        "val": measured(16) | {"used_for_choices": True},
        "test": measured(num) | on_test,
        "test_leak_free": measured(num - num_leaks),
    }
    pair = {"num_examples": 16, "only_first_correct": 1, "only_second_correct": 2, "difference": 0.0625}
    pair |= {"difference_ci95": [-0.1, 0.2], "p_value": 1.0}
    share = {
        "precision": 0.8,
        "precision_ci95": [0.5, 0.9],
        "recall": 0.75,
        "recall_ci95": [0.4, 0.9],
        "f1": 0.77,
        "f1_ci95": [0.5, 0.9],
    }
    mistake = {"path": f"val/{names[0]}/odd.jpg", "label": names[0], "predicted": names[1], "probability": 0.9999}
    mistake |= {"probability_of_label": 0.0001, "thumbnail": "stages/evaluate/mistakes/000.jpg"}
    no_choice = {"reason": "There is no fine-tuned model."}
    scores = {"val_accuracy": 0.8, "val_log_loss": 0.4, "test_accuracy": 0.875, "test_log_loss": 0.3}
    of_seeds = {"chosen": "seed 0", "models": {"seed 0": scores}, "mean": scores, "spread": None}
    numbers = {
        "shipped": "head",
        "metric": "accuracy",
        "temperatures": {"head": 0.8, "fine_tuned": 0.64},
        "offsets": dict.fromkeys(("head", "fine_tuned"), [0.0] * len(names)),
        "reliability": [{"num_examples": num, "confidence": 0.9, "accuracy": 0.875, "accuracy_ci95": [0.69, 0.957]}],
        "choice": {"comparison": pair, "reason": "The head ships."} if with_fine_tuned else no_choice,
        "class_names": list(names),
        "head": model,
        "fine_tuned": model if with_fine_tuned else None,
        "seeds": of_seeds if with_fine_tuned else None,
        "confusion": matrix,
        "per_class": [{"class": n, "num_examples": 12, **share} for n in names],
        "largest_class": {"class": names[0], "accuracy": 1 / len(names)},
        "head_against_fine_tuned": pair if with_fine_tuned else None,
        "gate": {"min_accuracy": 0.5 if met else 0.95, "met": met},
        "min_probability": 0.0,
        "thresholds": promised(len(names), None),
        "mistakes": [mistake],
        "earlier": None,
        "flips": {},
        "corrections": None,
        "familiarity": familiarity(num, mistake),
    }
    if with_earlier:
        numbers |= against_earlier(names, num, mistake)
    context.workdir.write_json("stages/evaluate/evaluation.json", numbers)


def familiarity(num, mistake):
    found = {"source": "frozen", "min_familiarity": 0.05, "num_prototypes": 40, "num_validation": 16, "num_photos": num}
    found |= {"num_rejected": 1, "rejected": 1 / num, "rejected_ci95": [0.01, 0.2], "accuracy_of_rejected": 0.0}
    return found | {"share_added": 0.4, "least_familiar": [{**mistake, "familiarity": 0.003}]}


def promised(num_classes, target, num_val=200):
    """What the stage says about thresholds. The model is 99.9% sure and right, but for every eighth photo: 50% and wrong."""
    number = np.arange(num_val + 12 * num_classes)
    labels, is_sure = number % num_classes, number % 8 != 7
    predicted = Predicted(np.where(is_sure, labels, (labels + 1) % num_classes), np.where(is_sure, 0.999, 0.5), number)
    told = {"labels_N": labels, "predicted": predicted, "groups_N": number, "num_val": num_val, "num_classes": num_classes}
    return thresholds(target, **told, of_training=lambda: Answers(np.zeros(1), np.zeros(1, bool), np.full(1, -1)))


def against_earlier(names, num, mistake):
    versus = {"num_examples": num, "earlier_accuracy": 0.8, "accuracy": 0.875, "difference": 0.075, "p_value": 0.4}
    versus |= {"difference_ci95": [-0.05, 0.2], "right_to_wrong": 3, "wrong_to_right": 1}
    changes = {"new": 9, "gone": 0, "relabelled": 1, "new_classes": [names[0]], "gone_classes": ["moss"]}
    earlier = {"model_sha256": "4f0c", "class_names": [*names[1:], "moss"], "changes": changes, "num_seen": 2, "note": ""}
    earlier["only_test_changed"] = False
    judged = {"num_examples": num, "accuracy": 0.875, "versus": versus}
    unchanged = {"num_examples": 0, "accuracy": None, "versus": None}
    known = {**versus, "num_examples": num - 12, "earlier_accuracy": 0.9}
    return {
        "earlier": {**earlier, "num_new": 5, "all": versus, "known_classes": known},
        "flips": {"right to wrong": [{**mistake, "earlier": names[0]}], "wrong to right": [{**mistake, "earlier": "moss"}]},
        "corrections": {"changed": {"train": 1200, "val": 0, "test": 1}, "num_kept": 3, "num_dropped": 1}
        | {"by_given_labels": judged, "by_corrected_labels": {**judged, "versus": None}, "unchanged_labels": unchanged}
        | {"verdict": "may be chance"},
    }


def exported(context, faults=(), notice=""):
    arrays = {"largest_difference": 4e-7, "tolerance": 1e-4, "changed_labels": 0, "changed_accepted": 0}
    by_bytes = {"num_photos": 24, "not_decodable_in_graph": 1, "largest_difference": 0.05, "mean_difference": 0.001}
    by_bytes |= {"changed_labels": 1, "changed_labels_with_clear_margin": 0, "clear_margin": 0.2}
    by_bytes |= {"notice": notice, "changed_accepted": 2}
    verdict = {"faults": list(faults), "agrees": not faults}
    exif = {"largest_difference": 0.0, "tolerance": 0.02}
    context.workdir.write_json(
        "stages/export/parity.json", {"num_photos": 24, "arrays": arrays, "bytes": by_bytes, "exif": exif, **verdict}
    )


DELETION = {"num_photos": 40, "drop_marked": 0.21, "drop_random": 0.05, "difference_ci95": [0.08, 0.24], "verdict": "passed"}
BACKGROUND = {"num_photos": 40, "inner": 0.875, "outer": 0.725, "shuffled": 0.75, "difference_ci95": [-0.32, 0.02]}


def with_heatmaps(context, names=("daisy", "rose"), verdict="passed", decides=False):
    folder = context.workdir.path("stages/heatmaps/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in ("mistake", "similar", "right", "right_heatmap"):
        Image.new("RGB", (16, 16)).save(folder / f"{picture}.jpg")
    similar = [{"path": f"train/{name}/near.jpg", "label": name, "cosine": 0.9} for name in names[:2]]
    pictures = {name: f"stages/heatmaps/pictures/{name}.jpg" for name in ("mistake", "similar", "right", "right_heatmap")}
    mistake = {"heatmap": pictures["mistake"], "similar": pictures["similar"], "similar_photos": similar}
    right = {"path": f"val/{names[0]}/good.jpg", "label": names[0], "probability": 0.97, "thumbnail": pictures["right"]}
    numbers = {
        "mistakes": {f"val/{names[0]}/odd.jpg": mistake},
        "right": [{**right, "heatmap": pictures["right_heatmap"]}],
        "deletion": DELETION | {"verdict": verdict},
        "background": BACKGROUND | ({"decides": True, "inner": 0.4} if decides else {"decides": False}),
    }
    context.workdir.write_json("stages/heatmaps/heatmaps.json", numbers)


def everything(context, names=("daisy", "rose"), **evaluation):
    explored(context, names)
    audited(context, names)
    trained(context)
    evaluated(context, names, **evaluation)
    with_heatmaps(context, names)
    exported(context)


def drawn(context, **changes):
    return report(ReportConfig(), run={**RUN, **changes}, timings=TIMINGS, context=context).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every start tag with its attributes, the open tags as they close, and the text as a reader sees it."""

    VOID = frozenset({"meta", "img", "br", "wbr"})

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(page)
        assert not self._open, f"left open: {self._open}"
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def top_of(page):
    """What a reader meets before the first section."""
    return Elements(page[page.index("<header>") : page.index("</header>")] + "</header>").text


def contents(page):
    """The list of links to the sections."""
    return page[page.index("<nav") : page.index("</nav>")] + "</nav>"


def section(page, name):
    """The text of one section."""
    start = page.index(f'<section id="{name}">')
    return Elements(page[start : page.index("</section>", start) + len("</section>")]).text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text_and_nothing_else(context, name):
    everything(context, with_earlier=True)
    harmless = Elements(drawn(context))
    everything(context, (name, "rose"), with_earlier=True)
    hostile = Elements(drawn(context, data=f"/data/{name}"))
    # A long or a divided path has other places where a line may break.
    assert [tag for tag, _ in hostile.tags if tag != "wbr"] == [tag for tag, _ in harmless.tags if tag != "wbr"]
    assert not [key for _, attributes in hostile.tags for key in attributes if key.startswith("on") or key == "style"]
    assert all(image["src"].startswith("data:image/") for image in hostile.of("img"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_command_is_text_and_nothing_else(context, name):
    explored(context)
    page = drawn(context, command=f"transfer-job run --data '/data/{name}'")
    shown = name.replace("\n", r"\n").replace("\u202e", r"\u202e").replace("\udcff", r"\udcff")
    assert f"--data '/data/{shown}'" in Elements(page).text
    assert not Elements(page).of("script")


def test_characters_that_cannot_be_seen_are_written_out(context):
    everything(context, ("a\nb", "c\u202ed\udcff"))
    page = drawn(context)
    assert r"a\nb" in page and r"c\u202ed\udcff" in page
    assert "\u202e" not in page


def test_long_class_name_is_cut_in_tables_and_whole_in_its_heading(context):
    everything(context, ("x" * 255, "rose"))
    assert f"<h3>{'x' * 255}</h3>" in drawn(context)


def test_page_asks_for_nothing_and_runs_nothing(context):
    everything(context)
    page = drawn(context)
    elements = Elements(page)
    assert "<script" not in page.lower()
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r'src="data:[^"]*"', "", page.replace("/data/flowers", "")))
    assert all(re.fullmatch(r"#[a-z-]+|[a-z_.]+", link["href"]) for link in elements.of("a"))
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in elements.of("img"))
    assert not [attributes for _, attributes in elements.tags if "style" in attributes]


def test_policy_allows_this_style_and_embedded_pictures_only(context):
    everything(context)
    page = drawn(context)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    (policy,) = [m["content"] for m in Elements(page).of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'", "base-uri 'none'", "form-action 'none'"
    ]  # fmt: skip


def all_of_it(context):
    everything(context, with_earlier=True)


@pytest.mark.parametrize("make", [explored, everything, all_of_it])
def test_links_lead_to_sections_and_to_files_that_are_published_beside_the_page(context, make):
    make(context)
    elements = Elements(drawn(context))
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {link["href"] for link in elements.of("a")}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    stages = ("split",) if make is explored else ("split", "audit", "evaluate")
    published = {name for stage in stages for name in STAGES[stage].public}
    published |= {"metrics.json"} if make is not explored else set()
    published -= {"comparison.parquet"} if make is not all_of_it else set()
    assert {link for link in links if not link.startswith("#")} == published


def test_results_come_before_the_data_and_the_contents_have_the_same_order(context):
    everything(context)
    elements = Elements(drawn(context))
    sections = [attributes["id"] for attributes in elements.of("section")]
    assert sections == [
        "results", "thresholds", "each-class", "confusion", "mistakes", "heatmaps", "calibration", "familiarity", "training",
        "export", "data", "classes", "more-photos", "shortcuts", "faults", "duplicates", "suspicious", "labels", "times",
        "again"
    ]  # fmt: skip
    links = [link["href"] for link in Elements(contents(drawn(context))).of("a")]
    assert links == [f"#{section}" for section in sections]


@pytest.mark.parametrize("make", [explored, everything, all_of_it])
def test_no_level_of_heading_is_skipped(context, make):
    make(context)
    levels = [int(tag[1]) for tag, _ in Elements(drawn(context)).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_page_of_the_data_alone_is_complete(context):
    explored(context)
    page = drawn(context)
    elements = Elements(page)
    assert "No model in this run." in top_of(page) and "100 usable photos in 2 classes" in top_of(page)
    sections = {attributes["id"] for attributes in elements.of("section")}
    assert sections == {"data", "classes", "faults", "duplicates", "shortcuts", "suspicious", "times", "again"}
    # Charts of size, brightness and contrast; mean and samples of each class; strip; suspicious photo.
    assert len(elements.of("img")) == 3 + 2 * 2 + 1 + 1
    assert "train/daisy/copy.jpg" in elements.text
    assert "a copy of val/daisy/kept.jpg, which is in the test set (held out)" in elements.text


def test_page_of_a_finished_run_has_every_section(context):
    everything(context)
    page = drawn(context)
    sections = {attributes["id"] for attributes in Elements(page).of("section")}
    assert sections >= {"labels", "more-photos", "training", "results", "mistakes", "export"}
    top = top_of(page)
    assert "87.5%" in top and "21 of 24" in top and "69.0% to 95.7%" in top
    assert "Always guessing “daisy”" in top and "50.0%" in top
    assert "Exported and checked." in top and "The quality gate, an accuracy of 50.0%, is met." in top


def test_what_to_do_first_is_in_order_of_harm_and_leads_to_where_it_is_shown(context):
    everything(context)
    page = drawn(context)
    first = page[page.index("Do this first") : page.index("</ol>")]
    places = [
        first.index(f'href="#{section}"')
        for section in ("shortcuts", "more-photos", "duplicates", "data", "labels", "faults")
    ]
    assert places == sorted(places)
    said = "its size gives the right class for 60.0% of all photos (always guessing the largest class: 50.0%)"
    assert said in html.unescape(first)


def test_page_with_features_shows_labels_odd_photos_and_late_copies(context):
    everything(context)
    text = Elements(drawn(context)).text
    assert "daisy given, rose suggested" in text and "4 labels may be wrong." in text
    assert "val/daisy/sign.jpg" in text and "1 more scene exists more than once" in text
    assert "training 59" in text, "what the audit excluded must be gone from the counts"


def with_label_issues(context, **changed):
    everything(context)
    numbers = context.workdir.read_json("stages/audit/audit.json")
    numbers["label_issues"] |= changed
    context.workdir.write_json("stages/audit/audit.json", numbers)
    page = drawn(context)
    return top_of(page), section(page, "labels")


def test_labels_are_shown_in_an_order_that_is_explained_with_what_to_do(context):
    everything(context)
    labels = section(drawn(context), "labels")
    assert "The score is the probability that the prediction gives to the label." in labels and "score 0.010" in labels
    assert "--corrections FILE" in labels and "decision" in labels


def test_corrected_labels_have_a_table_of_accuracies_before_and_after(context):
    everything(context, with_earlier=True)
    page = drawn(context)
    said = "1,201 labels were corrected: 1,200 for training, 1 in the test set. 1 photo was left out."
    assert said in top_of(page) and said in section(page, "corrections")
    assert "80.0%87.5%+7.5 (" in section(page, "corrections") and "may be chance" in top_of(page)


def test_good_predictions_name_the_labels_to_look_at_first(context):
    top, labels = with_label_issues(context, num_likely=172, num_first=25)
    assert "172 labels may be wrong: another class was predicted. Look at these 25 first: the first 25 rows" in top
    assert "172 labels may be wrong." in labels


def test_poor_predictions_doubt_themselves_more_than_the_labels(context):
    top, labels = with_label_issues(context, num_likely=1343, num_first=25, agreement=0.761, trust="little")
    assert "only 76.1% of all labels agree with the prediction (by chance: 50.0%), so most of the 1,343" in top
    assert "Look at these 25 first" in top and "leave the others" in top
    assert "76.1% of the labels agree" in labels and "1,343 labels may be wrong, but most of them are right" in labels


def test_predictions_that_know_little_cast_no_doubt_on_labels(context):
    top, labels = with_label_issues(context, agreement=0.4, trust="none")
    assert "may be wrong" not in top and "This is too few to find wrong labels" in labels
    assert "given, rose suggested" not in labels


def test_no_label_is_doubted_without_a_likely_one(context):
    top, labels = with_label_issues(context, num_likely=0, num_first=0, by_class=[{"class": "daisy", "likely": 0}])
    assert "may be wrong" not in top and "No label is likely to be wrong." in labels and "by given class" not in labels


def test_outliers_have_a_score_and_a_threshold_and_are_not_made_up_where_there_are_none(context):
    everything(context)
    text = Elements(drawn(context)).text
    assert "31 photos have less than 0.33, which is unusual in this data." in text and "daisy, similarity 0.20" in text
    assert "Only the least similar ones are shown (1)." in text
    numbers = context.workdir.read_json("stages/audit/audit.json")
    numbers["outliers"] |= {"num_found": 0, "shown": []}
    context.workdir.write_json("stages/audit/audit.json", numbers)
    assert "None has less than 0.33, so no photo is unlike all others." in Elements(drawn(context)).text


def test_data_that_cannot_be_used_says_so_at_the_top_and_keeps_the_list_folded(context):
    explored(context)
    refusals = [["9 of 20 files are quarantined.", ["9 x 0 bytes", "a<b>.jpg: 0 bytes"], "Repair them."]]
    context.workdir.write_json("stages/split/refusals.json", refusals)
    page = drawn(context)
    assert "This data cannot be used for training as it is. 9 of 20 files are quarantined. Repair them." in top_of(page)
    assert "a&lt;b&gt;.jpg" in page and "No model in this run" not in page


def test_leak_free_accuracy_is_at_the_top_only_where_there_are_leaks(context):
    everything(context, num_leaks=2)
    assert "on 22 photos. The other 2 held-out photos have copies" in top_of(drawn(context))
    evaluated(context, num_leaks=0)
    assert "Without leaks" not in Elements(drawn(context)).text


def test_gate_not_met_is_said_at_the_top(context):
    explored(context)
    trained(context)
    evaluated(context, met=False)
    top = top_of(drawn(context))
    assert "Not exported: the quality gate was not met." in top
    assert "asks for an accuracy of 95.0% on the held-out photos: 23 of 24. Only 21 are classified correctly (87.5%)" in top
    assert "shipped" not in top
    assert top.index("quality gate") < top.index("of the held-out photos")


@pytest.mark.parametrize(("min_accuracy", "wanted"), [(0.95, 38), (0.951, 39), (0.0, 0), (1.0, 40), (None, 0)])
def test_gate_asks_for_whole_photos(min_accuracy, wanted):
    scores = {"num_examples": 40, "accuracy": 0.9}
    numbers = {"shipped": "head", "head": {"test": scores}, "gate": {"min_accuracy": min_accuracy, "met": False}}
    assert num_wanted(numbers) == wanted and num_correct(scores) == 36


def test_failed_parity_is_said_at_the_top(context):
    everything(context)
    exported(context, faults=["the EXIF orientation is ignored"])
    top = top_of(drawn(context))
    assert "the exported model disagrees" in top and "The check found: the EXIF orientation is ignored." in top


def test_many_photos_that_the_graph_cannot_decode_are_said_at_the_top(context):
    everything(context)
    exported(context, notice="The exported model cannot decode 1 of 24 held-out photos.")
    page = drawn(context)
    assert "cannot decode 1 of 24 held-out photos" in top_of(page)
    assert "1 photo (4.2%) cannot be decoded by TensorFlow alone" in page


def test_page_says_what_was_understood_of_the_source(context):
    lines = ["2 classes, from column 'label' of labels.csv: cat, dog.", "No splits are given."]
    explored(context, source_notes=lines)
    assert all(line in Elements(drawn(context)).text for line in lines)


def test_groups_that_are_all_one_are_no_interval(context):
    groups = {"num_groups": 1, "accuracy": 0.875, "accuracy_ci95": [0.0, 1.0], "photo_accuracy_ci95": [0.0, 1.0]}
    everything(context, by_group=groups)
    assert "All held-out photos are of one group." in top_of(drawn(context))
    everything(context, by_group={**groups, "num_groups": 9, "photo_accuracy_ci95": [0.6, 0.99]})
    assert "each of the 9 groups" in top_of(drawn(context)) and "is too narrow" in top_of(drawn(context))
    everything(context, by_group={**groups, "num_groups": 9, "photo_accuracy_ci95": [0.8, 0.9]})
    assert "is too narrow" not in top_of(drawn(context)), "this interval is narrower than that without groups"


@pytest.mark.parametrize(
    ("given", "groups", "text"),
    [
        ([], None, "Your data had no splits"),
        ([], {"num_groups": 9, "num_crossing_splits": 0}, "All photos of a group are in one split."),
        (["train"], None, "Your data had only a training split."),
        (["train", "val"], None, "your val is the held-out test set, and the validation photos were taken from your train"),
        (
            ["train", "test"],
            None,
            "your test is the held-out test set, and the validation photos were taken from your train",
        ),
        (["train", "val", "test"], None, "into train, val and test. These splits were kept: your test is"),
    ],
)
def test_page_says_who_made_the_splits(context, given, groups, text):
    explored(context, splits_given=given, groups=groups)
    data = section(drawn(context), "data")
    assert text in data
    assert ("by a hash of the content" in data) == (len(given) < 2)


def test_groups_of_the_user_are_counted_and_warned_of(context):
    explored(context, groups={"num_groups": 9, "num_crossing_splits": 2})
    assert "2 groups are in more than one of your splits." in Elements(drawn(context)).text


def test_photos_that_could_not_be_read_again_are_not_called_undecodable(context):
    everything(context)
    parity = context.workdir.read_json("stages/export/parity.json")
    parity["bytes"] |= {"not_decodable_in_graph": 0, "not_readable": 2}
    context.workdir.write_json("stages/export/parity.json", parity)
    page = drawn(context)
    assert (
        "2 photos have changed or disappeared since the source was listed" in page
        and "decoded by TensorFlow alone" not in page
    )


def test_formats_have_a_table_with_those_that_were_compared_and_the_reasons_for_the_others(context):
    everything(context)
    compared = {"largest_difference": 4e-4, "mean_difference": 1e-5, "changed_labels": 1, "accuracy": 0.875}
    compared["changed_accepted"] = 1
    compared |= {"accuracy_ci95": [0.7, 0.95], "measured_accuracy": 0.9, "ms_one_core": 7.04, "ms_all_cores": 3.96}
    onnx = {"file": "model.onnx", "file_bytes": 1_632_178, "num_photos": 24, "faults": []}
    onnx["compared"] = {**compared, "peak_memory_bytes": 78_000_000}
    litert = {"file": "model.tflite", "file_bytes": 9, "num_photos": 0, "faults": [], "compared": None}
    int8 = {"file": "model_int8.tflite", "file_bytes": 0, "num_photos": 0, "faults": ["<b>it cannot</b>"], "compared": None}
    context.workdir.write_json("stages/convert/formats.json", {"onnx": onnx, "litert": litert, "litert-int8": int8})
    timings = {**TIMINGS, "convert": {"wall_s": 1.5, "cpu_s": 1.0}}
    page = report(ReportConfig(), run=RUN, timings=timings, context=context).read_text(encoding="utf-8")
    text = " ".join(Elements(page).text.split())
    assert "1.7 MB1 of 2410.00041e-0587.5% (70.0% to 95.0%)7.0 ms4.0 ms78.0 MB" in text
    assert "litert-int8 was not published: <b>it cannot</b>." in text and "litert was not compared:" in text
    assert "Other formats" not in Elements(drawn(context)).text


def test_run_that_ended_before_the_export_says_so(context):
    explored(context)
    trained(context)
    evaluated(context)
    assert "The run ended before the export" in top_of(drawn(context))


def test_way_to_train_the_head_is_marked(context):
    everything(context)
    text = Elements(drawn(context)).text
    assert "regression on photos0.400080.0%chosen" in text and "C = 0.1" in text
    assert "discriminant0.400080.0%chosen" not in text and "only discriminant analysis" not in text


def test_head_without_regressions_has_no_table_of_strengths(context):
    everything(context)
    only = {"kind": "discriminant", "val_log_loss": 0.4, "val_accuracy": 0.8}
    context.workdir.write_json("stages/head/head.json", {"chosen": only["kind"], "heads": [only], "c": None, "path": []})
    text = Elements(drawn(context)).text
    assert "For such data, only discriminant analysis is tried." in text and "C =" not in text


def test_class_that_is_never_predicted_has_a_dash_for_its_precision(context):
    everything(context)
    dash = '<td class="n quiet">\u2013</td>'
    assert dash not in drawn(context)
    file = "stages/evaluate/evaluation.json"
    found = context.workdir.read_json(file)
    found["per_class"][1] |= {"precision": None, "precision_ci95": [0.0, 1.0]}
    context.workdir.write_json(file, found)
    assert drawn(context).count(dash) == 1


def test_several_seeds_have_a_table_with_their_mean_and_spread(context):
    everything(context)
    assert "standard deviation of the seeds" not in drawn(context)
    trained(context, num_seeds=2)
    numbers = context.workdir.read_json("stages/evaluate/evaluation.json")
    scores = {"val_accuracy": 0.8, "val_log_loss": 0.4, "test_accuracy": 0.875, "test_log_loss": 0.3}
    models = {"seed 7": scores, "seed 8": scores, "mean of the weights": {**scores, "val_log_loss": 0.39}}
    spread = {**scores, "test_accuracy": 0.0123}
    numbers["seeds"] = {"chosen": "mean of the weights", "models": models, "mean": scores, "spread": spread}
    context.workdir.write_json("stages/evaluate/evaluation.json", numbers)
    text = Elements(drawn(context)).text
    assert "The layers were trained 2 times from the same start." in text
    assert "the fine-tuned model in the rest of this page is the mean of the weights." in text
    assert re.search(r"standard deviation of the seeds.*1\.2%", text, re.DOTALL)


def test_without_fine_tuning_the_head_stands_alone(context):
    everything(context, with_fine_tuned=False)
    context.workdir.write_json(
        "stages/fine_tune/fine_tune.json", {"trained": False, "note": "Nothing was fine-tuned.", "history": []}
    )
    text = Elements(drawn(context)).text
    assert "Nothing was fine-tuned." in text and "There is no fine-tuned model." in text
    assert "Fine-tuned model" not in text


def test_faults_that_differ_only_by_size_are_one_reason(context):
    explored(context)
    text = Elements(drawn(context)).text
    assert text.count("a side is shorter than intake.min_side_px (8)") == 1
    assert "daisy/1.png (1x1)" in text and "daisy/2.png (2x2)" in text


def test_identical_artifacts_give_identical_bytes(context):
    everything(context)
    first = drawn(context)
    assert drawn(context) == first
    timings = {**TIMINGS, "report": {"wall_s": 1.0, "cpu_s": 1.0}}  # As when the page is drawn again later.
    again = report(ReportConfig(), run=RUN, timings=timings, context=context)
    assert again.read_text() == first


def test_page_says_where_the_time_went(context):
    explored(context)
    timings = {
        "intake": {"wall_s": 2.0, "cpu_s": 3.0, "count": 3000, "spent_s": {"decode": 1.5}},
        "extract": {"wall_s": 8.0, "cpu_s": 9.0, "count": 600, "spent_s": {"tracing": 2.0, "forward": 3.5, "writing": 0.04}},
        "export": {"wall_s": 10.0, "cpu_s": 9.0, "count": None, "spent_s": {}},
        "report": {"wall_s": 100.0, "cpu_s": 9.0},
    }
    page = report(ReportConfig(), run=RUN, timings=timings, context=context).read_text()
    section = page[page.index('<section id="times">') : page.index('<section id="again">')]
    text = Elements(section).text
    assert "took 20 s, and 21 s of CPU time" in text
    assert "Parts of the time: 8% decode, 18% forward, 60% overhead, 15% other." in text
    words = html.unescape(re.sub(r"<[^>]+>", "|", section))
    rows = [[cell for cell in row.split("|") if cell.strip(" ,")] for row in words.splitlines()]
    assert ["intake", "2.0 s", "3.0 s", "1,500 photos", "decode 1.5 s", "other 0.5 s"] in rows
    assert ["extract", "8.0 s", "9.0 s", "75 views", "forward 3.5 s", "tracing 2.0 s", "other 2.5 s"] in rows
    assert ["export", "10 s", "9.0 s", "\N{EN DASH}", "export 10 s"] in rows


def test_bar_of_a_stage_is_divided_into_parts_and_as_long_as_its_time(context):
    explored(context)
    timings = {
        "extract": {"wall_s": 4.0, "cpu_s": 4.0, "spent_s": {"forward": 1.0, "imports": 2.0}},
        "audit": {"wall_s": 2.0, "cpu_s": 2.0, "spent_s": {}},
    }
    page = report(ReportConfig(), run=RUN, timings=timings, context=context).read_text()
    section = page[page.index('<section id="times">') : page.index('<section id="again">')]
    bars = [bar for bar in Elements(section).of("rect") if "x" in bar]
    part = {name: f"part{number}" for number, name in enumerate(PARTS, 1)}
    assert [(bar["class"], float(bar["x"]), float(bar["width"])) for bar in bars] == [
        (part["forward"], 0.0, 25.0), (part["overhead"], 25.0, 50.0), (part["other"], 75.0, 25.0), (part["other"], 0.0, 50.0)
    ]  # fmt: skip
    keys = re.findall(r'<rect class="(part\d)" width="1" height="1"/></svg>([^<]+)', section)
    assert [text for _, text in keys] == list(PARTS) and [kind for kind, _ in keys] == list(part.values())


def test_the_start_is_the_only_time_on_the_page(context):
    everything(context)
    page = drawn(context)
    assert re.findall(r"\d{4}-\d\d-\d\d.{0,10}", page) == ["2026-11-23 15:31 UTC"]


def test_command_settings_and_versions_are_there(context):
    explored(context)
    page = drawn(context)
    text = Elements(page).text
    assert RUN["command"] in text
    assert "backbone.alpha 0.35" in re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))
    assert "3.15.0" in text and "a processor" in text


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("mobilenet_v2", "imagenet", "It was trained on ImageNet"),
        ("mobilenet_v2", "random", "Its weights are random"),
        ("mobilenet_v2", "/mnt/weights/own.h5", "Its weights come from own.h5."),
        ("dinov2_small", "imagenet", "Its weights are those that are published with it"),
        ("dinov2_small", "preset", "Its weights are those that are published with it"),
    ],
)
def test_page_says_where_the_weights_come_from(context, name, weights, said):
    everything(context)
    backbone = {**RUN["config"]["backbone"], "name": name, "weights": weights}
    assert said in section(drawn(context, config={**RUN["config"], "backbone": backbone}), "training")


def test_title_is_the_name_of_the_data_unless_one_is_given(context):
    explored(context)
    assert "<h1>flowers</h1>" in drawn(context, data="gs://bucket/flowers/")
    titled = report(ReportConfig(title="Spring <3"), run=RUN, timings={}, context=context)
    assert "<h1>Spring &lt;3</h1>" in titled.read_text()


def test_pictures_that_are_gone_leave_no_broken_image(context):
    explored(context)
    for picture in context.workdir.path("stages/explore").glob("*.jpg"):
        picture.unlink()
    assert all(image["src"] for image in Elements(drawn(context)).of("img"))


def test_class_without_a_mean_picture_has_no_empty_place_for_it(context):
    explored(context)
    numbers = context.workdir.read_json("stages/explore/explore.json")
    numbers["class_pictures"][0]["mean"] = None
    context.workdir.write_json("stages/explore/explore.json", numbers)
    alts = [image["alt"] for image in Elements(drawn(context)).of("img")]
    assert "Mean of all photos of rose" in alts and "Mean of all photos of daisy" not in alts
    assert "A sample of photos of daisy" in alts


def test_file_names_do_not_break_inside_of_their_extension(context):
    everything(context)
    page = drawn(context)
    assert '<code class="path">val/<wbr>daisy/<wbr><wbr><span class="nowrap">odd.jpg</span></code>' in page
    assert breakable("a/IMG_20240101.jpeg") == [("a/", False), ("IMG_20240", False), ("101.jpeg", True)]
    assert breakable("v1.a long end") == [("v1.a long end", False), ("", True)]


def test_text_has_one_size_in_all_charts_and_no_chart_is_wider_than_a_phone(context):
    everything(context)
    page = drawn(context)
    pictures = [base64.b64decode(image["src"].split(",")[1]) for image in Elements(page).of("img")]
    charts = [picture.decode() for picture in pictures if picture.startswith(b"<svg xmlns")]
    assert len(charts) == 9
    for svg in charts:
        assert set(re.findall(r"font:(\d+)px", svg)) == {"13"}
        width, units = (float(re.search(rf'{name}="(?:0 0 )?([\d.]+)', svg)[1]) for name in ("width", "viewBox"))
        assert width == units <= 336
    assert not re.search(r"\.plots img {[^}]*[^-]width: *\d", page), "the page must not scale figures"


def test_ten_classes_are_open_and_eleven_are_folded(context):
    everything(context, tuple(f"class {k}" for k in range(10)))
    assert "of 10 classes" not in Elements(drawn(context)).text
    everything(context, tuple(f"class {k}" for k in range(11)))
    folded = [html.unescape(text) for text in re.findall(r"<summary>([^<]+)</summary>", drawn(context))]
    assert {
        "Recall, precision and F1 of 11 classes",
        "Photos of 11 classes, by split",
        "Brightness and contrast of 11 classes",
        "Example photos of 11 classes",
    } <= set(folded)
    assert "The 10 classes with the lowest recall" in Elements(drawn(context)).text
    audit = context.workdir.read_json("stages/audit/audit.json")
    assert re.search(r"11 classes have from [\d,]+ to [\d,]+ photos", Elements(drawn(context)).text)
    audit["classes"] = [{**c, "train": 3, "val": 1, "test": 1} for c in audit["classes"]]
    context.workdir.write_json("stages/audit/audit.json", audit)
    assert "11 classes have 5 photos each." in Elements(drawn(context)).text


def with_confusions(context, names, pairs, per_class=12):
    """Every class has photos; `pairs` says how many of one class are predicted as another."""
    numbers = context.workdir.read_json("stages/evaluate/evaluation.json")
    matrix = per_class * np.eye(len(names), dtype=int)
    for (label, predicted), count in pairs.items():
        matrix[label, predicted] += count
        matrix[label, label] -= count
    numbers["confusion"] = matrix.tolist()
    for k, row in enumerate(numbers["per_class"]):
        row["recall"] = matrix[k, k] / per_class
    context.workdir.write_json("stages/evaluate/evaluation.json", numbers)


def test_more_than_30_classes_have_a_list_of_pairs_and_a_picture_in_place_of_the_matrix(context):
    names = tuple(f"class {k}" for k in range(31))
    everything(context, names)
    with_confusions(context, names, {(3, 29): 5, (29, 3): 4, (7, 8): 1})
    page = drawn(context)
    section = page[page.index('<section id="confusion">') : page.index('<section id="mistakes">')]
    elements = Elements(section)
    assert not elements.of("table")
    (picture,) = elements.of("img")
    assert picture["src"].startswith("data:image/svg+xml") and picture["alt"].startswith("Confusion matrix of 31 classes")
    assert elements.text.startswith(
        "Confusion of classes 5 \N{MULTIPLICATION SIGN} class 3 predicted as class 29 (42% of all class 3)"
    )
    assert "class 3, class 29 (9 photos of one predicted as another)" in elements.text
    everything(context, names[:30])
    assert "Picture of the confusion matrix" not in drawn(context)


def test_weakest_classes_are_shown_where_there_is_no_room_for_all(context):
    names = tuple(f"class {k:04d}" for k in range(1000))
    everything(context, names)
    with_confusions(context, names, {(800 + k, 0): 1 + k // 20 for k in range(100)})
    page = drawn(context)
    rows = Elements(page[page.index('<section id="each-class">') : page.index('<section id="confusion">')]).text
    assert "class 0899" in rows and "class 0800" in rows and "class 0700" not in rows
    assert rows.index("class 0899") < rows.index("class 0800")
    assert "Recall, precision and F1 of 100 of the 1,000 classes" in rows
    assert "These are the 100 classes with the lowest recall. All 1,000 are in metrics.json, under per_class." in rows


def test_page_says_how_the_new_model_compares_with_the_earlier_one(context):
    everything(context, with_earlier=True)
    page = drawn(context)
    assert "the earlier model has an accuracy of 80.0% and the new one 87.5%: +7.5 points" in top_of(page)
    text = section(page, "earlier")
    assert "Since the earlier model: photos 9 new, 1 relabelled. New classes: daisy. Gone classes: moss." in text
    assert "5 are new to the test set" in text and "2 held-out photos are left out" in text
    assert "judged by today's labels" in text and "a class that is gone" in text
    assert "The earlier model does not know daisy. On the 12 other photos, the earlier model has an accuracy of 90" in text
    assert "New mistakes (1 of the 3)" in text and "now rose" in text
    assert "Corrected mistakes (1)" in text and "earlier moss" in text
    evaluated(context)
    assert "earlier model" not in drawn(context)


def test_page_says_why_no_photo_is_compared_with_the_earlier_model(context):
    everything(context, with_earlier=True)
    path = "stages/evaluate/evaluation.json"
    numbers = context.workdir.read_json(path)
    numbers["earlier"] |= {"all": None, "known_classes": None, "note": "The earlier run exported no model."}
    numbers["flips"] = {"right to wrong": [], "wrong to right": []}
    context.workdir.write_json(path, numbers)
    said = "The new model is not compared with the earlier one."
    assert said in top_of(drawn(context)) and "exported no model" in section(drawn(context), "earlier")


def with_full_galleries(context, rng):
    """Fill each gallery as far as the stages do by default, with pictures that have as many bytes as those of photos."""
    evaluation, explore, audit = (
        context.workdir.read_json(f"stages/{name}.json")
        for name in ("evaluate/evaluation", "explore/explore", "audit/audit")
    )
    heatmaps = context.workdir.read_json("stages/heatmaps/heatmaps.json")
    num_right = HeatmapsConfig().photos - EvaluateConfig().mistakes
    context.workdir.write_json("stages/heatmaps/heatmaps.json", heatmaps | {"right": heatmaps["right"] * num_right})
    evaluation["mistakes"] *= EvaluateConfig().mistakes
    evaluation["flips"] = {kind: photos * (EvaluateConfig().mistakes // 2) for kind, photos in evaluation["flips"].items()}
    explore["duplicates"]["groups"] *= 40
    explore["duplicates"]["label_conflicts"] = explore["duplicates"]["groups"]
    explore["suspicious"]["shown"] *= 40
    audit["late_copies"]["groups"] *= AuditConfig().shown
    audit["label_issues"]["shown"] *= AuditConfig().shown
    audit["outliers"]["shown"] *= AuditConfig().shown
    for name, numbers in (("evaluate/evaluation", evaluation), ("explore/explore", explore), ("audit/audit", audit)):
        context.workdir.write_json(f"stages/{name}.json", numbers)
    for file in context.workdir.path("stages").rglob("*.jpg"):
        width, height = {"group": (2, 1), "samples": (6, 1)}.get(file.stem, (1, 1))
        details = Image.fromarray(rng.integers(0, 256, (30 * height, 30 * width, 3), np.uint8))
        size = (152, 48) if file.stem == "similar" else (112 * width, 112 * height)
        photo = details.resize(size, Image.Resampling.BICUBIC)
        if file.stem in ("mistake", "right_heatmap"):
            photo = with_heatmap(np.asarray(photo), rng.random((5, 5)), 112)
        photo.save(file, quality=75 if file.stem in ("mistake", "right_heatmap") else 85)


def test_page_of_1000_classes_is_below_three_megabytes(context):
    names = tuple(f"a class with a rather long name {k:04d}" for k in range(1000))
    everything(context, names, with_earlier=True)
    rng = np.random.default_rng(0)
    with_confusions(context, names, {(int(i), int(j)): 1 for i, j in rng.integers(0, 1000, (5000, 2)) if i != j})
    with_full_galleries(context, rng)
    assert 1e6 < len(drawn(context)) < 3e6


def test_missing_summary_of_the_data_is_an_error_that_says_which(context):
    with pytest.raises(StorageFailed, match=r"explore\.json"):
        report(ReportConfig(), run=RUN, timings={}, context=context)


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.0%"), (1, "100.0%"), (0.8519, "85.2%"), (0.99999, ">99.9%"), (0.00001, "<0.1%")]
)
def test_nearly_all_is_not_called_all(share, text):
    assert percent(share) == text


def test_differences_have_a_sign_and_times_their_units():
    assert [points(d) for d in (0.0123, -0.014, -0.0001)] == ["+1.2", "\N{MINUS SIGN}1.4", "0.0"]
    assert [seconds(s) for s in (0.42, 31, 141, 9000)] == ["0.4 s", "31 s", "2 min 21 s", "2 h 30 min"]
    assert [rate(r) for r in (0, 0.031, 1.55, 9.99, 1234.5)] == ["0", "0.031", "1.6", "10", "1,234"]


@pytest.mark.parametrize(
    ("on_test", "said"),
    [
        ({}, "As far as 24 photos can tell, its probabilities mean what they say"),
        ({"mean_confidence": 0.96}, "It is too sure of itself: its mean confidence lies outside the 95% interval"),
        ({"mean_confidence": 0.6}, "It is not sure enough: its mean confidence lies outside the 95% interval"),
        ({"ece": 0.21, "mean_confidence": 0.99}, "It is too sure of itself:"),
        ({"ece": 0.3, "mean_confidence": 0.5}, "It is not sure enough:"),
        ({"ece": 0.3, "mean_confidence": 0.9}, "It is too sure in some ranges"),
    ],
)
def test_page_says_which_way_the_confidence_errs(context, on_test, said):
    everything(context)
    evaluated(context, **on_test)
    text = Elements(drawn(context)).text
    assert said in text and "divided by a temperature of 0.80" in text


def with_promise(context, target, num_val=200):
    """Ask for a precision, and return the texts of the page and of its section about thresholds."""
    path = "stages/evaluate/evaluation.json"
    numbers = context.workdir.read_json(path)
    context.workdir.write_json(path, {**numbers, "thresholds": promised(2, target, num_val)})
    page = drawn(context)
    return page, Elements(section(page, "thresholds")).text


def test_page_tells_without_being_asked_how_many_photos_are_answered_at_some_precisions(context):
    everything(context)
    page, text = with_promise(context, None)
    assert "At 95% precision the model answers" not in page
    assert "--set evaluate.target_precision=0.98" in text and "0.99987.5%100.0%" in text
    assert "Not proven. About" in text and "more validation photos would probably prove one." in text  # 99%
    assert "Each class at a threshold of 0.999" in text


def test_results_begin_with_the_precision_that_was_asked_for(context):
    everything(context)
    page, text = with_promise(context, 0.97)
    said = "At 97% precision the model answers 87.5% of photos: those with a probability of at least 0.999."
    assert Elements(section(page, "results")).text.startswith(f"Results {said}") and said in text
    assert "97% asked for" in text


def test_page_says_how_many_photos_are_missing_to_a_proof(context):
    everything(context)
    page, _ = with_promise(context, 0.97, num_val=30)
    said = "No threshold is proven to keep a precision of 97%, so the model has none. About"
    assert said in Elements(section(page, "results")).text


def test_page_says_how_much_rare_classes_are_favoured(context):
    everything(context)
    assert "Rare classes" not in drawn(context)
    path = "stages/evaluate/evaluation.json"
    numbers = context.workdir.read_json(path)
    numbers["offsets"]["head"][:2] = [0.1, 0.1 + np.log(4)]
    numbers["offsets"]["head"][2:] = [0.2] * len(numbers["class_names"][2:])
    context.workdir.write_json(path, numbers)
    said = f"the odds of {numbers['class_names'][1]} are multiplied by 4 against those of the most frequent class"
    assert said in Elements(drawn(context)).text


def test_page_says_why_the_log_loss_is_not_the_lowest(context):
    def text(head, fine_tuned):
        evaluated(context, log_loss=head)
        path = "stages/evaluate/evaluation.json"
        numbers = context.workdir.read_json(path)
        numbers["fine_tuned"]["test"]["log_loss"] = fine_tuned
        context.workdir.write_json(path, numbers)
        return Elements(drawn(context)).text

    everything(context)
    other = (
        "The fine-tuned model has a lower log loss (0.200), but the model is chosen by the log loss on the validation photos"
    )
    worse = "Here the log loss is worse with it"  # Without: 0.4.
    for head, fine_tuned in ((0.3, 0.3), (0.3, 0.2), (0.5, 0.5)):
        page = text(head, fine_tuned)
        assert (other in page, worse in page) == (fine_tuned < head, head > 0.4)


def test_page_says_how_many_held_out_photos_are_not_familiar_and_what_it_costs(context):
    everything(context)
    text = section(drawn(context), "familiarity")
    assert "Of the held-out photos, 4.2% are (1 of 24; 95% interval 1.0% to 20.0%)" in text
    assert "40% more multiply-adds" in text and "familiarity 0.003" in text


def test_mistakes_stand_beside_their_heatmaps_and_the_most_similar_training_photos(context):
    everything(context)
    page = drawn(context)
    mistakes = page[page.index('<section id="mistakes">') : page.index('<section id="heatmaps">')]
    assert mistakes.count("data:image/jpeg") == 3 and 'title="train/rose/near.jpg"' in mistakes
    assert "similar: daisy, rose" in section(page, "mistakes") and "daisy 97%" in section(page, "heatmaps")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("passed", "can be trusted"), ("failed", "are not to be trusted"), ("unclear", "Do not rely on these heatmaps")],
)
def test_page_says_whether_heatmaps_can_be_trusted(context, verdict, said):
    everything(context)
    with_heatmaps(context, verdict=verdict)
    text = section(drawn(context), "heatmaps")
    assert said in text and "falls by 21.0 percentage points" in text and "+8.0 to +24.0; 40 held-out photos" in text


def test_page_warns_if_the_background_decides(context):
    everything(context)
    assert "no sign that the background decides" in section(drawn(context), "heatmaps")
    with_heatmaps(context, decides=True)
    page = drawn(context)
    assert "The background may decide" in section(page, "heatmaps") and "The background may decide" in top_of(page)


def test_page_of_a_run_without_heatmaps_says_how_to_get_them(context):
    everything(context)
    context.workdir.write_json(
        "stages/heatmaps/heatmaps.json", {"mistakes": {}, "right": [], "deletion": None, "background": None}
    )
    assert "heatmaps.photos" in section(drawn(context), "heatmaps") and "similar" not in section(drawn(context), "mistakes")
