"""Two-view geometry of calibrated cameras: essential matrix, Sampson refinement, triangulation of a pair.

Bearings are camera-frame rays with z = 1. The relative pose is ``j_from_i`` with a unit translation: points of
camera i's frame taken to camera j's. Functions with a leading batch axis B take padded pairs: entries whose weight is
zero do not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sparse_ga.geometry.transforms import exp_so3, nearest_rotation, rotation_angle_deg, skew
from sparse_ga.products import Array

_RIVAL_COST = 3.0  # log likelihood by which a solution may be worse and still count as a rival: odds of 20 to 1


@dataclass(frozen=True, eq=False)
class RelativePose:
    """Pose of a pair up to scale, and which correspondences agree with it."""

    rotation: Array  # (3, 3), j_from_i
    translation: Array  # (3,), j_from_i, unit length
    inliers: Array  # (M,) bool
    ambiguity_deg: float  # how far the rotations of solutions that are nearly as likely lie from this one

    @property
    def certainty(self) -> float:
        """Weight in (0, 1] that a pose of this ambiguity deserves beside others; 1/2 at 5 degrees."""
        return 1 / (1 + (self.ambiguity_deg / 5) ** 2)


def homogeneous(xy: Array) -> Array:
    """(..., 3) from (..., 2)."""
    return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)


def essential(rotation: Array, translation: Array) -> Array:
    """Essential matrix (..., 3, 3) with ``ray_j . E ray_i = 0`` of ``j_from_i``."""
    return skew(translation) @ rotation


def sampson(rays_i: Array, rays_j: Array, essential_j_i: Array) -> Array:
    """Signed Sampson distance (..., M) of rays (..., M, 3), in units of the ray plane (px / focal).

    Hartley and Zisserman, Multiple View Geometry, eq. 11.9, square root.
    """
    line_j = rays_i @ np.swapaxes(essential_j_i, -1, -2)  # (..., M, 3)
    line_i = rays_j @ essential_j_i  # (..., M, 3)
    numerator = (rays_j * line_j).sum(-1)
    norm2 = (line_j[..., :2] ** 2).sum(-1) + (line_i[..., :2] ** 2).sum(-1)
    return numerator / np.sqrt(np.maximum(norm2, 1e-24))


@dataclass(frozen=True, eq=False)
class RayBatch:
    """Corresponding rays of B pairs; those of weight 0 do not count."""

    rays_i: Array  # (B, M, 3)
    rays_j: Array  # (B, M, 3)
    weights: Array  # (B, M)

    @staticmethod
    def repeated(count: int, rays_i: Array, rays_j: Array, weights: Array) -> RayBatch:
        """One pair's rays (M, 3) and weights (M,) for `count` poses to be tried on."""
        shape = (count, len(rays_i), 3)
        weights = np.broadcast_to(weights, shape[:2])
        return RayBatch(np.broadcast_to(rays_i, shape), np.broadcast_to(rays_j, shape), weights)

    def errors(self, rotation: Array, translation: Array) -> Array:
        """Signed Sampson distance (B, M) under poses (B, 3, 3), (B, 3)."""
        return sampson(self.rays_i, self.rays_j, essential(rotation, translation))

    def costs(self, rotation: Array, translation: Array, scale: float) -> Array:
        """Cauchy cost (B,) of poses (B, 3, 3), (B, 3): a negative log likelihood; `scale` in units of `errors`."""
        return (self.weights * np.log1p((self.errors(rotation, translation) / scale) ** 2)).sum(-1)


def refine_relative_poses(
    batch: RayBatch, rotation: Array, translation: Array, scale: float, iterations: int = 12
) -> tuple[Array, Array]:
    """Poses (B, 3, 3), (B, 3) that lower the robust (Cauchy) Sampson error of a batch of pairs.

    Gauss-Newton on rotation and the direction of translation, iteratively reweighted; `scale` is the Cauchy scale in
    the units of `sampson`. A step that does not lower a pair's cost is halved, then dropped: the result is never worse.
    """
    rotation, translation = rotation.copy(), translation.copy()
    cost = batch.costs(rotation, translation, scale)  # (B,)
    for _ in range(iterations):
        step = _sampson_step(batch, rotation, translation, scale)  # (B, 5)
        before = cost.copy()
        for damp in (1.0, 0.5, 0.1):
            r_new, t_new = _retract(rotation, translation, damp * step)
            cost_new = batch.costs(r_new, t_new, scale)
            better = (cost == before) & (cost_new < cost)
            rotation[better], translation[better], cost[better] = r_new[better], t_new[better], cost_new[better]
            if (cost < before).all():
                break
        if (before - cost).max() < 1e-3:  # in units of log likelihood
            break
    return rotation, translation


def _tangent(direction: Array) -> Array:
    """Two unit vectors (B, 3, 2) orthogonal to unit vectors (B, 3) and to each other."""
    other = np.eye(3)[np.abs(direction).argmin(-1)]  # (B, 3)
    first = _cross(direction, other)
    first /= np.linalg.norm(first, axis=-1, keepdims=True)
    return np.stack([first, _cross(direction, first)], -1)


def _cross(a: Array, b: Array) -> Array:
    """Cross products (..., 3); several times faster than `np.cross` on small arrays."""
    return np.stack(
        [
            a[..., 1] * b[..., 2] - a[..., 2] * b[..., 1],
            a[..., 2] * b[..., 0] - a[..., 0] * b[..., 2],
            a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0],
        ],
        -1,
    )


def _retract(rotation: Array, translation: Array, step: Array) -> tuple[Array, Array]:
    """Pose after a step (B, 5): rotation vector (left), then two tangent coordinates of the translation."""
    moved = translation + (_tangent(translation) @ step[:, 3:, None])[..., 0]
    return exp_so3(step[:, :3]) @ rotation, moved / np.linalg.norm(moved, axis=-1, keepdims=True)


def _sampson_jacobian(rays_i: Array, rays_j: Array, rotation: Array, translation: Array) -> tuple[Array, Array]:
    """Sampson distances (B, M) and their derivatives (B, M, 5) by `_retract`'s step, gradient norms held fixed."""
    matrix = essential(rotation, translation)
    turned = rays_i @ np.swapaxes(rotation, -1, -2)  # (B, M, 3), R ray_i
    line_j = rays_i @ np.swapaxes(matrix, -1, -2)
    line_i = rays_j @ matrix
    norm = np.sqrt(np.maximum((line_j[..., :2] ** 2).sum(-1) + (line_i[..., :2] ** 2).sum(-1), 1e-24))  # (B, M)
    t = translation[:, None, :]
    d_rotation = rays_j * (t * turned).sum(-1, keepdims=True) - t * (rays_j * turned).sum(-1, keepdims=True)
    d_translation = _cross(turned, rays_j) @ _tangent(translation)  # (B, M, 2)
    jacobian = np.concatenate([d_rotation, d_translation], -1) / norm[..., None]  # (B, M, 5)
    return (rays_j * line_j).sum(-1) / norm, jacobian


def _sampson_step(batch: RayBatch, rotation: Array, translation: Array, scale: float) -> Array:
    """Gauss-Newton step (B, 5) of the Cauchy Sampson cost, gradient norms held fixed."""
    residual, jacobian = _sampson_jacobian(batch.rays_i, batch.rays_j, rotation, translation)
    w = batch.weights / (1 + (residual / scale) ** 2)
    normal = np.einsum("bmk,bm,bml->bkl", jacobian, w, jacobian)
    gradient = np.einsum("bmk,bm,bm->bk", jacobian, w, residual)
    ridge = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-18
    return -np.linalg.solve(normal + ridge * np.eye(5), gradient[..., None])[..., 0]


def rotation_sigma_deg(rays_i: Array, rays_j: Array, pose: RelativePose, sigma: float) -> float:
    """Standard deviation in degrees of a pose's rotation, from its inliers among rays (M, 3) whose Sampson distances
    have the standard deviation `sigma` (px / focal); infinite where they do not determine it."""
    ends = rays_i[pose.inliers][None], rays_j[pose.inliers][None]
    _, jacobian = _sampson_jacobian(*ends, pose.rotation[None], pose.translation[None])
    normal = jacobian[0].T @ jacobian[0]  # (5, 5)
    value, vector = np.linalg.eigh(normal)
    if value[0] <= 1e-12 * max(value[-1], 1e-300):
        return float("inf")
    variance = ((vector[:3] ** 2) / value).sum()
    return float(np.degrees(sigma * np.sqrt(variance)))


def midpoint_depths(rays_i: Array, rays_j: Array, rotation: Array, translation: Array) -> tuple[Array, Array]:
    """Depths (M,) along z of the closest points of corresponding rays (M, 3), in cameras i and j.

    Least squares over both depths of ``depth_j ray_j = R depth_i ray_i + t``; negative for points behind a camera.
    """
    turned = rays_i @ rotation.T  # (M, 3)
    aa, bb, ab = (turned**2).sum(-1), (rays_j**2).sum(-1), (turned * rays_j).sum(-1)
    at, bt = turned @ translation, rays_j @ translation
    det = np.maximum(aa * bb - ab**2, 1e-18)
    return (ab * bt - bb * at) / det, (aa * bt - ab * at) / det


def ray_angles_deg(rays_i: Array, rays_j: Array, rotation: Array) -> Array:
    """Angles (M,) in degrees between corresponding rays: the triangulation angles."""
    turned = rays_i @ rotation.T
    cross = np.linalg.norm(np.cross(turned, rays_j), axis=-1)
    return np.degrees(np.arctan2(cross, (turned * rays_j).sum(-1)))


def optimal_rays(rays_i: Array, rays_j: Array, rotation: Array, translation: Array) -> tuple[Array, Array]:
    """Rays moved the least so that they meet (first-order optimal correction, Lindstrom, CVPR 2010, one step)."""
    matrix = essential(rotation, translation)
    line_j, line_i = rays_i @ matrix.T, rays_j @ matrix  # (M, 3)
    norm2 = (line_j[:, :2] ** 2).sum(-1) + (line_i[:, :2] ** 2).sum(-1)
    shift = ((rays_j * line_j).sum(-1) / np.maximum(norm2, 1e-24))[:, None]
    moved_i, moved_j = rays_i.copy(), rays_j.copy()
    moved_i[:, :2] -= shift * line_i[:, :2]
    moved_j[:, :2] -= shift * line_j[:, :2]
    return moved_i, moved_j


def estimate_relative_pose(
    rays_i: Array, rays_j: Array, threshold: float, reliable: Array | None = None, independent: float = 1.0
) -> RelativePose | None:
    """Relative pose of a pair from rays (M, 3) with outliers, or None if there is none, or a ray is not finite.

    USAC with MAGSAC scoring (OpenCV), the four decompositions told apart by cheirality; beside it, poses from affine
    epipolar geometry, which long focal lengths need (there the five-point solver is ill-conditioned and often ends in
    a solution without parallax). Sampson refinement of all of them; the lowest robust cost wins.
    `threshold` is the inlier distance in ray-plane units (px / focal). Samples are drawn among the `reliable` (M,) bool
    correspondences where there are enough of them; all others may join as inliers afterwards. `independent` is the
    share of correspondences that are evidence of their own, for `ambiguity_deg`.
    """
    if len(rays_i) < 6 or not (np.isfinite(rays_i).all() and np.isfinite(rays_j).all()):
        return None
    drawn = np.ones(len(rays_i), bool) if reliable is None or reliable.sum() < 12 else reliable
    starts = _affine_starts(rays_i[drawn], rays_j[drawn], threshold)
    sampled = _usac(rays_i[drawn], rays_j[drawn], threshold)
    if sampled is not None:
        starts.append(sampled)
    if not starts:
        return None
    batch = RayBatch.repeated(len(starts), rays_i, rays_j, np.ones(len(rays_i)))
    scale = threshold / 2
    rotations, translations = refine_relative_poses(
        batch, np.stack([r for r, _ in starts]), np.stack([t for _, t in starts]), scale
    )
    cost = batch.costs(rotations, translations, scale)  # (B,)
    best = int(cost.argmin())
    rotation, translation = rotations[best], translations[best]
    rivals = rotations[cost < cost[best] + _RIVAL_COST / independent]
    ambiguity = float(rotation_angle_deg(np.swapaxes(rivals, 1, 2) @ rotation).max())
    inliers = np.abs(sampson(rays_i, rays_j, essential(rotation, translation))) < threshold
    rotation, translation, front = _choose_side(rays_i, rays_j, rotation, translation, inliers)
    return RelativePose(rotation, translation, inliers & front, ambiguity)


def _affine_starts(rays_i: Array, rays_j: Array, threshold: float) -> list[tuple[Array, Array]]:
    """Poses (rotation, unit translation) that fit the affine epipolar geometry of the rays, for a fan of turn angles.

    Affine epipolar geometry (Shapiro, Zisserman and Brady, IJCV 1995) fixes the rotation but for the angle turned
    about the axis in the image plane, the bas-relief ambiguity; that angle is what perspective has to decide.
    """
    plane = _affine_epipolar(np.concatenate([rays_i[:, :2], rays_j[:, :2]], 1), threshold)
    if plane is None:
        return []
    normal, inliers = plane
    lengths = np.linalg.norm(normal[:2]), np.linalg.norm(normal[2:])
    if min(lengths) < 1e-6:
        return []
    roll_i, roll_j = _roll_to_y(normal[:2] / lengths[0]), _roll_to_y(-normal[2:] / lengths[1])
    angles = np.radians([-65.0, -40, -25, -14, -7, 7, 14, 25, 40, 65])
    turn = exp_so3(angles[:, None] * np.array([0.0, 1.0, 0.0]))  # (10, 3, 3)
    rotations = roll_j.T @ turn @ roll_i
    rows = np.cross(rays_i[inliers] @ np.swapaxes(rotations, 1, 2), rays_j[inliers])  # (10, M, 3), orthogonal to t
    directions = np.linalg.eigh(np.swapaxes(rows, 1, 2) @ rows)[1][:, :, 0]
    return list(zip(rotations, directions))


def _affine_epipolar(points: Array, threshold: float, samples: int = 400) -> tuple[Array, Array] | None:
    """Unit normal (4,) of the hyperplane that most points (M, 4) = (x_i, y_i, x_j, y_j) lie in, and which do (M,)."""
    if len(points) < 5:
        return None
    rng = np.random.default_rng(len(points))
    chosen = points[rng.integers(0, len(points), (samples, 4))]  # (S, 4, 4)
    centre = chosen.mean(1)
    normals = np.linalg.svd(chosen - centre[:, None])[2][:, 3]  # (S, 4)
    distance = np.abs(points @ normals.T - (normals * centre).sum(1))  # (M, S)
    best = int(np.minimum(distance, 2 * threshold).sum(0).argmin())
    inliers = distance[:, best] < 2 * threshold
    if inliers.sum() < 5:
        return None
    kept = points[inliers] - points[inliers].mean(0)
    return np.linalg.svd(kept, full_matrices=False)[2][3], inliers


def _roll_to_y(direction: Array) -> Array:
    """Rotation (3, 3) about the optical axis that takes an image direction (2,) to +y."""
    x, y = direction
    return np.array([[y, -x, 0.0], [x, y, 0.0], [0.0, 0.0, 1.0]])


def _usac(rays_i: Array, rays_j: Array, threshold: float) -> tuple[Array, Array] | None:
    """Rotation and unit translation by OpenCV's USAC; deterministic."""
    xy_i, xy_j = np.ascontiguousarray(rays_i[:, :2]), np.ascontiguousarray(rays_j[:, :2])
    try:
        matrix, mask = cv2.findEssentialMat(xy_i, xy_j, np.eye(3), cv2.USAC_MAGSAC, 0.9999, threshold)
    except cv2.error:
        return None
    if matrix is None or matrix.shape[0] < 3 or not np.isfinite(matrix).all():
        return None
    rotation_a, rotation_b, direction = cv2.decomposeEssentialMat(matrix[:3])
    inliers = mask.ravel() > 0
    if inliers.sum() < 5:
        return None
    best, best_count = None, 0
    for rotation in (rotation_a, rotation_b):
        for translation in (direction[:, 0], -direction[:, 0]):
            depth_i, depth_j = midpoint_depths(rays_i[inliers], rays_j[inliers], rotation, translation)
            count = int(((depth_i > 0) & (depth_j > 0)).sum())
            if count > best_count:
                best, best_count = (nearest_rotation(rotation), translation / np.linalg.norm(translation)), count
    return best


def _choose_side(
    rays_i: Array, rays_j: Array, rotation: Array, translation: Array, inliers: Array
) -> tuple[Array, Array, Array]:
    """The sign of translation that puts most inliers in front of both cameras, and who is in front (M,)."""
    fronts = []
    for sign in (1.0, -1.0):
        depth_i, depth_j = midpoint_depths(rays_i, rays_j, rotation, sign * translation)
        fronts.append((depth_i > 0) & (depth_j > 0))
    side = int((fronts[1] & inliers).sum() > (fronts[0] & inliers).sum())
    return rotation, (1.0, -1.0)[side] * translation, fronts[side]
