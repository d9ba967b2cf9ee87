"""The page of a comparison: one HTML file in the style of the report, with the photos that flipped."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import numpy as np

from job.comparing import words
from job.comparing.numbers import Numbers
from job.comparing.photos import SharedPhotos
from job.comparing.runs import IMAGES, FinishedRun, Group
from job.errors import JobError
from job.measure.flips import RIGHT_TO_WRONG, WRONG_TO_RIGHT
from job.reporting.charts import data_uri
from job.reporting.gallery import Gallery
from job.reporting.rendering import rendered
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import CacheConfig
from job.serving.pages import write_page
from job.stores.cache import Cache
from job.stores.exchange import open_store

MOST_PHOTOS = 24  # Of each kind of flip.
_LIMITS = {"open_classes": 10}


class Flip(TypedDict):
    """A photo about which one group is right more often than the other, and what both answer."""

    path: str
    label: str
    first: str
    other: str


def write(out: str, numbers: Numbers, groups: Sequence[Group], photos: SharedPhotos) -> Path:
    """Write the page and return its path. Raises as `check_page` does."""
    flips = [_flips(photos, groups[0], group) for group in groups[1:]]
    digests = list(dict.fromkeys(digest for of_group in flips for kind in of_group.values() for digest in kind))
    html = rendered(
        "comparison.html.j2",
        title=f"{groups[0].name} compared with {', '.join(group.name for group in groups[1:])}",
        numbers=numbers,
        flips=flips,
        pictures=_pictures([run for group in groups for run in group.runs], digests),
        words=words,
        limits=_LIMITS,
        picture=str,
    )
    return write_page(out, html, "--out", "compare")


def _flips(photos: SharedPhotos, first: Group, group: Group) -> dict[str, dict[str, Flip]]:
    """Return the photos that flipped, by kind and SHA-256: those about which the runs agree most, and the surest, first."""
    of_first, of_group = photos.answers(first.runs), photos.answers(group.runs)
    gain_N = of_group.share_right - of_first.share_right
    sure_N = (of_first.confidence_SN.mean(0) + of_group.confidence_SN.mean(0)) / 2
    found: dict[str, dict[str, Flip]] = {}
    for kind, sign in ((RIGHT_TO_WRONG, -1), (WRONG_TO_RIGHT, 1)):
        order = np.lexsort((-sure_N, -gain_N * sign))
        chosen = [k for k in order if gain_N[k] * sign > 0][:MOST_PHOTOS]
        found[kind] = {
            photos.digests_N[k]: {
                "path": photos.paths_N[k],
                "label": photos.labels_N[k],
                "first": _answer(photos, first, k),
                "other": _answer(photos, group, k),
            }
            for k in chosen
        }
    return found


def _answer(photos: SharedPhotos, group: Group, k: int) -> str:
    """Return the most frequent answer of a group to a photo, and how many of its runs give it if not all do."""
    answers = Counter(run.predicted_T[run.row_of[photos.digests_N[k]]] for run in group.runs)
    answer, count = answers.most_common(1)[0]
    return str(answer) if count == len(group.runs) else f"{answer} ({count} of {len(group.runs)})"


def _pictures(runs: Sequence[FinishedRun], digests: Sequence[str]) -> dict[str, str]:
    """Return pictures of these photos as data: URIs, by SHA-256, from the first run that still has them; else none."""
    for run in runs:
        with suppress(JobError, OSError, ValueError, KeyError, TypeError):  # Stores may be gone, or of another version.
            return _drawn(run, digests)
    return {}


def _drawn(run: FinishedRun, digests: Sequence[str]) -> dict[str, str]:
    test = run.examples.of("test")
    row_of = dict(zip(run.examples["sha256"][test], run.examples["row"][test].tolist(), strict=True))
    caching = CacheConfig.model_validate(run.described["config"]["cache"])
    cache = Context(run.workdir, Telemetry(None), caching=caching).cache
    with tempfile.TemporaryDirectory() as folder:
        if cache.objects:
            cache = Cache(Path(folder, "cache"), is_shared=True, objects=cache.objects)
        store = open_store(cache, run.workdir.read_json(IMAGES)["images"], [row_of[digest] for digest in digests])
        gallery, drawn = Gallery(Path(folder), "", store), {}
        for number, digest in enumerate(digests):
            gallery.photo(row_of[digest], f"{number:03d}")
            drawn[digest] = data_uri(Path(folder, f"{number:03d}.jpg"))
        return drawn
