"""Focal lengths where too few triplets vote: from which the reconstructions start, and which of them is believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparse_ga.api import reconstruct
from sparse_ga.config import make_config
from sparse_ga.evaluation import CameraSet, evaluate_cameras
from sparse_ga.pairs import Pair
from sparse_ga.pipeline import Pipeline
from sparse_ga.predictors.classical import ClassicalPredictor
from sparse_ga.products import Alignment, View
from sparse_ga.stages import calibrate
from sparse_ga.stages.calibrate import Calibration, Reconstructed
from sparse_ga.stages.job import Job
from sparse_ga.store import Store
from sparse_ga.synthetic.scene import make_scene
from sparse_ga.synthetic.scene_config import SceneConfig

SIDE = 64
UNDECIDED = np.zeros(3, bool)


def views(count: int = 3) -> list[View]:
    image, mask = np.zeros((48, SIDE, 3), np.uint8), np.ones((48, SIDE), bool)
    return [View(str(n), image, mask, None, np.eye(3), (SIDE, 48), digest=str(n)) for n in range(count)]


def alignment(focal_px: float, registered: tuple[bool, ...], cost: float | None) -> Alignment:
    count = len(registered)
    intrinsics = np.tile(np.diag([focal_px, focal_px, 1.0]), (count, 1, 1))
    return Alignment(
        tuple(map(str, range(count))),
        np.array(registered),
        np.tile(np.eye(4), (count, 1, 1)),
        intrinsics,
        np.zeros(0),
        np.zeros(count + 1, np.int64),
        ("",) * count,
        residual_history=np.array([] if cost is None else [9.0, cost]),
    )


def test_starts_are_the_vote_and_two_guesses() -> None:
    guess = calibrate.rounded(calibrate.FIRST_GUESS * SIDE)
    undecided = Calibration(np.full(3, 100.0), np.zeros(3, bool))
    found = [start.focal_px[0] for start in calibrate.starts(views(), undecided)]
    assert found == [100.0, guess, pytest.approx(2 * guess, rel=0.01)]
    assert len(calibrate.starts(views(), replace(undecided, focal_px=np.full(3, guess)))) == 2


def test_what_was_decided_stays_in_every_start() -> None:
    voted = Calibration(np.array([50.0, 100.0, 100.0]), np.array([True, False, False]))
    assert {start.focal_px[0] for start in calibrate.starts(views(), voted)} == {50.0}


def test_more_views_count_before_smaller_residuals() -> None:
    guess = Calibration(np.full(3, 80.0), np.zeros(3, bool))
    few, good, bad, failed = (
        calibrate.from_alignment(views(), guess, found, make_config({}))
        for found in (
            alignment(70.0, (True, True, False), 1.0),
            alignment(90.0, (True, True, True), 5.0),
            alignment(75.0, (True, True, True), 7.0),
            alignment(1.0, (False, False, False), None),
        )
    )
    assert sorted((failed, bad, few, good), key=lambda found: found.rank) == [good, bad, few, failed]
    assert good.calibration.focal_px == pytest.approx(90.0, rel=0.005)
    np.testing.assert_array_equal(failed.calibration.focal_px, 80.0)


def test_a_focal_length_is_believed_by_the_reconstruction_that_starts_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first guess ties in the most and ends where nothing holds together; the second ends where all do."""
    first, second = (start.focal_px[0] for start in calibrate.starts(views(), Calibration(np.zeros(3), UNDECIDED))[1:])
    outcomes = {0.0: (1, 9.0, 0.0), first: (3, 5.0, 60.0), second: (2, 4.0, 80.0), 60.0: (0, np.inf, 60.0)}
    outcomes |= {80.0: (3, 4.0, 81.0)}
    asked = []

    def reconstructed(self: Pipeline, views: list[View], pairs: list[Pair], guess: Calibration) -> Reconstructed:
        asked.append(guess.focal_px[0])
        registered, cost, focal = outcomes[asked[-1]]
        return Reconstructed(replace(guess, focal_px=np.full(3, focal)), registered, cost)

    monkeypatch.setattr(Pipeline, "_reconstructed", reconstructed)
    pipeline = Pipeline(Job((), ClassicalPredictor(), make_config({})), Store(tmp_path))
    found = pipeline._calibrate_by_reconstruction(views(), [], Calibration(np.zeros(3), UNDECIDED))
    assert asked == [0.0, first, second, 60.0, 80.0]
    assert found.focal_px[0] == 81.0


@pytest.mark.slow
def test_a_long_lens_is_found_without_triplets(tmp_path: Path) -> None:
    """Nine views 40 degrees apart, at 3.9 times the long side: no point is seen in three views often enough."""
    scene = make_scene(SceneConfig(shape="blob", seed=7, views=9, focal_px=2000, object_share=0.1, background="black"))
    scene.write(tmp_path)
    alone = {"forward": {"descriptors": "off"}}
    found = reconstruct(tmp_path / "images", tmp_path / "masks", cache=tmp_path / "cache", config=alone)
    truth = CameraSet.known(found.names, scene.world_from_cam, scene.intrinsics)
    metrics = evaluate_cameras(CameraSet(found.names, found.registered, found.world_from_cam, found.intrinsics), truth)
    assert metrics.auc30 > 97
    assert metrics.focal_error_percent is not None
    assert metrics.focal_error_percent < 6
