"""Classes that a model confuses.

A confusion matrix has counts (C, C): a row for each label, a column for each predicted class.
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from job.runtime.telemetry import spent_once

_MIN_SHARE = 0.02  # Classes of a group are mistaken for each other at least this often, on average over its pairs.


class Confusion(TypedDict):
    """The number of photos of a class that are predicted as another one, and their share of all photos of the class."""

    label: int
    predicted: int
    count: int
    share: float


@dataclass(frozen=True)
class Group:
    """Classes that are confused with each other: `members`, which begin at place `start` of the order of all classes.

    `num_confused` photos of one of them are predicted as another one.
    """

    start: int
    members: list[int]
    num_confused: int


@dataclass(frozen=True)
class Clusters:
    """An order of the C classes in which those that are confused with each other are neighbours, and groups of them.

    The group with the most confused photos comes first.
    """

    order_C: np.ndarray
    groups: list[Group]


def row_shares(matrix_CC: np.ndarray) -> np.ndarray:
    """Return the share of each count in its row. The row of a class without photos is zero."""
    return matrix_CC / np.maximum(matrix_CC.sum(axis=1, keepdims=True), 1)


def confusions(matrix_CC: np.ndarray) -> list[Confusion]:
    """Return all pairs of classes that are confused: the most photos first, then the largest share."""
    share_CC = row_shares(matrix_CC)
    label_P, predicted_P = np.nonzero(matrix_CC * (1 - np.eye(len(matrix_CC), dtype=matrix_CC.dtype)))
    order_P = np.lexsort((-share_CC[label_P, predicted_P], -matrix_CC[label_P, predicted_P]))
    return [
        {"label": int(i), "predicted": int(j), "count": int(matrix_CC[i, j]), "share": float(share_CC[i, j])}
        for i, j in zip(label_P[order_P], predicted_P[order_P], strict=True)
    ]


def clusters(matrix_CC: np.ndarray) -> Clusters:
    """Order two or more classes by hierarchical clustering with average linkage.

    The similarity of two classes is the mean of two shares: how often each one is predicted as the other.
    """
    with spent_once("imports"):
        from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
        from scipy.spatial.distance import squareform

    share_CC = row_shares(matrix_CC)
    distance_CC = 1 - (share_CC + share_CC.T) / 2
    np.fill_diagonal(distance_CC, 0)
    tree = linkage(squareform(distance_CC, checks=False), "average")
    order_C = leaves_list(tree)
    group_C = fcluster(tree, 1 - _MIN_SHARE, "distance")[order_C]  # Members of a group are neighbours in this order.
    starts = np.flatnonzero(np.diff(group_C, prepend=0))
    groups = []
    for start, stop in zip(starts, [*starts[1:], len(order_C)], strict=True):
        members = order_C[start:stop]
        inside = matrix_CC[np.ix_(members, members)]
        groups.append(Group(int(start), members.tolist(), int(inside.sum() - inside.trace())))
    return Clusters(order_C, sorted((g for g in groups if g.num_confused), key=lambda g: -g.num_confused))
