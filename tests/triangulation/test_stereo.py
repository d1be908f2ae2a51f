"""Photometric refinement on a ball painted with a solid texture, against its exact depth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from balls import RADIUS, ball_views, painted

from sparse_ga.products import Array
from sparse_ga.triangulation.consistency import neighbour_views
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.triangulation.stereo import refine_depths, semi_global, smooth_depth

RIG, VIEWS = ball_views(12, size=(160, 120))
NEIGHBOURS = neighbour_views(RIG.world_from_cam, np.zeros(3), RIG.registered)


def disturbed(view: DepthView, share: float) -> DepthView:
    """With a smooth error of a share of the diameter."""
    y, x = np.mgrid[: view.depth.shape[0], : view.depth.shape[1]]
    error = share * 2 * RADIUS * np.sin(x / 25 + view.index) * np.cos(y / 30)
    return replace(view, depth=np.where(view.mask, view.depth + error, 0).astype(np.float32))


def errors(views: list[DepthView]) -> Array:
    """Absolute depth errors of all pixels, in diameters."""
    return np.concatenate([np.abs(v.depth - t.depth)[t.mask] for v, t in zip(views, VIEWS, strict=True)]) / (2 * RADIUS)


@pytest.fixture(scope="module")
def images() -> list[Array]:
    return [painted(view) for view in VIEWS]


@pytest.mark.slow
def test_errors_of_several_percent_shrink_to_a_fraction(images: list[Array]) -> None:
    start = [disturbed(view, 0.03) for view in VIEWS]
    refined = refine_depths(start, images, NEIGHBOURS, 2 * RADIUS)
    assert np.median(errors(start)) > 0.008
    assert np.median(errors(refined)) < 0.005  # a pixel is 0.013
    assert (errors(refined) < 0.02).mean() > 0.97
    for before, after in zip(start, refined, strict=True):
        np.testing.assert_array_equal(before.valid, after.valid)
        assert np.isfinite(after.depth).all()
        assert after.confidence[after.valid].min() >= 0.05
        assert after.confidence.max() <= 1


def test_a_change_of_light_does_not_matter(images: list[Array]) -> None:
    start = [disturbed(view, 0.02) for view in VIEWS]
    lit = [(image * (0.6 + 0.4 * (n % 2)) + 20 * (n % 3)).astype(np.uint8) for n, image in enumerate(images)]
    refined = refine_depths(start, lit, NEIGHBOURS, 2 * RADIUS)
    assert np.median(errors(refined)) < 0.5 * np.median(errors(start))


@pytest.mark.slow
def test_the_background_has_no_influence(images: list[Array]) -> None:
    start = [disturbed(view, 0.02) for view in VIEWS]
    rng = np.random.default_rng(1)
    other = [
        np.where(v.mask[..., None], image, rng.integers(0, 255, image.shape)).astype(np.uint8)
        for v, image in zip(VIEWS, images, strict=True)
    ]
    plain, noisy = (refine_depths(start, pictures, NEIGHBOURS, 2 * RADIUS) for pictures in (images, other))
    for a, b in zip(plain, noisy, strict=True):
        assert a.depth.tobytes() == b.depth.tobytes()


@pytest.mark.slow
def test_without_texture_the_depth_stays() -> None:
    start = [disturbed(view, 0.01) for view in VIEWS]
    plain = [np.full((*view.mask.shape, 3), 120, np.uint8) for view in VIEWS]
    refined = refine_depths(start, plain, NEIGHBOURS, 2 * RADIUS)
    moved = np.concatenate([np.abs(a.depth - b.depth)[a.mask] for a, b in zip(start, refined, strict=True)])
    assert np.median(moved) < 0.002 * 2 * RADIUS


def test_the_same_bytes_every_time(images: list[Array]) -> None:
    start = [disturbed(view, 0.02) for view in VIEWS[:4]]
    around = [np.array([n for n in range(4) if n != m]) for m in range(4)]
    first, second = (refine_depths(start, images, around, 2 * RADIUS) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.depth.tobytes() == b.depth.tobytes()
        assert a.confidence.tobytes() == b.confidence.tobytes()


def test_a_view_alone_or_without_depth_is_left_as_it_is(images: list[Array]) -> None:
    empty = replace(VIEWS[1], depth=np.zeros_like(VIEWS[1].depth))
    alone = [np.zeros(0, np.int64)] * 12
    refined = refine_depths([VIEWS[0], empty], images, alone, 2 * RADIUS)
    assert np.median(np.abs(refined[0].depth - VIEWS[0].depth)[VIEWS[0].mask]) < 0.002
    assert not refined[1].valid.any()


def test_odd_image_sides() -> None:
    rig, views = ball_views(6, size=(161, 121))
    images = [painted(view) for view in views]
    neighbours = neighbour_views(rig.world_from_cam, np.zeros(3), rig.registered)
    refined = refine_depths(views, images, neighbours, 2 * RADIUS)
    error = np.concatenate([np.abs(a.depth - b.depth)[b.mask] for a, b in zip(refined, views, strict=True)])
    assert np.median(error) < 0.005 * 2 * RADIUS


def test_smoothing_removes_specks_and_keeps_steps() -> None:
    depth = np.zeros((60, 80), np.float32)
    depth[10:50, 10:40], depth[10:50, 40:70] = 2.0, 3.0
    truth = depth.copy()
    depth[20:22, 20:22] = 5.0
    smooth = smooth_depth(depth, 0.05)
    np.testing.assert_allclose(smooth, truth, atol=1e-3)


def test_semi_global_costs_equal_a_slow_reference() -> None:
    rng = np.random.default_rng(0)
    cost = rng.random((5, 4, 6)).astype(np.float32)

    def path(line: Array) -> Array:
        out = [line[:, 0]]
        for column in range(1, line.shape[1]):
            before = out[-1]
            step = [
                min(
                    before[k],
                    before.min() + 0.6,
                    *(before[m] + 0.15 for m in (k - 1, k + 1) if 0 <= m < len(before)),
                )
                - before.min()
                for k in range(len(before))
            ]
            out.append(line[:, column] + np.array(step))
        return np.stack(out, 1)

    wanted = np.zeros_like(cost)
    for row in range(4):
        wanted[:, row] += path(cost[:, row]) + path(cost[:, row, ::-1])[:, ::-1]
    for column in range(6):
        wanted[:, :, column] += path(cost[:, :, column]) + path(cost[:, ::-1, column])[:, ::-1]
    np.testing.assert_allclose(semi_global(cost), wanted, rtol=1e-5)
