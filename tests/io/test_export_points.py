"""PLY and GLB open in trimesh and open3d with what went in, and come out the same twice."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from small_reconstruction import LOST, make_reconstruction

from sparse_ga._open3d import open3d
from sparse_ga.io import glb, ply
from sparse_ga.io.export import export
from sparse_ga.products import Array, Mesh, Reconstruction


@pytest.fixture(scope="module")
def reconstruction() -> Reconstruction:
    return make_reconstruction()


def in_world(scene: trimesh.Scene, name: str) -> Array:
    """Vertices of a node back in the reconstruction's frame, by the node's own transform."""
    matrix, geometry = scene.graph[name]
    return trimesh.transform_points(scene.geometry[geometry].vertices, np.diag([1, -1, -1, 1.0]) @ matrix)


def test_ply_points_in_both_libraries(reconstruction: Reconstruction, tmp_path: Path) -> None:
    r = reconstruction
    path = tmp_path / "points.ply"
    path.write_bytes(ply.encode_points(r.points, r.colors, r.normals, r.point_confidence))
    cloud = open3d().io.read_point_cloud(str(path))
    np.testing.assert_array_equal(np.asarray(cloud.points), r.points)
    np.testing.assert_allclose(np.asarray(cloud.normals), r.normals)
    np.testing.assert_array_equal(np.rint(np.asarray(cloud.colors) * 255), r.colors)
    loaded = trimesh.load(path)
    np.testing.assert_array_equal(loaded.vertices, r.points)
    np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], r.colors)
    tensor = open3d().t.io.read_point_cloud(str(path))
    np.testing.assert_array_equal(tensor.point["confidence"].numpy().ravel(), r.point_confidence)


def test_ply_mesh_in_both_libraries(reconstruction: Reconstruction, tmp_path: Path) -> None:
    path = tmp_path / "mesh.ply"
    path.write_bytes(ply.encode_mesh(reconstruction.mesh))
    loaded = trimesh.load(path, process=False)
    assert loaded.is_watertight
    assert loaded.volume == pytest.approx(4 / 3)
    np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], reconstruction.mesh.colors)
    mesh = open3d().io.read_triangle_mesh(str(path))
    np.testing.assert_array_equal(np.asarray(mesh.triangles), reconstruction.mesh.faces)


@pytest.mark.parametrize("surface", [False, True])
def test_glb_in_both_libraries(reconstruction: Reconstruction, tmp_path: Path, surface: bool) -> None:
    path = tmp_path / "scene.glb"
    path.write_bytes(glb.encode_glb(reconstruction, surface))
    scene = trimesh.load(path)
    name, wanted = ("mesh", reconstruction.mesh.vertices) if surface else ("points", reconstruction.points)
    assert set(scene.graph.nodes_geometry) == {name, "cameras"}
    np.testing.assert_allclose(in_world(scene, name), wanted, atol=1e-6)
    model = open3d().io.read_triangle_model(str(path))
    if surface:
        vertices = np.concatenate([np.asarray(part.mesh.vertices) for part in model.meshes])
        assert {tuple(v) for v in vertices.round(6) + 0.0} == {tuple(v) for v in wanted.round(6) + 0.0}
        colors = np.asarray(scene.geometry["mesh"].visual.vertex_colors)[:, :3]
        np.testing.assert_array_equal(colors, reconstruction.mesh.colors)
    else:
        np.testing.assert_array_equal(np.asarray(scene.geometry["points"].colors)[:, :3], reconstruction.colors)


def test_a_viewer_sees_up_as_up(reconstruction: Reconstruction) -> None:
    data = glb.encode_glb(reconstruction, False)
    length = struct.unpack("<I", data[12:16])[0]
    node = next(n for n in json.loads(data[20 : 20 + length])["nodes"] if n["name"] == "points")
    matrix = np.array(node["matrix"]).reshape(4, 4).T
    np.testing.assert_array_equal(matrix @ [0, 1, 0, 0], [0, -1, 0, 0])  # image down is down


def test_frusta_stand_at_the_registered_cameras(reconstruction: Reconstruction) -> None:
    segments = glb.frusta(reconstruction).reshape(-1, 10, 2, 3)
    registered = np.arange(len(reconstruction.names)) != LOST
    np.testing.assert_allclose(segments[:, 0, 0], reconstruction.world_from_cam[registered, :3, 3], atol=1e-12)
    # corners of the first camera project onto the corners of its photograph
    corners = segments[0, :4, 1] @ reconstruction.cam_from_world[0, :3, :3].T + reconstruction.cam_from_world[0, :3, 3]
    k = reconstruction.intrinsics[0]
    xy = corners[:, :2] / corners[:, 2:] * np.diag(k)[:2] + k[:2, 2]
    np.testing.assert_allclose(xy + 0.5, [[0, 0], [120, 0], [120, 90], [0, 90]], atol=1e-9)


def test_the_same_bytes_twice(reconstruction: Reconstruction, tmp_path: Path) -> None:
    files = [export(reconstruction, tmp_path / name, ["ply", "glb"]) for name in "ab"]
    assert [path.name for path in files[0]] == ["points.ply", "mesh.ply", "points.glb", "mesh.glb", "scene.json"]
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_an_empty_reconstruction_still_gives_files_that_open(reconstruction: Reconstruction, tmp_path: Path) -> None:
    nothing = np.zeros((0, 3), np.float32)
    empty = replace(
        reconstruction,
        points=nothing,
        colors=nothing.astype(np.uint8),
        normals=nothing,
        point_confidence=nothing[:, 0],
        mesh=Mesh.empty(),
        registered=np.zeros(7, bool),
    )
    files = export(empty, tmp_path, ["ply", "glb"])
    assert len(open3d().io.read_point_cloud(str(files[0])).points) == 0
    trimesh.load(files[1])
