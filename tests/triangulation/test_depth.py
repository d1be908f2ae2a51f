"""Depth maps: anchors, correction towards tracks, outlines on the hull."""

from __future__ import annotations

import numpy as np
import pytest
from balls import RADIUS, ball_views
from oracle_inputs import canonical_view

from sparse_ga.products import Array
from sparse_ga.triangulation.depth import (
    DepthSamples,
    anchor_depth_map,
    behind_hull,
    correct_depth,
    normalised_confidence,
    rim_depths,
)
from sparse_ga.triangulation.silhouettes import carve, distance_outside, hull_front, hull_silhouette

RIG, VIEWS = ball_views(16, size=(192, 144))
TRUE = VIEWS[0].depth.astype(np.float64)
INSIDE = TRUE > 0


def samples_of(depth: Array, count: int = 80, sigma: float = 0.001) -> DepthSamples:
    """True depths at random pixels of the object."""
    row, column = np.nonzero(INSIDE)
    pick = np.random.default_rng(0).choice(len(row), count, replace=False)
    return DepthSamples(
        np.stack([column[pick], row[pick]], 1).astype(float), depth[row[pick], column[pick]], np.full(count, sigma)
    )


def relative_error(depth: Array) -> float:
    """Median relative error on the object."""
    return float(np.median(np.abs(depth[INSIDE] / TRUE[INSIDE] - 1)))


def wavy() -> Array:
    """A smooth relative error of two percent, (H, W)."""
    y, x = np.mgrid[: TRUE.shape[0], : TRUE.shape[1]]
    return TRUE * (1.01 + 0.02 * np.sin(x / 30) * np.cos(y / 25))


def test_anchor_depths_carry_their_pixels() -> None:
    view = canonical_view("a", TRUE, INSIDE.astype(float), 100.0)
    scale = np.linspace(1, 2, len(view.anchor_xy))
    depth = anchor_depth_map(view, view.anchor_depth * scale)
    np.testing.assert_allclose(depth[INSIDE], (TRUE * scale[view.anchor_of_pixel])[INSIDE], rtol=1e-5)
    assert (depth[~INSIDE] == 0).all()


def test_samples_take_a_smooth_error_away() -> None:
    corrected = correct_depth(wavy(), samples_of(TRUE))
    assert relative_error(corrected) < 0.15 * relative_error(wavy())
    assert (corrected[~INSIDE] == 0).all()


def test_wrong_samples_are_outvoted() -> None:
    good = samples_of(TRUE, 120)
    depth = good.depth.copy()
    depth[::6] *= 1.3
    corrected = correct_depth(wavy(), DepthSamples(good.xy, depth, good.sigma))
    assert relative_error(corrected) < 0.004


def test_vague_samples_count_little() -> None:
    precise, vague = samples_of(TRUE, 80), samples_of(TRUE * 1.1, 80, sigma=0.2)
    both = DepthSamples.join([precise, vague])
    assert relative_error(correct_depth(wavy(), both)) < 0.004


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_samples_change_nothing(count: int) -> None:
    np.testing.assert_array_equal(correct_depth(wavy(), samples_of(TRUE, count)), wavy())


def test_samples_off_the_object_or_the_image_are_ignored() -> None:
    off = DepthSamples(np.array([[-5.0, 3], [1e5, 2], [0, 0], [191, 143]]), np.full(4, 9.0), np.full(4, 0.001))
    np.testing.assert_array_equal(correct_depth(wavy(), off), wavy())


def test_hull_of_a_ball() -> None:
    hull = carve(RIG, [view.mask for view in VIEWS], np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3)))
    radius = np.linalg.norm(hull.centers(hull.inside), axis=1)
    assert radius.max() < 1.2 * RADIUS
    # all of the ball itself is inside
    grid = hull.centers(np.ones_like(hull.inside))
    assert hull.inside.reshape(-1)[np.linalg.norm(grid, axis=1) < 0.95 * RADIUS].all()
    row, column = np.nonzero(INSIDE)
    front = hull_front(RIG, 0, hull, np.stack([column, row], 1).astype(float))
    gap = (TRUE[INSIDE] - front) / (2 * RADIUS)
    assert (front > 0).all()
    assert np.median(np.abs(gap)) < 0.02
    assert (gap > -0.02).mean() > 0.97  # the hull holds the surface, to within its cells
    assert (hull_front(RIG, 0, hull, np.array([[0.0, 0.0]])) == 0).all()


def test_the_silhouette_of_a_hull_covers_the_mask_and_little_more() -> None:
    hull = carve(RIG, [view.mask for view in VIEWS], np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3)))
    reach = hull_silhouette(RIG, 0, hull, INSIDE.shape)
    assert reach[INSIDE].all()
    assert (distance_outside(INSIDE)[reach] < 12).all()


@pytest.mark.parametrize("ahead", [-1.0, 1e-9, 1e-3])
def test_a_camera_that_faces_away_or_stands_in_the_hull_has_a_silhouette(ahead: float) -> None:
    """A given pose in other axes, or of another unit, is an input mistake that must not end in OpenCV."""
    hull = carve(RIG, [view.mask for view in VIEWS], np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3)))
    poses = RIG.world_from_cam.copy()
    poses[0, :3, 3] = -ahead * poses[0, :3, 2] * (10 if ahead < 0 else 1)
    reach = hull_silhouette(RIG.moved(poses, RIG.intrinsics), 0, hull, INSIDE.shape)
    assert reach.all() if ahead > 0 else not reach.any()


def test_outline_depths_and_the_bound() -> None:
    hull = carve(RIG, [view.mask for view in VIEWS], np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3)))
    rim = rim_depths(RIG, 0, VIEWS[0].mask, hull, 2 * RADIUS)
    truth = TRUE[rim.xy[:, 1].astype(int), rim.xy[:, 0].astype(int)]
    assert len(rim.depth) > 20
    assert np.median(np.abs(rim.depth - truth)) < 0.03 * 2 * RADIUS
    pushed = behind_hull(0.8 * TRUE, RIG, 0, hull)
    assert np.median(np.abs(pushed - TRUE)[INSIDE]) < 0.02 * 2 * RADIUS
    assert (pushed[~INSIDE] == 0).all()
    behind = behind_hull(1.1 * TRUE, RIG, 0, hull)
    np.testing.assert_array_equal(behind, 1.1 * TRUE)  # what lies behind the front is left alone


def test_no_outline_at_the_image_border() -> None:
    hull = carve(RIG, [view.mask for view in VIEWS], np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3)))
    everything = np.ones_like(VIEWS[0].mask)
    assert len(rim_depths(RIG, 0, everything, hull, 2.0).depth) == 0


def test_confidence_of_any_scale() -> None:
    maps = [np.array([[0.0, 1.0, 3.0]]), np.array([[9.0, 0.0, 3.0]])]
    low, high = (normalised_confidence([scale * m for m in maps]) for scale in (1.0, 1e4))
    for a, b in zip(low, high, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert a.min() >= 0
        assert a.max() < 1
    assert low[0][0, 0] == 0
    assert normalised_confidence([]) == []
