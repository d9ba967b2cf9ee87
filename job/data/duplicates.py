"""Which photos show the same picture: near in a perceptual hash, and then confirmed on pixels."""

import itertools

import numpy as np

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


def _thumbnails(images: ArrayStore, rows: np.ndarray) -> np.ndarray:
    """Gray block means of (almost) 40 x 40 pixels, flattened, as float32 of shape (rows, pixels)."""
    pixels = images.rows(rows)
    side = pixels.shape[1]
    block = max(1, side // _THUMBNAIL_SIDE_PX)
    kept = side // block * block
    gray = pixels[:, :kept, :kept].mean(axis=3, dtype=np.float32)
    blocks = gray.reshape(len(rows), kept // block, block, kept // block, block).mean(axis=(2, 4))
    return blocks.reshape(len(rows), -1)
