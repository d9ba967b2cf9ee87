"""Which photos show the same picture: near in a perceptual hash, then confirmed on pixels; and what becomes of copies."""

import itertools
from collections import defaultdict

import numpy as np
import scipy.sparse.csgraph

from job.data.examples import Examples
from job.stores.arrays import ArrayStore

# Copies (resized, recompressed, slightly cropped or brightened) correlate above this at 40x40 pixels, and so do shots of
# one burst; photos that are merely alike do not (docs/decisions/0004-near-duplicates.md has the measurement).
MIN_CORRELATION = 0.98
_THUMBNAIL_SIDE_PX = 40
_PAIRS_AT_ONCE = 256
# More photos than these with one hash are a mass; each is compared with so many of them.
_MASS, _LINKS_IN_MASS = 32, 4


def near_pairs(hashes_N: np.ndarray, max_bits: int, order_by_N: np.ndarray | None = None) -> np.ndarray:
    """Pairs of positions whose 64-bit hashes differ in at most `max_bits` bits. Shape (P, 2), sorted, each pair once.

    Two hashes that differ in at most k bits agree in at least two of k + 2 blocks, so only hashes that share two blocks are
    compared, never all with all.

    Black frames all have one hash, and all their pairs would be too many. Where more than `_MASS` photos share a hash, they
    are laid in the order of `order_by_N` (brightness; their position where it is left out), and each is paired with the
    few that follow; and where two hashes are near and one is of a mass, each photo of the rarer hash is paired with the
    photo of the other that stands next to it in that order. So the pairs grow with the photos and not with their square.
    """
    hashes_N = np.asarray(hashes_N, np.uint64)
    order_by_N = np.arange(len(hashes_N)) if order_by_N is None else np.asarray(order_by_N)
    order_N = np.lexsort((order_by_N, hashes_N))
    unique_U, starts_U, counts_U = np.unique(hashes_N[order_N], return_index=True, return_counts=True)
    found = [_pairs_within(order_N, hashes_N)]
    near_Q2 = _near_unique(unique_U, max_bits)
    in_mass_Q = (counts_U[near_Q2] > _MASS).any(axis=1)
    found.append(_pairs_across(order_N, starts_U, counts_U, near_Q2[~in_mass_Q]))
    for first, second in near_Q2[in_mass_Q]:
        few, many = (order_N[starts_U[u] : starts_U[u] + counts_U[u]] for u in (first, second))
        if len(few) > len(many):
            few, many = many, few
        place = np.searchsorted(order_by_N[many], order_by_N[few]).clip(0, len(many) - 1)
        found.append(np.stack([few, many[place]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _pairs_within(order_N: np.ndarray, hashes_N: np.ndarray) -> np.ndarray:
    """Pairs of photos with the same hash; `order_N` has them side by side."""
    sorted_N = hashes_N[order_N]
    _, group_N, counts = np.unique(sorted_N, return_inverse=True, return_counts=True)
    is_mass_N = counts[group_N] > _MASS
    found = [np.empty((0, 2), np.int64)]
    for step in range(1, min(_MASS, len(order_N))):
        same = sorted_N[:-step] == sorted_N[step:]
        if step > _LINKS_IN_MASS:
            same &= ~is_mass_N[:-step]
        if not same.any():
            break
        found.append(np.stack([order_N[:-step][same], order_N[step:][same]], axis=1))
    return np.concatenate(found)


def _near_unique(unique_U: np.ndarray, max_bits: int) -> np.ndarray:
    """Pairs of different hashes within `max_bits` bits, by position. Shape (Q, 2), each pair once."""
    edges = np.linspace(0, 64, max_bits + 3).astype(int)
    masks = [((1 << int(high)) - 1) ^ ((1 << int(low)) - 1) for low, high in itertools.pairwise(edges)]
    found = [np.empty((0, 2), np.int64)]
    for one, other in itertools.combinations(masks, 2):
        block_U = unique_U & np.uint64(one | other)
        order_U = np.argsort(block_U, kind="stable")
        block_U, sorted_U = block_U[order_U], unique_U[order_U]
        here = np.arange(len(order_U) - 1)
        for step in range(1, len(order_U)):
            here = here[: np.searchsorted(here, len(order_U) - step)]
            here = here[block_U[here] == block_U[here + step]]  # Blocks are sorted: what differs now will differ later.
            if not len(here):
                break
            near = here[np.bitwise_count(sorted_U[here] ^ sorted_U[here + step]) <= max_bits]
            found.append(np.stack([order_U[near], order_U[near + step]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _pairs_across(order_N: np.ndarray, starts_U: np.ndarray, counts_U: np.ndarray, near_Q2: np.ndarray) -> np.ndarray:
    """Every photo of the one hash with every photo of the other."""
    products_Q = counts_U[near_Q2].prod(axis=1)
    pair_P = np.repeat(np.arange(len(near_Q2)), products_Q)
    within_P = np.arange(len(pair_P)) - np.repeat(np.cumsum(products_Q) - products_Q, products_Q)
    first_P, second_P = near_Q2[pair_P].T
    row_P, column_P = np.divmod(within_P, np.maximum(counts_U[second_P], 1))
    return np.stack([order_N[starts_U[first_P] + row_P], order_N[starts_U[second_P] + column_P]], axis=1)


def exact_pairs(digests_N: np.ndarray) -> np.ndarray:
    """Each photo with the next one of the same bytes, so that exact copies are linked in a chain. Shape (P, 2)."""
    next_of: dict[str, int] = {}
    pairs = []
    for position, digest in enumerate(digests_N.tolist()):
        if digest in next_of:
            pairs.append((next_of[digest], position))
        next_of[digest] = position
    return np.asarray(pairs, np.int64).reshape(-1, 2)


def confirmed(pairs_P2: np.ndarray, images: ArrayStore) -> np.ndarray:
    """Which pairs of image rows really show the same picture. Boolean, shape (P,)."""
    same_P = np.zeros(len(pairs_P2), bool)
    for start in range(0, len(pairs_P2), _PAIRS_AT_ONCE):
        chunk = pairs_P2[start : start + _PAIRS_AT_ONCE]
        rows, place = np.unique(chunk, return_inverse=True)
        thumbnails = _thumbnails(images, rows)
        first, second = thumbnails[place.reshape(-1, 2).T]
        means = first.mean(1, keepdims=True), second.mean(1, keepdims=True)
        deviations = first.std(1), second.std(1)
        covariance = ((first - means[0]) * (second - means[1])).mean(1)
        alike = covariance >= MIN_CORRELATION * np.maximum(deviations[0] * deviations[1], 1.0)
        flat = (np.maximum(*deviations) < 1.5) & (np.abs(first - second).mean(1) < 2)
        same_P[start : start + len(chunk)] = alike | flat
    return same_P


def group_ids(num_photos: int, pairs_P2: np.ndarray) -> np.ndarray:
    """Connected components: for each photo the smallest number in its component. Shape (N,)."""
    links = scipy.sparse.coo_array((np.ones(len(pairs_P2), bool), tuple(pairs_P2.T)), (num_photos, num_photos))
    _, component_N = scipy.sparse.csgraph.connected_components(links, directed=False)
    _, smallest = np.unique(component_N, return_index=True)
    return np.asarray(smallest[component_N], np.int64)


def folds_of_groups(groups_N: np.ndarray, labels_N: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """A fold for each photo, shape (N,): copies stay together, and every fold has about the same share of each class.

    scikit-learn's StratifiedGroupKFold looks at one group after the other: 0.7 s for 3,700 photos.
    """
    _, first, group_of = np.unique(groups_N, return_index=True, return_inverse=True)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(first))
    order = order[np.argsort(labels_N[first[order]], kind="stable")]
    fold_of_group = np.empty(len(first), np.int64)
    fold_of_group[order] = np.arange(len(first)) % num_folds
    return fold_of_group[group_of]


def without_conflicts(examples: Examples) -> Examples:
    """Groups of copies that have more than one label are excluded: nobody can say which label is right."""
    status, reason = examples["status"].copy(), examples["reason"].copy()
    for members in _members(examples):
        labels = {examples["label"][index]: index for index in reversed(members)}  # The first photo with each label.
        for index in members if len(labels) > 1 else ():
            other = min(first for label, first in labels.items() if label != examples["label"][index])
            status[index] = "excluded"
            reason[index] = f"label conflict: the same picture as {examples['path'][other]}"
    return examples.with_columns(status=status, reason=reason)


def without_leaks(examples: Examples) -> Examples:
    """Copies of a held-out photo leave the other splits, and exact copies within val and test are counted once."""
    strength = {"train": 0, "val": 1, "test": 2}
    status, reason = examples["status"].copy(), examples["reason"].copy()
    for members in _members(examples):
        strengths = [strength[examples["split"][index]] for index in members]
        strongest = max(strengths)
        keeper = members[strengths.index(strongest)]
        counted: dict[str, int] = {}
        for index, own in zip(members, strengths, strict=True):
            if own < strongest:
                status[index], reason[index] = "excluded", f"a copy of {examples['path'][keeper]}, which is held out"
            elif own > 0:
                first = counted.setdefault(examples["sha256"][index], index)
                if first != index:
                    status[index] = "excluded"
                    reason[index] = f"the same bytes as {examples['path'][first]}: counted once"
    return examples.with_columns(status=status, reason=reason)


def _members(examples: Examples) -> list[list[int]]:
    """The examples of each group with more than one."""
    members: dict[int, list[int]] = defaultdict(list)
    for index in examples.of():
        members[int(examples["group"][index])].append(int(index))
    return [indices for indices in members.values() if len(indices) > 1]


def _thumbnails(images: ArrayStore, rows: np.ndarray) -> np.ndarray:
    """Gray block means of (almost) 40 x 40 pixels, flattened, as float32 of shape (rows, pixels)."""
    pixels = images.rows(rows)
    side = pixels.shape[1]
    block = max(1, side // _THUMBNAIL_SIDE_PX)
    kept = side // block * block
    gray = pixels[:, :kept, :kept].mean(axis=3, dtype=np.float32)
    blocks = gray.reshape(len(rows), kept // block, block, kept // block, block).mean(axis=(2, 4))
    return blocks.reshape(len(rows), -1)
