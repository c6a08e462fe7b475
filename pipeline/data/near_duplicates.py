"""Find reduced, re-encoded, slightly cropped and brightened copies of images, without comparing every pair.

    hashes = [perceptual_hash(image) for image in images]     # while each image is decoded
    found = find_near_duplicates(hashes)                      # found.pairs, found.groups()

A hash is a gray thumbnail of 32 x 32 values with normalized mean and contrast. Codes of 63 bits are made of it, one of the
whole thumbnail and one of each usual crop: whether each of its lowest cosine frequencies is above their median (Zauner 2010,
"Implementation and benchmarking of perceptual image hash functions"). If two codes differ in at most `RADIUS` bits, one of
their four 16-bit parts differs in at most one bit (Norouzi et al. 2012, "Fast search in Hamming space with multi-index
hashing"). Looking up these parts therefore misses nothing within the radius.

Codes of different images can be similar by chance, so every pair is verified: shift, scale, brightness and contrast of one
thumbnail must explain at least `SIMILARITY` of the variance of the other, in a linear regression. Where images share a layout,
such as digits, forms or pictures of a fixed camera, they explain much for many pairs. Random pairs show that, and then only
nearly identical thumbnails count.

Invariants: images without contrast have no hash and no near-duplicates; the result depends only on the hashes and their order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from edgeline.pipeline.data.connected import connected

SIDE = 32
"""Of the thumbnail."""
MIN_SIDE = 24
"""Shorter side below which an image is not compared, in pixels."""
MIN_CONTRAST = 1.5
"""Standard deviation of the thumbnail, in levels of 0 to 255, below which an image is not compared."""
CONTRAST = 40.0
"""Standard deviation of the values in a hash."""
FREQUENCIES = 8
RADIUS = 7
"""Bits in which the codes of two candidates may differ; up to 7 are guaranteed by parts that differ in one bit."""
SIMILARITY = 0.85
"""Share of the variance that a near-duplicate explains."""
STRICT_RADIUS, STRICT_SIMILARITY = 3, 0.985
"""The same for images that share a layout."""
ALIKE = 0.2
"""Images share a layout if half of random pairs explain more than this share of each other's variance."""
ROUNDS = 8
"""Different images with the same code that are distinguished."""

EDGES = {"whole": (0, 1), "middle": (0.025, 0.975), "start": (0, 0.95), "end": (0.05, 1), "inside": (0.05, 0.95)}
VIEWS = (
    ("whole", "whole"),
    ("middle", "middle"),
    ("inside", "inside"),
    *[(down, across) for down in ("start", "end", "whole") for across in ("start", "end", "whole")][:-1],
)
"""Crops of an image that its near-duplicates may show; the first is the image itself."""
SAMPLED = 256
"""Rows and columns of a larger image that are used."""
RANDOM_PAIRS = 5000
BATCH = 512
"""Images or pairs computed at a time, so that the values stay in the processor's cache."""
MAX_COMPARED, MAX_VERIFIED = 10**9, 2 * 10**6
"""Pairs of codes, and of thumbnails, that are compared at most; above, a smaller radius is used."""

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Two indices and a view or a similarity, each of shape (P,)."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """The pairs that were found."""

    pairs: tuple[tuple[int, int, float], ...]
    """Indices of two images, the smaller first, and their similarity, 0 to 1. Of many equal images, each is paired with one."""
    alike: bool
    """Whether the images share a layout, so that only nearly identical ones were compared."""

    def groups(self) -> list[list[int]]:
        """The connected images, each group sorted, the groups by their first image."""
        find = connected((first, second) for first, second, _ in self.pairs)
        members: dict[int, list[int]] = {}
        for index in sorted({index for pair in self.pairs for index in pair[:2]}):
            members.setdefault(find(index), []).append(index)
        return list(members.values())


def perceptual_hash(image: Image.Image) -> bytes | None:
    """Return the hash of an upright RGB image: 1,024 bytes, or None if it has too little contrast or detail to be compared."""
    if min(image.size) < MIN_SIDE:
        return None
    # Of a large image, every so many pixels are enough for averages, and much cheaper than all.
    size = (min(image.width, SAMPLED), min(image.height, SAMPLED))
    sampled = image if image.size == size else image.resize(size, Image.Resampling.NEAREST)
    gray = np.asarray(sampled.convert("L").convert("F").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    contrast = float(gray.std())
    if contrast < MIN_CONTRAST:
        return None
    levels = np.clip((gray - gray.mean()) * (CONTRAST / contrast) + 128.5, 0, 255)
    return bytes(levels.astype(np.uint8))


def find_near_duplicates(hashes: Sequence[bytes | None]) -> NearDuplicates:
    """Find the pairs of images that are near-duplicates.

    Args:
        hashes: of each image, as `perceptual_hash` returns them.
    """
    indices = np.array([index for index, value in enumerate(hashes) if value is not None], np.int64)
    if len(indices) < 2:
        return NearDuplicates(pairs=(), alike=False)
    thumbnails_NSS = np.frombuffer(b"".join(value for value in hashes if value is not None), np.uint8).reshape(-1, SIDE, SIDE)
    codes_VN = np.concatenate([_codes(thumbnails_NSS[at : at + BATCH]) for at in range(0, len(indices), BATCH)], axis=1)
    alike = _are_alike(thumbnails_NSS)
    radius, similarity = (STRICT_RADIUS, STRICT_SIMILARITY) if alike else (RADIUS, SIMILARITY)
    equal, kept = _collapse(thumbnails_NSS, codes_VN[0], similarity)
    first, second, view = _candidates(codes_VN[:, kept], _affordable(codes_VN[0, kept], radius))
    similar = _verify(thumbnails_NSS, (kept[first], kept[second], view), similarity)
    best: dict[tuple[int, int], float] = {}
    for one, other, value in (*zip(*equal, strict=True), *zip(*similar, strict=True)):
        key = (int(indices[min(one, other)]), int(indices[max(one, other)]))
        best[key] = max(best.get(key, 0.0), float(value))
    return NearDuplicates(pairs=tuple((*key, best[key]) for key in sorted(best)), alike=alike)


def _interpolation(start: float, end: float) -> np.ndarray:
    """The matrix that resamples a part of SIDE values to SIDE values."""
    at = np.clip(start * SIDE + (np.arange(SIDE) + 0.5) * (end - start) - 0.5, 0, SIDE - 1)
    left = np.minimum(at.astype(int), SIDE - 2)
    matrix = np.zeros((SIDE, SIDE), np.float32)
    matrix[np.arange(SIDE), left] = left + 1 - at
    matrix[np.arange(SIDE), left + 1] += (at - left).astype(np.float32)
    return matrix


CROPS = {name: _interpolation(*edges) for name, edges in EDGES.items()}
COSINES = np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(FREQUENCIES)[:, None] / SIDE).astype(np.float32)


HALVES = {name: matrix.reshape(SIDE // 2, 2, SIDE).mean(1) for name, matrix in CROPS.items()}


def _half(thumbnails_NSS: np.ndarray, view: int) -> np.ndarray:
    """A view of thumbnails at half their size: float32 (N, SIDE / 2, SIDE / 2)."""
    down, across = VIEWS[view]
    halves_Nhh: np.ndarray = HALVES[down] @ thumbnails_NSS.astype(np.float32) @ HALVES[across].T
    return halves_Nhh


def _codes(thumbnails_NSS: np.ndarray) -> np.ndarray:
    """uint64 (V, N): the code of every view."""
    levels = thumbnails_NSS.astype(np.float32)
    codes = []
    for down, across in VIEWS:
        cosines_NF = ((COSINES @ CROPS[down]) @ levels @ (COSINES @ CROPS[across]).T).reshape(len(levels), -1)[:, 1:]
        bits_NF = cosines_NF > np.median(cosines_NF, axis=1, keepdims=True)
        codes.append(np.packbits(np.pad(bits_NF, ((0, 0), (0, 1))), axis=1).view(np.uint64)[:, 0])
    return np.stack(codes)


def _are_alike(thumbnails_NSS: np.ndarray) -> bool:
    first, second = np.random.default_rng(0).integers(0, len(thumbnails_NSS), (2, RANDOM_PAIRS))
    first, second = first[first != second], second[first != second]
    return bool(np.median(_similarity(_half(thumbnails_NSS[first], 0), _half(thumbnails_NSS[second], 0))) > ALIKE)


def _similarity(from_Phh: np.ndarray, to_Phh: np.ndarray) -> np.ndarray:
    """The share of a picture's variance that another one explains by shift, scale, brightness and contrast."""
    down, across = np.gradient(from_Phh, axis=1), np.gradient(from_Phh, axis=2)
    y = np.linspace(-1, 1, SIDE // 2, dtype=np.float32)[:, None]
    causes = (np.ones_like(from_Phh), from_Phh, down, across, y * down, y.T * across)
    causes_P6F = np.stack(causes, 1).reshape(len(from_Phh), len(causes), -1)
    levels_PF1 = to_Phh.reshape(len(to_Phh), -1, 1)
    turned_PF6 = causes_P6F.transpose(0, 2, 1)
    squares_P66 = causes_P6F @ turned_PF6 + 0.01 * np.eye(len(causes), dtype=np.float32)
    rest_PF1 = levels_PF1 - turned_PF6 @ np.linalg.solve(squares_P66, causes_P6F @ levels_PF1)
    explained_P: np.ndarray = 1 - rest_PF1.var((1, 2)) / np.maximum(levels_PF1.var((1, 2)), 1e-6)
    return explained_P


def _verify(thumbnails_NSS: np.ndarray, pairs: Pairs, similarity: float) -> Pairs:
    """The pairs of at least this similarity; the view is that of the first image of a pair."""
    values = np.zeros(len(pairs[0]), np.float32)
    order = np.argsort(pairs[2], kind="stable")
    for view in range(len(VIEWS)):
        of_view = order[np.searchsorted(pairs[2][order], view) : np.searchsorted(pairs[2][order], view, "right")]
        for at in range(0, len(of_view), BATCH):
            batch = of_view[at : at + BATCH]
            first, second = thumbnails_NSS[pairs[0][batch]], thumbnails_NSS[pairs[1][batch]]
            values[batch] = _similarity(_half(first, view), _half(second, 0))
    passed = values >= similarity
    return pairs[0][passed], pairs[1][passed], values[passed]


def _collapse(thumbnails_NSS: np.ndarray, codes_N: np.ndarray, similarity: float) -> tuple[Pairs, np.ndarray]:
    """Pair each image with the first of its code that it resembles; return these pairs and the images that are left.

    Thousands of equal images therefore make thousands of pairs, not millions.
    """
    left = np.arange(len(codes_N))
    found: list[Pairs] = []
    firsts = []
    for _ in range(ROUNDS):
        codes, start, inverse = np.unique(codes_N[left], return_index=True, return_inverse=True)
        firsts.append(left[start])
        others = np.ones(len(left), bool)
        others[start] = False
        if not others.any():
            break
        candidates = (left[start][inverse[others]], left[others], np.zeros(int(others.sum()), np.int64))
        found.append(_verify(thumbnails_NSS, candidates, similarity))
        left = np.setdiff1d(left[others], found[-1][1])
    merged = tuple(np.concatenate([pairs[part] for pairs in found] or [np.zeros(0, np.int64)]) for part in range(3))
    return (merged[0], merged[1], merged[2]), np.sort(np.concatenate(firsts))


def _affordable(codes_N: np.ndarray, radius: int) -> int:
    """The largest radius up to `radius` with a bounded number of comparisons, estimated from random pairs; 0 for none."""
    if len(codes_N) < 2:
        return 0
    first, second = np.random.default_rng(0).integers(0, len(codes_N), (2, 10**6))
    distances = np.bitwise_count(codes_N[first] ^ codes_N[second])[first != second]
    counts = [np.bincount(codes_N.view(np.uint16)[part::4]) for part in range(4)]
    compared = len(VIEWS) * sum(int((count.astype(np.int64) ** 2).sum()) for count in counts)
    for smaller in (RADIUS, STRICT_RADIUS):
        verified = (distances <= smaller).mean() * len(codes_N) ** 2 / 2
        if smaller <= radius and verified <= MAX_VERIFIED and compared * len(_masks(smaller)) <= MAX_COMPARED:
            return smaller
    return 0


def _masks(radius: int) -> list[int]:
    """Differences of one of the four parts that codes within the radius must have."""
    return [0, *(1 << bit for bit in range(16))] if radius >= 4 else [0] if radius else []


def _candidates(codes_VN: np.ndarray, radius: int) -> Pairs:
    """Pairs whose codes differ in at most `radius` bits, each with the view of the first image that is closest."""
    count = codes_VN.shape[1]
    parts_VN4 = np.ascontiguousarray(codes_VN).view(np.uint16).reshape(len(codes_VN), count, 4)
    found = [np.zeros(0, np.uint64)]
    for part in range(4):
        keys_N = parts_VN4[0, :, part]
        order = np.argsort(keys_N, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(keys_N, minlength=2**16))])
        for view in range(len(codes_VN)):
            for mask in _masks(radius):
                wanted_N = (parts_VN4[view, :, part] ^ np.uint16(mask)).astype(np.int64)
                for query, at in _ranges(starts[wanted_N], starts[wanted_N + 1]):
                    other = order[at]
                    distance = np.bitwise_count(codes_VN[view, query] ^ codes_VN[0, other])
                    near = (distance <= radius) & (query != other)
                    found.append(_packed(query[near], other[near], distance[near], view))
    packed = np.unique(np.concatenate(found))
    pair = packed >> np.uint64(10)
    first_of_pair = np.concatenate([[True], pair[1:] != pair[:-1]]) if len(pair) else np.zeros(0, bool)
    packed = packed[first_of_pair]
    first, second = packed >> np.uint64(37), (packed >> np.uint64(10)) & np.uint64(2**27 - 1)
    return first.astype(np.int64), second.astype(np.int64), (packed & np.uint64(15)).astype(np.int64)


def _packed(first: np.ndarray, second: np.ndarray, distance: np.ndarray, view: int) -> np.ndarray:
    """Sortable: 27 bits for each image, 6 for the distance, 4 for the view."""
    pair = first.astype(np.uint64) << np.uint64(37) | second.astype(np.uint64) << np.uint64(10)
    packed: np.ndarray = pair | distance.astype(np.uint64) << np.uint64(4) | np.uint64(view)
    return packed


def _ranges(start_N: np.ndarray, stop_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every index of every range, with the number of its range, in batches of bounded size."""
    counts = stop_N - start_N
    ends = np.cumsum(counts)
    cuts = np.unique([0, *np.searchsorted(ends, np.arange(2**22, ends[-1], 2**22), "right"), len(counts)])
    for low, high in pairwise(cuts):
        lengths = counts[low:high]
        query = np.repeat(np.arange(low, high), lengths)
        within = np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield query, start_N[query] + within
