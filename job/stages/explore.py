"""explore: what is in the data, as numbers in JSON and as pictures that outlive the cache."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from job import figures
from job.config import ExploreConfig
from job.context import Context
from job.data.examples import Examples
from job.data.stores import ArrayStore
from job.storage.workdir import Workdir

FOLDER = "stages/explore"
SUMMARY = "stages/explore/explore.json"

_PATHS_SHOWN = 20
_GROUPS_SHOWN = 40
_TILE_PX = 112
# A picture with less contrast is one flat colour to the eye; shares of full brightness.
_CONSTANT_CONTRAST, _DARK, _BRIGHT = 0.012, 0.06, 0.94


@dataclass(frozen=True)
class Exploration:
    """The numbers, as in stages/explore/explore.json; pictures are named in it relative to the output directory."""

    numbers: dict[str, Any]

    @classmethod
    def load(cls, workdir: Workdir) -> Self:
        return cls(workdir.read_json(SUMMARY))


def explore(config: ExploreConfig, *, examples: Examples, images: ArrayStore, context: Context) -> Exploration:
    folder = context.workdir.fresh_folder(FOLDER)
    numbers = {
        "num_files": len(examples),
        "statuses": dict(Counter(examples["status"].tolist())),
        "splits": {name: len(examples.of(name)) for name in ("train", "val", "test")},
        "splits_given": sorted({s for s in examples["given_split"].tolist() if s}),
        "faults": _by_reason(examples, "quarantined"),
        "conversions": _by_reason(examples, "converted"),
        "ignored": _by_reason(examples, "ignored"),
        "classes": _classes(examples),
        "sizes": _sizes(examples),
        "light": _light(examples),
        "duplicates": _duplicates(examples, images, folder),
        "suspicious": _suspicious(examples, images, folder),
        "class_pictures": _class_pictures(config, examples, images, folder, context),
        "figures": _figures(examples, folder),
    }
    context.workdir.write_json(SUMMARY, numbers)
    return Exploration(numbers)


def _by_reason(examples: Examples, status: str) -> list[dict[str, Any]]:
    paths = defaultdict(list)
    for index in np.flatnonzero(examples["status"] == status):
        paths[examples["reason"][index]].append(examples["path"][index])
    ordered = sorted(paths.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"reason": reason, "count": len(found), "paths": found[:_PATHS_SHOWN]} for reason, found in ordered]


def _classes(examples: Examples) -> list[dict[str, Any]]:
    splits = {name: Counter(examples["label"][examples.of(name)].tolist()) for name in ("train", "val", "test")}
    others = {s: Counter(examples["label"][examples["status"] == s].tolist()) for s in ("excluded", "quarantined")}
    return [
        {"class": name, **{s: c[name] for s, c in splits.items()}, **{s: c[name] for s, c in others.items()}}
        for name in examples.class_names
    ]


def _sizes(examples: Examples) -> dict[str, Any]:
    usable = examples.of()
    width, height = examples["width"][usable], examples["height"][usable]
    columns = {"width": width, "height": height, "aspect": width / height, "num_bytes": examples["num_bytes"][usable]}
    return {
        **{name: _five_numbers(values) for name, values in columns.items()},
        "formats": dict(Counter(examples["format"][usable].tolist()).most_common()),
        "modes": dict(Counter(examples["mode"][usable].tolist()).most_common()),
        "with_exif": int(examples["has_exif"][usable].sum()),
    }


def _light(examples: Examples) -> dict[str, Any]:
    labels = examples.labels
    usable = examples.of()
    return {
        name: {
            **_five_numbers(examples[name][usable]),
            "by_class": [
                _five_numbers(examples[name][usable[labels[usable] == k]]) for k in range(len(examples.class_names))
            ],
        }
        for name in ("brightness", "contrast")
    }


def _five_numbers(values: np.ndarray) -> dict[str, float]:
    names = ("min", "p25", "median", "p75", "max")
    return {n: round(float(v), 4) for n, v in zip(names, np.percentile(values, [0, 25, 50, 75, 100]), strict=True)}


def _duplicates(examples: Examples, images: ArrayStore, folder: Path) -> dict[str, Any]:
    """Groups of copies, those that cross splits or labels first; each with a strip of its photos."""
    members = defaultdict(list)
    for index in np.flatnonzero((examples["group"] >= 0) & (examples["row"] >= 0)):
        members[int(examples["group"][index])].append(int(index))
    groups = [_group(examples, indices) for indices in members.values() if len(indices) > 1]
    groups.sort(key=lambda g: (not g["crosses_splits"], not g["crosses_labels"], -len(g["photos"])))
    for number, group in enumerate(groups[:_GROUPS_SHOWN]):
        rows = [examples["row"][i] for i in group.pop("indices")[:8]]
        group["strip"] = f"{FOLDER}/group-{number:03d}.jpg"
        figures.contact_sheet(images.rows(rows), 8, _TILE_PX).save(folder / f"group-{number:03d}.jpg", quality=85)
    conflicts = [i for i in np.flatnonzero(examples["status"] == "quarantined") if "label conflict" in examples["reason"][i]]
    return {
        "num_groups": len(groups),
        "num_photos": sum(len(g["photos"]) for g in groups),
        "num_crossing_splits": sum(g["crosses_splits"] for g in groups),
        "num_crossing_labels": sum(g["crosses_labels"] for g in groups),
        "num_label_conflicts": len(conflicts),
        "groups": groups[:_GROUPS_SHOWN],
    }


def _group(examples: Examples, indices: list[int]) -> dict[str, Any]:
    photos = [{n: examples[n][i] for n in ("path", "label", "given_split", "split", "status", "reason")} for i in indices]
    return {
        "photos": photos,
        "exact": len({examples["sha256"][i] for i in indices}) == 1,
        "crosses_splits": len({p["split"] for p in photos}) > 1,
        "crosses_labels": len({p["label"] for p in photos}) > 1,
        "indices": indices,
    }


def _suspicious(examples: Examples, images: ArrayStore, folder: Path) -> list[dict[str, Any]]:
    brightness, contrast = examples["brightness"], examples["contrast"]
    found = []
    for index in examples.of():
        if contrast[index] < _CONSTANT_CONTRAST:
            found.append((index, "one flat colour"))
        elif brightness[index] < _DARK:
            found.append((index, "almost black"))
        elif brightness[index] > _BRIGHT:
            found.append((index, "almost white"))
    shown = []
    for number, (index, why) in enumerate(found[:_GROUPS_SHOWN]):
        name = f"suspicious-{number:03d}.jpg"
        figures.contact_sheet(images.rows([examples["row"][index]]), 1, _TILE_PX).save(folder / name, quality=85)
        shown.append({"path": examples["path"][index], "why": why, "thumbnail": f"{FOLDER}/{name}"})
    return shown


def _class_pictures(
    config: ExploreConfig, examples: Examples, images: ArrayStore, folder: Path, context: Context
) -> list[dict[str, Any]]:
    """The mean picture and a sheet of samples of each class, samples drawn by a hash of their content."""
    usable = examples.of()
    label_of_row = np.full(len(images), -1)
    label_of_row[examples["row"][usable]] = examples.labels[usable]
    sums = np.zeros((len(examples.class_names), *images.row_shape))
    for shard in range(len(images.shards)):
        context.stop.check()
        rows = np.asarray(images.shard_range(shard))
        for label in np.unique(label_of_row[rows]):
            if label >= 0:
                sums[label] += images.rows(rows[label_of_row[rows] == label]).sum(axis=0, dtype=np.uint32)
    pictures = []
    for label, name in enumerate(examples.class_names):
        members = usable[examples.labels[usable] == label]
        mean = (sums[label] / len(members)).round().astype(np.uint8)
        Image.fromarray(mean).resize((_TILE_PX, _TILE_PX)).save(folder / f"mean-{label:03d}.jpg", quality=90)
        chosen = members[np.argsort(examples.keys[members], kind="stable")][: config.samples_per_class]
        sheet = figures.contact_sheet(images.rows(examples["row"][chosen]), 5, _TILE_PX)
        sheet.save(folder / f"samples-{label:03d}.jpg", quality=85)
        pictures.append(
            {
                "class": name,
                "num_examples": len(members),
                "mean": f"{FOLDER}/mean-{label:03d}.jpg",
                "samples": f"{FOLDER}/samples-{label:03d}.jpg",
            }
        )
    return pictures


def _figures(examples: Examples, folder: Path) -> dict[str, str]:
    usable = examples.of()
    figure, axes = figures.new_figure(9.0, 2.9, columns=3)
    axes[0].scatter(
        examples["width"][usable], examples["height"][usable], s=9, alpha=0.25, color=figures.SERIES[0], linewidths=0
    )
    axes[0].set(title="Size of the photos", xlabel="width, px", ylabel="height, px")
    for ax, name, colour in ((axes[1], "brightness", figures.SERIES[1]), (axes[2], "contrast", figures.SERIES[2])):
        ax.hist(examples[name][usable], bins=30, color=colour)
        ax.set(title=name.capitalize(), xlabel="share of full scale", ylabel="photos")
    if len(usable) > 1000:  # Thousands of marks would make the page heavy.
        axes[0].collections[0].set_rasterized(True)
    figures.save_svg(figure, folder / "sizes.svg")
    return {"sizes": f"{FOLDER}/sizes.svg"}
