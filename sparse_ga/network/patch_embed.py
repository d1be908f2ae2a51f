"""Patch embeddings: images of any size, landscape or portrait, to packed patches and their tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_ga.network.grids import TokenGrid


class InvalidInput(ValueError):
    """Images that the network cannot take; says which sizes it can."""


def patches_of(image: Tensor, grid: TokenGrid, patch: int) -> Tensor:
    """The kept patches (length, 3 * patch * patch) of `image` (3, H, W), row-major."""
    blocks = image.unflatten(1, (grid.rows, patch)).unflatten(3, (grid.columns, patch))  # (3, rows, p, columns, p)
    return grid.select_kept(blocks.permute(1, 3, 0, 2, 4).reshape(grid.size, -1))  # (length, 3 * p * p)


class PatchEmbedDust3R(nn.Module):
    """One linear map of each patch; images of a batch all lie as they are."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Packed patches (T, 3 * p * p) to tokens (T, C)."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def oriented(self, images: Tensor, true_shapes: Tensor | None) -> list[Tensor]:
        """Images (B, 3, H, W) one by one, each as it was taken; raises `InvalidInput`."""
        _check_size(images, self.patch_size)
        if true_shapes is not None and (true_shapes.cpu() != torch.tensor(images.shape[-2:])).any():
            raise InvalidInput("true_shapes differ from the images' size: only ManyAR_PatchEmbed turns images")
        return list(images)


class ManyARPatchEmbed(PatchEmbedDust3R):
    """As above; a batch is all landscape, and images whose true shape is portrait lie in it turned (transposed)."""

    def oriented(self, images: Tensor, true_shapes: Tensor | None) -> list[Tensor]:
        """Images (B, 3, H, W), W >= H, one by one, portraits turned back; raises `InvalidInput`."""
        if true_shapes is None:
            return super().oriented(images, None)
        _check_size(images, self.patch_size)
        height, width = images.shape[-2:]
        turned = []
        for image, shape in zip(images, true_shapes.tolist(), strict=True):
            if tuple(shape) not in ((height, width), (width, height)) or width < height:
                raise InvalidInput(f"true shape {shape} does not fit a landscape batch of {height}x{width}")
            turned.append(image if tuple(shape) == (height, width) else image.transpose(1, 2))
        return turned


def _check_size(images: Tensor, patch: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch or images.shape[3] % patch:
        raise InvalidInput(f"expected images (B, 3, H, W) with sides multiples of {patch}, got {tuple(images.shape)}")
