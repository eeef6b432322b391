"""Near-duplicates: the same picture under two names, rotated, mirrored, dimmed, rescaled or recompressed.

There are two steps. A perceptual hash of 64 bits finds candidate pairs, among 100,000 images in seconds; then the
correlation of two thumbnails decides. Both ignore the mean, the contrast and all smooth structure of the picture: dim
images are not alike just because they are dark, nor empty fields because of the same illumination, nor eyes because of
the camera's round aperture, nor cells because each is centred in its crop.

The hash is the usual one (32x32 pixels, DCT, the 8x8 lowest frequencies above their median), as in the library
ImageHash. We do not use that library: it takes 8-bit pictures, in which a dim 16-bit image is black, and would add
PyWavelets for what are three lines with OpenCV. And here the hashes of the seven other flips and rotations come
from the same DCT: mirroring changes the sign of its odd coefficients, and rotation swaps its axes.
"""

import hashlib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipelines.dataset.splits import Joined

SIDE = 64  # px of the small picture
BLUR = 3  # px: smoother structure is shading
HASH_SIDE, FREQUENCIES = 32, 8
BANDS, BAND_BITS = 4, 16
# A picture whose thumbnail varies by less than this share of its brightness is blank.
BLANK = 1e-5
# Candidates at once. The first block lists all pairs; later ones only pairs that are not joined yet.
BLOCK = 2**17
QUERIES = 512
# Fewer with an equal hash are compared pairwise; more are a series.
SMALL_CLASS = 100


class Look(NamedTuple):
    """The features by which an image is compared."""

    hashes: np.ndarray  # (8,) uint64: of the image and of its flips and rotations, in the order of `turned`
    small: np.ndarray  # (SIDE * SIDE,) int8, zero mean, the largest value 127; all zero for a blank picture
    digest: bytes  # of the pixels; empty for a blank picture, which matches no other


def turned(picture: np.ndarray) -> list[np.ndarray]:
    """The eight flips and quarter turns of (H, W), itself first."""
    return [np.rot90(one, turns) for one in (picture, picture[:, ::-1]) for turns in range(4)]


def look_at(image: np.ndarray) -> Look:
    """The look of a decoded image (H, W, 3) uint8 or uint16."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)  # (H, W); means of 8 bits would lose dim images
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    brightness = abs(float(small.mean()))
    small = small - cv2.GaussianBlur(small, (0, 0), BLUR, borderType=cv2.BORDER_REFLECT)
    if small.std() <= BLANK * brightness:
        return Look(np.zeros(8, np.uint64), np.zeros(SIDE**2, np.int8), b"")
    small -= small.mean()
    small = np.rint(small * (127 / np.abs(small).max())).astype(np.int8)
    digest = hashlib.sha256(f"{image.shape} {image.dtype}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return Look(hash_turned(small), small.ravel(), digest.digest()[:16])


def hash_turned(small: np.ndarray) -> np.ndarray:
    """(8,) uint64: the perceptual hashes of a thumbnail (H, W) and of its flips and rotations."""
    small = cv2.resize(small.astype(np.float32), (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES]
    low[0] *= 2**0.5  # OpenCV's DCT is orthonormal, ImageHash's is not
    low[:, 0] *= 2**0.5
    sign = (-1.0) ** np.arange(FREQUENCIES)
    # One np.rot90: swap the axes, then mirror vertically.
    spectra = []
    for one in (low, low * sign):
        for _ in range(4):
            spectra.append(one)
            one = one.T * sign[:, None]
    above = np.stack([one > np.median(one) for one in spectra]).reshape(8, -1)
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64).ravel()


class Looks:
    """The looks of n samples: `looks[index] = look`. Nearly all of the 4 KB of each is in a file in `folder`.

    Raises:
        OSError: the disk is full.
    """

    def __init__(self, n: int, folder: Path):
        self.hashes = np.zeros((n, 8), np.uint64)
        self.digests = [b""] * n
        path = folder / "looks"
        with path.open("wb") as file:
            for _ in range(n):  # on a full disk, a mapped file with holes would kill the process
                file.write(bytes(SIDE**2))
        self.small = np.memmap(path, np.int8, "r+", shape=(n, SIDE**2)) if n else np.zeros((0, SIDE**2), np.int8)
        path.unlink()  # the map keeps it

    def __setitem__(self, index: int, look: Look) -> None:
        self.hashes[index], self.small[index], self.digests[index] = look

    def same_pixels(self) -> list[tuple[int, int]]:
        """Pairs (first, other) of samples with the same pixels; blank pictures do not count."""
        first: dict[bytes, int] = {}
        return [
            (first[digest], index)
            for index, digest in enumerate(self.digests)
            if digest and first.setdefault(digest, index) != index
        ]


def find_duplicates(looks: Looks, distance: int, correlation: float) -> list[tuple[int, int, int, float]]:
    """Pairs (one < other, distance, correlation) that are alike, sorted: hashes within `distance`, 0 to 15, and
    thumbnails that correlate by at least `correlation`, in one of the eight flips and rotations.

    The first BLOCK candidates are all compared; after them only those that are not joined by others already.
    """
    order = np.stack([one.ravel() for one in turned(np.arange(SIDE**2).reshape(SIDE, SIDE))])
    norms = np.sqrt(np.einsum("ij,ij->i", looks.small, looks.small, dtype=np.float32))
    joined = Joined(len(norms))
    found: dict[tuple[int, int], tuple[int, float]] = {}
    num_compared = 0
    for one, other, turn, bits in _candidates(looks.hashes, np.flatnonzero(norms), distance, joined):
        if num_compared > BLOCK:
            roots = _roots(joined)
            fresh = roots[one] != roots[other]
            one, other, turn, bits = one[fresh], other[fresh], turn[fresh], bits[fresh]
        num_compared += len(one)
        for start in range(0, len(one), 1024):
            some = slice(start, start + 1024)
            a = looks.small[one[some]].astype(np.float32)
            b = looks.small[other[some, None], order[turn[some]]].astype(np.float32)
            alike = np.einsum("ij,ij->i", a, b) / (norms[one[some]] * norms[other[some]])
            for n in np.flatnonzero(alike >= correlation):
                pair = min(one[some][n], other[some][n]), max(one[some][n], other[some][n])
                if alike[n] > found.get(pair, (0, 0.0))[1]:
                    found[pair] = int(bits[some][n]), float(alike[n])
                joined.unite(*map(int, pair))
    return sorted((int(one), int(other), *how) for (one, other), how in found.items())


def _roots(joined: Joined) -> np.ndarray:
    """`joined.find` of all numbers."""
    roots = np.array(joined.parents, np.int64)
    while (roots != (above := roots[roots])).any():
        roots = above
    return roots


def _candidates(
    hashes: np.ndarray, known: np.ndarray, distance: int, joined: Joined
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of (one, other, turn, distance): the hash of `one` is within `distance` of that of `other` rotated.

    Of four bands of 16 bits one differs by at most a quarter of the distance, so it is enough to look up each band
    of each hash in all variants that differ by so few bits. Equal hashes are looked up once, and not at all if all
    images with it are joined with the query: a thousand frames of a still scene do not cost a million pairs.
    """
    values, classes = np.unique(hashes[known, 0], return_inverse=True)
    sizes = np.bincount(classes, minlength=len(values))
    firsts = np.cumsum(sizes) - sizes
    members = known[np.argsort(classes, kind="stable")]  # of class c: members[firsts[c]:][:sizes[c]]
    flipped = [bits for n in range(distance // BANDS + 1) for bits in combinations(range(BAND_BITS), n)]
    spellings = np.array([sum(1 << bit for bit in bits) for bits in flipped], np.uint64)
    tables = []
    for band in range(BANDS):
        keys = _band(values, band)
        begins = np.searchsorted(np.sort(keys), np.arange(2**BAND_BITS + 1))
        tables.append((np.argsort(keys, kind="stable"), begins))
    for start in range(0, len(known), QUERIES):
        asked = hashes[known[start : start + QUERIES]].ravel()  # (queries * 8,)
        hits = []
        for band, (order, begins) in enumerate(tables):
            keys = (_band(asked, band)[:, None] ^ spellings).ravel().astype(np.int64)
            for row, place in _expand(begins[keys], begins[keys + 1] - begins[keys]):
                query, found = row // len(spellings), order[place]
                near = np.bitwise_count(asked[query] ^ values[found]) <= distance
                hits.append(query[near] * len(values) + found[near])
        query, found = np.divmod(np.unique(np.concatenate(hits)), len(values))  # once, for any number of bands
        roots = _roots(joined)[members]
        low, high = (least.reduceat(roots, firsts) for least in (np.minimum, np.maximum))
        asking = known[start + query // 8]
        new = (low != high)[found] | (low[found] != _roots(joined)[asking]) | (sizes[found] < SMALL_CLASS)
        query, found, asking = query[new], found[new], asking[new]
        for row, place in _expand(firsts[found], sizes[found]):
            one, other = members[place], asking[row]
            bits = np.bitwise_count(asked[query[row]] ^ values[found[row]])
            apart = one != other
            yield one[apart], other[apart], (query[row] % 8)[apart], bits[apart]


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return (hashes >> np.uint64(BAND_BITS * band)) & np.uint64(2**BAND_BITS - 1)


def _expand(begins: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row, place) for all places begins[row], begins[row] + 1 ... of each row, about BLOCK at a time."""
    rows = np.flatnonzero(counts)
    counts = counts[rows]
    ends = np.cumsum(counts)
    start = 0
    while start < len(rows):
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
        some = counts[start:stop]
        row = np.repeat(rows[start:stop], some)
        within = np.arange(some.sum()) - np.repeat(ends[start:stop] - some - before, some)
        yield row, begins[row] + within
        start = stop
