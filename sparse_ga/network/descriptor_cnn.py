"""A small convolutional network that describes every pixel of a masked object; `sparse_ga.matching.dense` matches.

The object is cut out by its mask, brought to one size, and everything else is painted with one value, so that the
background cannot speak. Four copies turned by quarter turns pass through the network; their descriptors are turned
back and stacked. A quarter turn of the photograph then only cycles the four parts of a descriptor, and two views are
matched under each of the four cycles: the network itself has to bear relative rolls of up to 45 degrees only.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ga.products import Array, View

STRIDE = 2
TURNS = 4
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
    return descriptors if turns % TURNS == 0 else np.roll(descriptors, -turns * (descriptors.shape[-1] // TURNS), -1)


@dataclass(frozen=True, eq=False)
class DescriptorMap:
    """Descriptors of one view on a regular grid over the object.

    Grid point (x, y), integers, lies at working pixel ``view_from_grid @ (x, y, 1)``.
    """

    descriptors: Array  # (h, w, 4 D) float32, unit length; D where the photograph was turned upright before
    reliability: Array  # (h, w) float32 in [0, 1]: how likely a match is right, whatever it is matched with
    valid: Array  # (h, w) bool: on the object
    view_from_grid: Array  # (3, 3) float64 affine

    @property
    def spacing_px(self) -> float:
        """Distance of neighbouring grid points in working px."""
        return float(np.hypot(*self.view_from_grid[:2, 0]))

    def to_view(self, xy: Array) -> Array:
        """Working pixels (M, 2) of grid positions (M, 2)."""
        return xy @ self.view_from_grid[:2, :2].T + self.view_from_grid[:2, 2]


def square_around(mask: Array, roll: float = 0.0, margin: float = 0.08) -> tuple[Array, float]:
    """Centre (2,) and side in px of a square around a mask (H, W), with a margin; the whole image if it is empty.

    The square's x axis points `roll` radians from the image's x axis towards its y axis.
    """
    y, x = np.nonzero(mask)
    if len(x) == 0:
        height, width = mask.shape
        return np.array([(width - 1) / 2, (height - 1) / 2]), float(max(height, width))
    turn = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])  # image from square
    along = np.stack([x, y], 1) @ turn
    low, high = along.min(0), along.max(0)
    return turn @ (low + high) / 2, float((high - low + 1).max() * (1 + 2 * margin))


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
        try:
            with safe_open(path, framework="pt") as handle:
                metadata = handle.metadata() or {}
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path}: not weights of the descriptor network (format {metadata.get('format')!r})")
        try:
            raw = json.loads(metadata["config"])
            model = DescriptorCNN(DescriptorConfig(raw["dim"], tuple(raw["widths"]), tuple(raw["blocks"]), raw["size"]))
            model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: not weights of this version's descriptor network ({error})") from error
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return DenseDescriptor(model.to(device), f"descriptor-{digest}", size)

    @staticmethod
    def metadata(config: DescriptorConfig) -> dict[str, str]:
        """What a weights file says of itself."""
        return {"format": _FORMAT, "config": json.dumps(asdict(config)), "license": "Apache-2.0"}

    def describe(self, view: View) -> DescriptorMap:
        """Descriptors that bear any roll, on a grid over the view's object, `size` / 2 points along its longer side."""
        view_from_cut, inputs, valid = self._cut(view, 0.0, self.size)
        return _descriptor_map(describe_turned(self.model, inputs), valid, view_from_cut)

    @torch.no_grad()
    def describe_upright(self, view: View, roll: float, size: int) -> DescriptorMap:
        """Descriptors of the view's object with its photograph turned back by `roll` (radians), at `size` px."""
        view_from_cut, inputs, valid = self._cut(view, roll, size)
        descriptors, logits = self.model(inputs)
        return _descriptor_map((descriptors, torch.sigmoid(logits)), valid, view_from_cut)

    def _cut(self, view: View, roll: float, size: int) -> tuple[Array, Tensor, Tensor]:
        """view_from_cut (3, 3), network input (1, 4, S, S) and grid points on the object (S / 2, S / 2) of `size` S."""
        centre, side = square_around(view.mask, roll)
        view_from_cut = np.eye(3)
        cosine, sine = side / size * math.cos(roll), side / size * math.sin(roll)
        view_from_cut[:2, :2] = [[cosine, -sine], [sine, cosine]]
        view_from_cut[:2, 2] = centre - view_from_cut[:2, :2] @ np.full(2, (size - 1) / 2)
        device = next(self.model.parameters()).device
        image = torch.from_numpy(view.image.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        mask = torch.from_numpy(view.mask.copy()).to(device)[None]
        image, mask = cut_out(image, mask, torch.from_numpy(view_from_cut)[None].to(device), size)
        valid = F.avg_pool2d(mask[:, None].float(), STRIDE)[0, 0] > 0.49
        return view_from_cut, normalise(image, mask), valid


def _descriptor_map(described: tuple[Tensor, Tensor], valid: Tensor, view_from_cut: Array) -> DescriptorMap:
    """The first of a batch of descriptors (1, D, h, w) and reliabilities (1, h, w) as a map."""
    descriptors, reliability = described
    cut_from_grid = np.array([[STRIDE, 0, (STRIDE - 1) / 2], [0, STRIDE, (STRIDE - 1) / 2], [0, 0, 1.0]])
    return DescriptorMap(
        descriptors[0].permute(1, 2, 0).cpu().numpy(),
        reliability[0].cpu().numpy(),
        valid.cpu().numpy(),
        view_from_cut @ cut_from_grid,
    )
