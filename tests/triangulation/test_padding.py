"""Working images with padding around the photograph: it shows nothing, so it speaks against nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from balls import ball_views, painted
from oracle_inputs import canonical_view, on_mask

from sparse_ga.config import TriangulateConfig
from sparse_ga.geometry.cameras import project
from sparse_ga.geometry.transforms import apply
from sparse_ga.products import Alignment, CanonicalView, PairMatches, Reconstruction, VerifiedMatches, View
from sparse_ga.triangulation import MatchedPairs, triangulate_views
from sparse_ga.triangulation.consistency import sample_depth
from sparse_ga.triangulation.depth import DepthView

SIZE = (96, 60)
COUNT = 6
PADDING = ((5, 6), (3, 0))  # rows above and below, columns left and right


@dataclass(frozen=True, eq=False)
class Case:
    """Photographs that a ball overflows above and below, all cameras given, and what is known of them."""

    views: list[View]
    canonical: list[CanonicalView]
    alignment: Alignment
    pairs: list[tuple[int, int]]
    matches: list[VerifiedMatches]


def match(view: DepthView, other: DepthView) -> VerifiedMatches:
    """Every third pixel of `view` with where its point is seen in `other`."""
    xy = view.pixels()[::3]
    cam = apply(other.cam_from_world, view.world_points()[::3])
    there, front = project(other.intrinsics, cam)
    there = np.where(front[:, None], np.rint(there * 1024) / 1024, -9.0)  # float32 moves these without rounding
    seen = on_mask(there, other.mask) & (np.abs(sample_depth(other, there) / cam[:, 2] - 1) < 0.005)
    matches = PairMatches(xy[seen].astype(np.float32), there[seen].astype(np.float32), np.ones(seen.sum(), np.float32))
    return VerifiedMatches(matches, 1.0, "predictor")


@pytest.fixture(scope="module")
def case() -> Case:
    rig, depths = ball_views(COUNT, SIZE, 0.9)
    names = tuple(f"{n}.png" for n in range(COUNT))
    views = [
        View(name, painted(depth), depth.mask, k, np.eye(3), SIZE, name, "given", pose)
        for name, depth, k, pose in zip(names, depths, rig.intrinsics, rig.world_from_cam)
    ]
    assert all(view.mask[0].any() and view.mask[-1].any() for view in views)
    canonical = [
        canonical_view(v.name, d.depth, d.confidence, k[0, 0]) for v, d, k in zip(views, depths, rig.intrinsics)
    ]
    alignment = Alignment(
        names,
        rig.registered,
        rig.world_from_cam,
        rig.intrinsics,
        np.concatenate([view.anchor_depth for view in canonical]).astype(float),
        np.cumsum([0, *(len(view.anchor_xy) for view in canonical)]).astype(np.int64),
        ("",) * COUNT,
        metric_frame=True,
    )
    pairs = [(i, j) for i in range(COUNT) for j in range(COUNT) if i != j]
    return Case(views, canonical, alignment, pairs, [match(depths[i], depths[j]) for i, j in pairs])


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


def run(case: Case, photographs: Sequence[View], method: str) -> Reconstruction:
    return triangulate_views(
        case.views,
        case.canonical,
        case.alignment,
        MatchedPairs(case.pairs, case.matches.__getitem__),
        lambda n: (photographs[n].image, photographs[n].mask),
        TriangulateConfig(mesh=False, dense_method=method),
    )


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
