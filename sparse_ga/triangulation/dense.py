"""The dense part of the triangulation: depth maps of all views, checked, refined and fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparse_ga.config import TriangulateConfig
from sparse_ga.products import Alignment, CanonicalView, View
from sparse_ga.triangulation.depth import (
    FEWEST_SAMPLES,
    DepthSamples,
    DepthView,
    anchor_depth_map,
    behind_hull,
    correct_depth,
    normalised_confidence,
    rim_depths,
    track_depths,
)
from sparse_ga.triangulation.fusion import Fusion, depth_neighbours, fuse, inspect_masks, object_diameter
from sparse_ga.triangulation.masks import MaskCheck
from sparse_ga.triangulation.planes import search_planes
from sparse_ga.triangulation.silhouettes import carve
from sparse_ga.triangulation.sparse import SparseResult
from sparse_ga.triangulation.stereo import SWEEPS, refine_depths
from sparse_ga.work import advance, expect

_PASSES = 7  # over all views besides the sweeps: anchors, masks, hull, planes, agreement; cleaning, mesh are as long


def dense_cloud(
    views: Sequence[View],
    canonical: Sequence[CanonicalView],
    alignment: Alignment,
    sparse: SparseResult,
    config: TriangulateConfig,
) -> Fusion:
    """The fused cloud of the registered views.

    Depth maps start from the anchors and are brought to the tracks. With them the masks are checked, before the visual
    hull of the masks is used for the depth along the outlines and as a bound. Views with given poses are registered
    also without matches, at a guessed depth, which counts only once the outlines tell its scale; without any tracks
    there is no hull to tell it.
    """
    expect((_PASSES + len(SWEEPS)) * int(alignment.registered.sum()))
    diameter = object_diameter(sparse.tracks.points)
    depths = anchor_views(views, canonical, alignment, sparse)
    if diameter <= 0:
        depths = [view.without_depth() for view in depths]
    check = inspect_masks(depths, sparse.rig, alignment.names, config)
    depths = bound_by_hull(depths, check, sparse)
    if config.dense_method == "stereo" and diameter > 0:
        neighbours = depth_neighbours(depths, sparse.rig)
        images = [view.image for view in views]
        depths = search_planes(depths, images, neighbours, diameter)
        depths = refine_depths(depths, images, neighbours, diameter)
    return fuse(depths, sparse.rig, check, config)


def anchor_views(
    views: Sequence[View], canonical: Sequence[CanonicalView], alignment: Alignment, sparse: SparseResult
) -> list[DepthView]:
    """Depth maps of the registered views from their anchors, corrected by the tracks."""
    rig = sparse.rig
    registered = [int(n) for n in np.nonzero(alignment.registered)[0]]
    confidences = normalised_confidence([canonical[n].confidence for n in registered])
    result = []
    for n, confidence in zip(registered, confidences, strict=True):
        rows = slice(int(alignment.anchor_start[n]), int(alignment.anchor_start[n + 1]))
        depth = anchor_depth_map(canonical[n], alignment.anchor_depth[rows])
        depth = correct_depth(depth, track_depths(rig, sparse.tracks, n)).astype(np.float32)
        result.append(DepthView(n, depth, confidence, views[n].mask, rig.intrinsics[n], rig.world_from_cam[n]))
        advance()
    return result


def bound_by_hull(depths: list[DepthView], check: MaskCheck, sparse: SparseResult) -> list[DepthView]:
    """Depth maps that meet the visual hull of the mended masks along the outlines and nowhere lie before it.

    The views keep the masks of their photographs: where a mask was mended, the photograph may show a finger. Depths
    whose scale neither tracks nor outlines tell are dropped.
    """
    diameter = object_diameter(sparse.tracks.points)
    if diameter <= 0:
        return depths
    rig = sparse.rig
    hull = carve(rig, check.votes, sparse.tracks.points)
    result = []
    for view in depths:
        depth = np.where(check.depths[view.index], view.depth, 0).astype(np.float64)
        outline = check.depths[view.index] | (check.votes[view.index] & ~view.mask)  # a finger's is not the object's
        rim = rim_depths(rig, view.index, outline, hull, diameter)
        samples = DepthSamples.join([track_depths(rig, sparse.tracks, view.index), rim])
        known = len(samples.on(depth).depth) >= FEWEST_SAMPLES
        depth = behind_hull(correct_depth(depth, samples), rig, view.index, hull).astype(np.float32)
        result.append(replace(view, depth=depth) if known else view.without_depth())
        advance()
    return result


def bare_views(views: Sequence[View], sparse: SparseResult) -> list[DepthView]:
    """The registered views without any depth."""
    rig = sparse.rig
    nothing = [np.zeros(view.mask.shape, np.float32) for view in views]
    return [
        DepthView(int(n), nothing[n], nothing[n], views[n].mask, rig.intrinsics[n], rig.world_from_cam[n])
        for n in np.nonzero(rig.registered)[0].tolist()
    ]
