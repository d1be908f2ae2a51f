"""Which depth maps count: those whose scale the tracks, or the hull around them, tell."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import cv2
import numpy as np
import pytest
from posed_balls import COUNT, Case, make_case, run

from sparse_ga.config import TriangulateConfig
from sparse_ga.products import PairMatches, VerifiedMatches
from sparse_ga.triangulation import MatchedPairs
from sparse_ga.triangulation.dense import bound_by_hull
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.triangulation.masks import MaskCheck
from sparse_ga.triangulation.sparse import SparseResult, solve_sparse


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(0.3)


def without_matches(case: Case, views: Collection[int], scale: float) -> Case:
    """No matches of `views`, and depths of theirs that are off by a factor `scale`, as guessed ones are."""
    nothing = VerifiedMatches(PairMatches.empty(), 0.0, "none", "too few matches")
    matches = [nothing if set(pair) & set(views) else m for pair, m in zip(case.pairs, case.matches)]
    depth, start = case.alignment.anchor_depth.copy(), case.alignment.anchor_start
    for n in views:
        depth[start[n] : start[n + 1]] *= scale
    return replace(case, matches=matches, alignment=replace(case.alignment, anchor_depth=depth))


@pytest.mark.parametrize("method", ["anchors", "stereo"])
def test_point_maps_that_nothing_ties_make_no_cloud(case: Case, method: str) -> None:
    """Their guessed scales agree with one another by and large, which is no evidence."""
    result = run(without_matches(case, range(COUNT), 1.02), case.views, method)
    assert len(result.points) == len(result.track_points) == len(result.mesh.faces) == 0
    assert result.report.inconsistent_masks == ()
    assert not any(result.depthmaps.view(n)[0].any() for n in range(COUNT))


def without_tracks_of_the_third(case: Case) -> tuple[SparseResult, list[DepthView]]:
    """No track of view 2, whose depth is off by a tenth."""
    cut = without_matches(case, [2], 1.0)
    sparse = solve_sparse(
        cut.views, cut.alignment, MatchedPairs(cut.pairs, cut.matches.__getitem__), TriangulateConfig()
    )
    rig = sparse.rig
    return sparse, [
        DepthView(n, c.depth * (0.9 if n == 2 else 1), c.confidence, v.mask, rig.intrinsics[n], rig.world_from_cam[n])
        for n, (v, c) in enumerate(zip(cut.views, cut.canonical))
    ]


@pytest.mark.parametrize("outline", [True, False])
def test_a_view_without_tracks_takes_its_scale_from_its_outline_or_has_no_depth(case: Case, outline: bool) -> None:
    sparse, depths = without_tracks_of_the_third(case)
    everything = np.ones(case.views[2].mask.shape, bool)
    masks = [view.mask if outline or n != 2 else everything for n, view in enumerate(case.views)]
    bound = bound_by_hull(depths, MaskCheck(masks, masks, ()), sparse)
    assert bound[2].valid.any() == bound[2].confidence.any() == outline
    assert all(view.valid.any() for view in bound if view.index != 2)
    if outline:
        ratio = bound[2].depth[bound[2].valid] / case.canonical[2].depth[bound[2].valid]
        assert np.median(ratio) == pytest.approx(1, abs=0.04)


def test_an_outline_away_from_the_depth_tells_no_scale(case: Case) -> None:
    """No part of the map within 12 px of the outline, along which the hull tells depths."""
    sparse, depths = without_tracks_of_the_third(case)
    masks = [view.mask for view in case.views]
    middle = cv2.erode(masks[2].astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    assert middle.any()
    depths[2] = replace(depths[2], depth=np.where(middle, depths[2].depth, 0))
    bound = bound_by_hull(depths, MaskCheck(masks, masks, ()), sparse)
    assert not bound[2].valid.any()
    assert all(view.valid.any() for view in bound if view.index != 2)
