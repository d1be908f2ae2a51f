"""Edges of the view graph: every pair's relative pose, from its point maps and its matches together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ga.alignment.pair_geometry import PairEdge, match_error, similarity_from_matches
from sparse_ga.alignment.pair_refine import pack_rays, refine_pairs
from sparse_ga.config import Align3dConfig
from sparse_ga.geometry.cameras import rays
from sparse_ga.products import Array, CanonicalView, VerifiedMatches

LoadMatches = Callable[[int], VerifiedMatches]

_TURN_SIGMA = np.radians(3.0)  # rotation error of a pair's point maps
_TURN_FLOOR, _SHIFT_FLOOR, _SCALE_SIGMA = np.radians(0.7), 0.01, 0.05
_MIN_INLIER_SHARE = 0.2
_UNVERIFIED_WEIGHT = 0.02  # of a pair whose matching failed, next to scores of up to 1


@dataclass(frozen=True)
class PairTable:
    """What is known of every pair from its matches alone."""

    score: Array  # (P,) in [0, 1]
    count: Array  # (P,) matches on the foreground
    rejected: tuple[str, ...]  # (P,) "" where the pair takes part


@dataclass(frozen=True)
class CanonicalDepths:
    """Canonical views with their intrinsics (N, 3, 3), and how far one pair's log depth scatters in each (N,)."""

    canonical: tuple[CanonicalView, ...]
    intrinsics: Array
    spread: Array


def usable(pair: tuple[int, int], count: int) -> bool:
    """Whether a pair names two different views of `count`."""
    return pair[0] != pair[1] and min(pair) >= 0 and max(pair) < count


def on_foreground(matches: VerifiedMatches, mask_i: Array, mask_j: Array) -> Array:
    """Which matches (M,) bool have both ends on the two masks, after rounding to pixels."""
    keep = np.ones(len(matches.matches), bool)
    for xy, mask in ((matches.matches.xy_i, mask_i), (matches.matches.xy_j, mask_j)):
        pixel = np.rint(xy).astype(int)
        inside = (pixel >= 0).all(-1) & (pixel[:, 0] < mask.shape[1]) & (pixel[:, 1] < mask.shape[0])
        pixel = np.where(inside[:, None], pixel, 0)
        keep &= inside & (mask[pixel[:, 1], pixel[:, 0]] if mask.size else False)
    return keep


def canonical_points(view: CanonicalView, intrinsics: Array, xy: Array) -> Array:
    """Camera-frame points (M, 3) of pixels `xy` (M, 2) in the canonical view's own unit."""
    pixel = np.rint(xy).astype(int)
    depth = view.depth[pixel[:, 1], pixel[:, 0]].astype(float)
    return rays(intrinsics, xy.astype(float)) * depth[:, None]


@dataclass(frozen=True)
class _Candidate:
    """A pair whose point maps or matches give a relative pose, before the matches sharpen it."""

    pair: tuple[int, int]
    i_from_j: Array  # (4, 4)
    weight: float
    rays_i: Array  # (M, 3)
    rays_j: Array  # (M, 3)
    sigma: tuple[float, float]  # of i_from_j's rotation, rad, and of the object's position over its distance


def build_edges(
    pairs: Sequence[tuple[int, int]],
    depths: CanonicalDepths,
    raw: dict[int, Array],
    load_matches: LoadMatches,
    table: PairTable,
    config: Align3dConfig,
) -> tuple[list[PairEdge], list[str]]:
    """Edges of all pairs whose relative pose is known; names and reasons of the others."""
    candidates: list[_Candidate] = []
    edges, dropped = [], []
    for p, (i, j) in enumerate(pairs):
        why = table.rejected[p]
        if not why and table.count[p] < config.min_matches:
            why = f"{table.count[p]} matches, fewer than {config.min_matches}"
        candidate = None
        if not why:
            candidate = _candidate((i, j), depths, raw.get(p), load_matches(p), float(table.score[p]))
            why = "" if candidate is not None else "point maps and matches give no relative pose"
        if candidate is not None:
            candidates.append(candidate)
        elif p in raw:
            precision = edge_precision(np.diag(np.repeat(np.array(_prior_sigma((i, j), depths)) ** -2.0, 3)))
            edges.append(PairEdge(i, j, raw[p], _UNVERIFIED_WEIGHT, False, precision))
        if why and usable((i, j), len(depths.canonical)):
            dropped.append(f"{depths.canonical[i].name} | {depths.canonical[j].name} | {why}")
    sharpened, refused = _sharpen(candidates, [view.name for view in depths.canonical], depths.intrinsics)
    return edges + sharpened, dropped + refused


def _sharpen(
    candidates: Sequence[_Candidate], names: Sequence[str], intrinsics: Array
) -> tuple[list[PairEdge], list[str]]:
    """Verified edges with the matches' say in their pose; names and reasons of pairs whose matches fit no pose."""
    if not candidates:
        return [], []
    focal = [float(np.sqrt(intrinsics[c.pair[0], 0, 0] * intrinsics[c.pair[1], 0, 0])) for c in candidates]
    rays = pack_rays([c.rays_i for c in candidates], [c.rays_j for c in candidates], focal)
    start = np.stack([c.i_from_j for c in candidates])
    refined = refine_pairs(start, rays, np.array([c.sigma for c in candidates]))
    edges, refused = [], []
    for candidate, transform, inliers, precision in zip(
        candidates, refined.i_from_j, refined.inlier_share, refined.precision
    ):
        i, j = candidate.pair
        if inliers < _MIN_INLIER_SHARE:
            refused.append(f"{names[i]} | {names[j]} | {inliers:.0%} of the matches agree with one pose")
        else:
            weight = candidate.weight * float(inliers)
            edges.append(PairEdge(i, j, transform, weight, True, edge_precision(precision)))
    return edges, refused


def edge_precision(pose_precision: Array) -> Array:
    """Inverse covariance (7, 7) of an edge from that of its rotation and shift (6, 6).

    Floors keep matches that are many, but share the error of the focal length, from claiming more than can be true;
    the scale comes from depth ratios and is independent of the rest.
    """
    floor = np.repeat(np.array([_TURN_FLOOR, _SHIFT_FLOOR]) ** 2, 3)
    result = np.diag(np.full(7, _SCALE_SIGMA**-2.0))
    known = np.linalg.inv(np.linalg.inv(pose_precision) + np.diag(floor))
    order = np.array([0, 1, 2, 4, 5, 6])
    result[np.ix_(order, order)] = (known + known.T) / 2
    return result


def _candidate(
    pair: tuple[int, int], depths: CanonicalDepths, from_maps: Array | None, verified: VerifiedMatches, score: float
) -> _Candidate | None:
    """A pair with enough matches: its point maps' pose if the matches agree with it, else the matches' own."""
    i, j = pair
    canonical, intrinsics = depths.canonical, depths.intrinsics
    keep = on_foreground(verified, canonical[i].anchor_of_pixel >= 0, canonical[j].anchor_of_pixel >= 0)
    xy_i, xy_j = verified.matches.xy_i[keep].astype(float), verified.matches.xy_j[keep].astype(float)
    points_i = canonical_points(canonical[i], intrinsics[i], xy_i)
    points_j = canonical_points(canonical[j], intrinsics[j], xy_j)
    sigma = _prior_sigma(pair, depths)
    radius = min(_angular_radius(canonical[n], intrinsics[n]) for n in pair)
    limit = max(0.25 * radius, depths.spread[i], depths.spread[j])
    error = match_error(from_maps, points_i, points_j) if from_maps is not None else np.inf
    rays_i, rays_j = rays(intrinsics[i], xy_i), rays(intrinsics[j], xy_j)
    if error < limit and from_maps is not None:
        return _Candidate(pair, from_maps, max(score, 0.02), rays_i, rays_j, sigma)
    from_matches, valid = similarity_from_matches(points_i, points_j)
    if valid and match_error(from_matches, points_i, points_j) < min(limit, 0.5 * error):
        return _Candidate(pair, from_matches, 0.5 * max(score, 0.02), rays_i, rays_j, sigma)
    return None


def _prior_sigma(pair: tuple[int, int], depths: CanonicalDepths) -> tuple[float, float]:
    """How well point maps tell a relative pose: rotation about the object, rad, and shift over the object's distance.

    An error of the depths bends the object's relief, the more so the smaller the object appears.
    """
    radius = min(_angular_radius(depths.canonical[n], depths.intrinsics[n]) for n in pair)
    bend = 2.0 * max(depths.spread[n] for n in pair) / max(radius, 1e-6)
    return float(min(np.hypot(_TURN_SIGMA, bend), 0.5)), float(np.clip(0.16 * radius, 0.012, 0.05))


def _angular_radius(view: CanonicalView, intrinsics: Array) -> float:
    """Half the size of the object as the camera sees it, rad."""
    spread = view.anchor_xy.std(0) if len(view.anchor_xy) else np.ones(2)
    return float(2.0 * np.linalg.norm(spread) / intrinsics[0, 0])
