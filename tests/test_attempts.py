"""When a run makes a second attempt with the descriptor network, and which of the two stands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import cheap_pipeline
import numpy as np
import pytest
from cheap_pipeline import EncodingPredictor, computed, install, write_mask, write_set
from PIL import Image

import sparse_ga
from sparse_ga import attempts
from sparse_ga.attempts import Attempts
from sparse_ga.cli import main
from sparse_ga.commands.jobs import load_record
from sparse_ga.config import make_config
from sparse_ga.errors import InputError
from sparse_ga.pipeline import RunResult, StageCount
from sparse_ga.predictors import loading
from sparse_ga.predictors.classical import ClassicalPredictor, ClassicalSettings
from sparse_ga.products import Alignment, PairPrediction, Reconstruction, View
from sparse_ga.progress import Reporter
from sparse_ga.stages.ingest import Source
from sparse_ga.stages.job import STAGE_NAMES, Job
from sparse_ga.store import Store
from sparse_ga.synthetic.scene import SceneConfig, make_scene

OUT, FIRM, LOOSE = -1.0, 0.2, 3.0  # a photograph is left out, or its rotation uncertain by so many degrees


def job(descriptors: str, predictor: object | None = None) -> Job:
    config = make_config({"forward": {"descriptors": descriptors, "device": "cpu"}})
    sources = tuple(Source(f"v{n}.png", Path(f"v{n}.png"), None, None, f"{n}", "") for n in range(4))
    return Job(sources, predictor or ClassicalPredictor(ClassicalSettings(min_inliers=25)), config)  # type: ignore[arg-type]


def aligned(values: tuple[float, ...]) -> SimpleNamespace:
    sigma = np.array(values)
    return SimpleNamespace(registered=sigma > OUT, rotation_sigma_deg=sigma[sigma > OUT], status="ok")


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, ...] | None]:
    """What becomes of four photographs, by `forward.descriptors`; None: before there is an alignment."""
    found: dict[str, tuple[float, ...] | None] = dict.fromkeys(("off", "packaged", "auto"), (FIRM,) * 4)
    begun: list[str] = []

    class Pipeline:
        def __init__(self, chosen: Job, store: Store, reporter: Reporter, spared: Job | None = None) -> None:
            self.chosen = chosen

        def run(self, first: str | None, last: str | None, go_on: object) -> RunResult:
            descriptors = self.chosen.config.forward.descriptors
            values = found[descriptors]
            masks = [np.full((2, 2), n < 3) for n in range(4)]  # the last photograph does not show the object
            counts = {name: StageCount() for name in STAGE_NAMES}
            if not begun.count(descriptors):
                begun.append(descriptors)
                counts |= {"forward": StageCount(computed=6, seconds=2.0), "match": StageCount(reused=6, seconds=1.0)}
            views = tuple(SimpleNamespace(mask=mask) for mask in masks)
            return RunResult(views, (), None if values is None else aligned(values), None, counts, ())  # type: ignore[arg-type]

    monkeypatch.setattr(attempts, "Pipeline", Pipeline)
    return found


def attempt(tmp_path: Path, asked: Job) -> tuple[attempts.Attempt, list[str], dict[str, float]]:
    begun: list[str] = []
    store = Store(tmp_path / f"{len(list(tmp_path.iterdir()))}")  # where nothing is decided yet
    runner = Attempts(store, Reporter("silent"), lambda chosen: begun.append(chosen.config.forward.descriptors))
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
    assert begun == ["off", "packaged", "packaged"]
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


def test_of_two_loose_attempts_the_firmer_on_the_whole_stands(tmp_path: Path, outcomes: dict) -> None:
    """A view that is 5 degrees off outweighs two that are a degree off, though more views are loose then."""
    outcomes["off"], outcomes["packaged"] = (3.3, 1.2, 1.0, OUT), (1.7, 1.3, 1.0, OUT)
    assert attempt(tmp_path, job("auto"))[0].job.config.forward.descriptors == "packaged"
    for packaged in ((0.2, 5.2, 0.2, OUT), (0.89, 1.09, 0.69, OUT)):
        outcomes["off"], outcomes["packaged"] = (0.9, 1.1, 0.7, OUT), packaged
        assert attempt(tmp_path, job("auto"))[0].job.config.forward.descriptors == "off"


def test_an_attempt_that_could_not_be_refined_is_not_the_firmer() -> None:
    def of(status: str, values: tuple[float, ...]) -> attempts.Attempt:
        alignment = aligned(values)
        alignment.status = status
        views = [SimpleNamespace(mask=np.ones((2, 2), bool)) for _ in values]
        return attempts.Attempt(job("off"), SimpleNamespace(views=views, alignment=alignment))  # type: ignore[arg-type]

    failed, sound = of("failed: no matches between registered views", (0.0, 0.0)), of("ok; stalled", (LOOSE, LOOSE))
    assert sound.is_better(failed)
    assert not failed.is_better(sound)


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


def test_a_predictor_derived_from_the_classical_one_runs_as_it_is(tmp_path: Path, outcomes: dict) -> None:
    class Own(ClassicalPredictor):
        pass

    outcomes["auto"] = (OUT,) * 4
    own = Own()
    found, begun, _ = attempt(tmp_path, job("auto", own))
    assert begun == ["auto"]
    assert found.job.predictor is own


def test_none_means_off() -> None:
    assert make_config({"forward": {"descriptors": None}}).forward.descriptors == "off"


# ---------------------------------------------------------------- what is computed, in cheap geometry

ONCE, NEVER = Counter(forward=10, triangulate=1), Counter()  # five photographs


@dataclass
class World:
    """How many of five photographs each attempt leaves out, which weights are packaged, and what has been computed."""

    left_out: dict[str, int] = field(default_factory=lambda: {"off": 2, "packaged": 2})
    weights: str = "weights 1"
    done: dict[str, Counter[str]] = field(default_factory=lambda: {"off": Counter(), "packaged": Counter()})

    def done_by(self, words: Sequence[str]) -> dict[str, Counter[str]]:
        """What `sparse-ga` computes, given these words."""
        self.done = {"off": Counter(), "packaged": Counter()}
        assert main([*words]) == 0
        return self.done


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Photographs in the working folder, cheap geometry, and a cheap predictor in place of the classical one."""
    made = World()

    class Cheap(EncodingPredictor):
        """Its matches' confidence tells the geometry whether it has a descriptor network."""

        settings = None

        def __init__(self, settings: None = None, describer: str | None = None) -> None:
            super().__init__()
            self.describer = describer
            self.fingerprint = f"cheap classical, {describer}"

        def predict(self, view_i: View, view_j: View) -> PairPrediction:
            made.done["packaged" if self.describer else "off"]["forward"] += 1
            found = super().predict(view_i, view_j)
            assert found.matches is not None
            level = np.full_like(found.matches.confidence, 2 if self.describer else 1)
            return replace(found, matches=replace(found.matches, confidence=level))

    def asked(load_matches: object) -> str:
        return "packaged" if load_matches(0).matches.confidence[0] == 2 else "off"  # type: ignore[operator]

    def refine(views, canonical, alignment, pairs, load_matches, config) -> Alignment:  # type: ignore[no-untyped-def]
        refined = cheap_pipeline.refine_views(views, canonical, alignment, pairs, load_matches, config)
        registered = np.arange(len(views)) >= made.left_out[asked(load_matches)]
        return replace(refined, registered=registered, reasons=tuple("" if r else "no usable pair" for r in registered))

    def triangulate(*arguments) -> Reconstruction:  # type: ignore[no-untyped-def]
        made.done[asked(arguments[3].load)]["triangulate"] += 1
        return cheap_pipeline.triangulate_views(*arguments)

    install(monkeypatch)
    monkeypatch.setattr(sparse_ga.alignment.refine2d, "refine_views", refine)
    monkeypatch.setattr(sparse_ga.triangulation, "triangulate_views", triangulate)
    monkeypatch.setattr(attempts, "ClassicalPredictor", Cheap)
    monkeypatch.setattr(
        attempts, "load_describer", lambda config: made.weights if config.descriptors == "packaged" else None
    )
    monkeypatch.setattr(
        sparse_ga.commands.jobs,
        "load_predictor",
        lambda name, config: Cheap(None, made.weights if config.descriptors == "packaged" else None),
    )
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path)
    return made


RUN = ("run", "images", "--masks", "masks", "--format", "ply")


def standing() -> str:
    return load_record(Path("out/cache")).config.forward.descriptors


def told(capsys: pytest.CaptureFixture, event: str) -> list[dict]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.slow
def test_only_the_attempt_that_stands_is_triangulated(world: World) -> None:
    assert world.done_by(RUN) == {"off": ONCE, "packaged": Counter(forward=10)}
    assert standing() == "off"
    world.left_out["packaged"] = 0
    assert world.done_by([*RUN, "--out", "b"]) == {"off": Counter(forward=10), "packaged": ONCE}
    world.left_out["off"] = 0
    assert world.done_by([*RUN, "--out", "c"]) == {"off": ONCE, "packaged": NEVER}


def test_a_run_that_ends_earlier_decides_as_far_as_it_goes(world: World) -> None:
    world.left_out["packaged"] = 0
    assert world.done_by([*RUN, "--until", "match"]) == {"off": Counter(forward=10), "packaged": NEVER}
    assert world.done_by([*RUN, "--until", "refine2d"]) == {"off": NEVER, "packaged": Counter(forward=10)}
    assert standing() == "packaged"
    assert world.done_by(RUN) == {"off": NEVER, "packaged": Counter(triangulate=1)}


def test_counts_of_the_attempt_that_stands_are_of_all_its_stages(world: World, tmp_path: Path) -> None:
    predictor = attempts.ClassicalPredictor()
    asked = sparse_ga.api.make_job("images", "masks", predictor, make_config({}))
    found = Attempts(Store(tmp_path / "cache"), Reporter("silent")).run(asked)
    every = {"ingest": 5, "pairs": 1, "encode": 5, "calibrate": 1, "forward": 10, "match": 10}
    assert computed(found.result) == {**every, "align3d": 1, "refine2d": 1, "triangulate": 1}


def test_without_the_packaged_weights_the_first_attempt_stands(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(attempts, "load_describer", loading.load_describer)
    monkeypatch.setattr(loading, "packaged_descriptors", lambda: tmp_path / "lost.safetensors")
    assert world.done_by([*RUN, "--json"]) == {"off": ONCE, "packaged": NEVER}
    (summary,) = told(capsys, "summary")
    assert summary["registered"] == 3
    (warning,) = [text for text in summary["warnings"] if "packaged weights" in text]
    assert "install sparse_ga again" in warning
    assert world.done_by(RUN) == {"off": NEVER, "packaged": NEVER}
    with pytest.raises(InputError, match="install sparse_ga again"):  # and who asks for it is told
        loading.load_describer(make_config({"forward": {"descriptors": "packaged"}}).forward)


@pytest.mark.slow
@pytest.mark.parametrize("better", ["off", "packaged"])
@pytest.mark.parametrize("words", [(), ("clean", "out"), ("clean", "out", "--stale")])
def test_the_same_run_again_goes_straight_to_what_stands(
    world: World, capsys: pytest.CaptureFixture, better: str, words: tuple[str, ...]
) -> None:
    world.left_out["packaged"] = 0 if better == "packaged" else 2
    assert main(RUN) == 0
    assert "descriptor network" in capsys.readouterr().err
    before = Path("out/points.ply").read_bytes()
    if words:
        assert main(words) == 0
        left = 0 if "--stale" in words else 10
        assert len(list(Path("out/cache/forward").iterdir())) == left
        assert len(list(Path("out/cache/align3d").iterdir())) == (1 if "--stale" in words else 2)
    assert world.done_by(RUN) == {"off": NEVER, "packaged": NEVER}
    assert "descriptor network" not in capsys.readouterr().err
    assert standing() == better
    assert Path("out/points.ply").read_bytes() == before
    # a setting of the last stage is no reason to decide again
    done = world.done_by([*RUN, "--set", "triangulate.min_angle_deg=2.5"])
    assert done["packaged" if better == "off" else "off"] == NEVER
    assert done[better]["triangulate"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("better", ["off", "packaged"])
def test_a_tight_budget_costs_neither_attempt_what_it_needs(
    world: World, capsys: pytest.CaptureFixture, better: str
) -> None:
    world.left_out["packaged"] = 0 if better == "packaged" else 2
    worse = "packaged" if better == "off" else "off"
    tight = [*RUN, "--set", "cache.budget_gb=1e-9"]
    assert world.done_by(tight) == {better: ONCE, worse: Counter(forward=10)}
    assert main(["status", "out", "--json"]) == 0
    stages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert stages[-1]["finished"]
    assert [stage["other_bytes"] for stage in stages[:-2]] == [0] * len(STAGE_NAMES)  # of the other attempt none
    assert main(["export", "out/cache", "--format", "ply", "--out", "ex"]) == 0
    assert world.done_by(tight) == {"off": NEVER, "packaged": NEVER}


def test_an_attempt_killed_before_the_decision_is_taken_up_again_on_a_tight_budget(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(attempts.Attempt, "is_better", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*RUN, "--set", "cache.budget_gb=1e-9"]) == 130
    assert world.done_by(RUN) == {"off": Counter(triangulate=1), "packaged": NEVER}


def test_a_second_attempt_killed_half_way_goes_on_from_there_on_a_tight_budget(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tight = attempts.ClassicalPredictor.predict, [*RUN, "--set", "cache.budget_gb=1e-9"]

    def killed(self: ClassicalPredictor, view_i: View, view_j: View) -> PairPrediction:
        if self.describer and world.done["packaged"]["forward"] == 6:
            raise KeyboardInterrupt
        return real(self, view_i, view_j)

    with monkeypatch.context() as patch:
        patch.setattr(attempts.ClassicalPredictor, "predict", killed)
        assert main(tight) == 130
    assert world.done_by(tight) == {"off": Counter(triangulate=1), "packaged": Counter(forward=4)}


CHANGES = {
    "photograph": lambda: Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save("images/v0.png"),
    "mask": lambda: write_mask(Path(), 2, shift=5),
    "camera": lambda: Path("cameras.json").write_text(json.dumps({"v0.png": {"K": np.diag([70.0, 70, 1]).tolist()}})),
    "pairs": lambda: Path("pairs.txt").write_text("v0 v1\nv1 v2\nv2 v3\nv3 v4\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", [*CHANGES, "weights", "setting", "stage", "damage", "loss"])
def test_what_a_decision_depends_on_is_decided_again_where_it_changes(
    world: World, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    Path("cameras.json").write_text(json.dumps({"v0.png": {"K": np.diag([60.0, 60, 1]).tolist()}}))
    Path("pairs.txt").write_text("v0 v1\nv1 v2\nv2 v3\n")
    words = [*RUN, "--cameras", "cameras.json", "--set", "pairs.pairs_file=pairs.txt"]
    assert main(words) == 0
    capsys.readouterr()
    world.left_out["packaged"] = 0
    (record,) = Path("out/cache/attempts").iterdir()
    if change == "weights":
        world.weights = "weights 2"
    elif change == "damage":
        record.write_bytes(record.read_bytes()[:-1] + b"x")
    elif change == "loss":
        record.unlink()
    elif change == "stage":
        monkeypatch.setattr(attempts, "_BEFORE", attempts._BEFORE[1:])
    else:
        CHANGES.get(change, lambda: None)()
    done = world.done_by([*words, "--set", f"refine2d.loss_px={2 if change == 'setting' else 1}"])
    assert "descriptor network" in capsys.readouterr().err
    if change in ("damage", "loss", "stage"):  # nothing but the decision itself
        assert (done, standing()) == ({"off": NEVER, "packaged": NEVER}, "off")
    else:
        assert standing() == "packaged"
        assert done["packaged"]["triangulate"] == 1


@pytest.mark.slow
def test_computing_again_decides_again_unless_from_the_last_stage(world: World, capsys: pytest.CaptureFixture) -> None:
    assert main(RUN) == 0
    assert world.done_by([*RUN, "--from", "triangulate"]) == {"off": Counter(triangulate=1), "packaged": NEVER}
    world.left_out["packaged"] = 0
    assert world.done_by([*RUN, "--from", "refine2d"]) == {"off": NEVER, "packaged": Counter(triangulate=1)}
    world.left_out["packaged"] = 2
    assert world.done_by([*RUN, "--from", "forward"]) == {"off": ONCE, "packaged": Counter(forward=10)}


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
