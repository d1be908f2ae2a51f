"""Depth maps as 16-bit PNG at source resolution and as NPZ at working resolution."""

from __future__ import annotations

import cv2
import numpy as np

from sparse_ga.io.encode import encode_npz, encode_png
from sparse_ga.products import Array, Reconstruction

_LEVELS = 65535


def source_depth(reconstruction: Reconstruction, n: int) -> Array:
    """Depth (H, W) float32 of view n at source resolution, 0 where there is none.

    Inverse depth is linear on planes, so that is what is interpolated, between pixels that have a depth only.
    """
    depth, _ = reconstruction.depthmaps.view(n)
    width, height = (int(side) for side in reconstruction.source_sizes[n])
    affine = reconstruction.working_from_source[n]
    x = (affine[0, 0] * np.arange(width) + affine[0, 2]).astype(np.float32)
    y = (affine[1, 1] * np.arange(height) + affine[1, 2]).astype(np.float32)
    map_x, map_y = np.meshgrid(x, y)
    valid = depth > 0
    inverse = np.where(valid, 1 / np.where(valid, depth, 1), 0).astype(np.float32)
    outside = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": 0}
    top = cv2.remap(inverse, map_x, map_y, cv2.INTER_LINEAR, **outside)
    weight = cv2.remap(valid.astype(np.float32), map_x, map_y, cv2.INTER_LINEAR, **outside)
    return np.where(weight >= 0.5, weight / np.maximum(top, 1e-12), 0).astype(np.float32)


def depth_levels(depths: list[Array]) -> float:
    """World units of one level of a 16-bit PNG that holds all `depths` with as many levels as there are."""
    largest = max((float(depth.max(initial=0)) for depth in depths), default=0.0)
    return largest / _LEVELS if largest > 0 else 1.0


def encode_depth_png(depth: Array, unit: float) -> bytes:
    """16-bit PNG of a depth map (H, W); one level is `unit` world units, 0 is no depth, too far is the last level."""
    levels = np.rint(depth.astype(np.float64) / unit)
    return encode_png(np.clip(np.where(depth > 0, np.maximum(levels, 1), 0), 0, _LEVELS).astype(np.uint16))


def encode_depth_npz(reconstruction: Reconstruction, n: int) -> bytes:
    """NPZ of one view's depth and confidence (H, W) float32 in working px, with the camera they belong to."""
    depth, confidence = reconstruction.depthmaps.view(n)
    return encode_npz(
        {
            "depth": depth,
            "confidence": confidence,
            "mask": reconstruction.masks.mask(n),
            "intrinsics": reconstruction.working_intrinsics[n],
            "world_from_cam": reconstruction.world_from_cam[n],
            "working_from_source": reconstruction.working_from_source[n],
        }
    )
