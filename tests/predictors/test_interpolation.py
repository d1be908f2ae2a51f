"""Harmonic fields and painted backgrounds: smooth, finite, and blind to the background."""

from __future__ import annotations

import numpy as np

from sparse_ga.predictors.interpolation import distance_to, harmonic_field, paint_background


def disc(size: int = 64, radius: float = 24.0) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (x - size / 2) ** 2 + (y - size / 2) ** 2 < radius**2


def test_harmonic_field_reproduces_a_plane_and_ignores_a_mismatch() -> None:
    mask = disc()
    y, x = np.mgrid[:64, :64]
    plane = 0.01 * x + 0.02 * y
    rng = np.random.default_rng(0)
    rows = rng.choice(np.argwhere(mask), 150, replace=False)
    values = plane[rows[:, 0], rows[:, 1]].copy()
    values[7] += 3.0
    field = harmonic_field(mask, rows[:, ::-1].astype(float), values)
    assert np.abs(field - plane)[disc(radius=18)].max() < 0.05
    assert (field[~mask] == 0).all()


def test_harmonic_field_of_nothing_and_of_a_part_without_values() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:15, 5:15] = mask[25:35, 40:55] = True
    assert (harmonic_field(mask, np.zeros((0, 2)), np.zeros(0)) == 0).all()
    field = harmonic_field(mask, np.array([[8.0, 8.0], [12.0, 12.0]]), np.array([2.0, 2.0]))
    assert np.isfinite(field).all()
    np.testing.assert_allclose(field[mask], 2.0, atol=1e-6)


def test_painting_sees_no_background_pixel_and_keeps_the_foreground() -> None:
    rng = np.random.default_rng(1)
    mask = disc()
    image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    other = np.where(mask[..., None], image, 255 - image)
    painted = paint_background(image, mask)
    assert (painted == paint_background(other, mask)).all()
    assert (painted[mask] == image[mask]).all()
    assert (paint_background(image, np.zeros_like(mask)) == 128).all()


def test_distance_without_evidence_is_infinite() -> None:
    assert np.isinf(distance_to(np.zeros((0, 2)), (4, 5))).all()
    assert distance_to(np.array([[1.0, 2.0]]), (4, 5))[2, 4] == 3
