"""Bundle adjustment of cameras and track points by pycolmap, kept only where it helps.

A track says where its point is seen, and nothing of the depths that a view's matches with different partners share.
Tracks of two views leave open how far a long lens turned about the object (the bas-relief ambiguity), and how long one
pair's baseline is beside the next one's; the alignment, which had those depths, did not. Views whose rotation the
tracks tell less about than the alignment take no part, and where many positions are open there is no adjustment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ga._pycolmap import pycolmap
from sparse_ga.geometry.transforms import inverse, nearest_rotation, rotation_angle_deg, similarity_from_points
from sparse_ga.geometry.triangulation import Observations, errors_px
from sparse_ga.products import Array
from sparse_ga.triangulation.colmap_model import ModelCameras, build_model, read_cam_from_world
from sparse_ga.triangulation.tracks import TriangulatedTracks
from sparse_ga.triangulation.views import Rig

LOSS_SIGMAS = 2.5
"""Scale of the robust loss, in standard deviations of a residual's coordinate."""
_MIN_OBSERVATIONS = 12
_MAX_TRACKS = 30_000
_MAX_TURN_DEG = 10.0
_MAX_SHIFT = 0.2
_MAX_ZOOM = 1.25
_SHARED_ROUNDS = 5
_LESS_KNOWN = 3.0  # a rotation known worse than the alignment's by this factor takes no part
_MOST_OPEN = 0.25  # share of the views whose positions, seen from the object, may be known worse by that factor


@dataclass(frozen=True, eq=False)
class Adjustment:
    """Cameras after bundle adjustment; `rig` is the one that went in when `kept` is False."""

    rig: Rig
    kept: bool
    status: str
    rms_before_px: float
    rms_after_px: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """Registered views and tracks in the pixels of the adjustment: from the principal point, stretched to one focal
    length per sensor.

    So one sensor is one SIMPLE_PINHOLE camera, however its photographs were turned, cut and resized, and whether or not
    their pixels are square. The stretch is 1 for the first view of a sensor, and near 1 for others of its size.
    """

    views: Array  # (R,) view of each image
    sensors: Array  # (C,) sensor of each camera
    cameras: ModelCameras
    obs: Observations
    points: Array


def adjust_bundle(rig: Rig, tracks: TriangulatedTracks, loss_px: float) -> Adjustment:
    """Jointly refine poses, focal lengths and points; held poses and intrinsics stay, the principal point is fixed.

    The result is refused when the robust cost does not fall, or when a camera turns, moves or zooms so far that it
    can only have come loose, and nothing is adjusted where the tracks leave more than a quarter of the positions open.
    Cameras with few observations, or whose rotation the tracks tell less about than the alignment, are left out and
    carried along with the points. Runs on one thread, so that the result is the same every time. The first registered
    camera keeps its pose, and the median depth of the observations its value, unless given poses fix the frame.
    """
    before = _rms_px(rig, tracks.obs, tracks.points)
    chosen = _choose_tracks(tracks)
    if len(chosen.points) < _MIN_OBSERVATIONS or rig.registered.sum() < 2:
        return Adjustment(rig, False, "too few tracks", before, before)
    firm, adrift = _firm_views(rig, chosen, loss_px)
    chosen = _among(chosen, firm)
    if len(chosen.points) < _MIN_OBSERVATIONS or firm.sum() < 2 or adrift:
        return Adjustment(rig, False, "the tracks tell less than the alignment", before, before)
    problem = _make_problem(rig, chosen, firm)
    model = build_model(problem.cameras, problem.obs, problem.points)
    summary = _adjuster(model, problem, rig, loss_px).solve()
    if not summary.is_solution_usable():
        return Adjustment(rig, False, "the solver failed", before, before)
    moved, points = _read_back(model, problem, rig)
    old_cost = _robust_cost(rig, chosen.obs, chosen.points, loss_px)
    new_cost = _robust_cost(moved, chosen.obs, points, loss_px)
    if not new_cost < old_cost:
        return Adjustment(rig, False, "the error did not fall", before, before)
    left_out = np.flatnonzero(rig.registered & ~firm)
    moved = _carried(rig, moved, left_out, (chosen.points, points))
    loose = came_loose(rig, moved, chosen.points)
    if loose:
        return Adjustment(rig, False, loose, before, before)
    words = (
        f"kept; {len(left_out)} views that it tells too little about were carried along" if len(left_out) else "kept"
    )
    return Adjustment(_anchored(rig, moved), True, words, before, _rms_px(moved, chosen.obs, points))


def _choose_tracks(tracks: TriangulatedTracks) -> TriangulatedTracks:
    """At most `_MAX_TRACKS` tracks: the longest ones, earlier ones first among equals."""
    if len(tracks.points) <= _MAX_TRACKS:
        return tracks
    keep = np.zeros(len(tracks.points), bool)
    keep[np.argsort(-tracks.obs.lengths, kind="stable")[:_MAX_TRACKS]] = True
    return _with_observations(tracks, keep[tracks.obs.point_index])


def _among(tracks: TriangulatedTracks, views: Array) -> TriangulatedTracks:
    """The tracks as `views` (N,) bool see them, those that two of them see."""
    obs = tracks.obs
    keep = views[obs.view_index]
    return _with_observations(tracks, keep & (np.bincount(obs.point_index, keep)[obs.point_index] >= 2))


def _with_observations(tracks: TriangulatedTracks, keep: Array) -> TriangulatedTracks:
    """The tracks with the observations `keep` (O,) bool alone; those without any are dropped."""
    rows = np.unique(tracks.obs.point_index[keep])
    return TriangulatedTracks(tracks.obs.select(keep), tracks.points[rows], tracks.covariance[rows], tracks.rejected)


def _firm_views(rig: Rig, tracks: TriangulatedTracks, loss_px: float) -> tuple[Array, bool]:
    """Registered views (N,) bool with enough observations, whose rotation the tracks tell about as well as the
    alignment did, or whose pose is held; and whether the tracks leave the positions of so many open that they drift.

    A view alone whose distance is open stays where it is along it; chains of views move as a whole.
    """
    count = np.bincount(tracks.obs.view_index, minlength=len(rig.registered))
    firm = rig.registered & (rig.held_pose | (count >= _MIN_OBSERVATIONS))
    tracks = _among(tracks, firm)
    if firm.sum() < 3 or not len(tracks.points) or not (rig.rotation_sigma_deg[firm] > 0).any():
        return firm, False
    problem = _make_problem(rig, tracks, firm)
    sigma = pose_sigma_deg(problem, rig, loss_px)
    known = rig.rotation_sigma_deg[problem.views][:, None]
    less = (known > 0) & (sigma > _LESS_KNOWN * known) & ~rig.held_pose[problem.views][:, None]  # (R, 2)
    firm[problem.views[less[:, 0]]] = False
    return firm, bool(less[:, 1].mean() > _MOST_OPEN)


def _make_problem(rig: Rig, tracks: TriangulatedTracks, part: Array) -> _Problem:
    """The problem of the views `part` (N,) bool, which alone see `tracks`."""
    views = np.nonzero(part)[0]
    sensors, first, camera = np.unique(rig.sensor[views], return_index=True, return_inverse=True)
    camera = camera.reshape(-1)  # (R,)
    params = np.zeros((len(sensors), 3))
    params[:, 0] = rig.intrinsics[views[first], 0, 0]
    image = np.full(len(rig.registered), -1)
    image[views] = np.arange(len(views))
    obs = tracks.obs
    k, index = rig.intrinsics[obs.view_index], image[obs.view_index]
    xy = (obs.xy - k[:, :2, 2]) * (params[camera[index], 0][:, None] / k[:, [0, 1], [0, 1]])
    sizes = np.full((len(sensors), 2), 10_000, np.int64)
    names = [f"{view:06d}" for view in views]
    cameras = ModelCameras(names, rig.cam_from_world[views], camera, "SIMPLE_PINHOLE", params, sizes)
    return _Problem(views, sensors, cameras, Observations(obs.point_index, index, xy), tracks.points)


def _options(loss_px: float) -> Any:
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = True
    options.refine_principal_point = False
    options.refine_extra_params = False
    options.refine_sensor_from_rig = False
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = loss_px
    options.ceres.solver_options.num_threads = 1
    options.ceres.solver_options.max_num_iterations = 40
    options.ceres.solver_options.function_tolerance = 1e-7
    return options


def _adjuster(model: Any, problem: _Problem, rig: Rig, loss_px: float) -> Any:
    config = pycolmap.BundleAdjustmentConfig()
    held = rig.held_pose[problem.views]
    if held.sum() < 2:
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    for index in range(len(problem.views)):
        config.add_image(index + 1)
        if held[index]:
            config.set_constant_rig_from_world_pose(index + 1)
    for camera, sensor in enumerate(problem.sensors):
        members = problem.views[rig.sensor[problem.views] == sensor]
        if rig.held_intrinsics[members].any():
            config.set_constant_cam_intrinsics(camera + 1)
    return pycolmap.create_default_ceres_bundle_adjuster(_options(loss_px), config, model)


@contextmanager
def _errors_only() -> Iterator[None]:
    """While entered, COLMAP and Ceres print no warnings: that a camera is left open is an answer, not a mishap."""
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = int(pycolmap.logging.Level.ERROR)
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = level


def pose_sigma_deg(problem: _Problem, rig: Rig, loss_px: float) -> Array:
    """One standard deviation of every view's rotation, and of its position as seen from the object, (R, 2) degrees, by
    the tracks; beside the similarity that all views share.

    For residuals that scatter as `loss_px` says; inf where the tracks leave some camera entirely open. Positions can
    be open where rotations are not: tracks of two views do not tell how long a baseline is beside the next one.
    """
    model = build_model(problem.cameras, problem.obs, problem.points)
    options = pycolmap.BACovarianceOptions(params=pycolmap.BACovarianceOptionsParams.POSES)
    with _errors_only():
        found = pycolmap.estimate_ba_covariance(options, model, _adjuster(model, problem, rig, loss_px))
    count = len(problem.views)
    if found is None:
        return np.full((count, 2), np.inf)
    cam_from_world = rig.cam_from_world[problem.views]
    moves, shared = _camera_moves(cam_from_world, np.median(problem.points, axis=0))
    free = _free_increments(found, cam_from_world)
    covariance = np.zeros((count, 6, count, 6))  # 0 for a camera that is held
    for i in range(count):
        for j in range(count):
            block = found.get_cam_cross_cov_from_world(i + 1, j + 1)
            if block is not None:
                covariance[i, :, j] = moves[i][:, free[i]] @ block @ moves[j][:, free[j]].T
    if not (np.isfinite(covariance).all() and np.isfinite(shared).all()):
        return np.full((count, 2), np.inf)
    variance = _variance_beside(covariance.reshape(6 * count, 6 * count), shared.reshape(6 * count, -1))
    return np.degrees(np.sqrt(variance.reshape(count, 2, 3).sum(2))) * loss_px / LOSS_SIGMAS


def _free_increments(found: Any, cam_from_world: Array) -> list[list[int]]:
    """Which of its six increments, turn and shift, COLMAP leaves each camera.

    None to the camera that fixes the gauge; to the second one not the shift along the axis of the first camera's frame
    that lies closest to their baseline, which fixes the scale.
    """
    blocks = [found.get_cam_cross_cov_from_world(n + 1, n + 1) for n in range(len(cam_from_world))]
    sizes = [0 if block is None else len(block) for block in blocks]
    fixed = next((n for n, size in enumerate(sizes) if size == 0), 0)
    free = []
    for n, size in enumerate(sizes):
        baseline = (cam_from_world[fixed] @ inverse(cam_from_world[n]))[:3, 3]
        along = 3 + int(np.abs(baseline).argmax())
        free.append([k for k in range(6) if size == 6 or (size == 5 and k != along)])
    return free


def _camera_moves(cam_from_world: Array, middle: Array) -> tuple[Array, Array]:
    """What Ceres's increments do to a camera, (R, 6, 6), and what a similarity of the world does to it, (R, 6, 7).

    A camera's six: its turn, and the way of its centre divided by the distance to `middle` (3,), in the world's axes.
    """
    world_from_cam = np.swapaxes(cam_from_world[:, :3, :3], 1, 2)
    centre = -np.einsum("rij,rj->ri", world_from_cam, cam_from_world[:, :3, 3])
    distance = np.linalg.norm(centre - middle, axis=1)[:, None, None]
    moves = np.zeros((len(centre), 6, 6))
    moves[:, :3, :3] = -2 * world_from_cam  # the increment of cam_from_world's quaternion is half the turn
    moves[:, 3:, :3] = -2 * world_from_cam @ _cross(cam_from_world[:, :3, 3]) / distance
    moves[:, 3:, 3:] = -world_from_cam / distance
    shared = np.zeros((len(centre), 6, 7))
    shared[:, :3, :3] = np.eye(3)
    shared[:, 3:, :3] = -_cross(centre - middle) / distance
    shared[:, 3:, 3:6] = np.eye(3) / distance
    shared[:, 3:, 6] = (centre - middle) / distance[:, 0]
    return moves, shared


def _cross(vectors: Array) -> Array:
    """Matrices (R, 3, 3) of the cross products with vectors (R, 3)."""
    return np.cross(np.eye(3), vectors[:, None])


def _variance_beside(covariance: Array, shared: Array) -> Array:
    """Variances (6 R,) of what is left when a common move, a column combination of `shared` (6 R, 7), is taken out.

    Cameras that are less known than most count the less for the common move.
    """
    weight = np.ones(len(covariance))
    for _ in range(_SHARED_ROUNDS):
        weighted = shared.T * weight  # (7, 6 R)
        fit = np.linalg.lstsq(weighted @ shared, weighted, rcond=None)[0]  # (7, 6 R), from moves to the common one
        crossed = fit @ covariance  # (7, 6 R)
        common = shared @ (crossed @ fit.T)
        variance = np.diag(covariance) - 2 * (shared * crossed.T).sum(1) + (common * shared).sum(1)
        variance = np.maximum(variance, 1e-18)
        total = variance.reshape(-1, 6).sum(1)
        weight = np.repeat(np.minimum(np.median(total) / total, 1.0), 6)
    return variance


def _read_back(model: Any, problem: _Problem, rig: Rig) -> tuple[Rig, Array]:
    """The rig and points (P, 3) of a solved model, in the gauge of `rig`."""
    views = problem.views
    world_from_cam, intrinsics = rig.world_from_cam.copy(), rig.intrinsics.copy()
    world_from_cam[views] = inverse(read_cam_from_world(model, len(views)))
    zoom = np.array([model.camera(c + 1).params[0] for c in range(len(problem.sensors))]) / problem.cameras.params[:, 0]
    for sensor, factor in zip(problem.sensors, zoom, strict=True):
        intrinsics[rig.registered & (rig.sensor == sensor), [[0], [1]], [[0], [1]]] *= factor
    points = np.array([model.point3D(row + 1).xyz for row in range(len(problem.points))]).reshape(-1, 3)
    if rig.held_pose[views].any():
        world_from_cam[rig.held_pose] = rig.world_from_cam[rig.held_pose]  # the model's quaternions rounded them
        return rig.moved(world_from_cam, intrinsics), points
    depth = [
        _median_depth(p[views], problem.obs, x)
        for p, x in ((rig.world_from_cam, problem.points), (world_from_cam, points))
    ]
    scale = depth[0] / depth[1]
    old_from_new = (
        rig.world_from_cam[views[0]] @ np.diag([scale, scale, scale, 1.0]) @ inverse(world_from_cam[views[0]])
    )
    world_from_cam[views] = old_from_new @ world_from_cam[views]
    world_from_cam[views, :3, :3] /= scale
    return rig.moved(world_from_cam, intrinsics), points @ old_from_new[:3, :3].T + old_from_new[:3, 3]


def _carried(old: Rig, new: Rig, views: Array, points: tuple[Array, Array]) -> Rig:
    """`new` with `views`, which took no part, moved like the `points` (P, 3) before and after, and forwards or
    backwards as the other cameras were, whose distances follow their focal lengths."""
    similarity, valid = similarity_from_points(points[1], points[0])
    if not valid:
        return new
    scale = np.cbrt(np.linalg.det(similarity[:3, :3]))
    part = old.registered & ~np.isin(np.arange(len(old.registered)), views)
    distance = [np.median(_depths(rig.world_from_cam[part], x), axis=1) for rig, x in zip((old, new), points)]
    farther = float(np.median(distance[1] / distance[0])) / scale
    poses = new.world_from_cam.copy()
    for view in views[~old.held_pose[views]]:
        pose = similarity @ old.world_from_cam[view]
        pose[:3, :3] /= scale
        pose[:3, 3] -= pose[:3, 2] * (farther - 1) * np.median(_depths(pose[None], points[1]))
        poses[view] = pose
    return new.moved(poses, new.intrinsics)


def _anchored(old: Rig, new: Rig) -> Rig:
    """`new` in the frame in which the first registered camera is where it was, unless given poses fix the frame."""
    if old.held_pose.any():
        return new
    first = int(np.flatnonzero(old.registered)[0])
    poses = new.world_from_cam.copy()
    old_from_new = old.world_from_cam[first] @ inverse(new.world_from_cam[first])
    poses[new.registered] = old_from_new @ poses[new.registered]
    poses[first] = old.world_from_cam[first]
    return new.moved(poses, new.intrinsics)


def _depths(world_from_cam: Array, points: Array) -> Array:
    """Depths (V, P) of points (P, 3) in cameras (V, 4, 4)."""
    return world_from_cam[:, :3, 2] @ points.T - (world_from_cam[:, :3, 2] * world_from_cam[:, :3, 3]).sum(1)[:, None]


def _median_depth(world_from_cam: Array, obs: Observations, points: Array) -> float:
    offset = points[obs.point_index] - world_from_cam[obs.view_index, :3, 3]
    return float(np.median((offset * world_from_cam[obs.view_index, :3, 2]).sum(1)))


def _rms_px(rig: Rig, obs: Observations, points: Array) -> float:
    error = errors_px(rig.projection, obs, points)
    error = error[np.isfinite(error)]
    return float(np.sqrt((error**2).mean())) if len(error) else 0.0


def _robust_cost(rig: Rig, obs: Observations, points: Array, loss_px: float) -> float:
    error = np.minimum(errors_px(rig.projection, obs, points), 1e6)
    return float(np.log1p((error / loss_px) ** 2).mean())


def came_loose(old: Rig, new: Rig, points: Array) -> str:
    """Why the adjusted cameras cannot be right, or an empty text."""
    turn = _turns_deg(old, new)
    distance = np.linalg.norm(old.centers - np.median(points, axis=0), axis=1)
    shift = np.linalg.norm(new.centers - old.centers, axis=1) / np.maximum(distance, 1e-12)
    zoom = new.intrinsics[:, 0, 0] / old.intrinsics[:, 0, 0]
    zoom = np.maximum(zoom, 1 / zoom)
    for words, value, limit in (
        ("turned by {:.3g} degrees", turn, _MAX_TURN_DEG),
        ("shifted by {:.3g} of its distance", shift, _MAX_SHIFT),
        ("zoomed by a factor {:.3g}", zoom, _MAX_ZOOM),
    ):
        value = np.where(old.registered, value, 0.0)
        if not np.isfinite(value).all() or value.max() > limit:
            return f"refused, view {int(np.argmax(value))} {words.format(value.max())} (limit {limit:g})"
    return ""


def _turns_deg(old: Rig, new: Rig) -> Array:
    """By how much each camera (N,) turned beside the turn that they all share, degrees."""
    before, after = old.world_from_cam[:, :3, :3], new.world_from_cam[:, :3, :3]
    shared = nearest_rotation((before @ np.swapaxes(after, 1, 2))[old.registered].mean(0))
    return rotation_angle_deg(np.swapaxes(before, 1, 2) @ (shared @ after))
