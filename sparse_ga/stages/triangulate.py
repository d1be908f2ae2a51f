"""triangulate: tracks, bundle adjustment and the fused cloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparse_ga.config import Config
from sparse_ga.pairs import Pair
from sparse_ga.products import Alignment, Array, Reconstruction, VerifiedMatches, View
from sparse_ga.stages.align3d import AlignedViews
from sparse_ga.stages.base import Stage
from sparse_ga.stages.ingest import Source
from sparse_ga.store import Key, digest_of

STAGE = Stage(
    "triangulate",
    15,
    "run",
    ("ingest", "calibrate", "pairs", "match", "align3d", "refine2d"),
    ("triangulate", "ingest.object_id"),
)


def key(refine2d: Key, sources: Sequence[Source], config: Config) -> Key:
    """Key of the reconstruction; colours come from the photographs themselves, and it notes which object it shows."""
    photographs = digest_of(*(source.content_digest for source in sources))
    return STAGE.key("reconstruction", config, {"refine2d": refine2d.digest, "photographs": photographs})


def run(
    views: Sequence[View],
    solved: tuple[AlignedViews, Alignment],
    pairs: Sequence[Pair],
    load_matches: Callable[[int], VerifiedMatches],
    load_source: Callable[[int], tuple[Array, Array]],
    config: Config,
) -> Reconstruction:
    """Triangulate and fuse what align3d and refine2d have `solved`."""
    from sparse_ga.triangulation import MatchedPairs, triangulate_views

    canonical, alignment = solved[0].canonical_views(), solved[1]
    matched = MatchedPairs(pairs, load_matches)
    return triangulate_views(views, canonical, alignment, matched, load_source, config.triangulate)
