"""Whether the matches determine the principal point and place it elsewhere than the image centre."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csc_matrix, identity
from scipy.sparse.linalg import splu

from sparse_ga.alignment.levenberg import Solution, minimise
from sparse_ga.alignment.normal_equations import Loss, NormalEquations, free_columns, linearise, robust_cost
from sparse_ga.alignment.problem import Problem, State, centres
from sparse_ga.products import Array

_DETERMINED = 0.3  # of the prior's standard deviation
_SIGNIFICANT = 12.0  # standard deviations; residuals are not as independent as the estimate assumes
_MIN_GAIN = 3e-3  # of the robust cost
_MIN_FALL = 36.0  # of the robust cost, in units of what a match costs on average: six standard deviations


def free_principal_point(
    problem: Problem, state: State, losses: tuple[Loss, Loss], sigma_px: Array
) -> tuple[Solution | None, Problem]:
    """A solution with moved principal points, and its problem; None, and the problem as it was, if nothing insists.

    `losses` are the one to solve with, of which `state` must be a minimum, and the one whose `sigma_px` the residuals
    show. A camera group (of those whose focal length is free too) gets its principal
    point refined under a prior of `sigma_px` (G,) when the matches determine it at least three times as well as the
    prior, it moves by more than twelve standard deviations, and the cost falls by 0.3 % and by what 36 matches cost:
    where most matches are exact, the standard deviations are tiny and the rest, at depth edges, looks significant.
    Cameras that are turned about their axes tell the principal point well. On an upright ring a shift along the axis
    is nearly a common rotation of all cameras.
    """
    loss, measured = losses
    allowed = (problem.focal_sigma > 0) & (problem.principal_sigma_px == 0)
    if not allowed.any():
        return None, problem
    moving = replace(problem, principal_sigma_px=np.where(allowed, sigma_px, problem.principal_sigma_px))
    chosen = allowed & _insists(moving, state, measured, sigma_px, first_order=True)
    if not chosen.any():
        return None, problem
    moving = replace(problem, principal_sigma_px=np.where(chosen, sigma_px, problem.principal_sigma_px))
    solution = minimise(moving, state, loss, 30)
    gain = 1.0 - solution.history[-1] / max(robust_cost(problem, state, loss, centres(problem, state)), 1e-300)
    if (
        gain < max(_MIN_GAIN, _MIN_FALL / max(len(problem.observations) / 2, 1.0))
        or not (_insists(moving, solution.state, measured, sigma_px, first_order=False) | ~chosen).all()
    ):
        return None, problem
    return solution, moving


def _insists(problem: Problem, state: State, loss: Loss, sigma_px: Array, first_order: bool) -> Array:
    """Whether each group's (G,) principal point is determined and significantly off; by one step if `first_order`."""
    equations = linearise(problem, state, loss)
    free = free_columns(problem)
    columns = equations.layout.camera_columns(np.arange(equations.layout.groups))[:, 1:]  # (G, 2)
    step, covariance = _solve_columns(equations, free, columns)
    shift = state.principal_shift_px + (step if first_order else 0.0)  # (G, 2)
    result = np.zeros(len(shift), bool)
    for g in np.flatnonzero(free[columns].all(-1)):
        spread = covariance[g]
        if not np.isfinite(spread).all():
            continue
        distance = np.sqrt(shift[g] @ np.linalg.solve(spread + 1e-12 * np.eye(2), shift[g]))
        known = np.sqrt(np.linalg.eigvalsh(spread)[-1]) < _DETERMINED * sigma_px[g]
        result[g] = known and distance > _SIGNIFICANT
    return result


def _solve_columns(equations: NormalEquations, free: Array, columns: Array) -> tuple[Array, Array]:
    """Gauss-Newton step (G, 2) and inverse Hessian (G, 2, 2) of the columns (G, 2) of a reduced system."""
    position = np.cumsum(free) - 1
    size = int(free.sum())
    wanted = free[columns].all(-1)
    unit = np.zeros((size, 2 * len(columns)))
    for g in np.flatnonzero(wanted):
        unit[position[columns[g]], [2 * g, 2 * g + 1]] = 1.0
    solved = _inverse_columns(equations.hessian, free, unit)
    if solved is None:
        return np.zeros((len(columns), 2)), np.full((len(columns), 2, 2), np.inf)
    step, covariance = np.zeros((len(columns), 2)), np.zeros((len(columns), 2, 2))
    for g in np.flatnonzero(wanted):
        pair = solved[:, [2 * g, 2 * g + 1]]
        step[g] = -pair.T @ equations.gradient[free]
        covariance[g] = pair[position[columns[g]]]
    return step, covariance


def _inverse_columns(hessian: Array | csc_matrix, free: Array, unit: Array) -> Array | None:
    """Inverse of the free part of a reduced Hessian (D, D) times `unit` (d, k), the gauge damped; None if singular."""
    if not isinstance(hessian, np.ndarray):
        matrix = hessian[free][:, free]
        return splu((matrix + 1e-9 * float(matrix.diagonal().max()) * identity(len(unit))).tocsc()).solve(unit)
    scale = 1.0 / np.sqrt(np.maximum(np.diag(hessian)[free], 1e-9))
    matrix = hessian[np.ix_(free, free)] * scale[:, None] * scale
    try:
        factor = cho_factor(matrix + 1e-8 * np.eye(len(matrix)), lower=True)
    except np.linalg.LinAlgError:
        return None
    return scale[:, None] * cho_solve(factor, scale[:, None] * unit)
