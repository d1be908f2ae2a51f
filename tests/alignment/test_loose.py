"""Loosely tied views: out of a local minimum, and not moved without a reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from alignment_scenes import FOCAL, Case, build_scene, complete, make_case, ring, rotation_errors, same_intrinsics

from sparse_ga.alignment import loose, refine2d
from sparse_ga.alignment.inputs import Inputs
from sparse_ga.alignment.loose import reposition_loose_views
from sparse_ga.alignment.refine2d import refine_views
from sparse_ga.config import Refine2dConfig
from sparse_ga.geometry import transforms
from sparse_ga.products import Alignment, CanonicalView

COUNT, LONG = 5, 2.5 * FOCAL
LAST = COUNT - 1
NONE = np.zeros(2 * COUNT, bool)  # no pair is excluded


@pytest.fixture(scope="module")
def case() -> Case:
    """Five views through a long lens; 25 matches each tie the last one to the two before it."""
    scene = build_scene(ring(COUNT, 2.2 * LONG / FOCAL, arc_deg=100), same_intrinsics(COUNT, LONG))
    pairs = [pair for pair in complete(COUNT) if LAST not in pair or pair[0] >= LAST - 2]
    made = make_case(scene, pairs)
    for p, pair in enumerate(pairs):
        if LAST in pair:
            found = made.matches[p]
            few = found.matches.select(np.random.default_rng(0).permutation(len(found.matches))[:25])
            made = made.changed(p, matches=replace(found, matches=few))
    return made


@pytest.fixture(scope="module")
def turned(case: Case) -> tuple[list[CanonicalView], Alignment]:
    """The first stage's alignment, the last view turned about the object by 60 degrees to the wrong side."""
    canonical, alignment = case.align()
    poses = alignment.world_from_cam.copy()
    centre = np.array([0, 0, np.median(alignment.anchor_depth[: alignment.anchor_start[1]])])
    turn = transforms.exp_so3(np.radians(60) * poses[LAST, :3, 1])
    poses[LAST] = transforms.make(turn, centre - turn @ centre) @ poses[LAST]
    return canonical, replace(alignment, world_from_cam=poses)


def refined(case: Case, turned: tuple[list[CanonicalView], Alignment]) -> Alignment:
    return refine_views(case.views, *turned, case.pairs, case.matches.__getitem__, Refine2dConfig())


def test_a_view_on_the_wrong_side_of_its_neighbours_is_placed_anew(
    case: Case, turned: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = refined(case, turned)
    assert found.registered.all()
    assert rotation_errors(found, case.scene).max() < 1.0
    monkeypatch.setattr(refine2d, "reposition_loose_views", lambda alignment, *_: (alignment, False))
    stuck = refined(case, turned)  # else this test would test nothing
    assert stuck.registered.all()
    assert rotation_errors(stuck, case.scene).max() > 30
    assert stuck.match_cost > found.match_cost


def test_so_it_is_where_its_matches_are_few_among_many(case: Case, turned: tuple) -> None:
    """What a view's own matches say may hardly show in the cost of all."""
    crowded = case
    for p, pair in enumerate(case.pairs):
        if LAST not in pair:
            found = case.matches[p]
            many = found.matches.select(np.tile(np.arange(len(found.matches)), 8))
            crowded = crowded.changed(p, matches=replace(found, matches=many))
    assert rotation_errors(refined(crowded, turned), case.scene).max() < 1.0


def test_so_it_is_where_the_poses_of_the_others_are_given(case: Case, turned: tuple) -> None:
    canonical, alignment = turned
    truth, poses = case.scene.world_from_cam, alignment.world_from_cam.copy()
    world, found = transforms.similarity_from_points(truth[:LAST, :3, 3], poses[:LAST, :3, 3])
    assert found
    scale = np.cbrt(np.linalg.det(world[:3, :3]))
    poses = world @ poses
    poses[:, :3, :3] /= scale
    poses[:LAST] = truth[:LAST]
    posed = replace(alignment, world_from_cam=poses, anchor_depth=alignment.anchor_depth * scale, metric_frame=True)
    given = [view if n == LAST else replace(view, world_from_cam=truth[n]) for n, view in enumerate(case.views)]
    result = refined(case.with_views(given), (canonical, posed))
    np.testing.assert_array_equal(result.world_from_cam[:LAST], truth[:LAST])
    assert rotation_errors(result, case.scene).max() < 1.0


# ---------------------------------------------------------------- which views are tried, and what is taken


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Views that were placed anew, each at a hundredth of the cost before."""
    seen: list[int] = []

    def place(alignment: Alignment, inputs: Inputs, solve: loose.Solve, n: int) -> Alignment:
        seen.append(n)
        return replace(alignment, match_cost=alignment.match_cost / 100)

    monkeypatch.setattr(loose, "_placed_anew", place)
    monkeypatch.setattr(loose, "_own_cost", lambda alignment, *_: alignment.match_cost)
    return seen


def uncertain(case: Case, sigma_deg: list[float]) -> tuple[Alignment, Inputs]:
    canonical, alignment = case.align()
    inputs = Inputs(case.views, canonical, case.pairs, case.matches.__getitem__, Refine2dConfig(), alignment.intrinsics)
    return replace(alignment, uncertainty_deg=np.array(sigma_deg), match_cost=1.0), inputs


def nothing(alignment: Alignment) -> Alignment:
    raise AssertionError("no solution was asked for")


def test_the_loosest_go_first_and_none_twice(case: Case, trials: list[int]) -> None:
    alignment, inputs = uncertain(case, [0.2, 3.0, 0.3, 5.0, 1.0])
    tried: set[int] = {1}
    found, moved = reposition_loose_views(alignment, inputs, NONE, nothing, tried)
    assert trials == [3, 4]
    assert tried == {1, 3, 4}
    assert moved
    assert found.match_cost == pytest.approx(1e-4)
    assert reposition_loose_views(found, inputs, NONE, nothing, tried) == (found, False)


def test_what_all_views_share_is_no_reason(case: Case, trials: list[int]) -> None:
    alignment, inputs = uncertain(case, [5.0, 5.01, 5.0, 5.02, 5.0])
    assert reposition_loose_views(alignment, inputs, NONE, nothing, set()) == (alignment, False)
    assert trials == []


def test_given_poses_and_unregistered_views_stay(case: Case, trials: list[int]) -> None:
    alignment, inputs = uncertain(case, [0.2, 0.2, 4.0, 5.0, 6.0])
    alignment = replace(alignment, registered=np.arange(COUNT) != 3)
    views = [replace(view, world_from_cam=np.eye(4)) if n == 4 else view for n, view in enumerate(case.views)]
    reposition_loose_views(alignment, replace(inputs, views=views), NONE, nothing, set())
    assert trials == [2]


def test_of_two_photographs_neither_is_placed_anew(case: Case, trials: list[int]) -> None:
    alignment, inputs = uncertain(case, [0.2, 9.0, 0.0, 0.0, 0.0])
    reposition_loose_views(replace(alignment, registered=np.arange(COUNT) < 2), inputs, NONE, nothing, set())
    assert trials == []


@pytest.mark.parametrize(
    ("of_all", "own", "taken"), [(1.0, 0.5, True), (1.01, 0.5, False), (0.5, 0.95, False), (None, 0.5, False)]
)
def test_a_place_is_taken_where_the_view_fits_better_and_all_no_worse(
    case: Case, monkeypatch: pytest.MonkeyPatch, of_all: float | None, own: float, taken: bool
) -> None:
    alignment, inputs = uncertain(case, [0.2, 0.2, 0.2, 0.2, 4.0])
    trial = None if of_all is None else replace(alignment, match_cost=of_all)
    monkeypatch.setattr(loose, "_placed_anew", lambda *_: trial)
    monkeypatch.setattr(loose, "_own_cost", lambda of, *_: own if of is trial else 1.0)
    found, moved = reposition_loose_views(alignment, inputs, NONE, nothing, set())
    assert moved == taken
    assert found is (trial if taken else alignment)


def test_after_three_views_in_vain_no_more_are_tried(case: Case, trials: list[int]) -> None:
    alignment, inputs = uncertain(case, [0.2, 9.0, 8.0, 7.0, 6.0])
    reposition_loose_views(replace(alignment, match_cost=0.0), inputs, NONE, nothing, set())
    assert trials == [1, 2, 3]


def test_the_own_cost_is_that_of_the_views_pairs_that_count(case: Case) -> None:
    alignment, inputs = uncertain(case, [0.2] * COUNT)
    of_last = np.array([LAST in pair for pair in case.pairs], bool)
    both = loose._own_cost(alignment, inputs, np.zeros(len(case.pairs), bool), LAST)
    one = [loose._own_cost(alignment, inputs, np.arange(len(case.pairs)) == p, LAST) for p in np.flatnonzero(of_last)]
    assert both == pytest.approx(np.mean(one))  # as many matches in either
    assert 0 < both < 2.5
    assert loose._own_cost(alignment, inputs, of_last, LAST) == 0
