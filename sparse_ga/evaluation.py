"""How good cameras and points are against the truth. Pure functions: no files, nothing random.

Conventions. The relative pose of a pair is cam_i_from_cam_j, as in PoseDiffusion and DUSt3R; it does not depend on the
world frame, so no alignment precedes it. The rotation error of a pair is the angle between the two relative rotations.
The translation error is the angle between the two relative translations *with* sign (PoseDiffusion folds it to at most
90 degrees; we do not, so ours is the stricter figure). Pairs that share one true camera centre have no direction: they
are judged by rotation alone. Every pair of true views counts; a pair with an unregistered view has infinite error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.spatial import cKDTree

from sparse_ga.geometry import transforms
from sparse_ga.products import Array, InvalidProduct, check, check_finite


@dataclass(frozen=True, eq=False)
class CameraSet:
    """Cameras by name. What unregistered rows hold is not looked at."""

    names: tuple[str, ...]
    registered: Array  # (N,) bool
    world_from_cam: Array  # (N, 4, 4)
    intrinsics: Array  # (N, 3, 3) source px

    def __post_init__(self) -> None:
        n = len(self.names)
        check(self.registered, "CameraSet.registered", (n,), "b")
        check(self.world_from_cam, "CameraSet.world_from_cam", (n, 4, 4), "f")
        check(self.intrinsics, "CameraSet.intrinsics", (n, 3, 3), "f")
        if len(set(self.names)) != n:
            raise InvalidProduct("CameraSet.names: two views of one name")

    @staticmethod
    def known(names: Sequence[str], world_from_cam: Array, intrinsics: Array) -> CameraSet:
        """All cameras registered: the truth."""
        check_finite(world_from_cam, "CameraSet.world_from_cam")
        return CameraSet(tuple(names), np.ones(len(names), bool), world_from_cam, intrinsics)

    def in_order(self, names: Sequence[str]) -> CameraSet:
        """The cameras called `names`; those missing here are unregistered, others are left out."""
        row = {name: n for n, name in enumerate(self.names)}
        found = np.array([name in row for name in names], bool)
        poses, intrinsics = np.tile(np.eye(4), (len(names), 1, 1)), np.tile(np.eye(3), (len(names), 1, 1))
        index = [row[name] for name in names if name in row]
        poses[found], intrinsics[found] = self.world_from_cam[index], self.intrinsics[index]
        registered = found.copy()
        registered[found] = self.registered[index]
        return CameraSet(tuple(names), registered, poses, intrinsics)


@dataclass(frozen=True)
class CameraMetrics:
    """Errors of cameras; percentages of pairs, degrees, and lengths in units of the truth. None: not determined."""

    views: int
    registered: int
    rra5: float  # share of all pairs with a rotation error below 5 degrees, percent
    rra15: float
    rta5: float  # share of all pairs with a translation direction error below 5 degrees, percent
    rta15: float
    auc30: float  # mean over thresholds of 1 to 30 degrees of the share with both errors below, percent
    auc30_registered: float  # the same over pairs of registered views
    rotation_median_deg: float | None  # over pairs of registered views
    translation_median_deg: float | None
    worst_view_deg: float | None  # largest rotation error of a registered view after aligning all of them
    ate: float | None  # root mean square distance of camera centres after similarity alignment
    ate_percent: float | None  # the same relative to the largest distance between true centres
    focal_error_percent: float | None  # median over registered views

    def format(self) -> str:
        """A small table."""
        rows = [
            ("registered", f"{self.registered} of {self.views}"),
            ("RRA@5 / RRA@15", f"{self.rra5:.1f} / {self.rra15:.1f} %"),
            ("RTA@5 / RTA@15", f"{self.rta5:.1f} / {self.rta15:.1f} %"),
            ("AUC@30", f"{self.auc30:.1f}"),
            ("AUC@30 over registered views", f"{self.auc30_registered:.1f}"),
            ("median rotation error of a pair", _number(self.rotation_median_deg, "deg")),
            ("median direction error of a pair", _number(self.translation_median_deg, "deg")),
            ("worst view's rotation error", _number(self.worst_view_deg, "deg")),
            ("ATE (aligned camera centres)", _number(self.ate, "units")),
            ("ATE relative to the cameras' extent", _number(self.ate_percent, "%")),
            ("focal error", _number(self.focal_error_percent, "%")),
        ]
        return format_table(rows)

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class SurfaceMetrics:
    """Errors of points against a true surface, in percent of the object's diameter or of the points."""

    points: int
    accuracy_median: float | None  # median distance from a point to the surface, percent of the diameter
    accuracy_share: float  # points within the tolerance of the surface, percent
    completeness_share: float  # surface samples within the tolerance of a point, percent
    accuracy_tolerance: float  # percent of the diameter
    completeness_tolerance: float

    def format(self) -> str:
        """A small table."""
        rows = [
            ("points", f"{self.points:,}"),
            ("median distance to the surface", _number(self.accuracy_median, "% of the diameter")),
            (f"points within {self.accuracy_tolerance:g} % of the diameter", f"{self.accuracy_share:.1f} %"),
            (f"surface within {self.completeness_tolerance:g} % of a point", f"{self.completeness_share:.1f} %"),
        ]
        return format_table(rows)


def format_table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns of text, one row a line."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _number(value: float | None, unit: str) -> str:
    return "not determined" if value is None else f"{value:.3g} {unit}"


def relative_errors_deg(estimate: Array, truth: Array) -> tuple[Array, Array]:
    """Rotation and translation direction errors (P,) of all pairs i < j, from poses world_from_cam (N, 4, 4).

    Pairs are in the order of ``numpy.triu_indices(N, 1)``. Two estimated centres that coincide where the true ones
    do not give 180 degrees.
    """
    i, j = np.triu_indices(len(truth), 1)
    estimated = transforms.inverse(estimate[i]) @ estimate[j]  # (P, 4, 4), cam_i_from_cam_j
    true = transforms.inverse(truth[i]) @ truth[j]
    difference = np.swapaxes(true[:, :3, :3], 1, 2) @ estimated[:, :3, :3]
    rotation = transforms.rotation_angle_deg(difference)
    a, b = estimated[:, :3, 3], true[:, :3, 3]  # (P, 3)
    direction = np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(1)))
    length_a, length_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    direction = np.where(length_a <= 1e-9 * max(length_a.max(initial=0), 1e-300), 180.0, direction)
    direction = np.where(length_b <= 1e-6 * max(length_b.max(initial=0), 1e-300), 0.0, direction)
    return rotation, direction


def area_under_curve(errors_deg: Array, max_threshold: int = 30) -> float:
    """Mean over thresholds 1, 2, ... degrees of the share of errors (P,) below, percent; 0 without errors."""
    if len(errors_deg) == 0:
        return 0.0
    thresholds = np.arange(1, max_threshold + 1)
    return float(100 * (np.asarray(errors_deg)[:, None] < thresholds).mean())


def align_cameras(estimate: Array, truth: Array) -> tuple[Array, bool]:
    """Similarity truth_from_estimate (4, 4) from camera centres, and whether they determine it.

    Closed form of Umeyama over poses world_from_cam (N, 4, 4). Centres on one line, or fewer than three, do not.
    """
    return transforms.similarity_from_points(truth[:, :3, 3], estimate[:, :3, 3])


def view_rotation_errors_deg(estimate: Array, truth: Array) -> Array:
    """Rotation error (N,) of each view's world_from_cam after the world rotation that fits most views best.

    The world rotation is the candidate, among those that make one view exact, with the least sum of errors: wrong
    views do not move it.
    """
    if len(truth) == 0:
        return np.zeros(0)
    candidates = truth[:, :3, :3] @ np.swapaxes(estimate[:, :3, :3], 1, 2)  # (N, 3, 3), true world from estimated
    turned = candidates[:, None] @ estimate[None, :, :3, :3]  # (N, N, 3, 3)
    errors = transforms.rotation_angle_deg(np.swapaxes(turned, 2, 3) @ truth[None, :, :3, :3])  # (N, N)
    return errors[errors.sum(1).argmin()]


def evaluate_cameras(estimate: CameraSet, truth: CameraSet) -> CameraMetrics:
    """All metrics of `estimate` over the views of `truth`, matched by name."""
    estimate = estimate.in_order(truth.names)
    known = estimate.registered
    rotation, direction = relative_errors_deg(estimate.world_from_cam, truth.world_from_cam)
    i, j = np.triu_indices(len(truth.names), 1)
    both = known[i] & known[j]
    rotation, direction = np.where(both, rotation, np.inf), np.where(both, direction, np.inf)
    worst = np.maximum(rotation, direction)
    poses, true_poses = estimate.world_from_cam[known], truth.world_from_cam[known]
    ate, ate_percent = _trajectory_error(poses, true_poses)
    focal, true_focal = _focal(estimate.intrinsics[known]), _focal(truth.intrinsics[known])
    per_view = view_rotation_errors_deg(poses, true_poses)
    return CameraMetrics(
        views=len(truth.names),
        registered=int(known.sum()),
        rra5=_percent(rotation < 5),
        rra15=_percent(rotation < 15),
        rta5=_percent(direction < 5),
        rta15=_percent(direction < 15),
        auc30=area_under_curve(worst),
        auc30_registered=area_under_curve(worst[both]),
        rotation_median_deg=_median(rotation[both]),
        translation_median_deg=_median(direction[both]),
        worst_view_deg=float(per_view.max()) if len(per_view) > 1 else None,
        ate=ate,
        ate_percent=ate_percent,
        focal_error_percent=_median(100 * np.abs(focal / true_focal - 1)),
    )


def evaluate_surface(
    points: Array,
    distance: Array,
    surface: Array,
    diameter: float = 1.0,
    tolerances: tuple[float, float] = (0.02, 0.015),
) -> SurfaceMetrics:
    """Accuracy and completeness of points (P, 3) in the truth's frame.

    `distance` (P,) are the points' distances to the true surface and `surface` (S, 3) samples of it; both, and
    `diameter`, in the truth's units. `tolerances`: for accuracy and for completeness, as shares of the diameter.
    """
    reached = 0.0
    if len(points) and len(surface):
        nearest, _ = cKDTree(points).query(surface)
        reached = _percent(nearest <= tolerances[1] * diameter)
    median = _median(np.asarray(distance) / diameter * 100)
    return SurfaceMetrics(
        points=len(points),
        accuracy_median=median,
        accuracy_share=_percent(np.asarray(distance) <= tolerances[0] * diameter),
        completeness_share=reached,
        accuracy_tolerance=100 * tolerances[0],
        completeness_tolerance=100 * tolerances[1],
    )


def _focal(intrinsics: Array) -> Array:
    """Mean of the two focal lengths (N,) of intrinsics (N, 3, 3)."""
    return (intrinsics[:, 0, 0] + intrinsics[:, 1, 1]) / 2


def _trajectory_error(estimate: Array, truth: Array) -> tuple[float | None, float | None]:
    """Root mean square distance of aligned centres, and the same in percent of the extent of the true ones."""
    truth_from_estimate, valid = align_cameras(estimate, truth)
    if not valid:
        return None, None
    centres = transforms.apply(truth_from_estimate, estimate[:, :3, 3])
    error = float(np.sqrt(((centres - truth[:, :3, 3]) ** 2).sum(1).mean()))
    extent = float(np.linalg.norm(truth[:, None, :3, 3] - truth[None, :, :3, 3], axis=-1).max())
    return error, 100 * error / extent


def _percent(hits: Array) -> float:
    return float(100 * np.mean(hits)) if len(hits) else 0.0


def _median(values: Array) -> float | None:
    return float(np.median(values)) if len(values) else None
