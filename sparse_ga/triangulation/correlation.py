"""How well depths of a view explain its neighbours' photographs: masked normalised cross-correlation.

The neighbours' images are warped through a depth map, and compared with the view's own in windows that leave out the
background, averaged over the neighbours that fit best, which takes care of occlusion.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sparse_ga.products import Array
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.work import advance

_TEXTURE = 2.0  # grey levels; deviation in a window below which correlation means nothing
_ON_OBJECT = 0.5  # share of a sample that is object
_KEEP_BEST = 0.5
_MOST_THREADS = 8


@dataclass(frozen=True, eq=False)
class Picture:
    """A view with its depth and its image, at working resolution or half of it."""

    view: DepthView
    layers: Array  # (H, W, 2) float32: grey image times mask, mask; the background is nowhere in it


@dataclass(frozen=True, eq=False)
class Crop:
    """The part of a view that holds the object, with what is the same for all hypotheses."""

    rows: slice
    columns: slice
    grid: Array  # (3, h, w) float32, homogeneous pixels
    image: Array  # (h, w) float32, grey
    weight: Array  # (h, w) float32, 1 on valid depth
    depth: Array  # (h, w) float32
    window: int  # side of the correlation window


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the photographs around each view are."""

    images: Sequence[Array]  # (H, W, 3) uint8 by view index
    neighbours: Sequence[Array]  # view indices by view index, nearest first


def over_all_views(
    work: Callable[[DepthView, Picture, list[Picture]], DepthView],
    depths: list[DepthView],
    around: Surroundings,
    most: int,
    halved: bool,
) -> list[DepthView]:
    """`work` done on every view, its picture and those of its nearest `most` neighbours; all as they are before."""
    pictures = {view.index: _picture(view, around.images[view.index], halved) for view in depths}
    others = [[pictures[int(n)] for n in around.neighbours[view.index][:most]] for view in depths]
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:  # numpy and OpenCV free the lock
        tasks = [pool.submit(work, view, pictures[view.index], near) for view, near in zip(depths, others, strict=True)]
        return [_told(task.result()) for task in tasks]


def _told(view: DepthView) -> DepthView:
    """The view, after saying that one more is done."""
    advance()
    return view


def _picture(view: DepthView, image: Array, halved: bool) -> Picture:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    layers = np.stack([np.where(view.mask, grey, 0), view.mask], -1).astype(np.float32)
    if not halved:
        return Picture(view, layers)
    height, width = view.depth.shape
    even = ((0, height % 2), (0, width % 2))
    layers = _half(np.pad(layers, (*even, (0, 0)), mode="edge"))
    depth = np.pad(view.depth, even)
    share = _half((depth > 0).astype(np.float32))
    mean = np.where(share >= 0.5, _half(depth) / np.maximum(share, 0.25), 0).astype(np.float32)
    intrinsics = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]]) @ view.intrinsics
    small = replace(view, depth=mean, confidence=np.zeros_like(mean), mask=layers[..., 1] > 0.5, intrinsics=intrinsics)
    return Picture(small, layers)


def _half(values: Array) -> Array:
    return cv2.resize(values, (values.shape[1] // 2, values.shape[0] // 2), interpolation=cv2.INTER_AREA)


def crop_of(picture: Picture, window: int) -> Crop:
    """The part of a picture with depth, with `window` px around it."""
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
    return Crop(rows, columns, grid, image, (depth > 0).astype(np.float32), depth, window)


def _box(values: Array, size: int) -> Array:
    return cv2.boxFilter(values, cv2.CV_32F, (size, size), normalize=False, borderType=cv2.BORDER_CONSTANT)


def score(crop: Crop, depth: Array, view: DepthView, others: list[Picture]) -> Array:
    """Mean correlation (h, w) in [-1, 1] over the better half of the neighbours, for depths (h, w) of the crop."""
    depth = np.maximum(depth, 1e-6)
    layers = [_correlation(crop, depth, _pixels(view, other.view), other.layers) for other in others]
    kept = max(1, int(np.ceil(_KEEP_BEST * len(layers))))
    stack = np.stack(layers)
    return np.partition(stack, len(layers) - kept, axis=0)[len(layers) - kept :].mean(0)


def _pixels(view: DepthView, other: DepthView) -> Array:
    """Other view's homogeneous pixels from this view's pixels times depth, (3, 4)."""
    other_from_view = other.cam_from_world @ view.world_from_cam
    rotation = other.intrinsics @ other_from_view[:3, :3] @ np.linalg.inv(view.intrinsics)
    return np.concatenate([rotation, (other.intrinsics @ other_from_view[:3, 3])[:, None]], 1).astype(np.float32)


def _correlation(crop: Crop, depth: Array, pixels: Array, layers: Array) -> Array:
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
