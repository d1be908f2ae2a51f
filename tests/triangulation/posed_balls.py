"""Views of a ball with all cameras given, and exact matches: everything `triangulate_views` takes, at little cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from balls import ball_views, painted
from oracle_inputs import canonical_view, on_mask

from sparse_ga.config import TriangulateConfig
from sparse_ga.geometry.cameras import project
from sparse_ga.geometry.transforms import apply
from sparse_ga.products import Alignment, CanonicalView, PairMatches, Reconstruction, VerifiedMatches, View
from sparse_ga.triangulation import MatchedPairs, triangulate_views
from sparse_ga.triangulation.consistency import sample_depth
from sparse_ga.triangulation.depth import DepthView

SIZE = (96, 60)
COUNT = 6


@dataclass(frozen=True, eq=False)
class Case:
    """Photographs of a ball, all cameras given, and what is known of them."""

    views: list[View]
    canonical: list[CanonicalView]
    alignment: Alignment
    pairs: list[tuple[int, int]]
    matches: list[VerifiedMatches]


def match(view: DepthView, other: DepthView) -> VerifiedMatches:
    """Every third pixel of `view` with where its point is seen in `other`."""
    xy = view.pixels()[::3]
    cam = apply(other.cam_from_world, view.world_points()[::3])
    there, front = project(other.intrinsics, cam)
    there = np.where(front[:, None], np.rint(there * 1024) / 1024, -9.0)  # float32 moves these without rounding
    seen = on_mask(there, other.mask) & (np.abs(sample_depth(other, there) / cam[:, 2] - 1) < 0.005)
    matches = PairMatches(xy[seen].astype(np.float32), there[seen].astype(np.float32), np.ones(seen.sum(), np.float32))
    return VerifiedMatches(matches, 1.0, "predictor")


def make_case(share: float = 0.9) -> Case:
    """A ball that fills a `share` of small photographs: from 0.6 on it reaches beyond their upper and lower borders."""
    rig, depths = ball_views(COUNT, SIZE, share)
    names = tuple(f"{n}.png" for n in range(COUNT))
    views = [
        View(name, painted(depth), depth.mask, k, np.eye(3), SIZE, name, "given", pose)
        for name, depth, k, pose in zip(names, depths, rig.intrinsics, rig.world_from_cam)
    ]
    canonical = [
        canonical_view(v.name, d.depth, d.confidence, k[0, 0]) for v, d, k in zip(views, depths, rig.intrinsics)
    ]
    alignment = Alignment(
        names,
        rig.registered,
        rig.world_from_cam,
        rig.intrinsics,
        np.concatenate([view.anchor_depth for view in canonical]).astype(float),
        np.cumsum([0, *(len(view.anchor_xy) for view in canonical)]).astype(np.int64),
        ("",) * COUNT,
        metric_frame=True,
    )
    pairs = [(i, j) for i in range(COUNT) for j in range(COUNT) if i != j]
    return Case(views, canonical, alignment, pairs, [match(depths[i], depths[j]) for i, j in pairs])


def run(case: Case, photographs: Sequence[View], method: str) -> Reconstruction:
    return triangulate_views(
        case.views,
        case.canonical,
        case.alignment,
        MatchedPairs(case.pairs, case.matches.__getitem__),
        lambda n: (photographs[n].image, photographs[n].mask),
        TriangulateConfig(mesh=False, dense_method=method),
    )
