"""Dense matches: neighbours judge and move them, two looks find any roll, nothing to match is no error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_ga.matching.dense import agreeing, coarse_matches, fit_neighbourhoods, match_described, second_size
from sparse_ga.network.descriptor_cnn import DenseDescriptor, DescriptorCNN, DescriptorConfig, DescriptorMap
from sparse_ga.products import Array, PairMatches, View

AFFINE = np.array([[0.9, -0.4], [0.3, 1.1]])


def _matches(rng: np.random.Generator, noise_px: float, wrong_share: float) -> tuple[Array, Array, Array]:
    """A grid of 900 points, where one affine map with noise puts them, and which of these are wrong."""
    xy_i = np.stack(np.meshgrid(np.arange(30.0), np.arange(30.0)), -1).reshape(-1, 2) * 2
    xy_j = xy_i @ AFFINE.T + [5, 20] + noise_px * rng.normal(size=xy_i.shape)
    wrong = rng.random(len(xy_i)) < wrong_share
    xy_j[wrong] = rng.uniform(0, 80, (int(wrong.sum()), 2))
    return xy_i, xy_j, wrong


def test_neighbours_place_a_match_nearer_the_truth_than_it_was() -> None:
    xy_i, xy_j, wrong = _matches(np.random.default_rng(0), noise_px=1.0, wrong_share=0.4)
    found = fit_neighbourhoods(xy_i, xy_j, spacing_i_px=2.0, spacing_j_px=2.0)
    truth = xy_i @ AFFINE.T + [5, 20]
    before, after = (np.median(np.linalg.norm(xy - truth, axis=1)[~wrong]) for xy in (xy_j, found.placed))
    assert after < 0.5 * before
    assert np.median(found.support) == pytest.approx(0.6, abs=0.12)  # the share of right matches
    assert np.median(np.linalg.norm(found.linear - AFFINE, axis=(1, 2))) < 0.25


def test_wrong_matches_are_dropped_and_right_ones_kept() -> None:
    xy_i, xy_j, wrong = _matches(np.random.default_rng(1), noise_px=0.7, wrong_share=0.3)
    matches = PairMatches(xy_i.astype(np.float32), xy_j.astype(np.float32), np.ones(len(xy_i), np.float32))
    found = agreeing(matches, 2.0, 2.0)
    error = np.linalg.norm(found.matches.xy_j - (found.matches.xy_i @ AFFINE.T + [5, 20]), axis=1)
    assert len(found.matches) > 0.85 * (~wrong).sum()
    assert (error < 2).mean() > 0.97
    assert found.share == pytest.approx(len(found.matches) / len(xy_i))
    assert found.roll == pytest.approx(math.atan2(0.7, 2.0), abs=0.05)


@pytest.mark.parametrize("larger", [0.05, 0.2, 5.0, 20.0])
def test_objects_of_different_sizes_agree_as_well(larger: float) -> None:
    xy_i, xy_j, _ = _matches(np.random.default_rng(1), noise_px=0.7, wrong_share=0.3)
    ones = np.ones(len(xy_i), np.float32)
    same = agreeing(PairMatches(xy_i.astype(np.float32), xy_j.astype(np.float32), ones), 2.0, 2.0)
    scaled = PairMatches(xy_i.astype(np.float32), (larger * xy_j).astype(np.float32), ones)
    found = agreeing(scaled, 2.0, 2.0 * larger)
    assert found.share == pytest.approx(same.share, abs=0.01)
    assert np.median(np.abs(found.linear / larger - AFFINE), axis=0).max() < 0.1


def test_matches_without_any_rule_do_not_agree() -> None:
    rng = np.random.default_rng(2)
    xy_i, xy_j, _ = _matches(rng, noise_px=0.0, wrong_share=1.0)
    matches = PairMatches(xy_i.astype(np.float32), xy_j.astype(np.float32), np.ones(len(xy_i), np.float32))
    assert agreeing(matches, 2.0, 2.0).share < 0.05


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_few_matches_are_no_error(count: int) -> None:
    xy = np.arange(2.0 * count).reshape(count, 2).astype(np.float32)
    found = agreeing(PairMatches(xy, xy + 3, np.ones(count, np.float32)), 1.0, 1.0)
    assert np.isfinite(found.matches.xy_j).all()
    assert np.isfinite(found.roll)
    assert 0 <= found.share <= 1


def test_many_equal_places_are_no_error() -> None:
    xy = np.full((60, 2), 7, np.float32)
    found = agreeing(PairMatches(xy, xy, np.ones(60, np.float32)), 1.0, 1.0)
    np.testing.assert_allclose(found.matches.xy_j, 7, atol=1e-3)


@pytest.fixture(scope="module")
def describer() -> DenseDescriptor:
    torch.manual_seed(0)
    return DenseDescriptor(DescriptorCNN(DescriptorConfig(8, (8, 12, 16, 16), (1, 1, 1), 64)).eval(), "test")


def _view(turns: int = 0, empty: bool = False, seed: int = 0) -> View:
    image = np.random.default_rng(seed).integers(0, 255, (90, 110, 3)).astype(np.uint8)
    mask = np.zeros((90, 110), bool)
    mask[20:75, 15:90] = not empty
    image, mask = (np.ascontiguousarray(np.rot90(x, turns)) for x in (image, mask))
    return View("v", image, mask, None, np.eye(3), (image.shape[1], image.shape[0]), "d")


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_two_looks_find_a_turned_picture(describer: DenseDescriptor, turns: int) -> None:
    views = _view(), _view(turns)
    found = match_described(describer, views, (describer.describe(views[0]), describer.describe(views[1])))
    x, y = found.matches.xy_i.T
    height, width = views[0].mask.shape
    expected = {0: (x, y), 1: (y, width - 1 - x), 2: (width - 1 - x, height - 1 - y), 3: (height - 1 - y, x)}[turns]
    assert len(found.matches) > 500
    assert np.quantile(np.linalg.norm(found.matches.xy_j - np.stack(expected, 1), axis=1), 0.95) < 0.5
    assert math.cos(found.roll + turns * math.pi / 2) > 0.999
    assert found.share > 0.8
    assert found.spacing_j_px == pytest.approx(2 * 75 * 1.16 / second_size(views))


def test_pictures_of_different_things_get_one_look(describer: DenseDescriptor, monkeypatch: pytest.MonkeyPatch) -> None:
    views = _view(), _view(seed=5)
    maps = describer.describe(views[0]), describer.describe(views[1])

    def refuse(*_: object) -> DescriptorMap:
        raise AssertionError("looked again")

    monkeypatch.setattr(describer, "describe_upright", refuse)
    assert match_described(describer, views, maps, min_share=0.2).share < 0.2


def test_the_second_look_is_as_large_as_the_object(describer: DenseDescriptor) -> None:
    small = _view()
    mask = np.zeros((900, 900), bool)
    mask[100:400, 100:300] = True
    large = View("v", np.zeros((900, 900, 3), np.uint8), mask, None, np.eye(3), (900, 900), "d")
    assert second_size((small, small)) == 192
    assert second_size((small, large)) == 352
    assert second_size((large, _view(empty=True))) == 352


@pytest.mark.parametrize("roll", [0.0, 0.6, 0.785, 2.2])
def test_the_second_look_sees_the_whole_object_at_any_roll(describer: DenseDescriptor, roll: float) -> None:
    view = _view()
    found = describer.describe_upright(view, roll, 192)
    assert found.valid.sum() * found.spacing_px**2 == pytest.approx(view.mask.sum(), rel=0.05)
    rows, columns = np.nonzero(found.valid)
    xy = found.to_view(np.stack([columns, rows], 1).astype(float))
    np.testing.assert_allclose([xy.min(0), xy.max(0)], [[15, 20], [89, 74]], atol=1.5)


def test_an_empty_mask_has_no_matches(describer: DenseDescriptor) -> None:
    views = _view(), _view(empty=True)
    maps = describer.describe(views[0]), describer.describe(views[1])
    for pair, both in ((views, maps), (views[::-1], maps[::-1])):
        found = match_described(describer, (pair[0], pair[1]), (both[0], both[1]))
        assert len(found.matches) == 0
        assert found.share == 0
    assert len(coarse_matches(maps[1], maps[1])[0]) == 0
