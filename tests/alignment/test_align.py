"""Both stages together on small scenes of exact geometry: good input, degenerate input, wrong input, known cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from alignment_scenes import (
    EXACT,
    FOCAL,
    MILD,
    SIZE,
    Case,
    assert_sound,
    build_scene,
    complete,
    look_at,
    make_case,
    ring,
    ring_case,
    rotation_errors,
    same_intrinsics,
)

from sparse_ga.alignment.components import about_groups
from sparse_ga.alignment.inputs import Inputs
from sparse_ga.alignment.intrinsics import camera_groups
from sparse_ga.alignment.refine2d import _solve_once, refine_views
from sparse_ga.alignment.resection import _pose, _Sightings
from sparse_ga.config import Align3dConfig, Refine2dConfig, TriangulateConfig
from sparse_ga.evaluation import relative_errors_deg
from sparse_ga.geometry import cameras, transforms
from sparse_ga.products import Alignment, Array, PairMatches, PairPrediction, VerifiedMatches, View
from sparse_ga.synthetic.oracle import OracleNoise, OraclePredictor
from sparse_ga.triangulation.sparse import MatchedPairs, SparseResult, solve_sparse
from sparse_ga.triangulation.views import Rig

NOTHING = VerifiedMatches(PairMatches.empty(), 0.0, "none", "no matches")


def test_exact_predictions_give_exact_cameras() -> None:
    case = ring_case(5, EXACT)
    _, coarse = case.align()
    refined = case.refine()
    for alignment, turn, focal in ((coarse, 0.05, 2e-3), (refined, 0.02, 1e-3)):
        assert_sound(alignment)
        assert alignment.registered.all()
        rotation, direction = relative_errors_deg(alignment.world_from_cam, case.scene.world_from_cam)
        assert max(rotation.max(), direction.max()) < turn
        np.testing.assert_allclose(alignment.intrinsics[:, 0, 0], FOCAL, rtol=focal)
    assert refined.status == "ok"


@pytest.mark.slow
def test_noisy_predictions_are_refined_far_below_their_noise() -> None:
    case = ring_case(6, MILD)
    _, coarse = case.align()
    refined = case.refine()
    assert refined.registered.all()
    assert rotation_errors(refined, case.scene).max() < 1.0
    rotation, direction = relative_errors_deg(refined.world_from_cam, case.scene.world_from_cam)
    assert max(rotation.max(), direction.max()) < 1.5
    np.testing.assert_allclose(refined.intrinsics[:, 0, 0], FOCAL, rtol=0.01)
    assert len(refined.residual_history) > 2
    assert (refined.uncertainty_deg > 0.01).all()
    assert (refined.uncertainty_deg < 1.0).all()
    assert rotation_errors(coarse, case.scene).max() < 5.0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "spacing"), [(SIZE, 6), ((384, 288), 12)])
def test_uncertainties_are_those_of_the_errors(size: tuple[int, int], spacing: int) -> None:
    ratios = []
    for seed in range(4):
        scene = build_scene(ring(6), same_intrinsics(6, FOCAL * size[0] / SIZE[0], size), size, seed)
        refined = make_case(scene, complete(6), spacing=spacing, seed=seed).refine()
        turn = scene.world_from_cam[:, :3, :3] @ np.swapaxes(refined.world_from_cam[:, :3, :3], 1, 2)
        common = transforms.nearest_rotation(turn.mean(0))  # uncertainties are in the gauge that all views share
        error = transforms.rotation_angle_deg(common.T @ turn)
        ratios.append(error / refined.uncertainty_deg)
    assert 0.6 < np.sqrt(np.mean(np.square(ratios))) < 1.5


def test_the_gauge_is_the_first_view_and_median_depth_one() -> None:
    case = ring_case(5, EXACT)
    for alignment in (case.align()[1], case.refine()):
        np.testing.assert_array_equal(alignment.world_from_cam[0], np.eye(4))
        assert np.median(alignment.anchor_depth) == pytest.approx(1.0)
        assert not alignment.metric_frame


def test_anchor_depths_are_those_of_the_scene() -> None:
    case = ring_case(5, EXACT)
    canonical, _ = case.align()
    refined = case.refine()
    truth = [case.scene.depth[n][view.anchor_xy[:, 1], view.anchor_xy[:, 0]] for n, view in enumerate(canonical)]
    ratio = refined.anchor_depth / np.concatenate(truth)
    inner = np.abs(ratio / np.median(ratio) - 1)
    assert np.median(inner) < 1e-3
    assert np.quantile(inner, 0.75) < 5e-3  # matches between pixels shift anchors on steep slopes


@pytest.mark.parametrize("tree", ["mst", "hierarchical"])
def test_either_tree_ends_in_the_same_place(tree: str) -> None:
    case = ring_case(6, MILD)
    refined = case.refine(coarse=replace(Align3dConfig(), tree=tree))
    assert rotation_errors(refined, case.scene).max() < 1.0


def test_same_input_same_bytes() -> None:
    case = ring_case(4, MILD)
    first, second = case.refine(), case.refine()
    for name in ("world_from_cam", "intrinsics", "anchor_depth", "residual_history", "uncertainty_deg"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_units_of_the_predictions_do_not_matter() -> None:
    case = ring_case(4, MILD)
    rng = np.random.default_rng(0)

    def scaled(prediction: PairPrediction) -> PairPrediction:
        a, b = np.exp(rng.normal(size=2) * 3).astype(np.float32)
        maps = {"i_in_i": a, "j_in_i": a, "j_in_j": b, "i_in_j": b}
        grown = {
            name: replace(getattr(prediction, name), points=getattr(prediction, name).points * s)
            for name, s in maps.items()
        }
        return replace(prediction, **grown)

    other = replace(case, predictions=tuple(scaled(prediction) for prediction in case.predictions))
    np.testing.assert_allclose(other.refine().world_from_cam, case.refine().world_from_cam, atol=2e-3)


def test_pairs_may_come_in_any_order_and_direction() -> None:
    case = ring_case(4, MILD)
    flipped = [
        PairPrediction(p.j_in_j, p.i_in_j, p.i_in_i, p.j_in_i, None) if k % 2 else p
        for k, p in enumerate(case.predictions)
    ]
    pairs = [pair[::-1] if k % 2 else pair for k, pair in enumerate(case.pairs)]
    matches = [replace(m, matches=m.matches.swap()) if k % 2 else m for k, m in enumerate(case.matches)]
    order = [3, 0, 5, 1, 4, 2]
    other = Case(
        case.scene,
        case.views,
        tuple(pairs[k] for k in order),
        tuple(flipped[k] for k in order),
        tuple(matches[k] for k in order),
    )
    np.testing.assert_allclose(other.refine().world_from_cam, case.refine().world_from_cam, atol=5e-3)


# Too little to work with


def test_no_views_no_pairs_and_one_view_are_reported() -> None:
    case = ring_case(4, MILD)
    nobody = Case(build_scene(np.zeros((0, 4, 4)), np.zeros((0, 3, 3))), (), (), (), ())
    lonely = Case(case.scene, case.views[:1], (), (), ())
    for bare in (nobody, lonely, replace(case, pairs=(), predictions=(), matches=())):
        alignment = bare.refine()
        assert_sound(alignment)
        assert alignment.status.startswith("failed")
        assert not alignment.registered.any()


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_two_views_with_hardly_a_match_are_not_registered(kept: int) -> None:
    case = ring_case(4, MILD)
    few = VerifiedMatches(case.matches[0].matches.select(np.arange(kept)), 0.5, "predictor")
    alignment = Case(case.scene, case.views, case.pairs[:1], case.predictions[:1], (few,)).refine()
    assert_sound(alignment)
    assert not alignment.registered.any()
    assert "matches" in alignment.reasons[0]


def test_two_views_with_matches_are_registered() -> None:
    case = ring_case(6, MILD)
    alignment = Case(case.scene, case.views[:2], case.pairs[:1], case.predictions[:1], case.matches[:1]).refine()
    assert_sound(alignment)
    assert alignment.registered.all()
    rotation, _ = relative_errors_deg(alignment.world_from_cam, case.scene.world_from_cam[:2])
    assert rotation.max() < 5.0


def test_rejected_pairs_take_no_part_and_are_named() -> None:
    case = ring_case(5, MILD)
    lonely = [k for k, pair in enumerate(case.pairs) if 4 in pair]
    for k in lonely:
        i, j = case.pairs[k]
        case = case.changed(k, PairPrediction.reject(case.views[i], case.views[j], "too dark"), NOTHING)
    alignment = case.refine()
    assert_sound(alignment)
    np.testing.assert_array_equal(alignment.registered, [True] * 4 + [False])
    assert "no matches" in alignment.reasons[4]
    assert len([text for text in alignment.dropped_pairs if "view_004" in text]) == len(lonely)


def test_failed_matching_cannot_place_a_view_whatever_its_point_maps_say() -> None:
    case = ring_case(5, MILD)
    for k, pair in enumerate(case.pairs):
        if 4 in pair:
            case = case.changed(k, matches=NOTHING)
    alignment = case.refine()
    np.testing.assert_array_equal(alignment.registered, [True] * 4 + [False])


def test_of_two_components_the_larger_is_registered() -> None:
    whole = ring_case(6, MILD)
    inside = [k for k, (i, j) in enumerate(whole.pairs) if (i < 4) == (j < 4)]
    pick = [tuple(getattr(whole, name)[k] for k in inside) for name in ("pairs", "predictions", "matches")]
    alignment = Case(whole.scene, whole.views, *pick).refine()
    assert_sound(alignment)
    np.testing.assert_array_equal(alignment.registered, [True] * 4 + [False] * 2)
    assert "view_005" in alignment.reasons[4]
    assert rotation_errors(alignment, whole.scene).max() < 2.0


def test_given_poses_choose_their_component_and_the_reason_says_so() -> None:
    whole = ring_case(6, MILD)
    inside = [k for k, (i, j) in enumerate(whole.pairs) if (i < 4) == (j < 4)]
    pick = [tuple(getattr(whole, name)[k] for k in inside) for name in ("pairs", "predictions", "matches")]
    case = with_poses(Case(whole.scene, whole.views, *pick), [4, 5])
    alignment = case.align()[1]
    np.testing.assert_array_equal(alignment.registered, [False] * 4 + [True] * 2)
    assert alignment.reasons[0].startswith("tied to no photograph with a given pose, with view_001")
    assert len(about_groups(alignment.reasons)) == 1
    assert not about_groups(whole.align()[1].reasons)


def test_given_poses_that_no_match_ties_to_others_do_not_cost_the_others() -> None:
    whole = ring_case(6, MILD)
    inside = [k for k, (i, j) in enumerate(whole.pairs) if i < 4 and j < 4]
    pick = [tuple(getattr(whole, name)[k] for k in inside) for name in ("pairs", "predictions", "matches")]
    case = with_poses(Case(whole.scene, whole.views, *pick), [4, 5])
    alignment = case.refine()
    assert_sound(alignment)
    np.testing.assert_array_equal(alignment.registered, [True] * 4 + [False] * 2)
    assert not alignment.metric_frame
    assert rotation_errors(alignment, whole.scene).max() < 2.0
    assert alignment.reasons[5] == "no match ties its given pose to another photograph"
    assert len(about_groups(alignment.reasons)) == 1


def test_given_poses_of_views_without_the_object_fix_nothing() -> None:
    case = with_poses(ring_case(6, MILD), [4, 5])
    blank = [replace(v, mask=np.zeros_like(v.mask)) if v.world_from_cam is not None else v for v in case.views]
    alignment = case.with_views(blank).refine()
    assert_sound(alignment)
    np.testing.assert_array_equal(alignment.registered, [True] * 4 + [False] * 2)
    assert not alignment.metric_frame
    assert alignment.reasons[5] == "the mask is empty"


def test_an_empty_mask_is_a_reason_not_a_crash() -> None:
    case = ring_case(5, MILD)
    blank = replace(case.views[2], mask=np.zeros_like(case.views[2].mask))
    alignment = case.with_views([blank if n == 2 else view for n, view in enumerate(case.views)]).refine()
    assert_sound(alignment)
    np.testing.assert_array_equal(alignment.registered, [True, True, False, True, True])
    assert alignment.reasons[2] == "the mask is empty"


# Degenerate motion


def test_duplicates_end_in_one_place() -> None:
    poses = ring(5)
    poses[3] = poses[2]
    scene = build_scene(poses, same_intrinsics(5))
    alignment = make_case(scene, complete(5)).refine()
    assert_sound(alignment)
    assert alignment.registered.all()
    assert rotation_errors(alignment, scene).max() < 1.5
    apart = np.linalg.norm(alignment.world_from_cam[3, :3, 3] - alignment.world_from_cam[2, :3, 3])
    assert apart < 0.02


def test_a_camera_that_only_turns_stays_in_its_place() -> None:
    place = ring(1)[0][:3, 3]
    aims = 0.12 * np.stack([np.cos(np.arange(5)), np.sin(np.arange(5)), np.sin(3 * np.arange(5))], -1)
    scene = build_scene(np.stack([look_at(place, aim, 15.0 * n) for n, aim in enumerate(aims)]), same_intrinsics(5))
    alignment = make_case(scene, complete(5)).refine()
    assert_sound(alignment)
    assert alignment.registered.all()
    assert rotation_errors(alignment, scene).max() < 1.5
    assert np.linalg.norm(alignment.world_from_cam[:, :3, 3], axis=-1).max() < 0.03


def test_all_views_the_same_leave_the_focal_length_where_the_rays_put_it() -> None:
    scene = build_scene(np.tile(ring(1), (4, 1, 1)), same_intrinsics(4))
    alignment = make_case(scene, complete(4)).refine()
    assert_sound(alignment)
    np.testing.assert_allclose(alignment.intrinsics[:, 0, 0], FOCAL, rtol=0.06)
    assert np.linalg.norm(alignment.world_from_cam[:, :3, 3], axis=-1).max() < 0.03


# Wrong input


def damaged(prediction: PairPrediction, seed: int) -> PairPrediction:
    """The prediction with NaN, infinite and negative depths sprinkled over it."""
    rng = np.random.default_rng(seed)

    def hurt(name: str) -> dict[str, object]:
        one = getattr(prediction, name)
        points = one.points.copy()
        points[rng.random(points.shape[:2]) < 0.05] = np.nan
        points[rng.random(points.shape[:2]) < 0.02] = np.inf
        points[rng.random(points.shape[:2]) < 0.02] *= -1
        return {name: replace(one, points=points)}

    maps = {**hurt("i_in_i"), **hurt("j_in_i"), **hurt("j_in_j"), **hurt("i_in_j")}
    return replace(prediction, **maps)


def test_nan_and_negative_depths_in_predictions_are_survived() -> None:
    case = ring_case(5, MILD)
    hurt = tuple(damaged(prediction, k) for k, prediction in enumerate(case.predictions))
    alignment = replace(case, predictions=hurt).refine()
    assert_sound(alignment)
    assert rotation_errors(alignment, case.scene).max() < 1.5


def test_zero_confidence_in_every_other_cross_pixel() -> None:
    case = ring_case(5, MILD)

    def thinned(prediction: PairPrediction) -> PairPrediction:
        maps = {}
        for name in ("j_in_i", "i_in_j"):
            confidence = getattr(prediction, name).confidence.copy()
            confidence[1::2], confidence[:, 1::2] = 0, 0
            maps[name] = replace(getattr(prediction, name), confidence=confidence)
        return replace(prediction, **maps)

    alignment = replace(case, predictions=tuple(map(thinned, case.predictions))).refine()
    assert alignment.registered.all()
    assert rotation_errors(alignment, case.scene).max() < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lookalike", pytest.param("shuffled", marks=pytest.mark.slow)])
def test_three_tenths_of_wrong_pairs_lose_at_most_one_view(kind: str) -> None:
    noise = replace(MILD, wrong_share=0.3, wrong_kind=kind)
    case = ring_case(8, noise)
    alignment = case.refine()
    assert_sound(alignment)
    assert alignment.registered.sum() >= 7
    assert rotation_errors(alignment, case.scene).max() < 5.0


class Symmetric(OraclePredictor):
    """The object looks the same from the other side: pairs far apart are seen as if one view were turned by 180."""

    limit_deg = 140.0

    def _is_far(self, i: int, j: int) -> bool:
        a, b = (self.scene.world_from_cam[n, :2, 3] for n in (i, j))
        return bool(a @ b < np.cos(np.radians(self.limit_deg)) * np.linalg.norm(a) * np.linalg.norm(b))

    def is_wrong(self, name_i: str, name_j: str) -> bool:
        """Far pairs are; see the base class."""
        return self._is_far(self._index[name_i], self._index[name_j])

    def _object_motion(self, i: int, j: int) -> Array:
        poses, turn = self.scene.world_from_cam, np.eye(4)
        if self._is_far(i, j):
            turn[:2, :2] *= -1
        return transforms.inverse(poses[i]) @ turn @ poses[j]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "expected"), [(8, 6), pytest.param(12, 13, marks=pytest.mark.slow)])
def test_sides_that_look_alike_do_not_fold_the_ring(count: int, expected: int) -> None:
    scene = build_scene(ring(count), same_intrinsics(count))
    case = make_case(scene, complete(count), predictor=Symmetric)
    oracle = Symmetric(scene, 0, MILD, "matches")
    wrong = [oracle.is_wrong(scene.names[i], scene.names[j]) for i, j in case.pairs]
    convincing = [w and m.rejected is None for w, m in zip(wrong, case.matches)]
    assert sum(convincing) >= expected
    alignment = case.refine()
    assert alignment.registered.all()
    assert rotation_errors(alignment, scene).max() < 5.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lookalike", "shuffled"])
def test_a_view_whose_pairs_are_all_wrong_is_not_invented(kind: str) -> None:
    noise = replace(MILD, wrong_share=1.0, wrong_kind=kind)
    good, wrong = ring_case(6, MILD), ring_case(6, noise)
    case = good
    for k, pair in enumerate(good.pairs):
        if 5 in pair:
            case = case.changed(k, wrong.predictions[k], wrong.matches[k])
    assert sum(5 in pair and m.rejected is None for pair, m in zip(case.pairs, case.matches)) >= 3
    alignment = case.refine()
    assert_sound(alignment)
    np.testing.assert_array_equal(alignment.registered, [True] * 5 + [False])
    assert rotation_errors(alignment, case.scene).max() < 1.5


@pytest.mark.slow
def test_wrong_point_maps_with_right_matches_do_no_harm() -> None:
    good, wrong = ring_case(6, MILD), ring_case(6, replace(MILD, wrong_share=1.0))
    case = good
    for k in (0, 4, 9):
        case = case.changed(k, prediction=wrong.predictions[k])
    alignment = case.refine()
    assert alignment.registered.all()
    assert rotation_errors(alignment, case.scene).max() < 1.5


def test_dropped_pairs_that_fit_come_back() -> None:
    case = ring_case(5, MILD)
    canonical, coarse = case.align()
    text = "view_000.png | view_001.png | a mistake"
    refined = refine_views(
        case.views,
        canonical,
        replace(coarse, dropped_pairs=(text,)),
        case.pairs,
        case.matches.__getitem__,
        Refine2dConfig(),
    )
    assert text not in refined.dropped_pairs


@pytest.mark.slow
def test_unregistered_views_are_placed_by_the_refined_points() -> None:
    case = ring_case(6, MILD)
    canonical, coarse = case.align()
    missing = replace(
        coarse,
        registered=np.arange(6) != 3,
        reasons=tuple("lost" if n == 3 else "" for n in range(6)),
        world_from_cam=np.where((np.arange(6) == 3)[:, None, None], np.eye(4), coarse.world_from_cam),
    )
    refined = refine_views(case.views, canonical, missing, case.pairs, case.matches.__getitem__, Refine2dConfig())
    assert_sound(refined)
    assert refined.registered.all()
    assert rotation_errors(refined, case.scene).max() < 1.5
    np.testing.assert_allclose(refined.intrinsics[:, 0, 0], refined.intrinsics[0, 0, 0], rtol=1e-9)  # one camera, one f


@pytest.mark.slow
def test_pairs_of_a_placed_view_are_no_longer_dropped() -> None:
    case = ring_case(6, MILD)
    canonical, coarse = case.align()
    of_the_view = [f"view_{i:03d}.png | view_{j:03d}.png | a mistake" for i, j in case.pairs if 3 in (i, j)]
    missing = replace(
        coarse,
        registered=np.arange(6) != 3,
        reasons=tuple("lost" if n == 3 else "" for n in range(6)),
        world_from_cam=np.where((np.arange(6) == 3)[:, None, None], np.eye(4), coarse.world_from_cam),
        dropped_pairs=(*coarse.dropped_pairs, *of_the_view),
    )
    refined = refine_views(case.views, canonical, missing, case.pairs, case.matches.__getitem__, Refine2dConfig())
    assert refined.registered.all()
    assert not set(of_the_view) & set(refined.dropped_pairs)


@pytest.mark.slow
def test_what_rejected_pairs_of_a_placed_view_still_hold_takes_no_part() -> None:
    case = ring_case(8, MILD)
    canonical, coarse = case.align()
    missing = replace(
        coarse,
        registered=np.arange(8) != 7,
        reasons=tuple("lost" if n == 7 else "" for n in range(8)),
        world_from_cam=np.where((np.arange(8) == 7)[:, None, None], np.eye(4), coarse.world_from_cam),
        dropped_pairs=tuple(f"view_{i:03d}.png | view_{j:03d}.png | lost" for i, j in case.pairs if j == 7),
    )
    refined = []
    for kept in (True, False):
        matches = list(case.matches)
        for k, (i, j) in enumerate(case.pairs):
            if j == 7 and 1 <= i <= 5:  # kept for the report, all of them 9 px off
                wrong = replace(matches[k].matches, xy_j=matches[k].matches.xy_j + np.float32(9))
                matches[k] = VerifiedMatches(wrong if kept else PairMatches.empty(), 0.0, "none", "less than 20% agree")
        refined.append(refine_views(case.views, canonical, missing, case.pairs, matches.__getitem__, Refine2dConfig()))
    assert refined[0].registered.all()
    np.testing.assert_array_equal(refined[0].world_from_cam, refined[1].world_from_cam)
    assert refined[0].match_cost == refined[1].match_cost


# Intrinsics


@pytest.mark.slow
@pytest.mark.parametrize(
    "factor", [pytest.param(0.7, marks=pytest.mark.slow), 4.0, pytest.param(8.0, marks=pytest.mark.slow)]
)
def test_short_and_long_focal_lengths(factor: float) -> None:
    focal = factor * 192
    case = ring_case(6, MILD, focal)
    alignment = case.refine()
    assert_sound(alignment)
    assert alignment.registered.all()
    assert rotation_errors(alignment, case.scene).max() < 2.0
    np.testing.assert_allclose(alignment.intrinsics[:, 0, 0], focal, rtol=0.03 if factor < 2 else 0.1)


def with_intrinsics(case: Case, source: str, factor: float = 1.0) -> Case:
    """The case with the true intrinsics, their focal length times `factor`, on every view."""
    scale = np.diag([factor, factor, 1.0])
    centred = [k.copy() for k in case.scene.intrinsics]
    for k in centred:
        k[:2, :2] = k[:2, :2] @ scale[:2, :2]
    return case.with_views(
        [replace(view, intrinsics=k, intrinsics_source=source) for view, k in zip(case.views, centred)]
    )


@pytest.mark.slow
def test_given_intrinsics_are_held_to_the_last_bit_unless_told_otherwise() -> None:
    case = with_intrinsics(ring_case(5, MILD), "given", 1.05)
    held = case.refine()
    for view, k in zip(case.views, held.intrinsics):
        np.testing.assert_array_equal(k, view.intrinsics)
    released = case.refine(Refine2dConfig(hold_given_intrinsics=False))
    np.testing.assert_allclose(released.intrinsics[:, 0, 0], FOCAL, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["exif", "unknown"])
def test_estimated_intrinsics_are_a_start(source: str) -> None:
    case = with_intrinsics(ring_case(6, MILD), source, 1.08)
    np.testing.assert_allclose(case.refine().intrinsics[:, 0, 0], FOCAL, rtol=0.02)
    fixed = case.refine(Refine2dConfig(optimize_focal=False))
    np.testing.assert_allclose(fixed.intrinsics[:, 0, 0], 1.08 * FOCAL)


def test_views_of_one_camera_share_it_and_cameras_differ() -> None:
    focals = np.array([240.0, 240, 240, 320, 320, 320])
    poses = np.stack([transforms.make(p[:3, :3], p[:3, 3] * f / FOCAL) for p, f in zip(ring(6), focals)])
    intrinsics = np.stack([cameras.make_intrinsics(f, np.array([95.5, 71.5])) for f in focals])
    case = make_case(build_scene(poses, intrinsics), complete(6))
    named = case.with_views([replace(view, camera="ab"[n // 3]) for n, view in enumerate(case.views)])
    refined = named.refine()
    assert rotation_errors(refined, case.scene).max() < 1.5
    found = refined.intrinsics[:, 0, 0]
    assert len(np.unique(found)) == 2
    np.testing.assert_allclose(found, focals, rtol=0.02)


def adjusted(case: Case, config: Refine2dConfig | None = None) -> Rig:
    """The cameras after both stages and the bundle adjustment."""
    refined = case.refine(config)
    return adjusted_sparse(case, refined).rig


def adjusted_sparse(case: Case, refined: Alignment) -> SparseResult:
    """What the bundle adjustment makes of an alignment."""
    matched = MatchedPairs(case.pairs, case.matches.__getitem__)
    return solve_sparse(case.views, refined, matched, TriangulateConfig())


@pytest.mark.slow
def test_focal_lengths_that_are_not_to_be_refined_are_not_adjusted_either() -> None:
    case = with_intrinsics(ring_case(6, MILD), "exif", 1.05)
    np.testing.assert_array_equal(
        adjusted(case, Refine2dConfig(optimize_focal=False)).intrinsics, np.stack([v.intrinsics for v in case.views])
    )
    np.testing.assert_allclose(adjusted(case).intrinsics[:, 0, 0], FOCAL, rtol=0.02)


@pytest.mark.slow
def test_the_camera_given_with_one_photograph_is_that_of_all() -> None:
    """Whatever else is known of the others, and whether or not the one that it is given with takes part."""
    case = with_intrinsics(ring_case(6, MILD), "unknown", 1.05)
    given = case.scene.intrinsics[0] * np.array([[1.01, 1, 1], [1, 1.01, 1], [1, 1, 1]])
    given[:2, 2] += (2.0, -1.0)
    for n, others in ((0, case.views), (3, ring_case(6, MILD).views)):
        views = [replace(v, intrinsics=given, intrinsics_source="given") if k == n else v for k, v in enumerate(others)]
        rig = adjusted(case.with_views(views))
        np.testing.assert_allclose(rig.intrinsics, np.tile(given, (6, 1, 1)), rtol=1e-12)
        assert rig.held_intrinsics.all()
    alone = camera_groups(views).among(np.array([1, 2]))
    assert (alone.source, alone.of_view.tolist()) == (("given",), [0, 0])


@pytest.mark.slow
def test_the_best_known_focal_length_is_that_of_the_camera() -> None:
    case = turned_case()
    exif = cameras.make_intrinsics(250.0, np.array([95.5, 71.5]))
    views = [replace(v, intrinsics=exif, intrinsics_source="exif") if n == 2 else v for n, v in enumerate(case.views)]
    off = views[5].principal_point + 3
    views[5] = replace(views[5], intrinsics=cameras.make_intrinsics(270.0, off))
    start = case.with_views(views).align()[1].intrinsics
    np.testing.assert_allclose(start[:, 0, 0], 250.0)
    np.testing.assert_allclose(start[5, :2, 2], off)
    views[4] = replace(views[4], intrinsics=np.diag([240.0, 230, 1]), intrinsics_source="given")
    start = case.with_views(views).align()[1].intrinsics
    np.testing.assert_allclose(start[::2], np.tile(np.diag([240.0, 230, 1]), (4, 1, 1)))
    np.testing.assert_allclose(start[1::2, [0, 1], [0, 1]], np.tile([230.0, 240], (4, 1)))  # turned
    assert camera_groups(views).source == ("given",)


def rounds(case: Case, config: Refine2dConfig, count: int) -> list[Alignment]:
    """The solutions of `count` rounds one after another, as if a pair had been dropped in every one."""
    canonical, current = case.align()
    inputs = Inputs(case.views, canonical, case.pairs, case.matches.__getitem__, config, current.intrinsics)
    result = []
    for _ in range(count):
        current = _solve_once(inputs, current, np.zeros(len(case.pairs), bool))
        result.append(current)
    return result


@pytest.mark.slow
def test_priors_mean_the_same_however_many_rounds_there_are() -> None:
    """Given values that are wrong, and believed: the first round goes as far from them as all rounds may."""
    case = with_intrinsics(ring_case(6, MILD), "exif", 1.3)
    focal = [one.intrinsics[0, 0, 0] for one in rounds(case, Refine2dConfig(exif_focal_percent=0.3), 4)]
    np.testing.assert_allclose(focal[1:], focal[0], rtol=0.01)

    posed = with_poses(ring_case(6, MILD), list(range(6)))
    wrong = posed.views[3].world_from_cam.copy()
    wrong[:3] = transforms.exp_so3(np.radians([0, 0, 4.0])) @ wrong[:3]
    posed = posed.with_views([replace(v, world_from_cam=wrong) if n == 3 else v for n, v in enumerate(posed.views)])
    found = rounds(posed, Refine2dConfig(hold_given_poses=False, pose_prior_deg=0.02), 4)
    turn = [transforms.rotation_angle_deg(wrong[:3, :3].T @ one.world_from_cam[3, :3, :3]) for one in found]
    np.testing.assert_allclose(turn[1:], turn[0], rtol=0.1)

    config = Refine2dConfig(principal_point="free", principal_point_percent=0.05)
    centre = [one.intrinsics[0, :2, 2] for one in rounds(offset_case(roll=True), config, 3)]
    np.testing.assert_allclose(centre[1:], np.tile(centre[0], (2, 1)), atol=0.1)
    assert np.linalg.norm(centre[0] - [95.5, 71.5]) > 0.5


@pytest.mark.slow
def test_a_principal_point_that_was_freed_stays_free_and_is_that_of_views_placed_later() -> None:
    case = offset_case(roll=True)
    first, second = rounds(case, Refine2dConfig(), 2)
    np.testing.assert_allclose(second.intrinsics, first.intrinsics, atol=0.3)
    canonical, coarse = case.align()
    missing = replace(coarse, registered=np.arange(8) != 3)
    inputs = Inputs(case.views, canonical, case.pairs, case.matches.__getitem__, Refine2dConfig(), coarse.intrinsics)
    solved = _solve_once(inputs, missing, np.zeros(len(case.pairs), bool))
    np.testing.assert_allclose(solved.intrinsics, np.tile(solved.intrinsics[0], (8, 1, 1)), rtol=1e-12)
    assert np.linalg.norm(solved.intrinsics[3, :2, 2] - [95.5, 71.5]) > 5


def offset_case(roll: bool) -> Case:
    """A ring whose principal point is 12 px off the centre, unknown to the views; every other camera upside down."""
    poses = ring(8)
    if roll:
        poses[1::2] = poses[1::2] @ transforms.make(transforms.exp_so3(np.array([0, 0, np.pi])), np.zeros(3))
    intrinsics = same_intrinsics(8)
    intrinsics[:, :2, 2] += np.array([7.0, -4.0])
    noise = replace(MILD, match_px=0.3)
    return make_case(build_scene(poses, intrinsics), complete(8), noise, spacing=4)


@pytest.mark.slow
def test_the_principal_point_moves_where_the_matches_insist() -> None:
    case = offset_case(roll=True)
    moved, fixed = case.refine(), case.refine(Refine2dConfig(principal_point="fixed"))
    np.testing.assert_array_equal(fixed.intrinsics[:, :2, 2], np.tile([95.5, 71.5], (8, 1)))
    np.testing.assert_allclose(moved.intrinsics[:, :2, 2], case.scene.intrinsics[:, :2, 2], atol=1.5)
    assert rotation_errors(moved, case.scene).max() < 0.4 * rotation_errors(fixed, case.scene).max()


@pytest.mark.parametrize("count", [6, pytest.param(8, marks=pytest.mark.slow)])
def test_the_principal_point_stays_where_nothing_is_wrong_with_it(count: int) -> None:
    refined = ring_case(count, MILD).refine()
    np.testing.assert_array_equal(refined.intrinsics[:, :2, 2], np.tile([95.5, 71.5], (count, 1)))


def test_exact_matches_with_a_few_that_are_not_do_not_move_the_principal_point() -> None:
    noise = replace(MILD, match_px=0.0)  # what is left are rounded pixels at depth edges
    case = make_case(build_scene(ring(6), same_intrinsics(6), seed=8), complete(6), noise, seed=8)
    refined = case.refine()
    np.testing.assert_array_equal(refined.intrinsics[:, :2, 2], np.tile([95.5, 71.5], (6, 1)))
    assert rotation_errors(refined, case.scene).max() < 0.1


def turned_case(
    offset: tuple[float, float] = (0.0, 0.0), match_px: float = 0.7, quarters: Sequence[int] = (0, 1, 2, 3, 0, 1, 2, 3)
) -> Case:
    """A ring of one camera, turned by `quarters` of a turn; principal points off in the photographs."""
    count = len(quarters)
    poses, depths = ring(count), []
    turn = np.array(quarters)[:, None] * np.array([0, 0, np.pi / 2])
    poses = poses @ transforms.make(transforms.exp_so3(turn), np.zeros((count, 3)))
    sizes = [SIZE if quarter % 2 == 0 else SIZE[::-1] for quarter in quarters]
    intrinsics = np.concatenate([same_intrinsics(1, size=size) for size in sizes])
    intrinsics[:, :2, 2] += np.array(offset)
    for pose, k, size in zip(poses, intrinsics, sizes):
        depths.append(build_scene(pose[None], k[None], size))
    whole = build_scene(poses, intrinsics)
    scene = replace(
        whole,
        images=tuple(one.images[0] for one in depths),
        masks=tuple(one.masks[0] for one in depths),
        depth=tuple(one.depth[0] for one in depths),
        background_depth=tuple(one.background_depth[0] for one in depths),
        cameras=replace(whole.cameras, sizes=tuple(sizes)),
    )
    return make_case(scene, complete(count), replace(MILD, match_px=match_px), spacing=4 if match_px < 0.5 else 6)


@pytest.mark.slow
def test_upright_and_turned_photographs_of_a_camera_share_its_focal_length() -> None:
    case = turned_case()
    for alignment in (case.align()[1], case.refine()):
        assert_sound(alignment)
        assert alignment.registered.all()
        focal = alignment.intrinsics[:, 0, 0]
        np.testing.assert_array_equal(focal, focal[0])
    assert focal[0] == pytest.approx(FOCAL, rel=0.01)
    np.testing.assert_array_equal(alignment.intrinsics[:, :2, 2], case.scene.intrinsics[:, :2, 2])
    assert rotation_errors(alignment, case.scene).max() < 1.0
    rig = adjusted(case)
    np.testing.assert_array_equal(rig.sensor, 0)
    np.testing.assert_allclose(rig.intrinsics[:, 0, 0], rig.intrinsics[0, 0, 0], rtol=1e-12)
    np.testing.assert_array_equal(rig.intrinsics[:, :2, 2], case.scene.intrinsics[:, :2, 2])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "free"])
def test_upright_and_turned_photographs_have_their_own_principal_points(mode: str) -> None:
    case = turned_case((7.0, -4.0), 0.3)
    refined = case.refine(Refine2dConfig(principal_point=mode))
    np.testing.assert_allclose(refined.intrinsics[:, :2, 2], case.scene.intrinsics[:, :2, 2], atol=2.0)
    assert rotation_errors(refined, case.scene).max() < 0.6


def test_a_single_turned_photograph_shares_the_focal_length_and_gets_a_principal_point_of_its_own() -> None:
    """Its own matches could never show that the camera is off centre: it goes along with the others."""
    case = turned_case((9.0, -7.0), quarters=(0, 2, 0, 2, 1, 2, 0, 2, 0, 2))
    refined = case.refine()
    assert refined.registered.all()
    np.testing.assert_array_equal(refined.intrinsics[:, 0, 0], refined.intrinsics[0, 0, 0])
    np.testing.assert_allclose(refined.intrinsics[:, :2, 2], case.scene.intrinsics[:, :2, 2], atol=2.0)
    assert rotation_errors(refined, case.scene).max() < 0.6


@pytest.mark.slow
def test_a_known_principal_point_off_the_centre_is_honoured() -> None:
    intrinsics = same_intrinsics(6)
    intrinsics[:, :2, 2] += np.array([20.0, -12.0])
    case = make_case(build_scene(ring(6), intrinsics), complete(6))
    # The photograph was larger; the crop moved its centre off the middle of the working image.
    crop = np.array([[1, 0, -40.0], [0, 1, 0], [0, 0, 1]])
    cropped = [replace(view, working_from_source=crop, source_size=(312, 120)) for view in case.views]
    np.testing.assert_allclose(cropped[0].principal_point, intrinsics[0, :2, 2])
    refined = case.with_views(cropped).refine()
    np.testing.assert_allclose(refined.intrinsics[:, :2, 2], intrinsics[:, :2, 2])
    np.testing.assert_allclose(refined.intrinsics[:, 0, 0], FOCAL, rtol=0.015)
    assert rotation_errors(refined, case.scene).max() < 1.5


# Known poses


def with_poses(case: Case, which: list[int], error_deg: float = 0.0) -> Case:
    """The case with true poses given for some views, each off by about `error_deg`."""
    rng = np.random.default_rng(0)
    views: list[View] = []
    for n, view in enumerate(case.views):
        wrong = transforms.make(
            transforms.exp_so3(rng.normal(size=3) * np.radians(error_deg)), 0.02 * error_deg * rng.normal(size=3)
        )
        views.append(replace(view, world_from_cam=case.scene.world_from_cam[n] @ wrong if n in which else None))
    return case.with_views(views)


@pytest.mark.slow
@pytest.mark.parametrize("which", [[1, 4], pytest.param([0, 1, 2, 3, 4, 5], marks=pytest.mark.slow)])
def test_given_poses_are_kept_and_fix_frame_and_scale(which: list[int]) -> None:
    case = with_poses(ring_case(6, MILD), which)
    for alignment in (case.align()[1], case.refine()):
        assert_sound(alignment)
        assert alignment.registered.all()
        assert alignment.metric_frame
        np.testing.assert_array_equal(alignment.world_from_cam[which], case.scene.world_from_cam[which])
    np.testing.assert_allclose(alignment.world_from_cam, case.scene.world_from_cam, atol=0.03)
    of_anchor = np.repeat(np.arange(6), np.diff(alignment.anchor_start))
    true_depth = [np.median(depth[depth > 0]) for depth in case.scene.depth]
    for n in range(6):
        assert np.median(alignment.anchor_depth[of_anchor == n]) == pytest.approx(true_depth[n], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [1, 3])
def test_the_size_is_about_right_where_only_one_given_pose_is_tied_to_the_others(alone: int) -> None:
    case = with_poses(ring_case(8, MILD), [0, alone])
    for k, pair in enumerate(case.pairs):
        if alone in pair:
            i, j = case.pairs[k]
            case = case.changed(k, PairPrediction.reject(case.views[i], case.views[j], "too dark"), NOTHING)
    alignment = case.align()[1]
    assert alignment.registered.all()
    others = [n for n in range(8) if n not in (0, alone)]
    found, true = (
        poses[others, :3, 3] - poses[0, :3, 3] for poses in (alignment.world_from_cam, case.scene.world_from_cam)
    )
    assert np.median(np.linalg.norm(found, axis=1) / np.linalg.norm(true, axis=1)) == pytest.approx(1.0, abs=0.08)


@pytest.mark.slow
def test_one_given_pose_places_the_frame_only() -> None:
    case = with_poses(ring_case(6, MILD), [2])
    for alignment in (case.align()[1], case.refine()):
        np.testing.assert_allclose(alignment.world_from_cam[2], case.scene.world_from_cam[2], atol=1e-12)
        assert not alignment.metric_frame
        assert np.median(alignment.anchor_depth) == pytest.approx(1.0)
    assert rotation_errors(alignment, case.scene).max() < 1.0


@pytest.mark.slow
def test_given_poses_as_a_prior_are_improved() -> None:
    case = with_poses(ring_case(6, MILD), list(range(6)), error_deg=1.0)
    start = replace(case.align()[1])
    refined = case.refine(Refine2dConfig(hold_given_poses=False))
    assert rotation_errors(refined, case.scene).max() < 0.5 * rotation_errors(start, case.scene).max()
    np.testing.assert_allclose(refined.world_from_cam, case.scene.world_from_cam, atol=0.1)


FEW_DIGITS = {
    "float32": lambda p: p.astype(np.float32),
    "6 decimals": lambda p: p.round(6),
    "4 decimals": lambda p: p.round(4),
}


@pytest.mark.slow
@pytest.mark.parametrize("digits", FEW_DIGITS)
def test_given_poses_of_few_digits_are_kept_to_the_last_bit_of_their_rotations(digits: str) -> None:
    whole = ring_case(8, MILD)
    case = whole.with_views(
        [replace(v, world_from_cam=FEW_DIGITS[digits](p)) for v, p in zip(whole.views, whole.scene.world_from_cam)]
    )
    given = np.array([view.world_from_cam for view in case.views])
    np.testing.assert_allclose(given, whole.scene.world_from_cam, atol=2e-4)
    refined = case.refine()
    for alignment in (case.align()[1], refined):
        assert_sound(alignment)
        np.testing.assert_array_equal(alignment.world_from_cam, given)
    solved = adjusted_sparse(case, refined)
    assert solved.adjustment.status == "kept"  # the focal length is not given
    assert solved.rig.held_pose.all()
    np.testing.assert_array_equal(solved.rig.world_from_cam, given)


def test_one_given_pose_that_is_not_quite_a_rotation_leaves_rotations() -> None:
    whole = ring_case(5, MILD)
    pose = whole.scene.world_from_cam[2].copy()
    pose[:3, :3] *= 1.0004
    case = whole.with_views([replace(v, world_from_cam=pose) if n == 2 else v for n, v in enumerate(whole.views)])
    alignment = case.align()[1]
    assert_sound(alignment)
    np.testing.assert_array_equal(alignment.world_from_cam[2], case.views[2].world_from_cam)


@pytest.mark.slow
def test_the_unit_of_given_poses_does_not_matter() -> None:
    """A long ring that two given poses tie down at one place: the far side moves most when it is solved again."""
    count = 16
    pairs = [(i, j) for i in range(count) for j in range(i + 1, min(i + 3, count))]
    whole = make_case(build_scene(ring(count), same_intrinsics(count)), pairs, MILD)
    found = []
    for unit in (1.0, 1e3, 1e-3):
        poses = whole.scene.world_from_cam[:2].copy()
        poses[:, :3, 3] *= unit
        given = [replace(view, world_from_cam=pose) for view, pose in zip(whole.views, poses)]
        case = whole.with_views([*given, *whole.views[2:]])
        centres = case.align()[1].world_from_cam[:, :3, 3] / unit
        assert np.linalg.norm(centres - whole.scene.world_from_cam[:, :3, 3], axis=1).max() < 0.12
        found.append(centres)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_a_view_is_placed_in_a_maps_coordinates_as_well_as_near_the_origin() -> None:
    rng = np.random.default_rng(0)
    points, world_from_cam = 0.3 * rng.normal(size=(200, 3)), ring(8)[1]
    intrinsics = same_intrinsics(1)[0]
    xy, _ = cameras.project(intrinsics, transforms.apply(transforms.inverse(world_from_cam), points))
    xy = xy + 0.3 * rng.normal(size=xy.shape)
    for shift in (np.zeros(3), np.array([5e5, 4.5e6, 120.0])):
        found, valid = _pose(_Sightings(points + shift, xy, np.zeros(200, int)), intrinsics, 3.0)
        assert valid
        np.testing.assert_allclose(transforms.inverse(found)[:3, 3] - shift, world_from_cam[:3, 3], atol=0.01)


def test_given_poses_join_components_and_place_views_without_pairs() -> None:
    whole = ring_case(6, MILD)
    inside = [k for k, (i, j) in enumerate(whole.pairs) if 5 not in (i, j) and (i < 3) == (j < 3)]
    pick = [tuple(getattr(whole, name)[k] for k in inside) for name in ("pairs", "predictions", "matches")]
    case = with_poses(Case(whole.scene, whole.views, *pick), [0, 1, 3, 4, 5])
    alignment = case.refine()
    assert_sound(alignment)
    assert alignment.registered.all()
    np.testing.assert_allclose(alignment.world_from_cam, case.scene.world_from_cam, atol=0.05)
    depth = alignment.anchor_depth[alignment.anchor_start[5] :]
    assert np.median(depth) == pytest.approx(np.median(case.scene.depth[5][case.scene.masks[5]]), rel=0.25)


def test_everything_known_comes_back_unchanged() -> None:
    case = with_poses(with_intrinsics(ring_case(5, MILD), "given"), list(range(5)))
    refined = case.refine()
    np.testing.assert_array_equal(refined.world_from_cam, case.scene.world_from_cam)
    np.testing.assert_array_equal(refined.intrinsics, case.scene.intrinsics)


@pytest.mark.slow
def test_pairs_against_given_poses_are_dropped() -> None:
    good, wrong = ring_case(6, MILD), ring_case(6, replace(MILD, wrong_share=1.0))
    case = with_poses(good.changed(0, wrong.predictions[0], wrong.matches[0]), [0, 1])
    if wrong.matches[0].rejected is None:
        assert any(text.endswith("disagrees with the given poses") for text in case.align()[1].dropped_pairs)
    assert rotation_errors(case.refine(), case.scene).max() < 1.5


def test_noise_of_the_oracle_is_what_the_tests_think() -> None:
    assert OracleNoise(background="masked") == MILD
