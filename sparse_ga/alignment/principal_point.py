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
    show. A camera (of those whose focal length is free too) gets its principal points refined under a prior of
    `sigma_px` (C,) when the matches determine one at least three times as well as the prior, those so determined move
    by more than twelve standard deviations, and the cost falls by 0.3 % and by what 36 matches cost:
    where most matches are exact, the standard deviations are tiny and the rest, at depth edges, looks significant.
    The other orientations of that camera go along: a sensor that is off centre upright is so in turned photographs,
    and a few of those could never show it alone. Which way they were turned is not known, so each has a point of its
    own, which stays near the centre as far as its matches leave it to the prior.
    Cameras that are turned about their axes tell the principal point well. On an upright ring a shift along the axis
    is nearly a common rotation of all cameras.
    """
    loss, measured = losses
    allowed = (problem.focal_sigma[problem.group_of_centre] > 0) & (problem.principal_sigma_px == 0)
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
    """Whether the camera of each principal point (C,) has determined ones that are significantly off.

    By one step if `first_order`. All determined orientations of a camera count together.
    """
    equations = linearise(problem, state, loss)
    free = free_columns(problem)
    columns = equations.layout.principal(np.arange(equations.layout.centres))  # (C, 2)
    step, covariance = _solve_columns(equations, free, columns)
    shift = state.principal_shift_px + (step if first_order else 0.0)  # (C, 2)
    result = np.zeros(len(shift), bool)
    for group in np.unique(problem.group_of_centre):
        members = np.flatnonzero((problem.group_of_centre == group) & free[columns].all(-1))
        known = [c for c in members.tolist() if _largest_sigma(covariance[c, :, c]) < _DETERMINED * sigma_px[c]]
        if known:
            spread = covariance[np.array(known)][:, :, np.array(known)].reshape(2 * len(known), -1)
            moved = shift[known].ravel()
            result[members] = moved @ np.linalg.solve(spread + 1e-12 * np.eye(len(moved)), moved) > _SIGNIFICANT**2
    return result


def _largest_sigma(covariance: Array) -> float:
    """Standard deviation along the least certain direction of a covariance (2, 2); inf if it is not finite."""
    return float(np.sqrt(np.linalg.eigvalsh(covariance)[-1])) if np.isfinite(covariance).all() else np.inf


def _solve_columns(equations: NormalEquations, free: Array, columns: Array) -> tuple[Array, Array]:
    """Gauss-Newton step (C, 2) and inverse Hessian (C, 2, C, 2) of the columns (C, 2) of a reduced system."""
    count = len(columns)
    step, covariance = np.zeros((count, 2)), np.zeros((count, 2, count, 2))
    wanted = np.flatnonzero(free[columns].all(-1))
    position = (np.cumsum(free) - 1)[columns[wanted]].ravel()
    unit = np.zeros((int(free.sum()), len(position)))
    unit[position, np.arange(len(position))] = 1.0
    solved = _inverse_columns(equations.hessian, free, unit)
    if solved is None:
        return step, np.full_like(covariance, np.inf)
    step[wanted] = -(solved.T @ equations.gradient[free]).reshape(-1, 2)
    inverse = solved[position].reshape(len(wanted), 2, len(wanted), 2)
    both = np.arange(2)
    covariance[np.ix_(wanted, both, wanted, both)] = (inverse + inverse.transpose(2, 3, 0, 1)) / 2
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
