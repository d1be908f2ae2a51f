"""Views that the view graph could not place, placed by the refined points that their matches see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sparse_ga.alignment.edges import usable
from sparse_ga.alignment.evidence import matches_on_object, points_of
from sparse_ga.alignment.inputs import Inputs
from sparse_ga.geometry.cameras import project
from sparse_ga.geometry.transforms import apply, inverse, skew
from sparse_ga.products import Alignment, Array, CanonicalView

_MIN_INLIERS = 15
_MAX_SIGMA_DEG = 3.0  # of a placed view's rotation
_LEAST_SIGMA_PX = 0.5  # matches are not believed to be better than this, however well a pose fits them


@dataclass(frozen=True)
class _Sightings:
    """World points that one unregistered view sees, by pair."""

    points: Array  # (M, 3)
    xy: Array  # (M, 2)
    pair: Array  # (M,)


def resect_views(alignment: Alignment, inputs: Inputs, refused: Array) -> tuple[Alignment, Array]:
    """The alignment with every unregistered view that its matches place beyond doubt, and which those are (N,) bool.

    A view is placed when one pose explains at least 15 of its matches, at least half of those of every pair that
    counts for it, when these tell its rotation to three degrees (points on one line do not), and when pairs that
    contradict the pose do not exist, or are outweighed and two others confirm it.
    Views that were `refused` (N,) bool before are left alone.
    """
    placed = np.zeros(len(inputs.views), bool)
    result = alignment
    for n, seen in _collect(alignment, inputs, refused).items():
        cam_from_world, valid = _pose(seen, alignment.intrinsics[n], 3.0 * inputs.config.loss_px)
        if valid:
            result = _with_view(result, inputs.canonical, n, cam_from_world, seen)
            placed[n] = True
    return result, placed


def _collect(alignment: Alignment, inputs: Inputs, refused: Array) -> dict[int, _Sightings]:
    """What every unregistered view sees of the registered ones."""
    parts: dict[int, list[tuple[Array, Array, int]]] = {}
    canonical = inputs.canonical
    for p, (i, j) in enumerate(inputs.pairs):
        if not usable((i, j), len(canonical)) or alignment.registered[i] == alignment.registered[j]:
            continue
        verified = inputs.load_matches(p)
        if verified.rejected is not None or (refused[i] or refused[j]):
            continue
        matches = matches_on_object(verified, canonical[i], canonical[j])
        if alignment.registered[j]:
            i, j, matches = j, i, matches.swap()
        points = apply(alignment.world_from_cam[i], points_of(alignment, canonical[i], i, matches.xy_i))
        parts.setdefault(j, []).append((points, matches.xy_j.astype(float), p))
    return {
        n: _Sightings(
            np.concatenate([part[0] for part in found]),
            np.concatenate([part[1] for part in found]),
            np.concatenate([np.full(len(part[0]), part[2]) for part in found]),
        )
        for n, found in sorted(parts.items())
    }


def _pose(seen: _Sightings, intrinsics: Array, tolerance_px: float) -> tuple[Array, bool]:
    """Pose (4, 4) cam from world by a minimal-sample consensus, and whether the pairs leave no doubt about it."""
    if len(seen.points) < _MIN_INLIERS:
        return np.eye(4), False
    params = cv2.UsacParams()
    params.threshold, params.confidence, params.maxIterations = tolerance_px, 0.9999, 5000
    params.randomGeneratorState = 0
    middle = seen.points.mean(0)  # OpenCV samples in float32, and given poses may be millions of units from the origin
    found, _, rotvec, translation, _ = cv2.solvePnPRansac(
        np.ascontiguousarray(seen.points - middle),
        np.ascontiguousarray(seen.xy),
        intrinsics,
        np.zeros(4),
        params=params,
    )
    if not found or not np.isfinite(rotvec).all() or not np.isfinite(translation).all():
        return np.eye(4), False
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(rotvec)[0]
    pose[:3, 3] = translation.ravel() - pose[:3, :3] @ middle
    there, front = project(intrinsics, apply(pose, seen.points))
    inlier = front & (np.linalg.norm(there - seen.xy, axis=-1) < 2 * tolerance_px)
    if inlier.sum() < _MIN_INLIERS:
        return pose, False
    seen_px = there[inlier] - seen.xy[inlier]  # (K, 2)
    sigma_px = max(float(np.sqrt((seen_px**2).sum() / (2 * len(seen_px) - 6))), _LEAST_SIGMA_PX)
    sigma_deg = turn_sigma_deg(apply(pose, seen.points[inlier]), intrinsics, sigma_px)
    return pose, sigma_deg < _MAX_SIGMA_DEG and _beyond_doubt(inlier, seen.pair)


def turn_sigma_deg(points: Array, intrinsics: Array, sigma_px: float) -> float:
    """Standard deviation of a camera's rotation, in degrees, that was found from points (M, 3) in its own frame.

    `sigma_px` is that of a coordinate of their pixels. Infinite where the points leave a direction of the pose open, as
    points on a line do: to turn about that line changes nothing.
    """
    centre = points.mean(0)
    size = max(float(np.sqrt(((points - centre) ** 2).sum(1).mean())), 1e-12)
    z = points[:, 2, None, None]
    ahead = np.broadcast_to(intrinsics[:2, :2], (len(points), 2, 2)) / z  # (M, 2, 2)
    by_point = np.concatenate([ahead, -ahead @ (points[:, :2, None] / z)], -1)  # (M, 2, 3), pixel by point
    by_turn = -by_point @ skew(points - centre)  # about the points' centre
    jacobian = np.concatenate([by_turn, by_point * size], -1).reshape(-1, 6)  # (2M, 6)
    value, vector = np.linalg.eigh(jacobian.T @ jacobian)
    if value[0] <= 1e-12 * value[-1]:
        return float("inf")
    return float(np.degrees(sigma_px * np.sqrt((vector[:3] ** 2 / value).sum())))


def _beyond_doubt(inlier: Array, pair: Array) -> bool:
    """Whether the pairs of a view confirm a pose that explains its matches `inlier` (M,) bool of `pair` (M,)."""
    support, confirming, against = 0, 0, 0
    for p in np.unique(pair):
        of_pair = inlier[pair == p]
        if of_pair.mean() >= 0.5 and of_pair.sum() >= 6:
            support += int(of_pair.sum())
            confirming += 1
        elif of_pair.mean() < 0.2 and len(of_pair) >= 12:
            against += len(of_pair)
    return support >= _MIN_INLIERS and (against == 0 or (confirming >= 2 and support > against))


def _with_view(
    alignment: Alignment, canonical: Sequence[CanonicalView], n: int, cam_from_world: Array, seen: _Sightings
) -> Alignment:
    """The alignment with view n registered at a pose, its canonical depths scaled to the points it sees."""
    pixel = np.rint(seen.xy).astype(int)
    depth = apply(cam_from_world, seen.points)[:, 2]
    ratio = depth / canonical[n].depth[pixel[:, 1], pixel[:, 0]]
    scale = float(np.median(ratio[depth > 0]))
    registered, poses = alignment.registered.copy(), alignment.world_from_cam.copy()
    registered[n], poses[n] = True, inverse(cam_from_world)
    depths = alignment.anchor_depth.copy()
    depths[alignment.anchor_start[n] : alignment.anchor_start[n + 1]] = canonical[n].anchor_depth * scale
    reasons = tuple("" if k == n else reason for k, reason in enumerate(alignment.reasons))
    return replace(alignment, registered=registered, world_from_cam=poses, anchor_depth=depths, reasons=reasons)
