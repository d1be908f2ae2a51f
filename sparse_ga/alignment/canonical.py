"""Canonical views: one depth map per view, merged from all its pairs by streaming one pair at a time.

MASt3R-SfM (arXiv 2409.19152), section 3.3. Two passes over the pairs. The first keeps, for at most `MAX_ROWS` pairs
per view, the log depth at the anchors; their robust median after removing each pair's scale is the reference. The
second adds every pair's angles and depths, weighted by confidence and by agreement with the reference. What is kept
between pairs depends on the number of views and of their pixels only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from sparse_ga.alignment.anchors import Anchors
from sparse_ga.alignment.robust import robust_scale, weighted_median
from sparse_ga.products import Array, CanonicalView, Pointmap

MAX_ROWS = 16
_MIN_SPREAD = 2e-3  # log depth; predictions are never trusted to be better than this
_MAX_SLOPE = np.radians(89.0)
_MIN_SHARED = 4  # anchors that tell the scale between two point maps, unless one has fewer


@dataclass(frozen=True)
class Reference:
    """Robust log depth at the anchors of one view (median 0) and how far pairs scatter around it."""

    log_depth: Array  # (A,) float64
    known: Array  # (A,) bool
    spread: float  # robust standard deviation of one pair's log depth


class DepthRows:
    """Log depths at one view's anchors from its best pairs; a bounded reservoir."""

    def __init__(self, anchors: Anchors) -> None:
        self.anchors = anchors
        self.rows: list[tuple[float, Array, Array]] = []

    def wants(self, score: float) -> bool:
        """Whether a pair of this score would be kept."""
        return len(self.rows) < MAX_ROWS or score > self.rows[-1][0]

    def add(self, pointmap: Pointmap, score: float) -> None:
        """Keep the anchors' log depth and confidence of one pair; drops the worst when full."""
        log_depth, weight = _log_depth_at(pointmap, self.anchors.xy)
        if not (weight > 0).any():
            return
        self.rows.append((score, log_depth.astype(np.float32), weight.astype(np.float32)))
        self.rows.sort(key=lambda row: -row[0])
        del self.rows[MAX_ROWS:]

    def reference(self) -> Reference:
        """Median over the pairs after removing the scale of each; alternates scales and medians.

        Pairs need not overlap all the others: each takes its scale from those that it shares enough anchors with. Pairs
        that no chain of overlaps ties to the one with the most anchors are ignored, their scale being unknown.
        """
        count = len(self.anchors.xy)
        if not self.rows or count == 0:
            return Reference(np.zeros(count), np.zeros(count, bool), _MIN_SPREAD)
        depth = np.stack([row[1] for row in self.rows]).astype(float)  # (K, A)
        weight = np.stack([row[2] for row in self.rows]).astype(float)  # (K, A)
        weight = np.maximum(np.array([row[0] for row in self.rows]), 0.05)[:, None] * weight
        median, joined = _chain(depth, weight > 0)
        depth, weight = depth[joined], weight[joined]
        # A row says nothing of its own scale where it stands alone: there the median is whatever the row was moved to.
        shared = np.where((weight > 0).sum(0) > 1, weight, 0.0)  # (K, A)
        for _ in range(6):
            offset = weighted_median(depth - median, shared)  # (K,)
            median = weighted_median((depth - offset[:, None]).T, weight.T)
        known = (weight > 0).any(0)
        spread = robust_scale((depth - offset[:, None] - median)[shared > 0])
        return Reference(median - np.median(median[known]), known, max(spread, _MIN_SPREAD))


def _chain(depth: Array, on: Array) -> tuple[Array, Array]:
    """Log depths (A,) from rows (K, A) brought to one scale, where they are `on` (K, A); and which were (K,) bool.

    Starts with the row of the most anchors and adds the one that shares the most with those added so far, because an
    offset from few anchors would be carried on to all that follow.
    """
    first = int(np.argmax(on.sum(1)))
    median, known, joined = depth[first], on[first], np.zeros(len(on), bool)
    joined[first] = True
    while not joined.all():
        overlap = np.where(joined, 0, (on & known).sum(1))  # (K,)
        best = int(np.argmax(np.where(_enough(overlap, on.sum(1)), overlap, 0)))
        if not _enough(overlap[best], on[best].sum()):
            break
        offset = np.median((depth[best] - median)[on[best] & known])
        median = np.where(known, median, depth[best] - offset)
        known, joined[best] = known | on[best], True
    return median, joined


def _enough(shared: Array, own: Array) -> Array:
    """Whether a map takes its scale from `shared` of its `own` anchors; elementwise."""
    return (shared > 0) & (shared >= np.minimum(own, _MIN_SHARED))


def _log_depth_at(pointmap: Pointmap, xy: Array) -> tuple[Array, Array]:
    """Log depth and weight of a point map at pixels `xy` (A, 2): (A,), (A,); weight 0 where there is no depth."""
    z = pointmap.points[xy[:, 1], xy[:, 0], 2].astype(float)
    weight = pointmap.confidence[xy[:, 1], xy[:, 0]].astype(float)
    valid = np.isfinite(z) & (z > 1e-9) & np.isfinite(weight) & (weight > 0)
    return np.log(np.where(valid, z, 1.0)), np.where(valid, weight, 0.0)


class CanonicalAccumulator:
    """Running sums of one view's relative depths (as angles) and anchor depths.

    The angle of a pixel is the slope of the surface from its anchor to it, atan2(z - z_anchor, z_anchor distance / f):
    free of the pair's scale, and bounded where a depth edge crosses the block.
    """

    def __init__(self, anchors: Anchors, reference: Reference, focal_px: float) -> None:
        self.anchors, self.reference = anchors, reference
        y, x = np.nonzero(anchors.of_pixel >= 0)  # (F,)
        self.pixel = np.ravel_multi_index((y, x), anchors.of_pixel.shape).astype(np.int32)  # (F,)
        self.anchor = anchors.of_pixel[y, x]  # (F,) int32
        offset = np.stack([x, y], -1) - anchors.xy[self.anchor] if len(x) else np.zeros((0, 2))
        self.lateral = (np.hypot(offset[:, 0], offset[:, 1]) / focal_px).astype(np.float32)  # (F,)
        self.angle = np.zeros(len(x), np.float32)
        self.weight = np.zeros(len(x), np.float32)
        self.confidence = np.zeros(len(x), np.float32)
        self.trust = np.zeros(len(anchors.xy))
        self.anchor_log_depth = np.zeros(len(anchors.xy))
        self.anchor_weight = np.zeros(len(anchors.xy))

    def scale_of(self, pointmap: Pointmap) -> tuple[float, Array, bool]:
        """Log scale of a pair's point map relative to the reference, each anchor's deviation (A,), whether known.

        No deviation where the reference, or the map, knows nothing of an anchor.
        """
        log_depth, weight = _log_depth_at(pointmap, self.anchors.xy)
        shared = self.reference.known & (weight > 0)  # (A,)
        if not _enough(shared.sum(), (weight > 0).sum()):
            return 0.0, np.zeros(len(weight)), False
        scale = float(weighted_median(log_depth - self.reference.log_depth, np.where(shared, weight, 0.0)))
        return scale, np.where(shared, log_depth - scale - self.reference.log_depth, 0.0), True

    def add(self, pointmap: Pointmap, score: float) -> tuple[float, bool]:
        """Add one pair of weight `score`; returns its log scale relative to the reference, and whether it has one."""
        scale, deviation, known = self.scale_of(pointmap)
        if not known:
            return 0.0, False
        log_depth, confidence = _log_depth_at(pointmap, self.anchors.xy)  # (A,), (A,)
        spread = self.reference.spread
        own = max(robust_scale(deviation[self.reference.known & (confidence > 0)]), spread)
        agreement = (spread / own) ** 2 / (1.0 + (deviation / (2.5 * spread)) ** 2) ** 2 * score  # (A,)
        self.anchor_weight += agreement * confidence
        self.anchor_log_depth += agreement * confidence * (log_depth - scale)
        self._add_pixels(pointmap, agreement, log_depth, confidence)
        return scale, True

    def _add_pixels(self, pointmap: Pointmap, agreement: Array, log_depth: Array, confidence: Array) -> None:
        z = pointmap.points.reshape(-1, 3)[self.pixel, 2]  # (F,)
        own = pointmap.confidence.reshape(-1)[self.pixel]
        valid = np.isfinite(z) & (z > 1e-9) & np.isfinite(own) & (own > 0)
        own = np.where(valid, own, np.float32(0.0))
        weight = np.sqrt(own) * (agreement * np.sqrt(confidence)).astype(np.float32)[self.anchor]
        ratio = np.where(weight > 0, z * np.exp(-log_depth).astype(np.float32)[self.anchor], np.float32(1.0))
        angle = np.arctan2(ratio - 1, np.maximum(self.lateral, np.float32(1e-9)))
        self.angle += weight * np.where(self.lateral > 0, angle, np.float32(0.0))
        self.weight += weight
        self.confidence += own * agreement.astype(np.float32)[self.anchor]
        self.trust += agreement

    def result(self, name: str, focal_px: float) -> CanonicalView:
        """The merged view. Pixels no pair speaks of take their anchor's depth at confidence 0."""
        depth = np.zeros(self.anchors.of_pixel.size, np.float32)
        confidence = np.zeros(self.anchors.of_pixel.size, np.float32)
        shape = self.anchors.of_pixel.shape
        if len(self.pixel):
            slope = np.clip(self.angle / np.where(self.weight > 0, self.weight, 1), -_MAX_SLOPE, _MAX_SLOPE)
            ratio = np.clip(1 + np.tan(slope) * self.lateral, 0.05, 20.0)
            depth[self.pixel] = np.exp(self._anchor_depths())[self.anchor] * ratio
            trust = np.where(self.trust > 0, self.trust, 1.0)
            confidence[self.pixel] = self.confidence / trust[self.anchor]
        return CanonicalView(
            name, depth.reshape(shape), confidence.reshape(shape), focal_px, self.anchors.xy, self.anchors.of_pixel
        )

    def _anchor_depths(self) -> Array:
        """Log depth of every anchor, (A,); the nearest known one where no pair speaks of an anchor."""
        known = self.anchor_weight > 0
        if not known.any():
            return np.zeros(len(known))
        value = self.anchor_log_depth / np.where(known, self.anchor_weight, 1.0)
        if known.all():
            return value
        nearest = cKDTree(self.anchors.xy[known]).query(self.anchors.xy[~known])[1]
        value[~known] = value[known][nearest]
        return value
