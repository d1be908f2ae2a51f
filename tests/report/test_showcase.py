"""The picture of inputs and result: what is drawn, where, and what covers what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_report import details_of, reconstruction

from sparse_ga.geometry.cameras import project
from sparse_ga.geometry.transforms import apply, inverse
from sparse_ga.products import Mesh
from sparse_ga.report.showcase import Eye, draw_mesh, draw_points, eye_of, showcase

K = np.array([[50.0, 0, 9.5], [0, 50, 9.5], [0, 0, 1]])


def test_the_nearest_point_covers_the_others():
    points = np.array([[0, 0, 4.0], [0, 0, 2], [0, 0, 3], [0, 0, -1]])
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]], np.uint8)
    picture = draw_points(points, colors, Eye(np.eye(4), K, (20, 20)), 2)
    np.testing.assert_array_equal(picture[10, 10], [0, 255, 0])
    assert (picture != 255).any(-1).sum() == 4


def test_points_beside_the_picture_are_left_out():
    points = np.array([[9.0, 0, 1], [0, -9, 1], [0.19, 0, 1]])
    picture = draw_points(points, np.zeros((3, 3), np.uint8), Eye(np.eye(4), K, (20, 20)), 2)
    assert (picture == 0).all(-1).sum() == 2  # one column of the last one
    assert (draw_points(points[:0], np.zeros((0, 3), np.uint8), Eye(np.eye(4), K, (20, 20))) == 255).all()


@pytest.mark.parametrize("turn_deg", [0.0, 90.0, 200.0])
def test_the_eye_sees_the_whole_object_upright(turn_deg: float):
    r = reconstruction(left_out=())
    eye = eye_of(r, (200, 200), turn_deg)
    xy, front = project(eye.intrinsics, apply(inverse(eye.world_from_cam), r.points.astype(float)))
    assert front.all()
    assert (xy > 0).all()
    assert (xy < 199).all()
    assert np.ptp(xy, axis=0).min() > 120
    assert eye.world_from_cam[2, 1] < -0.5  # down in the picture is down in the world, whose cameras circle z
    np.testing.assert_allclose(eye.world_from_cam[:3, :3] @ eye.world_from_cam[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(eye.world_from_cam[:3, :3]) == pytest.approx(1)


def test_the_mesh_is_drawn_where_it_is():
    corners = np.array([[-0.1, -0.1, 1], [0.1, -0.1, 1], [0.1, 0.1, 1], [-0.1, 0.1, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    colors = np.array([[200, 0, 0]] * 4, np.uint8)
    r = dataclasses.replace(reconstruction(), mesh=Mesh(corners, faces, colors))
    picture = draw_mesh(r, Eye(np.eye(4), K, (20, 20)))
    red = np.argwhere((picture == (200, 0, 0)).all(-1))
    assert red.min(0).tolist() == [5, 5]
    assert red.max(0).tolist() == [14, 14]
    assert (picture[0, 0] == 255).all()


def test_panels_stand_in_a_row():
    r = reconstruction(left_out=(), points=20_000)
    views = details_of(r).views[:2]
    picture = np.asarray(showcase(r, views, 90))
    assert picture.shape == (90 + 14 + 30, 14 + 2 * (120 + 14) + 90 + 14, 3)
    magenta = (np.abs(picture.astype(int) - (255, 0, 255)) < 40).all(-1)
    points = 14 + 2 * (120 + 14)  # left side of their panel
    assert magenta[14:104, points : points + 90].sum() > 300
    assert magenta[14:104, 14 : points - 14].sum() < 100
    nothing = reconstruction(left_out=(0, 1, 2, 3, 4), points=0)
    assert showcase(nothing, views, 90).size == (picture.shape[1], picture.shape[0])
