"""Focal lengths where too few triplets vote: from which the reconstructions start, and which of them is believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_ga.api import reconstruct
from sparse_ga.cli import main
from sparse_ga.config import make_config
from sparse_ga.evaluation import CameraSet, evaluate_cameras
from sparse_ga.pipeline import Pipeline
from sparse_ga.products import Alignment, Reconstruction, View
from sparse_ga.stages import calibrate
from sparse_ga.stages.calibrate import Calibration, Reconstructed
from sparse_ga.synthetic.scene import make_scene
from sparse_ga.synthetic.scene_config import SceneConfig

SIDE = 64
UNDECIDED = np.zeros(3, bool)


def views(count: int = 3) -> list[View]:
    image, mask = np.zeros((48, SIDE, 3), np.uint8), np.ones((48, SIDE), bool)
    return [View(str(n), image, mask, None, np.eye(3), (SIDE, 48), digest=str(n)) for n in range(count)]


def alignment(focal_px: float, registered: tuple[bool, ...], match_cost: float | None) -> Alignment:
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
        residual_history=np.array([] if match_cost is None else [9.0, 5.0]),
        match_cost=match_cost or 0.0,
    )


def test_starts_are_the_vote_and_three_guesses() -> None:
    guess = calibrate.rounded(calibrate.FIRST_GUESS * SIDE)
    undecided = Calibration(np.full(3, 100.0), np.zeros(3, bool))
    found = [start.focal_px[0] for start in calibrate.starts(views(), undecided)]
    assert found == [100.0, guess, pytest.approx(2 * guess, rel=0.01), pytest.approx(0.75 * SIDE, rel=0.01)]
    assert len(calibrate.starts(views(), replace(undecided, focal_px=np.full(3, guess)))) == 3


def test_what_was_decided_stays_in_every_start() -> None:
    voted = Calibration(np.array([50.0, 100.0, 100.0]), np.array([True, False, False]))
    assert {start.focal_px[0] for start in calibrate.starts(views(), voted)} == {50.0}


class Named:
    """A predictor of which only the name in keys matters."""

    fingerprint = "named"


def keys_by_reconstruction(config: dict[str, Any]) -> set[str]:
    settings = make_config(config)
    start = Calibration(np.full(3, 100.0), UNDECIDED)
    arguments: Any = (views(), [(0, 1), (1, 2)], Named(), settings)
    found = (calibrate.key_from_reconstruction(*arguments), calibrate.key_from_start(*arguments, start))
    return {key.digest for key in found}


@pytest.mark.parametrize(
    "change",
    [
        {"forward": {"cross_stride": 1}},
        {"forward": {"keep_descriptors": True}},
        {"match": {"min_matches": 13}},
        {"refine2d": {"loss_px": 2.0}},
    ],
)
def test_settings_that_its_reconstructions_go_through_are_in_the_key(change: dict[str, Any]) -> None:
    assert not keys_by_reconstruction(change) & keys_by_reconstruction({})


@pytest.mark.parametrize("name", ["encode", "calibrate", "forward", "match", "align3d", "refine2d"])
def test_stages_that_its_reconstructions_go_through_are_in_the_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_by_reconstruction({})
    newer = [replace(s, version=s.version + 1) if s.name == name else s for s in calibrate._THROUGH]
    assert newer != list(calibrate._THROUGH)
    monkeypatch.setattr(calibrate, "_THROUGH", tuple(newer))
    assert not keys_by_reconstruction({}) & before


def reconstructed(focal_px: float, matches: int, cost: float, start_px: float = 80.0) -> Reconstructed:
    calibration = Calibration(np.full(3, float(focal_px)), UNDECIDED)
    moved = float(abs(np.log(focal_px / start_px)))
    return Reconstructed(calibration, np.ones(3, bool), moved, 3, matches, cost)


def test_what_an_alignment_says_of_the_focal_lengths() -> None:
    start = Calibration(np.full(3, 80.0), UNDECIDED)
    found = calibrate.from_alignment(
        views(),
        start,
        alignment(90.0, (True, True, False), 0.5),
        40,
        make_config({"ingest": {"shared_intrinsics": True}}),
    )
    assert found.calibration.focal_px == pytest.approx(90.0, rel=0.005)
    assert found.moved == pytest.approx(np.log(90 / 80), rel=0.05)
    assert (found.registered, found.matches, found.cost) == (2, 40, 40.0)
    assert not found.decided().sufficient.any()  # two views
    three = calibrate.from_alignment(views(), start, alignment(90.0, (True, True, True), 0.5), 40, make_config({}))
    assert three.decided().sufficient.all()
    nothing = calibrate.from_alignment(views(), start, alignment(1.0, (False,) * 3, None), 0, make_config({}))
    np.testing.assert_array_equal(nothing.calibration.focal_px, 80.0)
    assert nothing.cost == np.inf
    assert nothing.moved == 0
    assert not nothing.decided().sufficient.any()


def test_losing_matches_is_no_gain() -> None:
    whole, lossy, failed = reconstructed(90, 600, 400.0), reconstructed(200, 400, 190.0), reconstructed(80, 0, np.inf)
    costs = [one.cost_among((whole, lossy, failed)) for one in (whole, lossy, failed)]
    assert costs[0] == 400.0
    assert costs[1] == pytest.approx(190 + 400 * np.log(10))
    assert costs[2] == np.inf


def test_a_focal_length_is_believed_by_the_reconstruction_that_starts_from_it() -> None:
    """The first guess explains the most and ends where nothing holds together; the second ends where all does."""
    outcomes = {
        40: reconstructed(60, 900, 500.0, 40),
        80: reconstructed(100, 850, 450.0),
        60: reconstructed(60, 0, np.inf),
    }
    outcomes |= {100: reconstructed(103, 900, 440.0, 100), 160: reconstructed(300, 500, 100.0, 160)}
    asked = []

    def reconstruct(start: Calibration) -> Reconstructed:
        asked.append(int(start.focal_px[0]))
        return outcomes[asked[-1]]

    begin = [Calibration(np.full(3, float(focal)), UNDECIDED) for focal in (40, 80, 160)]
    assert calibrate.best_reconstruction(begin, reconstruct).calibration.focal_px[0] == 103
    assert asked == [40, 80, 160, 60, 100]  # and not 300, at twice the cost


def test_what_has_not_moved_is_not_reconstructed_again() -> None:
    asked = []

    def reconstruct(start: Calibration) -> Reconstructed:
        asked.append(start.focal_px[0])
        return reconstructed(asked[-1] * 1.01, 100, 10.0, asked[-1])

    found = calibrate.best_reconstruction([Calibration(np.full(3, 80.0), UNDECIDED)], reconstruct)
    assert asked == [80.0]
    assert found.calibration.focal_px[0] == pytest.approx(80.8)


@pytest.mark.slow
def test_two_photographs_get_the_plain_guess_and_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In two views a longer focal length always fits a little better: whatever their matches say is no measurement."""
    scene = make_scene(SceneConfig(views=2, size=(256, 192), arc_deg=16, focal_px=256))
    scene.write(tmp_path)
    out, settings = tmp_path / "out", ("forward.descriptors=off", "triangulate.dense=false")
    words = ["run", tmp_path / "images", "--masks", tmp_path / "masks", "--out", out, "--format", "npz"]
    assert main([*map(str, words), *(word for setting in settings for word in ("--set", setting))]) == 0
    told = capsys.readouterr().err + (out / "report.html").read_text(encoding="utf-8")
    assert told.count("2 photographs is a guess, 1.2 times their long side") >= 2
    found = np.load(out / "reconstruction.npz")
    assert len(found["names"]) == 2
    assert found["intrinsics"][:, 0, 0] == pytest.approx(calibrate.FIRST_GUESS * 256, rel=0.1)


@pytest.mark.slow
def test_interrupted_it_goes_on_with_the_guess_it_was_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_scene(SceneConfig(shape="elongated", seed=34, views=3, size=(256, 192), arc_deg=50, texture="weak")).write(
        tmp_path
    )
    started = []
    run = Pipeline._quick_alignment

    def interrupted(self: Pipeline, views: list[View], *rest: Any) -> Alignment:
        started.append(views[0].intrinsics[0, 0])
        if len(started) == 2:
            raise KeyboardInterrupt
        return run(self, views, *rest)

    def reconstructed_again() -> Reconstruction:
        config = {"forward": {"descriptors": "off"}, "triangulate": {"dense": False}}
        return reconstruct(tmp_path / "images", tmp_path / "masks", cache=tmp_path / "cache", config=config)

    monkeypatch.setattr(Pipeline, "_quick_alignment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reconstructed_again()
    reconstructed_again()
    assert started[2] == started[1] != started[0]
    assert len(set(started)) == len(started) - 1
    asked = len(started)
    reconstructed_again()
    assert len(started) == asked


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
