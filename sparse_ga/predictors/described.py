"""Relative pose of a pair from the descriptor network's dense matches: for pairs on which SIFT finds none."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from sparse_ga.geometry.cameras import rays
from sparse_ga.geometry.transforms import rotation_angle_deg
from sparse_ga.geometry.two_view import (
    RayBatch,
    RelativePose,
    estimate_relative_pose,
    midpoint_depths,
    ray_angles_deg,
    refine_relative_poses,
    rotation_sigma_deg,
)
from sparse_ga.matching.dense import DenseMatches, match_described
from sparse_ga.network.descriptor_cnn import DenseDescriptor, DescriptorMap
from sparse_ga.predictors.base import Features
from sparse_ga.products import Array, PairMatches, View

FIRST_SIZE = 192
"""Side in px of the square the object is brought to for the first look."""
_CELL = 5  # grid points; neighbours share most of what their affine maps are fitted to
_AGREE_SIGMAS = 2.0
_KNOWN_PAIRS = 500  # about 50 MB
_INDEPENDENT = 1 / _CELL**2  # share of dense matches that say something of their own


@dataclass(frozen=True)
class DenseSettings:
    """When dense matches are believed."""

    min_share: float = 0.35
    """Of the reciprocal matches, as many must agree with their neighbours: views that show the same surface do."""
    min_inlier_share: float = 0.85
    """Of those, as many must agree with one epipolar geometry."""
    enough_share: float = 0.4
    """Or as many of all reciprocal matches: parts that repeat, such as legs, bring wrong matches that agree with their
    neighbours; on rendered objects wrong geometries found a third of all matches at most."""
    min_matches: int = 60
    min_angle_deg: float = 5.0
    """Median triangulation angle: matches a few pixels off tell no pose from less parallax."""
    max_sigma_deg: float = 15.0
    """Standard deviation of the pose's rotation: a long lens sees little perspective, and matches that are a few pixels
    off tell no pose there."""


@dataclass(frozen=True, eq=False)
class DensePose:
    """A pair's pose and those of its inliers that go on, one for every few pixels."""

    pose: RelativePose  # ambiguity_deg is at least the rotation's standard deviation
    matches: PairMatches  # confidence: 1 / sigma^2 in working px, as of SIFT's

    def confirms(self, other: RelativePose) -> bool:
        """Whether another pose of the pair has the same rotation, as far as the two are known.

        Translations are not compared: over a small angle they are known worse than rotations by an order.
        """
        turn = float(rotation_angle_deg(self.pose.rotation.T @ other.rotation))
        return turn < _AGREE_SIGMAS * float(np.hypot(self.pose.ambiguity_deg, other.ambiguity_deg))


def pack(described: DescriptorMap) -> Features:
    """What `unpack` needs: descriptors (P, D) float16 of the P points `described_on` (h, w) bool, and their frame."""
    return {
        "described": described.descriptors[described.valid].astype(np.float16),
        "described_on": described.valid,
        "described_frame": described.view_from_grid,
    }


def unpack(features: Features) -> DescriptorMap:
    """The map that was packed, with descriptors of 0 off the object; reliabilities are not kept (all 1)."""
    on = features["described_on"]
    descriptors = np.zeros((*on.shape, features["described"].shape[1]), np.float32)
    values = features["described"].astype(np.float32)
    descriptors[on] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
    return DescriptorMap(descriptors, on.astype(np.float32), on, features["described_frame"])


class DenseMatcher:
    """`match_described` on packed maps, which remembers the last pairs.

    Calibration by reconstruction asks for the same pairs with one focal length after another, and matches know of none.
    """

    def __init__(self, describer: DenseDescriptor, least_share: float) -> None:
        """Views of whose reciprocal matches less than `least_share` agree with their neighbours get one look only."""
        self.describer, self.least_share = describer, least_share
        self._known: OrderedDict[bytes, DenseMatches] = OrderedDict()

    def match(self, views: tuple[View, View], features: tuple[Features, Features]) -> DenseMatches:
        """The matches of two views and what `pack` made of their maps."""
        key = b"".join(_digest(f) for f in features)
        found = self._known.pop(key, None)
        if found is None:
            maps = unpack(features[0]), unpack(features[1])
            found = match_described(self.describer, views, maps, self.least_share)
        self._known[key] = found
        if len(self._known) > _KNOWN_PAIRS:
            self._known.popitem(last=False)
        return found


def _digest(features: Features) -> bytes:
    state = hashlib.sha256()
    for name in ("described", "described_on", "described_frame"):
        state.update(np.ascontiguousarray(features[name]).tobytes())
    return state.digest()


def dense_pose(found: DenseMatches, cameras: tuple[Array, Array], settings: DenseSettings) -> DensePose | str:
    """j_from_i of two views with intrinsics `cameras` (3, 3), or why there is none to be relied on."""
    if len(found.matches) < settings.min_matches:
        return f"only {len(found.matches)} dense matches agree with those around them"
    if found.share < settings.min_share:
        return f"only {100 * found.share:.0f} % of the dense matches agree with those around them"
    ends = [rays(k, xy.astype(float)) for k, xy in zip(cameras, (found.matches.xy_i, found.matches.xy_j))]
    reach = _reach(found, cameras)
    pose = estimate_relative_pose(ends[0], ends[1], reach, independent=_INDEPENDENT)
    share = 0.0 if pose is None else float(pose.inliers.mean())
    too_few = share < settings.min_inlier_share and found.share * share < settings.enough_share
    if pose is None or too_few:
        return f"only {100 * share:.0f} % of the dense matches agree on an epipolar geometry"
    angle = float(np.median(ray_angles_deg(ends[0][pose.inliers], ends[1][pose.inliers], pose.rotation)))
    if angle < settings.min_angle_deg:
        return f"triangulation angle {angle:.1f} degrees: too little for dense matches"
    sigma_deg = rotation_sigma_deg(ends[0], ends[1], pose, reach / math.sqrt(_INDEPENDENT))
    if sigma_deg > settings.max_sigma_deg:
        return f"the dense matches leave the rotation uncertain by {sigma_deg:.0f} degrees"
    chosen = _sparse(found, pose.inliers)
    inliers = np.ones(len(chosen), bool)
    matches = found.matches.select(chosen)
    sigma = np.full(len(chosen), max(1.0, found.spacing_i_px, found.spacing_j_px), np.float32)
    matches = PairMatches(matches.xy_i, matches.xy_j, 1 / sigma**2)
    known = RelativePose(pose.rotation, pose.translation, inliers, max(pose.ambiguity_deg, sigma_deg))
    return DensePose(known, matches)


def _reach(found: DenseMatches, cameras: tuple[Array, Array]) -> float:
    """How far off, as a Sampson distance of rays, matches that are a grid point off may be.

    That distance is shared out between both views' coordinates, and is the smaller where one view is the finer.
    """
    steps = [s / k[0, 0] for s, k in zip((found.spacing_i_px, found.spacing_j_px), cameras)]
    return math.sqrt(2 / (steps[0] ** -2 + steps[1] ** -2))


def joint_pose(
    poses: tuple[RelativePose, RelativePose], rays_i: Array, rays_j: Array, weights: Array, scale: float
) -> RelativePose:
    """The pose that keypoint and dense matches together, rays (M, 3) with `weights` (M,), make likeliest.

    Refined from both poses by the robust Sampson error of `scale` (px / focal), which does not know which way a
    translation points: that puts most matches in front of both cameras. These are its inliers, and the lesser ambiguity
    is its own.
    """
    batch = RayBatch.repeated(2, rays_i, rays_j, weights)
    rotation, translation = np.stack([p.rotation for p in poses]), np.stack([p.translation for p in poses])
    rotation, translation = refine_relative_poses(batch, rotation, translation, scale)
    best = int(batch.costs(rotation, translation, scale).argmin())
    forth, back = (_in_front(rays_i, rays_j, rotation[best], way * translation[best]) for way in (1, -1))
    way, front = (1, forth) if forth.sum() >= back.sum() else (-1, back)
    return RelativePose(rotation[best], way * translation[best], front, min(p.ambiguity_deg for p in poses))


def _in_front(rays_i: Array, rays_j: Array, rotation: Array, translation: Array) -> Array:
    """Matches (M,) bool that meet in front of both cameras."""
    depth_i, depth_j = midpoint_depths(rays_i, rays_j, rotation, translation)
    return (depth_i > 0) & (depth_j > 0)


def _sparse(found: DenseMatches, inliers: Array) -> Array:
    """Rows of the best supported inlier in every cell of `_CELL` grid points in view i, in order."""
    rows = np.flatnonzero(inliers)
    best_first = rows[np.argsort(-found.matches.confidence[rows], kind="stable")]
    cells = np.floor(found.matches.xy_i[best_first] / (_CELL * found.spacing_i_px)).astype(int)
    _, first = np.unique(cells, axis=0, return_index=True)
    return np.sort(best_first[first])
