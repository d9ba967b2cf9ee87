"""Photos that show the same picture: found by perceptual hashes, confirmed on pixels, and kept in one split."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import scipy.sparse.csgraph

from job.data.examples import USED_FOR, Examples
from job.stores.arrays import ArrayStore

# At 40x40 pixels, copies (resized, recompressed, slightly cropped or brightened) and shots of one burst have a correlation
# above this, and photos that only look alike have not (measured in docs/decisions/0004-near-duplicates.md).
MIN_CORRELATION = 0.98
_THUMBNAIL_SIDE_PX = 40
_PAIRS_AT_ONCE = 256
# If more than `_MASS` photos have the same hash, each of them is compared with `_LINKS_IN_MASS` others only.
_MASS, _LINKS_IN_MASS = 32, 4


def near_pairs(hashes_N: np.ndarray, max_bits: int, order_by_N: np.ndarray) -> np.ndarray:
    """Return pairs of photos whose 64-bit hashes differ in at most `max_bits` bits, sorted, each pair once. Shape (P, 2).

    If more than `_MASS` photos have the same hash (black frames, for example), only some of their pairs are returned, so
    that their number grows with that of the photos and not with its square. These photos are sorted by `order_by_N` (their
    brightness), and each is paired with the next `_LINKS_IN_MASS`. A photo with a near hash is paired with the one at its
    place in that order.
    """
    order_N = np.lexsort((order_by_N, hashes_N))
    unique_U, starts_U = np.unique(hashes_N[order_N], return_index=True)
    photos_U = np.split(order_N, starts_U[1:])  # The photos with each hash, in order.
    pairs = [np.empty((0, 2), np.int64)]
    for photos in photos_U:
        pairs += _pairs_within(photos)
    for one, other in _near_unique(unique_U, max_bits).tolist():
        pairs.append(_pairs_between(photos_U[one], photos_U[other], order_by_N))
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def _pairs_within(photos: np.ndarray) -> list[np.ndarray]:
    """Return the pairs of photos with the same hash: all of them, or those of neighbours if it is a mass."""
    most = len(photos) - 1 if len(photos) <= _MASS else _LINKS_IN_MASS
    return [np.stack([photos[:-step], photos[step:]], axis=1) for step in range(1, most + 1)]


def _pairs_between(few: np.ndarray, many: np.ndarray, order_by_N: np.ndarray) -> np.ndarray:
    """Return the pairs of photos with two near hashes: all of them, or one for each of the few if the others are a mass."""
    if len(few) > len(many):
        few, many = many, few
    if len(many) <= _MASS:
        return np.stack([np.repeat(few, len(many)), np.tile(many, len(few))], axis=1)
    place = np.searchsorted(order_by_N[many], order_by_N[few]).clip(0, len(many) - 1)
    return np.stack([few, many[place]], axis=1)


def _near_unique(unique_U: np.ndarray, max_bits: int) -> np.ndarray:
    """Return the pairs of hashes that differ in at most `max_bits` bits, as positions. Shape (Q, 2), each pair once.

    The 64 bits are cut into `max_bits` + 2 blocks, of which two such hashes have at least two in common. So only hashes with
    two equal blocks are compared, never all with all.
    """
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
            here = here[block_U[here] == block_U[here + step]]  # Sorted, so the rest differs, too.
            if not len(here):
                break
            near = here[np.bitwise_count(sorted_U[here] ^ sorted_U[here + step]) <= max_bits]
            found.append(np.stack([order_U[near], order_U[near + step]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def exact_pairs(digests_N: np.ndarray) -> np.ndarray:
    """Return pairs of each photo and the next one with the same bytes: a chain through all exact copies. Shape (P, 2)."""
    next_of: dict[str, int] = {}
    pairs = []
    for position, digest in enumerate(digests_N.tolist()):
        if digest in next_of:
            pairs.append((next_of[digest], position))
        next_of[digest] = position
    return np.asarray(pairs, np.int64).reshape(-1, 2)


def confirmed(pairs_P2: np.ndarray, images: ArrayStore) -> np.ndarray:
    """Return for each pair of rows of the image store whether both show the same picture. Boolean, shape (P,)."""
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
    """Return for each photo the smallest number of a photo that is linked with it by pairs, directly or not. Shape (N,)."""
    links = scipy.sparse.coo_array((np.ones(len(pairs_P2), bool), tuple(pairs_P2.T)), (num_photos, num_photos))
    _, component_N = scipy.sparse.csgraph.connected_components(links, directed=False)
    _, smallest = np.unique(component_N, return_index=True)
    return np.asarray(smallest[component_N], np.int64)


def folds_of_groups(groups_N: np.ndarray, labels_N: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Return a fold for each photo, shape (N,). Copies get the same fold, and all folds have similar shares of each class.

    scikit-learn's StratifiedGroupKFold takes 0.7 s for 3,700 photos, because it loops over the groups.
    """
    _, first, group_of = np.unique(groups_N, return_index=True, return_inverse=True)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(first))
    order = order[np.argsort(labels_N[first[order]], kind="stable")]
    fold_of_group = np.empty(len(first), np.int64)
    fold_of_group[order] = np.arange(len(first)) % num_folds
    return fold_of_group[group_of]


def conflicts(examples: Examples, groups: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Yield each example of a group with more than one label, and the first one of its group with another label."""
    for members in groups:
        labels = {examples["label"][index]: index for index in reversed(members)}  # The first photo with each label.
        for index in members if len(labels) > 1 else ():
            yield index, min(first for label, first in labels.items() if label != examples["label"][index])


def without_conflicts(examples: Examples) -> Examples:
    """Exclude all photos of a group of copies that has more than one label, because the right label is not known."""
    status, reason = examples["status"].copy(), examples["reason"].copy()
    for index, other in conflicts(examples, examples.grouped("group", examples.of())):
        status[index] = "excluded"
        reason[index] = f"label conflict: the same picture as {examples['path'][other]}"
    return examples.with_columns(status=status, reason=reason)


def without_leaks(examples: Examples) -> Examples:
    """Exclude training copies of val and test photos, val copies of test photos, and exact copies within val and test."""
    strength = {"train": 0, "val": 1, "test": 2}
    status, reason = examples["status"].copy(), examples["reason"].copy()
    for members in examples.grouped("group", examples.of()):
        if len(members) == 1:
            continue
        strengths = [strength[examples["split"][index]] for index in members]
        strongest = max(strengths)
        keeper = members[strengths.index(strongest)]
        counted: dict[str, int] = {}
        for index, own in zip(members, strengths, strict=True):
            if own < strongest:
                path, use = examples["path"][keeper], USED_FOR[examples["split"][keeper]]
                status[index], reason[index] = "excluded", f"a copy of {path}, which is {use}"
            elif own > 0:
                first = counted.setdefault(examples["sha256"][index], index)
                if first != index:
                    status[index] = "excluded"
                    reason[index] = f"the same bytes as {examples['path'][first]}: counted once"
    return examples.with_columns(status=status, reason=reason)


def _thumbnails(images: ArrayStore, rows: np.ndarray) -> np.ndarray:
    """Return small gray versions of images: means of blocks, about 40 x 40 of them. float32, shape (rows, blocks)."""
    pixels = images.rows(rows)
    side = pixels.shape[1]
    block = max(1, side // _THUMBNAIL_SIDE_PX)
    kept = side // block * block
    gray = pixels[:, :kept, :kept].mean(axis=3, dtype=np.float32)
    blocks = gray.reshape(len(rows), kept // block, block, kept // block, block).mean(axis=(2, 4))
    return blocks.reshape(len(rows), -1)
