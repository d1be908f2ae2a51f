"""The compact bundle adjustment against exact synthetic truth."""

from __future__ import annotations

import numpy as np

from sparse_ga.geometry.bundle import Bundle, Observations, adjust, reprojection, triangulate_rays
from sparse_ga.geometry.transforms import exp_so3, rotation_angle_deg


def ring(views: int = 8, points: int = 80, focal_px: float = 900.0, seed: int = 0) -> tuple[Bundle, Observations]:
    rng = np.random.default_rng(seed)
    world = rng.uniform(-1, 1, (points, 3))
    angles = np.linspace(0, 1.5 * np.pi, views)
    rotation = exp_so3(angles[:, None] * np.array([0.0, 1.0, 0.0]) + rng.normal(size=(views, 3)) * 0.1)
    translation = np.tile([0.0, 0.0, 5.0], (views, 1)) + rng.normal(size=(views, 3)) * 0.2
    bundle = Bundle(rotation, translation, world, focal_px)
    view, point = np.meshgrid(np.arange(views), np.arange(points), indexing="ij")
    empty = Observations(view.ravel(), point.ravel(), np.zeros((views * points, 2)), np.ones(views * points))
    return bundle, Observations(empty.view, empty.point, reprojection(bundle, empty)[0], empty.sigma)


def test_triangulation_of_exact_observations_is_exact() -> None:
    bundle, obs = ring()
    np.testing.assert_allclose(triangulate_rays(bundle, obs), bundle.points, atol=1e-6)


def test_adjustment_recovers_cameras_points_and_focal_with_outliers() -> None:
    truth, obs = ring()
    rng = np.random.default_rng(1)
    wrong = rng.choice(len(obs.xy), 40, replace=False)
    xy = obs.xy.copy()
    xy[wrong] += rng.uniform(-80, 80, (40, 2))
    obs = Observations(obs.view, obs.point, xy, obs.sigma)
    shaken = Bundle(
        exp_so3(rng.normal(size=(8, 3)) * 0.03) @ truth.rotation,
        truth.translation + rng.normal(size=(8, 3)) * 0.03,
        truth.points + rng.normal(size=truth.points.shape) * 0.05,
        truth.focal_px * 1.1,
    )
    found, cost = adjust(shaken, obs, iterations=100, tolerance=1e-9)
    assert abs(found.focal_px / truth.focal_px - 1) < 1e-3
    between = found.rotation @ np.swapaxes(found.rotation[:1], 1, 2)
    wanted = truth.rotation @ np.swapaxes(truth.rotation[:1], 1, 2)
    assert rotation_angle_deg(np.swapaxes(between, 1, 2) @ wanted).max() < 0.05
    clean = np.setdiff1d(np.arange(len(xy)), wrong)
    assert np.abs(reprojection(found, obs)[0][clean]).max() < 0.2
    assert np.isfinite(cost)


def test_gradient_agrees_with_finite_differences() -> None:
    from sparse_ga.geometry.bundle import _linearise, _retract, robust_cost

    truth, obs = ring(views=3, points=10)
    rng = np.random.default_rng(2)
    obs = Observations(obs.view, obs.point, obs.xy + rng.normal(size=obs.xy.shape), rng.uniform(1, 3, len(obs.xy)))
    normal = _linearise(truth, obs, 1.0)

    def cost(step: np.ndarray, step_points: np.ndarray) -> float:
        return 0.5 * float(robust_cost(reprojection(_retract(truth, step, step_points), obs)[0], 1.0).sum())

    still = np.zeros((10, 3))
    for k in range(19):
        step = np.zeros(19)
        step[k] = 1e-6
        slope = (cost(step, still) - cost(-step, still)) / 2e-6
        np.testing.assert_allclose(slope, normal.gradient_cameras[k], rtol=1e-4, atol=1e-3)
    moved = still.copy()
    moved[4, 1] = 1e-6
    slope = (cost(np.zeros(19), moved) - cost(np.zeros(19), -moved)) / 2e-6
    np.testing.assert_allclose(slope, normal.gradient_points[4, 1], rtol=1e-4, atol=1e-3)


def test_never_more_cost_than_given() -> None:
    truth, obs = ring(views=3, points=6)
    _, cost = adjust(truth, obs)
    assert cost < 1e-12
