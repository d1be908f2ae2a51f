"""Dense matches of two views by the descriptor network: reciprocal, then checked and moved by their neighbours.

A network that describes every pixel places its matches within a few pixels, and where it is wrong, it is wrong at
random. A surface seen twice maps almost affinely from patch to patch. So every match is asked against an affine map
fitted robustly to those around it: where they agree, the fitted place is nearer the truth than the match itself, and
where they do not, the match is dropped. How many agree says whether the two views show the same thing at all.

Two looks: the first, coarse, bears any roll, by quarter turns; what it finds tells the roll, and the second, fine, sees
view j turned as view i is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from sparse_ga.matching.nearest import neighbours
from sparse_ga.network.descriptor_cnn import TURNS, DenseDescriptor, DescriptorMap, cycled, square_around
from sparse_ga.products import Array, PairMatches, View

_RIVAL_DISTANCE = 2  # blocks of 2 x 2 grid points
_NEIGHBOURS = 40  # matches an affine map is fitted to
_CHUNK = 4096  # matches treated together
_SECOND_SIZES = (192, 384)  # px: least and most
_ENOUGH = 12  # matches that tell a roll


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """What the matches around each of M matches say of it."""

    placed: Array  # (M, 2) where it should lie in view j
    support: Array  # (M,) in [0, 1]: share of its neighbours, near ones counting more, that fit one affine map
    linear: Array  # (M, 2, 2) that map's derivative, j_from_i


@dataclass(frozen=True, eq=False)
class DenseMatches:
    """Matches that agree with their neighbours."""

    matches: PairMatches  # confidence: support of the neighbours
    linear: Array  # (M, 2, 2) j_from_i around each match
    share: float  # how many of the reciprocal matches these are
    spacing_i_px: float  # distance of described points in view i, working px
    spacing_j_px: float  # the same in view j

    @property
    def roll(self) -> float:
        """In-plane angle in radians that turns directions in view i into those in view j; 0 without matches."""
        if len(self.matches) == 0:
            return 0.0
        angle = np.arctan2(self.linear[:, 1, 0] - self.linear[:, 0, 1], self.linear[:, 0, 0] + self.linear[:, 1, 1])
        return math.atan2(float(np.sin(angle).mean()), float(np.cos(angle).mean()))


def coarse_matches(map_i: DescriptorMap, map_j: DescriptorMap) -> tuple[PairMatches, int]:
    """Reciprocal matches of blocks of 2 x 2 grid points, working px, and the quarter turns of view j that give the most
    distinct ones.

    A match is as distinct as its cosine similarity exceeds that of its best rival elsewhere on either object; that is
    its confidence.
    """
    (a, at_i), (b, at_j) = _blocks(map_i), _blocks(map_j)
    if len(a) == 0 or len(b) == 0:
        return PairMatches.empty(), 0
    trials = [_distinct(a @ cycled(b, turns).T, (at_i, at_j)) for turns in range(TURNS)]
    turns = max(range(TURNS), key=lambda turn: float(trials[turn][2].sum()))
    rows, columns, margins = trials[turns]
    ends = [m.to_view(2 * at[k][:, ::-1] + 0.5) for m, at, k in ((map_i, at_i, rows), (map_j, at_j, columns))]
    return PairMatches(ends[0].astype(np.float32), ends[1].astype(np.float32), margins.astype(np.float32)), turns


def _blocks(described: DescriptorMap) -> tuple[Array, Array]:
    """Unit descriptors (P, D) and places (P, 2) as (y, x) of blocks of 2 x 2 grid points on the object."""
    height, width = (n // 2 for n in described.valid.shape)
    shape = (height, 2, width, 2)
    on = described.valid[: 2 * height, : 2 * width].reshape(shape)
    total = (described.descriptors[: 2 * height, : 2 * width].reshape(*shape, -1) * on[..., None]).sum((1, 3))
    some = on.any(axis=(1, 3))
    return total[some] / np.maximum(np.linalg.norm(total[some], axis=1, keepdims=True), 1e-9), np.argwhere(some)


def _distinct(similarity: Array, at: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """Rows, columns and margins (M,) of reciprocal matches in `similarity` (P, Q); `at` (P, 2), (Q, 2) are places."""
    forward, backward = similarity.argmax(1), similarity.argmax(0)
    rows = np.flatnonzero(backward[forward] == np.arange(len(forward)))
    columns = forward[rows]
    best, margins = similarity[rows, columns], []
    for values, points, own in ((similarity[rows], at[1], columns), (similarity[:, columns].T, at[0], rows)):
        away = np.abs(points[None] - points[own][:, None]).max(2) > _RIVAL_DISTANCE  # (M, candidates)
        margins.append(best - np.where(away, values, -1.0).max(1))
    return rows, columns, np.minimum(margins[0], margins[1]).clip(0, 1)


def match_maps(map_i: DescriptorMap, map_j: DescriptorMap, turns: int) -> PairMatches:
    """All reciprocal matches of two described views under `turns` quarter turns of view j, working px.

    Confidence is the cosine similarity. Positions in view j are refined between grid points.
    """
    if not map_i.valid.any() or not map_j.valid.any():
        return PairMatches.empty()
    turned = cycled(map_j.descriptors, turns)  # (h, w, D)
    a, b = map_i.descriptors[map_i.valid], turned[map_j.valid]  # (P, D), (Q, D)
    forward, backward = neighbours(b).nearest(a), neighbours(a).nearest(b)
    rows = np.flatnonzero(backward[forward] == np.arange(len(a)))
    xy_i = np.argwhere(map_i.valid)[rows][:, ::-1].astype(float)
    xy_j = np.argwhere(map_j.valid)[forward[rows]][:, ::-1]
    similarity = (a[rows] * b[forward[rows]]).sum(1).clip(0, 1)
    peaks = xy_j + _peak_offsets(a[rows], turned, map_j.valid, xy_j)
    ends = map_i.to_view(xy_i), map_j.to_view(peaks)
    return PairMatches(ends[0].astype(np.float32), ends[1].astype(np.float32), similarity.astype(np.float32))


def _peak_offsets(asked: Array, described: Array, valid: Array, best: Array) -> Array:
    """Offsets (M, 2) in grid units of the similarity's peak near `best` (M, 2) in a map (h, w, D), by parabolas along
    x and y, for descriptors `asked` (M, D); 0 where a neighbour is off the object or there is no peak."""
    height, width = valid.shape
    x, y = best.T
    middle = (asked * described[y, x]).sum(1)
    offsets = np.zeros((len(best), 2))
    for axis, (dx, dy) in enumerate(((1, 0), (0, 1))):
        low = (np.clip(y - dy, 0, height - 1), np.clip(x - dx, 0, width - 1))
        high = (np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1))
        inner = valid[low] & valid[high] & (x >= dx) & (x + dx < width) & (y >= dy) & (y + dy < height)
        before, after = (asked * described[low]).sum(1), (asked * described[high]).sum(1)
        curve = before + after - 2 * middle
        peaked = inner & (curve < -1e-6)
        offsets[:, axis] = np.where(peaked, np.clip(0.5 * (before - after) / np.where(peaked, curve, -1), -0.5, 0.5), 0)
    return offsets


def fit_neighbourhoods(
    xy_i: Array, xy_j: Array, spacing_i_px: float, spacing_j_px: float, iterations: int = 6
) -> Neighbourhoods:
    """Affine maps fitted robustly to the matches (M, 2), (M, 2) around each.

    Described points are `spacing_i_px` apart in view i and `spacing_j_px` in view j, where it counts as agreement.

    Iteratively reweighted least squares with the Geman-McClure kernel, whose scale shrinks from 6 spacings to one
    (graduated non-convexity).
    """
    parts = [
        _fit_some(
            (xy_i, xy_j), np.arange(start, min(start + _CHUNK, len(xy_i))), (spacing_i_px, spacing_j_px), iterations
        )
        for start in range(0, len(xy_i), _CHUNK)
    ]
    if not parts:
        return Neighbourhoods(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2, 2)))
    return Neighbourhoods(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in Neighbourhoods.__annotations__)
    )


def _fit_some(
    ends: tuple[Array, Array], asked: Array, spacings_px: tuple[float, float], iterations: int
) -> Neighbourhoods:
    """`fit_neighbourhoods` of the matches `asked` (A,)."""
    (xy_i, xy_j), (spacing_i_px, spacing_j_px) = ends, spacings_px
    count = min(_NEIGHBOURS, len(xy_i))
    distance, index = cKDTree(xy_i).query(xy_i[asked], count)
    distance, index = distance.reshape(len(asked), count), index.reshape(len(asked), count)
    near = np.exp(-2 * (distance / np.maximum(distance[:, -1:], 1e-6)) ** 2)  # (A, K)
    unit = 10 * spacing_i_px
    ones = np.ones((len(asked), count, 1))
    rows = np.concatenate([(xy_i[index] - xy_i[asked][:, None]) / unit, ones], 2)  # (A, K, 3)
    target = xy_j[index]  # (A, K, 2)
    weight, residual = near, np.zeros_like(near)
    solution = np.zeros((len(asked), 3, 2))
    for iteration in range(iterations):
        normal = np.einsum("mka,mk,mkb->mab", rows, weight, rows) + np.diag([1e-3, 1e-3, 1e-9])
        solution = np.linalg.solve(normal, np.einsum("mka,mk,mkd->mad", rows, weight, target))
        residual = np.linalg.norm(rows @ solution - target, axis=2)
        scale = spacing_j_px * max(1.0, 6 * 0.6**iteration)
        weight = near / (1 + (residual / scale) ** 2) ** 2
    support = (near * (residual < 2 * spacing_j_px)).sum(1) / near.sum(1)
    return Neighbourhoods(solution[:, 2], support, solution[:, :2].transpose(0, 2, 1) / unit)


def agreeing(matches: PairMatches, spacing_i_px: float, spacing_j_px: float) -> DenseMatches:
    """The matches that fit the affine map of most of their neighbours, each moved to where that map puts it.

    Described points are `spacing_i_px` apart in view i and `spacing_j_px` in view j.
    """
    xy_i, xy_j = matches.xy_i.astype(float), matches.xy_j.astype(float)
    found = fit_neighbourhoods(xy_i, xy_j, spacing_i_px, spacing_j_px)
    off = np.linalg.norm(found.placed - xy_j, axis=1)
    keep = (found.support > 0.5) & (off < 2 * spacing_j_px)
    kept = PairMatches(
        matches.xy_i[keep], found.placed[keep].astype(np.float32), found.support[keep].astype(np.float32)
    )
    return DenseMatches(kept, found.linear[keep], float(keep.mean()) if len(keep) else 0.0, spacing_i_px, spacing_j_px)


def second_size(views: tuple[View, View]) -> int:
    """Side in px of the square the object is brought to for the second look: as large as it is in the working images.

    The matches' error in px of that square is much the same at all sizes: on rendered objects of 500 px, poses at 384
    px were off by half as much as at 256.
    """
    side = max(square_around(view.mask)[1] for view in views)
    low, high = _SECOND_SIZES
    return int(np.clip(16 * round(side / 16), low, high))


def match_described(
    describer: DenseDescriptor,
    views: tuple[View, View],
    maps: tuple[DescriptorMap, DescriptorMap],
    min_share: float = 0.0,
) -> DenseMatches:
    """Dense matches of two views and their `DenseDescriptor.describe` maps, after a second look.

    Where fewer than `min_share` of the first look's matches agree with their neighbours, there is no second: the first
    look's are returned.
    """
    raw, turns = coarse_matches(*maps)
    first = agreeing(raw, 2 * maps[0].spacing_px, 2 * maps[1].spacing_px)
    if first.share < min_share:
        return first
    roll = first.roll if len(first.matches) >= _ENOUGH else -turns * math.pi / 2
    size = second_size(views)
    upright = describer.describe_upright(views[0], 0.0, size)
    rolled = describer.describe_upright(views[1], roll, size)
    return agreeing(match_maps(upright, rolled, turns=0), upright.spacing_px, rolled.spacing_px)
