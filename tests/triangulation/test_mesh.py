"""Meshes: watertight, trimmed to the evidence, of the right volume."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from balls import ball_views

from sparse_ga.products import Array, Mesh
from sparse_ga.triangulation import mesh as mesh_module
from sparse_ga.triangulation.fusion import Cloud
from sparse_ga.triangulation.mesh import poisson_mesh, vertex_colors, with_hull


def ball_cloud(count: int = 6000, lowest: float = -1.0) -> Cloud:
    """Points of the unit ball above a height, by the golden spiral."""
    z = np.linspace(lowest, 1, count)
    angle = np.arange(count) * 2.399963
    radius = np.sqrt(np.maximum(1 - z**2, 0))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1)
    return Cloud(points, points / np.linalg.norm(points, axis=1, keepdims=True), np.ones(count))


def paint(points: Array) -> Array:
    return np.clip(128 + 127 * points, 0, 255).astype(np.uint8)


def solid(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.mark.slow
def test_a_ball_is_watertight_and_of_the_right_volume() -> None:
    cloud = ball_cloud()
    mesh = poisson_mesh(cloud, cloud.points, paint(cloud.points), 6)
    assert solid(mesh).is_watertight
    assert solid(mesh).volume == pytest.approx(4 / 3 * np.pi, rel=0.02)
    assert np.abs(mesh.colors.astype(float) - paint(mesh.vertices)).mean() < 6


@pytest.mark.slow
def test_an_unseen_side_is_closed_without_inventing_a_balloon() -> None:
    cloud = ball_cloud(lowest=-0.4)
    mesh = poisson_mesh(cloud, cloud.points, paint(cloud.points), 6)
    seen = np.pi / 3 * 1.4**2 * (3 - 1.4)  # spherical cap of height 1.4
    assert solid(mesh).is_watertight
    assert solid(mesh).volume == pytest.approx(seen, rel=0.05)
    assert mesh.vertices[:, 2].min() > -0.5


@pytest.mark.slow
def test_the_hull_bounds_what_no_view_gives() -> None:
    rig, views = ball_views(16, size=(192, 144))
    cloud = ball_cloud(lowest=-0.4)
    bound = with_hull(cloud, rig, [view.mask for view in views], 2.0)
    extra = bound.points[len(cloud) :]
    assert len(extra) > 50
    assert extra[:, 2].max() < -0.3  # only where there is no evidence
    mesh = poisson_mesh(bound, cloud.points, paint(cloud.points), 6)
    assert solid(mesh).is_watertight
    assert solid(mesh).volume == pytest.approx(4 / 3 * np.pi, rel=0.08)


def test_scraps_are_dropped() -> None:
    ball = ball_cloud()
    scrap = np.random.default_rng(0).normal(size=(30, 3)) * 0.01 + (2.0, 0, 0)
    cloud = Cloud(
        np.concatenate([ball.points, scrap]),
        np.concatenate([ball.normals, scrap - (2.0, 0, 0)]),
        np.ones(len(ball) + 30),
    )
    mesh = poisson_mesh(cloud, cloud.points, paint(cloud.points), 6)
    assert mesh.vertices[:, 0].max() < 1.2
    assert solid(mesh).is_watertight


def test_two_sheets_that_touch_stay_watertight_when_a_reader_merges_vertices(monkeypatch: pytest.MonkeyPatch) -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    a, b = ball.edges_unique[100]
    vertices = np.asarray(ball.vertices)
    middle = (vertices[a] + vertices[b]) / 2
    normal = middle / np.linalg.norm(middle)
    along = (vertices[b] - vertices[a]) / np.linalg.norm(vertices[b] - vertices[a])
    mirror = vertices - 2 * np.outer((vertices - middle) @ normal, normal)
    mirror -= 2 * np.outer((mirror - middle) @ np.cross(normal, along), np.cross(normal, along))  # a turn: faces keep
    touching = mesh_module._Surface(
        np.concatenate([vertices, mirror]),
        np.concatenate([np.asarray(ball.faces), np.asarray(ball.faces) + len(mirror)]),
    )
    joined = trimesh.Trimesh(touching.vertices.astype(np.float32), touching.faces)
    assert len(joined.vertices) == 2 * len(vertices) - 2
    assert not joined.is_watertight
    monkeypatch.setattr(mesh_module, "_poisson", lambda *_: touching)
    points = touching.vertices
    made = poisson_mesh(Cloud(points, points, np.ones(len(points))), points, paint(points), 5)
    read = trimesh.Trimesh(made.vertices, made.faces)
    assert len(read.vertices) == 2 * len(vertices)
    assert read.is_watertight
    assert read.volume == pytest.approx(2 * ball.volume, rel=1e-3)
    assert np.abs(made.vertices - points).max() < 0.02


def test_edges_where_four_faces_meet_are_cut_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    faces = np.asarray(ball.faces)
    fin = faces[100]  # a double face that stands on an edge, with a tip of its own
    vertices = np.concatenate([np.asarray(ball.vertices), ball.vertices[fin[:2]].mean(0, keepdims=True) * 1.02])
    tip = len(vertices) - 1
    pinched = mesh_module._Surface(vertices, np.concatenate([faces, [[*fin[:2], tip], [fin[1], fin[0], tip]]]))
    assert not trimesh.Trimesh(pinched.vertices, pinched.faces, process=False).is_watertight
    monkeypatch.setattr(mesh_module, "_poisson", lambda *_: pinched)
    points = np.asarray(ball.vertices)
    mesh = solid(poisson_mesh(Cloud(points, points, np.ones(len(points))), points, paint(points), 5))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(ball.volume, rel=0.005)


@pytest.mark.slow
def test_the_same_cloud_gives_the_same_bytes() -> None:
    cloud = ball_cloud()
    meshes = [poisson_mesh(cloud, cloud.points, paint(cloud.points), 6) for _ in range(2)]
    assert meshes[0].vertices.tobytes() == meshes[1].vertices.tobytes()
    assert meshes[0].faces.tobytes() == meshes[1].faces.tobytes()


@pytest.mark.parametrize("count", [0, 1, 20])
def test_too_few_points_make_no_mesh(count: int) -> None:
    cloud = ball_cloud(max(count, 1)).select(slice(0, count))
    assert len(poisson_mesh(cloud, cloud.points, paint(cloud.points), 5).faces) == 0


def test_colours_of_few_points() -> None:
    colors = vertex_colors(np.zeros((2, 3)), np.array([[0.0, 0, 1]]), np.array([[10, 20, 30]], np.uint8))
    assert colors.tolist() == [[10, 20, 30]] * 2
