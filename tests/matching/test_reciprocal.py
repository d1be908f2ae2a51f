"""Reciprocal matching against a plain walk over brute-force neighbour tables, and the cases that break matchers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from sparse_ga.config import MatchConfig
from sparse_ga.errors import InputError
from sparse_ga.matching.reciprocal import (
    PixelFeatures,
    filter_matches,
    match_prediction,
    reciprocal_matches,
    seed_pixels,
    similar_enough,
)
from sparse_ga.products import Array, PairMatches, PairPrediction, Pointmap, View

Pair = tuple[int, int]
CONFIG = MatchConfig(subsample=4)


def make_view(mask: Array, name: str = "view") -> View:
    image = np.zeros((*mask.shape, 3), np.uint8)
    return View(name, image, mask, None, np.eye(3), (mask.shape[1], mask.shape[0]), name)


def predict(descriptors: tuple[Array, ...], confidence: Array | None = None) -> PairPrediction:
    """Point maps with the given descriptors for i_in_i, j_in_i, j_in_j, i_in_j."""
    maps = []
    for d in descriptors:
        ones = np.ones(d.shape[:2], np.float32) if confidence is None else confidence
        maps.append(Pointmap(np.zeros((*d.shape[:2], 3), np.float32), ones, d, ones))
    return PairPrediction(*maps)


def table(queries: Array, rows: Array, usable: Array, l2: bool) -> Array:
    """Nearest usable row of every query, double precision, lowest index first."""
    score = np.zeros((len(queries), len(rows)))
    for d in range(rows.shape[1]):
        q, x = queries[:, d : d + 1].astype(float), rows[None, :, d].astype(float)
        score = score - (q - x) ** 2 if l2 else score + q * x
    score[:, ~usable] = -np.inf
    return score.argmax(1)


def walk(seed: int, there: Array, back: Array, rounds: int) -> Pair | None:
    near, far = seed, -1
    for _ in range(rounds):
        following = int(there[near])
        if following == far:
            return near, far
        far = following
        previous, near = near, int(back[far])
        if near == previous:
            return near, far
    return None


def slow_seeds(usable: Array, step: int) -> list[int]:
    height, width = usable.shape
    seeds = []
    for y0 in range(0, height, step):
        for x0 in range(0, width, step):
            block = [
                ((y - y0 - step // 2) ** 2 + (x - x0 - step // 2) ** 2, y * width + x)
                for y in range(y0, min(y0 + step, height))
                for x in range(x0, min(x0 + step, width))
                if usable[y, x]
            ]
            seeds += [min(block)[1]] if block else []
    return sorted(seeds)


def slow_reciprocal(a: PixelFeatures, b: PixelFeatures, step: int, rounds: int, l2: bool) -> set[Pair]:
    usable_a, usable_b = a.usable.reshape(-1), b.usable.reshape(-1)
    if not usable_a.any() or not usable_b.any():
        return set()
    with np.errstate(invalid="ignore"):
        a_to_b = table(a.vectors, b.vectors, usable_b, l2)
        b_to_a = table(b.vectors, a.vectors, usable_a, l2)
    forward = [walk(s, a_to_b, b_to_a, rounds) for s in slow_seeds(a.usable, step)]
    backward = [walk(s, b_to_a, a_to_b, rounds) for s in slow_seeds(b.usable, step)]
    return {p for p in forward if p} | {(p[1], p[0]) for p in backward if p}


def random_scene(seed: int, dtype: type, dim: int, mask: str) -> tuple[PixelFeatures, PixelFeatures]:
    rng = np.random.default_rng(seed)
    shapes = (22, 31), (26, 18)
    features = []
    for shape in shapes:
        vectors = rng.normal(size=(*shape, dim)).astype(dtype)
        usable = np.ones(shape, bool)
        if mask == "random":
            usable = rng.random(shape) < 0.3
        if mask == "corner":
            usable = np.zeros(shape, bool)
            usable[-6:, -7:] = True
        if mask == "integers":
            vectors = np.round(vectors)  # many exact ties
        if mask == "nan":
            vectors[rng.random(shape) < 0.2, 0] = np.nan
            vectors[0, 0] = np.inf
        features.append(PixelFeatures.of(vectors, usable))
    return features[0], features[1]


@pytest.mark.parametrize("mask", ["all", "random", "corner", "integers", "nan"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("dim", "l2"), [(8, False), (8, True), (3, True)])
def test_identical_to_brute_force(mask: str, dtype: type, dim: int, l2: bool) -> None:
    a, b = random_scene(dim, dtype, dim, mask)
    found = reciprocal_matches(a, b, CONFIG, "l2" if l2 else "dot")
    expected = slow_reciprocal(a, b, CONFIG.subsample, CONFIG.max_rounds, l2)
    assert expected
    assert set(zip(found.pixel_i.tolist(), found.pixel_j.tolist(), strict=True)) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("rounds", [1, 2])
def test_open_cycles_are_given_up_after_the_last_round(rounds: int) -> None:
    a, b = random_scene(0, np.float32, 8, "all")
    found = reciprocal_matches(a, b, replace(CONFIG, max_rounds=rounds))
    expected = slow_reciprocal(a, b, CONFIG.subsample, rounds, False)
    assert set(zip(found.pixel_i.tolist(), found.pixel_j.tolist(), strict=True)) == expected
    assert rounds > 1 or len(expected) < len(reciprocal_matches(a, b, CONFIG))


def test_basins_name_the_match_of_every_seed() -> None:
    a, b = random_scene(3, np.float32, 8, "random")
    found = reciprocal_matches(a, b, replace(CONFIG, subsample=1, max_rounds=3))
    there = table(a.vectors, b.vectors, b.usable.reshape(-1), False)
    back = table(b.vectors, a.vectors, a.usable.reshape(-1), False)
    assert found.seed_i.tolist() == np.flatnonzero(a.usable).tolist()
    ends = [walk(int(s), there, back, 3) for s in found.seed_i]
    assert None in ends
    for end, basin in zip(ends, found.basin_i, strict=True):
        assert (None if basin < 0 else (found.pixel_i[basin], found.pixel_j[basin])) == end
    ends = [walk(int(s), back, there, 3) for s in found.seed_j]
    for end, basin in zip(ends, found.basin_j, strict=True):
        assert (None if basin < 0 else (found.pixel_j[basin], found.pixel_i[basin])) == end


def test_pixel_tolerance_bounds_how_far_a_match_may_lie_from_its_seed() -> None:
    a, b = random_scene(4, np.float32, 8, "all")
    free = reciprocal_matches(a, b, CONFIG)
    kept = set()
    for seeds, basins, pixels, width in (
        (free.seed_i, free.basin_i, free.pixel_i, 31),
        (free.seed_j, free.basin_j, free.pixel_j, 18),
    ):
        for seed, basin in zip(seeds, basins, strict=True):
            step = np.subtract(divmod(seed, width), divmod(pixels[basin], width))
            if basin >= 0 and np.hypot(*step) <= 3:
                kept.add((free.pixel_i[basin], free.pixel_j[basin]))
    near = reciprocal_matches(a, b, replace(CONFIG, pixel_tolerance=3))
    assert set(zip(near.pixel_i, near.pixel_j, strict=True)) == kept
    assert 0 < len(kept) < len(free)


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_seeds_are_the_usable_pixels_nearest_to_the_block_centres(share: float) -> None:
    usable = np.random.default_rng(7).random((37, 29)) < share
    assert seed_pixels(usable, 8).tolist() == slow_seeds(usable, 8)
    assert seed_pixels(np.ones((16, 16), bool), 8).tolist() == [4 * 16 + 4, 4 * 16 + 12, 12 * 16 + 4, 12 * 16 + 12]


def permuted_pair(mask_i: Array, mask_j: Array) -> PairPrediction:
    """Unit descriptors that all differ: pixel (x, y) of i is pixel (x, y) of j in both decode orders."""
    rng = np.random.default_rng(11)
    d = rng.normal(size=(*mask_i.shape, 24)).astype(np.float32)
    d /= np.linalg.norm(d, axis=2, keepdims=True)
    return predict((d, d, d, d))


@pytest.mark.parametrize(
    "case", ["none", "none_in_j", "one_pixel", "two_pixels", "corner", "border_line", "everything", "checkerboard"]
)
def test_degenerate_masks_never_crash_and_never_touch_background(case: str) -> None:
    shape = (32, 48)
    mask = np.zeros(shape, bool)
    if case == "one_pixel":
        mask[10, 20] = True
    if case == "two_pixels":
        mask[10, [20, 21]] = True
    if case == "corner":
        mask[:9, :9] = True
    if case == "border_line":
        mask[:, :2] = True
    if case in ("everything", "none_in_j"):
        mask[:] = True
    if case == "checkerboard":
        mask[::2, ::2] = True
    mask_j = np.zeros(shape, bool) if case == "none_in_j" else mask
    view_i, view_j = make_view(mask), make_view(mask_j, "other")
    matches = match_prediction(permuted_pair(mask, mask_j), view_i, view_j, CONFIG)
    count = {"none": 0, "none_in_j": 0, "one_pixel": 1, "two_pixels": 1, "border_line": 0}
    assert len(matches) == count.get(case, len(matches))
    assert len(matches) > 0 or case in ("none", "none_in_j", "border_line")
    np.testing.assert_array_equal(matches.xy_i, matches.xy_j)
    for xy in (matches.xy_i, matches.xy_j):
        x, y = xy.astype(int).T
        assert mask[y, x].all()
        assert ((x >= 3) & (x < 45) & (y >= 3) & (y < 29)).all()


def test_background_is_neither_asked_nor_found() -> None:
    """The background of both images is identical and would match perfectly; NaN there must do no harm either."""
    rng = np.random.default_rng(2)
    object_i, object_j = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    object_i[8:24, 8:24] = True
    object_j[12:28, 14:30] = True
    scenery = rng.normal(size=(40, 40, 16)).astype(np.float32) * 3
    body = rng.normal(size=(16, 16, 16)).astype(np.float32)
    i, j = scenery.copy(), scenery.copy()
    i[8:24, 8:24] = body
    j[12:28, 14:30] = body + 0.1 * rng.normal(size=body.shape).astype(np.float32)
    view_i, view_j = make_view(object_i), make_view(object_j, "other")
    matches = match_prediction(predict((i, j, j, i)), view_i, view_j, CONFIG)
    assert len(matches) >= 16
    np.testing.assert_array_equal(matches.xy_j - matches.xy_i, np.tile([6, 4], (len(matches), 1)))
    i[~object_i], j[~object_j] = np.nan, np.inf
    again = match_prediction(predict((i, j, j, i)), view_i, view_j, CONFIG)
    for name in ("xy_i", "xy_j", "confidence"):
        np.testing.assert_array_equal(getattr(again, name), getattr(matches, name))


def test_orders_are_merged_and_the_better_confidence_wins() -> None:
    rng = np.random.default_rng(8)
    shape = (24, 24)
    d1, d2 = (d / np.linalg.norm(d, axis=2, keepdims=True) for d in rng.normal(size=(2, *shape, 16)))
    points = np.zeros((*shape, 3), np.float32)

    def pointmap(d: Array, confidence: float) -> Pointmap:
        return Pointmap(points, np.ones(shape, np.float32), d, np.full(shape, confidence, np.float32))

    # The first order sees identical images; the second sees view j turned upside down on its left half.
    turned = d2.copy()
    turned[:, :12] = d2[::-1, :12]
    prediction = PairPrediction(pointmap(d1, 4), pointmap(d1, 9), pointmap(turned, 25), pointmap(d2, 16))
    view = make_view(np.ones(shape, bool))
    matches = match_prediction(prediction, view, view, CONFIG)
    same = (matches.xy_i == matches.xy_j).all(1)
    right = matches.xy_i[:, 0] >= 12
    np.testing.assert_allclose(matches.confidence[same & ~right], 6)  # sqrt(4 * 9): only the first order
    np.testing.assert_allclose(matches.confidence[same & right], 20)  # sqrt(16 * 25): both orders, the higher
    np.testing.assert_allclose(matches.confidence[~same], 20)
    assert (matches.xy_i[~same][:, 1] == 23 - matches.xy_j[~same][:, 1]).all()
    assert same.sum() > 10
    assert (~same).sum() > 10
    pairs = np.concatenate([matches.xy_i, matches.xy_j], 1)
    assert len(np.unique(pairs, axis=0)) == len(pairs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_points_are_matched_where_there_are_no_descriptors(dtype: type) -> None:
    rng = np.random.default_rng(9)
    shape = (30, 30)
    points_i = rng.normal(size=(*shape, 3)).astype(dtype)
    points_j = np.roll(points_i, 5, 1) + dtype(1e-4) * rng.normal(size=(*shape, 3)).astype(dtype)
    points_i[4, 4] = np.nan
    ones = np.ones(shape, dtype)
    maps = [Pointmap(p, ones) for p in (points_i, points_j, points_j, points_i)]
    view = make_view(np.ones(shape, bool))
    matches = match_prediction(PairPrediction(*maps), view, view, CONFIG)
    inside = (matches.xy_i[:, 0] < 25) & (matches.xy_i[:, 0] >= 3)
    assert inside.sum() > 30
    np.testing.assert_array_equal((matches.xy_j - matches.xy_i)[inside], np.tile([5, 0], (inside.sum(), 1)))
    np.testing.assert_array_equal(matches.confidence, np.ones(len(matches)))


def test_descriptors_that_are_all_nan_give_no_match() -> None:
    d = np.full((20, 20, 8), np.nan, np.float32)
    view = make_view(np.ones((20, 20), bool))
    assert len(match_prediction(predict((d, d, d, d)), view, view, CONFIG)) == 0


@pytest.mark.slow
def test_constant_descriptors_end_in_one_match() -> None:
    """A dead network: everything ties with everything, the lowest pixel wins; it lies in the ignored border."""
    d = np.ones((64, 64, 8), np.float32)
    view = make_view(np.ones((64, 64), bool))
    assert len(match_prediction(predict((d, d, d, d)), view, view, CONFIG)) == 0
    found = reciprocal_matches(PixelFeatures.of(d, view.mask), PixelFeatures.of(d, view.mask), CONFIG)
    assert (found.pixel_i.tolist(), found.pixel_j.tolist()) == ([0], [0])


def test_given_matches_are_only_masked_and_filtered() -> None:
    mask_i, mask_j = np.zeros((20, 30), bool), np.ones((20, 30), bool)
    mask_i[5:15, 5:25] = True
    xy_i = np.array([[10.4, 7.6], [10, 7], [4.4, 7], [12, 9], [12, 9], [40, 9]], np.float32)
    xy_j = np.array([[8.2, 8.1], [2, 8], [8, 8], [28, 8], [8, 8], [8, 8]], np.float32)
    given = PairMatches(xy_i, xy_j, np.arange(6, dtype=np.float32))
    prediction = replace(permuted_pair(mask_i, mask_j), matches=given)
    matches = match_prediction(prediction, make_view(mask_i), make_view(mask_j, "other"), MatchConfig())
    np.testing.assert_array_equal(matches.confidence, [0, 4])
    np.testing.assert_array_equal(matches.xy_i, xy_i[[0, 4]])
    np.testing.assert_array_equal(matches.xy_j, xy_j[[0, 4]])
    for count in (0, 1, 2):
        some = replace(prediction, matches=given.select(np.arange(count)))
        assert len(match_prediction(some, make_view(mask_i), make_view(mask_j), MatchConfig())) == min(count, 1)


def test_matches_that_do_not_look_alike_are_dropped() -> None:
    """Half of each image is seen by that image alone; hidden pixels find one another, less alike than the others."""
    rng = np.random.default_rng(12)
    shape = (40, 60)
    d = rng.normal(size=(3, *shape, 24))
    i, j = d[0] + 0.05 * rng.normal(size=(*shape, 24)), d[0] + 0.05 * rng.normal(size=(*shape, 24))
    i[:, 30:], j[:, 30:] = d[1][:, 30:], d[2][:, 30:]
    i, j = (v / np.linalg.norm(v, axis=2, keepdims=True) for v in (i, j))
    prediction = predict((i.astype(np.float32), j.astype(np.float32), j.astype(np.float32), i.astype(np.float32)))
    view = make_view(np.ones(shape, bool))
    gated = match_prediction(prediction, view, view, CONFIG)
    everything = match_prediction(prediction, view, view, replace(CONFIG, max_dissimilarity=None))
    seen = everything.xy_i[:, 0] < 30
    assert (~seen).sum() > 20
    np.testing.assert_array_equal(gated.xy_i, everything.xy_i[seen])
    np.testing.assert_array_equal(gated.xy_i, gated.xy_j)
    few = everything.select(np.flatnonzero(~seen)[:5])
    ends = [v.reshape(-1, 24)[(xy[:, 1] * 60 + xy[:, 0]).astype(int)] for v, xy in ((i, few.xy_i), (j, few.xy_j))]
    assert similar_enough(ends[0], ends[1], 0.1).all()  # five matches tell nothing about one another


def test_a_rejected_prediction_has_no_matches() -> None:
    view = make_view(np.ones((20, 20), bool))
    rejected = replace(permuted_pair(view.mask, view.mask), rejected="no overlap")
    assert len(match_prediction(rejected, view, view, CONFIG)) == 0


def test_filter_keeps_pixels_exactly_on_the_limit() -> None:
    view = make_view(np.ones((20, 30), bool))
    xy = np.array([[3, 3], [26, 16], [2.9, 5], [26.1, 5], [5, 16.2]], np.float32)
    kept = filter_matches(PairMatches(xy, xy, np.ones(5, np.float32)), view, view, 3)
    np.testing.assert_array_equal(kept.xy_i, xy[:2])


def test_devices_that_cannot_match_are_refused() -> None:
    view = make_view(np.ones((20, 20), bool))
    prediction = permuted_pair(view.mask, view.mask)
    for name in ("mps", "abacus", "cuda:77"):
        with pytest.raises(InputError, match=f"device '{name}'"):
            match_prediction(prediction, view, view, replace(CONFIG, device=name))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="do not fit a mask"):
        PixelFeatures.of(np.zeros((4, 5, 3)), np.ones((5, 4), bool))


_MEMORY = """
import resource, sys
import numpy as np, torch
from sparse_ga.config import MatchConfig
from sparse_ga.matching.reciprocal import PixelFeatures, reciprocal_matches
torch.set_num_threads(1)
height, width, step, dim = map(int, sys.argv[1:])
metric = "l2" if dim == 3 else "dot"
rng = np.random.default_rng(0)
d = np.empty((height, width, dim), np.float32)
for row in d:
    row[:] = rng.standard_normal(row.shape, np.float32)
def match(d, step):
    mask = np.ones(d.shape[:2], bool)
    config = MatchConfig(subsample=step, max_rounds=2)
    reciprocal_matches(PixelFeatures.of(d, mask), PixelFeatures.of(d, mask), config, metric)
match(d[:64, :64], 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
match(d, step)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dim", [24, 3])
@pytest.mark.parametrize(("height", "width", "step"), [(384, 512, 8), (1000, 1040, 100), (2250, 3000, 200)])
def test_memory_stays_under_300_mb(height: int, width: int, step: int, dim: int) -> None:
    """Descriptors, and 3D points: just below the number of rows that a k-d tree may hold, and far above."""
    command = [sys.executable, "-c", _MEMORY, *map(str, (height, width, step, dim))]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 300
