"""Batches of random scenes: photographs with exact depth, masks and cameras, deterministic from a seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.backgrounds import (
    NOTHING,
    STATIC,
    Backgrounds,
    floor_height,
    render_background,
    sample_backgrounds,
)
from sparse_ga.synthetic.procedural.bundle import Draw, TensorBundle, select
from sparse_ga.synthetic.procedural.cameras import Cameras, camera_rays, sample_cameras
from sparse_ga.synthetic.procedural.lighting import Lights, Surface, bumped, sample_lights, shade
from sparse_ga.synthetic.procedural.materials import Finish, Texture, albedo, draw_finish, draw_texture
from sparse_ga.synthetic.procedural.sampling import sample_objects
from sparse_ga.synthetic.procedural.sensor import imperfect_masks, photograph
from sparse_ga.synthetic.procedural.shapes import Objects, normals
from sparse_ga.synthetic.procedural.tracing import DistanceGrid, bounds, build_grid, trace

Background = Literal["mixed", "still", "clean"]


@dataclass(frozen=True)
class SceneConfig:
    """What to render."""

    objects: int = 4
    """Objects in a batch."""
    views: int = 4
    """Views of each object."""
    height: int = 128
    """Image height in px."""
    width: int = 128
    """Image width in px."""
    grid: int = 64
    """Points along an edge of the distance grid that takes the long steps of tracing."""
    plain_share: float = 0.35
    """Share of bare matte objects, without any pattern."""
    background: Background = "mixed"
    """What is behind every object; the objects, lights and cameras of a seed are the same with each. "still": a world
    that does not move with the object; "clean": one colour; "mixed": either of these or a world that moves with it."""


@dataclass(frozen=True, eq=False)
class Scene:
    """All that determines the pictures of B objects before a sensor sees them."""

    objects: Objects
    grid: DistanceGrid
    texture: Texture
    finish: Finish
    cameras: Cameras
    lights: Lights
    background: Backgrounds

    def to(self, device: torch.device | str) -> Scene:
        """The same scene on another device."""
        return Scene(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class Batch(TensorBundle):
    """Rendered views. Depth is z in the camera frame, object units, 0 off the object."""

    image: Tensor  # (B, V, 3, H, W) uint8
    mask: Tensor  # (B, V, H, W) bool, exact
    mask_imperfect: Tensor  # (B, V, H, W) bool, as a segmentation program would give it
    depth: Tensor  # (B, V, H, W) float32, the object's
    background_depth: Tensor  # (B, V, H, W) float32, of a floor that moves with the object, 0 where there is none
    intrinsics: Tensor  # (B, V, 3, 3)
    object_from_cam: Tensor  # (B, V, 4, 4)
    turntable: Tensor  # (B,) bool: the lights stayed with the camera
    background_kind: Tensor  # (B,) int64: 0 nothing, 1 moves with the object, 2 stands still
    plain: Tensor  # (B,) bool: bare matte


def _generator(seed: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for batch `index` of stream `seed`; streams do not overlap."""
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % (1 << 63)
    return torch.Generator(device).manual_seed(mixed)


def sample_scene(
    config: SceneConfig, seed: int, index: int, device: torch.device | str = "cpu"
) -> tuple[Scene, Tensor]:
    """Random scene number `index` of stream `seed`, and which of its objects are bare matte (B,).

    Parameters are drawn on the CPU, so that a scene is the same on every device but for rounding.
    """
    draw = Draw(_generator(seed, index))
    objects = sample_objects(draw, config.objects, device)
    plain = draw.chance(config.plain_share, config.objects)
    noise = objects.noise.cpu()
    texture, finish = draw_texture(draw, noise, plain), draw_finish(draw, plain)
    grid = build_grid(objects, config.grid)
    centre, radius = (value.cpu() for value in bounds(grid))
    cameras = sample_cameras(draw, centre, radius, config.views, (config.width, config.height))
    lights = sample_lights(draw, cameras)
    lowest = floor_height(grid, cameras.up.to(device)).cpu()
    background = sample_backgrounds(draw, noise, lowest)
    if config.background != "mixed":
        kind = STATIC if config.background == "still" else NOTHING
        background = dataclasses.replace(background, kind=torch.full_like(background.kind, kind))
    scene = Scene(objects, grid, texture, finish, cameras, lights, background)
    return scene.to(device), plain.to(device)


def trace_views(scene: Scene, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Distances along rays (B, V * H * W), 0 off the object, and hits, of all pixels of all views."""
    directions, _ = camera_rays(scene.cameras, height, width)
    pose = scene.cameras.object_from_cam
    rays = (pose[..., :3, :3] @ directions).transpose(1, 2).flatten(2)  # (B, 3, V * HW)
    eyes = pose[..., :3, 3].transpose(1, 2).repeat_interleave(height * width, 2)
    distance, hit = trace(scene.objects, scene.grid, eyes, rays)
    return torch.where(hit, distance, 0.0), hit


def _foreground(scene: Scene, eyes_rays: tuple[Tensor, Tensor], distance: Tensor, hit: Tensor, pixels: int) -> Tensor:
    """Linear RGB (B, 3, V * HW) of the object's pixels, 0 elsewhere."""
    eyes, rays = eyes_rays
    colour = torch.zeros_like(rays)
    chosen = select(hit)
    if chosen.count == 0:
        return colour
    t, ray = chosen.gather(distance), chosen.gather(rays)
    points = chosen.gather(eyes) + t[:, None] * ray
    view_index = torch.div(chosen.index, pixels, rounding_mode="floor")
    focal = scene.cameras.intrinsics[..., 0, 0].gather(1, view_index)
    footprint = t / focal
    normal = normals(scene.objects, points)
    fine = bumped(scene.finish, scene.texture.noise, points, normal, footprint)
    paint = albedo(scene.texture, scene.objects, points, footprint)
    light = shade(scene.lights, scene.finish, scene.grid, Surface(points, fine, -ray, view_index, paint))
    return chosen.scatter(colour, light)


def render(scene: Scene, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Linear RGB (B, V, 3, H, W), z-depth (B, V, H, W; 0 off the object), floor z-depth, of views of `size` (W, H)."""
    width, height = size
    batch, views = scene.cameras.object_from_cam.shape[:2]
    directions, z = camera_rays(scene.cameras, height, width)
    pose = scene.cameras.object_from_cam
    rays = (pose[..., :3, :3] @ directions).transpose(1, 2).flatten(2)
    eyes = pose[..., :3, 3].transpose(1, 2).repeat_interleave(height * width, 2)
    distance, hit = trace(scene.objects, scene.grid, eyes, rays)
    front = _foreground(scene, (eyes, rays), distance, hit, height * width)
    behind, floor = render_background(scene.background, scene.cameras, scene.lights, scene.grid, (directions, z))
    colour = torch.where(hit[:, None], front, behind)
    depth = torch.where(hit, distance * z.flatten(1), 0.0)
    floor = torch.where(hit, 0.0, floor)
    shape = (batch, views, height, width)
    return colour.reshape(batch, 3, *shape[1:]).transpose(1, 2), depth.reshape(shape), floor.reshape(shape)


@torch.no_grad()
def render_batch(config: SceneConfig, seed: int, index: int, device: torch.device | str = "cpu") -> Batch:
    """Batch number `index` of stream `seed`: same arguments, same bytes on one machine."""
    scene, plain = sample_scene(config, seed, index, device)
    radiance, depth, floor = render(scene, (config.width, config.height))
    mask = depth > 0
    draw = Draw(_generator(seed + 1_000_003, index, device))
    return Batch(
        image=photograph(draw, radiance, mask),
        mask=mask,
        mask_imperfect=imperfect_masks(draw, mask),
        depth=depth,
        background_depth=floor,
        intrinsics=scene.cameras.intrinsics,
        object_from_cam=scene.cameras.object_from_cam,
        turntable=scene.cameras.turntable,
        background_kind=scene.background.kind,
        plain=plain,
    )
