"""From edges to one similarity per view: consistent edges, components, joint solve, and who may count as registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparse_ga.alignment.averaging import EdgeSet, average, best_tree_start, edge_residuals
from sparse_ga.alignment.gauge import suspect_poses
from sparse_ga.alignment.known_poses import KnownPoses, depth_of_centre, frame_from_given
from sparse_ga.alignment.pair_geometry import PairEdge
from sparse_ga.alignment.viewgraph import (
    TieEvidence,
    component_labels,
    confirmed_members,
    find_triplets,
    hierarchical_tree,
    largest_component,
    spanning_tree,
    triplet_support,
)
from sparse_ga.config import Align3dConfig
from sparse_ga.geometry.transforms import inverse, make, rotation_angle_deg
from sparse_ga.products import Array, View

_MIN_SUPPORT = 0.3  # an edge whose triplets close less often than this is wrong
TRIPLETS, JOINT, GIVEN = (
    "rotation disagrees with the pair's triplets",
    "disagrees with the joint alignment",
    "disagrees with the given poses",
)
"""Why a pair whose own geometry is sound is dropped: it contradicts others."""
CONTRADICTING = "its pairs contradict each other"
SMALLER, UNPOSED = "in a smaller component", "tied to no photograph with a given pose"
UNUSED_POSE = "no match ties its given pose to another photograph"
VAGUE = "a single pair with few matches ties it to the others, which tells its pose too badly"


@dataclass(frozen=True)
class GraphSolution:
    """World-from-view similarities of the registered views; identity, and a reason, for the others.

    `contradicted` is the share, by score, of the verified pairs between registered views that were dropped.
    """

    world_from_view: Array  # (N, 4, 4)
    registered: Array  # (N,) bool
    reasons: tuple[str, ...]  # (N,)
    dropped: tuple[str, ...]  # "name_i | name_j | why"
    contradicted: float
    suspects: tuple[str, ...]  # views whose given pose most of their pairs contradict

    def because(self, views: Array, reason: str) -> GraphSolution:
        """The same with this reason for those of the `views` (N,) bool that are not registered."""
        told = zip(self.reasons, views & ~self.registered, strict=True)
        return replace(self, reasons=tuple(reason if here else before for before, here in told))


def tied_to_given(edges: Sequence[PairEdge], known: KnownPoses) -> bool:
    """Whether a verified pair ties a view to one whose given pose fixes the scale, or no pair ties any views."""
    verified = [(e.i, e.j) for e in edges if e.verified]
    return not known.metric or not verified or bool(known.given[np.array(verified)].any())


@dataclass(frozen=True)
class _Graph:
    """All edges with the judgement on each."""

    edges: EdgeSet
    verified: Array  # (P,) bool
    kept: Array  # (P,) bool, after the triplet test and the test against given poses
    support: Array  # (P,) in [0, 1]
    why: tuple[str, ...]  # (P,) reason of edges not kept


def solve_graph(
    views: Sequence[View],
    edges: Sequence[PairEdge],
    known: KnownPoses,
    dropped: Sequence[str],
    config: Align3dConfig,
) -> GraphSolution:
    """Similarities of the largest component, or of all components with given poses if these fix the scale.

    `dropped` are the pairs without an edge ("name_i | name_j | why"); pairs that fail here are added to them.
    """
    count = len(views)
    graph = _judge(edges, known, config)
    names = [view.name for view in views]
    lost = [(e, why) for e, why in enumerate(graph.why) if why and graph.verified[e]]
    world_from_view = np.tile(np.eye(4), (count, 1, 1))
    registered, cut = np.zeros(count, bool), np.full(count, "", object)
    label = component_labels(count, graph.edges.select(graph.kept & graph.verified).pairs)
    for members in _chosen_components(count, graph, known):
        solved, good = _solve_component(graph, members, known, config)
        world_from_view[members] = solved[members]
        inside = members[graph.edges.pairs].all(-1) & graph.kept & graph.verified
        lost += [(int(e), JOINT) for e in np.flatnonzero(inside & ~good)]
        contradicting = members[graph.edges.pairs].all(-1) & graph.verified
        contradicting &= ~agreeing(solved, graph.edges, config.max_triplet_deg)
        vague = graph.edges.turn_sigma_deg > config.max_triplet_deg / 2  # too badly known for a triplet to test it
        evidence = TieEvidence(graph.edges.pairs, graph.edges.weights, good & graph.verified, contradicting, vague)
        confirmed = confirmed_members(members, evidence, known.given & known.metric)
        registered |= confirmed
        cut[members & ~confirmed] = VAGUE
        cut[np.intersect1d(graph.edges.pairs[contradicting], np.flatnonzero(members & ~confirmed))] = CONTRADICTING
    if known.metric:
        world_from_view, registered = _place_alone(world_from_view, registered, known, views)
    pairs = graph.edges.pairs
    texts = [*dropped, *(f"{names[pairs[e, 0]]} | {names[pairs[e, 1]]} | {why}" for e, why in lost)]
    world_from_view[~registered] = np.eye(4)
    reasons = _reasons(views, registered, label, cut, texts, known)
    contradicted, suspects = _contradicted(graph, registered, lost, known.given & known.metric)
    suspected = tuple(names[n] for n in np.flatnonzero(suspects))
    return GraphSolution(world_from_view, registered, reasons, tuple(texts), contradicted, suspected)


def _contradicted(
    graph: _Graph, registered: Array, lost: Sequence[tuple[int, str]], held: Array
) -> tuple[float, Array]:
    """Share by weight of the verified edges between registered views that are among the `lost`, and which views (N,)
    bool have a `held` (N,) pose that most of theirs contradict."""
    inside = registered[graph.edges.pairs].all(-1) & graph.verified
    gone = np.zeros(len(inside), bool)
    gone[[e for e, _ in lost]] = True
    weights = graph.edges.weights[inside]
    suspects = suspect_poses(graph.edges.pairs[inside], weights, gone[inside], held & registered)
    total = weights.sum()
    return float(graph.edges.weights[inside & gone].sum() / total) if total > 0 else 0.0, suspects


def _judge(edges: Sequence[PairEdge], known: KnownPoses, config: Align3dConfig) -> _Graph:
    """Test edges against given poses and against their triplets."""
    edge_set = EdgeSet(
        np.array([(e.i, e.j) for e in edges], np.int64).reshape(-1, 2),
        np.array([e.i_from_j for e in edges]).reshape(-1, 4, 4),
        np.array([e.weight for e in edges]),
        np.array([e.precision for e in edges]).reshape(-1, 7, 7),
    )
    tolerance = edge_set.tolerance_deg(config.max_triplet_deg)
    i, j = edge_set.pairs.T
    both = known.given[i] & known.given[j]
    truth = inverse(known.world_from_cam[i]) @ known.world_from_cam[j]
    off = rotation_angle_deg(np.swapaxes(edge_set.rotations, -1, -2) @ truth[:, :3, :3])
    against = both & (off > 1.5 * tolerance)
    triplets = find_triplets(edge_set.pairs, edge_set.rotations)
    support = triplet_support(triplets, edge_set.weights * ~against, tolerance)
    lonely = (support < _MIN_SUPPORT) & ~both
    why = [GIVEN if a else TRIPLETS if t else "" for a, t in zip(against, lonely)]
    verified = np.array([e.verified for e in edges], bool)
    return _Graph(edge_set, verified, ~(against | lonely), np.where(both, 1.0, support), tuple(why))


def _chosen_components(count: int, graph: _Graph, known: KnownPoses) -> list[Array]:
    """Members (N,) bool of the components to solve."""
    strong = graph.edges.select(graph.kept & graph.verified)
    largest, label = largest_component(count, strong.pairs, strong.weights)
    if not known.metric:
        return [largest] if largest.any() else []
    parts = [label == value for value in np.unique(label)]
    return [part for part in parts if part.sum() > 1 and (part & known.given).any()]


def _solve_component(graph: _Graph, members: Array, known: KnownPoses, config: Align3dConfig) -> tuple[Array, Array]:
    """World-from-view similarities (N, 4, 4) of one component, and which edges (P,) agree with them."""
    count = len(members)
    inside = members[graph.edges.pairs].all(-1) & graph.kept
    index = np.full(count, -1)
    index[members] = np.arange(members.sum())
    chosen = graph.edges.select(inside)
    size = int(members.sum())
    local = chosen.among(index, size)
    local = replace(local, weights=chosen.weights * graph.support[inside])
    strong = local.select(graph.verified[inside])
    trust = strong.weights / (1 + (strong.turn_sigma_deg / config.max_triplet_deg) ** 2)
    strong = replace(strong, weights=trust)
    build = hierarchical_tree if config.tree == "hierarchical" else spanning_tree
    root = int(np.argmax(np.bincount(strong.pairs.ravel(), strong.weights.repeat(2), minlength=size)))
    tree = build(size, strong.pairs, strong.weights)
    start = best_tree_start(size, strong, tree, root, config.max_triplet_deg)
    free = np.ones((size, 7), bool)
    free[root] = False
    solved = np.tile(np.eye(4), (count, 1, 1))
    solved[members] = average(start, local, free)[0]
    if (members & known.given).any():
        solved = _into_given_frame(solved, members, local, known)
    good = np.zeros(len(inside), bool)
    good[inside] = agreeing(solved[members], local, config.max_triplet_deg)
    return solved, good


def agreeing(world_from_view: Array, edges: EdgeSet, max_error_deg: float) -> Array:
    """Which edges (P,) bool the views' similarities agree with, in rotation, position and scale."""
    residual = edge_residuals(world_from_view, edges)
    turn = np.degrees(np.linalg.norm(residual[:, :3], axis=-1))
    shift = np.linalg.norm(residual[:, 4:], axis=-1)
    return (turn < 1.5 * edges.tolerance_deg(max_error_deg)) & (shift < 0.4) & (np.abs(residual[:, 3]) < 0.7)


def _into_given_frame(solved: Array, members: Array, local: EdgeSet, known: KnownPoses) -> Array:
    """The component in the frame of its given poses; with these exact, the others are solved again around them."""
    result = solved.copy()
    result[members] = frame_from_given(solved, members, known) @ solved[members]
    fixed = np.flatnonzero(members & known.given)
    scale = np.cbrt(np.linalg.det(result[fixed, :3, :3]))
    result[fixed] = make(known.world_from_cam[fixed, :3, :3], known.world_from_cam[fixed, :3, 3], scale)
    if not known.metric:
        return result
    free = np.ones((int(members.sum()), 7), bool)
    given = known.given[members]
    free[given] = False
    free[given, 3] = True
    result[members] = average(result[members], local, free)[0]
    return result


def _place_alone(
    world_from_view: Array, registered: Array, known: KnownPoses, views: Sequence[View]
) -> tuple[Array, Array]:
    """Given poses of views that no pair ties to others: registered where they are, at the object's depth."""
    result, alone = world_from_view.copy(), known.given & ~registered
    for n in np.flatnonzero(alone).tolist():
        alone[n] = views[n].mask.any()
        pose = known.world_from_cam[n]
        result[n] = make(pose[:3, :3], pose[:3, 3], depth_of_centre(known, n))
    return result, registered | alone


def about_groups(reasons: Sequence[str]) -> tuple[str, ...]:
    """What `reasons` for missing views say of the set as a whole: which of its groups was reconstructed."""
    said = {
        SMALLER: "the photographs fall into groups that nothing ties together; the largest was reconstructed",
        UNUSED_POSE: "given poses are not used: no match ties one of their photographs to any other",
        UNPOSED: "nothing ties some photographs to one with a given pose; only those that are tied were reconstructed",
    }
    return tuple(text for start, text in said.items() if any(reason.startswith(start) for reason in reasons))


def _reasons(
    views: Sequence[View], registered: Array, label: Array, cut: Array, dropped: Sequence[str], known: KnownPoses
) -> tuple[str, ...]:
    """Why each view is not registered, "" where it is; `cut` (N,) says so of those whose ties were not confirmed."""
    reasons = []
    where = UNPOSED if known.metric else SMALLER
    for n, view in enumerate(views):
        mates = [views[m].name for m in np.flatnonzero((label == label[n]) & ~registered).tolist() if m != n]
        of_view = [text.rsplit(" | ", 1)[1] for text in dropped if view.name in text.split(" | ")[:2]]
        if registered[n]:
            reasons.append("")
        elif not view.mask.any():
            reasons.append("the mask is empty")
        elif cut[n]:
            reasons.append(str(cut[n]))
        elif mates:
            reasons.append(f"{where}, with {', '.join(mates[:5])}")
        elif of_view:
            reasons.append("no usable pair: " + "; ".join(sorted(set(of_view))[:3]))
        else:
            reasons.append("no pair with this view")
    return tuple(reasons)
