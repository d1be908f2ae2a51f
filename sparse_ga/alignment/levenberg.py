"""Levenberg-Marquardt with iteratively reweighted robust loss on the reprojection problem."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.alignment.normal_equations import (
    Layout,
    Loss,
    NormalEquations,
    depth_step,
    free_columns,
    linearise,
    robust_cost,
    solve_step,
)
from sparse_ga.alignment.problem import Problem, State, retract
from sparse_ga.products import Array

_MAX_TURN = 0.3  # rad per step
_MAX_LOG = 0.7  # log depth, scale and focal per step


@dataclass(frozen=True)
class Solution:
    """Where a solver ended: status ``converged``, ``iterations`` or ``stalled``; robust cost of every iteration."""

    state: State
    status: str
    history: Array  # (iterations + 1,)


def apply_step(problem: Problem, state: State, equations: NormalEquations, step: Array) -> State:
    """The state after a reduced step (D,) and the depth steps that go with it, shortened where they are too long."""
    layout = equations.layout
    pose = step[: 6 * layout.views].reshape(-1, 6)
    focal = step[layout.focal(np.arange(layout.groups))]
    scale = step[-layout.views :]
    largest = max(np.abs(pose).max(initial=0) / _MAX_TURN, np.abs(focal).max(initial=0) / _MAX_LOG, 1.0)
    depth = depth_step(problem, equations, step / largest)
    shift = np.zeros_like(state.principal_shift_px)
    if layout.centres:
        shift = step[layout.principal(np.arange(layout.centres))]
    increments = State(
        state.rotation,
        state.translation,
        focal / largest,
        shift / largest,
        scale / largest,
        np.clip(depth, -_MAX_LOG, _MAX_LOG),
    )
    return retract(state, pose / largest, increments, equations.centre)


def minimise(problem: Problem, start: State, loss: Loss, max_iterations: int, tolerance: float = 3e-5) -> Solution:
    """Minimise the robust cost from `start`; stops when a step lowers it by less than `tolerance` of itself.

    Damping acts on the reduced system (Marquardt's scaling), so a rejected step costs a solve and a cost evaluation,
    no new linearisation.
    """
    state, free, damping = start, free_columns(problem), 1e-4
    history: list[float] = []
    status = "iterations"
    for _ in range(max_iterations):
        equations = linearise(problem, state, loss)
        if not history:
            history.append(equations.cost)
        following, cost, damping = _damped_step(problem, state, equations, loss, free, damping)
        if following is None:
            status = "converged" if _is_flat(equations, free) else "stalled"
            break
        gain = (history[-1] - cost) / max(history[-1], 1e-300)
        state = following
        history.append(cost)
        if gain < tolerance:
            status = "converged"
            break
    return Solution(state, status, np.array(history))


def _damped_step(
    problem: Problem, state: State, equations: NormalEquations, loss: Loss, free: Array, damping: float
) -> tuple[State | None, float, float]:
    """The first state along growing damping that lowers the cost (None if none does), its cost, the next damping."""
    for _ in range(8):
        step = solve_step(equations, free, damping)
        if step is not None:
            trial = apply_step(problem, state, equations, step)
            cost = robust_cost(problem, trial, loss, equations.centre)
            if np.isfinite(cost) and cost < equations.cost:
                return trial, cost, max(damping / 10, 1e-8)
        damping *= 10
    return None, equations.cost, damping


def _is_flat(equations: NormalEquations, free: Array) -> bool:
    """Whether no step could lower the cost by a relevant amount: at rounding level of the cost."""
    step = solve_step(equations, free, 1e-6)
    return step is not None and abs(float(step @ equations.gradient)) < 1e-6 * max(equations.cost, 1e-12)


def rotation_sigma_deg(equations: NormalEquations, free: Array) -> Array:
    """One standard deviation of every view's rotation (n,), degrees, in the gauge where all views share the freedom.

    The inverse of the reduced Hessian (in units of the residuals' variance) without the seven directions in which
    nothing but the gauge would move (its smallest eigenvalues). 0 for held views, and beyond several hundred views.
    """
    layout: Layout = equations.layout
    if not isinstance(equations.hessian, np.ndarray) or not free.any():
        return np.zeros(layout.views)
    scale = 1.0 / np.sqrt(np.maximum(np.diag(equations.hessian)[free], 1e-12))
    value, vector = np.linalg.eigh(equations.hessian[np.ix_(free, free)] * scale[:, None] * scale)
    kept = value > 1e-7 * value[-1]
    covariance = np.zeros(layout.size)
    covariance[free] = ((vector[:, kept] * scale[:, None]) ** 2 / value[kept]).sum(1)
    turn = covariance[: 6 * layout.views].reshape(-1, 6)[:, :3].sum(1)
    return np.degrees(np.sqrt(np.maximum(turn, 0.0)))
