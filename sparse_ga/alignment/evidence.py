"""What the matches of every pair say of an alignment: for it, against it, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ga.alignment.edges import on_foreground, usable
from sparse_ga.geometry.cameras import project, rays
from sparse_ga.geometry.transforms import apply, inverse, skew
from sparse_ga.products import Alignment, Array, CanonicalView, PairMatches, VerifiedMatches

_TESTED_MATCHES = 300
_NEAR = 0.12  # of the object's size: how far a reprojection may be off that rests on one pair's depth


@dataclass(frozen=True)
class PairEvidence:
    """Share of a pair's matches that agree with the alignment, -1 where nothing was tested; how far off they are.

    A pair can agree because its own depths gave way: matches that lie further off than usual are no confirmation of
    anything.
    """

    share: Array  # (P,)
    median_px: Array  # (P, 2) median distance from the epipolar line, and from the reprojected point
    score: Array  # (P,) of the match stage

    def confirms(self, usual: float = 1.6) -> Array:
        """Pairs (P,) bool whose matches agree no worse than those of most pairs, by a factor `usual`."""
        good = self.share > 0.6
        typical = np.median(self.median_px[good], axis=0) if good.any() else np.zeros(2)
        return (self.share > 0.2) & (self.median_px <= usual * typical).all(-1)


def matches_on_object(verified: VerifiedMatches, view_i: CanonicalView, view_j: CanonicalView) -> PairMatches:
    """The matches with both ends on the two views' foreground."""
    return verified.matches.select(on_foreground(verified, view_i.anchor_of_pixel >= 0, view_j.anchor_of_pixel >= 0))


def gather_evidence(
    alignment: Alignment,
    canonical: Sequence[CanonicalView],
    pairs: Sequence[tuple[int, int]],
    load_matches: Callable[[int], VerifiedMatches],
    loss_px: float,
) -> PairEvidence:
    """Test every pair between registered views whose matching was not rejected."""
    share, median_px, score = np.full(len(pairs), -1.0), np.zeros((len(pairs), 2)), np.zeros(len(pairs))
    for p, (i, j) in enumerate(pairs):
        if not usable((i, j), len(canonical)) or not (alignment.registered[i] and alignment.registered[j]):
            continue
        verified = load_matches(p)
        if verified.rejected is not None:
            continue
        matches = matches_on_object(verified, canonical[i], canonical[j])
        score[p] = max(float(verified.score), 0.02)
        if len(matches):
            step = np.linspace(0, len(matches) - 1, min(len(matches), _TESTED_MATCHES)).astype(int)
            share[p], median_px[p] = agreement(alignment, canonical, (i, j), matches.select(step), 3.0 * loss_px)
    return PairEvidence(share, median_px, score)


def agreement(
    alignment: Alignment,
    canonical: Sequence[CanonicalView],
    pair: tuple[int, int],
    matches: PairMatches,
    tolerance_px: float,
) -> tuple[float, Array]:
    """Share of the matches on their epipolar lines and near where the depths put them; both distances' medians px."""
    i, j = pair
    k_i, k_j = alignment.intrinsics[i], alignment.intrinsics[j]
    j_from_i = inverse(alignment.world_from_cam[j]) @ alignment.world_from_cam[i]
    distance = sampson_px((k_i, k_j), j_from_i, matches)
    there, front = project(k_j, apply(j_from_i, points_of(alignment, canonical[i], i, matches.xy_i)))
    size = np.linalg.norm(np.ptp(canonical[j].anchor_xy, axis=0)) if len(canonical[j].anchor_xy) else 0.0
    off = np.where(front, np.linalg.norm(there - matches.xy_j, axis=-1), 1e3)
    near = off < max(_NEAR * float(size), 2 * tolerance_px)
    return float((near & (distance < tolerance_px)).mean()), np.array([np.median(distance), np.median(off)])


def points_of(alignment: Alignment, view: CanonicalView, n: int, xy: Array) -> Array:
    """Camera-frame points (M, 3) in world units of pixels `xy` (M, 2) of view n, from the depths of their anchors."""
    pixel = np.rint(xy).astype(int)
    anchor = view.anchor_of_pixel[pixel[:, 1], pixel[:, 0]]
    ratio = view.depth[pixel[:, 1], pixel[:, 0]].astype(float) / view.anchor_depth[anchor]
    depth = alignment.anchor_depth[alignment.anchor_start[n] + anchor] * ratio
    return rays(alignment.intrinsics[n], xy.astype(float)) * depth[:, None]


def sampson_px(intrinsics: tuple[Array, Array], j_from_i: Array, matches: PairMatches) -> Array:
    """Sampson distances (M,) px of matches to a relative pose; 0 where two cameras are in one place."""
    fundamental = (
        np.linalg.inv(intrinsics[1]).T @ skew(j_from_i[:3, 3]) @ j_from_i[:3, :3] @ np.linalg.inv(intrinsics[0])
    )
    ones = np.ones((len(matches), 1))
    x_i = np.concatenate([matches.xy_i.astype(float), ones], 1)
    x_j = np.concatenate([matches.xy_j.astype(float), ones], 1)
    line_j, line_i = x_i @ fundamental.T, x_j @ fundamental
    norm2 = (line_j[:, :2] ** 2).sum(-1) + (line_i[:, :2] ** 2).sum(-1)
    return np.abs((x_j * line_j).sum(-1)) / np.sqrt(np.maximum(norm2, 1e-300))
