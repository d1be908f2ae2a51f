"""The bars of accuracy and speed, on the oracle's predictions at full size. Slow."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sparse_ga.alignment.align3d import align_views
from sparse_ga.alignment.refine2d import refine_views
from sparse_ga.config import Align3dConfig, MatchConfig, Refine2dConfig
from sparse_ga.evaluation import CameraMetrics, CameraSet, evaluate_cameras
from sparse_ga.matching import match_prediction, verify_matches
from sparse_ga.pairs import build_pairs
from sparse_ga.products import Alignment, PairPrediction, VerifiedMatches, View
from sparse_ga.synthetic.oracle import OracleNoise, OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene

pytestmark = pytest.mark.bars


def _pipeline() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "pipelines" / "benchmark_alignment.py"
    spec = importlib.util.spec_from_file_location("benchmark_alignment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_alignment"] = module
    spec.loader.exec_module(module)
    return module


BENCHMARK = _pipeline()


@dataclass(frozen=True, eq=False)
class Result:
    """An alignment and its metrics."""

    alignment: Alignment
    metrics: CameraMetrics


def measure(alignment: Alignment, scene: SyntheticScene) -> Result:
    truth = CameraSet.known(scene.names, scene.world_from_cam, scene.intrinsics)
    estimate = CameraSet(alignment.names, alignment.registered, alignment.world_from_cam, alignment.intrinsics)
    return Result(alignment, evaluate_cameras(estimate, truth))


def aligned(config: SceneConfig, graph: str = "complete", noise: OracleNoise | None = None) -> Result:
    """Both stages on depth-only renderings with the oracle's own matches."""
    scene = BENCHMARK.depth_scene(config)
    pairs = build_pairs(len(scene), graph)
    given = BENCHMARK.Predictions(scene, pairs, noise or OracleNoise(), config.seed)
    canonical, coarse = align_views(given.views, pairs, given.prediction, given.matches, Align3dConfig())
    for view, mask in zip(canonical, scene.masks):
        assert mask[view.anchor_xy[:, 1], view.anchor_xy[:, 0]].all()
        assert (view.anchor_of_pixel[~mask] == -1).all()
    return measure(refine_views(given.views, canonical, coarse, pairs, given.matches, Refine2dConfig()), scene)


def assert_bar(metrics: CameraMetrics) -> None:
    assert metrics.rra5 == 100
    assert metrics.rta5 == 100
    assert metrics.auc30 >= 98.5
    assert metrics.focal_error_percent is not None
    assert metrics.focal_error_percent < 1.0


def test_object_rotating_before_a_static_background_by_descriptors() -> None:
    scene = make_scene(SceneConfig(views=8, seed=21))
    views, pairs = scene.views(), build_pairs(8, "complete")
    oracle = OraclePredictor(scene, 21)
    predictions = [oracle.predict(views[i], views[j]) for i, j in pairs]
    matches = [
        verify_matches(match_prediction(p, views[i], views[j], MatchConfig()), views[i], views[j], MatchConfig())
        for p, (i, j) in zip(predictions, pairs)
    ]
    canonical, coarse = align_views(views, pairs, predictions.__getitem__, matches.__getitem__, Align3dConfig())
    refined = refine_views(views, canonical, coarse, pairs, matches.__getitem__, Refine2dConfig())
    assert_bar(measure(refined, scene).metrics)


@pytest.mark.parametrize("shape", ["blob", "box", "elongated", "ring", "mug", "figure"])
def test_shapes(shape: str) -> None:
    assert_bar(aligned(SceneConfig(shape=shape, views=8, seed=22)).metrics)


@pytest.mark.parametrize("orientation", ["portrait", "mixed"])
def test_orientations(orientation: str) -> None:
    assert_bar(aligned(SceneConfig(shape="figure", views=8, seed=23, orientation=orientation)).metrics)


def test_24_views_in_a_window_graph() -> None:
    assert_bar(aligned(SceneConfig(views=24, seed=24), "window-3").metrics)


def test_40_views_in_a_complete_graph() -> None:
    assert_bar(aligned(SceneConfig(views=40, seed=25, size=(256, 192))).metrics)


def test_a_fifth_of_foreground_and_less() -> None:
    assert_bar(aligned(SceneConfig(shape="mug", views=8, seed=26, object_share=0.2)).metrics)
    result = aligned(SceneConfig(views=8, seed=26, object_share=0.07))
    assert result.metrics.rra5 == 100
    assert result.metrics.auc30 >= 98.5


def test_free_cameras_and_upside_down_ones() -> None:
    assert_bar(aligned(SceneConfig(views=12, seed=27, motion="free")).metrics)
    assert_bar(aligned(SceneConfig(views=8, seed=27, roll="half")).metrics)


def test_focal_length_of_five_image_widths() -> None:
    result = aligned(SceneConfig(views=8, seed=28, focal_px=2560.0))
    assert result.metrics.rra5 == 100
    assert result.metrics.auc30 >= 98.5
    assert result.metrics.focal_error_percent is not None
    assert result.metrics.focal_error_percent < 5.0


@pytest.mark.parametrize("kind", ["lookalike", "shuffled"])
@pytest.mark.parametrize("seed", [31, 32, 33])
def test_thirty_percent_of_wrong_edges(kind: str, seed: int) -> None:
    noise = replace(OracleNoise(), wrong_share=0.3, wrong_kind=kind)
    result = aligned(SceneConfig(views=10, seed=seed, size=(256, 192)), noise=noise)
    assert result.metrics.registered >= 9
    assert result.metrics.worst_view_deg is not None
    assert result.metrics.worst_view_deg < 5.0


def test_second_order_solver_against_the_schedule_and_the_clock() -> None:
    config = BENCHMARK.AlignmentBenchmarkConfig(SceneConfig(views=8, seed=29, background="none"), seed=29)
    coarse, lm, adam = BENCHMARK.benchmark(config)
    assert lm.rotation_median_deg <= 0.5 * adam.rotation_median_deg
    assert lm.seconds <= adam.seconds / 5
    assert coarse.seconds + lm.seconds <= 10


@dataclass(frozen=True, eq=False)
class _Photographs:
    views: tuple[View, ...]
    world_from_cam: np.ndarray
    intrinsics: np.ndarray


def photographs(folder: Path) -> _Photographs:
    """The photographs of a Middlebury set as working views, and their true cameras in working px."""
    import json

    from sparse_ga.config import make_config
    from sparse_ga.stages import ingest

    truth = json.loads((folder / "gt.json").read_text(encoding="utf-8"))
    names = sorted(truth)
    views = [
        ingest.run(ingest.make_source(folder / "images" / name, folder / "masks" / name, None), make_config({}))
        for name in names
    ]
    intrinsics = [view.working_from_source @ np.array(truth[name]["K"]) for view, name in zip(views, names)]
    poses = [truth[name]["cam2w"] for name in names]
    return _Photographs(tuple(views), np.array(poses), np.array(intrinsics))


def classical(given: _Photographs) -> Result:
    """The classical predictor's views aligned, focal length unknown."""
    from sparse_ga.geometry.cameras import make_intrinsics
    from sparse_ga.predictors.classical import ClassicalPredictor

    predictor = ClassicalPredictor()
    pairs = build_pairs(len(given.views), "complete")
    features = [predictor.encode(view) for view in given.views]
    focal, _ = predictor.estimate_focal(given.views, pairs, features.__getitem__, (256.0, 4096.0))
    views = [replace(view, intrinsics=make_intrinsics(focal, view.principal_point)) for view in given.views]
    predictions: list[PairPrediction] = []
    matches: list[VerifiedMatches] = []
    for i, j in pairs:
        prediction = predictor.predict_from_features(views[i], views[j], features[i], features[j])
        found = match_prediction(prediction, views[i], views[j], MatchConfig())
        checked = verify_matches(found, views[i], views[j], MatchConfig(), from_predictor=True)
        predictions.append(prediction)
        matches.append(replace(checked, rejected=prediction.rejected or checked.rejected))
    canonical, coarse = align_views(views, pairs, predictions.__getitem__, matches.__getitem__, Align3dConfig())
    refined = refine_views(views, canonical, coarse, pairs, matches.__getitem__, Refine2dConfig())
    names = tuple(view.name for view in views)
    truth = CameraSet.known(names, given.world_from_cam, given.intrinsics)
    estimate = CameraSet(names, refined.registered, refined.world_from_cam, refined.intrinsics)
    return Result(refined, evaluate_cameras(estimate, truth))


@pytest.mark.shared
def test_temple16_with_the_classical_predictor(shared_dir: Path) -> None:
    result = classical(photographs(shared_dir / "data" / "temple16"))
    assert result.metrics.registered == 16
    assert result.metrics.auc30 >= 98.5
    assert result.metrics.focal_error_percent is not None
    assert result.metrics.focal_error_percent < 1.0


@pytest.mark.shared
def test_dino16_with_the_classical_predictor(shared_dir: Path) -> None:
    result = classical(photographs(shared_dir / "data" / "dino16"))
    assert result.metrics.registered >= 6
    assert result.metrics.auc30_registered >= 97.0
