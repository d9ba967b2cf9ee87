"""The comparison of what a form of the exported model accepts with what was measured."""

from collections.abc import Mapping
from typing import Literal, TypedDict

import numpy as np

# Largest difference of familiarities from the same pixels. It magnifies rounding where percentiles are close.
FAMILIARITY_TOLERANCE = 5e-3


class Rejections(TypedDict):
    """The number of held-out photos with a familiarity below `min_familiarity`, and the accuracy of the answers to them."""

    source: Literal["frozen", "tuned"]
    min_familiarity: float
    num_prototypes: int
    num_validation: int
    num_photos: int
    num_rejected: int
    rejected: float
    rejected_ci95: list[float]
    accuracy_of_rejected: float | None


class ComparedAcceptance(TypedDict):
    """Differences of familiarity, 0 if it is off, and the number of photos that one accepts and the other does not.

    `changed_accepted_clearly` leaves out photos that were measured so near a limit that rounding decides.
    """

    largest_familiarity_difference: float
    mean_familiarity_difference: float
    changed_accepted: int
    changed_accepted_clearly: int


def compared(
    measured: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    probability_tolerance: float,
) -> ComparedAcceptance:
    """Compare the outputs `probabilities` (N, C), `accepted` (N,) and, unless it is off, `familiarity` (N,).

    `limits` has `min_probability` and `min_familiarity`.
    """
    changed_N = found["accepted"] != measured["accepted"]
    probability_N = measured["probabilities"].max(axis=1)
    near_N = np.abs(probability_N - limits["min_probability"]) <= probability_tolerance
    difference_N = np.zeros(1)
    if "familiarity" in measured:
        difference_N = np.abs(found["familiarity"] - measured["familiarity"])
        near_N |= np.abs(measured["familiarity"] - limits["min_familiarity"]) <= FAMILIARITY_TOLERANCE
    return {
        "largest_familiarity_difference": float(difference_N.max()),
        "mean_familiarity_difference": float(difference_N.mean()),
        "changed_accepted": int(changed_N.sum()),
        "changed_accepted_clearly": int((changed_N & ~near_N).sum()),
    }


def faults(found: ComparedAcceptance) -> list[str]:
    """Return the reasons, in words, why a form of the model with exact numbers must not be published."""
    reasons = []
    if not found["largest_familiarity_difference"] <= FAMILIARITY_TOLERANCE:
        reasons.append(f"the familiarity differs by up to {found['largest_familiarity_difference']:.2g}")
    if found["changed_accepted_clearly"]:
        reasons.append(f"{found['changed_accepted_clearly']} photos are accepted that were not, or the other way round")
    return reasons
