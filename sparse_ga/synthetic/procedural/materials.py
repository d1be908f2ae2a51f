"""Surface colour as a function of position: layered patterns over one to six base colours, from none to busy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.bundle import Draw, TensorBundle
from sparse_ga.synthetic.procedural.noise import fractal_noise, value_noise
from sparse_ga.synthetic.procedural.shapes import SLOTS, Objects, slot_distances

LAYERS = 4
_CLOUDS, _STRIPES, _CHECKER, _SPECKLE = range(4)


@dataclass(frozen=True, eq=False)
class Texture(TensorBundle):
    """B solid textures: a base colour per part and four pattern layers painted over each other."""

    base: Tensor  # (B, K, 3) linear RGB of each slot
    colour: Tensor  # (B, 4, 3) linear RGB of each layer
    opacity: Tensor  # (B, 4) 0: the layer is not there
    pattern: Tensor  # (B, 4) int64: clouds, stripes, checker, speckle
    frequency: Tensor  # (B, 4) noise lattice cells per unit
    direction: Tensor  # (B, 4, 3) of the stripes
    warp: Tensor  # (B, 4) how much noise bends the stripes
    threshold: Tensor  # (B, 4)
    softness: Tensor  # (B, 4) width of the step from base to layer
    noise: Tensor  # (B, 4, 33, 33, 33)


@dataclass(frozen=True, eq=False)
class Finish(TensorBundle):
    """How B surfaces answer to light."""

    specular: Tensor  # (B,) strength of the highlight
    shininess: Tensor  # (B,) Blinn-Phong exponent
    bump: Tensor  # (B,) strength of the grain in the normals
    bump_frequency: Tensor  # (B,)


def _colours(draw: Draw, *shape: int) -> Tensor:
    """Linear RGB (*shape, 3) from natural distributions of hue, saturation and brightness."""
    hue = draw.uniform(0, 6, *shape)[..., None]
    saturation = (draw.uniform(0, 1, *shape) ** 2 * 0.9)[..., None]
    value = draw.uniform(0.15, 0.95, *shape)[..., None] ** 1.6
    wheel = ((hue + torch.tensor([0.0, 4.0, 2.0])) % 6 - 3).abs().sub(1).clamp(0, 1)  # (*shape, 3)
    return value * (1 - saturation * (1 - wheel))


def draw_texture(draw: Draw, noise: Tensor, plain: Tensor) -> Texture:
    """B random textures over the given noise tables; where `plain` (B,) holds, one light colour and no pattern."""
    batch = len(plain)
    parts = draw.chance(0.35, batch, 1, 1)  # parts differ in colour
    base = torch.where(parts, _colours(draw, batch, SLOTS), _colours(draw, batch, 1).expand(-1, SLOTS, -1))
    plaster = draw.uniform(0.35, 0.9, batch, 1, 1) * (
        1 - 0.25 * draw.uniform(0, 1, batch, 1, 3) * draw.chance(0.6, batch, 1, 1)
    )
    base = torch.where(plain[:, None, None], plaster.expand(-1, SLOTS, -1), base)
    busy = draw.uniform(0.15, 1.0, batch, 1)
    opacity = draw.uniform(0.15, 1.0, batch, LAYERS) * (draw.uniform(0, 1, batch, LAYERS) < busy)
    pattern = draw.choice([0.4, 0.2, 0.1, 0.3], batch, LAYERS)
    fine = (pattern == _SPECKLE) | (pattern == _CLOUDS) & draw.chance(0.5, batch, LAYERS)
    frequency = torch.where(fine, draw.log_uniform(5, 28, batch, LAYERS), draw.log_uniform(1.5, 7, batch, LAYERS))
    return Texture(
        base=base,
        colour=_colours(draw, batch, LAYERS),
        opacity=opacity * ~plain[:, None],
        pattern=pattern,
        frequency=frequency,
        direction=draw.direction(batch, LAYERS),
        warp=draw.uniform(0, 4, batch, LAYERS) * draw.chance(0.6, batch, LAYERS),
        threshold=draw.uniform(-0.3, 0.45, batch, LAYERS),
        softness=draw.log_uniform(0.02, 0.6, batch, LAYERS),
        noise=noise,
    )


def draw_finish(draw: Draw, plain: Tensor) -> Finish:
    """B random finishes; plain (matte plaster) surfaces have hardly any highlight."""
    batch = len(plain)
    specular = draw.uniform(0, 0.5, batch) ** 2 * 2 * draw.chance(0.5, batch)
    grain = draw.uniform(0, 0.35, batch) * draw.chance(0.5, batch)
    return Finish(
        specular=torch.where(plain, specular * 0.1, specular),
        shininess=draw.log_uniform(6, 90, batch),
        bump=grain,
        bump_frequency=draw.log_uniform(10, 40, batch),
    )


def _field(texture: Texture, layer: int, points: Tensor, footprint: Tensor) -> tuple[Tensor, Tensor]:
    """One layer's scalar field (B, P), about in [-1, 1], and how much of it survives the pixel's size (B, P)."""
    frequency = texture.frequency[:, layer, None]  # (B, 1)
    scaled, size = points * frequency[:, None], footprint * frequency
    noise = texture.noise[:, layer : layer + 1]
    clouds = fractal_noise(noise, scaled * 0.5, 3, size * 0.5)[:, 0]
    fade = (2.0 - 4.0 * size).clamp(0, 1)
    along = (points * texture.direction[:, layer, :, None]).sum(1) * frequency
    stripes = torch.sin(torch.pi * along + texture.warp[:, layer, None] * clouds) * fade
    checker = torch.sin(scaled * (torch.pi / 2)).prod(1).mul(3).clamp(-1, 1) * fade
    speckle = value_noise(noise, scaled)[:, 0] * fade
    fields = torch.stack([clouds, stripes, checker, speckle])
    chosen = texture.pattern[:, layer, None]
    value = fields.gather(0, chosen[None].expand(1, -1, points.shape[-1]))[0]
    return value, torch.where(chosen == _CLOUDS, 1.0, fade)


def _base_colour(texture: Texture, objects: Objects, points: Tensor) -> Tensor:
    """Base colours (B, 3, P): parts meet softly, whatever carved a surface leaves the colour of the nearest solid."""
    distance = slot_distances(objects, points).abs() + 10.0 * objects.carve[..., None]
    weights = torch.softmax(-distance / 0.012, 1)  # (B, K, P)
    return texture.base.transpose(1, 2) @ weights


def albedo(texture: Texture, objects: Objects | None, points: Tensor, footprint: Tensor) -> Tensor:
    """Linear RGB (B, 3, P) at object-frame `points` (B, 3, P).

    `footprint` (B, P) is the width of a pixel at the point; patterns finer than it fade to their mean. Without
    `objects` (backgrounds) the first slot's base colour is used.
    """
    if objects is None:
        colour = texture.base[:, 0, :, None].expand(-1, -1, points.shape[-1])
    else:
        colour = _base_colour(texture, objects, points)
    for layer in range(LAYERS):
        if not bool((texture.opacity[:, layer] > 0).any()):
            continue
        value, sharp = _field(texture, layer, points, footprint)
        soft = texture.softness[:, layer, None] + 0.5 * (1 - sharp)
        cover = ((value - texture.threshold[:, layer, None]) / (2 * soft) + 0.5).clamp(0, 1)
        cover = cover * cover * (3 - 2 * cover) * texture.opacity[:, layer, None]
        colour = colour + cover[:, None] * (texture.colour[:, layer, :, None] - colour)
    return colour
