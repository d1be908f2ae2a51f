"""Exact correspondences between views of one object: unproject, move, project, and test visibility against depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VISIBLE_TOLERANCE = 2.5
"""A point is seen in the other view if its depth there differs from the surface's by less than so many pixel widths."""
_EDGE = 8.0
"""Pixel widths of depth between neighbours above which a place is a depth edge (or seen at a grazing angle)."""


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Where the pixels of view a lie in view b. N pixels of each of B pairs."""

    xy: Tensor  # (B, N, 2) px of view b
    points: Tensor  # (B, N, 3) in camera b's frame, object units
    visible: Tensor  # (B, N) bool: seen in view b, and on the object in view a


def pixel_centres(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """All pixels (H * W, 2) float32 as (x, y), row by row."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1).float()


def unproject(intrinsics: Tensor, depth: Tensor) -> Tensor:
    """Camera-frame points (B, H, W, 3) of z-depth maps (B, H, W) under intrinsics (B, 3, 3)."""
    height, width = depth.shape[-2:]
    xy = pixel_centres(height, width, depth.device).reshape(height, width, 2)
    centre = intrinsics[:, None, None, :2, 2]
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], -1)[:, None, None]
    plane = (xy - centre) / focal
    return torch.cat([plane, torch.ones_like(plane[..., :1])], -1) * depth[..., None]


def depth_around(depth: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Bilinear depth (B, N) of `depth` (B, H, W) at `xy` (B, N, 2), and the range (B, N) of the four depths around it.

    Depth is interpolated through its inverse, which is exact on planes. Where one of the four is off the object or the
    image, the range is infinite.
    """
    height, width = depth.shape[-2:]
    low = xy.floor()
    x0, y0 = low.unbind(-1)
    inside = (x0 >= 0) & (y0 >= 0) & (x0 < width - 1) & (y0 < height - 1)
    base = (y0.clamp(0, max(height - 2, 0)) * width + x0.clamp(0, max(width - 2, 0))).long()  # (B, N)
    steps = torch.tensor([0, 1, width, width + 1], device=depth.device)
    index = (base[..., None] + steps).flatten(1).clamp(max=height * width - 1)
    corners = depth.flatten(1).gather(1, index).unflatten(1, (-1, 4))  # (B, N, 4)
    right, down = (xy - low).unbind(-1)
    weights = torch.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], -1)
    surface = 1 / (weights / corners.clamp_min(1e-6)).sum(-1).clamp_min(1e-9)
    whole = inside & (corners > 0).all(-1)
    spread = torch.where(whole, corners.amax(-1) - corners.amin(-1), torch.inf)
    return torch.where(whole, surface, 0.0), spread


def correspond(
    points_a: Tensor, on_object: Tensor, b_from_a: Tensor, intrinsics_b: Tensor, depth_b: Tensor
) -> Correspondence:
    """Correspondences in view b of camera-a points (B, N, 3), where `on_object` (B, N) says which are on the object.

    `b_from_a` (B, 4, 4) in units of the points, `intrinsics_b` (B, 3, 3) px, `depth_b` (B, H, W) z-depth, 0 off the
    object. A point whose pixel in b borders on the background counts as not visible.
    """
    points = points_a @ b_from_a[:, :3, :3].transpose(1, 2) + b_from_a[:, None, :3, 3]
    z = points[..., 2]
    ahead = z > 1e-6
    focal = torch.stack([intrinsics_b[:, 0, 0], intrinsics_b[:, 1, 1]], -1)[:, None]
    xy = points[..., :2] / torch.where(ahead, z, 1.0)[..., None] * focal + intrinsics_b[:, None, :2, 2]
    surface, spread = depth_around(depth_b, xy)
    pixel = z / focal[..., 0]  # width of a pixel at the point
    near = ((z - surface).abs() < VISIBLE_TOLERANCE * pixel) & (spread < _EDGE * pixel)
    return Correspondence(xy, points, on_object & ahead & near)


def relative_pose(object_from_a: Tensor, object_from_b: Tensor) -> Tensor:
    """b_from_a (B, 4, 4) of rigid camera poses (B, 4, 4)."""
    rotation = object_from_b[:, :3, :3].transpose(1, 2) @ object_from_a[:, :3, :3]
    shift = object_from_b[:, :3, :3].transpose(1, 2) @ (object_from_a[:, :3, 3:] - object_from_b[:, :3, 3:])
    b_from_a = torch.zeros_like(object_from_a)
    b_from_a[:, :3, :3], b_from_a[:, :3, 3:], b_from_a[:, 3, 3] = rotation, shift, 1
    return b_from_a


def correspond_views(
    depth: tuple[Tensor, Tensor], intrinsics: tuple[Tensor, Tensor], poses: tuple[Tensor, Tensor]
) -> Correspondence:
    """Correspondences in the second view of every pixel of the first, N = H * W row by row.

    Each argument holds both views': z-depth (B, H, W), intrinsics (B, 3, 3), object_from_cam (B, 4, 4).
    """
    points = unproject(intrinsics[0], depth[0]).flatten(1, 2)  # (B, HW, 3)
    b_from_a = relative_pose(*poses)
    return correspond(points, depth[0].flatten(1) > 0, b_from_a, intrinsics[1], depth[1])
