"""Light on surfaces: one to four point lights with soft shadows, ambient light with occlusion, highlights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.bundle import Draw, TensorBundle
from sparse_ga.synthetic.procedural.cameras import Cameras
from sparse_ga.synthetic.procedural.materials import Finish
from sparse_ga.synthetic.procedural.noise import value_noise
from sparse_ga.synthetic.procedural.tracing import DistanceGrid

LIGHTS = 4


@dataclass(frozen=True, eq=False)
class Lights(TensorBundle):
    """Lights of V views of B objects. Lights of a turntable stay with the camera, others with the object."""

    position: Tensor  # (B, V, 4, 3) object frame
    colour: Tensor  # (B, 4, 3) linear RGB, 0 where there is no light
    sharpness: Tensor  # (B, 4) of the shadow's edge
    sky: Tensor  # (B, 3) ambient light from above
    ground: Tensor  # (B, 3) ambient light from below
    up: Tensor  # (B, V, 3) object frame


def sample_lights(draw: Draw, cameras: Cameras) -> Lights:
    """Random lights; at least one of them on the camera's side, as photographers have it."""
    batch, views = cameras.object_from_cam.shape[:2]
    direction = draw.direction(batch, LIGHTS)
    rig = cameras.object_from_cam[:, 0, :3, :3]  # the rig stands as the first camera does
    front = torch.nn.functional.normalize(
        torch.stack([draw.uniform(-1, 1, batch), draw.uniform(-1.2, 0.6, batch), -torch.ones(batch)], -1), dim=-1
    )
    direction[:, 0] = torch.einsum("bij,bj->bi", rig, front)
    fixed = (direction * draw.log_uniform(2.5, 40, batch, LIGHTS, 1))[:, None].expand(-1, views, -1, -1)
    rotation = cameras.object_from_cam[..., :3, :3] @ cameras.object_from_cam[:, :1, :3, :3].transpose(-1, -2)
    moving = torch.einsum("bvij,bvlj->bvli", rotation, fixed)
    turntable = cameras.turntable[:, None, None]
    count = draw.choice([3, 3, 2, 1], batch, 1)
    on = torch.arange(LIGHTS) <= count
    strength = draw.uniform(0.3, 1.0, batch, LIGHTS) * on
    strength = strength / strength.sum(1, keepdim=True)
    tint = 1 + 0.25 * draw.normal(batch, LIGHTS, 1) * torch.tensor([1.0, 0.0, -1.0])
    ambient = draw.uniform(0.06, 0.6, batch, 1)
    sky = ambient * (1 + 0.12 * draw.normal(batch, 3)).clamp(0.6, 1.4)
    up = torch.where(turntable, (rotation @ cameras.up[:, None, :, None])[..., 0], cameras.up[:, None])
    return Lights(
        position=torch.where(turntable[..., None], moving, fixed),
        colour=strength[..., None] * tint.clamp(0.5, 1.5) * (1.4 - ambient)[..., None],
        sharpness=draw.log_uniform(3, 40, batch, LIGHTS),
        sky=sky,
        ground=sky * draw.uniform(0.2, 1.0, batch, 3),
        up=up,
    )


def soft_shadow(grid: DistanceGrid, points: Tensor, towards: Tensor, sharpness: Tensor, steps: int = 18) -> Tensor:
    """Share of a light that reaches `points` (B, 3, M) from unit directions `towards` (B, 3, M), (B, M).

    March along the ray; the narrowest miss relative to the way gone gives the penumbra, for sharpness (B, 1).
    """
    t = torch.full_like(points[:, 0], 0.03)
    light = torch.ones_like(t)
    for _ in range(steps):
        distance = grid.distance(points + t[:, None] * towards)
        light = torch.minimum(light, (0.5 + 0.5 * sharpness * distance / t).clamp(0, 1))
        t = t + distance.clamp(0.02, 0.25)
    return light * light * (3 - 2 * light)


def ambient_occlusion(grid: DistanceGrid, points: Tensor, normal: Tensor) -> Tensor:
    """Share of ambient light that reaches `points` (B, 3, M), (B, M): how free the space along the normal is."""
    blocked = torch.zeros_like(points[:, 0])
    for k in range(1, 6):
        height = 0.06 * k
        blocked = blocked + (height - grid.distance(points + height * normal)).clamp_min(0) * 0.7**k
    return (1 - 2.6 * blocked).clamp(0.05, 1)


@dataclass(frozen=True, eq=False)
class Surface:
    """Points to be lit, seen from unit directions `view`; M points a row, each in view `view_index` of its object."""

    points: Tensor  # (B, 3, M)
    normal: Tensor  # (B, 3, M)
    view: Tensor  # (B, 3, M) from the point to the camera
    view_index: Tensor  # (B, M) int64
    albedo: Tensor  # (B, 3, M)


def bumped(finish: Finish, noise: Tensor, points: Tensor, normal: Tensor, footprint: Tensor) -> Tensor:
    """Normals (B, 3, M) with fine grain, faded where it would be smaller than a pixel."""
    scaled = points * finish.bump_frequency[:, None, None]
    grain = value_noise(noise[:, 1:4], scaled)  # (B, 3, M)
    fade = (2.0 - 4.0 * footprint * finish.bump_frequency[:, None]).clamp(0, 1)
    return torch.nn.functional.normalize(normal + finish.bump[:, None, None] * fade[:, None] * grain, dim=1)


def _of_view(values: Tensor, view_index: Tensor) -> Tensor:
    """Rows of `values` (B, V, 3) that belong to each point, (B, 3, M)."""
    return values.gather(1, view_index[..., None].expand(-1, -1, 3)).transpose(1, 2)


def shade(lights: Lights, finish: Finish, grid: DistanceGrid, surface: Surface) -> Tensor:
    """Linear RGB radiance (B, 3, M) of a lit surface: Lambert, Blinn-Phong, soft shadows, ambient occlusion."""
    up = _of_view(lights.up, surface.view_index)
    open_sky = ambient_occlusion(grid, surface.points, surface.normal)
    blend = 0.5 + 0.5 * (surface.normal * up).sum(1, keepdim=True)
    diffuse = (lights.sky[..., None] * blend + lights.ground[..., None] * (1 - blend)) * open_sky[:, None]
    highlight = torch.zeros_like(diffuse)
    start = surface.points + 0.02 * surface.normal
    for k in range(LIGHTS):
        if not bool((lights.colour[:, k] > 0).any()):
            continue
        towards = torch.nn.functional.normalize(
            _of_view(lights.position[:, :, k], surface.view_index) - surface.points, dim=1
        )
        facing = (surface.normal * towards).sum(1).clamp_min(0)
        lit = soft_shadow(grid, start, towards, lights.sharpness[:, k, None]) * math.pi / 2
        middle = torch.nn.functional.normalize(towards + surface.view, dim=1)
        gloss = (surface.normal * middle).sum(1).clamp_min(0) ** finish.shininess[:, None]
        colour = lights.colour[:, k, :, None]
        diffuse = diffuse + colour * (facing * lit)[:, None]
        highlight = highlight + colour * (gloss * lit * (facing > 0))[:, None]
    return surface.albedo * diffuse + finish.specular[:, None, None] * highlight
