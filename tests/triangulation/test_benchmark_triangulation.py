"""The benchmark of the surface: small runs in the default suite, the bars at full size with -m bars."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sparse_ga.synthetic.scene import SceneConfig, make_scene

_PATH = Path(__file__).resolve().parents[2] / "pipelines" / "benchmark_triangulation.py"
SMALL = SceneConfig(views=8, size=(160, 128), object_share=0.3)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_triangulation", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_triangulation"] = module
    spec.loader.exec_module(module)
    return module


def surface(benchmark: ModuleType, out: Path, scene: SceneConfig, **options: object):  # type: ignore[no-untyped-def]
    return benchmark.benchmark_surface(benchmark.SurfaceBenchmarkConfig(scene, **options), out)


@pytest.mark.slow
def test_a_small_object_with_known_cameras_and_a_mask_of_everything(benchmark: ModuleType, tmp_path: Path) -> None:
    settings = '{"triangulate": {"mesh_depth": 6}}'
    outcome = surface(
        benchmark,
        tmp_path,
        SMALL,
        predictor="oracle-matches",
        graph="window-2",
        known=True,
        fault="everything",
        settings=settings,
    )
    assert outcome.registered == 8
    assert outcome.accuracy_median_percent < 1
    assert outcome.completeness_percent > 80
    assert outcome.outside_hull == 0
    assert outcome.exports_identical
    assert [text.split(":")[0] for text in outcome.wrong_masks] == ["view_002.png"]
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert "accuracy median percent" in outcome.format()


@pytest.mark.slow
def test_faults_are_where_they_should_be(benchmark: ModuleType) -> None:
    masks = make_scene(replace(SMALL, views=4)).masks
    holes = benchmark.faulty_masks(masks, "holes")
    assert [bool((a != b).any()) for a, b in zip(holes, masks)] == [False, True, True, False]
    assert all((a <= b).all() for a, b in zip(holes, masks))
    assert [mask.all() for mask in benchmark.faulty_masks(masks, "everything")] == [False, True, False, False]
    for fault in ("eroded", "fingers"):
        smaller = benchmark.faulty_masks(masks, fault)
        assert all((a <= b).all() for a, b in zip(smaller, masks))
        assert all(0.5 < a.sum() / b.sum() < 0.95 for a, b in zip(smaller, masks))


@pytest.mark.slow
def test_a_cut_scene_is_cut_in_every_third_view_and_exact(benchmark: ModuleType) -> None:
    scene = benchmark.cut_scene(replace(SMALL, views=4))
    touching = [bool(mask[:, 0].any() or mask[:, -1].any()) for mask in scene.masks]
    assert touching == [True, False, False, True]
    assert all(mask.shape == (128, 160) for mask in scene.masks)
    for n in (0, 1):
        row, column = (side[::40] for side in np.nonzero(scene.masks[n]))
        depth = scene.depth_at(n, np.stack([column, row], 1).astype(float))
        np.testing.assert_allclose(depth, scene.depth[n][row, column], rtol=1e-5)


@pytest.mark.slow
def test_the_fusion_is_timed_and_right(benchmark: ModuleType) -> None:
    outcome = benchmark.benchmark_fusion(replace(SMALL, views=10))
    assert outcome.points > 5000
    assert outcome.accuracy_median_percent < 0.5
    assert 0 < outcome.mask_check_seconds < outcome.cpu_seconds * 20
    assert outcome.peak_gb > 0.1


@pytest.mark.bars
def test_a_rotating_object_in_24_views(benchmark: ModuleType, tmp_path: Path) -> None:
    outcome = surface(benchmark, tmp_path, SceneConfig(views=24, elevations_deg=(25.0, -10.0), object_share=0.25))
    assert outcome.accuracy_median_percent <= 0.7
    assert outcome.completeness_percent >= 90
    assert outcome.outside_hull == 0
    assert outcome.mesh_watertight
    assert abs(outcome.mesh_volume_error_percent) <= 5
    assert outcome.silhouette_iou_least >= 0.95
    assert outcome.reprojection_px <= 1
    assert outcome.adjustment_turns_deg <= 0.5
    assert outcome.exports_identical
    assert outcome.wrong_masks == ()


@pytest.mark.bars
@pytest.mark.parametrize(("shape", "seed"), [("figure", 11), ("elongated", 12)])
def test_photographs_alone_by_the_classical_predictor(
    benchmark: ModuleType, tmp_path: Path, shape: str, seed: int
) -> None:
    scene = SceneConfig(shape=shape, seed=seed, views=24, elevations_deg=(25.0, -10.0), object_share=0.25)
    outcome = surface(benchmark, tmp_path, scene, predictor="classical", graph="window-3")
    assert outcome.reprojection_px <= 1
    assert outcome.adjustment_turns_deg <= 0.5
    assert outcome.silhouette_iou_least >= 0.95
    assert outcome.outside_hull == 0


@pytest.mark.bars
@pytest.mark.parametrize("fault", ["holes", "everything", "eroded", "fingers", "cut"])
def test_faulty_masks_and_cut_objects_cost_no_accuracy(benchmark: ModuleType, tmp_path: Path, fault: str) -> None:
    scene = SceneConfig(shape="box", seed=13, views=24, elevations_deg=(25.0, -10.0), object_share=0.25)
    outcome = surface(benchmark, tmp_path, scene, predictor="oracle-matches", fault=fault)
    assert outcome.accuracy_median_percent <= 0.7
    assert outcome.completeness_percent >= 90
    named = {text.split(":")[0] for text in outcome.wrong_masks}
    everyone = {f"view_{n:03d}.png" for n in range(24)}
    wanted = {"holes": {"view_006.png", "view_016.png"}, "everything": {"view_008.png"}, "cut": set()}
    assert named == wanted.get(fault, everyone)


@pytest.mark.bars
def test_a_hundred_views_in_a_minute_and_three_gigabytes() -> None:
    """In a process of its own, whose memory is nobody else's."""
    command = [sys.executable, str(_PATH), "--fusion", "--json"]
    outcome = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert outcome["foreground_percent"] == pytest.approx(25, abs=2)
    assert outcome["accuracy_median_percent"] < 0.3
    assert outcome["mask_check_seconds"] + outcome["fusion_seconds"] <= 60
    assert outcome["peak_gb"] <= 3
