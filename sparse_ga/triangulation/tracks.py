"""Multi-view tracks from pairwise matches, and their robust triangulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sparse_ga.geometry.triangulation import (
    Observations,
    best_hypothesis,
    camera_centers,
    errors_px,
    refine_points,
    track_angles_deg,
    triangulate_dlt,
    view_groups,
)
from sparse_ga.products import Array, PairMatches

_ROUNDS = 3
_LUBY_ROUNDS = 12


class TrackStatus(IntEnum):
    """How the triangulation of a track ended: failure is a value."""

    OK = 0
    FEW_VIEWS = 1
    SMALL_ANGLE = 2
    BEHIND_CAMERA = 3
    HIGH_ERROR = 4


@dataclass(frozen=True, eq=False)
class TriangulatedTracks:
    """Tracks whose point is good, with the count of those that are not."""

    obs: Observations  # working px
    points: Array  # (T, 3) float64, world
    covariance: Array  # (T, 3, 3), for 1 px of noise
    rejected: Array  # (5,) int64, candidates that ended with each `TrackStatus`

    @staticmethod
    def empty() -> TriangulatedTracks:
        """No track."""
        return TriangulatedTracks(
            Observations.empty(), np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros(len(TrackStatus), np.int64)
        )


@dataclass(frozen=True, eq=False)
class _MatchGraph:
    """Quantised pixels that matches end on (nodes) and matches (edges)."""

    view: Array  # (K,) int64
    xy: Array  # (K, 2) float64, mean of the match ends in the cell
    edges: Array  # (E, 2) int64


def build_tracks(
    pairs: Iterable[tuple[int, int]], load_matches: Callable[[int], PairMatches], cell_px: float = 1.0
) -> Observations:
    """Candidate tracks: connected components of matches over quantised pixels.

    `load_matches(k)` gives the matches of the k-th pair, working px. A component may hold several observations of one
    view (the triangulation splits those). Dense noisy matches chain whole surfaces into one component; where a
    component holds far more observations than views it is cut into stars, a pixel with its direct partners.
    """
    graph = _match_graph(pairs, load_matches, cell_px)
    if len(graph.view) == 0:
        return Observations.empty()
    label = _components(len(graph.view), graph.edges)
    label = _cut_chained(graph, label)
    return _to_observations(graph, label)


def _match_graph(
    pairs: Iterable[tuple[int, int]], load_matches: Callable[[int], PairMatches], cell_px: float
) -> _MatchGraph:
    views, ends, weights = [], [], []
    for number, (i, j) in enumerate(pairs):
        matches = load_matches(number)
        if len(matches) == 0:
            continue
        views.append(np.stack([np.full(len(matches), i), np.full(len(matches), j)], 1))  # (M, 2)
        ends.append(np.stack([matches.xy_i, matches.xy_j], 1).astype(np.float64))  # (M, 2, 2)
        weights.append(np.repeat(np.maximum(matches.confidence, 1e-6)[:, None], 2, 1))
    if not views:
        return _MatchGraph(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros((0, 2), np.int64))
    view = np.concatenate(views).reshape(-1).astype(np.int64)  # (2E,)
    xy = np.concatenate(ends).reshape(-1, 2)
    weight = np.concatenate(weights).reshape(-1).astype(np.float64)
    cell = np.floor(xy / cell_px + 0.5).astype(np.int64) + 2**20
    key = (view << 44) | (cell[:, 0] << 22) | cell[:, 1]
    unique, node = np.unique(key, return_inverse=True)
    node = node.reshape(-1)
    total = np.bincount(node, weight)
    mean = np.stack([np.bincount(node, weight * xy[:, k]) / total for k in range(2)], 1)
    return _MatchGraph(unique >> 44, mean, node.reshape(-1, 2))


def _components(count: int, edges: Array) -> Array:
    """Label (K,) of the connected component of each node."""
    graph = coo_matrix((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _cut_chained(graph: _MatchGraph, label: Array) -> Array:
    """Labels in which components with more than three observations for each of their views are cut into stars."""
    nodes = np.bincount(label)
    views = np.bincount(np.unique(np.stack([label, graph.view], 1), axis=0)[:, 0], minlength=len(nodes))
    chained = nodes > 3 * views
    if not chained.any():
        return label
    inside = chained[label]  # (K,)
    hub = _star_hubs(len(label), graph.edges[inside[graph.edges[:, 0]]], inside)
    return np.where(inside, len(nodes) + hub, label)


def _star_hubs(count: int, edges: Array, active: Array) -> Array:
    """Hub (K,) of every active node: itself, or a neighbour; hubs of higher degree are chosen first (Luby's rounds)."""
    both = np.concatenate([edges, edges[:, ::-1]])
    degree = np.bincount(both[:, 0], minlength=count)
    rank = np.empty(count, np.int64)
    by_rank = np.lexsort((-np.arange(count), degree))
    rank[by_rank] = np.arange(count)
    hub = np.arange(count)
    active = active.copy()
    for _ in range(_LUBY_ROUNDS):
        both = both[active[both[:, 0]] & active[both[:, 1]]]
        if len(both) == 0:
            break
        strongest = rank.copy()
        np.maximum.at(strongest, both[:, 0], rank[both[:, 1]])
        chosen = by_rank[strongest]  # (K,)
        is_hub = active & (chosen == np.arange(count))
        settled = active & is_hub[chosen]
        hub[settled] = chosen[settled]
        active &= ~settled
    return hub


def _to_observations(graph: _MatchGraph, label: Array) -> Observations:
    """Nodes sorted by label and view; labels with one node are dropped."""
    keep = np.bincount(label)[label] >= 2
    order = np.lexsort((graph.xy[:, 1], graph.xy[:, 0], graph.view, label))
    order = order[keep[order]]
    point = np.unique(label[order], return_inverse=True)[1].reshape(-1)
    return Observations(point, graph.view[order], graph.xy[order])


def triangulate_tracks(
    projection: Array, candidates: Observations, limit_px: float, min_angle_deg: float
) -> TriangulatedTracks:
    """Points of candidate tracks: robust two-ray consensus, DLT on the inliers, Levenberg-Marquardt.

    `projection` (V, 3, 4) in working px. Observations that a good point does not explain within `limit_px` form
    a track of their own and are tried again, so tracks that one wrong match joined come apart instead of being
    averaged. Candidates without a good point are given up as a whole.
    """
    found: list[TriangulatedTracks] = []
    rejected = np.zeros(len(TrackStatus), np.int64)
    rest = candidates
    for _ in range(_ROUNDS):
        rest = _two_views_or_more(rest)
        if len(rest) == 0:
            break
        tracks, status, rest = _one_round(projection, rest, limit_px, min_angle_deg)
        found.append(tracks)
        rejected += np.bincount(status, minlength=len(TrackStatus))
    rejected[TrackStatus.OK] = 0
    return _concatenate(found, rejected)


def _two_views_or_more(obs: Observations) -> Observations:
    if len(obs) == 0:
        return obs
    order, groups = view_groups(obs)
    views = np.bincount(obs.point_index[order][groups], minlength=obs.num_points)
    return obs.select(views[obs.point_index] >= 2)


def _one_round(
    projection: Array, obs: Observations, limit_px: float, min_angle_deg: float
) -> tuple[TriangulatedTracks, Array, Observations]:
    """Good tracks, the status (P,) of every candidate, and the observations left unexplained."""
    guess, valid = _initial_points(projection, obs, limit_px, min_angle_deg)
    error = np.where(valid[obs.point_index], errors_px(projection, obs, guess), np.inf)
    inlier = _best_of_each_view(obs, error) & (error < 2 * limit_px)
    points, covariance, inlier = _fit_inliers(projection, obs, guess, inlier, limit_px)
    error = np.where(valid[obs.point_index], errors_px(projection, obs, points), np.inf)
    explained = error < limit_px
    kept = inlier & explained
    status = _status(projection, obs, points, kept, min_angle_deg)
    status[~valid] = TrackStatus.SMALL_ANGLE
    good = status == TrackStatus.OK
    keep = kept & good[obs.point_index]
    tracks = TriangulatedTracks(obs.select(keep), points[good], covariance[good], np.zeros(len(TrackStatus), np.int64))
    left = ~explained & ~inlier & good[obs.point_index]
    return tracks, status, obs.select(left)


def _initial_points(projection: Array, obs: Observations, limit_px: float, min_angle_deg: float) -> tuple[Array, Array]:
    """Points (P, 3) and validity: least squares over all rays where that explains them all, else the best pair."""
    points, valid = triangulate_dlt(projection, obs)
    points, _ = refine_points(projection, obs, points, limit_px, iterations=5)
    worst = np.maximum.reduceat(errors_px(projection, obs, points), obs.starts)
    hard = ~valid | (worst > limit_px)
    if hard.any():
        part = obs.select(hard[obs.point_index])
        points[hard], valid[hard] = best_hypothesis(projection, part, limit_px, min_angle_deg)
    return points, valid


def _best_of_each_view(obs: Observations, error: Array) -> Array:
    """True (O,) for the observation with the smallest error among those of one view of one point."""
    order = np.lexsort((error, obs.view_index, obs.point_index))
    point, view = obs.point_index[order], obs.view_index[order]
    first = np.ones(len(obs), bool)
    first[1:] = (np.diff(point) != 0) | (np.diff(view) != 0)
    best = np.zeros(len(obs), bool)
    best[order[first]] = True
    return best


def _fit_inliers(
    projection: Array, obs: Observations, points: Array, inlier: Array, limit_px: float
) -> tuple[Array, Array, Array]:
    """Points (P, 3), covariance (P, 3, 3) and inliers (O,) after two rounds of refinement and reclassification."""
    points = points.copy()
    covariance = np.tile(np.eye(3) * 1e12, (len(points), 1, 1))
    for _ in range(2):
        rows = np.nonzero(np.bincount(obs.point_index[inlier], minlength=len(points)) >= 2)[0]
        if len(rows) == 0:
            break
        part = obs.select(inlier & np.isin(obs.point_index, rows))
        points[rows], covariance[rows] = refine_points(projection, part, points[rows], limit_px / 2)
        error = errors_px(projection, obs, points)
        inlier = _best_of_each_view(obs, error) & (error < limit_px)
    return points, covariance, inlier


def _status(projection: Array, obs: Observations, points: Array, kept: Array, min_angle_deg: float) -> Array:
    """`TrackStatus` (P,) of points seen by the `kept` (O,) observations."""
    count = len(points)
    status = np.full(count, int(TrackStatus.OK))
    seen = np.bincount(obs.point_index[kept], minlength=count)
    behind = np.bincount(obs.point_index, np.isinf(errors_px(projection, obs, points)), minlength=count)
    rows = np.nonzero(seen)[0]
    angle = np.zeros(count)
    angle[rows] = track_angles_deg(camera_centers(projection), obs.select(kept), points[rows])
    status[angle < min_angle_deg] = TrackStatus.SMALL_ANGLE
    status[seen < 2] = TrackStatus.HIGH_ERROR
    status[(seen < 2) & (behind > 0)] = TrackStatus.BEHIND_CAMERA
    return status


def _concatenate(parts: list[TriangulatedTracks], rejected: Array) -> TriangulatedTracks:
    parts = [part for part in parts if len(part.points)]
    if not parts:
        empty = TriangulatedTracks.empty()
        return TriangulatedTracks(empty.obs, empty.points, empty.covariance, rejected)
    offsets = np.cumsum([0] + [len(part.points) for part in parts])
    obs = Observations(
        np.concatenate([part.obs.point_index + offset for part, offset in zip(parts, offsets, strict=False)]),
        np.concatenate([part.obs.view_index for part in parts]),
        np.concatenate([part.obs.xy for part in parts]),
    )
    return TriangulatedTracks(
        obs,
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.covariance for part in parts]),
        rejected,
    )
