"""Relative pose of a pair against exact synthetic truth: noise-free, long focal lengths, outliers, too few points."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.geometry.transforms import exp_so3, rotation_angle_deg
from sparse_ga.geometry.two_view import (
    essential,
    estimate_relative_pose,
    homogeneous,
    midpoint_depths,
    optimal_rays,
    ray_angles_deg,
    sampson,
)


def orbit_pair(focal_px: float, turn_deg: float, noise_px: float, seed: int, points: int = 200):
    """Rays of a ball of points seen by two cameras that orbit it, rolled against each other."""
    rng = np.random.default_rng(seed)
    distance = focal_px / 200  # the ball is 400 px wide
    ball = rng.normal(size=(points, 3))
    ball *= rng.uniform(0.3, 1, (points, 1)) / np.linalg.norm(ball, axis=1, keepdims=True)
    roll = exp_so3(np.array([0, 0, rng.uniform(-3, 3)]))
    rotation = roll @ exp_so3(np.radians(turn_deg) * np.array([0.1, 0.98, 0.1]) / np.linalg.norm([0.1, 0.98, 0.1]))
    centre = np.array([0, 0, distance])
    cam_i, cam_j = ball + centre, ball @ rotation.T + centre
    translation = centre - rotation @ centre
    rays = [
        homogeneous(c[:, :2] / c[:, 2:] + rng.normal(size=(points, 2)) * noise_px / focal_px) for c in (cam_i, cam_j)
    ]
    return (
        rays[0],
        rays[1],
        rotation,
        translation / np.linalg.norm(translation),
        cam_i[:, 2] / np.linalg.norm(translation),
    )


@pytest.mark.parametrize("turn_deg", [10.0, 40.0])
@pytest.mark.parametrize("focal_px", [400.0, 3000.0])
def test_exact_correspondences_give_the_exact_pose(focal_px: float, turn_deg: float) -> None:
    rays_i, rays_j, rotation, translation, depth = orbit_pair(focal_px, turn_deg, 0.0, seed=1)
    pose = estimate_relative_pose(rays_i, rays_j, 1.5 / focal_px)
    assert pose is not None
    assert pose.inliers.all()
    assert rotation_angle_deg(pose.rotation.T @ rotation) < 0.01
    assert pose.translation @ translation > 1 - 1e-6
    found, _ = midpoint_depths(rays_i, rays_j, pose.rotation, pose.translation)
    np.testing.assert_allclose(found, depth, rtol=2e-3)


@pytest.mark.parametrize("seed", range(6))
def test_long_focal_length_with_noise_and_outliers_finds_the_parallax(seed: int) -> None:
    """The five-point solver alone often ends in a solution without parallax here."""
    focal_px = 2500.0
    rays_i, rays_j, rotation, _, _ = orbit_pair(focal_px, 25.0, 0.4, seed)
    wrong = np.random.default_rng(seed).permutation(len(rays_j))[:60]
    rays_j[wrong] = rays_j[np.roll(wrong, 1)]
    pose = estimate_relative_pose(rays_i, rays_j, 1.5 / focal_px)
    assert pose is not None
    assert (pose.inliers[np.setdiff1d(np.arange(len(rays_i)), wrong)]).mean() > 0.95
    assert 15 < np.median(ray_angles_deg(rays_i[pose.inliers], rays_j[pose.inliers], pose.rotation)) < 40
    assert rotation_angle_deg(pose.rotation.T @ rotation) < 10


def test_too_few_or_identical_points_give_none_or_no_parallax() -> None:
    rays = homogeneous(np.random.default_rng(0).uniform(-0.2, 0.2, (40, 2)))
    assert estimate_relative_pose(rays[:5], rays[:5], 1e-3) is None
    pose = estimate_relative_pose(rays, rays, 1e-3)
    if pose is not None and pose.inliers.any():
        assert np.median(ray_angles_deg(rays[pose.inliers], rays[pose.inliers], pose.rotation)) < 1.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [slice(3, 4), slice(None)])
def test_rays_that_are_not_finite_give_no_pose(value: float, rows: slice) -> None:
    rays_i, rays_j, _, _, _ = orbit_pair(600.0, 25.0, 0.3, seed=2)
    spoiled = rays_i.copy()
    spoiled[rows, 0] = value
    assert estimate_relative_pose(spoiled, rays_j, 2e-3) is None
    assert estimate_relative_pose(rays_j, spoiled, 2e-3) is None


def test_optimal_rays_meet() -> None:
    rays_i, rays_j, rotation, translation, _ = orbit_pair(600.0, 30.0, 1.0, seed=3)
    met_i, met_j = optimal_rays(rays_i, rays_j, rotation, translation)
    before = np.abs(sampson(rays_i, rays_j, essential(rotation, translation))).max()
    after = np.abs(sampson(met_i, met_j, essential(rotation, translation))).max()
    assert after < 1e-2 * before
