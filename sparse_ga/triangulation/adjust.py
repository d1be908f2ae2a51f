"""Bundle adjustment of cameras and track points by pycolmap, kept only where it helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ga._pycolmap import pycolmap
from sparse_ga.geometry.transforms import inverse, nearest_rotation, rotation_angle_deg
from sparse_ga.geometry.triangulation import Observations, errors_px
from sparse_ga.products import Array
from sparse_ga.triangulation.colmap_model import ModelCameras, build_model, read_cam_from_world
from sparse_ga.triangulation.tracks import TriangulatedTracks
from sparse_ga.triangulation.views import Rig

_MIN_OBSERVATIONS = 12
_MAX_TRACKS = 30_000
_MAX_TURN_DEG = 10.0
_MAX_SHIFT = 0.2
_MAX_ZOOM = 1.25


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
    can only have come loose. Cameras with few observations are held. Runs on one thread, so that the result is the
    same every time. The first registered camera keeps its pose, and the median depth of the observations its value,
    unless given poses fix the frame.
    """
    before = _rms_px(rig, tracks.obs, tracks.points)
    chosen = _choose_tracks(tracks)
    if len(chosen.points) < _MIN_OBSERVATIONS or rig.registered.sum() < 2:
        return Adjustment(rig, False, "too few tracks", before, before)
    problem = _make_problem(rig, working_from_source, chosen)
    model = build_model(problem.cameras, problem.obs, problem.points)
    summary = _solve(model, problem, rig, loss_px)
    if not summary.is_solution_usable():
        return Adjustment(rig, False, "the solver failed", before, before)
    moved, points = _read_back(model, problem, rig)
    old_cost = _robust_cost(rig, chosen.obs, chosen.points, loss_px)
    new_cost = _robust_cost(moved, chosen.obs, points, loss_px)
    if not new_cost < old_cost:
        return Adjustment(rig, False, "the error did not fall", before, before)
    loose = came_loose(rig, moved, chosen.points)
    if loose:
        return Adjustment(rig, False, loose, before, before)
    return Adjustment(moved, True, "kept", before, _rms_px(moved, chosen.obs, points))


def _choose_tracks(tracks: TriangulatedTracks) -> TriangulatedTracks:
    """At most `_MAX_TRACKS` tracks: the longest ones, earlier ones first among equals."""
    if len(tracks.points) <= _MAX_TRACKS:
        return tracks
    rows = np.sort(np.argsort(-tracks.obs.lengths, kind="stable")[:_MAX_TRACKS])
    keep = np.zeros(len(tracks.points), bool)
    keep[rows] = True
    return TriangulatedTracks(
        tracks.obs.select(keep[tracks.obs.point_index]), tracks.points[keep], tracks.covariance[keep], tracks.rejected
    )


def _make_problem(rig: Rig, working_from_source: Array, tracks: TriangulatedTracks) -> _Problem:
    views = np.nonzero(rig.registered)[0]
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


def _solve(model: Any, problem: _Problem, rig: Rig, loss_px: float) -> Any:
    config = pycolmap.BundleAdjustmentConfig()
    count = np.bincount(problem.obs.view_index, minlength=len(problem.views))
    held = rig.held_pose[problem.views] | (count < _MIN_OBSERVATIONS)
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
    return pycolmap.create_default_bundle_adjuster(_options(loss_px), config, model).solve()


def _read_back(model: Any, problem: _Problem, rig: Rig) -> tuple[Rig, Array]:
    """The rig and points (P, 3) of a solved model, in the gauge of `rig`."""
    views = problem.views
    world_from_cam, intrinsics = rig.world_from_cam.copy(), rig.intrinsics.copy()
    world_from_cam[views] = inverse(read_cam_from_world(model, len(views)))
    zoom = np.array([model.camera(c + 1).params[0] for c in range(len(problem.sensors))]) / problem.cameras.params[:, 0]
    intrinsics[views, 0, 0] *= zoom[problem.cameras.camera_of_image]
    intrinsics[views, 1, 1] *= zoom[problem.cameras.camera_of_image]
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
