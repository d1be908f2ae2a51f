"""Canonical views: scales removed, outliers outvoted, nothing from the background, memory bounded."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from alignment_scenes import MILD, Case, ring_case

from sparse_ga.alignment.align3d import align_views
from sparse_ga.alignment.anchors import Anchors, choose_anchors
from sparse_ga.alignment.canonical import MAX_ROWS, CanonicalAccumulator, DepthRows
from sparse_ga.config import Align3dConfig
from sparse_ga.geometry.cameras import make_intrinsics, unproject_depth
from sparse_ga.products import Array, CanonicalView, PairPrediction, Pointmap
from sparse_ga.synthetic.oracle import OraclePredictor

SHAPE = (64, 80)
FOCAL = 100.0


def true_depth() -> Array:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return 2 + 0.5 * np.sin(x / 11) + 0.3 * np.cos(y / 7)


def anchors() -> Anchors:
    mask = np.zeros(SHAPE, bool)
    mask[7:57, 9:71] = True
    return choose_anchors(mask, np.zeros(SHAPE, int), 8, 1)


def pointmap(depth: Array, confidence: float = 3.0, dtype: type = np.float32) -> Pointmap:
    points = unproject_depth(make_intrinsics(FOCAL, np.array([39.5, 31.5])), depth)
    return Pointmap(points.astype(dtype), np.full(SHAPE, confidence, dtype))


def merge(maps: list[Pointmap], scores: list[float] | None = None) -> CanonicalView:
    scores = scores or [1.0] * len(maps)
    rows = DepthRows(anchors())
    for one, score in zip(maps, scores):
        rows.add(one, score)
    merged = CanonicalAccumulator(rows.anchors, rows.reference(), FOCAL)
    for one, score in zip(maps, scores):
        merged.add(one, score)
    return merged.result("view", FOCAL)


def relative_error(view: CanonicalView) -> Array:
    """Relative depth errors (F,) on the foreground after the best scale."""
    on = view.anchor_of_pixel >= 0
    ratio = view.depth[on] / true_depth()[on]
    return ratio / np.median(ratio) - 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maps_of_different_scales_merge_to_the_exact_depth(dtype: type) -> None:
    view = merge([pointmap(true_depth() * scale, dtype=dtype) for scale in (0.1, 1.0, 7.0, 300.0)])
    assert np.abs(relative_error(view)).max() < 1e-5
    assert (view.depth[view.anchor_of_pixel < 0] == 0).all()
    assert (view.confidence[view.anchor_of_pixel < 0] == 0).all()
    np.testing.assert_allclose(view.confidence[view.anchor_of_pixel >= 0], 3.0, rtol=1e-5)


def test_averaging_lowers_independent_noise() -> None:
    rng = np.random.default_rng(0)
    maps = [pointmap(true_depth() * np.exp(0.003 * rng.normal(size=SHAPE))) for _ in range(12)]
    alone, together = relative_error(merge(maps[:1])), relative_error(merge(maps))
    assert together.std() < 0.4 * alone.std()


def test_a_pair_with_wrong_geometry_does_not_bend_the_mean() -> None:
    rng = np.random.default_rng(1)
    good = [pointmap(true_depth() * np.exp(0.005 * rng.normal(size=SHAPE))) for _ in range(4)]
    x = np.arange(SHAPE[1])
    tilted = pointmap(true_depth() * np.exp((x - 40) / 60))
    assert np.abs(np.median(relative_error(merge([*good, tilted])))) < 1e-3
    bent, straight = relative_error(merge([*good, tilted])), relative_error(merge(good))
    assert bent.std() < 1.2 * straight.std()
    patch = true_depth()
    patch[24:40, 24:40] *= 1.5  # whole blocks
    assert np.abs(relative_error(merge([*good, pointmap(patch)]))).max() < 0.03


def test_confidence_and_score_weigh() -> None:
    x = np.arange(SHAPE[1])
    bent = true_depth() * np.exp(0.004 * np.sin(x / 20))
    error = [
        np.abs(relative_error(merge(maps, scores))).max()
        for maps, scores in (
            ([pointmap(true_depth(), 10.0), pointmap(bent, 0.1)], None),
            ([pointmap(true_depth(), 1.0), pointmap(bent, 1.0)], [1.0, 0.05]),
            ([pointmap(true_depth(), 0.1), pointmap(bent, 10.0)], None),
        )
    ]
    assert max(error[:2]) < 0.4 * error[2]


def test_no_evidence_at_all_gives_unit_depth_and_no_confidence() -> None:
    view = merge([])
    on = view.anchor_of_pixel >= 0
    assert (view.depth[on] == 1).all()
    assert (view.confidence == 0).all()


def test_nan_negative_and_unconfident_pixels_are_left_out() -> None:
    broken = true_depth()
    points = pointmap(broken)
    damaged = points.points.copy()
    damaged[10:20] = np.nan
    damaged[30:34, :, 2] = -1
    confidence = points.confidence.copy()
    confidence[40:44] = 0
    view = merge([Pointmap(damaged, confidence)])
    on = view.anchor_of_pixel >= 0
    assert np.isfinite(view.depth).all()
    assert (view.depth[on] > 0).all()
    intact = on.copy()
    intact[8:24], intact[24:48] = False, False
    ratio = view.depth[intact] / true_depth()[intact]
    assert np.abs(ratio / np.median(ratio) - 1).max() < 1e-4


def test_the_reservoir_is_bounded_and_keeps_the_best() -> None:
    rows = DepthRows(anchors())
    rng = np.random.default_rng(2)
    for score in rng.permutation(40):
        rows.add(pointmap(true_depth()), float(score))
    assert [row[0] for row in rows.rows] == [float(s) for s in range(39, 39 - MAX_ROWS, -1)]
    assert not rows.wants(1.0)


def test_background_pixels_change_nothing() -> None:
    case = ring_case(4, MILD)
    changed = []
    for prediction, (i, j) in zip(case.predictions, case.pairs):
        maps = {}
        for name, n in (("i_in_i", i), ("j_in_i", j), ("j_in_j", j), ("i_in_j", i)):
            one: Pointmap = getattr(prediction, name)
            off = ~case.views[n].mask
            points, confidence = one.points.copy(), one.confidence.copy()
            points[off] = np.nan
            confidence[off] = 1e6
            maps[name] = Pointmap(points, confidence)
        changed.append(PairPrediction(**maps, matches=prediction.matches))
    other = Case(case.scene, case.views, case.pairs, tuple(changed), case.matches)
    canonical, alignment = case.align()
    canonical_other, alignment_other = other.align()
    np.testing.assert_array_equal(alignment.world_from_cam, alignment_other.world_from_cam)
    np.testing.assert_array_equal(alignment.intrinsics, alignment_other.intrinsics)
    for a, b in zip(canonical, canonical_other):
        np.testing.assert_array_equal(a.depth, b.depth)


def strips(spans: list[tuple[int, int]], units: list[float]) -> list[Pointmap]:
    """Maps of the true depth, each of the columns of its span only and in a unit of its own."""
    maps = []
    for (low, high), unit in zip(spans, units):
        one = pointmap(true_depth() * unit)
        confidence = np.zeros(SHAPE, np.float32)
        confidence[:, low:high] = one.confidence[:, low:high]
        maps.append(Pointmap(one.points, confidence))
    return maps


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_maps_that_overlap_their_neighbours_only_are_chained(order: tuple[int, ...]) -> None:
    maps = strips([(0, 48), (38, 58), (48, 66), (56, 80)], [1.0, 3.0, 9.0, 0.1])
    view = merge([maps[k] for k in order])
    assert np.abs(relative_error(view)).max() < 1e-4
    assert (view.confidence[view.anchor_of_pixel >= 0] > 0).all()


def test_a_map_without_overlap_is_left_out() -> None:
    """Its unit is unknown: what it alone sees takes the depth of its neighbourhood, at no confidence."""
    seen = strips([(0, 44), (56, 80)], [1.0, 1.0])
    flat = [Pointmap(np.full((*SHAPE, 3), unit, np.float32), one.confidence) for unit, one in zip((1.0, 9.0), seen)]
    view = merge(flat)
    on = view.anchor_of_pixel >= 0
    np.testing.assert_allclose(view.depth[on], 1.0, rtol=1e-5)
    assert (view.confidence[:, 56:] == 0).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pairs() -> None:
    case = ring_case(6, MILD)
    oracle = OraclePredictor(case.scene, 0, MILD, "matches", 6)
    for view in case.views:
        oracle.predict(view, case.views[0])  # what the oracle keeps of each view is there before measuring

    def peak(chosen: range) -> int:
        pairs = [case.pairs[p] for p in chosen]
        tracemalloc.start()
        align_views(
            case.views,
            pairs,
            lambda k: oracle.predict(case.views[pairs[k][0]], case.views[pairs[k][1]]),
            lambda k: case.matches[chosen[k]],
            Align3dConfig(),
        )
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    one_prediction = 4 * case.views[0].mask.size * 16
    assert peak(range(15)) - peak(range(5)) < 0.5 * one_prediction
