"""Patch grids: which patches of an image are in the sequence, which outputs are wanted, and windows of cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparse_ga.network.positions import grid_positions


@dataclass(frozen=True)
class Window:
    """A half-open rectangle of cells on a grid."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        """Number of cell rows."""
        return self.bottom - self.top

    @property
    def columns(self) -> int:
        """Number of cell columns."""
        return self.right - self.left

    def scaled(self, factor: int) -> Window:
        """The same rectangle on a grid whose cells are `factor` times smaller."""
        return Window(self.top * factor, self.bottom * factor, self.left * factor, self.right * factor)

    def grown(self, margin: int, rows: int, columns: int) -> Window:
        """Larger by `margin` cells on every side, within a grid of `rows` by `columns`."""
        return Window(
            max(self.top - margin, 0),
            min(self.bottom + margin, rows),
            max(self.left - margin, 0),
            min(self.right + margin, columns),
        )

    def before_doubling(self, rows: int, columns: int) -> Window:
        """Cells of a `rows` by `columns` grid that `double` reads to write this rectangle of the doubled grid."""
        top, bottom = _sources(self.top, self.bottom, rows)
        left, right = _sources(self.left, self.right, columns)
        return Window(top, bottom, left, right)

    def cut(self, x: Tensor, origin: Window) -> Tensor:
        """This rectangle of `x` (B, C, rows, columns), which covers `origin`."""
        if self == origin:
            return x
        rows = slice(self.top - origin.top, self.bottom - origin.top)
        return x[:, :, rows, self.left - origin.left : self.right - origin.left]


def whole(rows: int, columns: int) -> Window:
    """The window that covers a grid."""
    return Window(0, rows, 0, columns)


def _sources(start: int, stop: int, size: int) -> tuple[int, int]:
    step = (size - 1) / (2 * size - 1)
    first = int(start * step)
    last = min(int((stop - 1) * step) + 1, size - 1)
    return first, last + 1


def double(x: Tensor, have: Window, size: tuple[int, int], want: Window) -> Tensor:
    """Rectangle `want` of a feature map doubled in size by bilinear interpolation with aligned corners.

    `x` (B, C, have.rows, have.columns) is rectangle `have` of a map of `size`; the result is what cutting `want` from
    the doubled whole map would give, computed from the cells it needs.
    """
    if torch.is_grad_enabled() and have == whole(*size):
        target = (2 * size[0], 2 * size[1])
        doubled = torch.nn.functional.interpolate(x, size=target, mode="bilinear", align_corners=True)
        return want.cut(doubled, whole(*target))
    tall = _doubled_axis(x.permute(0, 2, 3, 1), 1, have.top, size[0], range(want.top, want.bottom))
    wide = _doubled_axis(tall, 2, have.left, size[1], range(want.left, want.right))  # (B, rows, columns, C)
    return wide.permute(0, 3, 1, 2)


def _doubled_axis(x: Tensor, dim: int, start: int, size: int, want: range) -> Tensor:
    """Cells `want` of the doubling of axis `dim` of `size` cells, of which `x` holds those from `start` on.

    Neighbouring fine cells 2m + 1 and 2m + 2 lie between the coarse cells m and m + 1, so that each parity is one
    blend of two slices: on a CPU in less than half the time that `interpolate` takes, or a product with a matrix of
    weights, or gathering.
    """
    shape = list(x.shape)
    shape[dim] = len(want)
    out = x.new_empty(shape)
    for end, source in ((0, 0), (2 * size - 1, size - 1)):
        if end in want:
            out.select(dim, end - want.start).copy_(x.select(dim, source - start))
    for parity in (1, 0):
        first = max(want.start, 1)
        first += (first + parity) % 2
        fine = range(first, min(want.stop, 2 * size - 1), 2)
        if not fine:
            continue
        low = (fine[0] - 1) // 2 - start
        index = torch.tensor(fine, dtype=torch.float64, device="cpu")
        share = (index * ((size - 1) / (2 * size - 1)) - (index - 1).div(2, rounding_mode="floor")).to(x.dtype)
        share = sent(share.reshape([-1 if d == dim else 1 for d in range(x.dim())]), x.device)
        below, above = x.narrow(dim, low, len(fine)), x.narrow(dim, low + 1, len(fine))
        places: list[slice] = [slice(None)] * x.dim()
        places[dim] = slice(fine[0] - want.start, fine[-1] + 1 - want.start, 2)
        target = out[tuple(places)]
        if torch.is_grad_enabled():
            target.copy_(torch.lerp(below, above, share))
        else:
            torch.lerp(below, above, share, out=target)
    return out


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """The patches of one image.

    `kept`: patches that are in the sequence; `wanted`: patches that hold foreground, whose outputs matter. None means
    all of them. Both live on the CPU, so that asking for sizes never waits for a GPU.
    """

    rows: int
    columns: int
    kept: Tensor | None = None  # (rows, columns) bool, CPU
    wanted: Tensor | None = None  # (rows, columns) bool, CPU

    @property
    def size(self) -> int:
        """Number of patches."""
        return self.rows * self.columns

    @cached_property
    def length(self) -> int:
        """Number of tokens in the sequence."""
        return self.size if self.kept is None else int(self.kept.sum())

    @cached_property
    def wanted_count(self) -> int:
        """Number of wanted patches."""
        return self.size if self.wanted is None else int(self.wanted.sum())

    @cached_property
    def window(self) -> Window | None:
        """Smallest rectangle of patches that covers the wanted ones; None if nothing is wanted."""
        if self.wanted is None:
            return whole(self.rows, self.columns)
        y, x = self.wanted.nonzero(as_tuple=True)
        if len(y) == 0:
            return None
        return Window(int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1)

    def select_kept(self, patches: Tensor) -> Tensor:
        """The kept ones (length, ...) of all patches (rows * columns, ...)."""
        return patches if self.kept is None else patches[_index(self.kept, patches.device)]

    def select_wanted(self, patches: Tensor) -> Tensor:
        """The wanted ones (wanted_count, ...) of all patches (rows * columns, ...)."""
        return patches if self.wanted is None else patches[_index(self.wanted, patches.device)]

    def wanted_of_kept(self, tokens: Tensor) -> Tensor:
        """The wanted ones (wanted_count, ...) of the sequence's tokens (length, ...)."""
        if self.wanted is None or self.wanted is self.kept:
            return tokens
        if self.kept is None:
            return self.select_wanted(tokens)
        return tokens[_index(self.select_kept(self.wanted.flatten()), tokens.device)]

    def place_wanted(self, patches: Tensor, absent: float) -> Tensor:
        """Wanted patches (wanted_count, ...) among all (rows * columns, ...), `absent` where not wanted."""
        if self.wanted is None:
            return patches
        full = patches.new_full((self.size, *patches.shape[1:]), absent)
        full[_index(self.wanted, patches.device)] = patches
        return full

    def fill(self, tokens: Tensor) -> Tensor:
        """Tokens (length, C) on the full grid (rows * columns, C); absent ones are a smooth blend of the nearest.

        The blend is Shepard's: weights fall with the fourth power of the distance on the grid. It depends on the kept
        tokens only. Without any token all are zero.
        """
        if self.kept is None:
            return tokens
        if len(tokens) == 0:
            return tokens.new_zeros(self.size, tokens.shape[1])
        full = tokens.new_empty(self.size, tokens.shape[1])
        full[_index(self.kept, tokens.device)] = tokens
        full[_index(~self.kept, tokens.device)] = sent(self._fill_weights.to(tokens.dtype), tokens.device) @ tokens
        return full

    @cached_property
    def _fill_weights(self) -> Tensor:
        assert self.kept is not None
        return shepard_weights(self.kept)


def _index(chosen: Tensor, device: torch.device) -> Tensor:
    """Flat positions (n,) int64 on `device` of the True ones of a CPU tensor."""
    return sent(chosen.flatten().nonzero()[:, 0], device)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """`values` from the CPU on `device`; only CUDA keeps memory that is still being copied from being freed."""
    return values.to(device, non_blocking=device.type == "cuda")


def shepard_weights(kept: Tensor) -> Tensor:
    """Weights (absent, kept) float32 with rows that sum to 1, from `kept` (rows, columns) bool; 1 / distance ** 4."""
    present, absent = kept.nonzero().float(), (~kept).nonzero().float()  # (L, 2), (A, 2)
    square = (absent[:, None] - present[None]).square().sum(-1)  # (A, L)
    weight = square.pow(-2)
    return weight / weight.sum(1, keepdim=True)


def fill_dense(tokens: Tensor, kept: Tensor, size: tuple[int, int]) -> Tensor:
    """`TokenGrid.fill` of B grids of `size` (rows, columns) at once: tokens (B, L, C), `kept` (B, L) bool."""
    positions = grid_positions(*size, device=tokens.device).float()  # (L, 2)
    square = (positions[:, None] - positions).square().sum(-1)  # (L, L)
    weight = torch.where(square > 0, square.clamp_min(1).pow(-2), 0.0) * kept[:, None]  # (B, L, L)
    weight = weight / weight.sum(2, keepdim=True).clamp_min(1e-20)
    blend = weight.to(tokens.dtype) @ torch.where(kept[..., None], tokens, 0.0)
    return torch.where(kept[..., None], tokens, blend)
