"""Photographs put before a textured background that stands still, to show what masks protect from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sparse_ga.io.images import find_images, read_photograph
from sparse_ga.io.masks import find_masks, read_mask
from sparse_ga.products import Array
from sparse_ga.synthetic.texture import photo_like


def composite_over_background(image: Array, mask: Array, seed: int) -> Array:
    """The photograph (H, W, 3) uint8 with everything outside `mask` (H, W) bool replaced by a textured picture.

    The picture depends on `seed` and the size only: images with one seed share a static background, whatever the
    object does. The seam is softened over one pixel outside the mask; pixels inside it do not change.
    """
    height, width = mask.shape
    picture = photo_like(height, width, seed) * 255  # (H, W, 3)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.6)[..., None]  # (H, W, 1)
    mixed = image * soft + picture * (1 - soft)
    return np.where(mask[..., None], image, np.clip(np.round(mixed), 0, 255).astype(np.uint8))


def composite_folder(images: Path, masks: Path, out: Path, seed: int) -> list[Path]:
    """Write every photograph of a folder, put before one background, as `out`/STEM.png; returns the files.

    Raises `InputError` for photographs or masks that are missing or cannot be read.
    """
    paths = find_images(images)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path, mask_path in zip(paths, find_masks(paths, masks), strict=True):
        photograph = read_photograph(path)
        assert mask_path is not None  # a folder was given
        mask = read_mask(mask_path, photograph.size)
        target = out / f"{path.stem}.png"
        Image.fromarray(composite_over_background(photograph.image, mask, seed)).save(target, compress_level=1)
        written.append(target)
    return written
