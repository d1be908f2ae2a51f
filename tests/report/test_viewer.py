"""The viewer: what it shows, and what it says without its library."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sparse_ga.cli import main
from sparse_ga.geometry.transforms import make
from sparse_ga.products import DepthMaps, MaskStack, Mesh, Reconstruction, ReconstructionReport, Tracks
from sparse_ga.report import viewer as module
from sparse_ga.report.viewer import Viewer, cloud_of, depth_points, thumbnail


def reconstruction(points: int = 50) -> Reconstruction:
    """Two cameras that look at a plane three units away, the second moved by one."""
    rng = np.random.default_rng(0)
    poses = np.stack([np.eye(4), make(np.eye(3), np.array([1.0, 0, 0]))])
    k = np.array([[100.0, 0, 15.5], [0, 100, 11.5], [0, 0, 1]])
    depth = np.zeros((24, 32), np.float32)
    depth[4:20, 6:26] = 3.0
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
    return Reconstruction(
        names=("a.png", "b.png", "c.png"),
        registered=np.array([True, True, False]),
        reasons=("", "", "no pair"),
        world_from_cam=np.concatenate([poses, np.eye(4)[None]]),
        intrinsics=np.stack([k] * 3),
        source_sizes=np.array([[32, 24]] * 3),
        working_from_source=np.stack([np.eye(3)] * 3),
        points=rng.random((points, 3)).astype(np.float32),
        colors=rng.integers(0, 255, (points, 3)).astype(np.uint8),
        normals=np.zeros((points, 3), np.float32),
        point_confidence=np.linspace(0, 1, points).astype(np.float32),
        tracks=Tracks.empty(),
        track_points=rng.random((7, 3)),
        track_colors=np.zeros((7, 3), np.uint8),
        track_errors=np.zeros(7),
        depthmaps=DepthMaps.pack([depth, depth, depth * 0], [depth, depth, depth * 0]),
        masks=MaskStack.pack([depth > 0] * 3),
        mesh=Mesh(corners, faces, np.zeros((4, 3), np.uint8)),
        report=ReconstructionReport(diameter=1.0),
    )


def test_points_by_confidence_and_thinned():
    cloud = cloud_of(reconstruction())
    assert len(cloud.at_least(0.5).points) == 25
    assert len(cloud.thinned(20).points) == 17
    assert len(cloud_of(reconstruction(0)).points) == 7  # no dense cloud: the tracks


def test_depth_points_lie_where_the_camera_saw_them():
    points = depth_points(reconstruction(), 1)
    assert points.shape == (16 * 20, 3)
    np.testing.assert_allclose(points[:, 2], 3)
    np.testing.assert_allclose(points[0], [1 + (6 - 15.5) * 0.03, (4 - 11.5) * 0.03, 3], rtol=1e-5)
    assert depth_points(reconstruction(), 2).shape == (0, 3)


def test_thumbnails_keep_their_ratio():
    assert thumbnail(np.zeros((480, 640, 3), np.uint8)).shape == (192, 256, 3)
    assert thumbnail(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40, 3)


def test_without_viser_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert main(["view", str(tmp_path)]) == 2
    assert "pip install 'sparse_ga[viewer]'" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("viser") is None, reason="viser, an optional extra, is not installed")
def test_controls_change_what_is_shown(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    photographs = np.zeros((24, 32, 3), np.uint8), np.ones((24, 32), bool)
    viewer = Viewer(reconstruction(), tmp_path, lambda n: photographs, port)
    try:
        assert len(viewer._frusta) == 2
        viewer.confidence.value = 0.5
        viewer.show_mesh.value = True
        viewer.show_cameras.value = False
        viewer.depth_of.value = "b.png"
        viewer.update()
        assert len(viewer._points.points) == 25
        assert viewer._mesh.visible
        assert not viewer._frusta[0].visible
        assert b"element vertex 25\n" in viewer.write().read_bytes()
    finally:
        viewer.close()
