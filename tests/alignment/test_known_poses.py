"""The point that lines come nearest to, wherever the frame has its origin."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.alignment.known_poses import _nearest_point
from sparse_ga.products import Array


def lines(far: float, apart: float) -> tuple[Array, Array, Array]:
    """Origins (3, 3), directions (3, 3) and the point 2 ahead at which they meet, `far` from the frame's origin."""
    middle = far * np.array([0.6, -0.8, 0.5])
    target = middle + np.array([0, 0, 2.0])
    origins = middle + apart * np.array([[1.0, 0, 0], [-1, 0.5, 0], [0, -0.5, 0]])
    return origins, target - origins, target


@pytest.mark.parametrize("far", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("apart", [1.0, 0.01])
def test_a_far_frame_does_not_move_the_point(far: float, apart: float) -> None:
    origins, directions, target = lines(far, apart)
    assert np.linalg.norm(_nearest_point(origins, directions) - target) < 1e-3


def test_parallel_lines_meet_among_their_origins() -> None:
    origins, _, _ = lines(1e6, 1.0)
    found = _nearest_point(origins, np.tile([0, 0, 1.0], (3, 1)))
    np.testing.assert_allclose(found, origins.mean(0), atol=1e-3)
