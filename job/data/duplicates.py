"""Which photos show the same picture: near in a perceptual hash, then confirmed on pixels; and what becomes of copies."""

import itertools
from collections import defaultdict

import numpy as np

from job.data.examples import Examples
from job.data.stores import ArrayStore

# Copies (resized, recompressed, slightly cropped or brightened) correlate above this at 40x40 pixels, and so do shots of
# one burst; photos that are merely alike do not (docs/decisions/0004-near-duplicates.md has the measurement).
MIN_CORRELATION = 0.98
_THUMBNAIL_SIDE_PX = 40
_PAIRS_AT_ONCE = 256


def near_pairs(hashes_N: np.ndarray, max_bits: int) -> np.ndarray:
    """Pairs of positions whose 64-bit hashes differ in at most `max_bits` bits. Shape (P, 2), sorted, each pair once.

    Two hashes that differ in at most k bits agree in at least one of k + 1 blocks, so only photos that share a block
    are compared, never all with all.
    """
    hashes_N = np.asarray(hashes_N, np.uint64)
    edges = np.linspace(0, 64, max_bits + 2).astype(int)
    found = [np.empty((0, 2), np.int64)]
    for low, high in itertools.pairwise(edges):
        block_N = (hashes_N >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order_N = np.argsort(block_N, kind="stable")
        ends = np.flatnonzero(np.diff(block_N[order_N])) + 1
        for bucket in np.split(order_N, ends):
            for position, photo in enumerate(bucket[:-1]):
                others = bucket[position + 1 :]
                near = others[np.bitwise_count(hashes_N[photo] ^ hashes_N[others]) <= max_bits]
                if len(near):
                    found.append(np.sort(np.stack([np.full(len(near), photo), near], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def confirmed(pairs_P2: np.ndarray, images: ArrayStore) -> np.ndarray:
    """Which pairs of image rows really show the same picture. Boolean, shape (P,)."""
    same_P = np.zeros(len(pairs_P2), bool)
    for start in range(0, len(pairs_P2), _PAIRS_AT_ONCE):
        chunk = pairs_P2[start : start + _PAIRS_AT_ONCE]
        first, second = (_thumbnails(images, chunk[:, side]) for side in (0, 1))
        means = first.mean(1, keepdims=True), second.mean(1, keepdims=True)
        deviations = first.std(1), second.std(1)
        covariance = ((first - means[0]) * (second - means[1])).mean(1)
        alike = covariance >= MIN_CORRELATION * np.maximum(deviations[0] * deviations[1], 1.0)
        flat = (np.maximum(*deviations) < 1.5) & (np.abs(first - second).mean(1) < 2)
        same_P[start : start + len(chunk)] = alike | flat
    return same_P


def group_ids(num_photos: int, pairs_P2: np.ndarray) -> np.ndarray:
    """Connected components: for each photo the smallest number in its component. Shape (N,)."""
    parent = np.arange(num_photos)

    def root(photo: int) -> int:
        while parent[photo] != photo:
            parent[photo] = parent[parent[photo]]
            photo = parent[photo]
        return photo

    for first, second in pairs_P2:
        a, b = root(int(first)), root(int(second))
        parent[max(a, b)] = min(a, b)
    return np.asarray([root(photo) for photo in range(num_photos)], np.int64)


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
        labels = {examples["label"][index] for index in members}
        for index in members if len(labels) > 1 else ():
            other = next(i for i in members if examples["label"][i] != examples["label"][index])
            status[index] = "excluded"
            reason[index] = f"label conflict: the same picture as {examples['path'][other]}"
    return examples.with_columns(status=status, reason=reason)


def without_leaks(examples: Examples) -> Examples:
    """Copies of a held-out photo leave the other splits, and exact copies within val and test are counted once."""
    strength = {"train": 0, "val": 1, "test": 2}
    status, reason = examples["status"].copy(), examples["reason"].copy()
    for members in _members(examples):
        strengths = [strength[examples["split"][index]] for index in members]
        keeper = members[int(np.argmax(strengths))]
        counted: dict[str, int] = {}
        for index, own in zip(members, strengths, strict=True):
            if own < max(strengths):
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
