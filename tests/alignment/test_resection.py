"""Views placed by points: only where the points tell the pose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sparse_ga.alignment.resection import _MIN_INLIERS, _pose, _Sightings, turn_sigma_deg
from sparse_ga.geometry.cameras import make_intrinsics, project
from sparse_ga.geometry.transforms import exp_so3, rotation_angle_deg
from sparse_ga.products import Array

INTRINSICS = make_intrinsics(300.0, np.array([100.0, 80.0]))
AWAY = np.array([0, 0, 5.0])


def placed(points: Array, seed: int, noise_px: float = 0.3, noise: float = 0.0) -> tuple[float, bool]:
    """Rotation error (deg) of a camera at the origin found from world `points` (M, 3), and whether it is believed."""
    rng = np.random.default_rng(seed)
    xy = project(INTRINSICS, points)[0] + noise_px * rng.normal(size=(len(points), 2))
    seen = _Sightings(points + noise * rng.normal(size=points.shape), xy, np.zeros(len(points), int))
    pose, valid = _pose(seen, INTRINSICS, 3.0)
    return float(rotation_angle_deg(pose[:3, :3])), valid


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.03])
@pytest.mark.parametrize("seed", range(4))
def test_points_on_a_line_place_no_view(noise: float, seed: int) -> None:
    """The camera may turn about the line; points that are off it by chance do not tell how far."""
    line = np.outer(np.linspace(-1, 1, 40), [1, 1, 0.2]) + AWAY
    assert not placed(line, seed, noise=noise)[1]


@pytest.mark.parametrize("seed", range(3))
def test_points_close_together_place_no_view(seed: int) -> None:
    spot = 0.01 * np.random.default_rng(seed).normal(size=(40, 3)) + AWAY
    assert not placed(spot, seed)[1]


@pytest.mark.parametrize("tilt_deg", [0.0, 20.0, 60.0])
@pytest.mark.parametrize("count", [_MIN_INLIERS + 1, 60])
def test_points_on_a_plane_and_in_space_do(tilt_deg: float, count: int) -> None:
    rng = np.random.default_rng(5)
    space = rng.uniform(-1, 1, (count, 3))
    plane = space * [1, 1, 0] @ exp_so3(np.array([np.radians(tilt_deg), 0.1, 0])).T
    for seed in range(3):
        for points in (plane, space):
            error, valid = placed(points + AWAY, seed, noise=0.003)
            assert valid
            assert error < 3


def test_the_deviation_of_a_rotation_is_that_of_its_errors() -> None:
    rng = np.random.default_rng(1)
    errors, told = [], []
    for _ in range(60):
        points = rng.normal(size=(30, 3)) * [0.6, 0.3, 0.5] + AWAY
        xy = project(INTRINSICS, points)[0] + 0.5 * rng.normal(size=(30, 2))
        errors.append(np.degrees(np.linalg.norm(cv2.solvePnP(points, xy, INTRINSICS, None)[1])))
        told.append(turn_sigma_deg(points, INTRINSICS, 0.5))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.mean(told), rel=0.2)
    assert turn_sigma_deg(np.outer(np.arange(1, 9), [0.2, 0.1, 1.0]), INTRINSICS, 0.5) == np.inf
