"""Focal length from rays."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.geometry.cameras import make_intrinsics, pixel_grid, unproject_depth
from sparse_ga.geometry.focal import FocalVotes


def cloud(focal: float, centre: tuple[float, float], dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Pixels relative to the principal point (P, 2) and their points (P, 3) on a wavy surface."""
    grid = pixel_grid(96, 128)
    depth = 3 + 0.4 * np.sin(grid[..., 0] / 9) * np.cos(grid[..., 1] / 13)
    points = unproject_depth(make_intrinsics(focal, np.array(centre)), depth)
    return (grid - centre).reshape(-1, 2), points.reshape(-1, 3).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("focal", [80.0, 150.0, 900.0, 6000.0])
def test_exact_rays_give_the_focal_length(focal: float, dtype: type) -> None:
    votes = FocalVotes(25.0, 25000.0)
    xy, points = cloud(focal, (61.0, 44.0), dtype)
    votes.add(xy, points, np.ones(len(xy)))
    estimate, found = votes.estimate()
    assert found
    assert estimate == pytest.approx(focal, rel=2e-3)


def test_principal_point_is_honoured_when_the_crop_is_off_centre() -> None:
    votes = FocalVotes(25.0, 25000.0)
    xy, points = cloud(200.0, (10.0, 80.0))
    votes.add(xy, points, np.ones(len(xy)))
    assert votes.estimate()[0] == pytest.approx(200.0, rel=2e-3)


def test_two_fifths_of_wrong_votes_do_not_move_it() -> None:
    rng = np.random.default_rng(0)
    xy, points = cloud(200.0, (63.5, 47.5))
    wrong = rng.random(len(xy)) < 0.4
    points[wrong, :2] *= rng.uniform(0.1, 0.8, (wrong.sum(), 1))
    votes = FocalVotes(25.0, 25000.0)
    votes.add(xy, points, np.ones(len(xy)))
    assert votes.estimate()[0] == pytest.approx(200.0, rel=0.02)


def test_weights_decide_and_order_does_not() -> None:
    first, second = FocalVotes(25.0, 25000.0), FocalVotes(25.0, 25000.0)
    a, b = cloud(200.0, (63.5, 47.5)), cloud(400.0, (63.5, 47.5))
    first.add(*a, np.ones(len(a[0])))
    first.add(*b, np.full(len(b[0]), 0.3))
    second.add(*b, np.full(len(b[0]), 0.3))
    second.add(*a, np.ones(len(a[0])))
    assert first.estimate()[0] == pytest.approx(200.0, rel=5e-3)
    assert first.estimate() == second.estimate()


def test_nothing_to_vote_with() -> None:
    votes = FocalVotes(100.0, 400.0)
    votes.add(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0))
    nan = np.full((5, 3), np.nan)
    behind = np.tile([0.1, 0.1, -1.0], (5, 1))
    votes.add(np.ones((10, 2)), np.concatenate([nan, behind]), np.ones(10))
    votes.add(*cloud(200.0, (63.5, 47.5)), np.zeros(96 * 128))
    assert votes.estimate() == (pytest.approx(200.0), False)
