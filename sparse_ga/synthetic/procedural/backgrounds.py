"""What is behind the object: nothing, a world that moves with it (floor and far walls), or one that does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.bundle import Draw, TensorBundle, select
from sparse_ga.synthetic.procedural.cameras import Cameras
from sparse_ga.synthetic.procedural.lighting import LIGHTS, Lights, soft_shadow
from sparse_ga.synthetic.procedural.materials import Texture, albedo, draw_texture
from sparse_ga.synthetic.procedural.sampling import lattice
from sparse_ga.synthetic.procedural.tracing import GRID_HALF_EXTENT, DistanceGrid

NOTHING, RIGID, STATIC = range(3)
_FLOOR_RADIUS = 6.0


@dataclass(frozen=True, eq=False)
class Backgrounds(TensorBundle):
    """Backgrounds of B objects; `kind` is NOTHING (one colour), RIGID (moves with the object) or STATIC."""

    kind: Tensor  # (B,) int64
    far: Texture  # by direction
    floor: Texture  # by position
    floor_height: Tensor  # (B,) along the up axis
    plain: Tensor  # (B, 3) linear RGB of NOTHING
    light: Tensor  # (B,) brightness of the far walls


def floor_height(grid: DistanceGrid, up: Tensor) -> Tensor:
    """Height (B,) of each object's lowest point along `up` (B, 3)."""
    resolution = grid.volume.shape[-1]
    points = lattice(resolution, GRID_HALF_EXTENT, grid.volume.device)  # (3, n^3)
    height = up @ points  # (B, n^3)
    return torch.where(grid.volume.flatten(1) < 0, height, torch.inf).amin(1)


def sample_backgrounds(draw: Draw, noise: Tensor, height: Tensor) -> Backgrounds:
    """Random backgrounds over the objects' noise tables; `height` (B,) is that of the floor."""
    batch = len(noise)
    busy = torch.zeros(batch, dtype=torch.bool)
    grey = draw.uniform(0, 1, batch, 1)
    studio = torch.where(draw.chance(0.5, batch, 1), (grey > 0.5).float() * 0.9, grey)
    tinted = (studio + 0.15 * draw.normal(batch, 3) * draw.chance(0.4, batch, 1)).clamp(0, 1)
    return Backgrounds(
        kind=draw.choice([0.3, 0.4, 0.3], batch),
        far=draw_texture(draw, noise.roll(1, 0), busy),
        floor=draw_texture(draw, noise.roll(1, 0).flip(2), draw.chance(0.3, batch)),
        floor_height=height,
        plain=tinted,
        light=draw.uniform(0.3, 1.1, batch),
    )


def _floor(background: Backgrounds, cameras: Cameras, rays: Tensor, eyes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays (B, 3, R) from `eyes` (B, 3, R) meet the floor: points, distances (B, R), whether they do (B, R)."""
    up = cameras.up[..., None]
    drop = -(rays * up).sum(1)
    above = (eyes * up).sum(1) - background.floor_height[:, None]
    distance = above / drop.clamp_min(1e-4)
    points = eyes + distance[:, None] * rays
    near = points.square().sum(1) < _FLOOR_RADIUS**2
    return points, distance, (drop > 1e-4) & (above > 0) & near & (background.kind == RIGID)[:, None]


def _floor_light(lights: Lights, grid: DistanceGrid, up: Tensor, points: Tensor) -> Tensor:
    """Light (B, 3, M) on floor points, with the object's soft shadow, rigid scenes only (view 0's lights)."""
    total = lights.sky[..., None].expand_as(points)
    contact = (grid.distance(points) / 0.25).clamp(0, 1)
    total = total * (0.35 + 0.65 * contact)[:, None]
    for k in range(LIGHTS):
        towards = torch.nn.functional.normalize(lights.position[:, 0, k, :, None] - points, dim=1)
        facing = (towards * up[..., None]).sum(1).clamp_min(0)
        lit = soft_shadow(grid, points, towards, lights.sharpness[:, k, None])
        total = total + lights.colour[:, k, :, None] * (facing * lit * torch.pi / 2)[:, None]
    return total


def render_background(
    background: Backgrounds, cameras: Cameras, lights: Lights, grid: DistanceGrid, rays: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Linear RGB (B, 3, V * R) behind unit camera-frame rays (B, V, 3, R), and the floor's z-depth, 0 without floor.

    `rays` are the directions and their z, as `camera_rays` gives them. In a STATIC background the far walls turn with
    the camera: only the object moves in the picture.
    """
    directions, z = rays
    views, count = directions.shape[1], directions.shape[3]
    if not bool((background.kind != NOTHING).any()):
        return background.plain[..., None].expand(-1, -1, views * count), torch.zeros_like(z).flatten(1)
    rotation = cameras.object_from_cam[..., :3, :3]
    world = (rotation @ directions).transpose(1, 2).flatten(2)  # (B, 3, V * R) object frame
    held = (rotation[:, :1] @ directions).transpose(1, 2).flatten(2)
    eyes = cameras.object_from_cam[..., :3, 3].transpose(1, 2).repeat_interleave(count, 2)
    seen = torch.where((background.kind == STATIC)[:, None, None], held, world)
    size = 1 / cameras.intrinsics[..., 0, 0].repeat_interleave(count, 1)  # (B, V * R) radians of a pixel
    colour = albedo(background.far, None, 1.5 * seen, 1.5 * size) * background.light[:, None, None]
    colour = torch.where((background.kind == NOTHING)[:, None, None], background.plain[..., None], colour)
    points, distance, on_floor = _floor(background, cameras, world, eyes)
    depth = torch.where(on_floor, distance * z.flatten(1), 0.0)
    chosen = select(on_floor)
    if chosen.count == 0:
        return colour, depth
    points, distance, size = chosen.gather(points), chosen.gather(distance), chosen.gather(size)
    paint = albedo(background.floor, None, points, distance * size * 2)
    lit = paint * _floor_light(lights, grid, cameras.up, points)
    edge = ((_FLOOR_RADIUS - points.square().sum(1).sqrt()) / 2).clamp(0, 1)[:, None]
    return chosen.scatter(colour, lit * edge + chosen.gather(colour) * (1 - edge)), depth
