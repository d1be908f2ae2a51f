"""The first-order schedule, kept for comparison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from alignment_scenes import (
    MILD,
    assert_sound,
    build_scene,
    complete,
    make_case,
    ring,
    ring_case,
    rotation_errors,
    same_intrinsics,
)
from test_residuals import small_problem

from sparse_ga.alignment.adam import _initial, _loss_2d, _make_chain, _pose_prior, _poses, _tensors, adam_schedule
from sparse_ga.alignment.normal_equations import pose_prior_error
from sparse_ga.alignment.problem import centres
from sparse_ga.alignment.residuals import residual_lengths
from sparse_ga.config import Refine2dConfig
from sparse_ga.evaluation import relative_errors_deg


def test_both_directions_of_a_match_know_each_other() -> None:
    problem, _ = small_problem()
    matches = _tensors(problem)
    np.testing.assert_array_equal(matches.partner[matches.partner], np.arange(len(matches.partner)))
    np.testing.assert_array_equal(matches.host[matches.partner], matches.target)
    np.testing.assert_array_equal(matches.xy_host[matches.partner], matches.xy_target)


def test_the_chain_starts_where_the_views_are() -> None:
    problem, state = small_problem()
    chain = _make_chain(problem)
    rotation, translation = _poses(_initial(state, chain), chain)
    np.testing.assert_allclose(rotation, state.rotation, atol=1e-12)
    np.testing.assert_allclose(translation, state.translation, atol=1e-12)


def test_its_residuals_are_those_of_the_other_solver() -> None:
    problem, state = small_problem(2)
    chain = _make_chain(problem)
    loss = _loss_2d(problem, _initial(state, chain), chain, _tensors(problem), 1.0)
    expected = np.average(residual_lengths(problem, state), weights=problem.observations.weight)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_held_focal_lengths_do_not_move_and_nothing_is_changed_in_place() -> None:
    problem, state = small_problem()
    held = replace(problem, focal_sigma=np.zeros(1))
    before = state.log_depth.copy()
    solution = adam_schedule(held, replace(state, log_focal=np.zeros(1)), steps=5)
    np.testing.assert_array_equal(solution.state.log_focal, 0)
    np.testing.assert_array_equal(state.log_depth, before)
    assert len(solution.history) == 10
    assert np.isfinite(solution.history).all()


def test_held_poses_do_not_move_and_hold_the_others() -> None:
    problem, state = small_problem()
    sigma = np.array([np.inf, 0, np.inf, 0])
    problem = replace(problem, pose_sigma=sigma)
    solved = adam_schedule(problem, state, steps=5).state
    np.testing.assert_allclose(solved.rotation[sigma == 0], state.rotation[sigma == 0], atol=1e-12)
    np.testing.assert_allclose(solved.translation[sigma == 0], state.translation[sigma == 0], atol=1e-12)
    assert (np.abs(solved.translation - state.translation).max(-1) > 1e-4).tolist() == [True, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_the_schedule_with_given_poses_lands_where_the_other_solver_does(unit: float) -> None:
    case = ring_case(8, MILD)
    poses = case.scene.world_from_cam.copy()
    poses[:, :3, 3] *= unit
    views = [replace(v, world_from_cam=poses[n] if n in (0, 2, 4) else None) for n, v in enumerate(case.views)]
    refined = case.with_views(views).refine(Refine2dConfig(solver="adam"))
    assert np.linalg.norm(refined.world_from_cam[:, :3, 3] - poses[:, :3, 3], axis=-1).max() < 0.02 * unit
    np.testing.assert_allclose(refined.intrinsics[:, 0, 0], 240, rtol=0.03)


def test_a_pose_prior_costs_what_it_costs_the_other_solver() -> None:
    problem, state = small_problem()
    sigma = np.array([np.inf, 0.02, np.inf, 0.05])
    problem = replace(problem, pose_sigma=sigma, pose_prior=np.tile(np.eye(4), (4, 1, 1)))
    problem.pose_prior[:, :3, :3], problem.pose_prior[:, :3, 3] = state.rotation, state.translation
    moved = replace(state, rotation=np.roll(state.rotation, 1, 0), translation=state.translation + 0.1)
    prior = _pose_prior(problem, state, 0.0)
    error = pose_prior_error(problem, moved, centres(problem, state))
    expected = (error[[1, 3]] ** 2 / sigma[[1, 3], None] ** 2).sum()
    rotation, translation = torch.from_numpy(moved.rotation), torch.from_numpy(moved.translation)
    assert float(prior.cost(rotation, translation)) == pytest.approx(expected, rel=1e-9)
    assert float(prior.cost(*map(torch.from_numpy, (state.rotation, state.translation)))) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_given_poses_as_a_prior_keep_frame_and_unit(unit: float) -> None:
    case = ring_case(6, MILD)
    poses = case.scene.world_from_cam.copy()
    poses[:, :3, 3] = poses[:, :3, 3] * unit + [10 * unit, 5 * unit, -2 * unit]
    views = [replace(v, world_from_cam=poses[n]) for n, v in enumerate(case.views)]
    refined = case.with_views(views).refine(Refine2dConfig(solver="adam", hold_given_poses=False))
    assert refined.metric_frame
    assert np.linalg.norm(refined.world_from_cam[:, :3, 3] - poses[:, :3, 3], axis=-1).max() < 0.03 * unit
    assert rotation_errors(refined, case.scene).max() < 1.0


@pytest.mark.slow
def test_the_schedule_lands_near_the_truth_and_the_other_solver_nearer() -> None:
    """Over seven scenes: one of them tells little.

    The noise of a few hundred matches leaves 0.1 to 0.4 degrees to either solver, and now and then the schedule is
    lucky: of 24 such scenes one had more than half of its error left. Errors are those of pairs of views, which no
    choice of a common frame enters.
    """
    errors = []
    for seed in range(7):
        case = make_case(build_scene(ring(6), same_intrinsics(6), seed=seed), complete(6), MILD, seed=seed)
        solved = case.refine(Refine2dConfig(solver="adam")), case.refine()
        assert_sound(solved[0])
        assert len(solved[0].residual_history) == 600
        assert rotation_errors(solved[0], case.scene).max() < 10.0
        truth = case.scene.world_from_cam
        errors.append([np.median(relative_errors_deg(one.world_from_cam, truth)[0]) for one in solved])
    schedule, second_order = np.array(errors).T
    assert np.median(second_order) < 0.5 * np.median(schedule)
    assert (second_order < schedule).all()
