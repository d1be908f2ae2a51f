"""Stage align3d: canonical views and one robust similarity per view (MASt3R-SfM, arXiv 2409.19152, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sparse_ga.alignment.anchors import Anchors, choose_anchors
from sparse_ga.alignment.canonical import CanonicalAccumulator, DepthRows
from sparse_ga.alignment.components import UNUSED_POSE, GraphSolution, solve_graph, tied_to_given
from sparse_ga.alignment.edges import CanonicalDepths, LoadMatches, PairTable, build_edges, on_foreground, usable
from sparse_ga.alignment.gauge import fix_gauge, status_of
from sparse_ga.alignment.intrinsics import CameraGroups, camera_groups, focal_votes, initial_intrinsics
from sparse_ga.alignment.known_poses import KnownPoses, known_poses
from sparse_ga.alignment.pair_geometry import in_canonical_units, similarity_from_pointmaps
from sparse_ga.config import Align3dConfig
from sparse_ga.geometry.focal import FocalVotes
from sparse_ga.products import Alignment, Array, CanonicalView, PairPrediction, Pointmap, View

LoadPrediction = Callable[[int], PairPrediction]


def align_views(
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    load_prediction: LoadPrediction,
    load_matches: LoadMatches,
    config: Align3dConfig,
) -> tuple[list[CanonicalView], Alignment]:
    """Canonical views of all `views` and their coarse alignment.

    `pairs` index `views`; `load_prediction(p)` and `load_matches(p)` give pair p and are called up to three times
    each, one pair at a time, so that memory does not grow with the number of pairs. The world frame is that of the
    first registered view with median anchor depth 1, or that of the known poses. Views that no verified chain of
    pairs ties to the largest component keep the identity as pose and a reason. Known poses that no pair ties to any
    other view are not used where other views are tied to each other.
    """
    table, anchors = _survey(views, pairs, load_matches, config)
    groups = camera_groups(views)
    rows, votes = _first_pass(views, pairs, load_prediction, table, anchors)
    intrinsics = initial_intrinsics(views, groups, votes)
    depths, raw = _second_pass(views, pairs, load_prediction, table, rows, intrinsics)
    edges, dropped = build_edges(pairs, depths, raw, load_matches, table, config)
    known = known_poses(views, intrinsics)
    used = known if tied_to_given(edges, known) else known.forgotten()  # a result in its own frame, rather than none
    solution = solve_graph(views, edges, used, dropped, config).because(known.given & ~used.given, UNUSED_POSE)
    return list(depths.canonical), fix_gauge(_product(views, depths, solution, used), views)


def _survey(
    views: Sequence[View], pairs: Sequence[tuple[int, int]], load_matches: LoadMatches, config: Align3dConfig
) -> tuple[PairTable, list[Anchors]]:
    """Scores and rejections of all pairs; anchors from where the matches of each view are."""
    hits = [np.zeros(view.mask.shape, np.int32) for view in views]
    score, count, rejected = np.zeros(len(pairs)), np.zeros(len(pairs), int), []
    for p, (i, j) in enumerate(pairs):
        if not usable((i, j), len(views)):
            rejected.append("not a pair of two views")
            continue
        verified = load_matches(p)
        keep = on_foreground(verified, views[i].mask, views[j].mask)
        score[p], count[p] = float(np.clip(np.nan_to_num(verified.score), 0.0, 1.0)), int(keep.sum())
        rejected.append(verified.rejected or "")
        if verified.rejected is None:
            for view, xy in ((i, verified.matches.xy_i[keep]), (j, verified.matches.xy_j[keep])):
                pixel = np.rint(xy).astype(int)
                np.add.at(hits[view], (pixel[:, 1], pixel[:, 0]), 1)
    anchors = [
        choose_anchors(view.mask, hit, config.anchor_px, config.anchors_per_block) for view, hit in zip(views, hits)
    ]
    return PairTable(score, count, tuple(rejected)), anchors


def _depth_score(table: PairTable, p: int) -> float:
    """Weight of a pair's point maps in the canonical views."""
    return 0.02 if table.rejected[p] else max(float(table.score[p]), 0.05)


def _first_pass(
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    load_prediction: LoadPrediction,
    table: PairTable,
    anchors: Sequence[Anchors],
) -> tuple[list[DepthRows], list[FocalVotes]]:
    """Depths at the anchors from the best pairs of every view, and votes for the focal lengths nobody gave."""
    groups = camera_groups(views)
    votes = focal_votes(views, groups)
    rows = [DepthRows(anchor) for anchor in anchors]
    for p, (i, j) in enumerate(pairs):
        score = _depth_score(table, p)
        if not usable((i, j), len(views)) or not (rows[i].wants(score) or rows[j].wants(score)):
            continue
        prediction = load_prediction(p)
        if prediction.rejected is not None:
            continue
        for n, pointmap in ((i, prediction.i_in_i), (j, prediction.j_in_j)):
            rows[n].add(pointmap, score)
            if views[n].intrinsics is None:
                _vote(votes[groups.of_view[n]], views[n], pointmap, groups, n, score)
    return rows, votes


def _vote(votes: FocalVotes, view: View, pointmap: Pointmap, groups: CameraGroups, n: int, score: float) -> None:
    y, x = np.nonzero(view.mask & (pointmap.confidence > 0))
    step = max(1, len(x) // 4000)
    y, x = y[::step], x[::step]
    xy = (np.stack([x, y], -1) - view.principal_point) / groups.scale[n]
    votes.add(xy, pointmap.points[y, x], score * pointmap.confidence[y, x].astype(float))


def _second_pass(
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    load_prediction: LoadPrediction,
    table: PairTable,
    rows: Sequence[DepthRows],
    intrinsics: Array,
) -> tuple[CanonicalDepths, dict[int, Array]]:
    """Canonical views, and per pair the similarity (4, 4) i from j that its point maps give."""
    merged = [CanonicalAccumulator(row.anchors, row.reference(), float(k[0, 0])) for row, k in zip(rows, intrinsics)]
    raw: dict[int, Array] = {}
    for p, (i, j) in enumerate(pairs):
        if not usable((i, j), len(views)):
            continue
        prediction = load_prediction(p)
        if prediction.rejected is not None:
            continue
        score = _depth_score(table, p)
        scale_i, known_i = merged[i].add(prediction.i_in_i, score)
        scale_j, known_j = merged[j].add(prediction.j_in_j, score)
        i_from_j, valid = similarity_from_pointmaps(prediction, views[i].mask, views[j].mask)
        if valid and known_i and known_j:
            raw[p] = in_canonical_units(i_from_j, scale_i, scale_j)
    canonical = [one.result(view.name, float(k[0, 0])) for one, view, k in zip(merged, views, intrinsics)]
    spread = np.array([one.reference.spread for one in merged])
    return CanonicalDepths(tuple(canonical), intrinsics, spread), raw


def _product(views: Sequence[View], depths: CanonicalDepths, solution: GraphSolution, known: KnownPoses) -> Alignment:
    """The solution as an `Alignment`, in whatever frame it was solved; poses that fix the frame are the given ones."""
    scale = np.cbrt(np.linalg.det(solution.world_from_view[:, :3, :3]))  # (N,)
    world_from_cam = solution.world_from_view.copy()
    world_from_cam[:, :3, :3] /= scale[:, None, None]
    of_view = [view.anchor_depth.astype(float) * s for view, s in zip(depths.canonical, scale)]
    registered = solution.registered
    given = registered & known.given & known.metric
    world_from_cam[given] = known.world_from_cam[given]  # bit for bit: the solver's similarities round them
    return Alignment(
        tuple(view.name for view in views),
        registered,
        world_from_cam,
        depths.intrinsics,
        np.concatenate([np.zeros(0), *of_view]),
        np.concatenate([[0], np.cumsum([len(d) for d in of_view])]).astype(np.int64),
        solution.reasons,
        solution.dropped,
        _status(solution),
        uncertainty_deg=np.zeros(len(views)),
        metric_frame=known.metric and bool(registered.any()),
    )


def _status(solution: GraphSolution) -> str:
    if not solution.registered.any():
        return "failed: no two views are tied together by enough consistent matches"
    return status_of(solution.contradicted, solution.suspects)
