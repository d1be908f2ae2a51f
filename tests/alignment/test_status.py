"""How far the well matched pairs bear an alignment out, and what its status says if they do not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from alignment_scenes import Case, ring_case

from sparse_ga.alignment.gauge import status_of, suspect_poses
from sparse_ga.config import Refine2dConfig
from sparse_ga.geometry import transforms

COUNT = 6
PAIRS = np.array([(i, j) for i in range(COUNT) for j in range(i + 1, COUNT)])
EVERYONE = np.ones(COUNT, bool)


def of_view(*views: int) -> np.ndarray:
    return np.isin(PAIRS, views).any(1)


@cache
def aside(which: int = 3, degrees: float = 9.0) -> Case:
    """All poses given; one view really looked elsewhere."""
    case = ring_case(COUNT)
    poses = case.scene.world_from_cam.copy()
    turn = transforms.exp_so3(np.array([0, np.radians(degrees), 0.0]))
    poses[which] = poses[which] @ transforms.make(turn, np.zeros(3))
    return case.with_views([replace(view, world_from_cam=pose) for view, pose in zip(case.views, poses)])


def test_contradictions_stay_known_over_the_rounds() -> None:
    """The pairs of the wrong view go in the first round, and the later ones, without them, find nothing to object."""
    refined = aside().refine()
    assert refined.registered.all()
    assert len(refined.dropped_pairs) == COUNT - 1
    assert refined.status.startswith("ok, in doubt: 33% of the well matched pairs contradict the cameras")
    assert "(the given pose of view_003.png may be wrong)" in refined.status


def test_a_pose_off_by_far_is_named_by_the_first_alignment_already() -> None:
    case = aside(3, 40.0)
    for alignment in (case.align()[1], case.refine()):
        assert "(the given pose of view_003.png may be wrong)" in alignment.status


def test_poses_that_are_not_held_are_not_blamed() -> None:
    assert "given pose" not in aside().refine(Refine2dConfig(hold_given_poses=False)).status


def test_right_poses_are_in_no_doubt() -> None:
    assert aside(3, 0.0).refine().status == "ok"


def test_the_view_is_suspected_and_not_those_it_was_matched_with() -> None:
    assert np.flatnonzero(suspect_poses(PAIRS, np.ones(15), of_view(3), EVERYONE)).tolist() == [3]
    assert np.flatnonzero(suspect_poses(PAIRS, np.ones(15), of_view(1, 4), EVERYONE)).tolist() == [1, 4]
    assert np.flatnonzero(suspect_poses(PAIRS, np.ones(15), of_view(3), EVERYONE & (np.arange(COUNT) != 3))).size == 0
    assert not suspect_poses(PAIRS, np.ones(15), PAIRS[:, 1] - PAIRS[:, 0] == 3, EVERYONE).any()  # opposite sides


def test_nobody_is_suspected_without_pairs_or_poses() -> None:
    nothing = np.zeros((0, 2), np.int64)
    assert not suspect_poses(nothing, np.zeros(0), np.zeros(0, bool), EVERYONE).any()
    assert not suspect_poses(PAIRS, np.ones(15), np.ones(15, bool), ~EVERYONE).any()
    assert len(suspect_poses(nothing, np.zeros(0), np.zeros(0, bool), np.zeros(0, bool))) == 0


@pytest.mark.parametrize(
    ("share", "suspects", "wanted"),
    [
        (0.1, ["a"], "ok"),
        (0.5, [], "(sides that look alike?)"),
        (0.5, ["a"], "(the given pose of a may be wrong)"),
        (0.5, ["a", "b"], "(the given pose of a or b may be wrong)"),
        (0.5, ["a", "b", "c", "d"], "(the given poses may be wrong)"),
    ],
)
def test_the_status_names_the_likely_cause(share: float, suspects: list[str], wanted: str) -> None:
    assert status_of(share, suspects).endswith(wanted)


@pytest.mark.parametrize(
    ("status", "doubt"),
    [
        ("ok", ""),
        ("ok; no progress", ""),
        ("ok, in doubt: 33% contradict (why?); no progress", "33% contradict (why?)"),
        ("failed: no matches", "the refinement ended with: failed: no matches"),
    ],
)
def test_a_person_is_told_what_of_a_status_is_not_well(status: str, doubt: str) -> None:
    assert replace(ring_case(3).align()[1], status=status).doubt == doubt
