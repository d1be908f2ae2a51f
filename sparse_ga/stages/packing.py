"""Compact forms of per-pair and per-view products: foreground only, half precision, no descriptors unless asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.products import (
    Array,
    CanonicalView,
    InvalidProduct,
    PairMatches,
    PairPrediction,
    Pointmap,
    View,
    check,
)

_HALF_MAX = 60000.0
_MOST_CONFIDENCE = 1e12  # products of two, and sums over all pixels, stay finite in float32
_MIN_CROSS = 256
_DESCRIPTOR_LEVELS = 31  # six bits a component


@dataclass(frozen=True, eq=False)
class PackedLog:
    """Non-negative numbers as one byte each: 0, or one of 255 steps from `low` to `high`, evenly in the logarithm."""

    codes: Array  # (F,) uint8
    low: float
    high: float

    @staticmethod
    def pack(values: Array) -> PackedLog:
        """From (F,) numbers; NaN and negative ones become 0, infinity the largest finite one."""
        values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=np.finfo(np.float32).max)
        positive = values > 0
        if not positive.any():
            return PackedLog(np.zeros(len(values), np.uint8), 1.0, 1.0)
        low, high = float(values[positive].min()), float(values[positive].max())
        span = max(np.log(high / low), 1e-12)
        steps = np.rint(np.log(np.where(positive, values, low) / low) / span * 254) + 1
        return PackedLog(np.where(positive, steps, 0).astype(np.uint8), low, high)

    def unpack(self) -> Array:
        """(F,) float32."""
        span = np.log(self.high / self.low)
        table = np.concatenate([[0.0], self.low * np.exp(np.arange(255) / 254 * span)]).astype(np.float32)
        return table[self.codes]


@dataclass(frozen=True, eq=False)
class PackedDescriptors:
    """Descriptors at six bits a component, in the unit of their largest component, with their confidence."""

    bits: Array  # (ceil(6 F D / 8),) uint8
    shape: tuple[int, int]  # F, D
    unit: float
    confidence: PackedLog | None

    @staticmethod
    def pack(descriptors: Array, confidence: Array | None) -> PackedDescriptors:
        """From (F, D) descriptors and (F,) confidences; NaN becomes 0."""
        values = np.nan_to_num(descriptors.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        unit = max(float(np.abs(values).max(initial=0)), 1e-12)
        codes = (np.rint(values / unit * _DESCRIPTOR_LEVELS) + _DESCRIPTOR_LEVELS).astype(np.uint8)
        bits = np.unpackbits(codes.reshape(-1, 1), axis=1)[:, 2:]  # (F D, 6)
        packed = None if confidence is None else PackedLog.pack(np.minimum(confidence, _MOST_CONFIDENCE))
        return PackedDescriptors(np.packbits(bits), (len(values), values.shape[1]), unit, packed)

    def unpack(self) -> Array:
        """(F, D) float32."""
        count = self.shape[0] * self.shape[1]
        bits = np.unpackbits(self.bits, count=6 * count).reshape(-1, 6)
        codes = np.packbits(np.pad(bits, ((0, 0), (2, 0))), axis=1)[:, 0].astype(np.float32)
        return ((codes - _DESCRIPTOR_LEVELS) * (self.unit / _DESCRIPTOR_LEVELS)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class PackedPointmap:
    """Foreground of a `Pointmap` in row order, at every `stride`-th pixel; points in units of their median depth."""

    points: Array  # (F, 3) float16
    confidence: PackedLog
    unit: float
    stride: int
    descriptors: PackedDescriptors | None = None  # at every foreground pixel


def _kept(mask: Array, stride: int) -> Array:
    """Pixels (H, W) bool that a packed point map of `stride` holds."""
    kept = np.zeros_like(mask)
    kept[::stride, ::stride] = mask[::stride, ::stride]
    return kept


def _pack_pointmap(pointmap: Pointmap, mask: Array, stride: int, descriptors: bool) -> PackedPointmap:
    if pointmap.points.shape[:2] != mask.shape:
        raise InvalidProduct(f"the predictor gave points of {pointmap.points.shape[:2]} for a view of {mask.shape}")
    kept = _kept(mask, stride)
    points = pointmap.points[kept].astype(np.float64)
    confidence = np.minimum(pointmap.confidence[kept], _MOST_CONFIDENCE)
    finite: Array = np.all(np.isfinite(points), axis=1)
    depth = np.abs(points[finite, 2])
    unit = float(np.median(depth[depth > 0])) if (depth > 0).any() else 1.0
    relative = np.where(finite[:, None], points / unit, (0.0, 0.0, 1.0))
    half = np.clip(relative, -_HALF_MAX, _HALF_MAX).astype(np.float16)
    packed = None
    if descriptors and pointmap.descriptors is not None:
        certainty = pointmap.descriptor_confidence
        packed = PackedDescriptors.pack(pointmap.descriptors[mask], None if certainty is None else certainty[mask])
    return PackedPointmap(half, PackedLog.pack(np.where(finite, confidence, 0.0)), unit, stride, packed)


def _unpack_pointmap(packed: PackedPointmap, mask: Array) -> Pointmap:
    kept = _kept(mask, packed.stride)
    if int(kept.sum()) != len(packed.points):
        raise InvalidProduct("a packed point map belongs to another mask")
    points = np.zeros((*mask.shape, 3), np.float32)
    points[..., 2] = packed.unit
    points[kept] = packed.points.astype(np.float32) * np.float32(packed.unit)
    confidence = np.zeros(mask.shape, np.float32)
    confidence[kept] = packed.confidence.unpack()
    if packed.descriptors is None:
        return Pointmap(points, confidence)
    descriptors = np.zeros((*mask.shape, packed.descriptors.shape[1]), np.float32)
    descriptors[mask] = packed.descriptors.unpack()
    if packed.descriptors.confidence is None:
        return Pointmap(points, confidence, descriptors)
    certainty = np.zeros(mask.shape, np.float32)
    certainty[mask] = packed.descriptors.confidence.unpack()
    return Pointmap(points, confidence, descriptors, certainty)


@dataclass(frozen=True, eq=False)
class PackedPrediction:
    """A `PairPrediction` as the cache holds it; nothing but the reason of a rejected one."""

    maps: tuple[PackedPointmap, ...]  # i_in_i, j_in_i, j_in_j, i_in_j; none if rejected
    matches: PairMatches | None
    rejected: str | None

    def __post_init__(self) -> None:
        if len(self.maps) != (0 if self.rejected is not None else 4):
            raise InvalidProduct("PackedPrediction.maps: four point maps, or none and a reason")

    @property
    def can_match(self) -> bool:
        """Whether matching needs no new prediction: matches, or the descriptors, are here.

        Points without descriptors (DUSt3R) do not serve: half precision is coarser than a pixel is wide.
        """
        described = all(pointmap.descriptors is not None for pointmap in self.maps)
        return self.matches is not None or self.rejected is not None or described


def _cross_stride(mask: Array, stride: int) -> int:
    """`stride`, or 1 where so coarse a grid would hardly hit the object."""
    return stride if int(mask[::stride, ::stride].sum()) >= _MIN_CROSS else 1


def pack_prediction(
    prediction: PairPrediction, view_i: View, view_j: View, cross_stride: int, descriptors: bool
) -> PackedPrediction:
    """The foreground of a prediction; the other view's points at every `cross_stride`-th pixel.

    Points lose at most 2^-11 of their value, confidences become 255 logarithmic steps. Raises `InvalidProduct` when
    the point maps do not have the views' sizes.
    """
    if prediction.rejected is not None:
        return PackedPrediction((), None, prediction.rejected)
    coarse_i, coarse_j = _cross_stride(view_i.mask, cross_stride), _cross_stride(view_j.mask, cross_stride)
    maps = (
        _pack_pointmap(prediction.i_in_i, view_i.mask, 1, descriptors),
        _pack_pointmap(prediction.j_in_i, view_j.mask, coarse_j, descriptors),
        _pack_pointmap(prediction.j_in_j, view_j.mask, 1, descriptors),
        _pack_pointmap(prediction.i_in_j, view_i.mask, coarse_i, descriptors),
    )
    return PackedPrediction(maps, prediction.matches, None)


def unpack_prediction(packed: PackedPrediction, view_i: View, view_j: View) -> PairPrediction:
    """The prediction again; pixels that were not kept have confidence 0 and finite points."""
    if packed.rejected is not None:
        return PairPrediction.reject(view_i, view_j, packed.rejected)
    masks = (view_i.mask, view_j.mask, view_j.mask, view_i.mask)
    maps = [_unpack_pointmap(pointmap, mask) for pointmap, mask in zip(packed.maps, masks, strict=True)]
    i_in_i, j_in_i, j_in_j, i_in_j = maps
    return PairPrediction(i_in_i, j_in_i, j_in_j, i_in_j, packed.matches)


@dataclass(frozen=True, eq=False)
class PackedCanonical:
    """A `CanonicalView` without its background."""

    name: str
    mask_bits: Array  # (ceil(H W / 8),) uint8, pixels that belong to an anchor
    shape: tuple[int, int]
    depth: Array  # (F,) float32
    confidence: Array  # (F,) float32
    focal_px: float
    anchor_xy: Array  # (A, 2) int32
    anchor_of_pixel: Array  # (F,) int32


def pack_canonical(view: CanonicalView) -> PackedCanonical:
    """Drop the pixels that belong to no anchor."""
    mask = view.anchor_of_pixel >= 0
    return PackedCanonical(
        view.name,
        np.packbits(mask),
        (mask.shape[0], mask.shape[1]),
        view.depth[mask],
        view.confidence[mask],
        float(view.focal_px),
        view.anchor_xy,
        view.anchor_of_pixel[mask],
    )


def unpack_canonical(packed: PackedCanonical) -> CanonicalView:
    """The canonical view again; 0 depth and confidence and anchor -1 on the background."""
    height, width = packed.shape
    mask = np.unpackbits(packed.mask_bits, count=height * width).reshape(height, width).astype(bool)
    depth, confidence = np.zeros(mask.shape, packed.depth.dtype), np.zeros(mask.shape, packed.confidence.dtype)
    anchors = np.full(mask.shape, -1, packed.anchor_of_pixel.dtype)
    depth[mask], confidence[mask], anchors[mask] = packed.depth, packed.confidence, packed.anchor_of_pixel
    check(anchors, "PackedCanonical.anchor_of_pixel", (height, width), "i")
    return CanonicalView(packed.name, depth, confidence, packed.focal_px, packed.anchor_xy, anchors)
