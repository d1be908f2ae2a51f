"""A small convolutional network that describes every pixel of a masked object, and matching of what it describes.

The object is cut out by its mask, brought to one size, and everything else is painted with one value, so that the
background cannot speak. Four copies turned by quarter turns pass through the network; their descriptors are turned
back and stacked. A quarter turn of the photograph then only cycles the four parts of a descriptor, and two views are
matched under each of the four cycles: the network itself has to bear relative rolls of up to 45 degrees only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ga.products import Array, PairMatches, View

STRIDE = 2
TURNS = 4
_RIVAL_DISTANCE = 4  # grid points
_FORMAT = "sparse_ga.descriptor_cnn/1"


@dataclass(frozen=True)
class DescriptorConfig:
    """Sizes of the network."""

    dim: int = 32
    """Length of one copy's descriptor; a pixel's whole descriptor has four times as many."""
    widths: tuple[int, int, int, int] = (32, 64, 96, 128)
    """Channels at strides 2, 4, 8 and 16."""
    blocks: tuple[int, int, int] = (2, 2, 1)
    """Residual blocks at strides 4, 8 and 16."""
    size: int = 160
    """Side in px of the square the object is brought to; a multiple of 16."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class _Residual(nn.Module):
    """Two 3x3 convolutions added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class DescriptorCNN(nn.Module):
    """U-shaped network (N, 4, S, S) -> unit descriptors (N, D, S / 2, S / 2) and reliability logits (N, S / 2, S / 2).

    Every resampling is symmetric, so output (x, y) sits at input pixel (2 x + 0.5, 2 y + 0.5) under any quarter turn.
    The input is normalised RGB, 0 off the object, and the mask.
    """

    def __init__(self, config: DescriptorConfig) -> None:
        super().__init__()
        self.config = config
        w2, w4, w8, w16 = config.widths
        self.stem = _conv(4, w2, 4, stride=2, padding=1)
        self.down4 = nn.Sequential(_conv(w2, w4, 2, stride=2), *[_Residual(w4) for _ in range(config.blocks[0])])
        self.down8 = nn.Sequential(_conv(w4, w8, 2, stride=2), *[_Residual(w8) for _ in range(config.blocks[1])])
        self.down16 = nn.Sequential(_conv(w8, w16, 2, stride=2), *[_Residual(w16) for _ in range(config.blocks[2])])
        self.whole = nn.Linear(w16, w16)
        self.up8 = _conv(w16 + w8, w8, 3, padding=1)
        self.up4 = nn.Sequential(_conv(w8 + w4, w4, 3, padding=1), _Residual(w4))
        self.up2 = _conv(w4 + w2, w4, 1)
        self.head = nn.Conv2d(w4, config.dim + 1, 1)
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of the descriptors' similarities, ()."""
        return self.log_scale.clamp(0, 4).exp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`normalise`d images (N, 4, S, S) to unit descriptors (N, D, S / 2, S / 2) and reliability logits."""
        s2 = self.stem(x)
        s4 = self.down4(s2)
        s8 = self.down8(s4)
        s16 = self.down16(s8)
        s16 = s16 + self.whole(s16.mean((2, 3)))[:, :, None, None]
        s8 = self.up8(torch.cat([_up(s16), s8], 1))
        s4 = self.up4(torch.cat([_up(s8), s4], 1))
        out = self.head(self.up2(torch.cat([_up(s4), s2], 1))).float()
        return F.normalize(out[:, :-1], dim=1), out[:, -1]


def normalise(images: Tensor, masks: Tensor) -> Tensor:
    """Network input (N, 4, S, S) of images (N, 3, S, S) in [0, 1] and masks (N, S, S): the object's brightness set to
    mean 0 and deviation 1, everything else 0, mask appended."""
    on = masks[:, None].float()
    count = on.sum((2, 3), keepdim=True).clamp_min(1)
    grey = images.mean(1, keepdim=True)
    mean = (grey * on).sum((2, 3), keepdim=True) / count
    deviation = (((grey - mean).square() * on).sum((2, 3), keepdim=True) / count).sqrt()
    return torch.cat([(images - mean) / (deviation + 0.02) * on, on], 1)


def turned(x: Tensor, turns: int) -> Tensor:
    """`x` (..., H, W) turned by `turns` quarter turns counter-clockwise."""
    return torch.rot90(x, turns, (-2, -1))


@torch.no_grad()
def describe_turned(model: DescriptorCNN, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Stacked unit descriptors (N, 4 D, S / 2, S / 2) and reliabilities (N, S / 2, S / 2) of inputs (N, 4, S, S)."""
    parts, reliability = [], torch.zeros(())
    for turn in range(TURNS):
        descriptors, logits = model(turned(inputs, turn))
        parts.append(turned(descriptors, -turn))
        reliability = reliability + torch.sigmoid(turned(logits, -turn)) / TURNS
    return torch.cat(parts, 1) / TURNS**0.5, reliability


def cycled(descriptors: Array, turns: int) -> Array:
    """Descriptors (..., 4 D) as of a photograph turned by `turns` quarter turns counter-clockwise."""
    return np.roll(descriptors, -turns * (descriptors.shape[-1] // TURNS), -1)


@dataclass(frozen=True, eq=False)
class DescriptorMap:
    """Descriptors of one view on a regular grid over the object.

    Grid point (x, y), integers, lies at working pixel ``view_from_grid @ (x, y, 1)``.
    """

    descriptors: Array  # (h, w, 4 D) float32, unit length
    reliability: Array  # (h, w) float32 in [0, 1]: how likely a match is right, whatever it is matched with
    valid: Array  # (h, w) bool: on the object
    view_from_grid: Array  # (3, 3) float64 affine


def square_around(mask: Array, margin: float = 0.08) -> tuple[Array, float]:
    """Centre (2,) and side in px of a square around a mask (H, W), with a margin; the whole image if it is empty."""
    y, x = np.nonzero(mask)
    if len(x) == 0:
        height, width = mask.shape
        return np.array([(width - 1) / 2, (height - 1) / 2]), float(max(height, width))
    low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()])
    return (low + high) / 2, float((high - low + 1).max() * (1 + 2 * margin))


def cut_out(images: Tensor, masks: Tensor, image_from_cut: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Affine resampling of images (N, 3, H, W) in [0, 1] and masks (N, H, W) to (N, 3, size, size), (N, size, size).

    `image_from_cut` (N, 3, 3) maps pixels. Where pixels shrink, the image is averaged over them first.
    """
    height, width = images.shape[-2:]
    linear = image_from_cut[:, :2, :2]
    shrink = int(linear.det().abs().sqrt().amax().round().clamp(1, 8))  # source pixels for one of the cut
    axis = (torch.arange(size * shrink, device=images.device) + 0.5) / shrink - 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cut = torch.stack([x, y, torch.ones_like(x)], -1).to(images.dtype)  # (S', S', 3)
    source = torch.einsum("nij,yxj->nyxi", image_from_cut.to(images.dtype), cut)[..., :2]
    grid = (2 * source + 1) / source.new_tensor([width, height]) - 1
    stacked = torch.cat([images * masks[:, None], masks[:, None].to(images.dtype)], 1)
    sampled = F.avg_pool2d(F.grid_sample(stacked, grid, align_corners=False), shrink)
    cover = sampled[:, 3:]
    return sampled[:, :3] / cover.clamp_min(1e-3), cover[:, 0] > 0.5


class DenseDescriptor:
    """Weights ready to describe views. `fingerprint` names weights and settings, for cache keys."""

    def __init__(self, model: DescriptorCNN, fingerprint: str, size: int | None = None) -> None:
        self.model = model.eval()
        self.size = model.config.size if size is None else size
        self.fingerprint = f"{fingerprint}-{self.size}"

    @staticmethod
    def load(path: Path | str, size: int | None = None, device: torch.device | str = "cpu") -> DenseDescriptor:
        """Descriptor network from a safetensors file; `size` replaces the side the object is brought to.

        Raises `FileNotFoundError` or `ValueError` naming the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such weights; train them with pipelines/train_descriptors.py")
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"{path}: not weights of the descriptor network (format {metadata.get('format')!r})")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        raw = json.loads(metadata["config"])
        config = DescriptorConfig(raw["dim"], tuple(raw["widths"]), tuple(raw["blocks"]), raw["size"])
        model = DescriptorCNN(config)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return DenseDescriptor(model.to(device), f"descriptor-{digest}", size)

    @staticmethod
    def metadata(config: DescriptorConfig) -> dict[str, str]:
        """What a weights file says of itself."""
        return {"format": _FORMAT, "config": json.dumps(asdict(config)), "license": "Apache-2.0"}

    def describe(self, view: View) -> DescriptorMap:
        """Descriptors on a grid over the view's object, about `size` / 2 points along its longer side."""
        centre, side = square_around(view.mask)
        scale = side / self.size
        view_from_cut = np.array([[scale, 0, centre[0] - scale * (self.size - 1) / 2], [0, scale, 0], [0, 0, 1]])
        view_from_cut[1, 2] = centre[1] - scale * (self.size - 1) / 2
        device = next(self.model.parameters()).device
        image = torch.from_numpy(view.image.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        mask = torch.from_numpy(view.mask.copy()).to(device)[None]
        image, mask = cut_out(image, mask, torch.from_numpy(view_from_cut)[None].to(device), self.size)
        descriptors, reliability = describe_turned(self.model, normalise(image, mask))
        cut_from_grid = np.array([[STRIDE, 0, (STRIDE - 1) / 2], [0, STRIDE, (STRIDE - 1) / 2], [0, 0, 1.0]])
        valid = F.avg_pool2d(mask[:, None].float(), STRIDE)[0, 0] > 0.49
        return DescriptorMap(
            descriptors[0].permute(1, 2, 0).cpu().numpy(),
            reliability[0].cpu().numpy(),
            valid.cpu().numpy(),
            view_from_cut @ cut_from_grid,
        )


def _similarity_peak(similarity: Array, valid: Array, best: Array) -> Array:
    """Offsets (M, 2) in grid units of the peak near `best` (M, 2), by parabolas along x and y through similarity rows
    (M, h, w); 0 where a neighbour is off the object."""
    rows = np.arange(len(best))
    offsets = np.zeros((len(best), 2), np.float32)
    height, width = valid.shape
    for axis, (dx, dy) in enumerate(((1, 0), (0, 1))):
        x, y = best[:, 0], best[:, 1]
        inner = (x - dx >= 0) & (x + dx < width) & (y - dy >= 0) & (y + dy < height)
        xl, xh = np.clip(x - dx, 0, width - 1), np.clip(x + dx, 0, width - 1)
        yl, yh = np.clip(y - dy, 0, height - 1), np.clip(y + dy, 0, height - 1)
        inner &= valid[yl, xl] & valid[yh, xh]
        low, mid, high = similarity[rows, yl, xl], similarity[rows, y, x], similarity[rows, yh, xh]
        curve = low + high - 2 * mid
        step = 0.5 * (low - high) / np.where(curve < -1e-6, curve, -1.0)
        offsets[:, axis] = np.where(inner & (curve < -1e-6), np.clip(step, -0.5, 0.5), 0)
    return offsets


def _reciprocal(similarity: Array) -> tuple[Array, Array]:
    """Rows and columns (M,) of `similarity` (P, Q) that are each other's best."""
    forward, backward = similarity.argmax(1), similarity.argmax(0)
    rows = np.flatnonzero(backward[forward] == np.arange(len(forward)))
    return rows, forward[rows]


def _margins(similarity: Array, found: tuple[Array, Array], yx: tuple[Array, Array]) -> Array:
    """How much more similar each match (M,) is than the best rival of either end; rivals are grid points `yx` further
    than `_RIVAL_DISTANCE` from the match, so that its own neighbours do not count."""
    rows, columns = found
    best = similarity[rows, columns]
    margins = []
    for values, at, own in ((similarity[rows], yx[1], columns), (similarity[:, columns].T, yx[0], rows)):
        away = np.abs(at[None] - at[own][:, None]).max(2) > _RIVAL_DISTANCE  # (M, candidates)
        margins.append(best - np.where(away, values, -1.0).max(1))
    return np.minimum(margins[0], margins[1])


def match_maps(map_i: DescriptorMap, map_j: DescriptorMap, min_confidence: float = 0.0) -> tuple[PairMatches, int]:
    """Reciprocal matches of two described views, working px, and the quarter turns of view j under which they are best.

    Confidence is the margin of a match: its cosine similarity less that of its best rival elsewhere on either object,
    0 where a rival is as good. Turns are chosen by the sum of confidences. Positions in view j are refined between
    grid points.
    """
    on_i, on_j = np.argwhere(map_i.valid), np.argwhere(map_j.valid)  # (P, 2), (Q, 2) as (y, x)
    if len(on_i) == 0 or len(on_j) == 0:
        return PairMatches.empty(), 0
    a, b = map_i.descriptors[map_i.valid], map_j.descriptors[map_j.valid]  # (P, 4 D), (Q, 4 D)
    trials = []
    for turns in range(TURNS):
        similarity = a @ cycled(b, turns).T  # (P, Q)
        found = _reciprocal(similarity)
        confidence = _margins(similarity, found, (on_i, on_j)).clip(0, 1)
        trials.append((float(confidence.sum()), similarity, found, confidence))
    turns = max(range(TURNS), key=lambda turn: trials[turn][0])
    _, similarity, (rows, columns), confidence = trials[turns]
    kept = confidence >= min_confidence
    rows, columns, confidence = rows[kept], columns[kept], confidence[kept]
    dense = np.zeros((len(rows), *map_j.valid.shape), np.float32)
    dense[:, map_j.valid] = similarity[rows]
    xy_j = on_j[columns][:, ::-1]
    xy_j = xy_j + _similarity_peak(dense, map_j.valid, xy_j)
    xy_i = on_i[rows][:, ::-1].astype(float)
    ends = [xy @ m.view_from_grid[:2, :2].T + m.view_from_grid[:2, 2] for xy, m in ((xy_i, map_i), (xy_j, map_j))]
    return PairMatches(ends[0].astype(np.float32), ends[1].astype(np.float32), confidence.astype(np.float32)), turns
