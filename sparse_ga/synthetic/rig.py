"""Where the cameras of a synthetic scene stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ga.geometry import cameras, transforms
from sparse_ga.products import Array
from sparse_ga.synthetic.raycast import cast, ray_caster
from sparse_ga.synthetic.scene_config import SceneConfig
from sparse_ga.synthetic.shapes import Mesh


@dataclass(frozen=True, eq=False)
class Cameras:
    """Cameras of a scene, and where the background stands relative to them."""

    world_from_cam: Array  # (N, 4, 4), the object's frame
    room_from_cam: Array  # (N, 4, 4), the background's frame
    intrinsics: Array  # (N, 3, 3)
    sizes: tuple[tuple[int, int], ...]  # (N,) (W, H)


def place_cameras(config: SceneConfig, mesh: Mesh) -> Cameras:
    """Cameras by the config: directions, then rolls, then the distance that gives the object its share of the image."""
    rng = np.random.default_rng([config.seed, 1])
    portrait = {
        "landscape": lambda n: False,
        "portrait": lambda n: True,
        "mixed": lambda n: n % 2 == 1,
    }[config.orientation]
    sizes = tuple(config.size[::-1] if portrait(n) else config.size for n in range(config.views))
    focal = config.focal_px or 1.25 * max(config.size)
    centres = np.array([[(w - 1) / 2, (h - 1) / 2] for w, h in sizes])  # (N, 2)
    intrinsics = np.stack([cameras.make_intrinsics(focal, c + config.principal_offset_px) for c in centres])
    azimuth, elevation = _directions(config, rng)  # (N,) each, degrees
    roll = {
        "upright": rng.normal(size=config.views) * 0.5,
        "half": np.arange(config.views) % 2 * 180.0 + rng.normal(size=config.views) * 3,
        "all": rng.uniform(0, 360, config.views),
    }[config.roll]
    stretch = np.exp(rng.normal(size=config.views) * 0.08) if config.motion == "free" else np.ones(config.views)
    aim = centres + rng.normal(size=(config.views, 2)) * config.jitter_deg * 0.0017 * focal  # (N, 2) px
    if config.motion == "rotating":  # the camera stands still: what moves is the object
        ring = np.arange(config.views) % len(config.elevations_deg)
        aim, roll = aim[ring], roll if config.roll != "upright" else roll[ring]
        room_azimuth = np.zeros(config.views)
    else:
        room_azimuth = azimuth
    turn = np.zeros((config.views, 3))
    turn[:, 2] = np.radians(azimuth - room_azimuth)
    world_from_room = transforms.make(transforms.exp_so3(turn), np.zeros((config.views, 3)))
    unit = _look_at(room_azimuth, elevation, roll, cameras.rays(intrinsics, aim[:, None])[:, 0])
    unit[:, :3, 3] *= stretch[:, None]
    distance = _distance_for_share(config, mesh, Cameras(world_from_room @ unit, unit, intrinsics, sizes))
    unit[:, :3, 3] *= distance
    return Cameras(world_from_room @ unit, unit, intrinsics, sizes)


def _directions(config: SceneConfig, rng: np.random.Generator) -> tuple[Array, Array]:
    """Azimuth and elevation of every camera as the object sees it, degrees, (N,) each."""
    n = config.views
    if config.motion == "free":
        azimuth = np.arange(n) * 360 * 0.381966 + rng.normal(size=n) * 10
        return azimuth, np.degrees(np.arcsin(rng.uniform(-0.35, 0.85, n)))
    rings = len(config.elevations_deg)
    ring, step = np.arange(n) % rings, np.arange(n) // rings
    in_ring = np.array([len(range(r, n, rings)) for r in range(rings)])[ring]
    closed = abs(config.arc_deg) >= 360
    azimuth = config.arc_deg * step / np.maximum(in_ring if closed else in_ring - 1, 1)
    azimuth = azimuth + ring * 360 / max(n, 1) * (rings > 1) + rng.normal(size=n) * config.jitter_deg
    elevation = np.asarray(config.elevations_deg, float)[ring]
    if config.motion == "orbit":
        elevation = elevation + rng.normal(size=n) * config.jitter_deg
    return azimuth, elevation


def _look_at(azimuth: Array, elevation: Array, roll: Array, aim: Array) -> Array:
    """Poses (N, 4, 4) on the unit sphere whose camera-frame rays `aim` (N, 3) point at the origin; degrees."""
    a, e = np.radians(azimuth), np.radians(elevation)
    position = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], -1)  # (N, 3)
    forward = -position
    right = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], -1)  # (N, 3), horizontal at any elevation
    down = np.cross(forward, right)
    rotation = np.stack([right, down, forward], -1)  # (N, 3, 3)
    spin = np.zeros((len(a), 3))
    spin[:, 2] = np.radians(roll)
    rotation = rotation @ transforms.exp_so3(spin)
    axis = np.cross(np.array([0, 0, 1.0]), aim)  # turn the aimed ray onto the optical axis' place
    angle = np.arctan2(np.linalg.norm(aim[:, :2], axis=1), aim[:, 2])
    axis = axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-12)
    return transforms.make(rotation @ transforms.exp_so3(-axis * angle[:, None]), position)


def _distance_for_share(config: SceneConfig, mesh: Mesh, unit: Cameras) -> float:
    """Distance at which the object covers its share of the images on average and none of them cuts it."""
    caster = ray_caster(mesh)
    step = max(1, config.views // 12)
    focal = unit.intrinsics[0, 0, 0]
    distance = focal / np.sqrt(config.object_share * config.size[0] * config.size[1]) * 0.75
    for _ in range(5):
        share = np.mean([_silhouette_share(caster, unit, n, distance) for n in range(0, config.views, step)])
        distance *= float(np.sqrt(np.clip(share / config.object_share, 0.25, 4)))
    points = mesh.vertices[:: max(1, len(mesh.vertices) // 3000)]
    cam_from_world = transforms.inverse(unit.world_from_cam)
    while not _all_inside(unit, cam_from_world, points / distance):
        distance *= 1.02
    return float(distance)


def _silhouette_share(caster: Any, unit: Cameras, n: int, distance: float) -> float:
    """Share of view n that the object covers, from every eighth pixel."""
    width, height = unit.sizes[n]
    rays = cameras.rays(unit.intrinsics[n], cameras.pixel_grid(height, width)[3::8, 3::8].reshape(-1, 2))
    pose = unit.world_from_cam[n].copy()
    pose[:3, 3] *= distance
    depth, _, _ = cast(caster, pose, rays)
    return float(np.isfinite(depth).mean())


def _all_inside(unit: Cameras, cam_from_world: Array, points: Array) -> bool:
    """Whether points (P, 3), in units of the camera distance, lie in all images with a margin of 2 % of the side."""
    xy, front = cameras.project(unit.intrinsics, transforms.apply(cam_from_world, points[None]))  # (N, P, 2)
    size = np.array(unit.sizes)[:, None]  # (N, 1, 2)
    return bool(front.all() and ((xy > 0.02 * size) & (xy < 0.98 * size - 1)).all())
