"""Random cameras about an object: orbits and free viewpoints, 10 to 80 degrees of view, any roll."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.bundle import Draw, TensorBundle, axis_rotation


@dataclass(frozen=True, eq=False)
class Cameras(TensorBundle):
    """V pinhole cameras for each of B objects, OpenCV axes, integer pixel coordinates at pixel centres."""

    intrinsics: Tensor  # (B, V, 3, 3) px
    object_from_cam: Tensor  # (B, V, 4, 4) object units
    up: Tensor  # (B, 3) object frame: the axis of the orbit, away from the floor
    turntable: Tensor  # (B,) bool: the object turned before a camera that stood still
    size: Tensor  # (B, 2): width, height in px


def _orthonormal(forward: Tensor, up: Tensor) -> Tensor:
    """object_from_cam rotations (..., 3, 3) that look along `forward` with image-up near `up`."""
    right = torch.linalg.cross(forward, up, dim=-1)
    spare = torch.linalg.cross(forward, up.roll(1, -1) + 0.1, dim=-1)
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-2, spare, right)
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right, dim=-1)
    return torch.stack([right, down, forward], -1)


def _orbit(draw: Draw, up: Tensor, views: int) -> Tensor:
    """Directions (B, V, 3) from object to camera on a ring of one elevation, 6 to 60 degrees apart."""
    batch = len(up)
    elevation = draw.uniform(math.radians(-15), math.radians(65), batch, 1) + 0.05 * draw.normal(batch, views)
    step = draw.uniform(math.radians(6), math.radians(60), batch, 1) * (1 + 0.2 * draw.normal(batch, views))
    azimuth = step.cumsum(1) + draw.uniform(0, 2 * math.pi, batch, 1)
    ring = torch.stack([azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin()], -1)
    frame = _orthonormal(up, up.roll(1, -1))  # its third axis is up
    return torch.einsum("bij,bvj->bvi", frame, ring)


def _free(draw: Draw, batch: int, views: int) -> Tensor:
    """Directions (B, V, 3) from object to camera, each up to 75 degrees from the object's random main direction."""
    main = draw.direction(batch, 1).expand(-1, views, -1)
    sideways = torch.nn.functional.normalize(torch.linalg.cross(main, draw.direction(batch, views), dim=-1), dim=-1)
    angle = draw.uniform(0, math.radians(75), batch, views)
    return torch.einsum("bvij,bvj->bvi", axis_rotation(sideways, angle), main)


def _focals(draw: Draw, batch: int, views: int) -> Tensor:
    """Focal lengths (B, V) in units of the long side: 10 to 80 degrees of view, zoomed between views in 3 of 10."""
    low, high = 0.5 / math.tan(math.radians(40)), 0.5 / math.tan(math.radians(5))
    focal = draw.log_uniform(low, high, batch, 1).expand(-1, views)
    zoom = torch.where(draw.chance(0.3, batch, 1), draw.uniform(0.8, 1.25, batch, views), 1.0)
    return (focal * zoom).clamp(low, high)


def _rolls(draw: Draw, batch: int, views: int) -> Tensor:
    """Roll angles (B, V) rad: a third nearly upright, a third upright, sideways or upside down, a third anything."""
    kind = draw.choice([1, 1, 1], batch, 1)
    small = 0.1 * draw.normal(batch, views)
    quarter = draw.choice([2, 1, 1, 1], batch, views) * (math.pi / 2)
    anything = draw.uniform(-math.pi, math.pi, batch, views)
    return torch.where(kind == 0, small, torch.where(kind == 1, small + quarter, anything))


def sample_cameras(draw: Draw, centre: Tensor, radius: Tensor, views: int, size: tuple[int, int]) -> Cameras:
    """V cameras about each object, whose bounding sphere has `centre` (B, 3) and `radius` (B,); `size` is (W, H)."""
    batch, (width, height) = len(centre), size
    along_z = torch.tensor([0.0, 0.0, 1.0]).expand(batch, 3)
    up = torch.where(draw.chance(0.5, batch, 1), along_z, draw.direction(batch))
    free = draw.chance(0.5, batch)
    towards = torch.where(free[:, None, None], _free(draw, batch, views), _orbit(draw, up, views))  # (B, V, 3)
    focal = _focals(draw, batch, views)  # long sides
    fill = draw.uniform(0.75, 1.45, batch, 1) * draw.uniform(0.9, 1.1, batch, views)
    short = min(width, height) / max(width, height)
    distance = radius[:, None] * (1 + (2 * focal / (short * fill)).square()).sqrt()
    jitter = draw.normal(batch, views, 3) * (0.06 * radius)[:, None, None]
    eye = centre[:, None] + towards * distance.clamp_min(1.02 * radius[:, None])[..., None]
    look = torch.nn.functional.normalize(centre[:, None] + jitter - eye, dim=-1)
    roll = axis_rotation(torch.tensor([0.0, 0.0, 1.0]).expand(batch, views, 3), _rolls(draw, batch, views))
    object_from_cam = torch.eye(4).repeat(batch, views, 1, 1)
    object_from_cam[..., :3, :3] = _orthonormal(look, up[:, None].expand(-1, views, -1)) @ roll
    object_from_cam[..., :3, 3] = eye
    intrinsics = torch.eye(3).repeat(batch, views, 1, 1)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal * max(width, height)
    off_centre = draw.normal(batch, 1, 2) * 0.02 * draw.chance(0.3, batch, 1, 1)
    intrinsics[..., :2, 2] = (torch.tensor([width, height]) - 1) / 2 + off_centre * max(width, height)
    pixels = torch.tensor([width, height]).expand(batch, 2)
    return Cameras(intrinsics, object_from_cam, up, draw.chance(0.5, batch), pixels)


def camera_rays(cameras: Cameras, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit rays through all pixel centres, camera frame (B, V, 3, H * W), and their z (B, V, H * W)."""
    device = cameras.intrinsics.device
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    pixels = torch.stack([x, y]).flatten(1).to(cameras.intrinsics)  # (2, HW)
    focal = torch.stack([cameras.intrinsics[..., 0, 0], cameras.intrinsics[..., 1, 1]], -1)[..., None]
    plane = (pixels - cameras.intrinsics[..., :2, 2, None]) / focal  # (B, V, 2, HW)
    z = 1 / (1 + plane.square().sum(2)).sqrt()
    return torch.cat([plane * z[:, :, None], z[:, :, None]], 2), z
