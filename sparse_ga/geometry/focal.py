"""Focal length from rays: a streaming, robust estimate from point maps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sparse_ga.products import Array

_BINS = 2048


@dataclass
class FocalVotes:
    """Weighted L1 estimate of one focal length, fed one point map at a time; memory does not grow with the maps.

    With p = (X / Z, Y / Z) and u the pixel relative to the principal point, the focal length that minimises
    sum w |u - f p| along the rays is the weighted median of (u . p) / (p . p) with weights w |p|. The median is read
    off a histogram over log f, interpolated inside its bin, so half of the weight may be wrong.
    """

    low_px: float
    high_px: float
    histogram: Array = field(default_factory=lambda: np.zeros(_BINS))  # (2048,)

    def add(self, xy: Array, points: Array, weights: Array) -> None:
        """Votes of pixels `xy` (P, 2) relative to the principal point with camera-frame `points` (P, 3)."""
        z = points[:, 2].astype(float)
        usable = (z > 1e-9) & (weights > 0) & np.isfinite(points).all(-1)
        p = points[usable, :2] / z[usable, None]  # (P', 2)
        norm2 = (p**2).sum(-1)
        usable_p = norm2 > 1e-10
        vote = (xy[usable][usable_p] * p[usable_p]).sum(-1) / norm2[usable_p]
        weight = weights[usable][usable_p] * np.sqrt(norm2[usable_p])
        inside = (vote > self.low_px) & (vote < self.high_px)
        position = np.log(vote[inside] / self.low_px) / np.log(self.high_px / self.low_px) * _BINS
        index = np.minimum(position.astype(int), _BINS - 1)
        self.histogram += np.bincount(index, weight[inside], minlength=_BINS)

    def estimate(self) -> tuple[float, bool]:
        """The focal length in px, and whether there was any vote."""
        cumulative = np.cumsum(self.histogram)
        if cumulative[-1] <= 0:
            return float(np.sqrt(self.low_px * self.high_px)), False
        half = cumulative[-1] / 2
        index = int(np.searchsorted(cumulative, half))
        before = cumulative[index - 1] if index else 0.0
        position = (index + (half - before) / self.histogram[index]) / _BINS
        return float(self.low_px * (self.high_px / self.low_px) ** position), True
