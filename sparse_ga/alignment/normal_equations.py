"""Normal equations of the reprojection problem with the anchor depths eliminated.

Every residual depends on one anchor depth, so the depths' Hessian is diagonal and the Schur complement on cameras costs
one dense product per host view, over its targets only. Host views are processed one after the other: memory holds one
host's derivatives, plus one row per (link, anchor) for the back-substitution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve
from scipy.sparse import csc_matrix, diags
from scipy.sparse.linalg import splu

from sparse_ga.alignment.assembly import add_block, empty_system
from sparse_ga.alignment.problem import Problem, State, centres
from sparse_ga.alignment.residuals import (
    HostGeometry,
    HostJacobian,
    current_intrinsics,
    host_geometry,
    host_jacobian,
)
from sparse_ga.geometry.transforms import exp_so3, rotation_angle_deg
from sparse_ga.products import Array

_ONE_THREAD, _THREADS_PAY = 250_000, 20_000_000  # multiplications in a matrix product
_DENSE_VIEWS = 400  # up to this many views the reduced system is solved densely


@dataclass(frozen=True)
class Loss:
    """Robust losses: Cauchy's at `scale_px` for reprojections, at three standard deviations for depth priors.

    `sigma_px` is the standard deviation of a reprojection of weight 1, per coordinate: what priors are weighed against.
    """

    scale_px: float
    sigma_px: float = 1.0
    depth_scale: float = 3.0

    def reprojection(self, residual: Array, weight: Array) -> tuple[Array, Array]:
        """Weights (m,) for least squares, and losses (m,), in units of the variance."""
        r2 = (residual**2).sum(-1) / self.scale_px**2
        weight = weight / self.sigma_px**2
        return weight / (1 + r2), weight * self.scale_px**2 * np.log1p(r2)

    def depth(self, error: Array, weight: Array) -> tuple[Array, Array]:
        """The same for depth priors, errors (A,) with inverse variances `weight` (A,)."""
        c2 = self.depth_scale**2
        r2 = error**2 * weight / c2
        return weight / (1 + r2), c2 * np.log1p(r2)


@dataclass(frozen=True)
class Layout:
    """Where parameters sit in the reduced system: poses (6 each), log focal lengths, principal points, log scales."""

    views: int
    groups: int
    centres: int  # 0 where no principal point moves

    @property
    def size(self) -> int:
        """Number of reduced parameters."""
        return 7 * self.views + self.groups + 2 * self.centres

    def pose(self, view: Array) -> Array:
        """Columns (..., 6) of the poses of `view` (...)."""
        return np.asarray(view)[..., None] * 6 + np.arange(6)

    def focal(self, group: Array) -> Array:
        """Columns (...) of the log focal lengths of `group` (...)."""
        return 6 * self.views + np.asarray(group)

    def principal(self, centre_group: Array) -> Array:
        """Columns (..., 2) of the principal points of `centre_group` (...)."""
        return 6 * self.views + self.groups + 2 * np.asarray(centre_group)[..., None] + np.arange(2)

    def scale(self, view: int) -> int:
        """Column of a view's log scale."""
        return 6 * self.views + self.groups + 2 * self.centres + view

    @property
    def widths(self) -> Array:
        """Columns (2 views + groups + centres,) of every pose, focal length, principal point and log scale."""
        return np.repeat([6, 1, 2, 1], [self.views, self.groups, self.centres, self.views])


@dataclass(frozen=True)
class HostBack:
    """What back-substitution needs of one host: coupling of its anchors to the columns of the reduced system."""

    columns: Array  # (U,) link of each row below
    anchor: Array  # (U,) local anchor of each row
    coupling: Array  # (U, 6 + 2F): relative pose, target camera, host camera
    to_relative: Array  # (links, 6, 6)
    scale_coupling: Array  # (a,)
    hessian: Array  # (a,)
    gradient: Array  # (a,)


@dataclass(frozen=True)
class NormalEquations:
    """Reduced system at a state: `hessian` @ step = -`gradient` over `Layout` columns; and the way back to depths."""

    layout: Layout
    hessian: Array | csc_matrix  # (D, D)
    gradient: Array  # (D,)
    cost: float
    back: tuple[HostBack, ...]
    centre: Array  # (n, 3)


def layout_of(problem: Problem) -> Layout:
    """Parameter layout of a problem."""
    centres = len(problem.principal_sigma_px) if problem.moves_principal_point else 0
    return Layout(problem.view_count, len(problem.focal_sigma), centres)


def camera_columns(problem: Problem, view: Array) -> Array:
    """Columns (..., F) of the cameras of `view` (...): log focal length, then the principal point if any moves."""
    layout = layout_of(problem)
    focal = layout.focal(problem.group[view])[..., None]
    if not layout.centres:
        return focal
    return np.concatenate([focal, layout.principal(problem.centre_group[view])], -1)


def free_columns(problem: Problem) -> Array:
    """Which reduced parameters (D,) bool may move."""
    layout = layout_of(problem)
    free = np.ones(layout.size, bool)
    free[layout.pose(np.flatnonzero(problem.pose_sigma == 0)).ravel()] = False
    free[layout.focal(np.flatnonzero(problem.focal_sigma == 0))] = False
    if layout.centres:
        free[layout.principal(np.flatnonzero(problem.principal_sigma_px == 0)).ravel()] = False
    for n in np.flatnonzero(np.diff(problem.anchor_start) == 0):
        free[layout.scale(int(n))] = False
    return free


def linearise(problem: Problem, state: State, loss: Loss) -> NormalEquations:
    """The reduced normal equations at `state`, all observations, depth priors, focal and pose priors."""
    layout, centre = layout_of(problem), centres(problem, state)
    intrinsics = current_intrinsics(problem, state)
    touched = [_touched(problem, host) for host in range(layout.views)]
    dense = layout.views <= _DENSE_VIEWS
    hessian = np.zeros((layout.size, layout.size)) if dense else empty_system(layout.widths, touched)
    gradient, cost, back = np.zeros(layout.size), 0.0, []
    for host in range(layout.views):
        local = _linearise_host(problem, state, intrinsics, centre, loss, host)
        cost += local.cost
        back.append(local.back)
        gradient[local.index] += local.gradient
        if dense:
            hessian[np.ix_(local.index, local.index)] += local.hessian
        else:
            add_block(hessian, local.index, layout.widths[touched[host]], local.hessian)
    diagonal, prior_gradient, prior_cost = _priors(problem, state, centre, layout)
    gradient += prior_gradient
    full = hessian + (np.diag(diagonal) if dense else diags(diagonal))
    return NormalEquations(layout, full, gradient, cost + prior_cost, tuple(back), centre)


def _touched(problem: Problem, host: int) -> Array:
    """Sorted parameters of the reduced system, in the order of `Layout.widths`, that a host's residuals depend on."""
    obs, layout = problem.observations, layout_of(problem)
    views = np.append(obs.link_target[obs.host_start[host] : obs.host_start[host + 1]], host)
    groups = layout.views + problem.group[views]
    centres = layout.views + layout.groups + problem.centre_group[views[: len(views) if layout.centres else 0]]
    scale = layout.views + layout.groups + layout.centres + host
    return np.unique(np.concatenate([views, groups, centres, [scale]]))


@dataclass(frozen=True)
class _HostSystem:
    index: Array  # (g,) columns of the reduced system
    hessian: Array  # (g, g)
    gradient: Array  # (g,)
    cost: float
    back: HostBack


@dataclass(frozen=True)
class _Weighted:
    """One host's residuals and derivatives, times the square roots of their robust weights."""

    geometry: HostGeometry
    jacobian: HostJacobian
    stacked: Array  # (m, 2, 6 + 2F) relative pose, target camera, host camera
    depth: Array  # (m, 2)
    residual: Array  # (m, 2)
    cost: float


def _linearise_host(
    problem: Problem, state: State, intrinsics: Array, centre: Array, loss: Loss, host: int
) -> _HostSystem:
    weighted = _weigh(problem, host_geometry(problem, state, intrinsics, host), intrinsics, centre, loss, host)
    back, prior_cost, scale_terms = _eliminate(problem, state, loss, host, weighted)
    local, gradient = _reduce(weighted, back, scale_terms)
    index, spread = _to_global(problem, host, weighted.jacobian)
    cost = weighted.cost + prior_cost
    return _HostSystem(index, spread.T @ local @ spread, spread.T @ gradient, cost, back)


def _weigh(
    problem: Problem, geometry: HostGeometry, intrinsics: Array, centre: Array, loss: Loss, host: int
) -> _Weighted:
    obs = problem.observations
    jacobian = host_jacobian(problem, geometry, intrinsics, host, centre)
    rows = slice(obs.link_start[obs.host_start[host]], obs.link_start[obs.host_start[host + 1]])
    weight, losses = loss.reprojection(geometry.residual, obs.weight[rows])
    root = np.sqrt(weight)[:, None]
    stacked = np.concatenate([jacobian.relative, jacobian.camera_target, jacobian.camera_host], 2)
    stacked *= root[..., None]
    return _Weighted(geometry, jacobian, stacked, jacobian.depth * root, geometry.residual * root, float(losses.sum()))


def _eliminate(
    problem: Problem, state: State, loss: Loss, host: int, weighted: _Weighted
) -> tuple[HostBack, float, Array]:
    """Depth Hessian and gradient of the host's anchors, their coupling; cost of the priors; scale's own terms (2,)."""
    obs, link = problem.observations, weighted.geometry.link
    first, last = problem.anchor_start[host], problem.anchor_start[host + 1]
    rows = slice(obs.link_start[obs.host_start[host]], obs.link_start[obs.host_start[host + 1]])
    anchor, count = obs.anchor[rows] - first, int(last - first)
    error = state.log_depth[first:last] - state.log_scale[host] - problem.canonical_log_depth[first:last]
    prior, prior_loss = loss.depth(error, problem.depth_weight[first:last])
    coupling = np.einsum("mrc,mr->mc", weighted.stacked, weighted.depth)
    own = np.stack([(weighted.depth**2).sum(1), (weighted.depth * weighted.residual).sum(1)], 1)
    per_row = np.concatenate([coupling, own], 1)
    start = np.flatnonzero(np.diff(link * max(count, 1) + anchor, prepend=-1))
    runs = np.add.reduceat(per_row, start, axis=0) if len(start) else np.zeros((0, per_row.shape[1]))
    run_anchor = anchor[start]
    hessian = np.bincount(run_anchor, runs[:, -2], minlength=count) + prior
    gradient = np.bincount(run_anchor, runs[:, -1], minlength=count) + prior * error
    back = HostBack(
        link[start], run_anchor, runs[:, :-2], weighted.jacobian.host_to_relative, -prior, hessian, gradient
    )
    return back, float(prior_loss.sum()), np.array([prior.sum(), -(prior * error).sum()])


def _reduce(weighted: _Weighted, back: HostBack, scale_terms: Array) -> tuple[Array, Array]:
    """Schur complement and gradient over local columns: per link (relative pose, target camera), host camera, scale."""
    geometry, stacked, residual = weighted.geometry, weighted.stacked, weighted.residual
    links, wide = len(geometry.rotation), stacked.shape[2]
    camera = (wide - 6) // 2
    block = 6 + camera
    size = links * block + camera + 1
    local, gradient = np.zeros((size, size)), np.zeros(size)
    bounds = np.searchsorted(geometry.link, np.arange(links + 1))
    own = np.arange(links * block, links * block + camera)
    for link in range(links):
        rows = stacked[bounds[link] : bounds[link + 1]].reshape(-1, wide)
        columns = np.concatenate([link * block + np.arange(block), own])
        local[np.ix_(columns, columns)] += rows.T @ rows
        gradient[columns] += rows.T @ residual[bounds[link] : bounds[link + 1]].reshape(-1)
    local[-1, -1] += scale_terms[0]
    gradient[-1] += scale_terms[1]
    coupling = np.zeros((size, len(back.hessian)))  # (columns, anchors)
    if links:
        coupling[: links * block].reshape(links, block, -1)[back.columns, :, back.anchor] = back.coupling[:, :block]
    for c in range(camera):
        coupling[links * block + c] = np.bincount(back.anchor, back.coupling[:, block + c], minlength=len(back.hessian))
    coupling[-1] = back.scale_coupling
    inverse = _inverse(back.hessian)
    scaled = coupling * np.sqrt(inverse)
    pulled = np.einsum("ca,a->c", coupling, back.gradient * inverse)
    return local - _outer(scaled), gradient - pulled


def _outer(matrix: Array) -> Array:
    """matrix @ matrix.T of a wide matrix (r, c), small ones in tiles.

    OpenBLAS hands out products above a quarter of a million multiplications to threads, and waits for them longer than
    the product takes when other processes want the cores.
    """
    rows, columns = matrix.shape
    work = rows * rows * columns
    if work > _THREADS_PAY or rows == 0:
        return matrix @ matrix.T
    tile = max(1, _ONE_THREAD // max(rows * rows, 1))
    result = np.zeros((rows, rows))
    for first in range(0, columns, tile):
        part = matrix[:, first : first + tile]
        result += part @ part.T
    return result


def _inverse(hessian: Array) -> Array:
    """1 / hessian, 0 for anchors that nothing determines."""
    return np.where(hessian > 1e-12, 1.0 / np.maximum(hessian, 1e-12), 0.0)


def _to_global(problem: Problem, host: int, jacobian: HostJacobian) -> tuple[Array, Array]:
    """Columns (g,) of the reduced system that a host touches, and local-from-global (l, g)."""
    obs, layout = problem.observations, layout_of(problem)
    target = obs.link_target[obs.host_start[host] : obs.host_start[host + 1]]
    views = np.unique(np.append(target, host))
    cameras = camera_columns(problem, views)  # (v, F)
    index = np.concatenate([layout.pose(views).ravel(), np.unique(cameras), [layout.scale(host)]])
    f = cameras.shape[1]
    block = 6 + f
    spread = np.zeros((len(target) * block + f + 1, len(index)))
    camera_at = np.searchsorted(index, cameras)
    view_at, host_at = np.searchsorted(views, target), int(np.searchsorted(views, host))
    for link in range(len(target)):
        row, column = link * block, 6 * view_at[link]
        spread[row : row + 6, column : column + 6] += np.eye(6)
        spread[row : row + 6, 6 * host_at : 6 * host_at + 6] -= jacobian.host_to_relative[link]
        spread[row + 6 + np.arange(f), camera_at[view_at[link]]] += 1.0
    spread[len(target) * block + np.arange(f), camera_at[host_at]] += 1.0
    spread[-1, -1] = 1.0
    return index, spread


def pose_prior_error(problem: Problem, state: State, centre: Array) -> Array:
    """Steps (n, 6), as `retract` takes them, from the given poses to the present ones; 0 where there is no prior."""
    error = np.zeros((problem.view_count, 6))
    for n in np.flatnonzero(np.isfinite(problem.pose_sigma) & (problem.pose_sigma > 0)):
        turn = state.rotation[n] @ problem.pose_prior[n, :3, :3].T
        angle = np.radians(rotation_angle_deg(turn))
        axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        error[n, :3] = axis * (angle / max(np.linalg.norm(axis), 1e-12))
        start = exp_so3(error[n, :3]) @ (problem.pose_prior[n, :3, 3] - centre[n]) + centre[n]
        error[n, 3:] = (state.translation[n] - start) / centre[n, 2]
    return error


def _priors(problem: Problem, state: State, centre: Array, layout: Layout) -> tuple[Array, Array, float]:
    """Diagonal (D,) and gradient (D,) of the priors on cameras and poses, and their cost."""
    diagonal, gradient, cost = np.zeros(layout.size), np.zeros(layout.size), 0.0
    soft = np.flatnonzero(np.isfinite(problem.focal_sigma) & (problem.focal_sigma > 0))
    if len(soft):
        column, inverse = layout.focal(soft), problem.focal_sigma[soft] ** -2.0
        diagonal[column] += inverse
        gradient[column] += inverse * state.log_focal[soft]
        cost += float((inverse * state.log_focal[soft] ** 2).sum())
    moved = np.flatnonzero(np.isfinite(problem.principal_sigma_px) & (problem.principal_sigma_px > 0))
    if len(moved):
        column = layout.principal(moved)  # (k, 2)
        inverse = np.repeat(problem.principal_sigma_px[moved, None] ** -2.0, 2, 1)
        diagonal[column.ravel()] += inverse.ravel()
        gradient[column.ravel()] += (inverse * state.principal_shift_px[moved]).ravel()
        cost += float((inverse * state.principal_shift_px[moved] ** 2).sum())
    posed = np.flatnonzero(np.isfinite(problem.pose_sigma) & (problem.pose_sigma > 0))
    if len(posed):
        error = pose_prior_error(problem, state, centre)[posed]
        inverse = np.repeat(problem.pose_sigma[posed, None] ** -2.0, 6, 1)
        diagonal[layout.pose(posed).ravel()] += inverse.ravel()
        gradient[layout.pose(posed).ravel()] += (inverse * error).ravel()
        cost += float((inverse * error**2).sum())
    return diagonal, gradient, cost


def robust_cost(problem: Problem, state: State, loss: Loss, centre: Array) -> float:
    """The cost that `linearise` reports, without derivatives."""
    intrinsics, cost = current_intrinsics(problem, state), 0.0
    obs = problem.observations
    for host in range(problem.view_count):
        rows = slice(obs.link_start[obs.host_start[host]], obs.link_start[obs.host_start[host + 1]])
        residual = host_geometry(problem, state, intrinsics, host).residual
        cost += float(loss.reprojection(residual, obs.weight[rows])[1].sum())
    error = state.log_depth - state.log_scale[problem.anchor_view] - problem.canonical_log_depth
    cost += float(loss.depth(error, problem.depth_weight)[1].sum())
    return cost + _priors(problem, state, centre, layout_of(problem))[2]


def solve_step(equations: NormalEquations, free: Array, damping: float) -> Array | None:
    """Damped step (D,) of the reduced parameters, 0 where not `free` (D,) bool; None when the system is singular."""
    step = np.zeros(equations.layout.size)
    right = -equations.gradient[free]
    if isinstance(equations.hessian, np.ndarray):
        matrix = equations.hessian[np.ix_(free, free)]
        diagonal = np.maximum(np.diag(matrix), 1e-9)
        matrix = matrix + np.diag(diagonal * damping)
        try:
            lower = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return None
        step[free] = cho_solve((lower, True), right)
    else:
        matrix = equations.hessian[free][:, free]
        diagonal = np.maximum(matrix.diagonal(), 1e-9)
        try:
            step[free] = splu((matrix + diags(diagonal * damping)).tocsc()).solve(right)
        except RuntimeError:
            return None
    return step if np.isfinite(step).all() else None


def depth_step(problem: Problem, equations: NormalEquations, step: Array) -> Array:
    """Back-substitution: steps (A,) of all log depths that go with a reduced `step` (D,)."""
    layout, obs = equations.layout, problem.observations
    result = np.zeros(len(problem.canonical_log_depth))
    for host, back in enumerate(equations.back):
        target = obs.link_target[obs.host_start[host] : obs.host_start[host + 1]]
        relative = step[layout.pose(target)] - back.to_relative @ step[layout.pose(np.array(host))]  # (links, 6)
        camera = step[camera_columns(problem, target)]  # (links, F)
        own = step[camera_columns(problem, np.array(host))]  # (F,)
        motion = np.concatenate([relative, camera, np.tile(own, (len(target), 1))], 1)  # (links, 6 + 2F)
        pull = (back.coupling * motion[back.columns]).sum(1)
        pull = np.bincount(back.anchor, pull, minlength=len(back.hessian)).astype(float)  # int when there is none
        pull += back.gradient + back.scale_coupling * step[layout.scale(host)]
        result[problem.anchor_start[host] : problem.anchor_start[host + 1]] = -pull * _inverse(back.hessian)
    return result
