"""What a camera does to light: exposure, white balance, blur, noise, tone curve, JPEG-like blocks; and what a
segmentation program does to masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ga.synthetic.procedural.bundle import Draw

_BLOCK = 8
_BLUR_RADIUS = 4
# Quantisation of brightness and colour at quality 50 (ITU-T T.81, annex K, tables K.1 and K.2).
_LUMA = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
)  # fmt: skip
_CHROMA = torch.full((8, 8), 99.0)
_CHROMA[:4, :4] = torch.tensor(
    [[17.0, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]],
)
_YCC_FROM_RGB = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def _dct_matrix() -> Tensor:
    """Orthonormal DCT-II matrix (8, 8)."""
    k = torch.arange(_BLOCK, dtype=torch.float32)
    matrix = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * _BLOCK)) * math.sqrt(2 / _BLOCK)
    matrix[0] *= math.sqrt(0.5)
    return matrix


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur `images` (N, C, H, W), each with its own `sigma` (N,) in px (up to about 2)."""
    count, channels, height, width = images.shape
    offset = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # (N * C, 9)
    flat = images.reshape(1, -1, height, width)
    pad = [_BLUR_RADIUS] * 4
    flat = F.conv2d(F.pad(flat, pad, mode="replicate"), kernel[:, None, None, :], groups=count * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=count * channels).reshape(images.shape)


def jpeg_like(images: Tensor, quality: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] after quantising the DCT of their 8x8 blocks at `quality` (N,) in 1 to 100."""
    height, width = images.shape[-2:]
    pad = (0, -width % _BLOCK, 0, -height % _BLOCK)
    ycc = torch.einsum("ij,njhw->nihw", _YCC_FROM_RGB.to(images), F.pad(images, pad, mode="replicate") * 255)
    ycc = ycc - images.new_tensor([128.0, 0, 0])[:, None, None]
    blocks = ycc.unflatten(3, (-1, _BLOCK)).unflatten(2, (-1, _BLOCK)).transpose(3, 4)  # (N, 3, h, w, 8, 8)
    scale = torch.where(quality < 50, 50 / quality.clamp_min(1), 2 - quality / 50).clamp_min(0.01)
    table = torch.stack([_LUMA, _CHROMA, _CHROMA]).to(images)[None] * scale[:, None, None, None]
    table = table.round().clamp_min(1)[:, :, None, None]
    dct = _dct_matrix().to(images)
    coefficients = (dct @ blocks @ dct.T / table).round() * table
    ycc = (dct.T @ coefficients @ dct).transpose(3, 4).flatten(4).flatten(2, 3)
    ycc = ycc + images.new_tensor([128.0, 0, 0])[:, None, None]
    rgb = torch.einsum("ij,njhw->nihw", torch.linalg.inv(_YCC_FROM_RGB).to(images), ycc) / 255
    return rgb[..., :height, :width].clamp(0, 1)


def photograph(draw: Draw, radiance: Tensor, mask: Tensor) -> Tensor:
    """Photographs (B, V, 3, H, W) uint8 of linear RGB `radiance` of that shape; `mask` (B, V, H, W) sets the exposure.

    Exposure is common to the views of an object up to a third of a stop in most sets, up to a full stop in some.
    """
    batch, views = radiance.shape[:2]
    weight = mask[:, :, None].float()
    mean = (radiance.mean(2, keepdim=True) * weight).sum((1, 2, 3, 4)) / weight.sum((1, 2, 3, 4)).clamp_min(1)  # (B,)
    stops = draw.normal(batch, views) * torch.where(draw.chance(0.3, batch, 1), 0.4, 0.1).to(radiance.device)
    target = draw.uniform(0.14, 0.42, batch, 1)
    gain = (target * 2**stops).to(radiance.device) / mean.clamp_min(1e-3)[:, None]
    balance = 1 + 0.04 * draw.normal(batch, views, 3).to(radiance.device)
    light = (radiance * gain[..., None, None, None] * balance[..., None, None]).flatten(0, 1)
    sigma = draw.uniform(0.35, 0.75, batch, 1) + draw.uniform(0, 0.9, batch, views) * draw.chance(0.2, batch, 1)
    light = gaussian_blur(light, sigma.flatten().to(light.device))
    noise = draw.log_uniform(0.001, 0.02, batch, 1).expand(-1, views).flatten().to(light.device)[:, None, None, None]
    light = light + noise * (0.2 + light.clamp_min(0)).sqrt() * draw.normal(*light.shape).to(light.device)
    light = light.clamp_min(0)
    shoulder = torch.where(light > 0.8, 0.8 + 0.2 * torch.tanh((light - 0.8) / 0.2), light)
    tone = torch.where(shoulder < 0.0031308, 12.92 * shoulder, 1.055 * shoulder.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
    quality = draw.uniform(35, 99, batch, 1).expand(-1, views).flatten().to(light.device)
    return (jpeg_like(tone.clamp(0, 1), quality) * 255).round().to(torch.uint8).unflatten(0, (batch, views))


def imperfect_masks(draw: Draw, mask: Tensor) -> Tensor:
    """Masks as a segmentation program gives them, (B, V, H, W) bool, from exact ones: moved edges, leaks, bites.

    A third stay exact. The edge is displaced by smooth noise of up to about 3 px and grown or shrunk by up to 2 px.
    """
    batch, views, height, width = mask.shape
    flat = mask.reshape(-1, 1, height, width).float()
    count = len(flat)
    sigma = torch.full((count,), 1.6, device=mask.device)
    soft = gaussian_blur(flat, sigma)
    coarse = draw.normal(count, 1, max(2, height // 12), max(2, width // 12)).to(mask.device)
    wobble = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    strength = (draw.uniform(0, 0.35, count) * draw.chance(0.67, batch, 1).expand(-1, views).flatten()).to(mask.device)
    shift = strength * draw.uniform(-1, 1, count).to(mask.device)
    level = 0.5 + strength[:, None, None, None] * wobble * 0.7 + shift[:, None, None, None]
    moved = soft > level.clamp(0.02, 0.98)
    exact = (strength == 0)[:, None, None, None]
    result = torch.where(exact, flat > 0.5, moved)
    empty = ~result.flatten(1).any(1)
    result = torch.where(empty[:, None, None, None], flat > 0.5, result)
    return result.reshape(mask.shape)
