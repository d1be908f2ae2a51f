"""Fine matching on photographs whose correspondences are a known affine map, by a predictor that knows it coarsely."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.config import MatchConfig
from sparse_ga.matching.coarse_to_fine import (
    Photograph,
    choose_window_pairs,
    coarse_to_fine,
    refine_matches,
    window_boxes,
    window_view,
)
from sparse_ga.matching.reciprocal import match_prediction
from sparse_ga.predictors.base import Features
from sparse_ga.products import Array, InvalidProduct, PairMatches, PairPrediction, Pointmap, View

SOURCE = (320, 240)  # width, height
WORKING = (96, 64)
CONFIG = MatchConfig(subsample=8)
# Source pixels of photograph j from those of photograph i.
J_FROM_I = np.array([[0.9, -0.3, 60.0], [0.3, 0.9, -20.0], [0, 0, 1.0]])


def make_photo(name: str, mask: Array | None = None, source: tuple[int, int] = SOURCE) -> Photograph:
    width, height = source
    mask = np.ones((height, width), bool) if mask is None else mask
    scale = min(WORKING[0] / width, WORKING[1] / height)
    # Pixel centres: a working pixel averages 1 / scale source pixels.
    working_from_source = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1.0]])
    w, h = (round(side * scale) // 16 * 16 for side in source)
    y, x = np.mgrid[:h, :w]
    ys, xs = (
        np.clip(np.rint((v - (scale - 1) / 2) / scale), 0, n - 1).astype(int) for v, n in ((y, height), (x, width))
    )
    intrinsics = np.array([[100 * scale, 0, 40.0], [0, 100 * scale, 30.0], [0, 0, 1.0]])
    image = np.zeros((height, width, 3), np.uint8)
    view = View(
        name, np.zeros((h, w, 3), np.uint8), mask[ys, xs], intrinsics, working_from_source, source, name, "given"
    )
    return Photograph(view, image, mask)


class AffinePredictor:
    """Descriptors are waves over photograph i's source pixels; a view shows them at its own pixels, whatever they are.

    The images' names tell which photograph a view is of; content is not looked at.
    """

    fingerprint = "affine"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.waves = rng.normal(size=(2, 24)) * np.geomspace(0.01, 0.6, 24)
        self.phases = rng.uniform(0, 2 * np.pi, 24)
        self.encoded: list[str] = []
        self.pairs: list[tuple[str, str]] = []

    def encode(self, view: View) -> Features:
        self.encoded.append(view.name)
        y, x = np.mgrid[: view.height, : view.width]
        pixels = np.stack([x, y, np.ones_like(x)], -1).astype(float)
        source = pixels @ np.linalg.inv(view.working_from_source).T
        if view.name.startswith("j"):
            source = source @ np.linalg.inv(J_FROM_I).T
        d = np.cos(source[..., :2] @ self.waves + self.phases)
        return {"d": (d / np.linalg.norm(d, axis=2, keepdims=True)).astype(np.float32)}

    def predict_from_features(
        self, view_i: View, view_j: View, features_i: Features, features_j: Features
    ) -> PairPrediction:
        self.pairs.append((view_i.name, view_j.name))
        maps = []
        for view, features in ((view_i, features_i), (view_j, features_j)):
            ones = np.ones(view.mask.shape, np.float32)
            maps.append(Pointmap(np.zeros((*view.mask.shape, 3), np.float32), ones, features["d"], ones))
        return PairPrediction(maps[0], maps[1], maps[1], maps[0])

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        return self.predict_from_features(view_i, view_j, self.encode(view_i), self.encode(view_j))


def source_error_px(photo_i: Photograph, photo_j: Photograph, matches: PairMatches) -> Array:
    """Error (M,) of matches given in working px, measured in source px."""
    ends = []
    for photo, xy in ((photo_i, matches.xy_i), (photo_j, matches.xy_j)):
        back = np.linalg.inv(photo.view.working_from_source)
        ends.append(xy @ back[:2, :2].T + back[:2, 2])
    expected = ends[0] @ J_FROM_I[:2, :2].T + J_FROM_I[:2, 2]
    return np.linalg.norm(ends[1] - expected, axis=1)


def test_fine_matches_are_accurate_to_a_source_pixel() -> None:
    photo_i, photo_j = make_photo("i"), make_photo("j")
    view_i, view_j = photo_i.view, photo_j.view
    coarse = match_prediction(AffinePredictor().predict(view_i, view_j), view_i, view_j, CONFIG)
    fine = coarse_to_fine(AffinePredictor(), photo_i, photo_j, CONFIG)
    error_coarse, error_fine = (source_error_px(photo_i, photo_j, m) for m in (coarse, fine))
    assert np.quantile(error_fine, 0.95) < 1.0
    assert np.median(error_fine) < 0.4 * np.median(error_coarse)
    assert len(fine) > 3 * len(coarse)


def within(box: Array, xy: Array) -> Array:
    return ((xy >= box[:2]) & (xy <= box[:2] + box[2:] - 1)).all(1)


def test_windows_are_predicted_once_and_cover_the_coarse_matches() -> None:
    photo_i, photo_j, predictor = make_photo("i"), make_photo("j"), AffinePredictor()
    coarse_to_fine(predictor, photo_i, photo_j, CONFIG)
    assert len(predictor.encoded) == len(set(predictor.encoded))
    assert len(predictor.pairs) == len(set(predictor.pairs)) > 4
    rng = np.random.default_rng(0)
    xy = rng.uniform(30, 200, (200, 2)).astype(np.float32)
    source = PairMatches(xy, xy + np.float32([40, 20]), np.ones(200, np.float32))
    boxes = window_boxes(photo_i)
    chosen = choose_window_pairs(boxes, boxes, source)
    held = np.zeros(200, bool)
    gains = []
    for a, b in chosen:
        before = held.sum()
        held |= within(boxes[a], source.xy_i) & within(boxes[b], source.xy_j)
        gains.append(held.sum() - before)
    assert held.mean() >= 0.9
    assert gains == sorted(gains, reverse=True)
    assert held.sum() - gains[-1] < 0.9 * 200  # it stops as soon as it may


def test_windows_tile_the_photograph_with_half_overlap() -> None:
    boxes = window_boxes(make_photo("i"))
    covered = np.zeros(SOURCE[::-1], int)
    for x, y, w, h in boxes:
        assert (w, h) == (80, 64) or (w % 16, h % 16) == (0, 0)
        covered[y : y + h, x : x + w] += 1
    assert covered.min() >= 1
    assert np.median(covered) >= 4
    assert boxes[:, 0].max() + boxes[0, 2] == SOURCE[0]
    assert np.diff(np.unique(boxes[:, 0])).max() <= boxes[0, 2] / 2


def test_a_window_keeps_the_camera() -> None:
    photo = make_photo("i")
    window = window_view(photo, np.array([100, 50, 64, 48]))
    point = np.array([0.3, -0.2, 1.0])
    source = np.linalg.inv(photo.view.working_from_source) @ photo.view.intrinsics @ point
    assert window.intrinsics is not None
    np.testing.assert_allclose(window.intrinsics @ point, source - [100, 50, 0])
    np.testing.assert_allclose(window.working_from_source @ source, source - [100, 50, 0])
    assert window.source_size == SOURCE
    assert window.digest != window_view(photo, np.array([101, 50, 64, 48])).digest


def test_no_match_leaves_the_masks() -> None:
    rng = np.random.default_rng(3)
    masks = [np.kron(rng.random((6, 8)) < 0.5, np.ones((40, 40), bool)) for _ in range(2)]
    photo_i, photo_j = make_photo("i", masks[0]), make_photo("j", masks[1])
    fine = coarse_to_fine(AffinePredictor(), photo_i, photo_j, CONFIG)
    assert len(fine) > 20
    for photo, xy in ((photo_i, fine.xy_i), (photo_j, fine.xy_j)):
        x, y = np.rint(xy).astype(int).T
        assert photo.view.mask[y, x].all()
        back = np.linalg.inv(photo.view.working_from_source)
        x, y = np.rint(xy @ back[:2, :2].T + back[:2, 2]).astype(int).T
        assert photo.mask[y, x].all()


def test_nothing_to_refine_gives_the_coarse_matches_back() -> None:
    small = (96, 64)
    photo_i, photo_j, predictor = make_photo("i", None, small), make_photo("j", None, small), AffinePredictor()
    xy = np.array([[10, 10], [50, 30]], np.float32)
    coarse = PairMatches(xy, xy, np.ones(2, np.float32))
    same = refine_matches(predictor, photo_i, photo_j, coarse, CONFIG)
    np.testing.assert_array_equal(same.xy_i, xy)
    assert predictor.pairs == []
    large_i, large_j = make_photo("i"), make_photo("j")
    assert len(refine_matches(predictor, large_i, large_j, PairMatches.empty(), CONFIG)) == 0
    empty = make_photo("i", np.zeros(SOURCE[::-1], bool))
    assert len(refine_matches(predictor, empty, large_j, coarse, CONFIG)) == 0


def test_a_photograph_of_another_size_is_refused() -> None:
    photo = make_photo("i")
    with pytest.raises(InvalidProduct, match="EXIF orientation"):
        Photograph(photo.view, photo.image.swapaxes(0, 1), photo.mask.T)
