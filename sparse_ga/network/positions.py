"""Where a token sits: patch grids, rotary embeddings (RoPE, CroCo v2 section 3.2) and sine-cosine embeddings (MAE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Positions (rows * columns, 2) int64 of a patch grid in row-major order, as (y, x)."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([y, x], -1).reshape(-1, 2)  # (rows * columns, 2)


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosines and sines that turn queries and keys: one angle per token, axis (y, x) and frequency, (T, 1, 2, F)."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def at(positions: Tensor, head_dim: int, base: float) -> Rotation:
        """Angles at `positions` (T, 2): frequency f of F turns by position / base ** (f / F)."""
        count = head_dim // 4
        exponent = torch.arange(count, dtype=torch.float32, device=positions.device) / count  # (F,)
        angle = positions[:, :, None].float() * base**-exponent  # (T, 2, F)
        return Rotation(angle.cos()[:, None], angle.sin()[:, None])

    def __call__(self, heads: Tensor) -> Tensor:
        """Turned queries or keys `heads` (T, h, d): the first half of d by y, the second by x, each as (d/4, d/4)."""
        split = heads.unflatten(-1, (2, 2, -1))  # (T, h, 2, 2, F)
        a, b = split[..., 0, :], split[..., 1, :]  # (T, h, 2, F)
        first = torch.addcmul(a * self.cos, b, self.sin, value=-1)  # (T, h, 2, F)
        second = torch.addcmul(b * self.cos, a, self.sin)  # (T, h, 2, F)
        turned = torch.stack([first, second], -2)  # (T, h, 2, 2, F)
        return turned.flatten(-3).to(heads.dtype)


def cosine_embedding(positions: Tensor, dim: int) -> Tensor:
    """Sine-cosine embedding (T, dim) float32 of `positions` (T, 2): half of it from x, then half from y, base 10000."""
    count = dim // 4
    frequency = 10000.0 ** -(torch.arange(count, dtype=torch.float64, device="cpu") / count)  # (F,)
    angle = positions.cpu().flip(-1)[:, :, None].double() * frequency  # (T, 2, F), x first; MPS has no float64
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1).float().to(positions.device)  # (T, dim)
