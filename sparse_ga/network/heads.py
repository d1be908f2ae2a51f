"""Heads: from tokens of chosen depths to raw channels at every wanted pixel.

A head returns, for every image, raw point-map channels (4: direction and length, confidence) on the image's window and,
with descriptors, raw descriptor channels of every wanted token's patch. Heads run in fp32 and pay for the foreground:
what works on tokens alone sees wanted tokens only, what convolves sees the window with absent tokens filled in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_ga.network.architecture import Architecture
from sparse_ga.network.blocks import Mlp
from sparse_ga.network.dpt import DPT, channels_last, hooks
from sparse_ga.network.grids import TokenGrid, Window, double, whole

POINT_CHANNELS = 4
TOKENS_AT_ONCE = 1600  # patches that go through a convolutional head together: two images of 512x384, about 1 GB
TOKENS_AT_ONCE_CPU = 800  # smaller maps, which stay in memory that the process has already: see `_bands` of the DPT


@dataclass(frozen=True, eq=False)
class RawOutput:
    """One image's raw channels. `descriptors` are per wanted token, in the order of the sequence."""

    points: Tensor | None  # (4, patch * window.rows, patch * window.columns); None without any wanted patch
    descriptors: Tensor | None  # (wanted tokens, D or D + 1, patch, patch)


class Head(nn.Module, ABC):
    """Base of all heads: which depths it reads, and how packed tokens become per-image maps."""

    depths: tuple[int, ...]

    @abstractmethod
    def forward(
        self, tokens: Sequence[Tensor], grids: Sequence[TokenGrid], finest: Sequence[Tensor] | None = None
    ) -> list[RawOutput]:
        """Packed fp32 tokens (T, C_k) of each of `depths`, the images' grids, and what `finest` gave for each."""

    def finest(self, tokens: Tensor, grid: TokenGrid) -> Tensor | None:
        """What the head makes of one image's encoder tokens (length, C) alone, to be kept; None if nothing."""
        return None


class LinearHead(Head):
    """DUSt3R's linear head: one projection of the last tokens to all pixels of their patch."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.depths = (arch.dec_depth,)
        self.patch = arch.patch_size
        self.proj = nn.Linear(arch.dec_embed_dim, POINT_CHANNELS * self.patch**2)

    def forward(
        self, tokens: Sequence[Tensor], grids: Sequence[TokenGrid], finest: Sequence[Tensor] | None = None
    ) -> list[RawOutput]:
        """As `Head.forward`."""
        wanted = wanted_rows(tokens[0], grids)  # (W, C)
        patches = self.proj(wanted).unflatten(1, (POINT_CHANNELS, self.patch, self.patch))  # (W, 4, p, p)
        parts = patches.split(wanted_counts(grids))
        return [RawOutput(_assemble(p, g), None) for p, g in zip(parts, grids, strict=True)]


class DptHead(Head):
    """DUSt3R's dense head: point map and confidence by DPT."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.depths = hooks(arch.dec_depth)
        dims = (arch.enc_embed_dim, *[arch.dec_embed_dim] * 3)
        self.dpt = DPT(dims, POINT_CHANNELS, arch.dpt_width)

    def forward(
        self, tokens: Sequence[Tensor], grids: Sequence[TokenGrid], finest: Sequence[Tensor] | None = None
    ) -> list[RawOutput]:
        """As `Head.forward`."""
        return [RawOutput(points, None) for points in self.points(tokens, grids, finest)]

    def finest(self, tokens: Tensor, grid: TokenGrid) -> Tensor | None:
        """As `Head.finest`: (1, width, h, w)."""
        if grid.window is None:
            return None
        return self.dpt.finest(channels_last(_token_maps(tokens, [grid])[0][None]), grid.window)

    def points(
        self, tokens: Sequence[Tensor], grids: Sequence[TokenGrid], finest: Sequence[Tensor] | None
    ) -> list[Tensor | None]:
        """Raw point channels of every image; images with equal grid and window share a batch."""
        maps = [_token_maps(depth, grids) for depth in tokens]
        outputs: list[Tensor | None] = []
        for members in _batches(grids, tokens[0].device):
            window = grids[members[0]].window
            if window is None:
                outputs += [None] * len(members)
                continue
            stacked = [channels_last(torch.stack([depth[n] for n in members])) for depth in maps]
            kept = None if finest is None else channels_last(torch.cat([finest[n] for n in members]))
            outputs += list(self.dpt(stacked, window, kept))
        return outputs


class CatMlpDptHead(DptHead):
    """MASt3R's head: DPT for the point map, an MLP on encoder and decoder tokens for descriptors."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.head_local_features = _descriptor_mlp(arch)
        self.patch = arch.patch_size

    def forward(
        self, tokens: Sequence[Tensor], grids: Sequence[TokenGrid], finest: Sequence[Tensor] | None = None
    ) -> list[RawOutput]:
        """As `Head.forward`."""
        descriptors = _descriptor_patches(self.head_local_features, tokens[0], tokens[-1], grids, self.patch)
        points = self.points(tokens, grids, finest)
        return [RawOutput(p, d) for p, d in zip(points, descriptors, strict=True)]


class PatchConvolution(nn.Module):
    """Point channels from token MLPs at half resolution, doubled and refined by convolutions."""

    def __init__(self, in_dim: int, patch: int, mlp_ratio: float, hidden: int = 25) -> None:
        super().__init__()
        self.half_patch = patch // 2
        self.mlp = Mlp(in_dim, int(mlp_ratio * in_dim), hidden * self.half_patch**2)
        self.head = nn.Sequential(
            nn.Identity(),
            nn.Conv2d(hidden, POINT_CHANNELS * hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(POINT_CHANNELS * hidden, POINT_CHANNELS, 1),
        )

    def forward(self, tokens: Tensor, window: Window) -> Tensor:
        """Tokens (B, C, rows, columns) of full grids to (B, 4, 2 half window.rows, 2 half window.columns)."""
        count, _, rows, columns = tokens.shape
        pixels = window.scaled(2 * self.half_patch)
        have = pixels.grown(1, 2 * self.half_patch * rows, 2 * self.half_patch * columns)
        near = window.grown(1, rows, columns)
        cut = near.cut(tokens, whole(rows, columns)).permute(0, 2, 3, 1)  # (B, near.rows, near.columns, C)
        patches = self.mlp(cut.reshape(-1, cut.shape[-1]))  # (tokens, hidden * half * half)
        coarse = patches.unflatten(0, (count, near.rows, near.columns)).permute(0, 3, 1, 2)
        coarse = channels_last(F.pixel_shuffle(coarse, self.half_patch))  # (B, hidden, half near.rows, ...)
        size = (self.half_patch * rows, self.half_patch * columns)
        fine = double(coarse, near.scaled(self.half_patch), size, have)  # (B, hidden, have.rows, have.columns)
        return pixels.cut(self.head(fine), have)


class CatConvHead(Head):
    """MASt3R's convolutional head: MLP and convolutions for the point map, an MLP for descriptors."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.depths = (0, arch.dec_depth)
        self.patch = arch.patch_size
        dim = arch.enc_embed_dim + arch.dec_embed_dim
        self.head_pts3d = PatchConvolution(dim, arch.patch_size, arch.head_mlp_ratio)
        self.head_local_features = _descriptor_mlp(arch)

    def forward(
        self, tokens: Sequence[Tensor], grids: Sequence[TokenGrid], finest: Sequence[Tensor] | None = None
    ) -> list[RawOutput]:
        """As `Head.forward`."""
        descriptors = _descriptor_patches(self.head_local_features, tokens[0], tokens[-1], grids, self.patch)
        maps = _token_maps(torch.cat([tokens[0], tokens[-1]], 1), grids)
        points: list[Tensor | None] = []
        for members in _batches(grids, tokens[0].device):
            window = grids[members[0]].window
            if window is None:
                points += [None] * len(members)
            else:
                points += list(self.head_pts3d(torch.stack([maps[n] for n in members]), window))
        return [RawOutput(p, d) for p, d in zip(points, descriptors, strict=True)]


def make_head(arch: Architecture) -> Head:
    """The head that an architecture names."""
    kinds: dict[str, Callable[[Architecture], Head]] = {
        "linear": LinearHead,
        "dpt": DptHead,
        "catmlp+dpt": CatMlpDptHead,
        "catconv": CatConvHead,
    }
    return kinds[arch.head_type](arch)


def wanted_rows(tokens: Tensor, grids: Sequence[TokenGrid]) -> Tensor:
    """The wanted ones of packed tokens (T, C): (W, C)."""
    if all(grid.wanted is None or grid.wanted is grid.kept for grid in grids):
        return tokens
    parts = tokens.split([grid.length for grid in grids])
    return torch.cat([grid.wanted_of_kept(part) for part, grid in zip(parts, grids, strict=True)])


def wanted_counts(grids: Sequence[TokenGrid]) -> list[int]:
    """Number of wanted tokens of each image."""
    return [grid.wanted_count for grid in grids]


def _descriptor_mlp(arch: Architecture) -> Mlp:
    in_dim = arch.enc_embed_dim + arch.dec_embed_dim
    channels = arch.descriptor_dim + int(arch.two_confs)
    return Mlp(in_dim, int(arch.head_mlp_ratio * in_dim), channels * arch.patch_size**2)


def _descriptor_patches(
    mlp: Mlp, encoder: Tensor, decoder: Tensor, grids: Sequence[TokenGrid], patch: int
) -> tuple[Tensor, ...]:
    """Raw descriptor channels of every image's wanted tokens, (wanted, D, patch, patch) each."""
    both = wanted_rows(torch.cat([encoder, decoder], 1), grids).split(wanted_counts(grids))  # (wanted, C) each
    if encoder.device.type == "cpu" and not torch.is_grad_enabled():  # smaller tensors: see `_bands` of the DPT
        return tuple(mlp(rows).unflatten(1, (-1, patch, patch)) for rows in both)
    patches = mlp(torch.cat(both)).unflatten(1, (-1, patch, patch))  # (W, D, p, p)
    return patches.split(wanted_counts(grids))


def _batches(grids: Sequence[TokenGrid], device: torch.device) -> list[list[int]]:
    """Neighbouring images that a convolutional head can take together: equal grids, equal windows, not too many."""
    at_once = TOKENS_AT_ONCE_CPU if device.type == "cpu" else TOKENS_AT_ONCE
    batches: list[list[int]] = []
    for (_, _, window), group in groupby(range(len(grids)), key=lambda n: _shape(grids[n])):
        members = list(group)
        size = len(members) if window is None else max(1, at_once // (window.rows * window.columns))
        batches += [members[at : at + size] for at in range(0, len(members), size)]
    return batches


def _shape(grid: TokenGrid) -> tuple[int, int, Window | None]:
    return grid.rows, grid.columns, grid.window


def _token_maps(tokens: Tensor, grids: Sequence[TokenGrid]) -> list[Tensor]:
    """Packed tokens (T, C) as one map (C, rows, columns) an image, absent tokens filled."""
    parts = tokens.split([grid.length for grid in grids])
    full = [grid.fill(part) for part, grid in zip(parts, grids, strict=True)]
    return [x.T.unflatten(1, (grid.rows, grid.columns)) for x, grid in zip(full, grids, strict=True)]


def _assemble(patches: Tensor, grid: TokenGrid) -> Tensor | None:
    """Patches (wanted, C, p, p) of one image as a map (C, p window.rows, p window.columns), zero where not wanted."""
    if grid.window is None:
        return None
    full = place_patches(patches.permute(0, 2, 3, 1), grid, 0.0).permute(2, 0, 1)  # (C, H, W)
    pixels = grid.window.scaled(patches.shape[-1])
    return full[:, pixels.top : pixels.bottom, pixels.left : pixels.right]


def place_patches(patches: Tensor, grid: TokenGrid, absent: float) -> Tensor:
    """Patches (wanted, p, p, C) of one image as a map (p rows, p columns, C), `absent` where not wanted."""
    _, patch, _, channels = patches.shape
    full = grid.place_wanted(patches, absent).unflatten(0, (grid.rows, grid.columns))  # (rows, columns, p, p, C)
    return full.transpose(1, 2).reshape(grid.rows * patch, grid.columns * patch, channels)
