"""Bundle adjustment of cameras, free 3D points and one shared focal length: a compact Levenberg-Marquardt solver.

Points are eliminated by the Schur complement (Triggs et al., Bundle Adjustment - A Modern Synthesis, section 6.1);
observations carry a Cauchy loss by iterative reweighting. Used where many small problems are solved in a row
(self-calibration); the final bundle adjustment of a reconstruction is pycolmap's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse

from sparse_ga.geometry.transforms import exp_so3, skew
from sparse_ga.products import Array

MISSING_COST = float(np.log1p(9.0))
"""Cauchy cost, at a loss of 1 px, of what is 3 px off: what an observation counts that a reconstruction cannot
explain, and the most that any counts where reconstructions are compared."""


@dataclass(frozen=True, eq=False)
class Observations:
    """Which view sees which point where, pixels relative to the principal point."""

    view: Array  # (O,) int
    point: Array  # (O,) int
    xy: Array  # (O, 2) px, principal point subtracted
    sigma: Array  # (O,) standard deviation of xy, in units of the loss scale


@dataclass(frozen=True, eq=False)
class Bundle:
    """Cameras, points and the focal length they share."""

    rotation: Array  # (V, 3, 3), cam_from_world
    translation: Array  # (V, 3), cam_from_world
    points: Array  # (P, 3), world
    focal_px: float


def reprojection(bundle: Bundle, obs: Observations) -> tuple[Array, Array]:
    """Residuals (O, 2), px over sigma, and camera-frame points (O, 3).

    Points at or behind a camera are clamped to z = 1e-6.
    """
    cam = np.einsum("oij,oj->oi", bundle.rotation[obs.view], bundle.points[obs.point]) + bundle.translation[obs.view]
    cam[:, 2] = np.maximum(cam[:, 2], 1e-6)
    return (cam[:, :2] / cam[:, 2:] * bundle.focal_px - obs.xy) / obs.sigma[:, None], cam


def robust_cost(residual: Array, loss_px: float) -> Array:
    """Cauchy cost (O,) of residuals (O, 2)."""
    return np.log1p((residual**2).sum(-1) / loss_px**2)


def triangulate_rays(bundle: Bundle, obs: Observations) -> Array:
    """Points (P, 3) nearest in the least-squares sense to all their viewing rays."""
    rays = np.concatenate([obs.xy / bundle.focal_px, np.ones((len(obs.xy), 1))], 1)
    direction = np.einsum("oij,oi->oj", bundle.rotation[obs.view], rays)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centre = -np.einsum("vij,vi->vj", bundle.rotation, bundle.translation)[obs.view]
    project = np.eye(3) - direction[:, :, None] * direction[:, None]  # (O, 3, 3)
    normal = _sum_by(project, obs.point, len(bundle.points))
    right = _sum_by(np.einsum("oij,oj->oi", project, centre), obs.point, len(bundle.points))
    return np.linalg.solve(normal + 1e-9 * np.eye(3), right[..., None])[..., 0]


def _sum_by(values: Array, index: Array, size: int) -> Array:
    """Sums (size, ...) of values (O, ...) by index (O,)."""
    flat = values.reshape(len(values), -1)
    total = sparse.csr_matrix((np.ones(len(index)), (index, np.arange(len(index)))), shape=(size, len(index))) @ flat
    return total.reshape(size, *values.shape[1:])


@dataclass(frozen=True, eq=False)
class _Normal:
    """Normal equations, camera part dense (C = 6 V + 1, the last is log focal), point part in blocks."""

    cameras: Array  # (C, C)
    gradient_cameras: Array  # (C,)
    points: Array  # (P, 3, 3)
    gradient_points: Array  # (P, 3)
    coupling: sparse.csr_matrix  # (C, 3 P)


def _linearise(bundle: Bundle, obs: Observations, loss_px: float) -> _Normal:
    residual, cam = reprojection(bundle, obs)
    count, views, points = len(residual), len(bundle.rotation), len(bundle.points)
    root = np.sqrt(1 / (1 + (residual**2).sum(1) / loss_px**2))[:, None]  # (O, 1)
    scale = root / obs.sigma[:, None]
    d_cam = np.zeros((count, 2, 3))  # (O, 2, 3)
    d_cam[:, 0, 0] = d_cam[:, 1, 1] = bundle.focal_px / cam[:, 2]
    d_cam[:, :, 2] = -bundle.focal_px * cam[:, :2] / cam[:, 2:] ** 2
    d_cam *= scale[..., None]
    turned = cam - bundle.translation[obs.view]
    d_pose = np.concatenate([-d_cam @ skew(turned), d_cam], 2)  # (O, 2, 6)
    d_focal = scale * bundle.focal_px * cam[:, :2] / cam[:, 2:]  # (O, 2)
    d_focal += d_cam[:, :, 2] * bundle.translation[obs.view, 2:]  # the world's origin moves off as the lens zooms in
    d_point = d_cam @ bundle.rotation[obs.view]  # (O, 2, 3)
    rows = np.arange(2 * count).reshape(count, 2, 1)
    pose_cols = np.broadcast_to((6 * obs.view)[:, None, None] + np.arange(6), d_pose.shape)
    point_cols = np.broadcast_to((3 * obs.point)[:, None, None] + np.arange(3), d_point.shape)
    pose_rows, point_rows = np.broadcast_to(rows, d_pose.shape), np.broadcast_to(rows, d_point.shape)
    j_pose = sparse.csr_matrix((d_pose.ravel(), (pose_rows.ravel(), pose_cols.ravel())), shape=(2 * count, 6 * views))
    j_cams = sparse.hstack([j_pose, sparse.csr_matrix(d_focal.reshape(-1, 1))], format="csr")
    j_points = sparse.csr_matrix(
        (d_point.ravel(), (point_rows.ravel(), point_cols.ravel())), shape=(2 * count, 3 * points)
    )
    weighted = (root * residual).ravel()
    blocks = _sum_by(np.einsum("oki,okj->oij", d_point, d_point), obs.point, points)
    return _Normal(
        (j_cams.T @ j_cams).toarray(),
        j_cams.T @ weighted,
        blocks,
        (j_points.T @ weighted).reshape(-1, 3),
        (j_cams.T @ j_points).tocsr(),
    )


def _solve(normal: _Normal, damping: float, free: Array) -> tuple[Array, Array]:
    """Damped step of the cameras (C,) and of the points (P, 3); camera parameters that are not `free` stay."""
    scale = np.trace(normal.points, axis1=1, axis2=2)[:, None, None] / 3
    inverse = np.linalg.inv(normal.points + (damping * scale + 1e-12) * np.eye(3))  # (P, 3, 3)
    count = len(inverse)
    block = sparse.bsr_matrix((inverse, np.arange(count), np.arange(count + 1)), shape=(3 * count, 3 * count))
    eliminated = (normal.coupling @ block).tocsr()
    schur = normal.cameras - (eliminated @ normal.coupling.T).toarray()
    schur[np.diag_indices_from(schur)] += damping * np.diag(normal.cameras) + 1e-12
    right = normal.gradient_cameras - eliminated @ normal.gradient_points.ravel()
    step = np.zeros(len(right))
    step[free] = -np.linalg.solve(schur[np.ix_(free, free)], right[free])
    back = normal.gradient_points + (normal.coupling.T @ step).reshape(-1, 3)
    return step, -np.einsum("pij,pj->pi", inverse, back)


def _retract(bundle: Bundle, step: Array, step_points: Array) -> Bundle:
    pose, zoom = step[:-1].reshape(-1, 6), float(np.exp(np.clip(step[-1], -0.5, 0.5)))
    translation = (bundle.translation + pose[:, 3:]) * [1.0, 1.0, zoom]
    rotation = exp_so3(pose[:, :3]) @ bundle.rotation
    return Bundle(rotation, translation, bundle.points + step_points, bundle.focal_px * zoom)


def adjust(
    bundle: Bundle,
    obs: Observations,
    loss_px: float = 1.0,
    held: Array | None = None,
    iterations: int = 40,
    tolerance: float = 1e-5,
) -> tuple[Bundle, float]:
    """The bundle that lowers the summed Cauchy reprojection cost of all observations, and that cost.

    Views `held` (V,) bool (default: view 0) do not turn and see the world's origin at the same pixel; scale is free and
    kept in place by the damping. What a longer lens sees looks like what is farther away, so distances from the origin
    along optical axes are proportional to the focal length, for all views: with the origin in the middle of the object,
    what is left to find is perspective, and a focal length far off is mended in a few iterations. `loss_px` is the
    Cauchy scale in px. Stops when an iteration lowers the cost by less than `tolerance`, relative. Never returns more
    cost than it was given.
    """
    cost = float(robust_cost(reprojection(bundle, obs)[0], loss_px).sum())
    held = np.arange(len(bundle.rotation)) == 0 if held is None else held
    free = np.append(np.repeat(~held, 6), True)  # (6 V + 1,)
    damping = 1e-3
    for _ in range(iterations):
        normal = _linearise(bundle, obs, loss_px)
        while damping < 1e8:
            candidate = _retract(bundle, *_solve(normal, damping, free))
            cost_new = float(robust_cost(reprojection(candidate, obs)[0], loss_px).sum())
            if cost_new < cost:
                break
            damping *= 5
        else:
            break
        gain, bundle, cost = (cost - cost_new) / max(cost, 1e-30), candidate, cost_new
        damping = max(damping / 10, 1e-9)
        if gain < tolerance:
            break
    return bundle, cost
