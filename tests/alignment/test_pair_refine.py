"""Relative poses sharpened by matches."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.alignment.pair_refine import PairRays, _sampson_with_derivatives, pack_rays, refine_pairs
from sparse_ga.geometry.transforms import apply, exp_so3, inverse, make, rotation_angle_deg
from sparse_ga.products import Array

SIGMA = np.array([[np.radians(5.0), 0.03]])


def pose(angle_deg: float) -> Array:
    """i from j of two cameras that look at the origin of the object, one unit away, `angle_deg` apart."""
    turn = exp_so3(np.array([0.1, np.radians(angle_deg), 0.05]))
    return make(turn, np.array([0, 0, 1.0]) - turn @ np.array([0, 0, 1.0]))


def rays_of(i_from_j: Array, count: int, noise_px: float, focal: float = 500.0, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    points_j = rng.uniform(-0.2, 0.2, (count, 3)) + np.array([0, 0, 1.0])
    points_i = apply(i_from_j, points_j)
    rays = [p / p[:, 2:] for p in (points_i, points_j)]
    for one in rays:
        one[:, :2] += rng.normal(size=(count, 2)) * noise_px / focal
    return rays[0], rays[1]


def bent(i_from_j: Array, degrees: float, seed: int = 0) -> Array:
    """The pose with an error as point maps make it: a turn of the object about its middle."""
    rng = np.random.default_rng([seed, 9])
    axis = rng.normal(size=3)
    turn = exp_so3(np.radians(degrees) * axis / np.linalg.norm(axis))
    centre = np.array([0, 0, 1.0])
    return make(turn, centre - turn @ centre) @ i_from_j


def turn_error(a: Array, b: Array) -> float:
    return float(rotation_angle_deg(a[:3, :3] @ b[:3, :3].T))


def test_derivatives_of_the_sampson_distance() -> None:
    rng = np.random.default_rng(0)
    rotation, translation = exp_so3(rng.normal(size=(2, 3)) * 0.5), rng.normal(size=(2, 3))
    rays = rng.normal(size=(2, 2, 7, 3)) * 0.3
    rays[..., 2] = 1
    packed = PairRays(rays[0], rays[1], np.ones((2, 7)), np.array([500.0, 300.0]))
    _, by_turn, by_shift = _sampson_with_derivatives(rotation, translation, packed)
    step = 1e-6
    for k in range(3):
        small = np.eye(3)[k] * step
        turned = [_sampson_with_derivatives(exp_so3(s * small) @ rotation, translation, packed)[0] for s in (1, -1)]
        moved = [_sampson_with_derivatives(rotation, translation + s * small, packed)[0] for s in (1, -1)]
        np.testing.assert_allclose(by_turn[..., k], (turned[0] - turned[1]) / (2 * step), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(by_shift[..., k], (moved[0] - moved[1]) / (2 * step), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("angle", [15.0, 45.0, 90.0])
def test_matches_correct_the_point_maps(angle: float) -> None:
    true = pose(angle)
    start = bent(true, 6.0)
    refined = refine_pairs(start[None], pack_rays(*[[r] for r in rays_of(true, 200, 0.5)], [500.0]), SIGMA)
    assert turn_error(refined.i_from_j[0], true) < 1.2
    assert refined.inlier_share[0] > 0.99


def test_exact_matches_give_the_exact_rotation() -> None:
    true = pose(40.0)
    packed = pack_rays(*[[r] for r in rays_of(true, 150, 0.0)], [500.0])
    refined = refine_pairs(bent(true, 4.0)[None], packed, SIGMA, iterations=30)
    assert turn_error(refined.i_from_j[0], true) < 0.2  # what the prior, 4 degrees off, pulls


def test_wrong_matches_are_outvoted_and_counted() -> None:
    true = pose(40.0)
    rays_i, rays_j = rays_of(true, 200, 0.3)
    rng = np.random.default_rng(1)
    rays_i[:60, :2] = rng.uniform(-0.25, 0.25, (60, 2))
    refined = refine_pairs(bent(true, 5.0)[None], pack_rays([rays_i], [rays_j], [500.0]), SIGMA)
    assert turn_error(refined.i_from_j[0], true) < 1.5
    assert 0.68 < refined.inlier_share[0] < 0.8


def test_without_matches_the_prior_stays_and_says_how_little_is_known() -> None:
    start = pose(40.0)
    packed = pack_rays(
        [np.zeros((0, 3)), np.tile([0, 0, 1.0], (30, 1))],
        [np.zeros((0, 3)), np.tile([0, 0, 1.0], (30, 1))],
        [500.0] * 2,
    )
    refined = refine_pairs(np.stack([start] * 2), packed, np.repeat(SIGMA, 2, 0))
    np.testing.assert_allclose(refined.i_from_j[0], start, atol=1e-12)
    np.testing.assert_allclose(np.diag(refined.precision[0])[:3], SIGMA[0, 0] ** -2.0)
    assert refined.inlier_share[0] == 0
    assert np.isfinite(refined.i_from_j).all()
    assert refine_pairs(np.zeros((0, 4, 4)), pack_rays([], [], []), np.zeros((0, 2))).i_from_j.shape == (0, 4, 4)


def test_one_camera_place_stays_finite_and_near_its_prior() -> None:
    turned = make(exp_so3(np.array([0.02, 0.05, 0.1])), np.zeros(3))
    refined = refine_pairs(turned[None], pack_rays(*[[r] for r in rays_of(turned, 100, 0.3)], [500.0]), SIGMA)
    assert np.isfinite(refined.i_from_j).all()
    assert turn_error(refined.i_from_j[0], turned) < 3.0


def test_pairs_do_not_influence_each_other() -> None:
    first, second = pose(30.0), pose(60.0)
    rays = [rays_of(first, 120, 0.5), rays_of(second, 80, 0.5)]
    starts = np.stack([bent(first, 4.0), bent(second, 4.0)])
    both = refine_pairs(
        starts, pack_rays([r[0] for r in rays], [r[1] for r in rays], [500.0] * 2), np.repeat(SIGMA, 2, 0)
    )
    alone = refine_pairs(starts[1:], pack_rays([rays[1][0]], [rays[1][1]], [500.0]), SIGMA)
    np.testing.assert_allclose(both.i_from_j[1], alone.i_from_j[0], atol=1e-9)
    assert np.abs(inverse(both.i_from_j[1]) @ alone.i_from_j[0] - np.eye(4)).max() < 1e-9
