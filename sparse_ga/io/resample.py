"""The working image: where its pixel grid lies on the photograph, and exact area resampling onto it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sparse_ga.products import Array

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, the last ones exclusive."""

_EPS = 1e-6


@dataclass(frozen=True)
class WorkingGrid:
    """Square pixels laid over the photograph: `size` (W, H), side `step` and corner `origin` in source pixels."""

    size: tuple[int, int]
    step: float
    origin: tuple[float, float]

    @property
    def working_from_source(self) -> Array:
        """Affine (3, 3) of pixel coordinates; integer coordinates are pixel centres on both sides."""
        scale = 1 / self.step
        shift = [(0.5 - corner) * scale - 0.5 for corner in self.origin]
        return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1.0]])


def foreground_box(mask: Array) -> Box | None:
    """Smallest box around the True pixels of `mask` (H, W); None when there are none."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(xs):
        return None
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _fit_axis(length: int, step: float, multiple: int, low: int, high: int) -> tuple[int, float]:
    """Working length and origin along one axis, so that [low, high) source pixels stay inside.

    Crops to a multiple, as centrally as the foreground allows; where it does not fit, pads both sides instead.
    """
    cropped = int(length / step / multiple + _EPS) * multiple
    if cropped > 0 and cropped * step >= high - low - _EPS:
        room = length - cropped * step
        origin = min(max(math.floor(room / 2 + _EPS), math.ceil(high - cropped * step - _EPS)), low)
        return cropped, float(max(origin, 0))
    padded = math.ceil(length / step / multiple - _EPS) * multiple
    return padded, float(math.floor((length - padded * step) / 2))


def choose_grid(source_size: tuple[int, int], box: Box | None, long_side: int, multiple: int) -> WorkingGrid:
    """The working grid of a photograph of `source_size` (W, H) whose foreground lies in `box`.

    The long side becomes `long_side` (smaller photographs keep their scale: enlarging adds nothing), both sides become
    multiples of `multiple`. Rows and columns are cropped only where they hold no foreground, otherwise padded.
    """
    width, height = source_size
    step = max(1.0, max(width, height) / long_side)
    x0, y0, x1, y1 = box or (0, 0, width, height)
    columns, left = _fit_axis(width, step, multiple, x0, x1)
    rows, top = _fit_axis(height, step, multiple, y0, y1)
    return WorkingGrid((columns, rows), step, (left, top))


def _area_weights(length: int, count: int, origin: float, step: float, edge: bool) -> Any:
    """Sparse (count, length) matrix of the share of every output pixel that each input pixel covers.

    Beyond the input, the border pixel is repeated if `edge`, otherwise there is nothing.
    """
    from scipy.sparse import csr_matrix

    low = origin + step * np.arange(count)[:, None]  # (count, 1)
    taps = np.floor(low) + np.arange(math.ceil(step) + 1)[None]  # (count, T)
    weights = np.clip(np.minimum(taps + 1, low + step) - np.maximum(taps, low), 0, None) / step
    if not edge:
        weights[(taps < 0) | (taps >= length)] = 0
    columns = np.clip(taps, 0, length - 1).astype(int)
    rows = np.broadcast_to(np.arange(count)[:, None], columns.shape)
    return csr_matrix((weights.astype(np.float32).ravel(), (rows.ravel(), columns.ravel())), shape=(count, length))


def _resample(image: Array, grid: WorkingGrid, edge: bool) -> Array:
    """Area means (h, w, C) float32 of `image` (H, W, C) on the grid."""
    height, width, channels = image.shape
    by_row = _area_weights(height, grid.size[1], grid.origin[1], grid.step, edge)
    by_column = _area_weights(width, grid.size[0], grid.origin[0], grid.step, edge)
    rows = by_row @ image.reshape(height, -1).astype(np.float32)  # (h, W * C)
    turned = rows.reshape(-1, width, channels).transpose(1, 0, 2).reshape(width, -1)  # (W, h * C)
    columns = (by_column @ turned).reshape(grid.size[0], grid.size[1], channels)  # (w, h, C)
    return columns.transpose(1, 0, 2)


def resample_image(image: Array, grid: WorkingGrid, mask: Array, working_mask: Array) -> Array:
    """Working image (h, w, 3) uint8 of a photograph (H, W, 3) uint8 with its mask (H, W) and working mask (h, w).

    Object and background are averaged apart: an object pixel on the silhouette takes nothing of the background, and the
    other way round. Beyond the photograph its border is repeated.
    """
    both = _resample(image, grid, edge=True)
    share = _resample(mask[..., None], grid, edge=True)  # (h, w, 1), of the object
    inside = _resample(image * mask[..., None], grid, edge=True)
    mixed = (share[..., 0] > 1e-4) & (share[..., 0] < 1 - 1e-4)
    apart = np.where(
        working_mask[..., None], inside / np.maximum(share, 1e-4), (both - inside) / np.maximum(1 - share, 1e-4)
    )
    return np.clip(np.rint(np.where(mixed[..., None], apart, both)), 0, 255).astype(np.uint8)


def resample_mask(mask: Array, grid: WorkingGrid, threshold: float) -> Array:
    """Working mask (h, w) bool of a source mask (H, W): object where its share of the pixel reaches `threshold`."""
    share = _resample(mask[..., None], grid, edge=False)[..., 0]
    return np.ascontiguousarray(share >= threshold - 1e-4)


def resize_mask(mask: Array, size: tuple[int, int]) -> Array:
    """Mask (h, w) bool of another size (W, H), same field of view: by area, then thresholded at one half."""
    if mask.shape == (size[1], size[0]):
        return mask
    by_row = _area_weights(mask.shape[0], size[1], 0.0, mask.shape[0] / size[1], edge=True)
    by_column = _area_weights(mask.shape[1], size[0], 0.0, mask.shape[1] / size[0], edge=True)
    share = (by_column @ (by_row @ mask.astype(np.float32)).T).T
    return np.ascontiguousarray(share >= 0.5 - 1e-4)


Sides = Literal["same", "proportional", "turned", "different"]


def compare_sizes(size: tuple[int, int], reference: tuple[int, int]) -> Sides:
    """How one size (W, H) relates to another: equal, of the same ratio within a pixel, exchanged sides, or none."""
    if size == reference:
        return "same"

    def proportional(a: tuple[int, int], b: tuple[int, int]) -> bool:
        scale = max(b) / max(a)
        unit = max(1.0, scale)
        return abs(a[0] * scale - b[0]) <= unit and abs(a[1] * scale - b[1]) <= unit

    if proportional(size, reference):
        return "proportional"
    return "turned" if proportional((size[1], size[0]), reference) else "different"
