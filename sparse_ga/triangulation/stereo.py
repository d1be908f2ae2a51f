"""Photometric refinement of depth maps: a sweep of offsets from the depth at hand, scored by masked correlation.

Each hypothesis shifts the whole depth map of a view along its rays by one offset and warps its neighbours' images
through it, so windows follow the surface instead of a plane facing the camera (compare Gallup et al., CVPR 2007). The
score is normalised cross-correlation in windows that leave out the background, averaged over the neighbours that fit
best, which takes care of occlusion. Semi-global matching (Hirschmueller, PAMI 2008) picks the offsets.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sparse_ga.products import Array
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.work import advance

_TEXTURE = 2.0  # grey levels; deviation in a window below which correlation means nothing
_ON_OBJECT = 0.5  # share of a sample that is object
_SMALL = 0.15
_LARGE = 0.6
_PRIOR = 0.05
_KEEP_BEST = 0.5
_MOST_NEIGHBOURS = 6
_MOST_THREADS = 8
_SMOOTH_RANGE = 0.005  # share of the diameter


@dataclass(frozen=True)
class Sweep:
    """One sweep over offsets from the current depth."""

    reach: float  # largest offset, share of the object's diameter
    steps: int  # offsets on either side
    window_px: int  # side of the correlation window, odd
    halved: bool  # at half the working resolution


SWEEPS = (Sweep(0.06, 10, 7, True), Sweep(0.015, 6, 7, False))


@dataclass(frozen=True, eq=False)
class _Picture:
    """A view with its depth and its image, at working resolution or half of it."""

    view: DepthView
    layers: Array  # (H, W, 2) float32: grey image times mask, mask; the background is nowhere in it


@dataclass(frozen=True, eq=False)
class _Crop:
    """The part of a view that holds the object, with what is the same for all hypotheses."""

    rows: slice
    columns: slice
    grid: Array  # (3, h, w) float32, homogeneous pixels
    image: Array  # (h, w) float32, grey
    weight: Array  # (h, w) float32, 1 on valid depth
    depth: Array  # (h, w) float32
    window: int  # side of the correlation window


def refine_depths(
    depths: list[DepthView], images: list[Array], neighbours: list[Array], diameter: float
) -> list[DepthView]:
    """Depth maps after all `SWEEPS`, each over all views before the next.

    `images` are (H, W, 3) uint8 by view index, `neighbours` view indices by view index. Pixels without texture follow
    their surroundings and the depth they had; confidence becomes the correlation reached there.
    """
    for sweep in SWEEPS:
        smooth = [replace(view, depth=smooth_depth(view.depth, _SMOOTH_RANGE * diameter)) for view in depths]
        pictures = {view.index: _picture(view, images[view.index], sweep.halved) for view in smooth}
        others = [[pictures[int(n)] for n in neighbours[view.index][:_MOST_NEIGHBOURS]] for view in smooth]
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:  # numpy and OpenCV free the lock
            tasks = [
                pool.submit(sweep_view, view, pictures[view.index], around, sweep, diameter)
                for view, around in zip(smooth, others, strict=True)
            ]
            depths = [_told(task.result()) for task in tasks]
    return depths


def _told(view: DepthView) -> DepthView:
    """The view, after saying that one more is done."""
    advance()
    return view


def _picture(view: DepthView, image: Array, halved: bool) -> _Picture:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    layers = np.stack([np.where(view.mask, grey, 0), view.mask], -1).astype(np.float32)
    if not halved:
        return _Picture(view, layers)
    height, width = view.depth.shape
    even = ((0, height % 2), (0, width % 2))
    layers = _half(np.pad(layers, (*even, (0, 0)), mode="edge"))
    depth = np.pad(view.depth, even)
    share = _half((depth > 0).astype(np.float32))
    mean = np.where(share >= 0.5, _half(depth) / np.maximum(share, 0.25), 0).astype(np.float32)
    intrinsics = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]]) @ view.intrinsics
    small = replace(view, depth=mean, confidence=np.zeros_like(mean), mask=layers[..., 1] > 0.5, intrinsics=intrinsics)
    return _Picture(small, layers)


def _half(values: Array) -> Array:
    return cv2.resize(values, (values.shape[1] // 2, values.shape[0] // 2), interpolation=cv2.INTER_AREA)


def sweep_view(view: DepthView, picture: _Picture, others: list[_Picture], sweep: Sweep, diameter: float) -> DepthView:
    """One view after one sweep; as it was when it has no depth or no neighbours."""
    if not others or not picture.view.valid.any():
        return view
    crop = _crop(picture, sweep.window_px)
    offsets = np.linspace(-sweep.reach, sweep.reach, 2 * sweep.steps + 1).astype(np.float32) * diameter
    scores = np.stack([_score(crop, picture.view, others, float(offset)) for offset in offsets])
    best, correlation = _choose(scores, crop)
    shape = picture.view.depth.shape
    offset_map, score_map = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    offset_map[crop.rows, crop.columns] = np.interp(best, np.arange(len(offsets)), offsets)
    score_map[crop.rows, crop.columns] = np.clip(correlation, 0.05, 1)
    if sweep.halved:
        weight = (picture.view.depth > 0).astype(np.float32)
        offset_map, score_map = (_doubled(values, weight, view.depth.shape) for values in (offset_map, score_map))
    depth = np.where(view.valid, np.maximum(view.depth + offset_map, 1e-6), 0)
    confidence = np.where(view.valid, np.clip(score_map, 0.05, 1), 0)
    return replace(view, depth=depth.astype(np.float32), confidence=confidence.astype(np.float32))


def _doubled(values: Array, weight: Array, shape: tuple[int, int]) -> Array:
    """Values (h, w) where `weight` is set, at twice the resolution (H, W); 0 far from any."""
    x = ((np.arange(shape[1]) - 0.5) / 2).astype(np.float32)
    y = ((np.arange(shape[0]) - 0.5) / 2).astype(np.float32)
    map_x, map_y = np.meshgrid(x, y)
    top, bottom = (
        cv2.remap(layer, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for layer in (values * weight, weight)
    )
    return np.where(bottom > 1e-3, top / np.maximum(bottom, 1e-3), 0)


def smooth_depth(depth: Array, reach: float) -> Array:
    """Depth (H, W) float32 without specks and block edges: a median over 5 px, then a bilateral mean over 9 px.

    Depths that differ by much more than `reach` do not mix, nor does the background.
    """
    valid = depth > 0
    # the median of a window that leaves the object must not see the zeros there
    _, label = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(label.max()) + 1, np.float32)
    of_label[label[valid]] = depth[valid]
    filled = cv2.medianBlur(of_label[label], 5)
    mixed = cv2.bilateralFilter(np.where(valid, filled, 0), 9, reach, 2.5)
    return np.where(valid, mixed, 0).astype(np.float32)


def _crop(picture: _Picture, window: int) -> _Crop:
    depth = picture.view.depth
    row, column = np.nonzero(depth > 0)
    height, width = depth.shape
    rows = slice(max(int(row.min()) - window, 0), min(int(row.max()) + window + 1, height))
    columns = slice(max(int(column.min()) - window, 0), min(int(column.max()) + window + 1, width))
    y, x = np.mgrid[rows, columns].astype(np.float32)
    grid = np.stack([x, y, np.ones_like(x)])
    depth = depth[rows, columns]
    layers = picture.layers[rows, columns]
    image = layers[..., 0] / np.maximum(layers[..., 1], _ON_OBJECT)
    return _Crop(rows, columns, grid, image, (depth > 0).astype(np.float32), depth, window)


def _box(values: Array, size: int) -> Array:
    return cv2.boxFilter(values, cv2.CV_32F, (size, size), normalize=False, borderType=cv2.BORDER_CONSTANT)


def _score(crop: _Crop, view: DepthView, others: list[_Picture], offset: float) -> Array:
    """Mean correlation (h, w) in [-1, 1] over the better half of the neighbours, for one offset."""
    depth = np.maximum(crop.depth + offset, 1e-6)
    layers = [_correlation(crop, depth, _pixels(view, other.view), other.layers) for other in others]
    kept = max(1, int(np.ceil(_KEEP_BEST * len(layers))))
    stack = np.stack(layers)
    return np.partition(stack, len(layers) - kept, axis=0)[len(layers) - kept :].mean(0)


def _pixels(view: DepthView, other: DepthView) -> Array:
    """Other view's homogeneous pixels from this view's pixels times depth, (3, 4)."""
    other_from_view = other.cam_from_world @ view.world_from_cam
    rotation = other.intrinsics @ other_from_view[:3, :3] @ np.linalg.inv(view.intrinsics)
    return np.concatenate([rotation, (other.intrinsics @ other_from_view[:3, 3])[:, None]], 1).astype(np.float32)


def _correlation(crop: _Crop, depth: Array, pixels: Array, layers: Array) -> Array:
    """Masked normalised cross-correlation (h, w) with one neighbour; -1 where the point falls off its object.

    Windows hold only pixels that are on the object in both views.
    """
    turned = np.tensordot(pixels[:, :3], crop.grid, 1)  # (3, h, w)
    z = 1 / np.maximum(depth * turned[2] + pixels[2, 3], 1e-6)
    x = (depth * turned[0] + pixels[0, 3]) * z
    y = (depth * turned[1] + pixels[1, 3]) * z
    seen = cv2.remap(layers, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)  # (h, w, 2)
    weight = crop.weight * (seen[..., 1] > _ON_OBJECT)
    one = weight * crop.image
    two = weight * seen[..., 0] / np.maximum(seen[..., 1], _ON_OBJECT)
    sums = [_box(values, crop.window) for values in (weight, one, two, one * crop.image, two * two, one * two)]
    share = 1 / np.maximum(sums[0], 1)
    mean_one, mean_two = sums[1] * share, sums[2] * share
    variance_one = np.maximum(sums[3] * share - mean_one**2, 0) + _TEXTURE**2
    variance_two = np.maximum(sums[4] * share - mean_two**2, 0) + _TEXTURE**2
    correlation = (sums[5] * share - mean_one * mean_two) / np.sqrt(variance_one * variance_two)
    return np.where(weight > 0, correlation, np.float32(-1))


def _choose(scores: Array, crop: _Crop) -> tuple[Array, Array]:
    """Best offset (h, w) as a fractional index, and the correlation (h, w) there."""
    count = len(scores)
    off_centre = np.abs(np.arange(count) - count // 2) / max(count // 2, 1)
    cost = (1 - scores) + (_PRIOR * off_centre).astype(np.float32)[:, None, None]
    cost = np.where(crop.weight > 0, cost, 0).astype(np.float32)
    total = semi_global(cost)
    index = total.argmin(0)
    inner = np.clip(index, 1, count - 2)
    below, here, above = (np.take_along_axis(total, (inner + step)[None], 0)[0] for step in (-1, 0, 1))
    curvature = below - 2 * here + above
    shift = np.where(curvature > 1e-6, (below - above) / (2 * np.maximum(curvature, 1e-6)), 0)
    best = np.where(index == inner, inner + np.clip(shift, -0.5, 0.5), index)
    return best, np.take_along_axis(scores, index[None], 0)[0]


def semi_global(cost: Array) -> Array:
    """Sum (K, h, w) of the costs of the cheapest paths from four sides; small steps cost little, larger ones more."""
    total = np.zeros_like(cost)
    for axis in (1, 2):
        for backwards in (False, True):
            lines = np.moveaxis(cost, axis, 0)  # (n, K, m)
            out = np.moveaxis(total, axis, 0)
            order = range(len(lines) - 1, -1, -1) if backwards else range(len(lines))
            previous: Array | None = None
            for number in order:
                previous = lines[number] if previous is None else lines[number] + _step(previous)
                out[number] += previous
    return total


def _step(previous: Array) -> Array:
    """Cheapest way (K, m) to arrive from the line before, less the cheapest of all so that sums stay bounded."""
    lowest = previous.min(0)
    best = np.minimum(previous, lowest + _LARGE)
    best[1:] = np.minimum(best[1:], previous[:-1] + _SMALL)
    best[:-1] = np.minimum(best[:-1], previous[1:] + _SMALL)
    return best - lowest
