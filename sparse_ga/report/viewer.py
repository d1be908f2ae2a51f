"""The interactive viewer (viser, optional): cloud, mesh, cameras with their photographs, depth of each view."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparse_ga.errors import InputError
from sparse_ga.geometry.cameras import unproject_depth
from sparse_ga.geometry.placement import display_origin, shifted
from sparse_ga.geometry.transforms import apply
from sparse_ga.io import ply
from sparse_ga.io.export import LoadSource
from sparse_ga.products import Array, Reconstruction
from sparse_ga.report.showcase import eye_of

_MOST_POINTS = 400_000
_PHOTOGRAPH_PX = 256
_FRUSTUM_RGB = (45, 108, 223)


def require_viser() -> None:
    """Raise `InputError` saying what to install when the viewer's library is missing."""
    if find_spec("viser") is None:
        raise InputError("the viewer needs viser; install it with: pip install 'sparse_ga[viewer]'")


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points as they are shown."""

    points: Array  # (P, 3) float64
    colors: Array  # (P, 3) uint8
    normals: Array  # (P, 3) float32
    confidence: Array  # (P,) float32

    def at_least(self, confidence: float) -> Cloud:
        """The points of at least this confidence."""
        keep = self.confidence >= confidence
        return Cloud(self.points[keep], self.colors[keep], self.normals[keep], self.confidence[keep])

    def thinned(self, most: int = _MOST_POINTS) -> Cloud:
        """Every n-th point, so that no more than `most` are left."""
        every = max(1, -(-len(self.points) // most))
        return Cloud(self.points[::every], self.colors[::every], self.normals[::every], self.confidence[::every])


def cloud_of(reconstruction: Reconstruction) -> Cloud:
    """The dense cloud, or the track points where there is none."""
    r = reconstruction
    if len(r.points):
        return Cloud(r.points, r.colors, r.normals, r.point_confidence)
    count = len(r.track_points)
    empty = np.zeros((count, 3), np.float32)
    return Cloud(r.track_points, r.track_colors, empty, np.ones(count, np.float32))


def depth_points(reconstruction: Reconstruction, n: int) -> Array:
    """World points (F, 3) float32 of the depth map of view n."""
    depth, _ = reconstruction.depthmaps.view(n)
    points = unproject_depth(reconstruction.working_intrinsics[n], depth.astype(float))[depth > 0]
    return apply(reconstruction.world_from_cam[n], points).astype(np.float32)


def thumbnail(photograph: Array, side: int = _PHOTOGRAPH_PX) -> Array:
    """A photograph (H, W, 3) uint8 with its long side at most `side`."""
    image = Image.fromarray(photograph)
    image.thumbnail((side, side))
    return np.asarray(image)


class Viewer:
    """A running viewer; `server` is viser's."""

    def __init__(self, reconstruction: Reconstruction, out: Path, load_source: LoadSource | None, port: int) -> None:
        """Serve a reconstruction at http://localhost:port; the export button writes into `out`.

        viser's scene is float32: one that is far from the world's origin is shown about its middle. What is written
        is in the reconstruction's own frame.
        """
        require_viser()
        import viser

        self.given = reconstruction
        self.reconstruction = shifted(reconstruction, -display_origin(reconstruction))
        self.out = out
        cloud = cloud_of(self.reconstruction).thinned()
        self.cloud = replace(cloud, points=cloud.points.astype(np.float32))
        self.server = viser.ViserServer(port=port, verbose=False)
        self._size = max(reconstruction.report.diameter, 1e-6)
        self._up()
        self._points = self.server.scene.add_point_cloud(
            "/cloud", self.cloud.points, self.cloud.colors, point_size=self._size / 500
        )
        self._add_mesh()
        self._frusta = self._add_cameras(load_source)
        self._add_controls()
        self.server.on_client_connect(self._first_look)

    def _first_look(self, client: Any) -> None:
        """Whoever opens the page sees the whole object from the cameras' side."""
        r = self.reconstruction
        points = r.points if len(r.points) else r.track_points
        middle = (points.min(0) + points.max(0)) / 2 if len(points) else np.zeros(3)
        client.camera.position = tuple(map(float, eye_of(r, (100, 100), 25.0).world_from_cam[:3, 3]))
        client.camera.look_at = tuple(map(float, middle))

    def _up(self) -> None:
        """The mean of the cameras' upward directions points up."""
        known = self.reconstruction.world_from_cam[self.reconstruction.registered]
        up = -known[:, :3, 1].mean(0) if len(known) else np.array([0.0, -1.0, 0.0])
        norm = float(np.linalg.norm(up))
        self.server.scene.set_up_direction(tuple(up / norm) if norm > 0.1 else (0.0, -1.0, 0.0))

    def _add_mesh(self) -> None:
        self._mesh: Any = None
        mesh = self.reconstruction.mesh
        if len(mesh.faces):
            import trimesh

            surface = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=mesh.colors, process=False)
            self._mesh = self.server.scene.add_mesh_trimesh("/mesh", surface, visible=False)

    def _add_cameras(self, load_source: LoadSource | None) -> list[Any]:
        r = self.reconstruction
        frusta = []
        for n in map(int, np.flatnonzero(r.registered)):
            width, height = (int(side) for side in r.source_sizes[n])
            frusta.append(
                self.server.scene.add_camera_frustum(
                    f"/cameras/{r.names[n]}",
                    fov=float(2 * np.arctan2(height / 2, r.intrinsics[n, 1, 1])),
                    aspect=width / height,
                    scale=self._size / 16,
                    thickness=1.5,
                    thickness_units="screen",
                    color=_FRUSTUM_RGB,
                    image=None if load_source is None else thumbnail(load_source(n)[0]),
                    wxyz=_quaternion(r.world_from_cam[n, :3, :3]),
                    position=tuple(r.world_from_cam[n, :3, 3]),
                )
            )
        return frusta

    def _add_controls(self) -> None:
        gui = self.server.gui
        self.confidence = gui.add_slider("least confidence", 0.0, 1.0, 0.01, 0.0)
        self.show_cloud = gui.add_checkbox("points", True)
        self.show_mesh = gui.add_checkbox("mesh", False, disabled=self._mesh is None)
        self.show_cameras = gui.add_checkbox("cameras", True)
        r = self.reconstruction
        registered = [name for name, done in zip(r.names, r.registered, strict=True) if done]
        self.depth_of = gui.add_dropdown("depth of view", ("none", *registered))
        self.export = gui.add_button("export points.ply")
        for control in (self.confidence, self.show_cloud, self.show_mesh, self.show_cameras, self.depth_of):
            control.on_update(lambda _: self.update())
        self.export.on_click(lambda _: self.write())

    def update(self) -> None:
        """Show what the controls say."""
        shown = self.cloud.at_least(self.confidence.value)
        self._points.points, self._points.colors = shown.points, shown.colors
        self._points.visible = self.show_cloud.value
        if self._mesh is not None:
            self._mesh.visible = self.show_mesh.value
        for frustum in self._frusta:
            frustum.visible = self.show_cameras.value
        self.server.scene.remove_by_name("/depth")
        if self.depth_of.value != "none":
            points = depth_points(self.reconstruction, self.reconstruction.names.index(self.depth_of.value))
            colour = np.broadcast_to(np.array([255, 140, 0], np.uint8), points.shape)
            self.server.scene.add_point_cloud("/depth", points, colour, point_size=self._size / 500)

    def write(self) -> Path:
        """Write all points of at least the chosen confidence as PLY."""
        shown = cloud_of(self.given).at_least(self.confidence.value)
        path = self.out / "points_selected.ply"
        path.write_bytes(ply.encode_points(shown.points, shown.colors, shown.normals, shown.confidence))
        return path

    def close(self) -> None:
        """Stop serving."""
        self.server.stop()


def _quaternion(rotation: Array) -> tuple[float, float, float, float]:
    """Unit quaternion (w, x, y, z) of a rotation (3, 3)."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return float(w), float(x), float(y), float(z)
