"""Focal lengths from keypoint matches on a ball, seen by a ring of cameras with lenses of several lengths."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.geometry.transforms import exp_so3, rotation_angle_deg
from sparse_ga.predictors.self_calibration import KeypointMatches, Keypoints, calibrate
from sparse_ga.products import Array

SIDE = 300.0
POINTS = 250
WRONG = 0.3  # share of the matches
NOISE_PX = 0.4


def ring(views: int, arc_deg: float, distance: float) -> tuple[Array, Array]:
    """Rotations (V, 3, 3) and translations (V, 3), cam_from_world, of cameras that look at the origin."""
    angle = np.radians(np.linspace(0, arc_deg, views, endpoint=False))
    tilt = exp_so3(np.array([0.4, 0.0, 0.0]))
    return tilt @ exp_so3(angle[:, None] * [0.0, 1.0, 0.0]), np.tile([0.0, 0.0, distance], (views, 1))


def scene(views: int, arc_deg: float, focal_px: float, seed: int) -> tuple[list[Keypoints], list[KeypointMatches]]:
    """A ball of radius 0.5 that fills the same part of the image whatever the lens."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(POINTS, 3))
    points *= 0.5 / np.linalg.norm(points, axis=1, keepdims=True)
    rotation, translation = ring(views, arc_deg, 2.2 * focal_px / 240)
    keypoints, visible = [], []
    for turn, shift in zip(rotation, translation, strict=True):
        cam = points @ turn.T + shift
        xy = cam[:, :2] / cam[:, 2:] * focal_px + rng.normal(size=(POINTS, 2)) * NOISE_PX
        keypoints.append(Keypoints(xy, np.ones(POINTS)))
        visible.append(-(points @ turn.T)[:, 2] > 0.05)
    matches = []
    for i in range(views):
        for j in range(i + 1, views):
            both = np.flatnonzero(visible[i] & visible[j])
            if rotation_angle_deg(rotation[i].T @ rotation[j]) > 50 or len(both) < 25:
                continue
            others = both.copy()
            wrong = rng.random(len(both)) < WRONG
            others[wrong] = rng.permutation(others[wrong])
            matches.append(KeypointMatches(i, j, both, others, np.ones(len(both), bool)))
    return keypoints, matches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("views", "arc_deg", "focal_px", "within"), [(8, 360.0, 300.0, 0.03), (12, 360.0, 1500.0, 0.05)]
)
def test_the_focal_length_is_found_and_trusted(views: int, arc_deg: float, focal_px: float, within: float) -> None:
    keypoints, matches = scene(views, arc_deg, focal_px, 2)
    found = calibrate(keypoints, matches, (0.5 * SIDE, 8 * SIDE), 1.2 * SIDE)
    assert found.trusted
    assert found.views == views
    assert abs(np.log(found.focal_px / focal_px)) < within
    assert found.cost < 0.2  # residuals of 0.4 px


def test_nothing_to_go_by_is_a_guess() -> None:
    keypoints, _ = scene(3, 60.0, 300.0, 0)
    found = calibrate(keypoints, [], (0.5 * SIDE, 8 * SIDE), 1.2 * SIDE)
    assert (found.focal_px, found.views, found.trusted) == (1.2 * SIDE, 0, False)
