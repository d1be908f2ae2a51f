"""What a mask does to an image before the network sees it: painting, and which patches stay.

`tokens`: patches without foreground leave the sequence; background pixels of mixed patches are painted.
`fill`: every background pixel is painted, all patches stay. `context`: the image is left alone.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ga.network.grids import TokenGrid

MaskMode = Literal["tokens", "fill", "context"]


def patch_has_foreground(mask: Tensor, patch: int) -> Tensor:
    """Patches (H / patch, W / patch) bool that hold at least one pixel of `mask` (H, W)."""
    return mask.unflatten(0, (-1, patch)).unflatten(2, (-1, patch)).any(3).any(1)  # (rows, columns)


def token_grid(mask: Tensor | None, size: tuple[int, int], patch: int, mode: MaskMode) -> TokenGrid:
    """The patches of an image of `size` (H, W) under `mask` (H, W) bool, or without one."""
    rows, columns = size[0] // patch, size[1] // patch
    foreground = None if mask is None else patch_has_foreground(mask, patch).cpu()  # (rows, columns)
    if foreground is None or bool(foreground.all()):
        return TokenGrid(rows, columns)
    return TokenGrid(rows, columns, foreground if mode == "tokens" else None, foreground)


def masked_image(image: Tensor, mask: Tensor | None, mode: MaskMode) -> Tensor:
    """What the network sees of `image` (3, H, W) under `mask` (H, W) bool."""
    if mask is None or mode == "context":
        return image
    return paint_background(image, mask)


def paint_background(image: Tensor, mask: Tensor) -> Tensor:
    """`image` (3, H, W) with every pixel outside `mask` (H, W) painted from the foreground, without an edge between.

    Push-pull (Gortler et al., The Lumigraph, 1996, section 3.6): averages of foreground colour on a pyramid, then from
    coarse to fine each unknown cell takes the interpolated coarser value. The result depends on the foreground only; an
    image without foreground becomes zero (mid-grey).
    """
    return paint_backgrounds(image[None], mask[None])[0]


def paint_backgrounds(images: Tensor, masks: Tensor) -> Tensor:
    """`paint_background` of `images` (B, 3, H, W) under `masks` (B, H, W)."""
    known = masks[:, None].to(images.dtype)  # (B, 1, H, W)
    colour = torch.where(masks[:, None], images, torch.zeros_like(images))  # (B, 3, H, W), background never read
    colours, weights = [colour], [known]
    while max(colour.shape[-2:]) > 1:
        odd = (0, colour.shape[-1] % 2, 0, colour.shape[-2] % 2)  # padded with nothing known
        share = F.avg_pool2d(F.pad(known, odd), 2)  # (B, 1, h, w)
        total = F.avg_pool2d(F.pad(colour * known, odd), 2)  # (B, 3, h, w)
        colour = total / torch.where(share > 0, share, 1.0)
        known = (share > 0).to(images.dtype)
        colours.append(colour)
        weights.append(known)
    painted = colours[-1]
    for fine, weight in zip(colours[-2::-1], weights[-2::-1], strict=True):
        coarse = F.interpolate(painted, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        painted = torch.where(weight > 0, fine, coarse)
    return painted
