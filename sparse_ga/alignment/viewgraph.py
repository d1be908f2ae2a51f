"""The view graph: consistency of triplets, components, and view trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial.distance import squareform

from sparse_ga.geometry.transforms import rotation_angle_deg
from sparse_ga.products import Array

MAX_TRIANGLES = 64  # of an edge that are looked at, beside those found from its neighbours
_CHUNK = 100_000  # triangles whose rotations are multiplied at once
MAX_AGAINST = 0.5  # of the weight of the one pair that ties two parts together


@dataclass(frozen=True)
class Triplets:
    """Triangles of a graph: edge indices and the rotation left over after going round."""

    edges: Array  # (T, 3) int64: edges ab, bc, ac of every triangle a < b < c
    error_deg: Array  # (T,)


def find_triplets(pairs: Array, rotations: Array) -> Triplets:
    """Triangles of the graph with edges `pairs` (P, 2), i != j, and `rotations` (P, 3, 3) i_from_j.

    All of them, but of an edge's triangles with views that come after both of its own no more than `MAX_TRIANGLES`,
    spread evenly over these views: time and memory are linear in the number of edges. Every edge is in that many
    triangles or in all that it has. Of several edges between two views the last counts.
    """
    low, high = pairs.min(1), pairs.max(1)
    forward = pairs[:, 0] < pairs[:, 1]
    low_from_high = np.where(forward[:, None, None], rotations, np.swapaxes(rotations, -1, -2))
    edges = _triangles(low, high)
    error_deg = np.zeros(len(edges))
    for start in range(0, len(edges), _CHUNK):
        ab, bc, ac = (low_from_high[edges[start : start + _CHUNK, k]] for k in range(3))  # (t, 3, 3)
        error_deg[start : start + _CHUNK] = rotation_angle_deg(ab @ bc @ np.swapaxes(ac, -1, -2))
    return Triplets(edges, error_deg)


def _triangles(low: Array, high: Array) -> Array:
    """Edges ab, bc, ac (T, 3) of the triangles a < b < c of edges from `low` (P,) to `high` (P,)."""
    size = int(high.max(initial=-1)) + 1
    number = {pair: e for e, pair in enumerate(zip(low.tolist(), high.tolist()))}
    ends, edges = np.array([*number], np.int64).reshape(-1, 2), np.array([*number.values()], np.int64)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    start = np.searchsorted(ends[order, 0], np.arange(size + 1))
    runs = [order[first:last] for first, last in pairwise(start)]  # every view's edges to later views
    found = [np.zeros((0, 3), np.int64)]
    from_a = np.full(size, -1, np.int64)  # edge from view a, by the other view
    for step, ((a, b), ab) in enumerate(number.items()):
        from_a[ends[runs[a], 1]] = edges[runs[a]]
        run = runs[b][from_a[ends[runs[b], 1]] >= 0]
        if len(run) > MAX_TRIANGLES:  # a start of its own for each edge, so that no view is left out by all
            run = run[np.sort((np.arange(MAX_TRIANGLES) * len(run) // MAX_TRIANGLES + step) % len(run))]
        found.append(np.stack([np.full(len(run), ab), edges[run], from_a[ends[run, 1]]], 1))
        from_a[ends[runs[a], 1]] = -1
    return np.concatenate(found)


def triplet_support(triplets: Triplets, weights: Array, max_error_deg: Array) -> Array:
    """How far each edge's triplets close, (P,) in [0, 1]; NaN-free, 1 for edges without triplets.

    A triplet fails when any of its edges is wrong, so a plain vote condemns good edges as soon as a third of all are
    wrong. Here a triplet counts as much as its two other edges are supported, iterated from `weights` (P,). It closes
    when it is off by less than the largest tolerance `max_error_deg` (P,) among its edges.
    """
    support = np.clip(weights.astype(float), 1e-3, None)
    good = triplets.error_deg < max_error_deg[triplets.edges].max(1, initial=0.0)
    counted = np.zeros(len(support), bool)
    counted[triplets.edges.reshape(-1)] = True
    for _ in range(10):
        closed, total = np.full(len(support), 1e-12), np.full(len(support), 1e-12)
        for k in range(3):
            others = support[triplets.edges[:, (k + 1) % 3]] * support[triplets.edges[:, (k + 2) % 3]]
            np.add.at(total, triplets.edges[:, k], others)
            np.add.at(closed, triplets.edges[:, k], others * good)
        support = np.where(counted, closed / total, 1.0)
    return support


def largest_component(count: int, pairs: Array, weights: Array) -> tuple[Array, Array]:
    """Nodes (N,) bool of the largest component of a graph, and every node's component (N,).

    Among components of one size the one with more edge weight wins. A single node is no component.
    """
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    if not len(pairs):
        return np.zeros(count, bool), label
    size = np.bincount(label).astype(float)
    weight = np.bincount(label[pairs[:, 0]], weights, minlength=len(size))
    best = int(np.lexsort((weight, size))[-1])
    return label == best, label


def spanning_tree(count: int, pairs: Array, weights: Array) -> Array:
    """Edges (K,) of a maximum spanning forest."""
    best: dict[tuple[int, int], int] = {}
    for e in np.argsort(-weights, kind="stable"):
        a, b = sorted(int(v) for v in pairs[e])
        best.setdefault((a, b), int(e))
    kept = np.array(sorted(best.values()), np.int64)
    cost = 2.0 - np.clip(weights[kept], 0.0, 1.0)
    graph = coo_matrix((cost, (pairs[kept, 0], pairs[kept, 1])), shape=(count, count)).tocsr()
    tree = minimum_spanning_tree(graph).tocoo()
    return np.array([best[min(a, b), max(a, b)] for a, b in zip(tree.row.tolist(), tree.col.tolist())], np.int64)


def hierarchical_tree(count: int, pairs: Array, weights: Array) -> Array:
    """Edges (K,) that join clusters of views bottom up (average linkage of pair scores), strongest edge first.

    Where two clusters that merge share no edge, the join is left to the maximum spanning tree.
    """
    distance = np.full((count, count), 1.0)
    clipped = np.clip(weights, 0.0, 1.0)
    distance[pairs[:, 0], pairs[:, 1]] = distance[pairs[:, 1], pairs[:, 0]] = 1.0 - clipped
    np.fill_diagonal(distance, 0.0)
    if count < 2:
        return np.zeros(0, np.int64)
    cluster = np.arange(count)
    merged = np.arange(count)  # connectivity by chosen edges
    chosen: list[int] = []
    for step, (a, b, _, _) in enumerate(linkage(squareform(distance, checks=False), "average")):
        ends = cluster[pairs]  # (P, 2)
        across = np.flatnonzero((np.sort(ends, 1) == np.sort([int(a), int(b)])).all(1))
        across = across[merged[pairs[across, 0]] != merged[pairs[across, 1]]]
        if len(across):
            chosen.append(int(across[np.argmax(weights[across])]))
            _join(merged, pairs[chosen[-1]])
        cluster[(cluster == int(a)) | (cluster == int(b))] = count + step
    for edge in spanning_tree(count, pairs, weights):
        if merged[pairs[edge, 0]] != merged[pairs[edge, 1]]:
            chosen.append(int(edge))
            _join(merged, pairs[edge])
    return np.array(chosen, np.int64)


def _join(label: Array, pair: Array) -> None:
    label[label == label[pair[1]]] = label[pair[0]]


def tree_order(count: int, pairs: Array, tree: Array, root: int) -> Sequence[tuple[int, int, int]]:
    """Steps (parent, child, edge) that reach every node of the tree from `root`, parents first."""
    edge_of = {}
    for e in tree:
        a, b = (int(v) for v in pairs[e])
        edge_of[a, b] = edge_of[b, a] = int(e)
    graph = coo_matrix((np.ones(len(tree)), (pairs[tree, 0], pairs[tree, 1])), shape=(count, count))
    order, parent = breadth_first_order(graph.tocsr(), root, directed=False)
    return [(int(parent[n]), int(n), edge_of[int(parent[n]), int(n)]) for n in order[1:]]


@dataclass(frozen=True)
class TieEvidence:
    """Pairs that agree with a solution and pairs that contradict it, each by its weight.

    `vague` pairs know their rotation too badly to be believed where nothing else confirms them.
    """

    pairs: Array  # (P, 2) int64
    weights: Array  # (P,)
    agree: Array  # (P,) bool
    against: Array  # (P,) bool
    vague: Array  # (P,) bool


def component_labels(count: int, pairs: Array) -> Array:
    """Component (N,) of every node."""
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def confirmed_members(members: Array, evidence: TieEvidence, posed: Array) -> Array:
    """Members (N,) bool that stay: tied to the largest part by agreeing pairs that outweigh contradicting ones.

    A pair that alone ties two parts of the graph is confirmed by nothing. It is believed only if it is not vague, and
    other pairs between the two parts do not contradict it with more than half of its weight. Parts with `posed` (N,)
    nodes, whose place is given, need no confirmation.
    """
    stay, kept = members.copy(), evidence.agree.copy()
    for _ in range(len(members)):
        kept &= stay[evidence.pairs].all(-1)
        against = evidence.against & stay[evidence.pairs].all(-1)
        stay = _main_part(component_labels(len(stay), evidence.pairs[kept]), stay, posed)
        kept &= stay[evidence.pairs].all(-1)
        tie = _weakest_tie(evidence, kept, against)
        if tie is None:
            return stay
        kept[tie] = False
    return stay


def _main_part(label: Array, members: Array, posed: Array) -> Array:
    """The members (N,) bool of the largest part, or of all parts with a given pose if there are any."""
    if (members & posed).any():
        return members & np.isin(label, np.unique(label[members & posed]))
    part = members & (label == int(np.argmax(np.bincount(label[members], minlength=len(label)))))
    return part if part.sum() > 1 else np.zeros(len(label), bool)


def _weakest_tie(evidence: TieEvidence, kept: Array, against: Array) -> int | None:
    """A pair that alone ties two parts and is vague, or which pairs `against` (P,) bool contradict; None if none is."""
    pairs, count = evidence.pairs, len(kept)
    crossing = pairs[against]
    if not kept.any() or not (len(crossing) or evidence.vague[kept].any()):
        return None
    nodes = int(pairs.max()) + 1
    candidates = np.arange(count)[kept]
    for e in candidates[spanning_tree(nodes, pairs[candidates], evidence.weights[candidates])]:
        rest = kept.copy()
        rest[e] = False
        label = component_labels(nodes, pairs[rest])
        a, b = label[pairs[e]]
        if a == b:
            continue
        ends = label[crossing]
        opposed = evidence.weights[against][(ends == a).any(-1) & (ends == b).any(-1)].sum()
        if evidence.vague[e] or opposed > MAX_AGAINST * evidence.weights[e]:
            return int(e)
    return None
