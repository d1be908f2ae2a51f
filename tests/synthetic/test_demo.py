"""The demonstration: its measures tell right from wrong, and a small one succeeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparse_ga.demo import DEMO_SCENE, compare_surface, count_off_object, run_demo
from sparse_ga.geometry import transforms
from sparse_ga.products import Array, DepthMaps, MaskStack, Reconstruction, Tracks
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene


@pytest.fixture(scope="module")
def scene() -> SyntheticScene:
    return make_scene(SceneConfig(views=6, size=(192, 144), mesh_resolution=56))


def exact(scene: SyntheticScene, points: Array, registered: int = 6) -> Reconstruction:
    """A reconstruction with the true cameras of the first views, in a world of another scale and place."""
    move = transforms.make(transforms.exp_so3(np.array([0.3, 2.0, -1.0])), np.array([4.0, 1, -2]), 3.7)
    poses = move @ scene.world_from_cam
    poses[:, :3, :3] /= 3.7
    known = np.arange(6) < registered
    poses[~known] = np.eye(4)
    count = len(points)
    nothing = [np.zeros((2, 2), np.float32)] * 6
    return Reconstruction(
        names=scene.names,
        registered=known,
        reasons=tuple("" if k else "left out" for k in known),
        world_from_cam=poses,
        intrinsics=scene.intrinsics,
        source_sizes=np.array(scene.cameras.sizes),
        working_from_source=np.tile(np.eye(3), (6, 1, 1)),
        points=transforms.apply(move, points).astype(np.float32),
        colors=np.zeros((count, 3), np.uint8),
        normals=np.tile(np.array([[0, 0, 1]], np.float32), (count, 1)),
        point_confidence=np.ones(count, np.float32),
        tracks=Tracks.empty(),
        track_points=np.zeros((0, 3)),
        track_colors=np.zeros((0, 3), np.uint8),
        track_errors=np.zeros(0),
        depthmaps=DepthMaps.pack(nothing, nothing),
        masks=MaskStack.pack([np.zeros((2, 2), bool)] * 6),
    )


def test_true_points_are_true(scene: SyntheticScene) -> None:
    found = exact(scene, scene.surface_samples(4000))
    surface = compare_surface(found, scene)
    assert surface.accuracy_share == 100
    assert surface.accuracy_median < 0.01
    assert surface.completeness_share > 80
    assert count_off_object(found, scene) == 0


def test_wrong_points_are_found_out(scene: SyntheticScene) -> None:
    points = scene.surface_samples(400)
    points[:100] *= 1.15  # off the surface, most of them still before the object
    points[100:150] += [0, 0, 1.0]  # beside the object
    found = exact(scene, points)
    assert compare_surface(found, scene).accuracy_share < 85
    assert 50 <= count_off_object(found, scene) <= 150


@pytest.mark.parametrize("registered", [0, 2])
def test_too_few_cameras_prove_nothing(scene: SyntheticScene, registered: int) -> None:
    surface = compare_surface(exact(scene, scene.surface_samples(50), registered), scene)
    assert surface.points == 0
    assert surface.accuracy_share == 0


def test_no_points(scene: SyntheticScene) -> None:
    found = exact(scene, np.zeros((0, 3)))
    assert compare_surface(found, scene).accuracy_median is None
    assert count_off_object(found, scene) == 0


@pytest.mark.slow
def test_a_part_of_the_demo_succeeds(tmp_path: Path) -> None:
    result = run_demo(tmp_path, replace(DEMO_SCENE, views=9, arc_deg=170.0))
    assert result.cameras.registered == 9
    assert result.cameras.rra5 == 100
    assert result.cameras.focal_error_percent < 3  # half the views of the demo and half the circle
    assert result.surface.accuracy_share > 90
    assert result.off_object == 0
    assert "9 of 9" in result.format()
    assert (tmp_path / "gt.json").is_file()
    again = Reconstruction.load(tmp_path)
    assert np.array_equal(again.points, result.reconstruction.points)
