"""When a run makes a second attempt with the descriptor network, and which of the two stands."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sparse_ga
from sparse_ga import attempts
from sparse_ga.attempts import Attempts
from sparse_ga.cli import main
from sparse_ga.commands.jobs import load_record
from sparse_ga.config import make_config
from sparse_ga.pipeline import StageCount
from sparse_ga.predictors.classical import ClassicalPredictor, ClassicalSettings
from sparse_ga.products import Reconstruction
from sparse_ga.progress import Reporter
from sparse_ga.stages.job import Job
from sparse_ga.store import Store
from sparse_ga.synthetic.scene import SceneConfig, make_scene

OUT, FIRM, LOOSE = -1.0, 0.2, 3.0  # a photograph is left out, or its rotation uncertain by so many degrees


def job(descriptors: str, predictor: object | None = None) -> Job:
    config = make_config({"forward": {"descriptors": descriptors, "device": "cpu"}})
    return Job((None,) * 4, predictor or ClassicalPredictor(ClassicalSettings(min_inliers=25)), config)  # type: ignore[arg-type]


def aligned(values: tuple[float, ...]) -> SimpleNamespace:
    sigma = np.array(values)
    return SimpleNamespace(registered=sigma > OUT, uncertainty_deg=sigma.clip(0))


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, ...] | None]:
    """What becomes of four photographs, by `forward.descriptors`; None: before there is an alignment."""
    found: dict[str, tuple[float, ...] | None] = dict.fromkeys(("off", "packaged", "auto"), (FIRM,) * 4)

    class Pipeline:
        def __init__(self, chosen: Job, store: Store, reporter: Reporter) -> None:
            self.chosen = chosen

        def run(self, first: str | None, last: str | None) -> SimpleNamespace:
            values = found[self.chosen.config.forward.descriptors]
            masks = [np.full((2, 2), n < 3) for n in range(4)]  # the last photograph does not show the object
            return SimpleNamespace(
                views=[SimpleNamespace(mask=mask) for mask in masks],
                alignment=None if values is None else aligned(values),
                reconstruction=None,
                counts={"forward": StageCount(computed=6, seconds=2.0), "match": StageCount(reused=6, seconds=1.0)},
            )

    monkeypatch.setattr(attempts, "Pipeline", Pipeline)
    return found


def attempt(tmp_path: Path, asked: Job) -> tuple[attempts.Attempt, list[str], dict[str, float]]:
    begun: list[str] = []
    runner = Attempts(
        Store(tmp_path), Reporter("silent"), lambda chosen: begun.append(chosen.config.forward.descriptors)
    )
    return runner.run(asked), begun, runner.seconds


def test_one_attempt_where_every_photograph_that_shows_the_object_is_tied_in(tmp_path: Path, outcomes: dict) -> None:
    outcomes["off"] = (FIRM, FIRM, FIRM, OUT)
    found, begun, seconds = attempt(tmp_path, job("auto"))
    assert begun == ["off"]
    assert found.job.predictor.fingerprint == ClassicalPredictor(ClassicalSettings(min_inliers=25)).fingerprint
    assert seconds == {"forward": 2.0}


def test_nothing_is_decided_before_an_alignment(tmp_path: Path, outcomes: dict) -> None:
    outcomes["off"] = None
    assert attempt(tmp_path, job("auto"))[1] == ["off"]


def test_the_second_attempt_stands_where_it_ties_in_more(tmp_path: Path, outcomes: dict) -> None:
    outcomes["off"] = (FIRM, FIRM, OUT, OUT)
    found, begun, seconds = attempt(tmp_path, job("auto"))
    assert begun == ["off", "packaged"]
    assert found.job.config.forward.descriptors == "packaged"
    assert isinstance(found.job.predictor, ClassicalPredictor)
    assert found.job.predictor.describer is not None
    assert found.job.predictor.settings.min_inliers == 25
    assert found.left_out == 0
    assert seconds == {"forward": 4.0}


def test_a_second_attempt_stands_where_photographs_are_tied_in_more_firmly(tmp_path: Path, outcomes: dict) -> None:
    outcomes["off"] = (LOOSE, LOOSE, LOOSE, OUT)
    assert attempt(tmp_path, job("auto"))[0].job.config.forward.descriptors == "packaged"
    outcomes["packaged"] = (FIRM, FIRM, OUT, OUT)  # but not where that costs a photograph
    assert attempt(tmp_path, job("auto"))[0].job.config.forward.descriptors == "off"
    outcomes["off"], outcomes["packaged"] = (FIRM, FIRM, OUT, OUT), (LOOSE, LOOSE, LOOSE, OUT)
    assert attempt(tmp_path, job("auto"))[0].job.config.forward.descriptors == "packaged"


def test_the_first_attempt_stands_where_the_second_is_no_better(tmp_path: Path, outcomes: dict) -> None:
    outcomes["off"] = outcomes["packaged"] = (FIRM, FIRM, OUT, OUT)
    found, begun, _ = attempt(tmp_path, job("auto"))
    assert begun == ["off", "packaged", "off"]
    assert found.job.config.forward.descriptors == "off"
    assert found.left_out == 1


@pytest.mark.parametrize(("left_out", "of", "enough"), [(0, 3, True), (1, 20, False), (1, 21, True), (2, 40, False)])
def test_one_photograph_of_many_is_not_worth_a_second_attempt(left_out: int, of: int, enough: bool) -> None:
    views = [SimpleNamespace(mask=np.ones((2, 2), bool)) for _ in range(of)]
    values = (OUT,) * left_out + (FIRM,) * (of - left_out)
    result = SimpleNamespace(views=views, alignment=aligned(values), reconstruction=None)
    assert attempts.Attempt(job("off"), result).suffices == enough  # type: ignore[arg-type]


@pytest.mark.parametrize("descriptors", ["off", "packaged"])
def test_what_was_asked_for_is_done_once(tmp_path: Path, outcomes: dict, descriptors: str) -> None:
    outcomes[descriptors] = (OUT,) * 4
    assert attempt(tmp_path, job(descriptors))[1] == [descriptors]


def test_other_predictors_get_one_attempt(tmp_path: Path, outcomes: dict) -> None:
    outcomes["auto"] = (OUT,) * 4
    assert attempt(tmp_path, job("auto", SimpleNamespace(fingerprint="own")))[1] == ["auto"]


def test_none_means_off() -> None:
    assert make_config({"forward": {"descriptors": None}}).forward.descriptors == "off"


@pytest.mark.slow
def test_a_bare_figure_is_tied_in_by_the_second_attempt(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scene = make_scene(
        SceneConfig("figure", 31, views=6, arc_deg=150, size=(320, 240), texture="weak", background="black")
    )
    scene.write(tmp_path)
    images, masks, out, cameras = (str(tmp_path / name) for name in ("images", "masks", "out", "cameras.json"))
    known = dict(zip(scene.names, scene.intrinsics.tolist(), strict=True))
    Path(cameras).write_text(json.dumps({name: {"K": k} for name, k in known.items()}))
    quick = {"triangulate": {"dense": False, "mesh": False}, "forward": {"descriptors": "off"}}
    alone = sparse_ga.reconstruct(images, masks, cache=tmp_path / "alone", config=quick, intrinsics=known)
    assert alone.registered.sum() < 4

    settings = ["--set", "triangulate.dense=false", "--set", "triangulate.mesh=false"]
    assert main(["run", images, "--masks", masks, "--out", out, "--cameras", cameras, *settings]) == 0
    assert "descriptor network" in capsys.readouterr().err
    assert Reconstruction.load(Path(out)).registered.all()

    # the record tells later commands which attempt stands: all of it is there, and one stage is done once
    assert load_record(Path(out) / "cache").config.forward.descriptors == "packaged"
    assert main(["status", out, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(one["done"] == one["total"] for one in told if one["event"] == "stage")
    assert told[-1]["finished"]
    assert main(["stage", "refine2d", out]) == 0
    assert "descriptor network" not in capsys.readouterr().err
