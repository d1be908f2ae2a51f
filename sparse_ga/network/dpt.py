"""Dense prediction head (DPT, arXiv 2103.13413) as DUSt3R and MASt3R use it, computed only where it is wanted.

Four depths of tokens become feature maps at 1/4, 1/8, 1/16 and 1/32 of the image, fused from coarse to fine. A window
of patches asks for part of the output: every level then computes the cells that part depends on, so the result is that
of the whole grid, cut (up to rounding), at a cost that follows the window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_ga.network.grids import Window, double, whole

_BAND_BYTES = 24 << 20
_LEVEL_REACH = 5  # 3x3 convolutions on the way through one level: one to enter, two in each residual unit


def level_widths(width: int) -> tuple[int, int, int, int]:
    """Channels of the four levels before they become `width`: 96, 192, 384, 768 for the published 256."""
    return (width * 3 // 8, width * 3 // 4, width * 3 // 2, width * 3)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with ReLU before each, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=not torch.is_grad_enabled()))


class Fusion(nn.Module):
    """Adds a level's own map to the coarser path; the coarsest level's `resConfUnit1` exists but has no use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, own: Tensor, path: Tensor | None) -> Tensor:
        """Maps (B, C, h, w) to the fused map of the same size, not yet doubled.

        The 1x1 convolution comes before the doubling here: both are linear and the interpolation weights sum to one,
        so they commute, and it costs a quarter.
        """
        return self.finish(own if path is None else path + self.resConfUnit1(own))

    def finish(self, fused: Tensor) -> Tensor:
        """From the sum of both to the fused map."""
        return self.out_conv(self.resConfUnit2(fused))


class Scratch(nn.Module):
    """Level convolutions and fusions; released checkpoints hold the level convolutions under two names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for level, own in enumerate(level_widths(width), start=1):
            setattr(self, f"layer{level}_rn", nn.Conv2d(own, width, 3, padding=1, bias=False))
        self.layer_rn = nn.ModuleList(getattr(self, f"layer{level}_rn") for level in range(1, 5))
        for level in range(1, 5):
            setattr(self, f"refinenet{level}", Fusion(width))

    def fusion(self, level: int) -> Fusion:
        """The fusion of level 1 (finest) to 4."""
        module = getattr(self, f"refinenet{level}")
        assert isinstance(module, Fusion)
        return module


class Doubling(nn.Module):
    """Holds the place of the interpolation between the output convolutions; `DPT` computes it on the window."""


class DPT(nn.Module):
    """Tokens of four depths to (channels) at every pixel."""

    def __init__(self, token_dims: Sequence[int], channels: int, width: int = 256) -> None:
        super().__init__()
        self.scratch = Scratch(width)
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            Doubling(),
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, channels, 1),
        )
        w1, w2, w3, w4 = level_widths(width)
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(token_dims[0], w1, 1), nn.ConvTranspose2d(w1, w1, 4, stride=4)),
                nn.Sequential(nn.Conv2d(token_dims[1], w2, 1), nn.ConvTranspose2d(w2, w2, 2, stride=2)),
                nn.Sequential(nn.Conv2d(token_dims[2], w3, 1)),
                nn.Sequential(nn.Conv2d(token_dims[3], w4, 1), nn.Conv2d(w4, w4, 3, stride=2, padding=1)),
            ]
        )

    def forward(self, grids: Sequence[Tensor], window: Window, finest: Tensor | None = None) -> Tensor:
        """Token maps of four depths (B, C_k, rows, columns) to (B, channels, 16 window.rows, 16 window.columns).

        `finest` is what `DPT.finest` makes of the first of them; made here if it is not given.
        """
        rows, columns = grids[0].shape[-2:]
        quarter = _reads(window, rows, columns)[3]
        finest = self.finest(grids[0], window) if finest is None else finest
        fused = self._fused_quarter(grids, quarter, finest)
        bands = [self._output(fused, quarter, band, (rows, columns)) for band in _bands(window, fused)]
        return bands[0] if len(bands) == 1 else torch.cat(bands, 2)

    def _output(self, fused: Tensor, quarter: Window, window: Window, size: tuple[int, int]) -> Tensor:
        """Channels of the patches `window` of a grid of `size`, from the fused map at 1/4 that covers `quarter`."""
        rows, columns = size
        pixels, full, half, _ = _reads(window, rows, columns)
        x = double(fused, quarter, (4 * rows, 4 * columns), half)
        x = self.head[0](x)
        x = double(x, half, (8 * rows, 8 * columns), full)
        x = self.head[4](F.relu(self.head[2](x), inplace=not torch.is_grad_enabled()))
        return pixels.cut(x, full)

    def finest(self, tokens: Tensor, window: Window) -> Tensor:
        """What the finest level adds to the coarser path, from the first depth's token map (B, C, rows, columns) alone.

        That depth is the encoder's output, so that this is the same in every pair an image is in.
        """
        rows, columns = tokens.shape[-2:]
        at4 = _reads(window, rows, columns)[3].grown(_LEVEL_REACH, 4 * rows, 4 * columns)
        own = self._own(1, _cells(tokens, at4, 4), at4)
        return self.scratch.fusion(1).resConfUnit1(own)

    def _fused_quarter(self, grids: Sequence[Tensor], window: Window, finest: Tensor) -> Tensor:
        """The fused map at 1/4 of the image on `window` (cells of that map)."""
        rows, columns = grids[0].shape[-2:]
        at4 = window.grown(_LEVEL_REACH, 4 * rows, 4 * columns)
        fused8 = at4.before_doubling(2 * rows, 2 * columns)
        at8 = fused8.grown(_LEVEL_REACH, 2 * rows, 2 * columns)
        coarse = self._level(4, grids[3], None)
        doubled = double(coarse, whole(*coarse.shape[-2:]), _size(coarse), whole(rows, columns))
        middle = self._level(3, grids[2], doubled)
        path8 = double(middle, whole(rows, columns), (rows, columns), at8)
        eighth = fused8.cut(self._level(2, _cells(grids[1], at8, 2), path8, at8), at8)
        path4 = double(eighth, fused8, (2 * rows, 2 * columns), at4)
        return window.cut(self.scratch.fusion(1).finish(path4 + finest), at4)

    def _level(self, level: int, tokens: Tensor, path: Tensor | None, window: Window | None = None) -> Tensor:
        """One level's fused map from token cells that cover `window`, a rectangle of the level's own map."""
        return self.scratch.fusion(level)(self._own(level, tokens, window), path)

    def _own(self, level: int, tokens: Tensor, window: Window | None) -> Tensor:
        """One level's own map, on `window`."""
        own = self.act_postprocess[level - 1](tokens)
        if window is not None:
            factor = {1: 4, 2: 2}[level]
            own = window.cut(own, _token_window(window, factor).scaled(factor))
        return self.scratch.layer_rn[level - 1](own)


def _reads(window: Window, rows: int, columns: int) -> tuple[Window, Window, Window, Window]:
    """For the patches `window` of a grid: its pixels, what the convolutions at full, half and a quarter size read."""
    pixels = window.scaled(16)
    full = pixels.grown(1, 16 * rows, 16 * columns)  # what the last 3x3 convolution reads
    half = full.before_doubling(8 * rows, 8 * columns).grown(1, 8 * rows, 8 * columns)
    return pixels, full, half, half.before_doubling(4 * rows, 4 * columns)


def _bands(window: Window, fused: Tensor) -> list[Window]:
    """`window` in bands of patch rows whose maps at full size stay small where memory once freed is dear to get again.

    On a CPU, maps of more than 32 MB come fresh from the system every time (glibc), at the price of a convolution.
    """
    if fused.device.type != "cpu" or torch.is_grad_enabled():
        return [window]
    bytes_of_row = 16 * 16 * window.columns * len(fused) * (fused.shape[1] // 2) * fused.element_size()
    step = max(1, _BAND_BYTES // bytes_of_row)
    tops = range(window.top, window.bottom, step)
    return [Window(top, min(top + step, window.bottom), window.left, window.right) for top in tops]


def _size(x: Tensor) -> tuple[int, int]:
    return int(x.shape[-2]), int(x.shape[-1])


def _token_window(window: Window, factor: int) -> Window:
    """Tokens that cover `window` of a map with `factor` cells a token side."""
    down = -(-window.bottom // factor)
    return Window(window.top // factor, down, window.left // factor, -(-window.right // factor))


def _cells(tokens: Tensor, window: Window, factor: int) -> Tensor:
    return _token_window(window, factor).cut(tokens, whole(*_size(tokens)))


def hooks(decoder_depth: int) -> tuple[int, int, int, int]:
    """Depths that a DPT head reads: the encoder's output (0) and after these decoder blocks."""
    return (0, decoder_depth * 2 // 4, decoder_depth * 3 // 4, decoder_depth)


def channels_last(x: Tensor) -> Tensor:
    """`x` (B, C, h, w) with channels innermost in memory where convolutions run faster so (CPU, CUDA)."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)
