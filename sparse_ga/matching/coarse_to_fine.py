"""Matching at the resolution of the photographs, guided by coarse matches (MASt3R, arXiv 2406.09756, section 3.4).

Overlapping windows of the network's size are laid over both photographs. Pairs of windows are chosen greedily until
they hold most coarse matches, any predictor looks at each pair of windows as at a pair of images, and what it finds is
mapped back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ga.config import MatchConfig
from sparse_ga.matching.reciprocal import filter_matches, match_prediction
from sparse_ga.predictors.base import FeaturePredictor, Features, PairPredictor
from sparse_ga.products import Array, InvalidProduct, PairMatches, PairPrediction, View, check

OVERLAP = 0.5
"""Share of a window that its neighbour covers as well."""
COVERED = 0.9
"""Share of the coarse matches that the chosen pairs of windows hold."""
_MULTIPLE = 16  # both sides of a window, as of a working image
_WORTHWHILE = 1.25  # source px in a working px below which windows would show nothing new


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph at full resolution beside the view that was made from it."""

    view: View
    image: Array  # (H, W, 3) uint8, source px
    mask: Array  # (H, W) bool, source px

    def __post_init__(self) -> None:
        check(self.image, f"Photograph({self.view.name}).image", (None, None, 3), "u")
        check(self.mask, f"Photograph({self.view.name}).mask", self.image.shape[:2], "b")
        size = (self.image.shape[1], self.image.shape[0])
        if size != tuple(self.view.source_size):
            raise InvalidProduct(
                f"Photograph({self.view.name}): {size[0]}x{size[1]} px, but its view was made from "
                f"{self.view.source_size[0]}x{self.view.source_size[1]} px; apply the EXIF orientation first"
            )

    @property
    def source_px_per_working_px(self) -> float:
        """How many source pixels lie along one working pixel."""
        return float(1 / np.sqrt(abs(np.linalg.det(self.view.working_from_source[:2, :2]))))


def _starts(length: int, window: int) -> Array:
    """Where windows start along one axis: first at 0, last flush with the end, neighbours overlapping by `OVERLAP`."""
    count = int(np.ceil((length - window) / (window * (1 - OVERLAP)))) + 1
    return np.rint(np.linspace(0, length - window, count)).astype(np.int64)


def window_boxes(photo: Photograph) -> Array:
    """Windows (B, 4) int64 over a photograph as (x, y, width, height), source px: of the size of its working view.

    Where the photograph is smaller than that, the window is the largest multiple of 16 px that fits. Windows without
    any foreground are left out, and so is a photograph narrower than 16 px.
    """
    height, width = photo.mask.shape
    w, h = (min(a, b) // _MULTIPLE * _MULTIPLE for a, b in ((photo.view.width, width), (photo.view.height, height)))
    if w == 0 or h == 0:
        return np.zeros((0, 4), np.int64)
    boxes = [(x, y, w, h) for y in _starts(height, h) for x in _starts(width, w)]
    kept = [box for box in boxes if photo.mask[box[1] : box[1] + h, box[0] : box[0] + w].any()]
    return np.array(kept, np.int64).reshape(-1, 4)


def window_view(photo: Photograph, box: Array) -> View:
    """The window (x, y, width, height), source px, of a photograph as a view of its own, one pixel per source pixel."""
    x, y, width, height = (int(value) for value in box)
    image = np.ascontiguousarray(photo.image[y : y + height, x : x + width])
    mask = np.ascontiguousarray(photo.mask[y : y + height, x : x + width])
    window_from_source = np.array([[1.0, 0, -x], [0, 1.0, -y], [0, 0, 1.0]])
    intrinsics = None
    if photo.view.intrinsics is not None:
        window_from_working = window_from_source @ np.linalg.inv(photo.view.working_from_source)
        intrinsics = window_from_working @ photo.view.intrinsics
    state = hashlib.sha256(f"window {photo.view.digest} {x} {y} {width} {height}".encode())
    state.update(image.tobytes() + mask.tobytes())
    return View(
        name=f"{photo.view.name}[{x},{y},{width},{height}]",
        image=image,
        mask=mask,
        intrinsics=intrinsics,
        working_from_source=window_from_source,
        source_size=photo.view.source_size,
        digest=state.hexdigest(),
        intrinsics_source=photo.view.intrinsics_source,
        world_from_cam=photo.view.world_from_cam,
    )


def _inside(boxes: Array, xy: Array) -> Array:
    """Whether points (M, 2), source px, lie in windows (B, 4): (M, B)."""
    offset = xy[:, None, :] - boxes[None, :, :2]
    inside: Array = (offset >= 0) & (offset <= boxes[None, :, 2:] - 1)  # (M, B, 2)
    return np.asarray(inside.all(2))


def choose_window_pairs(boxes_i: Array, boxes_j: Array, source: PairMatches) -> list[tuple[int, int]]:
    """Pairs of windows, the one with most still uncovered coarse matches first, until `COVERED` of them are covered.

    `boxes_i` (A, 4) and `boxes_j` (B, 4) as from `window_boxes`; `source` are the coarse matches in source px.
    """
    inside_i, inside_j = _inside(boxes_i, source.xy_i), _inside(boxes_j, source.xy_j)  # (M, A), (M, B)
    coverable = inside_i.any(1) & inside_j.any(1)
    left = coverable.copy()
    chosen: list[tuple[int, int]] = []
    while left.sum() > (1 - COVERED) * coverable.sum():
        held = inside_i[left].T.astype(np.float64) @ inside_j[left]  # (A, B) matches in each pair of windows
        a, b = np.unravel_index(int(held.argmax()), held.shape)
        chosen.append((int(a), int(b)))
        left &= ~(inside_i[:, a] & inside_j[:, b])
    return chosen


def _map(matrix: Array, xy: Array) -> Array:
    """Points (M, 2) under an affine (3, 3), float32."""
    return (xy.astype(np.float64) @ matrix[:2, :2].T + matrix[:2, 2]).astype(np.float32)


class _WindowPredictor:
    """A predictor that encodes every window once, where it can encode at all."""

    def __init__(self, predictor: PairPredictor) -> None:
        self._predictor = predictor
        self._features: dict[str, Features] = {}

    def __call__(self, window_i: View, window_j: View) -> PairPrediction:
        if not isinstance(self._predictor, FeaturePredictor):
            return self._predictor.predict(window_i, window_j)
        for window in (window_i, window_j):
            if window.digest not in self._features:  # two photographs may have one name
                self._features[window.digest] = self._predictor.encode(window)
        return self._predictor.predict_from_features(
            window_i, window_j, self._features[window_i.digest], self._features[window_j.digest]
        )


def _merge(parts: Sequence[PairMatches]) -> PairMatches:
    """All matches once, sorted; of those found in several windows the highest confidence stays."""
    ends = np.concatenate([np.concatenate([p.xy_i, p.xy_j], 1) for p in parts])  # (M, 4)
    confidence = np.concatenate([p.confidence for p in parts])
    unique, back = np.unique(ends, axis=0, return_inverse=True)
    best = np.zeros(len(unique), np.float32)
    np.maximum.at(best, back.reshape(-1), confidence)
    return PairMatches(unique[:, :2], unique[:, 2:], best)


def refine_matches(
    predictor: PairPredictor, photo_i: Photograph, photo_j: Photograph, coarse: PairMatches, config: MatchConfig
) -> PairMatches:
    """Matches of two photographs at source resolution, in working px with fractions, near the `coarse` ones.

    `coarse` are matches of the two views, working px. Where no window finds anything, or the photographs are hardly
    larger than their views, the coarse matches come back. No end is ever off either mask.
    """
    enlarged = max(photo_i.source_px_per_working_px, photo_j.source_px_per_working_px)
    boxes_i, boxes_j = window_boxes(photo_i), window_boxes(photo_j)
    if enlarged < _WORTHWHILE or not len(coarse) or not len(boxes_i) or not len(boxes_j):
        return filter_matches(coarse, photo_i.view, photo_j.view, config.border_px)
    source_from_i, source_from_j = (np.linalg.inv(p.view.working_from_source) for p in (photo_i, photo_j))
    source = PairMatches(_map(source_from_i, coarse.xy_i), _map(source_from_j, coarse.xy_j), coarse.confidence)
    predict, found = _WindowPredictor(predictor), []
    for a, b in choose_window_pairs(boxes_i, boxes_j, source):
        window_i, window_j = window_view(photo_i, boxes_i[a]), window_view(photo_j, boxes_j[b])
        matches = match_prediction(predict(window_i, window_j), window_i, window_j, config)
        shift_i, shift_j = boxes_i[a, :2].astype(np.float32), boxes_j[b, :2].astype(np.float32)
        found.append(PairMatches(matches.xy_i + shift_i, matches.xy_j + shift_j, matches.confidence))
    if not any(len(matches) for matches in found):
        return filter_matches(coarse, photo_i.view, photo_j.view, config.border_px)
    fine = _merge(found)
    working = PairMatches(
        _map(photo_i.view.working_from_source, fine.xy_i),
        _map(photo_j.view.working_from_source, fine.xy_j),
        fine.confidence,
    )
    return filter_matches(working, photo_i.view, photo_j.view, config.border_px)


def coarse_to_fine(
    predictor: PairPredictor, photo_i: Photograph, photo_j: Photograph, config: MatchConfig
) -> PairMatches:
    """Matches of two photographs at source resolution, in working px with fractions: coarse first, then refined."""
    prediction = predictor.predict(photo_i.view, photo_j.view)
    coarse = match_prediction(prediction, photo_i.view, photo_j.view, config)
    return refine_matches(predictor, photo_i, photo_j, coarse, config)
