"""Fast reciprocal nearest neighbours on the foreground (MASt3R, arXiv 2406.09756, section 3.3).

From a sparse grid of seeds, nearest neighbours are followed back and forth between the two images until a cycle closes:
``u -> v = NN_j(u) -> u' = NN_i(v)`` with ``u' = u``. Seeds and database hold foreground pixels only, so that a
background pixel is neither asked for nor found, and the cost falls with the square of the foreground's share.
Answers are remembered within a pair: cycles run into one another, and every pixel is searched for once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sparse_ga.config import MatchConfig
from sparse_ga.devices import resolve_device
from sparse_ga.matching.nearest import Metric, Neighbours, neighbours
from sparse_ga.products import Array, PairMatches, PairPrediction, Pointmap, View

_FEW = 20  # matches below which their likeness is not compared


@dataclass(frozen=True, eq=False)
class PixelFeatures:
    """What one image brings to the search: a vector per pixel, and which pixels exist."""

    vectors: Array  # (H * W, D) floats, raster order
    usable: Array  # (H, W) bool: foreground with finite vectors

    @staticmethod
    def of(vectors: Array, mask: Array) -> PixelFeatures:
        """Vectors (H, W, D) on the `mask` (H, W) bool; pixels with NaN or infinity are left out."""
        if vectors.shape[:2] != mask.shape:
            raise ValueError(f"vectors of {vectors.shape[:2]} pixels do not fit a mask of {mask.shape} pixels")
        flat = vectors.reshape(-1, vectors.shape[2])  # (H * W, D)
        usable = mask.copy().reshape(-1)
        for start in range(0, len(flat), 1 << 18):
            usable[start : start + (1 << 18)] &= np.isfinite(flat[start : start + (1 << 18)]).all(1)
        return PixelFeatures(flat, usable.reshape(mask.shape))


@dataclass(frozen=True, eq=False)
class ReciprocalMatches:
    """Closed cycles as pairs of raster indices (``y * W + x``), unique and sorted by (i, j), and where seeds ended.

    ``basin_i[s]`` is the row of the match that seed s of image i ran into, -1 where its cycle did not close or closed
    too far from the seed: the seeds of one match are its basin of attraction.
    """

    pixel_i: Array  # (M,) int64
    pixel_j: Array  # (M,) int64
    seed_i: Array  # (S_i,) int64 raster indices
    basin_i: Array  # (S_i,) int64
    seed_j: Array  # (S_j,) int64
    basin_j: Array  # (S_j,) int64

    def __len__(self) -> int:
        return len(self.pixel_i)


def seed_pixels(usable: Array, subsample: int) -> Array:
    """Raster indices (S,) int64, ascending, of one pixel for each block of `subsample` pixels with any `usable` (H, W).

    It is the block's centre ``subsample // 2`` or, where that is not usable, the nearest usable pixel of the block;
    among equally near ones the first in raster order.
    """
    height, width = usable.shape
    side = np.arange(subsample) - subsample // 2
    distance2 = side[:, None] ** 2 + side[None, :] ** 2  # (s, s)
    rank = np.empty(subsample**2, np.int32)
    rank[np.argsort(distance2.reshape(-1), kind="stable")] = np.arange(subsample**2)
    padded = np.pad(usable, ((0, -height % subsample), (0, -width % subsample)))
    rows, columns = padded.shape[0] // subsample, padded.shape[1] // subsample
    blocks = padded.reshape(rows, subsample, columns, subsample).swapaxes(1, 2).reshape(rows, columns, -1)
    cost = np.where(blocks, rank, subsample**2)  # (rows, columns, s * s)
    choice = cost.argmin(2)  # (rows, columns)
    row, column = np.nonzero(blocks.any(2))
    y = row * subsample + choice[row, column] // subsample
    x = column * subsample + choice[row, column] % subsample
    return np.sort(y * width + x)


class _Answers:
    """Nearest pixels of one image for pixels of the other, each searched for once. Pixels are foreground positions."""

    def __init__(self, vectors: Array, rows: Array, target: Neighbours) -> None:
        self._vectors, self._rows, self._target = vectors, rows, target
        self._asked = np.zeros(0, np.int64)  # ascending
        self._answer = np.zeros(0, np.int64)

    def __call__(self, pixels: Array) -> Array:
        new = np.setdiff1d(pixels, self._asked)
        if len(new):
            asked = np.concatenate([self._asked, new])
            answer = np.concatenate([self._answer, self._target.nearest(self._vectors[self._rows[new]])])
            order = np.argsort(asked)
            self._asked, self._answer = asked[order], answer[order]
        return self._answer[np.searchsorted(self._asked, pixels)]


def _close_cycles(seeds: Array, there: _Answers, back: _Answers, rounds: int) -> tuple[Array, Array]:
    """Both ends (S,) of the cycle that each of `seeds` (S,) runs into; -1 where none closes within `rounds`.

    A query leaves the batch as soon as either of its ends repeats: the pair is reciprocal then.
    """
    near, far = seeds.copy(), np.full(len(seeds), -1, np.int64)
    closed = np.zeros(len(seeds), bool)
    active = np.arange(len(seeds))
    for _ in range(rounds):
        if len(active) == 0:
            break
        previous, far[active] = far[active], there(near[active])
        closed[active] = far[active] == previous
        active = active[~closed[active]]
        previous, near[active] = near[active], back(far[active])
        closed[active] = near[active] == previous
        active = active[~closed[active]]
    return np.where(closed, near, -1), np.where(closed, far, -1)


def _near_seed(seed: Array, end: Array, width: int, tolerance: float | None) -> Array:
    """Which of the pixels `end` (S,) lie within `tolerance` px of `seed` (S,), raster indices; all if it is None."""
    if tolerance is None:
        return np.ones(len(seed), bool)
    dx, dy = end % width - seed % width, end // width - seed // width
    return dx**2 + dy**2 <= tolerance**2


def reciprocal_matches(
    image_i: PixelFeatures,
    image_j: PixelFeatures,
    config: MatchConfig,
    metric: Metric = "dot",
    device: str | torch.device = "cpu",
) -> ReciprocalMatches:
    """Reciprocal nearest neighbours between two images, from seeds in both (see the module docstring).

    Of `config` it reads `subsample`, `max_rounds` and `pixel_tolerance`. No usable pixel on either side: no match.
    """
    seed_i, seed_j = (seed_pixels(image.usable, config.subsample) for image in (image_i, image_j))
    rows_i, rows_j = (np.flatnonzero(image.usable).astype(np.int32) for image in (image_i, image_j))
    if len(rows_i) == 0 or len(rows_j) == 0:
        none = np.zeros(0, np.int64)
        return ReciprocalMatches(none, none, seed_i, np.full(len(seed_i), -1), seed_j, np.full(len(seed_j), -1))
    to_j = _Answers(image_i.vectors, rows_i, neighbours(image_j.vectors, rows_j, metric, device))
    to_i = _Answers(image_j.vectors, rows_j, neighbours(image_i.vectors, rows_i, metric, device))
    ends = [
        _close_cycles(np.searchsorted(rows_i, seed_i), to_j, to_i, config.max_rounds),
        _close_cycles(np.searchsorted(rows_j, seed_j), to_i, to_j, config.max_rounds)[::-1],
    ]
    end_i = np.concatenate([e[0] for e in ends])
    end_j = np.concatenate([e[1] for e in ends])  # (S_i + S_j,) positions, -1 where open
    kept = end_i >= 0
    pixel_i, pixel_j = rows_i[end_i].astype(np.int64), rows_j[end_j].astype(np.int64)
    start, split = np.concatenate([seed_i, seed_j]), len(seed_i)
    width_i, width_j = image_i.usable.shape[1], image_j.usable.shape[1]
    kept[:split] &= _near_seed(start[:split], pixel_i[:split], width_i, config.pixel_tolerance)
    kept[split:] &= _near_seed(start[split:], pixel_j[split:], width_j, config.pixel_tolerance)
    keys, back = np.unique(pixel_i[kept] * image_j.usable.size + pixel_j[kept], return_inverse=True)
    basin = np.full(len(kept), -1, np.int64)
    basin[kept] = back
    return ReciprocalMatches(
        keys // image_j.usable.size, keys % image_j.usable.size, seed_i, basin[:split], seed_j, basin[split:]
    )


def _raster_to_xy(pixel: Array, width: int) -> Array:
    """Pixels (M, 2) float32 (x, y) of raster indices (M,)."""
    return np.stack([pixel % width, pixel // width], 1).astype(np.float32)


def similar_enough(vectors_i: Array, vectors_j: Array, factor: float) -> Array:
    """Which matches (M,) bool, with vectors (M, D) at both ends, are not much less alike than the best quarter of them.

    Their squared distance is at most `factor` times the lower quartile, or 2 % of the vectors' mean squared length
    (for unit vectors: a cosine of 0.98). Fewer than `_FEW` matches tell nothing about each other and all stay.
    """
    if len(vectors_i) < _FEW:
        return np.ones(len(vectors_i), bool)
    a, b = vectors_i.astype(np.float64), vectors_j.astype(np.float64)
    half_distance2 = ((a - b) ** 2).sum(1) / 2  # (M,) one minus the cosine, for unit vectors
    length2 = ((a**2).sum(1) + (b**2).sum(1)).mean() / 2
    return half_distance2 <= max(factor * float(np.quantile(half_distance2, 0.25)), 0.02 * length2)


@dataclass(frozen=True, eq=False)
class _OrderMatches:
    """Matches of one decode order as raster indices (M,), and their confidence (M,)."""

    pixel_i: Array
    pixel_j: Array
    confidence: Array


def _match_order(
    first: Pointmap, second: Pointmap, views: tuple[View, View], config: MatchConfig, use_points: bool
) -> _OrderMatches:
    """Matches of one decode order, `first` being view i's pixels and `second` view j's."""
    images, confidences = [], []
    for view, points in zip(views, (first, second), strict=True):
        confidence = points.confidence
        if not use_points and points.descriptor_confidence is not None:
            confidence = points.descriptor_confidence
        vectors = points.points if use_points else points.descriptors
        assert vectors is not None
        images.append(PixelFeatures.of(vectors, view.mask & np.isfinite(confidence)))
        confidences.append(np.maximum(confidence.reshape(-1), 0))
    device = resolve_device(config.device, ("cuda",))  # MPS has no double precision, which settles ties
    found = reciprocal_matches(images[0], images[1], config, "l2" if use_points else "dot", device)
    pixel_i, pixel_j = found.pixel_i, found.pixel_j
    if config.max_dissimilarity is not None and not use_points:
        ends = images[0].vectors[pixel_i], images[1].vectors[pixel_j]
        alike = similar_enough(*ends, config.max_dissimilarity)
        pixel_i, pixel_j = pixel_i[alike], pixel_j[alike]
    product = confidences[0][pixel_i].astype(np.float64) * confidences[1][pixel_j]
    return _OrderMatches(pixel_i, pixel_j, np.sqrt(product))


def filter_matches(matches: PairMatches, view_i: View, view_j: View, border_px: int) -> PairMatches:
    """The matches whose ends both round to a foreground pixel at least `border_px` pixels inside its image."""
    keep = np.ones(len(matches), bool)
    for xy, view in ((matches.xy_i, view_i), (matches.xy_j, view_j)):
        limit = np.array([view.width - 1, view.height - 1])
        keep &= ((xy >= border_px) & (xy <= limit - border_px)).all(1)
        x, y = np.clip(np.rint(xy), 0, limit).astype(np.int64).T
        keep &= view.mask[y, x]
    return matches.select(keep)


def match_prediction(prediction: PairPrediction, view_i: View, view_j: View, config: MatchConfig) -> PairMatches:
    """Foreground matches of a pair, working px, both decode orders and both directions merged and made unique.

    Matches that the predictor brings along are masked and filtered, nothing else. Otherwise descriptors are matched by
    inner product, and those go that are much less alike than the rest (`similar_enough`); where a network has none
    (DUSt3R), its 3D points are matched by distance. The confidence of a match is the geometric mean of its two pixels'
    descriptor confidences (point confidences without descriptors); a match that both decode orders find keeps the
    higher one. Sorted by the pixel in view i, then in view j, raster order.
    """
    if prediction.rejected is not None:
        return PairMatches.empty()
    if prediction.matches is not None:
        return filter_matches(prediction.matches, view_i, view_j, config.border_px)
    orders = [(prediction.i_in_i, prediction.j_in_i), (prediction.i_in_j, prediction.j_in_j)]
    described = [o for o in orders if o[0].descriptors is not None and o[1].descriptors is not None]
    size_j = view_j.mask.size
    parts = [
        _match_order(first, second, (view_i, view_j), config, not described) for first, second in described or orders
    ]
    unique, back = np.unique(np.concatenate([p.pixel_i * size_j + p.pixel_j for p in parts]), return_inverse=True)
    best = np.zeros(len(unique))
    np.maximum.at(best, back, np.concatenate([p.confidence for p in parts]))
    merged = PairMatches(
        _raster_to_xy(unique // size_j, view_i.width),
        _raster_to_xy(unique % size_j, view_j.width),
        best.astype(np.float32),
    )
    return filter_matches(merged, view_i, view_j, config.border_px)
