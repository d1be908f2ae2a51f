"""The search by planes, on a painted ball of which a piece of every depth map is far off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from balls import RADIUS, ball_views, painted

from sparse_ga.products import Array
from sparse_ga.triangulation.consistency import neighbour_views
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.triangulation.planes import search_planes

RIG, VIEWS = ball_views(12, size=(160, 120))
NEIGHBOURS = neighbour_views(RIG.world_from_cam, np.zeros(3), RIG.registered)
PATCH = (slice(50, 70), slice(70, 90))


def with_sheet(view: DepthView, share: float = -0.25) -> DepthView:
    """With a square in the middle whose depth is off by a share of the diameter."""
    depth = view.depth.copy()
    depth[PATCH] += np.float32(share * 2 * RADIUS)
    return replace(view, depth=depth)


def errors(views: list[DepthView]) -> list[Array]:
    """Absolute depth errors (H, W), in diameters; 0 off the object."""
    return [np.abs(v.depth - t.depth) * t.mask / (2 * RADIUS) for v, t in zip(views, VIEWS, strict=True)]


@pytest.fixture(scope="module")
def images() -> list[Array]:
    return [painted(view) for view in VIEWS]


@pytest.fixture(scope="module")
def found(images: list[Array]) -> list[DepthView]:
    return search_planes([with_sheet(view) for view in VIEWS], images, NEIGHBOURS, 2 * RADIUS)


@pytest.mark.slow
def test_what_is_far_off_is_found(found: list[DepthView]) -> None:
    inside = np.concatenate([error[PATCH].ravel() for error in errors(found)])
    assert (inside < 0.05).mean() > 0.9  # the refinement reaches 6 %
    for view, truth in zip(found, VIEWS, strict=True):
        np.testing.assert_array_equal(view.valid, truth.valid)
        assert view.depth.dtype == np.float32
        assert np.isfinite(view.depth).all()


@pytest.mark.slow
def test_what_is_right_stays(found: list[DepthView]) -> None:
    around = np.concatenate([error[VIEWS[0].mask] for error in errors(found)])
    assert (around > 0.05).mean() < 0.02


def test_without_texture_nothing_changes() -> None:
    start = [with_sheet(view) for view in VIEWS[:4]]
    plain = [np.full((*view.mask.shape, 3), 120, np.uint8) for view in start]
    around = [np.array([n for n in range(4) if n != m]) for m in range(4)]
    for before, after in zip(start, search_planes(start, plain, around, 2 * RADIUS), strict=True):
        assert before.depth.tobytes() == after.depth.tobytes()


@pytest.mark.slow
def test_the_background_has_no_influence(images: list[Array], found: list[DepthView]) -> None:
    rng = np.random.default_rng(1)
    other = [
        np.where(v.mask[..., None], image, rng.integers(0, 255, image.shape)).astype(np.uint8)
        for v, image in zip(VIEWS, images, strict=True)
    ]
    again = search_planes([with_sheet(view) for view in VIEWS], other, NEIGHBOURS, 2 * RADIUS)
    for a, b in zip(found, again, strict=True):
        assert a.depth.tobytes() == b.depth.tobytes()


def test_a_view_alone_or_without_depth_is_left_as_it_is(images: list[Array]) -> None:
    empty = replace(VIEWS[1], depth=np.zeros_like(VIEWS[1].depth))
    alone = [np.zeros(0, np.int64)] * 12
    after = search_planes([VIEWS[0], empty], images, alone, 2 * RADIUS)
    assert after[0].depth.tobytes() == VIEWS[0].depth.tobytes()
    assert not after[1].valid.any()


def test_odd_image_sides_and_a_single_pixel() -> None:
    rig, views = ball_views(4, size=(161, 121))
    neighbours = neighbour_views(rig.world_from_cam, np.zeros(3), rig.registered)
    speck = np.zeros_like(views[0].depth)
    speck[60, 80] = views[0].depth[60, 80]
    start = [replace(views[0], depth=speck), *views[1:]]
    after = search_planes(start, [painted(view) for view in views], neighbours, 2 * RADIUS)
    for before, view in zip(start, after, strict=True):
        np.testing.assert_array_equal(before.valid, view.valid)
        assert np.isfinite(view.depth).all()
