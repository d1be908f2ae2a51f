"""Residuals, derivatives and the Schur complement, against finite differences and a dense solve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from alignment_scenes import MILD, ring_case

import sparse_ga.alignment.normal_equations as equations_module
import sparse_ga.alignment.refine2d as refine2d_module
from sparse_ga.alignment.normal_equations import (
    Loss,
    camera_columns,
    depth_step,
    free_columns,
    layout_of,
    linearise,
    robust_cost,
    solve_step,
)
from sparse_ga.alignment.problem import Problem, State, build_observations, centres, retract
from sparse_ga.alignment.refine2d import weighted_by_pair
from sparse_ga.alignment.residuals import BEHIND_PX, current_intrinsics, host_geometry, host_jacobian, residual_lengths
from sparse_ga.geometry.transforms import inverse
from sparse_ga.products import Array


def small_problem(groups: int = 1, principal: float = 0.0, centre_group: Array | None = None) -> tuple[Problem, State]:
    """Four noisy views with few matches, at the true poses moved a little."""
    case = ring_case(4, MILD)
    centres = groups if centre_group is None else int(centre_group.max()) + 1
    canonical, alignment = case.align()
    observations = build_observations(case.pairs, canonical, case.matches.__getitem__, 15)
    start = np.concatenate([[0], np.cumsum([len(view.anchor_xy) for view in canonical])])
    cam_from_world = inverse(alignment.world_from_cam)
    problem = Problem(
        observations=observations,
        intrinsics=alignment.intrinsics,
        group=np.arange(4) % groups,
        centre_group=np.arange(4) % groups if centre_group is None else centre_group,
        anchor_start=start,
        canonical_log_depth=np.log(np.concatenate([view.anchor_depth.astype(float) for view in canonical])),
        depth_weight=np.full(start[-1], 100.0),
        focal_sigma=np.full(groups, 0.1),
        principal_sigma_px=np.full(centres, principal),
        pose_prior=cam_from_world,
        pose_sigma=np.full(4, np.inf),
    )
    rng = np.random.default_rng(0)
    state = State(
        cam_from_world[:, :3, :3],
        cam_from_world[:, :3, 3] + 0.01 * rng.normal(size=(4, 3)),
        0.02 * rng.normal(size=groups),
        np.full((centres, 2), 0.5 * (principal > 0)),
        np.zeros(4),
        np.log(alignment.anchor_depth) + 0.01 * rng.normal(size=start[-1]),
    )
    return problem, state


def moved(problem: Problem, state: State, centre: Array, column: int, size: float) -> State:
    """The state after a step of `size` along one column of the reduced system."""
    layout = layout_of(problem)
    step = np.zeros(layout.size)
    step[column] = size
    focal = step[layout.focal(np.arange(layout.groups))]
    shift = np.zeros_like(state.principal_shift_px)
    shift[: layout.centres] = step[layout.principal(np.arange(layout.centres))]
    nothing = np.zeros_like(state.log_depth)
    others = State(state.rotation, state.translation, focal, shift, step[-layout.views :], nothing)
    return retract(state, step[: 6 * layout.views].reshape(-1, 6), others, centre)


@pytest.mark.parametrize(("groups", "principal"), [(1, 0.0), (2, 3.0)])
def test_jacobians_agree_with_finite_differences(groups: int, principal: float) -> None:
    problem, state = small_problem(groups, principal)
    centre, layout, size = centres(problem, state), layout_of(problem), 1e-6
    intrinsics = current_intrinsics(problem, state)
    for host in range(4):
        geometry = host_geometry(problem, state, intrinsics, host)
        jacobian = host_jacobian(problem, geometry, intrinsics, host, centre)
        links = slice(problem.observations.host_start[host], problem.observations.host_start[host + 1])
        target = problem.observations.link_target[links][geometry.link]  # (m,)
        for column in range(layout.size - layout.views):
            ends = [moved(problem, state, centre, column, s * size) for s in (1, -1)]
            plus, minus = (host_geometry(problem, end, current_intrinsics(problem, end), host).residual for end in ends)
            slope = (plus - minus) / (2 * size)
            expected = np.zeros_like(slope)
            if column < 6 * layout.views:
                view, k = divmod(column, 6)
                expected += jacobian.relative[:, :, k] * (target == view)[:, None]
                if view == host:
                    to_relative = jacobian.host_to_relative[geometry.link][:, :, k]
                    expected -= np.einsum("mrc,mc->mr", jacobian.relative, to_relative)
            else:
                is_target, is_host = (camera_columns(problem, view) == column for view in (target, np.array(host)))
                expected += (jacobian.camera_target * is_target[:, None, :]).sum(-1)
                expected += (jacobian.camera_host * is_host).sum(-1)
            np.testing.assert_allclose(expected, slope, rtol=1e-5, atol=2e-5)
        rows = np.arange(len(geometry.link))
        plus, minus = (
            host_geometry(problem, replace(state, log_depth=state.log_depth + s * size), intrinsics, host).residual
            for s in (1, -1)
        )
        np.testing.assert_allclose(jacobian.depth[rows], (plus - minus) / (2 * size), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("groups", "principal"), [(1, 0.0), (2, 3.0)])
def test_gradient_is_that_of_the_robust_cost(groups: int, principal: float) -> None:
    problem, state = small_problem(groups, principal)
    loss, size = Loss(2.0), 1e-5
    equations = linearise(problem, state, loss)
    centre = equations.centre
    assert equations.cost == pytest.approx(robust_cost(problem, state, loss, centre), rel=1e-12)
    reduced = np.zeros(layout_of(problem).size)
    for column in range(len(reduced)):
        plus, minus = (
            robust_cost(problem, moved(problem, state, centre, column, s * size), loss, centre) for s in (1, -1)
        )
        reduced[column] = (plus - minus) / (4 * size)  # half the derivative: the cost is a sum of squares
    # The reduced gradient is the full one minus what the depths take up; undo that with the back-substitution at 0.
    depth_gradient = np.zeros(len(state.log_depth))
    for host, back in enumerate(equations.back):
        depth_gradient[problem.anchor_start[host] : problem.anchor_start[host + 1]] = back.gradient
    shift = depth_step(problem, equations, np.zeros(len(reduced)))
    for column in range(len(reduced)):
        unit = np.zeros(len(reduced))
        unit[column] = 1.0
        pull = depth_step(problem, equations, unit) - shift
        assert equations.gradient[column] == pytest.approx(
            reduced[column] + float(depth_gradient @ pull), rel=2e-3, abs=2e-3 * np.abs(reduced).max()
        )


@pytest.mark.parametrize("centre_group", [None, np.array([0, 1, 0, 2]), np.array([2, 3, 0, 1])])
def test_schur_complement_solves_the_full_system(centre_group: Array | None) -> None:
    """With principal points of whole cameras, and of the orientations of a camera."""
    problem, state = small_problem(2, 3.0, centre_group)
    loss, layout = Loss(5.0), layout_of(problem)
    equations = linearise(problem, state, loss)
    full, gradient = dense_system(problem, state, loss)
    size = layout.size
    by_schur = full[:size, :size] - full[:size, size:] @ np.linalg.solve(full[size:, size:], full[size:, :size])
    np.testing.assert_allclose(equations.hessian, by_schur, atol=1e-8 * np.abs(by_schur).max())
    reduced = gradient[:size] - full[:size, size:] @ np.linalg.solve(full[size:, size:], gradient[size:])
    np.testing.assert_allclose(equations.gradient, reduced, atol=1e-8 * np.abs(reduced).max())
    step = np.random.default_rng(0).normal(size=size) * 1e-2
    back = -np.linalg.solve(full[size:, size:], gradient[size:] + full[size:, :size] @ step)
    np.testing.assert_allclose(depth_step(problem, equations, step), back, atol=1e-9 + 1e-8 * np.abs(back).max())


def test_pairs_that_scatter_weigh_less_and_the_others_as_before() -> None:
    problem, state = small_problem()
    obs = problem.observations
    pair = np.repeat(obs.link_pair, np.diff(obs.link_start))
    before = residual_lengths(problem, state)
    rng = np.random.default_rng(0)
    noisy = np.where((pair == 1)[:, None], rng.normal(size=(len(obs), 2)) * 10 * np.median(before), 0.0)
    scattered = replace(problem, observations=replace(obs, xy_target=obs.xy_target + noisy))
    weight = weighted_by_pair(scattered, state, 0.5).weight / obs.weight
    per_pair = [np.unique(weight[pair == p].round(9)) for p in np.unique(pair)]
    assert all(len(values) == 1 for values in per_pair)  # one factor for a pair
    factors = np.concatenate(per_pair)
    assert 1 / 200 < factors[1] / np.delete(factors, 1).max() < 1 / 10  # (1 / 10)^2, less what 20 residuals hide
    assert (np.delete(factors, 1) > 0.3).all()


@pytest.mark.parametrize(
    ("first", "others", "low", "high"),
    [
        (1e-6, 1e-7, 1.0, 1.0),  # beneath the floor nothing is told apart
        (300.0, 0.1, 1 / 30, 1 / 30),
        (0.01, 3.0, 30.0, 30.0),
    ],
)
def test_weights_of_pairs_have_bounds(
    monkeypatch: pytest.MonkeyPatch, first: float, others: float, low: float, high: float
) -> None:
    problem, state = small_problem()
    obs = problem.observations
    pair = np.repeat(obs.link_pair, np.diff(obs.link_start))
    monkeypatch.setattr(refine2d_module, "residual_lengths", lambda *_: np.where(pair == 0, first, others))
    factors = (weighted_by_pair(problem, state, 0.5).weight / obs.weight)[pair == 0]
    assert (factors >= low * (1 - 1e-9)).all()
    assert (factors <= high * (1 + 1e-9)).all()


def test_a_single_residual_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, state = small_problem()
    obs = problem.observations
    alone = np.arange(len(obs)) == 0  # a pair of its own
    starts = np.concatenate([[0], [1], obs.link_start[1:]])
    obs = replace(obs, link_start=starts, link_pair=np.concatenate([[99], obs.link_pair]))
    problem = replace(problem, observations=obs)
    monkeypatch.setattr(refine2d_module, "residual_lengths", lambda *_: np.where(alone, 3.0, 0.1))
    factors = weighted_by_pair(problem, state, 0.5).weight / obs.weight
    assert 0.6 < factors[0] < 1
    np.testing.assert_allclose(factors[1:], 1)


def dense_system(problem: Problem, state: State, loss: Loss) -> tuple[Array, Array]:
    """Gauss-Newton Hessian and gradient over reduced parameters and all depths, one observation at a time."""
    layout, centre = layout_of(problem), centres(problem, state)
    obs, intrinsics = problem.observations, current_intrinsics(problem, state)
    total = layout.size + len(state.log_depth)
    rows, residuals = [], []
    for host in range(problem.view_count):
        geometry = host_geometry(problem, state, intrinsics, host)
        jacobian = host_jacobian(problem, geometry, intrinsics, host, centre)
        first = obs.link_start[obs.host_start[host]]
        for m, link in enumerate(geometry.link):
            row = np.zeros((2, total))
            target = obs.link_target[obs.host_start[host] + link]
            row[:, layout.pose(target)] += jacobian.relative[m]
            row[:, layout.pose(np.array(host))] -= jacobian.relative[m] @ jacobian.host_to_relative[link]
            row[:, camera_columns(problem, target)] += jacobian.camera_target[m]
            row[:, camera_columns(problem, np.array(host))] += jacobian.camera_host[m]
            row[:, layout.size + obs.anchor[first + m]] += jacobian.depth[m]
            weight = loss.reprojection(geometry.residual[m : m + 1], obs.weight[first + m : first + m + 1])[0][0]
            rows += list(np.sqrt(weight) * row)
            residuals += list(np.sqrt(weight) * geometry.residual[m])
    error = state.log_depth - state.log_scale[problem.anchor_view] - problem.canonical_log_depth
    weight = loss.depth(error, problem.depth_weight)[0]
    for a, view in enumerate(problem.anchor_view):
        row = np.zeros(total)
        row[layout.size + a], row[layout.scale(int(view))] = 1.0, -1.0
        rows.append(np.sqrt(weight[a]) * row)
        residuals.append(np.sqrt(weight[a]) * error[a])
    hessian, gradient = np.array(rows).T @ np.array(rows), np.array(rows).T @ np.array(residuals)
    for g, sigma in enumerate(problem.focal_sigma):
        hessian[layout.focal(g), layout.focal(g)] += sigma**-2.0
        gradient[layout.focal(g)] += sigma**-2.0 * state.log_focal[g]
    for c, sigma in enumerate(problem.principal_sigma_px):
        columns = layout.principal(c)
        hessian[columns, columns] += sigma**-2.0
        gradient[columns] += sigma**-2.0 * state.principal_shift_px[c]
    return hessian, gradient


def test_sparse_and_dense_reduced_systems_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, state = small_problem(2, 3.0)
    dense = linearise(problem, state, Loss(2.0))
    monkeypatch.setattr(equations_module, "_DENSE_VIEWS", 0)
    sparse = linearise(problem, state, Loss(2.0))
    np.testing.assert_allclose(sparse.hessian.toarray(), dense.hessian, atol=1e-9 * np.abs(dense.hessian).max())
    free = free_columns(problem)
    np.testing.assert_allclose(solve_step(sparse, free, 1e-3), solve_step(dense, free, 1e-3), rtol=1e-6, atol=1e-9)


def test_held_parameters_do_not_move() -> None:
    problem, state = small_problem(2, 3.0)
    problem = replace(
        problem,
        focal_sigma=np.array([0.0, 0.1]),
        principal_sigma_px=np.array([3.0, 0.0]),
        pose_sigma=np.array([0.0, np.inf, np.inf, 0.0]),
    )
    equations = linearise(problem, state, Loss(2.0))
    layout, free = equations.layout, free_columns(problem)
    step = solve_step(equations, free, 1e-3)
    assert step is not None
    np.testing.assert_array_equal(step[layout.pose(np.array([0, 3]))], 0)
    assert (step[layout.pose(np.array([1, 2]))] != 0).all()
    np.testing.assert_array_equal(step[layout.focal(np.array([0, 1]))] != 0, [False, True])
    np.testing.assert_array_equal(step[layout.principal(np.array([0, 1]))] != 0, [[True, True], [False, False]])


def test_points_behind_a_camera_have_a_constant_large_residual() -> None:
    problem, state = small_problem()
    behind = replace(state, translation=state.translation * np.array([1, 1, -1.0]))
    lengths = residual_lengths(problem, behind)
    assert (lengths == np.hypot(BEHIND_PX, BEHIND_PX)).any()
    equations = linearise(problem, behind, Loss(1.0))
    assert np.isfinite(equations.hessian).all()
    assert np.isfinite(equations.gradient).all()
