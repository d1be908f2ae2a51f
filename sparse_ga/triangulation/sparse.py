"""Cameras and tracks: matches to tracks, bundle adjustment, triangulation with the adjusted cameras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ga.alignment.edges import on_foreground
from sparse_ga.config import TriangulateConfig
from sparse_ga.geometry.triangulation import errors_px
from sparse_ga.products import Alignment, Array, PairMatches, VerifiedMatches, View
from sparse_ga.triangulation.adjust import LOSS_SIGMAS, Adjustment, adjust_bundle, came_loose
from sparse_ga.triangulation.silhouettes import outside_votes
from sparse_ga.triangulation.tracks import TriangulatedTracks, build_tracks, triangulate_tracks
from sparse_ga.triangulation.views import Rig, make_rig

_LIMIT_SIGMAS = 4.0  # largest residual
_LEAST_SIGMA_PX = 0.05  # rendered photographs and oracles have less
_RAYLEIGH = 1.1774  # median length of a 2D normal vector of unit standard deviation per coordinate


@dataclass(frozen=True)
class MatchedPairs:
    """Pairs of views, by their indices, and what loads the matches of the k-th one, working px."""

    pairs: Sequence[tuple[int, int]]
    load: Callable[[int], VerifiedMatches]


@dataclass(frozen=True, eq=False)
class SparseResult:
    """What the matches give: cameras, tracks and how the adjustment went."""

    rig: Rig
    tracks: TriangulatedTracks
    adjustment: Adjustment


def solve_sparse(
    views: Sequence[View],
    alignment: Alignment,
    matched: MatchedPairs,
    config: TriangulateConfig,
) -> SparseResult:
    """Tracks and cameras, with two rounds of adjustment and triangulation anew in between.

    What counts as a good observation follows from how far the observations scatter: wrong matches that lie by chance
    within `config.max_reprojection_px` of their point would bend the cameras.
    """
    rig = make_rig(views, alignment)
    candidates = build_tracks(matched.pairs, _match_loader(views, alignment, matched), config.track_cell_px)
    tracks = triangulate_tracks(rig.projection, candidates, config.max_reprojection_px, config.min_angle_deg)
    sigma_px = residual_sigma_px(rig, tracks, config.max_reprojection_px)
    limits = (min(_LIMIT_SIGMAS * sigma_px, config.max_reprojection_px), config.min_angle_deg)
    tracks = triangulate_tracks(rig.projection, candidates, *limits)
    if not config.bundle_adjustment:
        return SparseResult(rig, tracks, Adjustment(rig, False, "off", 0.0, 0.0))
    if not rig.registered.any():
        return SparseResult(rig, tracks, Adjustment(rig, False, "no view is registered", 0.0, 0.0))
    if (rig.held_pose & rig.held_intrinsics)[rig.registered].all():
        return SparseResult(rig, tracks, Adjustment(rig, False, "poses and intrinsics given", 0.0, 0.0))
    loss_px = LOSS_SIGMAS * sigma_px
    adjustment = adjust_bundle(rig, tracks, loss_px)
    if not adjustment.kept:
        return SparseResult(rig, tracks, adjustment)
    tracks = triangulate_tracks(adjustment.rig.projection, candidates, *limits)
    again = adjust_bundle(adjustment.rig, tracks, loss_px)
    if again.kept and not came_loose(rig, again.rig, tracks.points):
        adjustment = Adjustment(again.rig, True, again.status, adjustment.rms_before_px, again.rms_after_px)
        tracks = triangulate_tracks(again.rig.projection, candidates, *limits)
    return SparseResult(adjustment.rig, tracks, adjustment)


def residual_sigma_px(rig: Rig, tracks: TriangulatedTracks, most_px: float) -> float:
    """Standard deviation of a coordinate of the residuals, px, from their median length; `most_px` without any.

    Points absorb a part of the observations' noise: two thirds of it remain in tracks of a few views.
    """
    if not len(tracks.obs):
        return most_px
    error = errors_px(rig.projection, tracks.obs, tracks.points)
    return float(np.clip(np.median(error) / _RAYLEIGH, _LEAST_SIGMA_PX, most_px))


@dataclass(frozen=True, eq=False)
class _MatchLoader:
    """Matches on the object of the pairs that take part."""

    matched: MatchedPairs
    masks: Sequence[Array]  # (H, W) bool of every view
    takes_part: Array  # (P,) bool

    def __call__(self, number: int) -> PairMatches:
        if not self.takes_part[number]:
            return PairMatches.empty()
        verified = self.matched.load(number)
        if verified.rejected:
            return PairMatches.empty()
        i, j = self.matched.pairs[number]
        return verified.matches.select(on_foreground(verified, self.masks[i], self.masks[j]))


def _match_loader(views: Sequence[View], alignment: Alignment, matched: MatchedPairs) -> _MatchLoader:
    """Pairs take part whose views are both registered and which the alignment did not drop."""
    names, registered, dropped = alignment.names, alignment.registered, alignment.dropped_names
    takes_part = [registered[i] and registered[j] and (names[i], names[j]) not in dropped for i, j in matched.pairs]
    return _MatchLoader(matched, [view.mask for view in views], np.array(takes_part, bool))


def inside_masks(sparse: SparseResult, masks: list[Array], limit_px: float, tolerated: float) -> SparseResult:
    """Without tracks whose point lies outside the masks of more views than a `tolerated` share of its own views."""
    tracks = sparse.tracks
    if len(tracks.points) == 0:
        return sparse
    votes = outside_votes(sparse.rig, masks, tracks.points, limit_px)
    keep = votes <= tolerated * tracks.obs.lengths
    inside = TriangulatedTracks(
        tracks.obs.select(keep[tracks.obs.point_index]), tracks.points[keep], tracks.covariance[keep], tracks.rejected
    )
    return SparseResult(sparse.rig, inside, sparse.adjustment)
