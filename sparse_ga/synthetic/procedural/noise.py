"""Periodic value noise from per-object tables of random numbers: one trilinear lookup gives four channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ga.synthetic.procedural.bundle import Draw

PERIOD = 32
CHANNELS = 4


def noise_tables(draw: Draw, batch: int) -> Tensor:
    """Random tables (B, 4, 33, 33, 33) in [-1, 1]; the last plane of each axis repeats the first (periodic)."""
    table = draw.uniform(-1.0, 1.0, batch, CHANNELS, PERIOD, PERIOD, PERIOD)
    return F.pad(table, (0, 1, 0, 1, 0, 1), mode="circular")


def lookup_volume(volume: Tensor, points: Tensor, half_extent: float) -> Tensor:
    """Trilinear lookup (B, C, P) in `volume` (B, C, n, n, n), whose corners lie at +-`half_extent`, at (B, 3, P)."""
    grid = (points / half_extent).transpose(1, 2)[:, :, None, None, :]  # (B, P, 1, 1, 3), x varies along the last axis
    return F.grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=True)[..., 0, 0]


def value_noise(tables: Tensor, points: Tensor) -> Tensor:
    """Smooth noise (B, C, P) in [-1, 1] of C channels, unit lattice spacing, period 32, at `points` (B, 3, P)."""
    cell = points.floor()
    part = points - cell
    smooth = part * part * (3 - 2 * part)  # C1 across lattice planes
    wrapped = torch.remainder(cell, PERIOD) + smooth
    return lookup_volume(tables, wrapped - PERIOD / 2, PERIOD / 2)


# Rotations between octaves, so that lattice directions of different octaves never line up.
_TURN = torch.tensor([[0.0, 0.8, 0.6], [-0.8, 0.36, -0.48], [-0.6, -0.48, 0.64]])


def fractal_noise(tables: Tensor, points: Tensor, octaves: int, footprint: Tensor | None = None) -> Tensor:
    """Octaves of value noise (B, C, P), each of twice the frequency and half the amplitude of the one before.

    `footprint` (B, P) is the size of a pixel in the units of `points`: octaves finer than two pixels fade out, so that
    nothing aliases.
    """
    turn = _TURN.to(points)
    total = torch.zeros_like(points[:, :1])  # grows to (B, C, P)
    scale, amplitude = 1.0, 1.0
    for octave in range(octaves):
        value = value_noise(tables, points * scale + 7.31 * octave) * amplitude
        if footprint is not None:
            value = value * (2.0 - 4.0 * footprint * scale).clamp(0, 1)[:, None]
        total = total + value
        points = turn @ points
        scale, amplitude = scale * 2.03, amplitude * 0.5
    return total
