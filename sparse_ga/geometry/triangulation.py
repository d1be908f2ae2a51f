"""Triangulation of many tracks at once: DLT, robust two-ray hypotheses, Levenberg-Marquardt, angles.

Observations of all points lie in flat arrays sorted by point, so every function is a handful of vectorised passes
whatever the track lengths are. Cameras are projection matrices (V, 3, 4), pixels_from_world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.products import Array

_PAIR_TABLE = [(a, b) for b in range(5) for a in range(b)]
_HYPOTHESES = 16


@dataclass(frozen=True, eq=False)
class Observations:
    """Which view sees which point where, sorted by point; points are numbered 0..P-1 and each has an observation."""

    point_index: Array  # (O,) int64, ascending
    view_index: Array  # (O,) int64
    xy: Array  # (O, 2) float64, px

    def __len__(self) -> int:
        return len(self.point_index)

    @property
    def num_points(self) -> int:
        """Number of points P."""
        return int(self.point_index[-1]) + 1 if len(self.point_index) else 0

    @property
    def starts(self) -> Array:
        """First observation of every point, (P,)."""
        return np.searchsorted(self.point_index, np.arange(self.num_points))

    @property
    def lengths(self) -> Array:
        """Number of observations of every point, (P,)."""
        return np.bincount(self.point_index, minlength=self.num_points)

    def select(self, keep: Array) -> Observations:
        """The observations that `keep` (O,) bool picks; points keep their order and are numbered anew."""
        return Observations(np.unique(self.point_index[keep], return_inverse=True)[1].reshape(-1), *self._rest(keep))

    def _rest(self, keep: Array) -> tuple[Array, Array]:
        return self.view_index[keep], self.xy[keep]

    @staticmethod
    def empty() -> Observations:
        """No observation."""
        return Observations(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))


def segment_sum(values: Array, obs: Observations) -> Array:
    """Sum of per-observation `values` (O, ...) over the observations of each point, (P, ...)."""
    if len(obs) == 0:
        return np.zeros((0, *values.shape[1:]), values.dtype)
    return np.add.reduceat(values, obs.starts, axis=0)


def residuals(projection: Array, obs: Observations, points: Array) -> tuple[Array, Array]:
    """Reprojection residuals (O, 2) in px, and whether the point is in front of the camera (O,)."""
    p = projection[obs.view_index]  # (O, 3, 4)
    h = np.einsum("oij,oj->oi", p[..., :3], points[obs.point_index]) + p[..., 3]  # (O, 3)
    front = h[:, 2] > 1e-9
    return h[:, :2] / np.where(front, h[:, 2], 1.0)[:, None] - obs.xy, front


def errors_px(projection: Array, obs: Observations, points: Array) -> Array:
    """Reprojection error of each observation, (O,) px; infinite behind the camera."""
    residual, front = residuals(projection, obs, points)
    return np.where(front, np.linalg.norm(residual, axis=1), np.inf)


def triangulate_dlt(projection: Array, obs: Observations, weights: Array | None = None) -> tuple[Array, Array]:
    """Linear triangulation of every point, (P, 3), and whether it is finite and determined (P,).

    Hartley and Zisserman, Multiple View Geometry, section 12.2, with rows of unit length. The world is shifted and
    scaled to the cameras' own extent first, for conditioning. `weights` (O,) multiply the rows.
    """
    count = obs.num_points
    if count == 0:
        return np.zeros((0, 3)), np.zeros(0, bool)
    denormal = _denormalising(projection, np.unique(obs.view_index))
    p = (projection @ denormal)[obs.view_index]  # (O, 3, 4)
    rows = obs.xy[:, :, None] * p[:, 2:3] - p[:, :2]  # (O, 2, 4)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), 1e-300)
    if weights is not None:
        rows = rows * weights[:, None, None]
    gram = segment_sum(np.einsum("oki,okj->oij", rows, rows), obs)  # (P, 4, 4)
    values, vectors = np.linalg.eigh(gram)
    homogeneous = vectors[..., 0]  # (P, 4)
    w = homogeneous[:, 3]
    determined = (values[:, 1] > 1e-12 * values[:, 3]) & (np.abs(w) > 1e-9)
    local = homogeneous[:, :3] / np.where(determined, w, 1.0)[:, None]
    points = local @ denormal[:3, :3].T + denormal[:3, 3]
    determined &= np.isfinite(points).all(1)
    return np.where(determined[:, None], points, 0.0), determined


def _denormalising(projection: Array, views: Array) -> Array:
    """World from coordinates in which the cameras `views` are centred with unit spread, (4, 4)."""
    centers = camera_centers(projection[views])
    middle = centers.mean(0)
    spread = max(float(np.linalg.norm(centers - middle, axis=1).mean()), 1e-12)
    denormal = np.diag([spread, spread, spread, 1.0])
    denormal[:3, 3] = middle
    return denormal


def camera_centers(projection: Array) -> Array:
    """World coordinates (V, 3) of the centres of projection (V, 3, 4)."""
    return -np.linalg.solve(projection[..., :3], projection[..., 3:])[..., 0]


def refine_points(
    projection: Array, obs: Observations, points: Array, loss_px: float = 1.0, iterations: int = 12
) -> tuple[Array, Array]:
    """Robust Levenberg-Marquardt on every point at once: points (P, 3) and their covariance (P, 3, 3) for 1 px noise.

    Minimises the Cauchy cost of the reprojection error with scale `loss_px`, each point with a damping of its own;
    a step is taken only where it lowers that point's cost, so no point ends worse than it started.
    """
    if len(points) == 0:
        return points.copy(), np.zeros((0, 3, 3))
    points = points.copy()
    damping = np.full(len(points), 1e-3)
    cost, gradient, hessian = _normal_equations(projection, obs, points, loss_px)
    for _ in range(iterations):
        diagonal = np.einsum("pii->pi", hessian)
        scale = diagonal.max(1, keepdims=True) + 1e-300
        damped = hessian + (damping[:, None] * np.maximum(diagonal, 1e-9 * scale))[:, :, None] * np.eye(3)
        step = -np.linalg.solve(damped + 1e-300 * np.eye(3), gradient[..., None])[..., 0]
        trial = points + step
        trial_cost, trial_gradient, trial_hessian = _normal_equations(projection, obs, trial, loss_px)
        better = trial_cost < cost
        points = np.where(better[:, None], trial, points)
        gradient = np.where(better[:, None], trial_gradient, gradient)
        hessian = np.where(better[:, None, None], trial_hessian, hessian)
        converged = cost - trial_cost < 1e-12 * np.maximum(cost, 1e-12)
        cost = np.where(better, trial_cost, cost)
        damping = np.where(better, damping / 10, np.minimum(damping * 10, 1e12))
        if (converged & better | (damping > 1e8)).all():
            break
    return points, _inverse_or_huge(hessian)


def _inverse_or_huge(hessian: Array) -> Array:
    """Covariances (P, 3, 3); along directions without information the variance is large but finite."""
    trace = np.einsum("pii->p", hessian)[:, None, None] + 1e-300
    return np.linalg.inv(hessian + 1e-12 * trace * np.eye(3))


def _normal_equations(
    projection: Array, obs: Observations, points: Array, loss_px: float
) -> tuple[Array, Array, Array]:
    """Cost (P,), gradient (P, 3) and Gauss-Newton Hessian (P, 3, 3) of the Cauchy reprojection cost."""
    p = projection[obs.view_index]  # (O, 3, 4)
    h = np.einsum("oij,oj->oi", p[..., :3], points[obs.point_index]) + p[..., 3]
    front = h[:, 2] > 1e-9
    z = np.where(front, h[:, 2], 1.0)
    projected = h[:, :2] / z[:, None]
    residual = projected - obs.xy  # (O, 2)
    jacobian = (p[:, :2, :3] - projected[:, :, None] * p[:, 2:, :3]) / z[:, None, None]  # (O, 2, 3)
    squared = (residual**2).sum(1) / loss_px**2
    weight = np.where(front, 1 / (1 + squared), 0.0)
    cost = segment_sum(np.where(front, loss_px**2 * np.log1p(squared), 1e6), obs)
    weighted = jacobian * weight[:, None, None]
    gradient = segment_sum(np.einsum("oki,ok->oi", weighted, residual), obs)
    hessian = segment_sum(np.einsum("oki,okj->oij", weighted, jacobian), obs)
    return cost, gradient, hessian


def track_angles_deg(centers: Array, obs: Observations, points: Array) -> Array:
    """Widest angle between two rays of each point, (P,) degrees.

    Two sweeps (farthest from the first ray, then farthest from that one) instead of all pairs; never more than the
    true widest angle, and equal to it when the cameras lie in a plane with the point.
    """
    if len(obs) == 0:
        return np.zeros(0)
    rays = points[obs.point_index] - centers[obs.view_index]  # (O, 3)
    rays = rays / np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-300)
    start = obs.starts
    reference = rays[start]  # (P, 3)
    for _ in range(2):
        chord = ((rays - reference[obs.point_index]) ** 2).sum(1)
        widest = np.maximum.reduceat(chord, start)
        order = np.lexsort((-chord, obs.point_index))
        reference = rays[order[start]]
    return np.degrees(2 * np.arcsin(np.clip(np.sqrt(widest) / 2, 0, 1)))


def best_hypothesis(projection: Array, obs: Observations, limit_px: float, min_angle_deg: float) -> tuple[Array, Array]:
    """For every point the two-ray intersection that most observations agree with: points (P, 3) and valid (P,).

    All pairs of observations up to five, a fixed low-discrepancy choice of 16 pairs beyond. The score is MSAC's
    truncated squared error, where several observations of one view count once, with the best of them.
    """
    count = obs.num_points
    best = np.full(count, np.inf)
    points = np.zeros((count, 3))
    if count == 0:
        return points, np.zeros(0, bool)
    centers = camera_centers(projection)
    rays = np.einsum("oij,oj->oi", np.linalg.inv(projection[..., :3])[obs.view_index], _homogeneous(obs.xy))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    for number in range(_HYPOTHESES):
        a, b = _observation_pair(obs, number)
        candidate, valid = _two_ray_points(centers[obs.view_index[a]], rays[a], centers[obs.view_index[b]], rays[b])
        valid &= np.arccos(np.clip((rays[a] * rays[b]).sum(1), -1, 1)) > np.radians(min_angle_deg)
        score = np.where(valid, _truncated_score(projection, obs, candidate, limit_px), np.inf)
        better = score < best
        best = np.where(better, score, best)
        points = np.where(better[:, None], candidate, points)
    return points, np.isfinite(best)


def _homogeneous(xy: Array) -> Array:
    return np.concatenate([xy, np.ones((len(xy), 1))], 1)


def _observation_pair(obs: Observations, number: int) -> tuple[Array, Array]:
    """The `number`-th pair of observations to intersect, as two rows (P,) into `obs`; may repeat for short tracks."""
    length, start = obs.lengths, obs.starts
    table = np.array(_PAIR_TABLE)
    exhaustive = table[number % np.maximum(length * (length - 1) // 2, 1).clip(max=len(table))]  # (P, 2)
    first = np.floor(length * ((0.5 + number * 0.6180339887) % 1.0)).astype(np.int64)
    offset = 1 + np.floor((length - 1) * ((0.5 + number * 0.7548776662) % 1.0)).astype(np.int64)
    short = length <= 5
    a = np.where(short, exhaustive[:, 0], first)
    b = np.where(short, exhaustive[:, 1], (first + offset) % length)
    return start + np.minimum(a, length - 1), start + np.minimum(b, length - 1)


def _two_ray_points(center_a: Array, ray_a: Array, center_b: Array, ray_b: Array) -> tuple[Array, Array]:
    """Midpoints (P, 3) of the shortest connection of two rays, and whether both hit in front of their camera."""
    between = center_b - center_a
    cosine = (ray_a * ray_b).sum(1)
    along_a, along_b = (between * ray_a).sum(1), (between * ray_b).sum(1)
    denominator = 1 - cosine**2
    valid = denominator > 1e-12
    safe = np.where(valid, denominator, 1.0)
    depth_a = (along_a - cosine * along_b) / safe
    depth_b = (cosine * along_a - along_b) / safe
    midpoint = (center_a + depth_a[:, None] * ray_a + center_b + depth_b[:, None] * ray_b) / 2
    return midpoint, valid & (depth_a > 0) & (depth_b > 0)


def view_groups(obs: Observations) -> tuple[Array, Array]:
    """Order (O,) that sorts observations by point and view, and the start of each (point, view) group in it."""
    order = np.lexsort((obs.view_index, obs.point_index))
    point, view = obs.point_index[order], obs.view_index[order]
    new = np.ones(len(obs), bool)
    new[1:] = (np.diff(point) != 0) | (np.diff(view) != 0)
    return order, np.nonzero(new)[0]


def _truncated_score(projection: Array, obs: Observations, points: Array, limit_px: float) -> Array:
    """Sum over each point's views of the smallest truncated squared error, (P,)."""
    squared = np.minimum(errors_px(projection, obs, points), limit_px) ** 2
    order, groups = view_groups(obs)
    per_view = np.minimum.reduceat(squared[order], groups)
    return np.bincount(obs.point_index[order][groups], per_view, minlength=obs.num_points)
