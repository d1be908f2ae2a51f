"""Bundle adjustment of cameras and track points by pycolmap, kept only where it helps.

A track says where its point is seen, and nothing of the depths that a view's matches with different partners share.
Tracks of two views leave open how far a long lens turned about the object (the bas-relief ambiguity); the alignment,
which had those depths, did not. Views that the tracks tell less about than the alignment take no part.
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
    """Registered views and tracks in the pixels of the adjustment: source px times one factor per sensor.

    One sensor is one SIMPLE_PINHOLE camera; y is stretched where its pixels are not square.
    """

    views: Array  # (R,) view of each image
    sensors: Array  # (C,) sensor of each camera
    cameras: ModelCameras
    obs: Observations
    points: Array


def adjust_bundle(rig: Rig, working_from_source: Array, tracks: TriangulatedTracks, loss_px: float) -> Adjustment:
    """Jointly refine poses, focal lengths and points; held poses and intrinsics stay, the principal point is fixed.

    The result is refused when the robust cost does not fall, or when a camera turns, moves or zooms so far that it
    can only have come loose. Cameras with few observations, or that the tracks tell less about than the alignment,
    are left out and carried along with the points. Runs on one thread, so that the result is the same every time. The
    first camera that takes part keeps its pose, and the median depth of the observations its value, unless given poses
    fix the frame.
    """
    before = _rms_px(rig, tracks.obs, tracks.points)
    chosen = _choose_tracks(tracks)
    if len(chosen.points) < _MIN_OBSERVATIONS or rig.registered.sum() < 2:
        return Adjustment(rig, False, "too few tracks", before, before)
    firm = _firm_views(rig, working_from_source, chosen, loss_px)
    chosen = _among(chosen, firm)
    if len(chosen.points) < _MIN_OBSERVATIONS or firm.sum() < 2:
        return Adjustment(rig, False, "the tracks tell less than the alignment", before, before)
    problem = _make_problem(rig, working_from_source, chosen, firm)
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
    return Adjustment(moved, True, words, before, _rms_px(moved, chosen.obs, points))


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


def _firm_views(rig: Rig, working_from_source: Array, tracks: TriangulatedTracks, loss_px: float) -> Array:
    """Registered views (N,) bool with enough observations, whose rotation the tracks tell about as well as the
    alignment did, or whose pose is held."""
    count = np.bincount(tracks.obs.view_index, minlength=len(rig.registered))
    firm = rig.registered & (rig.held_pose | (count >= _MIN_OBSERVATIONS))
    tracks = _among(tracks, firm)
    if firm.sum() < 3 or not len(tracks.points) or not (rig.rotation_sigma_deg[firm] > 0).any():
        return firm
    problem = _make_problem(rig, working_from_source, tracks, firm)
    sigma = rotation_sigma_deg(problem, rig, loss_px)
    known = rig.rotation_sigma_deg[problem.views]
    less = (known > 0) & (sigma > _LESS_KNOWN * known) & ~rig.held_pose[problem.views]
    firm[problem.views[less]] = False
    return firm


def _make_problem(rig: Rig, working_from_source: Array, tracks: TriangulatedTracks, part: Array) -> _Problem:
    """The problem of the views `part` (N,) bool, which alone see `tracks`."""
    views = np.nonzero(part)[0]
    sensors, camera = np.unique(rig.sensor[views], return_inverse=True)
    first = views[[int(np.nonzero(camera.reshape(-1) == c)[0][0]) for c in range(len(sensors))]]  # (C,)
    source_from_working = np.linalg.inv(working_from_source)
    params = np.zeros((len(sensors), 3))
    stretch = np.zeros((len(sensors), 2))
    for index, view in enumerate(first):
        k = source_from_working[view] @ rig.intrinsics[view]
        stretch[index] = rig.scale[view] * np.array([1.0, k[0, 0] / k[1, 1]])
        params[index] = k[0, 0] * stretch[index, 0], *(k[:2, 2] * stretch[index])
    image = np.full(len(rig.registered), -1)
    image[views] = np.arange(len(views))
    obs = tracks.obs
    to_source = source_from_working[obs.view_index]
    xy = np.einsum("oij,oj->oi", to_source[:, :2, :2], obs.xy) + to_source[:, :2, 2]
    xy = xy * stretch[camera.reshape(-1)[image[obs.view_index]]]
    sizes = np.full((len(sensors), 2), 10_000, np.int64)
    names = [f"{view:06d}" for view in views]
    cameras = ModelCameras(names, rig.cam_from_world[views], camera.reshape(-1), "SIMPLE_PINHOLE", params, sizes)
    return _Problem(views, sensors, cameras, Observations(obs.point_index, image[obs.view_index], xy), tracks.points)


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


def rotation_sigma_deg(problem: _Problem, rig: Rig, loss_px: float) -> Array:
    """One standard deviation (R,) of every view's rotation beside the turn that all share, degrees, by the tracks.

    For residuals that scatter as `loss_px` says; inf where the tracks leave some camera entirely open.
    """
    model = build_model(problem.cameras, problem.obs, problem.points)
    options = pycolmap.BACovarianceOptions(params=pycolmap.BACovarianceOptionsParams.POSES)
    with _errors_only():
        found = pycolmap.estimate_ba_covariance(options, model, _adjuster(model, problem, rig, loss_px))
    count = len(problem.views)
    if found is None:
        return np.full(count, np.inf)
    world_from_cam = np.swapaxes(rig.cam_from_world[problem.views, :3, :3], 1, 2)
    covariance = np.zeros((count, count, 3, 3))  # of turns in the world's axes; 0 for the camera that is fixed
    for i in range(count):
        for j in range(count):
            block = found.get_cam_cross_cov_from_world(i + 1, j + 1)
            if block is not None:
                covariance[i, j] = world_from_cam[i] @ block[:3, :3] @ world_from_cam[j].T
    traces = np.einsum("ijkk->ij", covariance)  # (R, R)
    weight = np.full(count, 1.0 / count)
    for _ in range(_SHARED_ROUNDS):  # the turn that all share, ever less by those that are hardly known
        shared = traces @ weight
        variance = np.maximum(np.diag(traces) - 2 * shared + weight @ shared, 1e-18)
        weight = 1 / variance / (1 / variance).sum()
    # Ceres's increment of a quaternion is half the turn
    return np.degrees(2 * np.sqrt(variance)) * loss_px / LOSS_SIGMAS


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
