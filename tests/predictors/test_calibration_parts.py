"""Pairs that share keypoints: grouped, and brought to one scale, without a table of all pairs and all keypoints."""

from __future__ import annotations

import tracemalloc

import numpy as np

from sparse_ga.geometry.two_view import RelativePose
from sparse_ga.predictors.self_calibration import KeypointMatches, Keypoints, _PairGeometry, _parts


def make_keypoints(views: int, each: int) -> list[Keypoints]:
    return [Keypoints(np.zeros((each, 2)), np.ones(each)) for _ in range(views)]


def make_pair(view_i: int, view_j: int, each: int, matches: int, rng: np.random.Generator) -> _PairGeometry:
    """A pair whose matches meet some keypoints twice, and of whose depths some are not finite."""
    index_i, index_j = rng.integers(0, each, (2, matches))
    depth_i, depth_j = np.exp(rng.normal(size=(2, matches)))
    depth_i[:3], depth_j[:2] = (np.nan, np.inf, -1.0), np.nan
    found = KeypointMatches(view_i, view_j, index_i, index_j, np.ones(matches, bool))
    pose = RelativePose(np.eye(3), np.array([1.0, 0, 0]), np.ones(matches, bool), 0.0)
    return _PairGeometry(found, pose, depth_i, depth_j)


def dense_table(pairs: list[_PairGeometry], keypoints: list[Keypoints]) -> np.ndarray:
    """Logarithms of the depths (pairs, keypoints) that pairs give to keypoints, NaN where none: the plain way."""
    start = np.concatenate([[0], np.cumsum([len(k.xy) for k in keypoints])])
    depth = np.full((len(pairs), start[-1]), np.nan)
    for row, pair in enumerate(pairs):
        m = pair.matches
        for view, index, values in ((m.view_i, m.index_i, pair.depth_i), (m.view_j, m.index_j, pair.depth_j)):
            for k, value in zip(index, values, strict=True):
                depth[row, start[view] + k] = np.log(np.maximum(value, 1e-9))
    return np.where(np.isfinite(depth), depth, np.nan)


def test_groups_and_scales_are_those_of_the_dense_table() -> None:
    rng = np.random.default_rng(0)
    keypoints = make_keypoints(9, 60)
    ties = [(0, 1), (1, 2), (0, 2), (2, 3), (4, 5), (5, 6), (7, 8)]  # three groups
    pairs = [make_pair(i, j, 60, 40, rng) for i, j in ties]
    groups = _parts(pairs, keypoints)
    table = dense_table(pairs, keypoints)
    rows = [[next(n for n, p in enumerate(pairs) if p is pair) for pair, _ in group] for group in groups]
    assert sorted(map(tuple, rows)) == [(0, 1, 2, 3), (4, 5), (6,)]
    for group, members in zip(groups, rows, strict=True):
        scale = {n: value for n, (_, value) in zip(members, group, strict=True)}
        ratios = {
            (a, b): np.nanmedian(table[a] - table[b])
            for a in members
            for b in members
            if a != b and np.isfinite(table[a] - table[b]).sum() >= 5
        }
        exact = {pair for pair, ratio in ratios.items() if scale[pair[1]] == scale[pair[0]] + ratio}
        assert len(exact) >= len(members) - 1  # the edges of the spanning tree
        assert min(abs(value) for value in scale.values()) == 0.0


def test_many_pairs_take_little_memory() -> None:
    rng = np.random.default_rng(1)
    keypoints = make_keypoints(24, 4000)
    pairs = [make_pair(i, j, 4000, 150, rng) for i in range(24) for j in range(i + 1, 24)]
    tracemalloc.start()
    try:
        _parts(pairs, keypoints)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6  # a table of all pairs and keypoints takes 212 MB
