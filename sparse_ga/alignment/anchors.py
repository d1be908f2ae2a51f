"""Anchors: the foreground pixels that carry depth parameters (MASt3R-SfM, arXiv 2409.19152, section 3.3).

The original puts one anchor at the centre of every 8x8 block and gives every other pixel of the block a fixed depth
ratio to it. A matched pixel then inherits the error of that ratio. Here matched pixels are anchors themselves, the
most often matched ones of each block first, so that the ratio matters only where matches are denser than anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.products import Array


@dataclass(frozen=True)
class Anchors:
    """Anchor pixels of one view and the anchor of every foreground pixel."""

    xy: Array  # (A, 2) int32, working px
    of_pixel: Array  # (H, W) int32, -1 outside the mask


def choose_anchors(mask: Array, match_count: Array, block_px: int, per_block: int) -> Anchors:
    """Anchors of a view from its `mask` (H, W) bool and how often each pixel is matched, `match_count` (H, W) int.

    Every block of `block_px` x `block_px` pixels that holds foreground gets between one and `per_block` anchors, all
    on foreground: its matched pixels, most matched first, or else the pixel nearest to its foreground's centroid.
    """
    width = mask.shape[1]
    columns = -(-width // block_px)
    y, x = np.nonzero(mask)  # (F,), (F,)
    of_pixel = np.full(mask.shape, -1, np.int32)
    if len(x) == 0:
        return Anchors(np.zeros((0, 2), np.int32), of_pixel)
    _, block = np.unique((y // block_px) * columns + x // block_px, return_inverse=True)  # (F,) 0..B-1
    size = np.bincount(block)
    centroid = np.stack([np.bincount(block, x) / size, np.bincount(block, y) / size], -1)  # (B, 2)
    offset = np.hypot(x - centroid[block, 0], y - centroid[block, 1])
    count = match_count[y, x]
    order = np.lexsort((offset, -count, block))  # most matched first, then most central
    start = np.concatenate([[0], np.cumsum(size)[:-1]])
    rank = np.empty(len(x), int)
    rank[order] = np.arange(len(x)) - np.repeat(start, size)
    chosen = (rank == 0) | ((rank < per_block) & (count > 0))
    index = np.flatnonzero(chosen)
    anchor_xy = np.stack([x[index], y[index]], -1).astype(np.int32)  # (A, 2)
    slots = np.full((len(size), per_block), -1)
    slots[block[index], rank[index]] = np.arange(len(index))
    of_pixel[y, x] = _nearest_in_block(np.stack([x, y], -1), slots[block], anchor_xy)
    return Anchors(anchor_xy, of_pixel)


def _nearest_in_block(xy: Array, candidates: Array, anchor_xy: Array) -> Array:
    """For pixels `xy` (F, 2) the nearest of their `candidates` (F, K) anchors (-1: none), (F,)."""
    best = candidates[:, 0].copy()
    distance = ((xy - anchor_xy[best]) ** 2).sum(-1)
    for slot in range(1, candidates.shape[1]):
        other = candidates[:, slot]
        reach = np.where(other >= 0, ((xy - anchor_xy[other]) ** 2).sum(-1), np.iinfo(np.int64).max)
        closer = reach < distance
        best[closer], distance[closer] = other[closer], reach[closer]
    return best
