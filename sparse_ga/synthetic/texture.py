"""Procedural textures: solid ones for objects, and flat photograph-like pictures for backgrounds."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from sparse_ga.products import Array


@dataclass(frozen=True, eq=False)
class SolidTexture:
    """Colour as a function of the 3D point: stone-like cells, patches and specks over fractal noise.

    Corners of cells and specks give detectors something to hold at every scale from a fifth to a hundredth of the
    object. `contrast` 1 is richly textured; 0.1 is almost plain.
    """

    volume: Array  # (n, n, n, 4) float32, periodic noise of unit deviation
    cells: cKDTree  # seeds of the large cells
    patches: cKDTree  # seeds of the patches within them
    specks: cKDTree
    cell_color: Array  # (C, 3) float32 in [0, 1]
    patch_gain: Array  # (B,) float32
    speck_radius: Array  # (S,) float32
    speck_gain: Array  # (S,) float32
    base_color: Array  # (3,) float32
    contrast: float

    def color(self, points: Array) -> Array:
        """Albedo (P, 3) float32 in [0, 1] of object-frame points (P, 3)."""
        coarse = _sample_volume(self.volume, points, 1.1)  # (P, 4)
        fine = _sample_volume(self.volume, points, 0.23)[:, 3]  # (P,)
        warped = points + 0.012 * coarse[:, :3]  # (P, 3)
        _, cell = self.cells.query(warped)
        color = self.cell_color[cell]  # (P, 3)
        _, patch = self.patches.query(warped)
        gain = self.patch_gain[patch] + 0.10 * coarse[:, 3] + 0.10 * fine  # (P,)
        distance, speck = self.specks.query(points + 0.003 * coarse[:, :3])
        edge = np.clip((self.speck_radius[speck] - distance) / 0.003 + 0.5, 0, 1)  # (P,)
        gain = gain + edge * self.speck_gain[speck]
        color = color * np.clip(1 + gain, 0.15, 1.9)[:, None]
        color = self.base_color * (1 + 0.03 * coarse[:, 3:]) * (1 - self.contrast) + self.contrast * color
        return np.clip(color, 0, 1).astype(np.float32)


def make_texture(seed: int, contrast: float = 1.0) -> SolidTexture:
    """A solid texture for an object of diameter 1 around the origin."""
    rng = np.random.default_rng([seed, 77])
    palette = _palette(rng, 6)
    cells = rng.uniform(-0.55, 0.55, (170, 3))
    patches = rng.uniform(-0.55, 0.55, (2600, 3))
    specks = rng.uniform(-0.55, 0.55, (22000, 3))
    shade = rng.uniform(0.75, 1.2, (len(cells), 1))
    radius = rng.uniform(0.004, 0.016, len(specks)) * (rng.random(len(specks)) < 0.6)
    return SolidTexture(
        volume=_noise_volume(seed % 7),
        cells=cKDTree(cells),
        patches=cKDTree(patches),
        specks=cKDTree(specks),
        cell_color=np.clip(palette[rng.integers(len(palette), size=len(cells))] * shade, 0, 1).astype(np.float32),
        patch_gain=rng.uniform(-0.32, 0.32, len(patches)).astype(np.float32),
        speck_radius=radius.astype(np.float32),
        speck_gain=rng.choice([-0.5, -0.35, 0.45], len(specks)).astype(np.float32),
        base_color=palette.mean(0).astype(np.float32),
        contrast=contrast,
    )


@lru_cache(maxsize=8)
def _noise_volume(seed: int, size: int = 64) -> Array:
    """Periodic 1/f noise (n, n, n, 4) float32, zero mean and unit deviation per channel."""
    rng = np.random.default_rng([seed, 5])
    k = np.fft.fftfreq(size)[:, None, None] ** 2 + np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size) ** 2
    filter_ = np.where(k > 0, np.maximum(k, 1e-12) ** -0.9, 0.0)  # (n, n, n / 2 + 1)
    channels = []
    for _ in range(4):
        noise = np.fft.irfftn(np.fft.rfftn(rng.normal(size=(size,) * 3)) * filter_, s=(size,) * 3, axes=(0, 1, 2))
        channels.append(noise / noise.std())
    return np.stack(channels, -1).astype(np.float32)


def _sample_volume(volume: Array, points: Array, period: float) -> Array:
    """Trilinear samples (P, C) of a periodic volume whose side is `period` long."""
    size = volume.shape[0]
    position = (np.asarray(points, np.float64) / period * size).T  # (3, P)
    channels = [
        map_coordinates(volume[..., c], position, order=1, mode="grid-wrap", output=np.float32)
        for c in range(volume.shape[-1])
    ]
    return np.stack(channels, -1)


_HUES = np.array([0.02, 0.05, 0.08, 0.11, 0.14, 0.24, 0.32, 0.46, 0.56, 0.60])  # earths, straw, leaves, sky


def _palette(rng: np.random.Generator, number: int, saturation: float = 0.6) -> Array:
    """Colours (K, 3) in [0, 1] around two natural hues, with one light and one dark neutral."""
    hues = rng.choice(_HUES, 2, replace=False)
    colors = [
        colorsys.hsv_to_rgb(
            (hues[k % 2] + rng.normal() * 0.02) % 1, rng.uniform(0.5, 1.0) * saturation, rng.uniform(0.38, 0.72)
        )
        for k in range(number - 2)
    ]
    return np.array([*colors, (0.82, 0.79, 0.72), (0.30, 0.28, 0.27)])


@lru_cache(maxsize=6)
def photo_like(height: int, width: int, seed: int, grain: float = 1.0) -> Array:
    """A picture (H, W, 3) float32 in [0, 1] that looks like clutter in a room: rich in corners at all scales.

    `grain` scales the objects in the picture; 1 suits pictures of about 1000 pixels. The result is read-only.
    """
    rng = np.random.default_rng([seed, 13])
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = _palette(rng, 4, 0.3)[0] * 0.9
    palette = np.concatenate([_palette(rng, 7, 0.45), _palette(rng, 5, 0.3)])
    long_side = max(height, width)
    for share in np.geomspace(0.35, 0.015, 240) * grain:
        _draw_thing(canvas, rng, palette, share * long_side)
    noise = _pink_noise(rng, height, width)
    canvas *= np.clip(1 + 0.10 * noise, 0.4, 1.6)[..., None]
    light = np.linspace(1.08, 0.85, height, dtype=np.float32)[:, None] * np.linspace(0.92, 1.06, width)
    picture = np.clip(canvas * light[..., None], 0, 1).astype(np.float32)
    picture.setflags(write=False)
    return picture


def _draw_thing(canvas: Array, rng: np.random.Generator, palette: Array, size: float) -> None:
    """Paint one filled, striped or dotted shape of about `size` pixels onto `canvas`, which changes."""
    height, width = canvas.shape[:2]
    centre = rng.uniform(0, 1, 2) * (width, height)
    color = np.clip(palette[rng.integers(len(palette))] * rng.uniform(0.6, 1.2), 0, 1)
    angle = float(rng.choice([0.0, 0.0, rng.uniform(0, 180)]))
    extent = size * rng.uniform(0.3, 1.0, 2)
    kind = rng.integers(3)
    if kind == 0:
        axes = (max(int(extent[0] / 2), 1), max(int(extent[1] / 2), 1))
        cv2.ellipse(canvas, (int(centre[0]), int(centre[1])), axes, angle, 0, 360, color.tolist(), -1, cv2.LINE_AA)
        return
    corners = cv2.boxPoints(((centre[0], centre[1]), (extent[0], extent[1]), angle))  # (4, 2)
    cv2.fillPoly(canvas, [np.round(corners * 16).astype(np.int32)], color.tolist(), cv2.LINE_AA, 4)
    if kind == 2:  # a striped cloth or a row of books
        stripe = np.clip(palette[rng.integers(len(palette))] * rng.uniform(0.6, 1.2), 0, 1)
        for t in np.linspace(0.1, 0.9, int(rng.integers(3, 7))):
            ends = np.stack([corners[0] * (1 - t) + corners[1] * t, corners[3] * (1 - t) + corners[2] * t])
            a, b = np.round(ends * 16).astype(int)
            cv2.line(canvas, a.tolist(), b.tolist(), stripe.tolist(), max(1, int(size * 0.03)), cv2.LINE_AA, 4)


def _pink_noise(rng: np.random.Generator, height: int, width: int) -> Array:
    """1/f noise (H, W) float32 of unit deviation."""
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    spectrum = np.fft.rfft2(rng.normal(size=(height, width))) * np.where(k > 0, np.maximum(k, 1e-9) ** -1.0, 0.0)
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return (noise / noise.std()).astype(np.float32)
