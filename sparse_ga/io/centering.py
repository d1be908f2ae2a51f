"""Photographs and masks as exports need them: principal point in the middle, background painted, RGBA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparse_ga.products import Array

Centering = Literal["off", "crop", "pad"]
Background = Literal["keep", "black", "white", "transparent"]

_NO_RESAMPLING_PX = 0.02
_PAINT = {"black": 0, "white": 255}


@dataclass(frozen=True, eq=False)
class Centered:
    """A shift of the pixel grid that puts a principal point into the middle of the new image."""

    shift: Array  # (2,) float64; new xy = old xy + shift
    size: tuple[int, int]  # (W, H)
    intrinsics: Array  # (3, 3), of the new image

    @property
    def moves(self) -> bool:
        """Whether anything changes at all."""
        return bool((self.shift != 0).any())


def center_principal_point(intrinsics: Array, size: tuple[int, int], how: Centering) -> Centered:
    """Size (W, H) and shift that make the principal point the image centre ((W - 1) / 2, (H - 1) / 2) exactly.

    "pad" keeps every pixel of the photograph and adds background where needed, "crop" keeps only pixels of the
    photograph; "off" changes nothing. Whole pixels are added or cut as far as possible; what is left over, less than
    half a pixel, is a shift of the picture by resampling.
    """
    if how == "off":
        return Centered(np.zeros(2), size, intrinsics)
    new_size, shift = [], np.zeros(2)
    for axis, length in enumerate(size):
        before, after = float(intrinsics[axis, 2]) + 0.5, length - 0.5 - float(intrinsics[axis, 2])
        half = max(before, after) if how == "pad" else min(before, after)
        # edges of the photograph lie `before` and `after` from the principal point
        grown = max(int(np.ceil(2 * half - 1e-6) if how == "pad" else np.floor(2 * half + 1e-6)), 1)
        new_size.append(grown)
        shift[axis] = (grown - 1) / 2 - float(intrinsics[axis, 2])
    whole = np.rint(shift)
    shift = np.where(np.abs(shift - whole) <= _NO_RESAMPLING_PX, whole, shift)
    moved = intrinsics.copy()
    moved[0, 2], moved[1, 2] = (new_size[0] - 1) / 2, (new_size[1] - 1) / 2
    return Centered(shift, (new_size[0], new_size[1]), moved)


def shift_image(image: Array, centered: Centered, fill: int = 0) -> Array:
    """An image (H, W) or (H, W, C) uint8 on the shifted grid; beyond the photograph it is `fill`."""
    if not centered.moves and image.shape[1::-1] == centered.size:
        return image
    moved = _shift(image.astype(np.float32), centered, float(fill), _catmull_rom)
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)


def shift_mask(mask: Array, centered: Centered) -> Array:
    """A mask (H, W) bool on the shifted grid; object where at least half of the new pixel is."""
    if not centered.moves and mask.shape[::-1] == centered.size:
        return mask
    return _shift(mask.astype(np.float32), centered, 0.0, _linear) >= 0.5


def _shift(values: Array, centered: Centered, fill: float, kernel: Callable[[float], Array]) -> Array:
    """Values (H, W, ...) on the shifted grid: a filter for the fraction of a pixel, then whole pixels.

    OpenCV's warps round positions to 1/32 px; a filter does not.
    """
    whole = np.floor(centered.shift).astype(int)
    for axis, fraction in enumerate(centered.shift - whole):
        if fraction > 0:
            taps = kernel(float(fraction)).astype(np.float32)
            values = _filter_axis(values, taps, 1 - axis)
    width, height = centered.size
    result = np.full((height, width, *values.shape[2:]), fill, np.float32)
    x, y = whole
    rows, columns = slice(max(y, 0), min(y + len(values), height)), slice(max(x, 0), min(x + values.shape[1], width))
    result[rows, columns] = values[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    return result


def _filter_axis(values: Array, taps: Array, axis: int) -> Array:
    """out[i] = sum over k of taps[k] values[i - 2 + k] along an axis; the border is repeated."""
    padding = [(0, 0)] * values.ndim
    padding[axis] = (2, 1)
    padded = np.moveaxis(np.pad(values, padding, mode="edge"), axis, 0)
    length = values.shape[axis]
    return np.moveaxis(sum(tap * padded[k : k + length] for k, tap in enumerate(taps)), 0, axis)


def _catmull_rom(fraction: float) -> Array:
    """Taps of the cubic of Keys (1981) that move a signal by `fraction` of a sample to higher indices, (4,)."""
    distance = np.abs(np.array([2.0, 1.0, 0.0, -1.0]) - fraction)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def _linear(fraction: float) -> Array:
    return np.array([0.0, fraction, 1 - fraction, 0.0])


def paint_background(image: Array, mask: Array, background: Background) -> Array:
    """A photograph (H, W, 3) with its background kept, painted, or made transparent ((H, W, 4) then)."""
    if background == "keep":
        return image
    if background == "transparent":
        return np.concatenate([image, mask[..., None].astype(np.uint8) * 255], 2)
    return np.where(mask[..., None], image, np.uint8(_PAINT[background]))
