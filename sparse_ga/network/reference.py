"""The same networks the plain way: slow, short, and what the fast path is tested and timed against.

One pair at a time, without masks: both images encoded again for each pair, every decode order on its own, attention as
softmax(Q K^T) V with its full matrix, heads on the whole image. Weights are those of a network built by `build_model`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ga.network.blocks import CrossAttention, DecoderBlock, EncoderBlock, Mlp, SelfAttention
from sparse_ga.network.dpt import DPT
from sparse_ga.network.heads import CatMlpDptHead, DptHead, Head
from sparse_ga.network.model import AsymmetricCroCo3DStereo, Output
from sparse_ga.network.positions import Rotation, grid_positions
from sparse_ga.network.regression import activate_confidence, activate_descriptors, activate_points


def plain_pair(model: AsymmetricCroCo3DStereo, image1: Tensor, image2: Tensor) -> tuple[Output, Output]:
    """Outputs of two images (B, 3, H, W) of one size, in view 1's frame; networks with RoPE and a DPT head only."""
    tokens1, tokens2 = plain_encode(model, torch.cat([image1, image2])).chunk(2)  # (B, N, C) each
    return _plain_decode(model, tokens1, tokens2, _grid(model, image1))


def plain_both_orders(model: AsymmetricCroCo3DStereo, image1: Tensor, image2: Tensor) -> list[Output]:
    """View 1 and 2 in view 1's frame, then view 2 and 1 in view 2's: one encoding of the pair, two decodings."""
    tokens1, tokens2 = plain_encode(model, torch.cat([image1, image2])).chunk(2)  # (B, N, C) each
    grid = _grid(model, image1)
    return [*_plain_decode(model, tokens1, tokens2, grid), *_plain_decode(model, tokens2, tokens1, grid)]


def _grid(model: AsymmetricCroCo3DStereo, image: Tensor) -> tuple[int, int]:
    patch = model.arch.patch_size
    return int(image.shape[-2]) // patch, int(image.shape[-1]) // patch


def _plain_decode(
    model: AsymmetricCroCo3DStereo, tokens1: Tensor, tokens2: Tensor, grid: tuple[int, int]
) -> tuple[Output, Output]:
    rotation = _rotation(model, *grid, model.arch.dec_embed_dim // model.arch.dec_num_heads)
    depths1, depths2 = [tokens1], [tokens2]
    x1, x2 = model.decoder_embed(tokens1), model.decoder_embed(tokens2)
    for block1, block2 in zip(model.dec_blocks, model.dec_blocks2, strict=True):
        assert isinstance(block1, DecoderBlock)
        assert isinstance(block2, DecoderBlock)
        x1, x2 = _decoder_block(block1, x1, x2, rotation), _decoder_block(block2, x2, x1, rotation)
        depths1.append(x1)
        depths2.append(x2)
    depths1[-1], depths2[-1] = model.dec_norm(x1), model.dec_norm(x2)
    head1, head2 = model.downstream_head1, model.downstream_head2
    return _head(model, head1, depths1, grid), _head(model, head2, depths2, grid)


def plain_encode(model: AsymmetricCroCo3DStereo, images: Tensor) -> Tensor:
    """Encoder tokens (B, N, C) of images (B, 3, H, W)."""
    embedded = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, model.arch.patch_size)
    rows, columns = embedded.shape[-2:]
    rotation = _rotation(model, rows, columns, model.arch.enc_embed_dim // model.arch.enc_num_heads)
    x = embedded.flatten(2).transpose(1, 2)  # (B, N, C)
    for block in model.enc_blocks:
        assert isinstance(block, EncoderBlock)
        x = x + _self_attention(block.attn, block.norm1(x), rotation)
        x = x + block.mlp(block.norm2(x))
    return model.enc_norm(x)


def _rotation(model: AsymmetricCroCo3DStereo, rows: int, columns: int, head_dim: int) -> Rotation:
    assert model.arch.rope_base is not None
    positions = grid_positions(rows, columns, model.mask_token.device)
    return Rotation.at(positions, head_dim, model.arch.rope_base)


def _turn(x: Tensor, rotation: Rotation) -> Tensor:
    """`x` (B, N, h, d) turned by position, as (B, h, N, d)."""
    return torch.stack([rotation(sequence) for sequence in x]).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, h, N, d) each to (B, N, h d), with the whole matrix of weights."""
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # (B, h, N, M)
    return (weights @ v).transpose(1, 2).flatten(2)


def _self_attention(module: SelfAttention, x: Tensor, rotation: Rotation) -> Tensor:
    q, k, v = module.qkv(x).unflatten(-1, (3, module.heads, -1)).unbind(2)  # (B, N, h, d)
    return module.proj(_attention(_turn(q, rotation), _turn(k, rotation), v.transpose(1, 2)))


def _cross_attention(module: CrossAttention, x: Tensor, other: Tensor, rotation: Rotation) -> Tensor:
    q, k, v = (
        projection(tokens).unflatten(-1, (module.heads, -1))
        for projection, tokens in ((module.projq, x), (module.projk, other), (module.projv, other))
    )
    return module.proj(_attention(_turn(q, rotation), _turn(k, rotation), v.transpose(1, 2)))


def _decoder_block(block: DecoderBlock, x: Tensor, other: Tensor, rotation: Rotation) -> Tensor:
    x = x + _self_attention(block.attn, block.norm1(x), rotation)
    x = x + _cross_attention(block.cross_attn, block.norm2(x), block.norm_y(other), rotation)
    return x + block.mlp(block.norm3(x))


def _head(model: AsymmetricCroCo3DStereo, head: Head, depths: list[Tensor], grid: tuple[int, int]) -> Output:
    assert isinstance(head, DptHead)
    maps = [depths[d].transpose(1, 2).unflatten(2, grid) for d in head.depths]  # (B, C, rows, columns)
    raw = plain_dpt(head.dpt, maps).permute(0, 2, 3, 1)  # (B, H, W, 4)
    arch = model.arch
    points, confidence = (
        activate_points(raw[..., :3], arch.depth_mode),
        activate_confidence(raw[..., 3], arch.conf_mode),
    )
    if not isinstance(head, CatMlpDptHead):
        return Output(points, confidence)
    mlp = head.head_local_features
    assert isinstance(mlp, Mlp)
    local = mlp(torch.cat([depths[0], depths[-1]], -1)).transpose(1, 2).unflatten(2, grid)  # (B, D p p, rows, columns)
    dense = F.pixel_shuffle(local, arch.patch_size).permute(0, 2, 3, 1)  # (B, H, W, D or D + 1)
    descriptors = activate_descriptors(dense[..., : arch.descriptor_dim])
    own = activate_confidence(dense[..., -1], arch.descriptor_range) if arch.two_confs else confidence
    return Output(points, confidence, descriptors, own)


def plain_dpt(dpt: DPT, maps: list[Tensor]) -> Tensor:
    """The DPT head on whole maps of four depths (B, C_k, rows, columns) to (B, channels, 16 rows, 16 columns)."""
    own = [dpt.scratch.layer_rn[n](dpt.act_postprocess[n](tokens)) for n, tokens in enumerate(maps)]
    path = None
    for level in (4, 3, 2, 1):
        fusion = dpt.scratch.fusion(level)
        x = own[level - 1] if path is None else path + fusion.resConfUnit1(own[level - 1])
        path = fusion.out_conv(_twice(fusion.resConfUnit2(x)))
        if level == 4:
            path = path[:, :, : own[2].shape[2], : own[2].shape[3]]
    return dpt.head[4](dpt.head[3](dpt.head[2](_twice(dpt.head[0](path)))))


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
