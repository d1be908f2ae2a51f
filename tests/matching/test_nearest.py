"""Nearest neighbours against the definition: a double-precision loop over all rows, ties to the lowest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_ga.matching.nearest import BlockedNeighbours, Metric, TreeNeighbours, neighbours
from sparse_ga.products import Array

KINDS = ("random", "integers", "repeated", "three_values", "far_away", "tiny", "outlier")


def brute_force(queries: Array, rows: Array, metric: Metric) -> Array:
    """The definition, written without the module under test."""
    answer = np.empty(len(queries), np.int64)
    for n, query in enumerate(queries.astype(np.float64)):
        score = np.zeros(len(rows))
        for q, x in zip(query, rows.astype(np.float64).T, strict=True):
            score = score + (q * x if metric == "dot" else -((q - x) ** 2))
        answer[n] = score.argmax()
    return answer


def make_rows(kind: str, dim: int, dtype: type) -> tuple[Array, Array]:
    rng = np.random.default_rng(dim)
    rows, queries = rng.normal(size=(1500, dim)), rng.normal(size=(40, dim))
    if kind == "integers":
        rows, queries = np.round(rows), np.round(queries)
    if kind == "repeated":
        rows[700:1400] = rows[:700]
    if kind == "three_values":
        rows = rows[rng.integers(0, 3, len(rows))]
        queries[:3] = 0
    if kind == "far_away":
        rows, queries = rows + 1e4, queries + 1e4
    if kind == "tiny":
        rows, queries = rows * 1e-25, queries * 1e-25
    if kind == "outlier":
        rows[3] *= 1e6
        queries[1] *= 1e6
    return queries.astype(dtype), rows.astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [3, 24])
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_equals_brute_force(kind: str, dtype: type, dim: int, metric: Metric) -> None:
    queries, rows = make_rows(kind, dim, dtype)
    expected = brute_force(queries, rows, metric)
    np.testing.assert_array_equal(BlockedNeighbours(rows, metric=metric).nearest(queries), expected)
    np.testing.assert_array_equal(neighbours(rows, metric=metric).nearest(queries), expected)


@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["random", "integers", "repeated", "outlier"])
def test_the_first_pass_dtype_does_not_change_the_result(compute: torch.dtype, kind: str) -> None:
    queries, rows = make_rows(kind, 24, np.float32)
    found = BlockedNeighbours(rows, compute=compute).nearest(queries)
    np.testing.assert_array_equal(found, brute_force(queries, rows, "dot"))


def test_near_ties_below_single_precision_are_settled_in_double() -> None:
    rng = np.random.default_rng(5)
    base = rng.normal(size=24)
    rows = base * (1 + 1e-12 * rng.permutation(4000)[:, None])  # (4000, 24) float64, all equal in float32
    queries = np.stack([base, -base])
    assert len(np.unique(rows.astype(np.float32), axis=0)) < 100
    expected = brute_force(queries, rows, "dot")
    np.testing.assert_array_equal(BlockedNeighbours(rows).nearest(queries), expected)


def test_more_points_than_a_tree_may_hold_are_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, rows = make_rows("repeated", 3, np.float32)
    assert isinstance(neighbours(rows, metric="l2"), TreeNeighbours)
    monkeypatch.setattr("sparse_ga.matching.nearest._TREE_ROWS", len(rows) - 1)
    blocks = neighbours(rows, metric="l2")
    assert isinstance(blocks, BlockedNeighbours)
    assert isinstance(neighbours(rows, np.arange(len(rows) - 1), "l2"), TreeNeighbours)
    np.testing.assert_array_equal(blocks.nearest(queries), brute_force(queries, rows, "l2"))


def test_a_sphere_of_points_around_the_query_is_settled() -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(2000, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = np.concatenate([np.zeros((1, 3)), rows[5:6] * 2])
    np.testing.assert_array_equal(TreeNeighbours(rows).nearest(queries), brute_force(queries, rows, "l2"))


def test_blocks_of_any_number_give_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, rows = make_rows("repeated", 24, np.float32)
    expected = brute_force(queries, rows, "dot")
    monkeypatch.setattr("sparse_ga.matching.nearest._BLOCK_BYTES", 64 * 24 * 4)
    for cache in (0, 1 << 30):
        monkeypatch.setattr("sparse_ga.matching.nearest._CACHE_BYTES", cache)
        np.testing.assert_array_equal(BlockedNeighbours(rows).nearest(queries), expected)


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("dim", [3, 8])
def test_rows_restrict_the_search_and_answers_are_positions(metric: Metric, dim: int) -> None:
    queries, rows = make_rows("random", dim, np.float32)
    chosen = np.sort(np.random.default_rng(1).choice(len(rows), 130, replace=False))
    rows[np.setdiff1d(np.arange(len(rows)), chosen)] = np.nan  # must never be looked at
    found = neighbours(rows, chosen, metric).nearest(queries)
    np.testing.assert_array_equal(found, brute_force(queries, rows[chosen], metric))


@pytest.mark.parametrize("search", [BlockedNeighbours, TreeNeighbours])
def test_empty_and_invalid_inputs(search: type) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3))
    assert search(rows).nearest(np.zeros((0, 3))).shape == (0,)
    with pytest.raises(ValueError, match="empty set"):
        search(rows[:0]).nearest(rows)
    with pytest.raises(ValueError, match="NaN"):
        search(rows).nearest(rows * np.nan)
    with pytest.raises(ValueError, match="NaN"):
        search(np.where(rows > 0, rows, np.inf))
    np.testing.assert_array_equal(search(rows[:1]).nearest(rows), np.zeros(5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compute", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_gives_the_same(compute: torch.dtype) -> None:
    queries, rows = make_rows("repeated", 24, np.float32)
    found = BlockedNeighbours(rows, device="cuda", compute=compute).nearest(queries)
    np.testing.assert_array_equal(found, brute_force(queries, rows, "dot"))
