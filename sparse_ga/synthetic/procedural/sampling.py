"""Draws random objects: which slots are in use, how they are shaped, repeated, blended, carved and displaced."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.bundle import Draw
from sparse_ga.synthetic.procedural.noise import noise_tables
from sparse_ga.synthetic.procedural.shapes import (
    BOUND_RADIUS,
    BOXES,
    LINKS,
    PROFILE_EDGES,
    PROFILES,
    SLOTS,
    SUPERQUADRICS,
    Objects,
    signed_distance,
)

_BODIES = (4, 6, 8)  # first box, first superquadric, first profile: the large solids
_MIN_VOLUME, _MAX_VOLUME = 0.03, 3.2


def _links(draw: Draw, batch: int) -> Tensor:
    """(B, 4, 3): capsules, rings and links, from wires to fat sausages."""
    half = draw.uniform(0.05, 0.55, batch, LINKS)
    ring = draw.uniform(0.12, 0.5, batch, LINKS) * draw.chance(0.5, batch, LINKS)
    tube = draw.log_uniform(0.03, 0.2, batch, LINKS)
    return torch.stack([half * draw.chance(0.75, batch, LINKS), ring, tube + 0.08 * (ring == 0)], -1)


def _boxes(draw: Draw, batch: int) -> Tensor:
    """(B, 2, 5): the first a body, the second smaller; a quarter of them hollow."""
    size = draw.log_uniform(0.12, 0.62, batch, BOXES, 3)
    size[:, 1] *= 0.6
    rounding = size.amin(-1) * draw.uniform(0.02, 0.9, batch, BOXES)
    wall = draw.uniform(0.02, 0.05, batch, BOXES) * draw.chance(0.25, batch, BOXES)
    return torch.cat([size, rounding[..., None], wall[..., None]], -1)


def _superquadrics(draw: Draw, batch: int) -> Tensor:
    """(B, 2, 5): semi-axes within a factor of about three of each other, exponents 1.3 to 8."""
    size = draw.uniform(0.3, 0.75, batch, SUPERQUADRICS, 1) * draw.uniform(0.4, 1.0, batch, SUPERQUADRICS, 3)
    size[:, 1] *= 0.65
    return torch.cat([size, draw.log_uniform(1.3, 8.0, batch, SUPERQUADRICS, 2)], -1)


def _profile_vertices(draw: Draw, batch: int) -> Tensor:
    """(B, 2, E, 2): polygons that are star-shaped about their centre: smooth, toothed, random or box-like."""
    shape = (batch, PROFILES, PROFILE_EDGES)
    angle = torch.arange(PROFILE_EDGES) * (2 * torch.pi / PROFILE_EDGES) + draw.uniform(0, 0.3, batch, PROFILES, 1)
    kind = draw.choice([0.25, 0.25, 0.3, 0.2], batch, PROFILES, 1)
    teeth = 0.7 + 0.3 * torch.cos(angle * torch.tensor([3.0, 4.0, 6.0])[draw.choice([1, 1, 1], batch, PROFILES, 1)])
    blocky = 1 / torch.maximum(angle.cos().abs(), angle.sin().abs())
    radii = torch.stack([torch.ones(shape), teeth, draw.uniform(0.35, 1.0, *shape), 0.8 * blocky])
    radius = radii.gather(0, kind[None].expand(1, *shape))[0] * draw.uniform(0.3, 0.6, batch, PROFILES, 1)
    radius[:, 1] *= 0.6
    stretch = draw.uniform(0.5, 1.3, batch, PROFILES, 1, 2)
    return torch.stack([angle.cos(), angle.sin()], -1) * radius[..., None] * stretch


def _profiles(draw: Draw, batch: int) -> Tensor:
    """(B, 2, 4): half revolved (a third of these rings), half extruded."""
    revolved = draw.chance(0.5, batch, PROFILES).float()
    offset = draw.uniform(0.3, 0.6, batch, PROFILES) * draw.chance(0.35, batch, PROFILES)
    half = draw.log_uniform(0.06, 0.7, batch, PROFILES)
    half[:, 1] *= 0.5
    return torch.stack([revolved, offset, half, draw.uniform(0.0, 0.05, batch, PROFILES)], -1)


def _activity(draw: Draw, batch: int) -> tuple[Tensor, Tensor]:
    """Which slots are in use (B, K), and which of them carve (B, K): one body always, 0 to 9 parts."""
    crowd = draw.uniform(0.1, 0.85, batch, 1)
    active = draw.uniform(0, 1, batch, SLOTS) < crowd
    body = torch.tensor(_BODIES)[draw.choice([1, 1, 1], batch)]
    active[torch.arange(batch), body] = True
    carve = draw.chance(0.3, batch, SLOTS)
    carve[:, list(_BODIES)] = False
    carve[:, :2] = False
    return active, carve


def _placement(draw: Draw, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slot centres (B, K, 3), rotations (B, K, 3, 3) and repetition kinds (B, K)."""
    centre = draw.direction(batch, SLOTS) * draw.uniform(0.15, 0.8, batch, SLOTS, 1)
    centre[:, list(_BODIES)] *= 0.45
    rotation = draw.rotation(batch, SLOTS)
    square = draw.chance(0.5, batch, 1, 1, 1)  # made things have parallel axes
    signed = draw.rotation(batch, SLOTS).abs()  # (B, K, 3, 3)
    first = torch.nn.functional.one_hot(signed[..., 0, :].argmax(-1), 3).float()
    second = torch.roll(first, 1, -1)
    axes = torch.stack([first, second, torch.linalg.cross(first, second)], -2)
    rotation = torch.where(square, axes, rotation)
    fold = draw.choice([0.55, 0.3, 0.15], batch, SLOTS) * draw.chance(0.7, batch, 1)
    fold[:, list(_BODIES)] *= draw.chance(0.25, batch, 1)
    return centre, rotation, fold


def draw_objects(draw: Draw, noise: Tensor) -> Objects:
    """B random objects over noise tables (B, 4, 33, 33, 33), unchecked: some may be empty (see `sample_objects`)."""
    batch = len(noise)
    active, carve = _activity(draw, batch)
    centre, rotation, fold = _placement(draw, batch)
    frequency = draw.log_uniform(1.5, 9.0, batch)
    relief = draw.uniform(0.0, 0.3, batch) * draw.chance(0.55, batch)  # slope of the bumps
    twist = draw.uniform(-1.3, 1.3, batch) * draw.chance(0.15, batch)
    crisp = draw.chance(0.4, batch, 1)
    blend = torch.where(crisp, draw.uniform(0.005, 0.03, batch, SLOTS), draw.uniform(0.03, 0.25, batch, SLOTS))
    lipschitz = (1 + (twist.abs() * BOUND_RADIUS).square()).sqrt() + 2.2 * relief
    return Objects(
        active=active,
        carve=carve,
        blend=blend,
        fold=fold,
        slot_from_object=rotation,
        centre=centre,
        link=_links(draw, batch),
        box=_boxes(draw, batch),
        superquadric=_superquadrics(draw, batch),
        profile_xy=_profile_vertices(draw, batch),
        profile=_profiles(draw, batch),
        polar_count=2 + draw.choice([2, 3, 3, 2, 2, 0, 2], batch).float(),
        linear=torch.stack([draw.uniform(0.15, 0.5, batch), 1 + draw.choice([1, 1, 1], batch).float()], -1),
        twist=twist,
        displacement=torch.stack([relief / frequency, frequency], -1),
        lipschitz=lipschitz,
        noise=noise,
    )


def lattice(resolution: int, half_extent: float, device: torch.device | str = "cpu") -> Tensor:
    """Points (3, n * n * n) of a cube; x varies fastest, so a reshape gives the (z, y, x) volume grid_sample reads."""
    axis = torch.linspace(-half_extent, half_extent, resolution, device=device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z]).flatten(1)


def _solid(objects: Objects) -> Tensor:
    """Whether an object is neither nearly empty nor a plain ball of the bounding sphere, (B,) bool."""
    resolution = 24
    points = lattice(resolution, BOUND_RADIUS, objects.centre.device)
    distance = signed_distance(objects, points.expand(len(objects.centre), -1, -1))
    volume = (distance < 0).float().sum(1) * (2 * BOUND_RADIUS / (resolution - 1)) ** 3
    return (volume > _MIN_VOLUME) & (volume < _MAX_VOLUME)


def _attach(objects: Objects) -> Objects:
    """The same objects with every part whose centre lies off the bodies pulled inwards until it does not."""
    bodies = torch.zeros(SLOTS, dtype=torch.bool, device=objects.centre.device)
    bodies[list(_BODIES)] = True
    solid = dataclasses.replace(objects, active=objects.active & bodies)
    centre = objects.centre
    for _ in range(6):
        loose = signed_distance(solid, centre.transpose(1, 2)) > 0.04  # (B, K)
        centre = torch.where((loose & ~bodies)[..., None], centre * 0.75, centre)
    return dataclasses.replace(objects, centre=centre)


def sample_objects(draw: Draw, batch: int, device: torch.device | str = "cpu", attempts: int = 4) -> Objects:
    """B random solid objects on `device`: empty ones are drawn again, and lose their carving slots if that fails.

    All numbers are drawn on the CPU; what is done about loose parts and empty objects is computed on `device`.
    """
    noise = noise_tables(draw, batch)
    objects = _attach(draw_objects(draw, noise).to(device))
    for _ in range(attempts):
        good = _solid(objects)
        if bool(good.all()):
            return objects
        objects = objects.where(good, _attach(draw_objects(draw, noise).to(device)))
    kept = _solid(objects)[:, None] | ~objects.carve
    return dataclasses.replace(objects, active=objects.active & kept)
