"""Smooth fields over a mask from scattered values: harmonic (Laplacian) interpolation, and painting a background."""

from __future__ import annotations

import cv2
import numpy as np
import scipy.sparse as sparse
from scipy.ndimage import distance_transform_edt
from scipy.sparse.linalg import spsolve

from sparse_ga.products import Array


def harmonic_field(mask: Array, xy: Array, values: Array, stride: int = 4, stiffness: float = 0.05) -> Array:
    """Field (H, W) float64 on the mask that is smooth and passes near `values` (M,) at pixels `xy` (M, 2); 0 outside.

    Minimises squared differences between neighbouring nodes of a grid of every `stride`-th pixel plus Huber-weighted
    squared differences to the values (bilinear); values that stray from their neighbours, mismatches mostly, lose
    weight. Parts of the mask that hold no value take the median. `stiffness` weighs smoothness against values.
    """
    if len(values) == 0:
        return np.zeros(mask.shape)
    height, width = mask.shape
    rows, cols = (height + stride - 1) // stride + 1, (width + stride - 1) // stride + 1
    covered = np.zeros((rows * stride, cols * stride), bool)
    covered[:height, :width] = mask
    near = covered.reshape(rows, stride, cols, stride).any((1, 3))
    node = cv2.dilate(near.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    number = np.full((rows, cols), -1)
    number[node] = np.arange(node.sum())
    smooth = _grid_laplacian(number)
    centre = float(np.median(values))
    data, inside = _bilinear_rows(number, xy / stride)
    offset = values[inside] - centre
    count = smooth.shape[0]
    weight = np.ones(len(offset))
    solution = np.zeros(count)
    for _ in range(3):
        normal = data.T @ data.multiply(weight[:, None]) + stiffness * smooth + 1e-6 * sparse.identity(count)
        solution = spsolve(normal.tocsc(), data.T @ (weight * offset))
        miss = np.abs(data @ solution - offset)
        scale = max(1.4826 * float(np.median(miss)), 1e-4)
        weight = np.minimum(1.0, 2.0 * scale / np.maximum(miss, 1e-12))
    grid = np.zeros((rows, cols))
    grid[node] = solution
    x, y = np.meshgrid(np.arange(width, dtype=np.float32) / stride, np.arange(height, dtype=np.float32) / stride)
    field = cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(mask, field + centre, 0.0)


def _grid_laplacian(number: Array) -> sparse.csr_matrix:
    """Graph Laplacian (n, n) of the 4-neighbourhood of numbered nodes (R, C); -1 marks no node."""
    edges = []
    for a, b in ((number[:, :-1], number[:, 1:]), (number[:-1], number[1:])):
        both = (a >= 0) & (b >= 0)
        edges.append(np.stack([a[both], b[both]]))
    first, second = np.concatenate(edges, 1)
    count = int(number.max()) + 1
    adjacency = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(count, count))
    adjacency = (adjacency + adjacency.T).tocsr()
    return sparse.diags(np.asarray(adjacency.sum(1)).ravel()) - adjacency


def _bilinear_rows(number: Array, xy: Array) -> tuple[sparse.csr_matrix, Array]:
    """Matrix (M', n) that reads a node field at grid positions `xy` (M, 2), and which lie among nodes (M,)."""
    base = np.floor(xy).astype(int)
    part = xy - base
    base = np.clip(base, 0, np.array(number.shape[::-1]) - 2)
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    cols = np.stack([number[base[:, 1] + dy, base[:, 0] + dx] for dx, dy in corners], 1)  # (M, 4)
    weight = np.stack([np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1]) for dx, dy in corners], 1)  # (M, 4)
    inside = np.asarray((cols >= 0).all(axis=1))  # (M,)
    rows = np.repeat(np.arange(inside.sum()), 4)
    shape = (int(inside.sum()), int(number.max()) + 1)
    return sparse.csr_matrix((weight[inside].ravel(), (rows, cols[inside].ravel())), shape=shape), inside


def distance_to(xy: Array, shape: tuple[int, int]) -> Array:
    """Distance in pixels (H, W) of every pixel to the nearest of `xy` (M, 2); infinite where there is none."""
    if len(xy) == 0:
        return np.full(shape, np.inf)
    empty = np.ones(shape, bool)
    column = np.clip(np.round(xy[:, 0]).astype(int), 0, shape[1] - 1)
    row = np.clip(np.round(xy[:, 1]).astype(int), 0, shape[0] - 1)
    empty[row, column] = False
    return distance_transform_edt(empty)


def paint_background(image: Array, mask: Array) -> Array:
    """The image (H, W, 3) uint8 with every pixel outside the mask painted smoothly from the foreground.

    Push-pull: the background takes the mask-weighted mean of ever coarser scales, finest scale that has any foreground
    first. Depends on no background pixel. With an empty mask the result is mid grey.
    """
    if not mask.any():
        return np.full_like(image, 128)
    size = (image.shape[1], image.shape[0])
    colour = (image * mask[..., None]).astype(np.float32)
    weight = mask.astype(np.float32)
    levels = [(colour, weight)]
    while min(levels[-1][1].shape) > 1:
        colour, weight = levels[-1]
        half = (max(1, (weight.shape[1] + 1) // 2), max(1, (weight.shape[0] + 1) // 2))
        levels.append(
            (
                cv2.resize(colour, half, interpolation=cv2.INTER_AREA),
                cv2.resize(weight, half, interpolation=cv2.INTER_AREA),
            )
        )
    colour, weight = levels[-1]
    filled = colour / np.maximum(weight, 1e-6)[..., None]
    for colour, weight in reversed(levels[:-1]):
        size = (weight.shape[1], weight.shape[0])
        coarse = cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR).reshape(*weight.shape, 3)
        own = np.minimum(weight, 1.0)[..., None]
        filled = colour / np.maximum(weight, 1e-6)[..., None] * own + coarse * (1 - own)
    painted = np.clip(filled + 0.5, 0, 255).astype(np.uint8)
    return np.where(mask[..., None], image, painted)
