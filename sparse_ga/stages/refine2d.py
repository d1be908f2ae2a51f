"""refine2d: reprojection refinement of cameras, focal length and anchor depths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparse_ga.config import Config
from sparse_ga.pairs import Pair
from sparse_ga.products import Alignment, VerifiedMatches, View
from sparse_ga.stages.align3d import AlignedViews
from sparse_ga.stages.base import Stage
from sparse_ga.store import Key

STAGE = Stage("refine2d", 10, "run", ("ingest", "calibrate", "pairs", "match", "align3d"), ("refine2d",))


def key(align3d: Key, config: Config) -> Key:
    """Key of the refined alignment."""
    return STAGE.key("alignment", config, {"align3d": align3d.digest})


def run(
    views: Sequence[View],
    aligned: AlignedViews,
    pairs: Sequence[Pair],
    load_matches: Callable[[int], VerifiedMatches],
    config: Config,
) -> Alignment:
    """Refine an alignment."""
    from sparse_ga.alignment.refine2d import refine_views

    canonical = aligned.canonical_views()
    return refine_views(views, canonical, aligned.alignment, pairs, load_matches, config.refine2d)
