"""The photos on which all candidates of `rank` are compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from job.data.duplicates import group_ids
from job.data.examples import Examples
from job.errors import DataUnusable


@dataclass(frozen=True)
class Photos:
    """The N photos that all candidates are compared on: those of some splits that each candidate can use.

    Photos that are copies at any of the image sizes have the same number in `groups_N`. `num_left_out` photos are not among
    the N, because they are usable at some image sizes only. `meaning` says what accuracy on them means.
    """

    paths: tuple[str, ...]
    labels_N: np.ndarray
    groups_N: np.ndarray
    class_names: tuple[str, ...]
    num_left_out: int
    meaning: str


def shared_photos(tables: Sequence[Examples], meaning: str, *splits: str) -> Photos:
    """Return the photos of these splits that are in every table, by path.

    The tables differ because photos can be copies at one image size and not at another, and are excluded then.

    Raises:
        DataUnusable: if fewer than two classes have photos in all tables.
    """
    indices = [table.of(*splits) for table in tables]
    places = [
        dict(zip(table["path"][of].tolist(), of.tolist(), strict=True)) for table, of in zip(tables, indices, strict=True)
    ]
    paths = tuple(sorted(set.intersection(*(set(place) for place in places))))
    rows_N = [np.asarray([place[path] for path in paths], np.int64) for place in places]
    labels = tables[0]["label"][rows_N[0]].tolist()
    class_names = tuple(sorted(set(labels)))
    if len(class_names) < 2:
        raise DataUnusable("No two classes have photos that every candidate can use: compare fewer image sizes at once.")
    edges = [_to_first_of_group(table.units[rows]) for table, rows in zip(tables, rows_N, strict=True)]
    number = {name: k for k, name in enumerate(class_names)}
    return Photos(
        paths,
        np.asarray([number[label] for label in labels], np.int64),
        group_ids(len(paths), np.concatenate(edges)),
        class_names,
        len(set.union(*(set(place) for place in places))) - len(paths),
        meaning,
    )


def _to_first_of_group(groups_N: np.ndarray) -> np.ndarray:
    """Return a pair for each photo: its number and that of the first photo of its group. Shape (N, 2)."""
    _, first, group_N = np.unique(groups_N, return_index=True, return_inverse=True)
    return np.stack([np.arange(len(groups_N)), first[group_N]], axis=1)
