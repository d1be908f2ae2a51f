"""Transformer blocks of CroCo v2 (arXiv 2211.10408) on packed sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sparse_ga.network.attention import attend, attend_dense
from sparse_ga.network.positions import Rotation

EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class Layout:
    """Where sequences end in a packed tensor, and where their tokens sit on the patch grid."""

    lengths: tuple[int, ...]
    positions: Tensor  # (T, 2) int64, (y, x)
    rotation: Rotation | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keys: Layout) -> Tensor:
        """Attention of `query` (T, h, d), laid out so, to `key` and `value`, laid out as `keys`: (T, h * d)."""
        return attend(query, key, value, self.lengths, keys.lengths).flatten(1)


@dataclass(frozen=True, eq=False)
class DenseLayout(Layout):
    """B sequences of L tokens each, in tensors (B, L, C); tokens that are not kept are attended to by none.

    For training, where many images of one size go through together and nothing may wait for a GPU.
    """

    kept: Tensor | None = None  # (B, L) bool; None: all

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keys: Layout) -> Tensor:
        """As `Layout.attend`, with (B, L, ...) in place of (T, ...)."""
        assert isinstance(keys, DenseLayout)
        return attend_dense(query, key, value, keys.kept).flatten(2)


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in_dim) to (T, out_dim)."""
        return self.fc2(F.gelu(self.fc1(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention within each sequence."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(T, C) to (T, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # (T, h, d) each
        if layout.rotation is not None:
            q, k = layout.rotation(q), layout.rotation(k)
        return self.proj(layout.attend(q, k, v, layout))


class CrossAttention(nn.Module):
    """Multi-head attention from each sequence to its partner."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(dim, dim)
        self.projk = nn.Linear(dim, dim)
        self.projv = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout, other: Tensor, other_layout: Layout) -> Tensor:
        """Queries from `x` (T, C), keys and values from `other` (S, C); returns (T, C)."""
        q = self.projq(x).unflatten(-1, (self.heads, -1))  # (T, h, d)
        k = self.projk(other).unflatten(-1, (self.heads, -1))  # (S, h, d)
        v = self.projv(other).unflatten(-1, (self.heads, -1))  # (S, h, d)
        if layout.rotation is not None and other_layout.rotation is not None:
            q, k = layout.rotation(q), other_layout.rotation(k)
        return self.proj(layout.attend(q, k, v, other_layout))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(T, C) to (T, C)."""
        x = x + self.attn(self.norm1(x), layout)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the partner's tokens, and MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attn = SelfAttention(dim, heads)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.norm3 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)
        self.norm_y = nn.LayerNorm(dim, eps=EPSILON)

    def forward(self, x: Tensor, layout: Layout, other: Tensor, other_layout: Layout) -> Tensor:
        """`x` (T, C) and the partner's `other` (S, C), both from the block before; returns (T, C)."""
        x = x + self.attn(self.norm1(x), layout)
        x = x + self.cross_attn(self.norm2(x), layout, self.norm_y(other), other_layout)
        return x + self.mlp(self.norm3(x))
