"""From aligned views to tracks, adjusted cameras, depth maps and one cloud: `triangulate_views`.

Works in working pixels throughout, those of the working images without their padding, and with the first registered
camera at the origin; the `Reconstruction` it returns is in source pixels, and in the frame of the alignment.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparse_ga.config import TriangulateConfig
from sparse_ga.products import Alignment, CanonicalView, Reconstruction, View
from sparse_ga.triangulation.assemble import assemble, track_cloud
from sparse_ga.triangulation.dense import bare_views, dense_cloud
from sparse_ga.triangulation.fusion import Fusion, LoadSource, object_diameter
from sparse_ga.triangulation.origin import about_origin, in_given_world, local_origin
from sparse_ga.triangulation.padding import PhotographedParts
from sparse_ga.triangulation.sparse import MatchedPairs, inside_masks, solve_sparse
from sparse_ga.triangulation.views import make_rig

__all__ = ["MatchedPairs", "triangulate_views"]


def triangulate_views(
    views: Sequence[View],
    canonical: Sequence[CanonicalView],
    alignment: Alignment,
    matched: MatchedPairs,
    load_source: LoadSource,
    config: TriangulateConfig,
) -> Reconstruction:
    """Tracks, bundle adjustment and the fused cloud of aligned views.

    `canonical` and `alignment` have one entry a view, in the order of `views`; `matched` are pairs of them with their
    matches, `load_source(n)` is the photograph of view n (H, W, 3) uint8 and its mask (H, W) bool. Only registered
    views take part, and only matches on their masks. With poses and intrinsics given by the user and held by the
    alignment this is plain triangulation: nothing moves the cameras. The depths of a view count where tracks tell their
    scale, or its outline within the visual hull around the tracks. Without tracks or depths the reconstruction is
    empty, never wrong.
    """
    given, origin = make_rig(views, alignment), local_origin(alignment)
    near, alignment = about_origin(views, alignment, origin)
    unmoved, parts = make_rig(near, alignment), PhotographedParts.of(views)
    local = _triangulate(
        parts.views(near),
        parts.canonical(canonical),
        parts.alignment(alignment),
        parts.matched(matched),
        load_source,
        config,
    )
    return in_given_world(parts.uncut(local, views), origin, unmoved, given)


def _triangulate(
    views: Sequence[View],
    canonical: Sequence[CanonicalView],
    alignment: Alignment,
    matched: MatchedPairs,
    load_source: LoadSource,
    config: TriangulateConfig,
) -> Reconstruction:
    """As `triangulate_views`, of working images without padding and near the origin."""
    sparse = solve_sparse(views, alignment, matched, config)
    masks = [view.mask for view in views]
    sparse = inside_masks(sparse, masks, 2 * config.silhouette_px, 0.5)
    if config.dense:
        fusion = dense_cloud(views, canonical, alignment, sparse, config)
        sparse = inside_masks(sparse, fusion.votes, 2 * config.silhouette_px, 0.0)
    else:
        sparse = inside_masks(sparse, masks, 2 * config.silhouette_px, 0.0)
        fusion = Fusion(
            track_cloud(sparse), bare_views(views, sparse), (), masks, object_diameter(sparse.tracks.points)
        )
    return assemble(views, alignment, sparse, fusion, config, load_source)
