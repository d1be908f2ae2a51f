"""One picture of what went in and what came out: masked photographs beside the points and the mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparse_ga.geometry.cameras import make_intrinsics, pixel_grid, project, rays
from sparse_ga.geometry.placement import display_origin, shifted
from sparse_ga.geometry.transforms import apply, inverse
from sparse_ga.products import Array, Reconstruction, View
from sparse_ga.report.figures import upright_rotation
from sparse_ga.report.pictures import REGISTERED_RGB, outlined

_SUPERSAMPLED = 2
_ELEVATION_DEG = 28.0
_FIELD_DEG = 30.0
_SPREAD = 0.98  # share of the points that must fit into the picture
_GAP = 14
_CAPTION = 30
_INK = (60, 70, 80)


@dataclass(frozen=True, eq=False)
class Eye:
    """A camera that looks at the object from outside the photographs."""

    world_from_cam: Array  # (4, 4)
    intrinsics: Array  # (3, 3), px of a picture of `size`
    size: tuple[int, int]  # (W, H)


def eye_of(reconstruction: Reconstruction, size: tuple[int, int], turn_deg: float = 0.0) -> Eye:
    """An eye at the first registered camera's side of the object, `turn_deg` further around it, that sees all of it.

    The object's upward direction is the mean of the cameras'.
    """
    r = reconstruction
    points = (r.points if len(r.points) else r.track_points).astype(float)
    middle = (points.min(0) + points.max(0)) / 2 if len(points) else np.zeros(3)
    radius = float(np.quantile(np.linalg.norm(points - middle, axis=1), _SPREAD)) if len(points) else 1.0
    upright = upright_rotation(r)  # display from world
    first = upright @ (r.world_from_cam[int(np.argmax(r.registered)), :3, 3] - middle)
    angle = np.arctan2(first[1], first[0]) + np.radians(turn_deg)
    tilt = np.radians(_ELEVATION_DEG)
    outward = np.array([np.cos(angle) * np.cos(tilt), np.sin(angle) * np.cos(tilt), np.sin(tilt)])
    forward = -outward
    right = np.cross(forward, [0.0, 0, 1])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = upright.T @ np.stack([right, np.cross(forward, right), forward], 1)
    distance = 1.1 * radius / np.sin(np.radians(_FIELD_DEG / 2))
    pose[:3, 3] = middle + upright.T @ outward * distance
    focal = min(size) / 2 / np.tan(np.radians(_FIELD_DEG / 2))
    return Eye(pose, make_intrinsics(focal, (np.array(size) - 1) / 2), size)


def draw_points(points: Array, colors: Array, eye: Eye, dot_px: int = 2) -> Array:
    """Picture (H, W, 3) uint8 of points (P, 3) in their colours (P, 3) on white, the nearest in front."""
    width, height = eye.size
    in_cam = apply(inverse(eye.world_from_cam), points.astype(float))
    xy, front = project(eye.intrinsics, in_cam)
    order = np.flatnonzero(front)[np.argsort(-in_cam[front, 2], kind="stable")]  # far to near
    picture = np.full((height, width, 3), 255, np.uint8)
    base = np.round(xy[order]).astype(int)
    for dx in range(dot_px):
        for dy in range(dot_px):
            x, y = base[:, 0] + dx, base[:, 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            picture[y[inside], x[inside]] = colors[order][inside]
    return picture


def draw_mesh(reconstruction: Reconstruction, eye: Eye) -> Array:
    """Picture (H, W, 3) uint8 of the mesh in its vertices' colours, on white."""
    from sparse_ga.synthetic.raycast import cast, ray_caster
    from sparse_ga.synthetic.shapes import Mesh

    mesh, (width, height) = reconstruction.mesh, eye.size
    vertices = mesh.vertices.astype(float)
    caster = ray_caster(Mesh(vertices, mesh.faces, np.zeros_like(vertices)))  # normals play no part
    directions = rays(eye.intrinsics, pixel_grid(height, width).reshape(-1, 2))  # (H W, 3)
    depth, triangle, uv = cast(caster, eye.world_from_cam, directions)
    hit = np.isfinite(depth)
    corners = mesh.colors[mesh.faces[triangle[hit]]].astype(float)  # (K, 3, 3), triangle's corners by colour
    weights = np.concatenate([1 - uv[hit].sum(1, keepdims=True), uv[hit]], 1)[..., None]  # (K, 3, 1)
    picture = np.full((height * width, 3), 255, np.uint8)
    picture[hit] = np.clip((corners * weights).sum(1), 0, 255).round().astype(np.uint8)
    return picture.reshape(height, width, 3)


def showcase(
    reconstruction: Reconstruction, views: Sequence[View], height: int = 240, turn_deg: float = 25.0
) -> Image.Image:
    """Some masked photographs in a row, then the points and, if there is one, the mesh, all `height` px high."""
    panels = []
    for view in views:
        side = max(height, round(height * view.width / view.height))
        photograph = outlined(view.image, view.mask, REGISTERED_RGB, side).convert("RGB")
        panels.append((_of_height(photograph, height), "photograph and mask"))
    large = (height * _SUPERSAMPLED, height * _SUPERSAMPLED)
    r = shifted(reconstruction, -display_origin(reconstruction))  # rays are cast in float32
    eye = eye_of(r, large, turn_deg)
    shown, colors = (r.points, r.colors) if len(r.points) else (r.track_points, r.track_colors)
    cloud = Image.fromarray(draw_points(shown, colors, eye))
    panels.append((_of_height(cloud, height), f"{len(shown):,} points"))
    if len(r.mesh.faces):
        panels.append((_of_height(Image.fromarray(draw_mesh(r, eye)), height), "mesh"))
    return _row(panels, height)


def _of_height(image: Image.Image, height: int) -> Image.Image:
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _row(panels: Sequence[tuple[Image.Image, str]], height: int) -> Image.Image:
    """Panels side by side with a caption below each."""
    width = sum(panel.width + _GAP for panel, _ in panels) + _GAP
    canvas = Image.new("RGB", (width, height + _GAP + _CAPTION), (255, 255, 255))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
    left = _GAP
    for panel, caption in panels:
        canvas.paste(panel, (left, _GAP))
        draw.text((left + panel.width / 2, height + _GAP + 7), caption, fill=_INK, font=font, anchor="mt")
        left += panel.width + _GAP
    return canvas
