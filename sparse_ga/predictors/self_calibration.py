"""Focal length of photographs of an object, from their matches alone.

Two-view geometry hardly sees the focal length of a camera that orbits an object: with a wrong one, every pair finds a
rotation scaled by about the same factor, inlier counts stay flat, and rotation cycles around one axis close all the
same. What a wrong focal length cannot do is explain all views at once. So the focal length is voted for by small
reconstructions: from each of a geometric grid of focal lengths, chain the pairs, triangulate their tracks, adjust
everything including the focal length, and keep the one whose tracks fit best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from sparse_ga.geometry.bundle import (
    MISSING_COST,
    Bundle,
    Observations,
    adjust,
    reprojection,
    robust_cost,
    triangulate_rays,
)
from sparse_ga.geometry.transforms import inverse, make
from sparse_ga.geometry.two_view import (
    RelativePose,
    estimate_relative_pose,
    homogeneous,
    midpoint_depths,
    ray_angles_deg,
)
from sparse_ga.products import Array
from sparse_ga.work import advance, expect

MIN_INLIERS = 20
MIN_ANGLE_DEG = 1.5
THRESHOLD_PX = 1.5
GRID_RATIO = 1.4
MAX_TRACKS = 1500
FEW_VIEWS = 8  # as few, or half of the views where that is less, fit a wrong focal length as well
_RIVAL = 1.15  # score, in units of the best: who explains the photographs this well may be right as well
_SETTLING = 7  # trials of the best candidates after the grid, about


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Keypoints of one view."""

    xy: Array  # (K, 2) working px, relative to the principal point
    sigma: Array  # (K,) how uncertain they are; 1 for a sharp one


@dataclass(frozen=True, eq=False)
class KeypointMatches:
    """Tentative matches of one pair: rows of the two views' keypoints."""

    view_i: int
    view_j: int
    index_i: Array  # (M,) int
    index_j: Array  # (M,) int
    reliable: Array  # (M,) bool, passed the ratio test from both sides

    def select(self, keep: Array) -> KeypointMatches:
        """The matches that `keep` (M,) bool picks."""
        return KeypointMatches(self.view_i, self.view_j, self.index_i[keep], self.index_j[keep], self.reliable[keep])


@dataclass(frozen=True, eq=False)
class Calibration:
    """Focal length that explains the matches best, and how well."""

    focal_px: float
    cost: float  # mean robust cost of an observation
    views: int  # number of views the reconstruction tied together
    trusted: bool  # False when the evidence does not single out this focal length


@dataclass(frozen=True, eq=False)
class _PairGeometry:
    matches: KeypointMatches  # inliers only
    pose: RelativePose
    depth_i: Array  # (M,) in units of the pair's baseline
    depth_j: Array  # (M,)


def calibrate(
    keypoints: list[Keypoints], matches: list[KeypointMatches], bounds_px: tuple[float, float], guess_px: float
) -> Calibration:
    """Focal length shared by all views, from keypoints and tentative matches.

    Working pixels throughout. Candidates between `bounds_px`; without at least three views tied together nothing can
    be said, and `guess_px` comes back untrusted.
    """
    steps = max(2, round(np.log(bounds_px[1] / bounds_px[0]) / np.log(GRID_RATIO)) + 1)
    expect(2 + steps + _SETTLING)
    usable = _prefilter(keypoints, matches, bounds_px, guess_px)
    advance(2)  # it tries two focal lengths
    candidates = [_tried(keypoints, usable, float(f)) for f in np.geomspace(*bounds_px, steps)]
    found = [c for c in candidates if c is not None and c.views >= 3]
    if not found:
        return Calibration(guess_px, float("inf"), 0, False)
    most = max(c.observations for c in found)
    best = min((_settle(keypoints, usable, c, most) for c in _contenders(found, most)), key=lambda c: c.score(most))
    polished = _reconstruct(keypoints, usable, best.focal_px, polish=True)
    if polished is not None and polished.score(most) < _RIVAL * best.score(most):  # its pairs are estimated again
        best = polished
    focal = float(np.clip(best.focal_px, *bounds_px))
    rivals = [c.score(most) for c in found if abs(np.log(c.focal_px / focal)) > np.log(1.4)]
    alone = not rivals or min(rivals) > _RIVAL * best.score(most)
    few = min(FEW_VIEWS, sum(len(k.xy) > 0 for k in keypoints) / 2)
    trusted = best.views >= 3 and best.views > few and focal == best.focal_px and alone
    return Calibration(focal, best.score(most), best.views, trusted)


def _contenders(found: list[_Candidate], most: int) -> list[_Candidate]:
    """The three best candidates that have not run into the same focal length."""
    chosen: list[_Candidate] = []
    for candidate in sorted(found, key=lambda c: c.score(most)):
        if all(abs(np.log(candidate.focal_px / other.focal_px)) > 0.05 for other in chosen):
            chosen.append(candidate)
    hopeless = 1.5 * chosen[0].score(most)  # a wrong focal length fits several times worse
    return [candidate for candidate in chosen[:3] if candidate.score(most) < hopeless]


def _settle(keypoints: list[Keypoints], matches: list[KeypointMatches], best: _Candidate, most: int) -> _Candidate:
    """Estimate the pairs again from the adjusted focal length, until that stops helping."""
    for _ in range(4):
        again = _tried(keypoints, matches, best.focal_px)
        if again is None or again.score(most) >= best.score(most):
            break
        best = again
    return best


def _prefilter(
    keypoints: list[Keypoints], matches: list[KeypointMatches], bounds_px: tuple[float, float], guess_px: float
) -> list[KeypointMatches]:
    """Pairs that have an epipolar geometry at all: inlier counts hardly depend on the focal length."""
    enough = [m for m in matches if len(m.index_i) >= MIN_INLIERS]
    focals = {guess_px, float(np.sqrt(bounds_px[1] * guess_px))}
    return [m for m in enough if any(_pair_geometry(keypoints, m, f) is not None for f in sorted(focals))]


def _pair_geometry(keypoints: list[Keypoints], matches: KeypointMatches, focal_px: float) -> _PairGeometry | None:
    rays_i = homogeneous(keypoints[matches.view_i].xy[matches.index_i] / focal_px)
    rays_j = homogeneous(keypoints[matches.view_j].xy[matches.index_j] / focal_px)
    pose = estimate_relative_pose(rays_i, rays_j, THRESHOLD_PX / focal_px, matches.reliable)
    if pose is None or pose.inliers.sum() < MIN_INLIERS:
        return None
    keep = pose.inliers
    rays_i, rays_j = rays_i[keep], rays_j[keep]
    if np.median(ray_angles_deg(rays_i, rays_j, pose.rotation)) < MIN_ANGLE_DEG:
        return None
    depth_i, depth_j = midpoint_depths(rays_i, rays_j, pose.rotation, pose.translation)
    inliers = matches.select(keep)
    return _PairGeometry(inliers, pose, depth_i, depth_j)


@dataclass(frozen=True, eq=False)
class _Candidate:
    focal_px: float
    summed_cost: float
    observations: int
    views: int

    def score(self, most_observations: int) -> float:
        """Mean cost of an observation; those that other candidates explain and this one lost count as missing."""
        missing = most_observations - self.observations
        return (self.summed_cost + missing * MISSING_COST) / max(most_observations, 1)


def _reconstruct(
    keypoints: list[Keypoints], matches: list[KeypointMatches], focal_px: float, polish: bool = False
) -> _Candidate | None:
    """Small reconstructions of all parts that hold together, adjusted with one focal length; None without any.

    `polish` lowers the scale of the robust loss to that of the residuals: small systematic errors count less.
    """
    found = [_pair_geometry(keypoints, m, focal_px) for m in matches]
    pairs = [p for p in found if p is not None]
    if not pairs:
        return None
    parts = [_build_part(part, keypoints, focal_px) for part in _parts(pairs, keypoints)]
    bundle, obs, held = _join(parts, focal_px)
    bundle, _ = adjust(bundle, obs, held=held, iterations=40, tolerance=1e-4)
    if polish:
        typical = float(np.median(np.linalg.norm(reprojection(bundle, obs)[0], axis=1)))
        bundle, _ = adjust(
            bundle, obs, loss_px=float(np.clip(2 * typical, 0.2, 1.0)), held=held, iterations=100, tolerance=1e-6
        )
    cost = np.minimum(robust_cost(reprojection(bundle, obs)[0], 1.0), MISSING_COST)
    return _Candidate(bundle.focal_px, float(cost.sum()), len(cost), max(len(p.bundle.rotation) for p in parts))


def _tried(keypoints: list[Keypoints], matches: list[KeypointMatches], focal_px: float) -> _Candidate | None:
    """As `_reconstruct`, saying that one more trial is done."""
    candidate = _reconstruct(keypoints, matches, focal_px)
    advance()
    return candidate


@dataclass(frozen=True, eq=False)
class _Part:
    """Views that hang together through pairs that share keypoints, with the view graph's root first."""

    bundle: Bundle
    observations: Observations


def _join(parts: list[_Part], focal_px: float) -> tuple[Bundle, Observations, Array]:
    """All parts as one bundle; the first view of each is held."""
    views = np.cumsum([0] + [len(p.bundle.rotation) for p in parts])
    points = np.cumsum([0] + [len(p.bundle.points) for p in parts])
    bundle = Bundle(
        np.concatenate([p.bundle.rotation for p in parts]),
        np.concatenate([p.bundle.translation for p in parts]),
        np.concatenate([p.bundle.points for p in parts]),
        focal_px,
    )
    obs = Observations(
        np.concatenate([p.observations.view + v for p, v in zip(parts, views)]),
        np.concatenate([p.observations.point + n for p, n in zip(parts, points)]),
        np.concatenate([p.observations.xy for p in parts]),
        np.concatenate([p.observations.sigma for p in parts]),
    )
    return bundle, obs, np.isin(np.arange(views[-1]), views[:-1])


def _build_part(pairs: list[tuple[_PairGeometry, float]], keypoints: list[Keypoints], focal_px: float) -> _Part:
    """Chain the pairs of one part, with their log baselines, and triangulate their tracks; the origin is among them."""
    poses = _chain(pairs, len(keypoints))
    obs, points = _tracks([p for p, _ in pairs], keypoints, list(poses))
    cams = np.stack(list(poses.values()))  # (V, 4, 4)
    bundle = Bundle(cams[:, :3, :3], cams[:, :3, 3], np.zeros((points, 3)), focal_px)
    placed = triangulate_rays(bundle, obs)
    centre = np.median(placed, axis=0) if points else np.zeros(3)
    return _Part(Bundle(bundle.rotation, bundle.translation + bundle.rotation @ centre, placed - centre, focal_px), obs)


def _parts(pairs: list[_PairGeometry], keypoints: list[Keypoints]) -> list[list[tuple[_PairGeometry, float]]]:
    """Pairs grouped by shared keypoints, each with the log length of its baseline relative to its group.

    Two pairs that see one keypoint of one view must give it one depth; the median ratio is their relative scale.
    Chained along the spanning tree of the pairs that share most.
    """
    start = np.concatenate([[0], np.cumsum([len(k.xy) for k in keypoints])])
    seen = [_log_depths(pair, start) for pair in pairs]
    ends = np.cumsum([0] + [len(at) for at, _ in seen])
    columns = np.concatenate([at for at, _ in seen])
    which = sparse.csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape=(len(pairs), start[-1]))
    shared = (which @ which.T).toarray()  # (pairs, pairs)
    np.fill_diagonal(shared, 0)
    graph = sparse.csr_matrix(np.where(shared >= 5, 1.0 / np.maximum(shared, 1), 0.0))
    labels = connected_components(graph, directed=False)[1]
    tree = minimum_spanning_tree(graph)
    log_scale = np.zeros(len(pairs))
    groups = []
    for label in range(labels.max() + 1):
        order, parent = breadth_first_order(tree, int(np.flatnonzero(labels == label)[0]), directed=False)
        for node in order[1:]:
            log_scale[node] = log_scale[parent[node]] + _log_ratio(seen[parent[node]], seen[node])
        groups.append([(pairs[node], float(log_scale[node])) for node in sorted(order)])
    return groups


def _log_depths(pair: _PairGeometry, start: Array) -> tuple[Array, Array]:
    """Keypoints (K,) of both views that a pair gives a depth, ascending, numbered from `start` of their view, and the
    logarithms (K,) of their depths."""
    m = pair.matches
    at = np.concatenate([start[m.view_i] + m.index_i, start[m.view_j] + m.index_j])
    log_depth = np.log(np.maximum(np.concatenate([pair.depth_i, pair.depth_j]), 1e-9))
    at, last = np.unique(at[::-1], return_index=True)  # of a keypoint that is matched twice the last depth counts
    log_depth = log_depth[::-1][last]
    finite = np.isfinite(log_depth)
    return at[finite], log_depth[finite]


def _log_ratio(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Median logarithm of the ratio of the depths that two pairs (see `_log_depths`) give to the same keypoints."""
    _, in_a, in_b = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
    return float(np.median(a[1][in_a] - b[1][in_b]))


def _chain(pairs: list[tuple[_PairGeometry, float]], views: int) -> dict[int, Array]:
    """cam_from_world (4, 4) of the pairs' views, root first, along the tree of many inliers and clear poses."""
    step: dict[tuple[int, int], Array] = {}
    weight = sparse.lil_matrix((views, views))
    for pair, log_scale in pairs:
        i, j = pair.matches.view_i, pair.matches.view_j
        j_from_i = make(pair.pose.rotation, pair.pose.translation * np.exp(log_scale))
        step[i, j], step[j, i] = j_from_i, inverse(j_from_i)
        weight[i, j] = 1.0 / (len(pair.depth_i) * pair.pose.certainty)
    root = pairs[0][0].matches.view_i
    order, parent = breadth_first_order(minimum_spanning_tree(weight.tocsr()), root, directed=False)
    poses = {root: np.eye(4)}
    for view in order[1:]:
        poses[int(view)] = step[int(parent[view]), int(view)] @ poses[int(parent[view])]
    return poses


def _tracks(pairs: list[_PairGeometry], keypoints: list[Keypoints], views: list[int]) -> tuple[Observations, int]:
    """Observations of tracks through the pairs' inliers, views numbered as in `views`, and the number of tracks.

    Tracks that a view sees twice are dropped.
    """
    start = np.concatenate([[0], np.cumsum([len(k.xy) for k in keypoints])])
    ends_i = np.concatenate([start[p.matches.view_i] + p.matches.index_i for p in pairs])
    ends_j = np.concatenate([start[p.matches.view_j] + p.matches.index_j for p in pairs])
    graph = sparse.coo_matrix((np.ones(len(ends_i)), (ends_i, ends_j)), shape=(start[-1], start[-1]))
    labels = connected_components(graph, directed=False)[1]
    view_of = np.repeat(np.arange(len(keypoints)), np.diff(start))
    length = np.bincount(labels)
    distinct = np.unique(np.stack([labels, view_of]), axis=1)
    chosen = np.flatnonzero((length >= 2) & (np.bincount(distinct[0]) == length))
    if len(chosen) > MAX_TRACKS:  # the longest ones
        chosen = np.sort(chosen[np.argsort(-length[chosen], kind="stable")[:MAX_TRACKS]])
    keep = np.isin(labels, chosen)
    renumber = np.full(len(keypoints), -1)
    renumber[views] = np.arange(len(views))
    point = np.searchsorted(chosen, labels[keep])
    xy, sigma = np.concatenate([k.xy for k in keypoints])[keep], np.concatenate([k.sigma for k in keypoints])[keep]
    return Observations(renumber[view_of[keep]], point, xy, sigma), len(chosen)
