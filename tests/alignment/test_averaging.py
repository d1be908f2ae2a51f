"""Similarities per view from similarities per pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparse_ga.alignment.averaging import (
    EdgeSet,
    along_tree,
    average,
    best_tree_start,
    edge_chi2,
    edge_jacobian,
    edge_residuals,
    log_so3,
    stepped,
)
from sparse_ga.alignment.viewgraph import hierarchical_tree, spanning_tree
from sparse_ga.geometry.transforms import exp_so3, inverse, make, rotation_angle_deg
from sparse_ga.products import Array

PRECISION = np.diag([0.05**-2.0] * 3 + [0.05**-2.0] + [0.05**-2.0] * 3)


def truth(count: int, seed: int = 0) -> Array:
    """World-from-view similarities (N, 4, 4) that look at a common object from about unit depth."""
    rng = np.random.default_rng(seed)
    rotation = exp_so3(rng.normal(size=(count, 3)))
    scale = np.exp(0.3 * rng.normal(size=count))
    centre = -rotation[:, :, 2] * scale[:, None] * rng.uniform(0.9, 1.1, (count, 1))
    return make(rotation, centre, scale)


def edges_of(world: Array, noise: float = 0.0, seed: int = 0, pairs: Array | None = None) -> EdgeSet:
    rng = np.random.default_rng([seed, 1])
    count = len(world)
    pairs = np.array([(i, j) for i in range(count) for j in range(i + 1, count)]) if pairs is None else pairs
    exact = inverse(world[pairs[:, 0]]) @ world[pairs[:, 1]]
    step = make(
        exp_so3(noise * rng.normal(size=(len(pairs), 3))),
        0.4 * noise * rng.normal(size=(len(pairs), 3)),
        np.exp(noise * rng.normal(size=len(pairs))),
    )
    return EdgeSet(pairs, step @ exact, np.ones(len(pairs)), np.tile(PRECISION, (len(pairs), 1, 1)))


def worst_turn(a: Array, b: Array) -> float:
    """Largest rotation error deg of `a` against `b` (N, 4, 4) relative to view 0."""
    first, second = inverse(a[:1]) @ a, inverse(b[:1]) @ b
    scale_a, scale_b = (np.cbrt(np.linalg.det(x[:, :3, :3]))[:, None, None] for x in (first, second))
    turn = np.swapaxes(first[:, :3, :3] / scale_a, 1, 2) @ (second[:, :3, :3] / scale_b)
    return float(rotation_angle_deg(turn).max())


def free(count: int) -> Array:
    result = np.ones((count, 7), bool)
    result[0] = False
    return result


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, np.pi - 1e-5, np.pi])
def test_logarithm_inverts_the_exponential(angle: float) -> None:
    axes = np.array([[1.0, 0, 0], [0, -1, 0], [0.6, 0.0, 0.8], [-0.48, 0.6, 0.64]])
    rotations = exp_so3(angle * axes)
    np.testing.assert_allclose(exp_so3(log_so3(rotations)), rotations, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(log_so3(rotations), axis=-1), angle, atol=1e-7)


def test_residuals_vanish_at_the_truth_and_jacobians_are_exact_there() -> None:
    world = truth(4)
    edges = edges_of(world)
    assert np.abs(edge_residuals(world, edges)).max() < 1e-12
    by_i, by_j = edge_jacobian(world, edges)
    step = 1e-6
    for side, jacobian in enumerate((by_i, by_j)):
        for k in range(7):
            for p, pair in enumerate(edges.pairs):
                update = np.zeros((4, 7))
                update[pair[side], k] = step
                moved = [stepped(world, sign * update) for sign in (1, -1)]
                slope = (edge_residuals(moved[0], edges)[p] - edge_residuals(moved[1], edges)[p]) / (2 * step)
                np.testing.assert_allclose(jacobian[p, :, k], slope, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_the_unit_of_the_world_does_not_matter(unit: float) -> None:
    """Two views are held, as given poses are, and the others start far off."""
    world = truth(8)
    edges = edges_of(world, 0.02)
    start = world @ edges_of(world, 0.5, 3, np.array([(k, k) for k in range(8)])).i_from_j
    start[:2] = world[:2]
    solvable = free(8)
    solvable[1, [0, 1, 2, 4, 5, 6]] = False
    scale = make(np.eye(3), np.zeros(3), unit)
    solved, scaled = (average(x, edges, solvable)[0] for x in (start, scale @ start))
    np.testing.assert_allclose(inverse(scale) @ scaled, solved, atol=1e-9)
    assert worst_turn(solved, world) < 5


@pytest.mark.parametrize("build", [spanning_tree, hierarchical_tree])
def test_exact_edges_give_exact_views_along_either_tree(build) -> None:
    world = truth(7)
    edges = edges_of(world)
    weights = np.random.default_rng(0).random(len(edges.pairs))
    tree = build(7, edges.pairs, weights)
    assert len(tree) == 6
    solved = along_tree(7, edges, tree, 3)
    np.testing.assert_allclose(solved, inverse(world[3:4]) @ world, atol=1e-9)


def test_joint_solve_beats_the_tree() -> None:
    world = truth(10)
    edges = edges_of(world, 0.03)
    start = along_tree(10, edges, spanning_tree(10, edges.pairs, edges.weights), 0)
    solved, weight = average(start, edges, free(10))
    assert worst_turn(solved, world) < 0.5 * worst_turn(start, world)
    assert weight.min() > 0.3
    assert edge_chi2(solved, edges).sum() < edge_chi2(start, edges).sum()


def test_a_third_of_wrong_edges_is_ignored() -> None:
    world = truth(10, 2)
    edges = edges_of(world, 0.01)
    rng = np.random.default_rng(3)
    wrong = rng.permutation(len(edges.pairs)) < 0.33 * len(edges.pairs)
    broken = edges.i_from_j.copy()
    broken[wrong] = (
        make(exp_so3(rng.normal(size=(wrong.sum(), 3)) * 1.5), rng.normal(size=(wrong.sum(), 3)) * 0.5)
        @ (broken[wrong])
    )
    edges = replace(edges, i_from_j=broken)
    start = best_tree_start(10, edges, spanning_tree(10, edges.pairs, rng.random(len(edges.pairs))), 0, 10.0)
    solved, weight = average(start, edges, free(10))
    assert worst_turn(solved, world) < 1.5
    assert weight[wrong].max() < 0.2
    assert weight[~wrong].min() > 0.5


def test_precise_edges_decide() -> None:
    world = truth(3)
    pairs = np.array([[0, 1], [0, 1], [1, 2]])
    edges = edges_of(world, 0.0, pairs=pairs)
    bent = edges.i_from_j.copy()
    bent[1] = make(exp_so3(np.array([0, 0.1, 0])), np.zeros(3)) @ bent[1]
    precision = edges.precision.copy()
    precision[0] *= 100
    solved, _ = average(world, replace(edges, i_from_j=bent, precision=precision), free(3))
    assert worst_turn(solved, world) < 0.1


def test_fixed_views_stay_and_the_others_fit_around_them() -> None:
    world = truth(5)
    edges = edges_of(world)
    start = along_tree(5, edges_of(world, 0.1), spanning_tree(5, edges.pairs, edges.weights), 0)
    start[[1, 3]] = world[[1, 3]]
    movable = np.ones((5, 7), bool)
    movable[[1, 3]] = False
    solved, _ = average(start, edges, movable)
    np.testing.assert_allclose(solved, world, atol=1e-4)


def test_no_edges_and_one_view() -> None:
    nothing = EdgeSet(np.zeros((0, 2), int), np.zeros((0, 4, 4)), np.zeros(0), np.zeros((0, 7, 7)))
    solved, weight = average(np.eye(4)[None], nothing, np.zeros((1, 7), bool))
    np.testing.assert_array_equal(solved, np.eye(4)[None])
    assert weight.shape == (0,)
    assert nothing.tolerance_deg(10.0).shape == (0,)
