"""A MASt3R's forward on whole batches of masked pairs: the model's own weights and results, every tensor (B, L, C).

The model itself packs images of any size and drops what masks hide, image by image; that is cheapest for a few large
images. Training has many small ones of one size, whose hundreds of small steps would leave a GPU waiting.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from sparse_ga.network.blocks import DenseLayout
from sparse_ga.network.grids import fill_dense, whole
from sparse_ga.network.heads import CatConvHead
from sparse_ga.network.masking import MaskMode, paint_backgrounds
from sparse_ga.network.model import AsymmetricMASt3R, Output
from sparse_ga.network.positions import Rotation, grid_positions
from sparse_ga.network.regression import activate_confidence, activate_descriptors, activate_points


def forward_pairs(
    model: AsymmetricMASt3R, images: Tensor, masks: Tensor, mode: MaskMode, dtype: torch.dtype | None = None
) -> tuple[Output, Output]:
    """Outputs of P pairs in both orders next to each other, as the model gives them for (a, b), (b, a), (c, d), ...

    `images` (2, P, 3, H, W) in [-1, 1] and `masks` (2, P, H, W) bool, the sides of the pairs leading; sides of images
    are multiples of the patch. Matrix products are in `dtype`, if given. Networks with the head "catconv" only.
    """
    head1, head2 = model.downstream_head1, model.downstream_head2
    if not (isinstance(head1, CatConvHead) and isinstance(head2, CatConvHead)) or model.arch.rope_base is None:
        raise ValueError(f"forward_pairs: expected a RoPE network with head 'catconv', got {model.arch.head_type}")
    count, patch = images.shape[1], model.arch.patch_size
    size = (images.shape[-2] // patch, images.shape[-1] // patch)
    flat, hidden = images.flatten(0, 1), masks.flatten(0, 1)
    painted = flat if mode == "context" else paint_backgrounds(flat, hidden)
    blocks = hidden.unflatten(1, (size[0], patch)).unflatten(3, (size[1], patch))  # (2 P, rows, p, columns, p)
    kept = blocks.any(4).any(2).flatten(1) if mode == "tokens" else None  # (2 P, L)
    device = images.device
    order = torch.arange(2 * count, device=device).reshape(2, count).T.flatten()  # a0, b0, a1, b1, ...
    swapped = (order + count) % (2 * count)
    with _precision(device, dtype):
        tokens = _encode(model, painted, size, kept)
        views = [(tokens[rows], None if kept is None else kept[rows]) for rows in (order, swapped)]
        decoded = _decode(model, views[0], views[1], size)
        raw = [_raw(head, seen, last, size) for head, seen, last in zip((head1, head2), views, decoded)]
    return _finish(model, raw[0], hidden[order], size), _finish(model, raw[1], hidden[swapped], size)


def _precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _layout(model: AsymmetricMASt3R, size: tuple[int, int], head_dim: int, kept: Tensor | None) -> DenseLayout:
    assert model.arch.rope_base is not None
    positions = grid_positions(*size, device=model.mask_token.device)  # (L, 2)
    return DenseLayout((), positions, Rotation.at(positions, head_dim, model.arch.rope_base), kept)


def _encode(model: AsymmetricMASt3R, images: Tensor, size: tuple[int, int], kept: Tensor | None) -> Tensor:
    """Tokens (B, L, C) of painted `images` (B, 3, H, W)."""
    arch, patch = model.arch, model.arch.patch_size
    layout = _layout(model, size, arch.enc_embed_dim // arch.enc_num_heads, kept)
    blocks = images.unflatten(2, (size[0], patch)).unflatten(4, (size[1], patch))  # (B, 3, rows, p, columns, p)
    x = model.patch_embed(blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))  # (B, L, C)
    for block in model.enc_blocks:
        x = block(x, layout)
    return model.enc_norm(x)


_Seen = tuple[Tensor, Tensor | None]
"""Encoder tokens (B, L, C) and which of them are kept (B, L)."""


def _decode(model: AsymmetricMASt3R, view1: _Seen, view2: _Seen, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The last tokens (B, L, C) of both decoders."""
    head_dim = model.arch.dec_embed_dim // model.arch.dec_num_heads
    layout1, layout2 = _layout(model, size, head_dim, view1[1]), _layout(model, size, head_dim, view2[1])
    x1, x2 = model.decoder_embed(view1[0]), model.decoder_embed(view2[0])
    for block1, block2 in zip(model.dec_blocks, model.dec_blocks2, strict=True):
        x1, x2 = block1(x1, layout1, x2, layout2), block2(x2, layout2, x1, layout1)
    return model.dec_norm(x1), model.dec_norm(x2)


def _raw(head: CatConvHead, seen: _Seen, decoded: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Raw point channels (B, H, W, 4) and raw descriptor channels (B, H, W, D) of all pixels."""
    tokens, kept = seen
    both = torch.cat([tokens, decoded.to(tokens.dtype)], -1)  # (B, L, C)
    patches = head.head_local_features(both).unflatten(2, (-1, head.patch, head.patch)).unflatten(1, size)
    descriptors = patches.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)  # (B, H, W, D)
    filled = both if kept is None else fill_dense(both, kept, size)
    points = head.head_pts3d(filled.transpose(1, 2).unflatten(2, size), whole(*size))  # (B, 4, H, W)
    return points.permute(0, 2, 3, 1).float(), descriptors.float()


def _finish(model: AsymmetricMASt3R, raw: tuple[Tensor, Tensor], masks: Tensor, size: tuple[int, int]) -> Output:
    """Activated outputs; what is outside `masks` (B, H, W) says nothing."""
    arch, (channels, patches) = model.arch, raw
    points = torch.where(masks[..., None], activate_points(channels[..., :3], arch.depth_mode), _ahead(channels))
    confidence = torch.where(masks, activate_confidence(channels[..., 3], arch.conf_mode), arch.conf_mode.minimum)
    descriptors = torch.where(masks[..., None], activate_descriptors(patches[..., : arch.descriptor_dim]), 0.0)
    if not arch.two_confs:
        return Output(points, confidence, descriptors, confidence)
    own = activate_confidence(patches[..., arch.descriptor_dim], arch.descriptor_range)
    return Output(points, confidence, descriptors, torch.where(masks, own, arch.descriptor_range.minimum))


def _ahead(like: Tensor) -> Tensor:
    return like.new_tensor([0.0, 0.0, 1.0])
