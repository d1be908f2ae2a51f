"""Reprojection residuals of one host view's observations, and their derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.alignment.problem import Problem, State
from sparse_ga.geometry.transforms import skew
from sparse_ga.products import Array

BEHIND_PX = 1e3
"""Residual of a point that falls behind its target camera: large, constant, without derivative."""


@dataclass(frozen=True)
class HostGeometry:
    """One host view's points, in its own frame and in the frames of the targets."""

    ray: Array  # (m, 3) host frame, z = 1
    point_host: Array  # (m, 3)
    point: Array  # (m, 3) target frame
    rotation: Array  # (links, 3, 3) target from host
    translation: Array  # (links, 3) target from host
    link: Array  # (m,) link of every observation, 0..links-1
    residual: Array  # (m, 2) px
    front: Array  # (m,) bool


@dataclass(frozen=True)
class HostJacobian:
    """Derivatives of `HostGeometry.residual` (zero for points behind a camera).

    `relative` is with respect to a motion of the target camera relative to the host, as `retract` moves a pose. The
    host's own pose acts through `host_to_relative`: relative = target step - host_to_relative @ host step.
    """

    relative: Array  # (m, 2, 6)
    camera_target: Array  # (m, 2, F) log focal, then principal point if it moves
    camera_host: Array  # (m, 2, F)
    depth: Array  # (m, 2) log depth
    host_to_relative: Array  # (links, 6, 6)


def current_intrinsics(problem: Problem, state: State) -> Array:
    """Intrinsics (n, 3, 3) in working px at `state`."""
    result = problem.intrinsics.copy()
    factor = np.exp(state.log_focal)[problem.group]
    result[:, 0, 0] *= factor
    result[:, 1, 1] *= factor
    result[:, :2, 2] += state.principal_shift_px[problem.centre_group]
    return result


def host_geometry(problem: Problem, state: State, intrinsics: Array, host: int) -> HostGeometry:
    """Points and residuals of all observations that `host` hosts."""
    obs = problem.observations
    links = slice(obs.host_start[host], obs.host_start[host + 1])
    bounds = obs.link_start[obs.host_start[host] : obs.host_start[host + 1] + 1]
    rows = slice(bounds[0], bounds[-1])
    target = obs.link_target[links]
    rotation = state.rotation[target] @ state.rotation[host].T  # (links, 3, 3)
    translation = state.translation[target] - rotation @ state.translation[host]
    link = np.repeat(np.arange(len(target)), np.diff(bounds))
    k = intrinsics[host]
    ray = np.ones((len(link), 3))
    ray[:, :2] = (obs.xy_host[rows] - k[:2, 2]) / k[[0, 1], [0, 1]]
    point_host = ray * np.exp(state.log_depth[obs.anchor[rows]] + obs.log_ratio[rows])[:, None]
    point = np.einsum("mij,mj->mi", rotation[link], point_host) + translation[link]
    front = point[:, 2] > 1e-3 * point_host[:, 2]
    z = np.where(front, point[:, 2], 1.0)
    focal = intrinsics[target][:, [0, 1], [0, 1]][link]
    residual = focal * point[:, :2] / z[:, None] + intrinsics[target, :2, 2][link] - obs.xy_target[rows]
    residual = np.where(front[:, None], residual, BEHIND_PX)
    return HostGeometry(ray, point_host, point, rotation, translation, link, residual, front)


def host_jacobian(
    problem: Problem, geometry: HostGeometry, intrinsics: Array, host: int, centre: Array
) -> HostJacobian:
    """Derivatives of one host's residuals; `centre` (n, 3) as for `retract`."""
    obs = problem.observations
    target = obs.link_target[obs.host_start[host] : obs.host_start[host + 1]]
    link = geometry.link
    z = np.where(geometry.front, geometry.point[:, 2], 1.0)
    visible = geometry.front.astype(float)
    focal = intrinsics[target][:, [0, 1], [0, 1]][link]  # (m, 2)
    normal = geometry.point[:, :2] / z[:, None]
    by_point = np.zeros((len(link), 2, 3))  # d pixel / d point in the target frame
    by_point[:, 0, 0] = focal[:, 0] / z * visible
    by_point[:, 1, 1] = focal[:, 1] / z * visible
    by_point[:, :, 2] = -(focal * normal) / z[:, None] * visible[:, None]
    relative = np.empty((len(link), 2, 6))
    relative[:, :, :3] = np.cross((geometry.point - centre[target][link])[:, None, :], by_point)
    relative[:, :, 3:] = by_point * centre[target, 2][link][:, None, None]
    by_host_point = by_point @ geometry.rotation[link]  # (m, 2, 3)
    depth = (by_host_point @ geometry.point_host[:, :, None])[..., 0]
    move = problem.moves_principal_point
    camera_target = np.zeros((len(link), 2, 3 if move else 1))
    camera_host = np.zeros_like(camera_target)
    camera_target[:, :, 0] = focal * normal * visible[:, None]
    camera_host[:, :, 0] = -(by_host_point[:, :, :2] @ geometry.point_host[:, :2, None])[..., 0]
    if move:
        scale = geometry.point_host[:, 2:] / intrinsics[host][[0, 1], [0, 1]]  # (m, 2)
        camera_host[:, :, 1:] = -by_host_point[:, :, :2] * scale[:, None, :]
        camera_target[:, :, 1:] = np.eye(2) * visible[:, None, None]
    adjoint = _host_to_relative(geometry, centre[host], centre[target])
    return HostJacobian(relative, camera_target, camera_host, depth, adjoint)


def _host_to_relative(geometry: HostGeometry, centre_host: Array, centre_target: Array) -> Array:
    """(links, 6, 6): the relative motion that moving the host by a step of `retract` undoes."""
    links = len(geometry.rotation)
    adjoint = np.zeros((links, 6, 6))
    adjoint[:, :3, :3] = geometry.rotation
    adjoint[:, 3:, 3:] = geometry.rotation
    adjoint[:, 3:, :3] = skew(geometry.translation) @ geometry.rotation
    from_step = np.eye(6)  # twist about the camera from a step about the centre
    from_step[3:, :3] = skew(centre_host)
    from_step[3:, 3:] *= centre_host[2]
    to_step = np.tile(np.eye(6), (links, 1, 1))
    to_step[:, 3:, :3] = -skew(centre_target) / centre_target[:, 2][:, None, None]
    to_step[:, 3:, 3:] /= centre_target[:, 2][:, None, None]
    return to_step @ adjoint @ from_step


def residual_lengths(problem: Problem, state: State) -> Array:
    """Length (M,) px of every observation's residual."""
    intrinsics = current_intrinsics(problem, state)
    parts = [
        np.linalg.norm(host_geometry(problem, state, intrinsics, host).residual, axis=-1)
        for host in range(problem.view_count)
    ]
    return np.concatenate(parts)
