"""Batched triangulation against exact truth and against one-track-at-a-time references."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from sparse_ga.geometry import transforms
from sparse_ga.geometry.cameras import make_intrinsics
from sparse_ga.geometry.triangulation import (
    Observations,
    best_hypothesis,
    camera_centers,
    errors_px,
    refine_points,
    residuals,
    track_angles_deg,
    triangulate_dlt,
    view_groups,
)
from sparse_ga.products import Array


def ring(count: int = 7) -> Array:
    """Projections (V, 3, 4) of cameras on a ring of radius 3 that look at the origin."""
    k = make_intrinsics(500.0, np.array([320.0, 240.0]))
    turn = np.zeros((count, 3))
    turn[:, 1] = np.linspace(0, 2.0, count)
    rotation = transforms.exp_so3(turn)
    return k @ np.concatenate([rotation, np.tile([[0.0], [0.0], [3.0]], (count, 1, 1))], 2)


def make_tracks(projection: Array, points: Array, rng: np.random.Generator, noise: float = 0.0) -> Observations:
    """Every point seen by two to all of the views."""
    index, views = [], []
    for row in range(len(points)):
        seen = np.sort(rng.choice(len(projection), rng.integers(2, len(projection) + 1), replace=False))
        index += [row] * len(seen)
        views += seen.tolist()
    empty = Observations(np.array(index), np.array(views), np.zeros((len(index), 2)))
    xy, _ = residuals(projection, empty, points)
    return Observations(empty.point_index, empty.view_index, xy + noise * rng.normal(size=xy.shape))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_dlt_is_exact_without_noise(rng: np.random.Generator) -> None:
    projection, truth = ring(), rng.uniform(-0.5, 0.5, (40, 3))
    points, valid = triangulate_dlt(projection, make_tracks(projection, truth, rng))
    assert valid.all()
    np.testing.assert_allclose(points, truth, atol=1e-9)


def test_float32_pixels(rng: np.random.Generator) -> None:
    projection, truth = ring(), rng.uniform(-0.5, 0.5, (40, 3))
    obs = make_tracks(projection, truth, rng)
    points, valid = triangulate_dlt(
        projection.astype(np.float32), Observations(obs.point_index, obs.view_index, obs.xy.astype(np.float32))
    )
    assert valid.all()
    np.testing.assert_allclose(points, truth, atol=2e-4)


def test_dlt_far_from_the_origin(rng: np.random.Generator) -> None:
    projection, truth = ring(), rng.uniform(-0.5, 0.5, (40, 3))
    obs = make_tracks(projection, truth, rng)
    moved = np.eye(4)
    moved[:3, 3] = (-4000.0, 2000.0, 1000.0)
    points, valid = triangulate_dlt(projection @ moved, obs)
    assert valid.all()
    np.testing.assert_allclose(points, truth - moved[:3, 3], atol=1e-6)


def test_dlt_says_when_rays_coincide() -> None:
    projection = np.repeat(ring(2)[:1], 2, axis=0)
    obs = Observations(np.array([0, 0]), np.array([0, 1]), np.array([[300.0, 200.0], [300.0, 200.0]]))
    _, valid = triangulate_dlt(projection, obs)
    assert not valid.any()


def test_nothing_in_nothing_out() -> None:
    projection, obs = ring(), Observations.empty()
    points, valid = triangulate_dlt(projection, obs)
    assert points.shape == (0, 3)
    assert valid.shape == (0,)
    assert refine_points(projection, obs, points)[0].shape == (0, 3)
    assert best_hypothesis(projection, obs, 2.0, 1.0)[0].shape == (0, 3)
    assert len(track_angles_deg(camera_centers(projection), obs, points)) == 0


def test_refinement_is_the_minimum_a_general_solver_finds(rng: np.random.Generator) -> None:
    projection, truth = ring(), rng.uniform(-0.5, 0.5, (12, 3))
    obs = make_tracks(projection, truth, rng, noise=0.7)
    start, _ = triangulate_dlt(projection, obs)
    points, covariance = refine_points(projection, obs, start, loss_px=2.0, iterations=40)
    for row in range(len(truth)):
        mine = obs.point_index == row

        def residual(x: Array, mine: Array = mine, row: int = row) -> Array:
            part = Observations(np.zeros(mine.sum(), int), obs.view_index[mine], obs.xy[mine])
            error, _ = residuals(projection, part, x[None])
            length = np.linalg.norm(error, axis=1)
            return 2.0 * np.sqrt(np.log1p((length / 2.0) ** 2))

        best = least_squares(residual, start[row], xtol=1e-14, ftol=1e-14, gtol=1e-14).x
        np.testing.assert_allclose(points[row], best, atol=1e-6)
    assert np.isfinite(covariance).all()
    assert (np.linalg.eigvalsh(covariance) > 0).all()


def test_refinement_never_makes_a_point_worse(rng: np.random.Generator) -> None:
    projection, truth = ring(), rng.uniform(-0.5, 0.5, (200, 3))
    obs = make_tracks(projection, truth, rng, noise=1.0)
    start = truth + rng.normal(size=truth.shape) * 0.3

    def cost(points: Array) -> Array:
        squared = np.minimum(errors_px(projection, obs, points), 1e3) ** 2
        return np.bincount(obs.point_index, np.log1p(squared))

    assert (cost(refine_points(projection, obs, start, 1.0)[0]) <= cost(start) + 1e-9).all()


def test_covariance_predicts_the_scatter(rng: np.random.Generator) -> None:
    projection = ring()
    truth = np.tile([[0.1, -0.2, 0.05]], (4000, 1))
    views = np.tile(np.arange(7), 4000)
    index = np.repeat(np.arange(4000), 7)
    xy, _ = residuals(projection, Observations(index, views, np.zeros((len(index), 2))), truth)
    noisy = Observations(index, views, xy + 0.1 * rng.normal(size=xy.shape))
    points, covariance = refine_points(projection, noisy, truth, loss_px=10.0)
    measured = np.cov((points - truth).T)
    np.testing.assert_allclose(measured, 0.01 * covariance.mean(0), rtol=0.15, atol=0.05 * measured.max())


def test_points_behind_a_camera_have_infinite_error() -> None:
    projection = ring()
    obs = Observations(np.array([0]), np.array([0]), np.array([[320.0, 240.0]]))
    assert np.isinf(errors_px(projection, obs, np.array([[0.0, 0.0, -5.0]]))).all()
    assert np.isfinite(errors_px(projection, obs, np.array([[0.0, 0.0, 0.0]]))).all()


def test_angles_equal_the_widest_pair(rng: np.random.Generator) -> None:
    projection, truth = ring(), rng.uniform(-0.3, 0.3, (30, 3))
    obs = make_tracks(projection, truth, rng)
    centers = camera_centers(projection)
    angle = track_angles_deg(centers, obs, truth)
    for row in range(len(truth)):
        rays = truth[row] - centers[obs.view_index[obs.point_index == row]]
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        widest = np.degrees(np.arccos(np.clip(rays @ rays.T, -1, 1))).max()
        assert angle[row] <= widest + 1e-6
        assert angle[row] == pytest.approx(widest, rel=0.02)


@pytest.mark.parametrize("length", [3, 5, 9])
def test_hypothesis_survives_wrong_observations(length: int, rng: np.random.Generator) -> None:
    projection, truth = ring(9), rng.uniform(-0.5, 0.5, (50, 3))
    index, views = np.repeat(np.arange(50), length), np.tile(np.arange(length), 50)
    xy, _ = residuals(projection, Observations(index, views, np.zeros((len(index), 2))), truth)
    wrong = rng.integers(0, length, 50) + np.arange(50) * length
    xy[wrong] += rng.choice([-1, 1], (50, 2)) * rng.uniform(30, 60, (50, 2))
    points, valid = best_hypothesis(projection, Observations(index, views, xy), 2.0, 1.0)
    assert valid.all()
    # three views: any two rays of neighbours may agree by chance along their epipolar line, so allow a few
    assert (np.linalg.norm(points - truth, axis=1) < 1e-6).mean() > (0.9 if length == 3 else 0.999)


def test_groups_of_one_view(rng: np.random.Generator) -> None:
    obs = Observations(np.array([0, 0, 0, 1, 1]), np.array([2, 1, 2, 0, 0]), rng.normal(size=(5, 2)))
    order, starts = view_groups(obs)
    assert [sorted(part.tolist()) for part in np.split(order, starts[1:])] == [[1], [0, 2], [3, 4]]


def test_selection_numbers_points_anew() -> None:
    obs = Observations(np.array([0, 0, 1, 2, 2]), np.arange(5), np.zeros((5, 2)))
    part = obs.select(np.array([False, False, True, True, False]))
    assert part.point_index.tolist() == [0, 1]
    assert part.view_index.tolist() == [2, 3]
    assert part.lengths.tolist() == [1, 1]
