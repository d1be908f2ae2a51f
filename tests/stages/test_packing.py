"""Compact forms of predictions and canonical views: small, finite, and hardly less exact."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga import codec
from sparse_ga.products import CanonicalView, InvalidProduct, PairMatches, PairPrediction, Pointmap, View
from sparse_ga.stages.packing import (
    PackedDescriptors,
    PackedLog,
    pack_canonical,
    pack_prediction,
    unpack_canonical,
    unpack_prediction,
)


def disc(height: int, width: int, share: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (x - width / 2) ** 2 + (y - height / 2) ** 2 <= share * height * width / np.pi


def make_view(height: int = 48, width: int = 64, share: float = 0.25) -> View:
    image = np.zeros((height, width, 3), np.uint8)
    return View("a", image, disc(height, width, share), None, np.eye(3), (width, height), "")


def make_pointmap(view: View, rng: np.random.Generator, channels: int = 0, scale: float = 1.0) -> Pointmap:
    shape = view.mask.shape
    points = (rng.normal(size=(*shape, 3)) * 0.3 + (0, 0, 3)).astype(np.float32) * np.float32(scale)
    confidence = (1 + rng.exponential(3, shape)).astype(np.float32)
    if not channels:
        return Pointmap(points, confidence)
    descriptors = rng.normal(size=(*shape, channels)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=-1, keepdims=True)
    return Pointmap(points, confidence, descriptors, confidence)


def make_prediction(view_i: View, view_j: View, channels: int = 0, scale: float = 1.0) -> PairPrediction:
    rng = np.random.default_rng(0)
    maps = [make_pointmap(view, rng, channels, scale) for view in (view_i, view_j, view_j, view_i)]
    return PairPrediction(*maps)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_points_lose_less_than_a_thousandth_of_their_depth_at_any_scale(scale: float):
    view = make_view()
    prediction = make_prediction(view, view, scale=scale)
    back = unpack_prediction(pack_prediction(prediction, view, view, 2, False), view, view)
    for name in ("i_in_i", "j_in_j"):
        before, after = getattr(prediction, name), getattr(back, name)
        error = np.abs(after.points - before.points)[view.mask] / before.points[view.mask][:, 2:]
        assert error.max() < 1e-3
        ratio = after.confidence[view.mask] / before.confidence[view.mask]
        assert np.abs(ratio - 1).max() < 0.02
        assert np.isfinite(after.points).all()
        assert (after.confidence[~view.mask] == 0).all()


def test_the_other_views_points_are_kept_at_every_second_pixel_of_the_foreground():
    view = make_view(96, 128)
    prediction = make_prediction(view, view)
    back = unpack_prediction(pack_prediction(prediction, view, view, 2, False), view, view)
    kept = np.zeros_like(view.mask)
    kept[::2, ::2] = view.mask[::2, ::2]
    for name in ("j_in_i", "i_in_j"):
        np.testing.assert_array_equal(getattr(back, name).confidence > 0, kept)
        error = np.abs(getattr(back, name).points - getattr(prediction, name).points)[kept]
        assert error.max() < 4e-3


def test_small_objects_are_kept_at_every_pixel():
    view = make_view(48, 64, 0.05)
    back = unpack_prediction(pack_prediction(make_prediction(view, view), view, view, 2, False), view, view)
    np.testing.assert_array_equal(back.j_in_i.confidence > 0, view.mask)


@pytest.mark.parametrize(("channels", "limit"), [(0, 1.0e6), (24, 5.0e6)])
def test_size_of_a_pair_at_512x384_with_a_quarter_foreground(channels: int, limit: float):
    view = make_view(384, 512)
    assert 0.249 < view.mask.mean() < 0.251
    packed = pack_prediction(make_prediction(view, view, channels), view, view, 2, True)
    size = len(codec.encode(packed, {"some": "provenance"}))
    assert size <= limit
    assert size > 0.5e6


def test_descriptors_at_six_bits_keep_their_angles():
    view = make_view()
    prediction = make_prediction(view, view, 24)
    packed = pack_prediction(prediction, view, view, 2, True)
    assert packed.can_match
    back = unpack_prediction(packed, view, view)
    before, after = prediction.i_in_i.descriptors[view.mask], back.i_in_i.descriptors[view.mask]
    cosine = (before * after).sum(1) / np.linalg.norm(after, axis=1)
    assert cosine.min() > 0.997
    assert (back.i_in_i.descriptors[~view.mask] == 0).all()
    nearest = (after @ before.T).argmax(1)
    np.testing.assert_array_equal(nearest, np.arange(len(before)))
    bare = pack_prediction(prediction, view, view, 2, False)
    assert not bare.can_match
    assert unpack_prediction(bare, view, view).i_in_i.descriptors is None


def test_matches_and_reasons_survive_exactly():
    view = make_view()
    xy = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    matches = PairMatches(xy, xy + 1, np.ones(5, np.float32))
    maps = make_prediction(view, view)
    prediction = PairPrediction(maps.i_in_i, maps.j_in_i, maps.j_in_j, maps.i_in_j, matches, None)
    packed = pack_prediction(prediction, view, view, 2, False)
    assert packed.can_match
    back = codec.decode(codec.encode(packed))
    np.testing.assert_array_equal(unpack_prediction(back, view, view).matches.xy_j, xy + 1)
    rejected = pack_prediction(PairPrediction.reject(view, view, "no overlap"), view, view, 2, False)
    assert rejected.can_match
    assert len(codec.encode(rejected)) < 1000
    assert unpack_prediction(codec.decode(codec.encode(rejected)), view, view).rejected == "no overlap"


def test_nan_infinity_negative_and_huge_values_become_harmless():
    view = make_view()
    prediction = make_prediction(view, view)
    points, confidence = prediction.i_in_i.points.copy(), prediction.i_in_i.confidence.copy()
    ys, xs = np.nonzero(view.mask)
    points[ys[0], xs[0]] = np.nan
    points[ys[1], xs[1], 2] = np.inf
    points[ys[2], xs[2]] = (1e30, -1e30, -5)
    confidence[ys[3], xs[3]] = np.nan
    confidence[ys[4], xs[4]] = -1
    confidence[ys[5], xs[5]] = np.inf
    bad = PairPrediction(Pointmap(points, confidence), prediction.j_in_i, prediction.j_in_j, prediction.i_in_j)
    back = unpack_prediction(pack_prediction(bad, view, view, 2, False), view, view).i_in_i
    assert np.isfinite(back.points).all()
    assert np.isfinite(back.confidence).all()
    values = back.confidence[view.mask]
    assert (values[[0, 1, 3, 4]] == 0).all()
    assert (values[[2, 5]] > 0).all()
    assert np.abs(back.points - points)[ys[10:], xs[10:]].max() < 4e-3


@pytest.mark.parametrize("huge", [np.inf, 1e30])
def test_huge_confidences_leave_products_and_sums_finite(huge: float):
    view = make_view()
    prediction = make_prediction(view, view, 4)
    confidence = prediction.i_in_i.confidence.copy()
    confidence[24, 32] = huge
    source = prediction.i_in_i
    bad = Pointmap(source.points, confidence, source.descriptors, confidence)
    whole = PairPrediction(bad, prediction.j_in_i, prediction.j_in_j, prediction.i_in_j)
    back = unpack_prediction(pack_prediction(whole, view, view, 2, True), view, view).i_in_i
    for values in (back.confidence, back.descriptor_confidence):
        assert values[24, 32] == values.max() == pytest.approx(1e12, rel=1e-3)
        assert np.isfinite(np.square(values).sum())
        others = view.mask & (confidence != np.float32(huge))
        np.testing.assert_allclose(values[others], confidence[others], rtol=0.06)


def test_background_content_never_enters():
    view = make_view()
    clean = make_prediction(view, view)
    points = clean.i_in_i.points.copy()
    points[~view.mask] = np.nan
    dirty = PairPrediction(Pointmap(points, clean.i_in_i.confidence), clean.j_in_i, clean.j_in_j, clean.i_in_j)
    packed = [codec.encode(pack_prediction(prediction, view, view, 2, False)) for prediction in (clean, dirty)]
    assert packed[0] == packed[1]


def test_empty_and_one_pixel_masks():
    empty = make_view(16, 16, 0.0)
    empty = View("e", empty.image, np.zeros((16, 16), bool), None, np.eye(3), (16, 16), "")
    one = View("o", empty.image, disc(16, 16, 0.001), None, np.eye(3), (16, 16), "")
    assert one.mask.sum() == 1
    packed = codec.decode(codec.encode(pack_prediction(make_prediction(empty, one), empty, one, 2, False)))
    back = unpack_prediction(packed, empty, one)
    assert (back.i_in_i.confidence == 0).all()
    assert (back.j_in_j.confidence > 0).sum() == 1


def test_point_maps_of_a_wrong_size_and_masks_of_another_view_are_refused():
    view, other = make_view(48, 64), make_view(64, 48)
    with pytest.raises(InvalidProduct, match="the predictor gave points"):
        pack_prediction(make_prediction(other, other), view, view, 2, False)
    packed = pack_prediction(make_prediction(view, view), view, view, 2, False)
    with pytest.raises(InvalidProduct, match="another mask"):
        unpack_prediction(packed, make_view(48, 64, 0.1), view)


def test_packed_log_of_constant_zero_and_wide_values():
    for values in (np.zeros(5), np.full(5, 7.0), np.array([0, 1e-30, 1.0, 1e30])):
        back = PackedLog.pack(values).unpack()
        assert back.dtype == np.float32
        np.testing.assert_allclose(back, values, rtol=0.4)
    assert len(PackedLog.pack(np.zeros(0)).unpack()) == 0


def test_packed_descriptors_of_zero_and_nan():
    values = np.array([[0.0, 0.0], [np.nan, 1.0], [-1.0, 0.5]], np.float32)
    back = PackedDescriptors.pack(values, None).unpack()
    np.testing.assert_allclose(back, [[0, 0], [0, 1], [-1, 0.5]], atol=1 / 62 + 1e-6)
    assert PackedDescriptors.pack(np.zeros((0, 24), np.float32), None).unpack().shape == (0, 24)


def test_canonical_views_lose_nothing():
    view = make_view()
    anchors = np.where(view.mask, np.arange(view.mask.size).reshape(view.mask.shape) % 7, -1).astype(np.int32)
    depth = np.where(view.mask, 2.5, 0).astype(np.float32)
    confidence = np.where(view.mask, 1.5, 0).astype(np.float32)
    xy = np.argwhere(view.mask)[:7, ::-1].astype(np.int32)
    canonical = CanonicalView("a", depth, confidence, 123.25, np.ascontiguousarray(xy), anchors)
    back = unpack_canonical(codec.decode(codec.encode(pack_canonical(canonical))))
    for name in ("depth", "confidence", "anchor_xy", "anchor_of_pixel"):
        np.testing.assert_array_equal(getattr(back, name), getattr(canonical, name))
        assert getattr(back, name).dtype == getattr(canonical, name).dtype
    assert (back.name, back.focal_px) == ("a", 123.25)
