"""Dataclasses of tensors that share a leading batch axis, seeded draws for them, and batched compaction."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Bundle = TypeVar("Bundle", bound="TensorBundle")


@dataclass(frozen=True, eq=False)
class TensorBundle:
    """Base of dataclasses whose fields are tensors with one leading batch axis B."""

    def to(self: Bundle, device: torch.device | str) -> Bundle:
        """The same bundle on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **moved)

    def rows(self: Bundle, start: int, stop: int) -> Bundle:
        """Rows start to stop of the batch."""
        return dataclasses.replace(
            self, **{f.name: getattr(self, f.name)[start:stop] for f in dataclasses.fields(self)}
        )

    def where(self: Bundle, keep: Tensor, other: Bundle) -> Bundle:
        """Rows of this bundle where `keep` (B,) bool holds, of `other` elsewhere."""
        mixed = {}
        for f in dataclasses.fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            mixed[f.name] = torch.where(keep.reshape(-1, *[1] * (mine.ndim - 1)), mine, theirs)
        return dataclasses.replace(self, **mixed)


@dataclass(frozen=True)
class Draw:
    """Seeded random draws of float32 tensors on the generator's device."""

    generator: torch.Generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in [low, high), of `shape`."""
        unit = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return low + (high - low) * unit

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in the logarithm between low and high, of `shape`."""
        return torch.exp(self.uniform(float(torch.tensor(low).log()), float(torch.tensor(high).log()), *shape))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, of `shape`."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """True with `probability`, bool of `shape`."""
        return self.uniform(0.0, 1.0, *shape) < probability

    def choice(self, weights: list[float], *shape: int) -> Tensor:
        """Index drawn with the given weights, int64 of `shape`."""
        edges = torch.tensor(weights, device=self.generator.device).cumsum(0)  # (n,)
        return torch.bucketize(self.uniform(0.0, float(edges[-1]), *shape), edges[:-1], right=True)

    def direction(self, *shape: int) -> Tensor:
        """Unit vectors, uniform on the sphere, (*shape, 3)."""
        return torch.nn.functional.normalize(self.normal(*shape, 3), dim=-1)

    def rotation(self, *shape: int) -> Tensor:
        """Rotation matrices, uniform on SO(3), (*shape, 3, 3)."""
        return rotation_from_quaternion(torch.nn.functional.normalize(self.normal(*shape, 4), dim=-1))


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4) in (w, x, y, z) order."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(*quaternion.shape[:-1], 3, 3)


def axis_rotation(axis: Tensor, angle_rad: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) about unit `axis` (..., 3) by `angle_rad` (...)."""
    half = (angle_rad / 2)[..., None]
    return rotation_from_quaternion(torch.cat([half.cos(), half.sin() * axis], -1))


@dataclass(frozen=True, eq=False)
class Selection:
    """Some rays of each batch row, packed to the front in their order: M is the largest count of any row."""

    index: Tensor  # (B, M) int64; padding repeats ray 0
    valid: Tensor  # (B, M) bool; False on padding
    mask: Tensor  # (B, R) bool: what was selected
    rank: Tensor  # (B, R) int64: place of a selected ray in its packed row

    @property
    def count(self) -> int:
        """M, 0 when nothing is selected."""
        return int(self.index.shape[1])

    def gather(self, values: Tensor) -> Tensor:
        """Selected entries (B, ..., M) of `values` (B, ..., R)."""
        return _take(values, self.index)

    def scatter(self, target: Tensor, values: Tensor) -> Tensor:
        """A copy of `target` (B, ..., R) with the valid entries of `values` (B, ..., M) put in their places."""
        if self.count == 0:
            return target
        mask = self.mask.reshape(len(self.mask), *[1] * (target.ndim - 2), -1)
        return torch.where(mask, _take(values, self.rank), target)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Entries (B, ..., M) of `values` (B, ..., R) at `index` (B, M)."""
    index = index.reshape(len(index), *[1] * (values.ndim - 2), -1)
    return values.gather(-1, index.expand(*values.shape[:-1], -1))


def select(mask: Tensor) -> Selection:
    """The True entries of `mask` (B, R); linear in the number of rays."""
    place = mask.cumsum(1) - 1  # (B, R)
    count = int(place[:, -1].max()) + 1 if mask.numel() else 0
    rays = torch.arange(mask.shape[1], device=mask.device).expand_as(place)
    index = torch.zeros(len(mask), count + 1, dtype=torch.int64, device=mask.device)
    index = index.scatter_(1, torch.where(mask, place, count), rays)[:, :count]  # what is not selected shares one slot
    valid = torch.arange(count, device=mask.device) <= place[:, -1:]
    return Selection(index, valid, mask, place.clamp(0, max(count - 1, 0)))
