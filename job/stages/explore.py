"""explore: describe the data in JSON and in pictures, which remain when the cache is deleted."""

import re
from collections import Counter, defaultdict
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from PIL import Image

from job.data.examples import Examples, Status
from job.measure.shortcuts import shortcuts
from job.reporting.data_summaries import ClassPictures, Duplicates, Explored, Groups
from job.reporting.figures import SERIES, Axis, Chart
from job.reporting.gallery import TILE_PX, Gallery, crossings
from job.runtime.context import Context
from job.sections import ExploreConfig
from job.stores.arrays import ArrayStore

PICTURES = "stages/explore/pictures"
SUMMARY = "stages/explore/explore.json"

_PATHS_SHOWN = 20
_CHART_PX = (288, 260)  # Three of them fit side by side on the page.
# The parts of a reason that differ from file to file: names of other files, quoted text, numbers.
_PARTICULAR = re.compile(r"(?<= as ).+|(?<=a copy of ).+(?=, which)|'[^']*'|\d+(?:[,.x]\d+)*", re.DOTALL)
_GROUPS_SHOWN = 40
_MANY_CLASSES = 30  # With more classes, example photos are smaller, so that more classes fit on the page.
_SMALL_TILE_PX = 64
_PHOTOS_AT_ONCE = 256
# Shares of full scale. A photo with less contrast looks like one flat colour.
_CONSTANT_CONTRAST, _DARK, _BRIGHT = 0.012, 0.06, 0.94


def explore(
    config: ExploreConfig, *, examples: Examples, images: ArrayStore, source_notes: tuple[str, ...], context: Context
) -> None:
    """Describe the data. `source_notes` are remarks about the source, for the report page.

    Names of pictures in explore.json are relative to the output directory.
    """
    with Gallery.drawing(context.workdir, PICTURES, images) as gallery:
        numbers: Explored = {
            "num_files": len(examples),
            "statuses": examples.statuses(),
            "conflicts": examples.conflicts(),
            "splits": examples.splits(),
            "splits_given": _splits_given(examples),
            "source_notes": list(source_notes),
            "groups": _groups(examples),
            "faults": _by_reason(examples, "quarantined"),
            "conversions": _by_reason(examples, "converted"),
            "ignored": _by_reason(examples, "ignored"),
            "remarks": _by_reason(examples, "used"),
            "classes": examples.by_class(),
            "sizes": _sizes(examples),
            "light": _light(examples),
            "shortcuts": shortcuts(examples, context.seed),
            "duplicates": _duplicates(examples, gallery),
            "suspicious": _suspicious(examples, gallery),
            "class_pictures": [],
            "figures": {},
        }
        with context.telemetry.spent("drawing"):
            numbers["class_pictures"] = _class_pictures(config, examples, images, gallery, context)
            numbers["figures"] = _figures(examples, gallery)
    context.workdir.write_json(SUMMARY, numbers)


def _by_reason(examples: Examples, status: Status) -> list[dict[str, Any]]:
    """Return the reasons for a status. Reasons that differ only in names, quoted text or numbers are merged."""
    chosen = np.flatnonzero((examples["status"] == status) & (examples["reason"] != ""))
    kinds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in chosen:
        kinds[tuple(_PARTICULAR.split(examples["reason"][index]))].append(int(index))
    found = [_reason(kind, examples, indices) for kind, indices in kinds.items()]
    return sorted(found, key=lambda r: (-r["count"], r["reason"]))


def _reason(kind: tuple[str, ...], examples: Examples, indices: list[int]) -> dict[str, Any]:
    particulars = [_PARTICULAR.findall(examples["reason"][index]) for index in indices]
    same = [len(set(values)) == 1 for values in zip(*particulars, strict=True)]
    words = [first if alike else "\N{HORIZONTAL ELLIPSIS}" for first, alike in zip(particulars[0], same, strict=True)]
    files = [
        {"path": examples["path"][index], "own": ", ".join(v for v, alike in zip(values, same, strict=True) if not alike)}
        for index, values in zip(indices[:_PATHS_SHOWN], particulars, strict=False)
    ]
    text = "".join(chain.from_iterable(zip_longest(kind, words, fillvalue="")))
    return {"reason": text, "count": len(indices), "files": files}


def _splits_given(examples: Examples) -> list[str]:
    """Return the splits of the user that the job has kept. Without a train split, it keeps none."""
    decoded = np.isin(examples["status"], ("used", "converted", "excluded"))
    given = [split for split in ("train", "val", "test") if split in examples["given_split"][decoded]]
    return given if "train" in given else []


def _sizes(examples: Examples) -> dict[str, object]:
    usable = examples.of()
    width, height = examples["width"][usable], examples["height"][usable]
    columns = {"width": width, "height": height, "aspect": width / height, "num_bytes": examples["num_bytes"][usable]}
    return {
        **{name: _five_numbers(values) for name, values in columns.items()},
        "formats": dict(Counter(examples["format"][usable].tolist()).most_common()),
        "modes": dict(Counter(examples["mode"][usable].tolist()).most_common()),
        "with_exif": int(examples["has_exif"][usable].sum()),
    }


def _light(examples: Examples) -> dict[str, object]:
    usable = examples.of()
    of_classes = [usable[examples.labels[usable] == k] for k in range(len(examples.class_names))]
    names = ("brightness", "contrast")
    return {name: {"by_class": [_five_numbers(examples[name][of]) for of in of_classes]} for name in names}


def _five_numbers(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):  # A class without a usable photo.
        return None
    names = ("min", "p25", "median", "p75", "max")
    return {n: round(float(v), 4) for n, v in zip(names, np.percentile(values, [0, 25, 50, 75, 100]), strict=True)}


def _duplicates(examples: Examples, gallery: Gallery) -> Duplicates:
    """Return groups of copies, first those that cross splits or labels, and files with the same bytes under two labels."""
    decoded = examples["row"] >= 0
    copies = examples.grouped("group", np.flatnonzero((examples["group"] >= 0) & decoded))
    # Other files are quarantined before they are decoded.
    conflicts = examples.grouped("sha256", np.flatnonzero((examples["status"] == "quarantined") & decoded))
    groups = [(indices, crossings(examples, indices)) for indices in copies if len(indices) > 1]
    groups.sort(key=lambda g: (not g[1]["crosses_splits"], not g[1]["crosses_labels"], -len(g[0])))
    shown = [gallery.copies(examples, g, f"group-{k:03d}") for k, (g, _) in enumerate(groups[:_GROUPS_SHOWN])]
    torn = [gallery.copies(examples, g, f"conflict-{k:03d}") for k, g in enumerate(conflicts[:_GROUPS_SHOWN])]
    return {
        "num_groups": len(groups),
        "num_photos": sum(len(indices) for indices, _ in groups),
        "num_crossing_splits": sum(c["crosses_splits"] and not c["crosses_labels"] for _, c in groups),
        "num_crossing_labels": sum(c["crosses_labels"] for _, c in groups),
        "groups": shown,
        "num_label_conflicts": sum(map(len, conflicts)),
        "label_conflicts": torn,
    }


def _groups(examples: Examples) -> Groups | None:
    """Return how many groups the user gives, and how many of them are in more than one split; None without any."""
    if not examples.has_given_groups:
        return None
    splits = defaultdict(set)
    for index in examples.of():
        if group := examples["given_group"][index]:
            splits[group].add(examples["split"][index])
    return {"num_groups": len(splits), "num_crossing_splits": sum(len(found) > 1 for found in splits.values())}


def _suspicious(examples: Examples, gallery: Gallery) -> dict[str, object]:
    indices = examples.of()
    brightness, contrast = examples["brightness"][indices], examples["contrast"][indices]
    flat = contrast < _CONSTANT_CONTRAST
    kinds = {"one flat colour": flat, "almost black": ~flat & (brightness < _DARK)}
    kinds["almost white"] = ~flat & (brightness > _BRIGHT)
    found = [(int(index), why) for why, chosen in kinds.items() for index in indices[chosen]]
    shown = [
        {
            "path": examples["path"][index],
            "label": examples["label"][index],
            "why": why,
            "thumbnail": gallery.photo(examples["row"][index], f"suspicious-{number:03d}"),
        }
        for number, (index, why) in enumerate(found[:_GROUPS_SHOWN])
    ]
    return {"num_photos": len(found), "shown": shown}


def _class_pictures(
    config: ExploreConfig, examples: Examples, images: ArrayStore, gallery: Gallery, context: Context
) -> list[ClassPictures]:
    """Draw the mean picture and a sheet of samples of each class. Samples are chosen by a hash of their content.

    Pictures are smaller if there are many classes. A class with a single photo has no mean picture.
    """
    columns, side_px = (5, TILE_PX) if len(examples.class_names) <= _MANY_CLASSES else (10, _SMALL_TILE_PX)
    usable = examples.of()
    label_of_row = np.full(len(images), -1)
    label_of_row[examples["row"][usable]] = examples.labels[usable]
    sums = np.zeros((len(examples.class_names), *images.row_shape))
    labelled = np.flatnonzero(label_of_row >= 0)
    in_order = labelled[images.order_on_disk(labelled)]
    for start in range(0, len(in_order), _PHOTOS_AT_ONCE):
        context.stop.check()
        rows = in_order[start : start + _PHOTOS_AT_ONCE]
        for label in np.unique(label_of_row[rows]):
            sums[label] += images.rows(rows[label_of_row[rows] == label]).sum(axis=0, dtype=np.uint32)
    pictures: list[ClassPictures] = []
    for label, name in enumerate(examples.class_names):
        members = usable[examples.labels[usable] == label]
        if not len(members):
            continue
        mean = Image.fromarray((sums[label] / len(members)).round().astype(np.uint8)).resize((side_px, side_px))
        add_mean = partial(gallery.add, f"mean-{label:03d}.jpg", partial(mean.save, format="JPEG", quality=90))
        chosen = members[np.argsort(examples.keys[members], kind="stable")][: config.samples_per_class]
        pictures.append(
            {
                "class": name,
                "mean": add_mean() if len(members) > 1 else None,
                "samples": gallery.sheet(examples["row"][chosen], f"samples-{label:03d}", columns, side_px),
            }
        )
    return pictures


def _figures(examples: Examples, gallery: Gallery) -> dict[str, str]:
    usable = examples.of()
    width, height = examples["width"][usable], examples["height"][usable]
    sizes = Chart(_CHART_PX, Axis.linear(width), Axis.linear(height), "Size of the photos", ("width, px", "height, px"))
    sizes.cloud(width, height, SERIES[0])
    drawn = {"sizes": sizes}
    for name, colour in (("brightness", SERIES[1]), ("contrast", SERIES[2])):
        counts, edges = np.histogram(examples[name][usable], bins=30)
        x, y = Axis.linear(edges), Axis.linear(counts, limits=(0, 1.05 * max(1, counts.max())), whole=True)
        drawn[name] = Chart(_CHART_PX, x, y, name.capitalize(), ("share of full scale", "photos"))
        drawn[name].bars(edges, counts, colour)
    return {name: gallery.add(f"{name}.svg", chart.save) for name, chart in drawn.items()}
