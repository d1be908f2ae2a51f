"""Working images with padding around the photograph: it shows nothing, so it speaks against nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from posed_balls import COUNT, Case, make_case, run

from sparse_ga.products import PairMatches

PADDING = ((5, 6), (3, 0))  # rows above and below, columns left and right


@pytest.fixture(scope="module")
def case() -> Case:
    overflowing = make_case()
    assert all(view.mask[0].any() and view.mask[-1].any() for view in overflowing.views)
    return overflowing


def padded(case: Case, around: Sequence[tuple[int, int]]) -> Case:
    """The same photographs on larger working images."""
    (above, _), (left, _) = around
    shift = np.eye(3)
    shift[:2, 2] = left, above
    views = [
        replace(
            view,
            image=np.pad(view.image, (*around, (0, 0)), mode="edge"),
            mask=np.pad(view.mask, around),
            intrinsics=shift @ view.intrinsics,
            working_from_source=shift,
        )
        for view in case.views
    ]
    corner = np.array([left, above], np.float32)
    matches = [
        replace(m, matches=PairMatches(m.matches.xy_i + corner, m.matches.xy_j + corner, m.matches.confidence))
        for m in case.matches
    ]
    alignment = replace(case.alignment, intrinsics=shift @ case.alignment.intrinsics)
    canonical = [
        replace(
            view,
            depth=np.pad(view.depth, around),
            confidence=np.pad(view.confidence, around),
            anchor_xy=view.anchor_xy + np.array([left, above], np.int32),
            anchor_of_pixel=np.pad(view.anchor_of_pixel, around, constant_values=-1),
        )
        for view in case.canonical
    ]
    return replace(case, views=views, canonical=canonical, alignment=alignment, matches=matches)


@pytest.mark.parametrize("method", ["anchors", pytest.param("stereo", marks=pytest.mark.slow)])
def test_padding_changes_nothing(case: Case, method: str) -> None:
    plain, result = run(case, case.views, method), run(padded(case, PADDING), case.views, method)
    assert plain.report.inconsistent_masks == ()
    assert result.report.inconsistent_masks == ()
    assert len(plain.points) > 2000
    np.testing.assert_allclose(result.track_points, plain.track_points, atol=1e-9)
    np.testing.assert_allclose(result.points, plain.points, atol=1e-9)
    np.testing.assert_array_equal(result.colors, plain.colors)


def test_what_comes_out_is_in_pixels_of_the_whole_working_images(case: Case) -> None:
    larger = padded(case, PADDING)
    plain, result = run(case, case.views, "anchors"), run(larger, case.views, "anchors")
    np.testing.assert_array_equal(result.working_from_source, [view.working_from_source for view in larger.views])
    np.testing.assert_allclose(result.intrinsics, case.alignment.intrinsics, atol=1e-9)
    np.testing.assert_allclose(result.tracks.xy, plain.tracks.xy, atol=1e-9)
    for n, view in enumerate(larger.views):
        np.testing.assert_array_equal(result.masks.mask(n), view.mask)
        for got, wanted in zip(result.depthmaps.view(n), plain.depthmaps.view(n)):
            np.testing.assert_allclose(got, np.pad(wanted, PADDING), atol=1e-6)


def test_an_empty_mask_and_an_unregistered_view_with_padding(case: Case) -> None:
    larger = padded(case, PADDING)
    views = [*larger.views[:-1], replace(larger.views[-1], mask=np.zeros_like(larger.views[-1].mask))]
    registered = np.arange(COUNT) < COUNT - 1
    poses = np.where(registered[:, None, None], larger.alignment.world_from_cam, np.eye(4))
    alignment = replace(
        larger.alignment,
        registered=registered,
        world_from_cam=poses,
        reasons=("",) * (COUNT - 1) + ("the mask is empty",),
    )
    result = run(replace(larger, views=views, alignment=alignment), case.views, "anchors")
    assert result.report.inconsistent_masks == ()
    assert len(result.points) > 2000
    assert not (result.tracks.view_index == COUNT - 1).any()
    assert result.depthmaps.view(COUNT - 1)[0].shape == views[-1].mask.shape
    assert not result.depthmaps.view(COUNT - 1)[0].any()
