"""Triplets, components and trees."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from sparse_ga.alignment.viewgraph import (
    MAX_TRIANGLES,
    TieEvidence,
    confirmed_members,
    find_triplets,
    hierarchical_tree,
    largest_component,
    spanning_tree,
    tree_order,
    triplet_support,
)
from sparse_ga.geometry.transforms import exp_so3
from sparse_ga.products import Array


def complete(count: int) -> Array:
    return np.array([(i, j) for i in range(count) for j in range(i + 1, count)])


def rotations_of(pairs: Array, seed: int = 0) -> Array:
    world = exp_so3(np.random.default_rng(seed).normal(size=(pairs.max() + 1, 3)))
    return np.swapaxes(world[pairs[:, 0]], 1, 2) @ world[pairs[:, 1]]


def test_triplets_of_true_rotations_close_in_any_orientation() -> None:
    pairs = complete(6)
    flipped = np.arange(len(pairs)) % 2 == 0
    rotations = rotations_of(pairs)
    rotations[flipped] = np.swapaxes(rotations[flipped], 1, 2)
    pairs[flipped] = pairs[flipped][:, ::-1]
    triplets = find_triplets(pairs, rotations)
    assert len(triplets.edges) == 20
    assert triplets.error_deg.max() < 1e-6


def test_triplets_are_all_those_of_a_small_graph() -> None:
    rng = np.random.default_rng(4)
    pairs = complete(30)[rng.permutation(435)[:300]]
    pairs[::3] = pairs[::3, ::-1]
    edge = {frozenset(pair): e for e, pair in enumerate(pairs.tolist())}
    wanted = set()
    for a, b, c in itertools.combinations(range(30), 3):
        sides = [edge.get(frozenset(side)) for side in ((a, b), (b, c), (a, c))]
        if None not in sides:
            wanted.add(tuple(sides))
    found = find_triplets(pairs, rotations_of(pairs)).edges.tolist()
    assert len(found) == len(wanted)
    assert {tuple(row) for row in found} == wanted


def test_triplets_of_many_views_with_few_pairs_take_little_memory() -> None:
    """Room for every pair of 3000 views would be 72 MB."""
    views = np.arange(3000)
    pairs = np.concatenate([np.stack([views[:-d], views[d:]], 1) for d in (1, 2, 3)])
    rotations = np.tile(np.eye(3), (len(pairs), 1, 1))
    tracemalloc.start()
    found = find_triplets(pairs, rotations)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.edges) == 2998 + 2 * 2997  # steps 1 + 1, 1 + 2 and 2 + 1
    assert peak < 30e6


@pytest.mark.slow
def test_triplets_of_a_complete_graph_grow_with_its_edges() -> None:
    """Bounded, the same every time, and enough of every edge to judge it by."""
    pairs = complete(200)
    rotations = rotations_of(pairs)
    rng = np.random.default_rng(1)
    wrong = rng.random(len(pairs)) < 0.3
    rotations[wrong] = exp_so3(rng.normal(size=(wrong.sum(), 3)) * 1.2 + 0.5) @ rotations[wrong]
    triplets = find_triplets(pairs, rotations)
    assert len(triplets.edges) <= MAX_TRIANGLES * len(pairs)
    assert np.bincount(triplets.edges.reshape(-1), minlength=len(pairs)).min() >= MAX_TRIANGLES
    assert len(np.unique(triplets.edges, axis=0)) == len(triplets.edges)
    np.testing.assert_array_equal(triplets.edges, find_triplets(pairs, rotations).edges)
    support = triplet_support(triplets, np.ones(len(pairs)), np.full(len(pairs), 5.0))
    assert support[~wrong].min() > 0.8
    assert support[wrong].max() < 0.2


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4])
def test_support_tells_wrong_edges_from_right_ones(share: float) -> None:
    pairs = complete(12)
    rotations = rotations_of(pairs)
    rng = np.random.default_rng(1)
    wrong = rng.permutation(len(pairs)) < share * len(pairs)
    rotations[wrong] = exp_so3(rng.normal(size=(wrong.sum(), 3)) * 1.2 + 0.5) @ rotations[wrong]
    support = triplet_support(find_triplets(pairs, rotations), np.ones(len(pairs)), np.full(len(pairs), 5.0))
    assert support[~wrong].min() > 0.8
    assert support[wrong].max() < 0.2


def test_edges_without_triplets_are_not_judged() -> None:
    pairs = np.array([[0, 1], [1, 2], [0, 2], [2, 3]])
    rotations = rotations_of(pairs)
    rotations[3] = np.eye(3)
    support = triplet_support(find_triplets(pairs, rotations), np.ones(4), np.full(4, 5.0))
    assert support[3] == 1.0
    none = triplet_support(find_triplets(pairs[3:], rotations[3:]), np.ones(1), np.full(1, 5.0))
    np.testing.assert_array_equal(none, [1.0])


def test_largest_component_prefers_size_then_weight() -> None:
    pairs = np.array([[0, 1], [2, 3], [3, 4], [5, 6], [6, 7]])
    nodes, label = largest_component(9, pairs, np.array([9.0, 1, 1, 2, 2]))
    np.testing.assert_array_equal(np.flatnonzero(nodes), [5, 6, 7])
    assert label[8] not in label[:8]
    assert not largest_component(4, np.zeros((0, 2), int), np.zeros(0))[0].any()


def test_spanning_tree_takes_the_strongest_edges_and_survives_repeats() -> None:
    pairs = np.array([[0, 1], [1, 0], [1, 2], [0, 2]])
    weights = np.array([0.2, 0.9, 0.8, 0.1])
    assert sorted(spanning_tree(3, pairs, weights)) == [1, 2]


def test_hierarchical_tree_joins_clusters_by_their_strongest_edge() -> None:
    pairs = np.array([[0, 1], [2, 3], [1, 2], [0, 3], [0, 2]])
    weights = np.array([0.9, 0.8, 0.3, 0.5, 0.1])
    assert sorted(hierarchical_tree(4, pairs, weights)) == [0, 1, 3]
    assert len(hierarchical_tree(1, np.zeros((0, 2), int), np.zeros(0))) == 0


@pytest.mark.parametrize("build", [spanning_tree, hierarchical_tree])
def test_trees_of_sparse_graphs_reach_every_view(build) -> None:
    rng = np.random.default_rng(0)
    pairs = np.array([(i, (i + k) % 30) for i in range(30) for k in (1, 2, 5)])
    tree = build(30, pairs, rng.random(len(pairs)))
    assert len(tree) == 29
    steps = tree_order(30, pairs, tree, 4)
    seen = {4}
    for parent, child, edge in steps:
        assert parent in seen
        assert set(pairs[edge]) == {parent, child}
        seen.add(child)
    assert seen == set(range(30))


def members_of(pairs: list[tuple[int, int]], vague: list[tuple[int, int]], posed: tuple[int, ...] = ()) -> list[int]:
    """Who stays of six views, all of whose pairs agree, if some know their rotation badly."""
    yes, no = np.ones(len(pairs), bool), np.zeros(len(pairs), bool)
    badly = np.array([pair in vague for pair in pairs], bool)
    given = np.isin(np.arange(6), posed)
    stay = confirmed_members(np.ones(6, bool), TieEvidence(np.array(pairs), yes.astype(float), yes, no, badly), given)
    return np.flatnonzero(stay).tolist()


def test_a_vague_pair_alone_ties_no_view() -> None:
    chain = [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (2, 4), (4, 5)]
    assert members_of(chain, []) == [0, 1, 2, 3, 4, 5]
    assert members_of(chain, [(4, 5)]) == [0, 1, 2, 3, 4]
    assert members_of([*chain, (3, 5)], [(4, 5), (3, 5)]) == [0, 1, 2, 3, 4, 5]  # two confirm each other
    assert members_of(chain, [(2, 3), (2, 4), (1, 2)]) == [0, 1, 2, 3, 4, 5]  # each is in a triangle
    assert members_of([(0, 1), (1, 2), (0, 2), (2, 3), (3, 4)], [(2, 3)]) == [0, 1, 2]  # and what hangs on it
    assert members_of([(0, 1)], [(0, 1)]) == []
    assert members_of(chain, [(4, 5)], posed=(0, 5)) == [0, 1, 2, 3, 4, 5]  # given poses need no confirmation
