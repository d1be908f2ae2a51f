"""A COLMAP model written by one reconstruction is the input of the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparse_ga
from sparse_ga.evaluation import view_rotation_errors_deg
from sparse_ga.io.cameras_file import read_cameras
from sparse_ga.io.colmap import write_colmap
from sparse_ga.synthetic.oracle import OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, make_scene


@pytest.mark.slow
def test_cameras_come_back_from_a_colmap_model_and_place_a_view_it_lacks(tmp_path: Path) -> None:
    scene = make_scene(SceneConfig(views=6, seed=61, size=(192, 144), arc_deg=150.0, mesh_resolution=48))
    scene.write(tmp_path)
    folders = (tmp_path / "images", tmp_path / "masks")
    config = {"triangulate": {"dense": False, "mesh": False}}
    predictor = OraclePredictor(scene, 61, matching="matches", match_spacing=4)
    first = sparse_ga.reconstruct(*folders, cache=tmp_path / "first", predictor=predictor, config=config)
    assert first.registered.all()
    write_colmap(first, tmp_path / "model")

    cameras = read_cameras(tmp_path / "model")
    lacking = first.names[3]
    intrinsics = {name: camera.intrinsics for name, camera in cameras.items()}
    poses = {name: camera.world_from_cam for name, camera in cameras.items() if name != lacking}
    second = sparse_ga.reconstruct(
        *folders,
        cache=tmp_path / "second",
        predictor=predictor,
        config={**config, "triangulate": {**config["triangulate"], "bundle_adjustment": False}},
        intrinsics=intrinsics,
        world_from_cam=poses,
    )
    assert second.registered.all()
    held = np.arange(6) != 3
    np.testing.assert_allclose(second.world_from_cam[held], first.world_from_cam[held], atol=1e-9)
    np.testing.assert_allclose(second.intrinsics, first.intrinsics, atol=1e-9)
    assert view_rotation_errors_deg(second.world_from_cam, first.world_from_cam).max() < 0.3
    apart = np.linalg.norm(second.world_from_cam[3, :3, 3] - first.world_from_cam[3, :3, 3])
    assert apart < 0.01 * np.linalg.norm(np.ptp(first.world_from_cam[:, :3, 3], axis=0))
