"""A scene in a map's coordinates, millions of units from the origin, comes out of every format as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import trimesh
from small_reconstruction import LOST, VIEWS, load_source, make_reconstruction

from sparse_ga._open3d import open3d
from sparse_ga.geometry.placement import display_origin, shifted
from sparse_ga.io.export import FORMATS, export
from sparse_ga.products import Array, Reconstruction
from sparse_ga.report.figures import scene_frame
from sparse_ga.report.showcase import showcase
from sparse_ga.report.viewer import cloud_of

FAR = np.array([5e5, 4.5e6, 120.0])
ROUNDED = 2e-9  # of float64 at such coordinates
REGISTERED = [n for n in range(VIEWS) if n != LOST]
GLTF_FROM_WORLD = np.diag([1.0, -1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def far() -> Reconstruction:
    near = make_reconstruction()
    moved = shifted(replace(near, names=tuple(f"{n}.jpg" for n in range(VIEWS))), FAR)
    np.testing.assert_allclose(moved.points - FAR, near.points, atol=ROUNDED)
    return moved


@pytest.fixture(scope="module")
def folder(far: Reconstruction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("far")
    export(far, out, FORMATS, load_source)
    return out


def test_saved_and_loaded(far: Reconstruction, tmp_path: Path) -> None:
    far.save(tmp_path)
    again = Reconstruction.load(tmp_path)
    np.testing.assert_array_equal(again.points, far.points)
    np.testing.assert_array_equal(again.mesh.vertices, far.mesh.vertices)


def test_ply(far: Reconstruction, folder: Path) -> None:
    for name in ("points.ply", "nerfstudio/sparse_pc.ply"):
        np.testing.assert_array_equal(np.asarray(open3d().io.read_point_cloud(str(folder / name)).points), far.points)
        np.testing.assert_array_equal(trimesh.load(folder / name).vertices, far.points)
    np.testing.assert_array_equal(trimesh.load(folder / "mesh.ply", process=False).vertices, far.mesh.vertices)


def test_npz(far: Reconstruction, folder: Path) -> None:
    with np.load(folder / "reconstruction.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["points"], far.points)
        np.testing.assert_array_equal(stored["mesh_vertices"], far.mesh.vertices)
        np.testing.assert_array_equal(stored["world_from_cam"], far.world_from_cam[REGISTERED])


@pytest.mark.parametrize("model", ["colmap", "colmap_text", "3dgs/sparse/0"])
def test_colmap(far: Reconstruction, folder: Path, model: str) -> None:
    found = pycolmap.Reconstruction(str(folder / model))
    points = np.array([found.point3D(n + 1).xyz for n in range(found.num_points3D())])
    wanted = far.track_points if "3dgs" not in model else np.concatenate([far.track_points, far.points])
    np.testing.assert_allclose(points, wanted, rtol=0, atol=ROUNDED)
    for image in found.images.values():
        pose = far.world_from_cam[int(Path(image.name).stem)]
        there = image.cam_from_world().inverse().matrix()
        np.testing.assert_allclose(there[:, :3], pose[:3, :3], rtol=0, atol=1e-12)
        np.testing.assert_allclose(there[:, 3], pose[:3, 3], rtol=0, atol=5e-9)  # by way of the inverse


@pytest.mark.parametrize("name", ["points", "mesh"])
def test_glb(far: Reconstruction, folder: Path, name: str) -> None:
    scene = trimesh.load(folder / f"{name}.glb")
    matrix, geometry = scene.graph[name]
    vertices = trimesh.transform_points(scene.geometry[geometry].vertices, GLTF_FROM_WORLD @ matrix)
    wanted = far.points if name == "points" else far.mesh.vertices
    np.testing.assert_allclose(vertices, wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(scene.graph["cameras"][0], matrix)
    assert np.abs(scene.geometry[geometry].vertices).max() < 10


def test_poses_in_json(far: Reconstruction, folder: Path) -> None:
    frames = json.loads((folder / "nerfstudio" / "transforms.json").read_text())["frames"]
    cameras = json.loads((folder / "scene.json").read_text())["cameras"]
    for n, frame, camera in zip(REGISTERED, frames, cameras, strict=True):
        np.testing.assert_array_equal(np.array(frame["transform_matrix"]) @ GLTF_FROM_WORLD, far.world_from_cam[n])
        np.testing.assert_array_equal(camera["world_from_cam"], far.world_from_cam[n])


def test_what_is_shown(far: Reconstruction) -> None:
    """float32 of the report's figures and of the viewer is of coordinates about the scene's middle."""
    middle = display_origin(far)
    assert 0 < np.abs(middle - FAR).max() < 5
    np.testing.assert_array_equal(cloud_of(far).points, far.points)
    shown = scene_frame(far).display_from_world
    corner: Array = shown[:3, :3] @ far.points[0] + shown[:3, 3]
    assert np.abs(corner).max() < 1
    near = make_reconstruction()
    pictures = [np.asarray(showcase(r, [], 60)).astype(int) for r in (near, far)]
    assert (np.abs(pictures[0] - pictures[1]) > 8).mean() < 0.01
    np.testing.assert_array_equal(display_origin(near), np.zeros(3))
    assert shifted(near, np.zeros(3)) is near
