"""Verification on exact geometry with planted outliers; scores; reasons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparse_ga.config import MatchConfig
from sparse_ga.geometry import cameras, transforms
from sparse_ga.matching.verify import (
    coverage,
    pair_score,
    sampson_px,
    transfer_px,
    verify_geometry,
    verify_matches,
)
from sparse_ga.products import Array, PairMatches, View

K = cameras.make_intrinsics(500.0, np.array([159.5, 119.5]))
CONFIG = MatchConfig()


def make_view(name: str, known: bool, mask: Array | None = None, intrinsics: Array = K) -> View:
    mask = np.ones((240, 320), bool) if mask is None else mask
    image = np.zeros((*mask.shape, 3), np.uint8)
    return View(name, image, mask, intrinsics if known else None, np.eye(3), (320, 240), name, "given")


def make_matches(
    kind: str, count: int, outliers: float, seed: int = 0, noise: float = 0.4
) -> tuple[PairMatches, Array]:
    """Matches of random points seen from two cameras, the last `outliers` of them wrong; and who is right (M,)."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform([20, 20], [300, 220], (count, 2))
    depth = rng.uniform(4, 6, count)
    rays = cameras.rays(K, xy)
    if kind == "plane":
        depth = 5 / (rays @ [0.2, 0.3, 1.0])
    shift = np.zeros(3) if kind == "rotation" else np.array([0.8, 0.1, 0.2])
    turn = transforms.exp_so3(np.array([0.02, -0.12, 0.1]))
    end, _ = cameras.project(K, transforms.apply(transforms.make(turn, shift), rays * depth[:, None]))
    right = np.arange(count) < count * (1 - outliers)
    end[~right] = rng.uniform([20, 20], [300, 220], ((~right).sum(), 2))
    order = rng.permutation(count)
    end = end + noise * rng.normal(size=end.shape) / np.sqrt(2)
    xy = xy + noise * rng.normal(size=end.shape) / np.sqrt(2)
    confidence = rng.random(count) + 0.1
    matches = PairMatches(*(a[order].astype(np.float32) for a in (xy, end, confidence)))
    return matches, right[order]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", ["general", "plane", "rotation"])
@pytest.mark.parametrize(("count", "outliers"), [(60, 0.0), (60, 0.4), (3000, 0.5)])
def test_right_matches_stay_and_wrong_ones_go(known: bool, kind: str, count: int, outliers: float) -> None:
    matches, right = make_matches(kind, count, outliers)
    inliers = verify_geometry(matches, (K, K) if known else None, 2.0)
    assert inliers.inliers[right].mean() >= 0.97
    assert inliers.inliers[~right].sum() <= 0.1 * (~right).sum() + 4  # a fit may consume some outliers
    planar = kind != "general"
    assert inliers.model == ("homography" if planar else "essential" if known else "fundamental")
    verified = verify_matches(matches, make_view("i", known), make_view("j", known), CONFIG)
    assert verified.rejected is None
    assert verified.model == inliers.model
    assert 0.4 < verified.score <= 1
    np.testing.assert_array_equal(verified.matches.xy_j, matches.xy_j[inliers.inliers])


def test_wrong_intrinsics_do_not_throw_a_pair_away() -> None:
    matches, right = make_matches("general", 400, 0.2)
    wrong = cameras.make_intrinsics(150.0, np.array([60.0, 200.0]))
    found = verify_geometry(matches, (wrong, wrong), 1.0)
    assert found.inliers[right].mean() > 0.9


@pytest.mark.parametrize("count", [20, 60, 300, 2000])
def test_matches_without_a_geometry_are_rejected(count: int) -> None:
    rng = np.random.default_rng(count)
    xy = rng.uniform(20, 220, (2, count, 2)).astype(np.float32)
    matches = PairMatches(xy[0], xy[1], rng.random(count).astype(np.float32))
    for known in (True, False):
        verified = verify_matches(matches, make_view("i", known), make_view("j", known), CONFIG)
        assert verified.rejected is not None
        assert "agree on one geometry" in verified.rejected
        assert verified.score == 0


@pytest.mark.parametrize("count", [0, 1, 2, 7, 11])
def test_few_matches_are_a_readable_rejection(count: int) -> None:
    matches, _ = make_matches("general", 30, 0)
    few = matches.select(np.arange(count))
    verified = verify_matches(few, make_view("i", True), make_view("j", True), CONFIG)
    assert verified.rejected == f"{count} matches on the object, fewer than 12"
    assert len(verified.matches) == count
    relaxed = verify_matches(few, make_view("i", True), make_view("j", True), replace(CONFIG, min_matches=0))
    assert relaxed.rejected is not None or count >= 8


def test_coinciding_and_collinear_matches_do_not_crash() -> None:
    ones = np.ones(50, np.float32)
    same = PairMatches(np.full((50, 2), 40, np.float32), np.full((50, 2), 60, np.float32), ones)
    line = np.stack([np.linspace(10, 200, 50), np.full(50, 30)], 1).astype(np.float32)
    for matches in (same, PairMatches(line, line[::-1].copy(), ones)):
        for known in (True, False):
            verified = verify_matches(matches, make_view("i", known), make_view("j", known), CONFIG)
            assert 0 <= verified.score <= 1


def test_low_overlap_and_low_confidence_are_told() -> None:
    matches, _ = make_matches("general", 400, 0)
    corner = (matches.xy_i < 90).all(1)
    local = matches.select(corner)
    assert len(local) > 15
    view_i, view_j = make_view("i", True), make_view("j", True)
    verified = verify_matches(local, view_i, view_j, replace(CONFIG, min_coverage=0.5))
    assert verified.rejected is not None
    assert verified.rejected.startswith("low overlap: matches reach")
    verified = verify_matches(matches, view_i, view_j, replace(CONFIG, min_confidence=5.0))
    assert verified.rejected is not None
    assert verified.rejected.startswith("low confidence: median")
    assert len(verified.matches) > 300  # they stay for the report


def test_a_predictors_own_inliers_are_not_thinned() -> None:
    matches, _ = make_matches("general", 200, 0, noise=2.0)  # noisier than our limit, good for the predictor's
    view_i, view_j = make_view("i", True), make_view("j", True)
    assert len(verify_matches(matches, view_i, view_j, CONFIG).matches) < 200
    kept = verify_matches(matches, view_i, view_j, CONFIG, from_predictor=True)
    assert (len(kept.matches), kept.model, kept.rejected) == (200, "predictor", None)
    raw, right = make_matches("general", 200, 0.6)  # matches that nobody verified
    thinned = verify_matches(raw, view_i, view_j, CONFIG, from_predictor=True)
    assert thinned.model == "essential"
    assert len(thinned.matches) < 1.2 * right.sum()


def test_deterministic_and_blind_to_the_order_of_views() -> None:
    matches, _ = make_matches("general", 500, 0.5)
    view_i, view_j = make_view("i", False), make_view("j", False)
    first, second = (verify_matches(matches, view_i, view_j, CONFIG) for _ in range(2))
    np.testing.assert_array_equal(first.matches.xy_i, second.matches.xy_i)
    assert first.score == second.score
    swapped = verify_matches(matches.swap(), view_j, view_i, CONFIG)
    assert swapped.score == pytest.approx(first.score, abs=0.02)


def test_the_score_rises_with_each_of_its_parts() -> None:
    assert pair_score(1, 10**9, 1) == pytest.approx(1)
    assert pair_score(0.5, 100, 0.5) < min(
        pair_score(0.6, 100, 0.5), pair_score(0.5, 110, 0.5), pair_score(0.5, 100, 0.6)
    )
    assert pair_score(1, 0, 0) == 0


def test_coverage_counts_foreground_only() -> None:
    mask = np.zeros((100, 100), bool)
    mask[:40, :40] = True
    mask[90:, 90:] = True
    assert coverage(mask, np.array([[5.0, 5.0]])) == pytest.approx(32 * 32 / 1700)
    assert coverage(mask, np.array([[5.0, 5.0], [95, 95], [60, 60]])) == pytest.approx((1024 + 36 + 64) / 1700)
    assert coverage(mask, np.zeros((0, 2))) == 0
    assert coverage(np.zeros((10, 10), bool), np.zeros((1, 2))) == 0


def test_distances_are_pixels() -> None:
    sideways = np.array([[0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # epipolar lines are image rows
    xy = np.array([[10.0, 20.0]])
    np.testing.assert_allclose(sampson_px(sideways, xy, xy + np.array([50, 3])), 3 / np.sqrt(2))
    shift = np.array([[1, 0, 5.0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(transfer_px(shift, xy, xy + np.array([5, 3])), 3)
