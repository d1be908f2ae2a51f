"""align3d: canonical views, and one similarity for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparse_ga.config import Config
from sparse_ga.pairs import Pair
from sparse_ga.products import Alignment, Array, CanonicalView, PairPrediction, VerifiedMatches, View
from sparse_ga.stages.base import Stage
from sparse_ga.stages.packing import PackedCanonical, pack_canonical, unpack_canonical
from sparse_ga.store import Key, digest_of

STAGE = Stage("align3d", 6, "run", ("ingest", "calibrate", "pairs", "forward", "match"), ("align3d",))


@dataclass(frozen=True, eq=False)
class AlignedViews:
    """What align3d makes: canonical views (packed) and their alignment."""

    canonical: tuple[PackedCanonical, ...]
    alignment: Alignment

    def canonical_views(self) -> list[CanonicalView]:
        """The canonical views, unpacked."""
        return [unpack_canonical(packed) for packed in self.canonical]


def views_digest(views: Sequence[View]) -> str:
    """Digest of all that the alignment reads of the views: content, names, and how far to trust what is given."""
    parts: list[str | Array | None] = []
    for view in views:
        parts += [
            view.digest,
            view.name,
            view.camera,
            view.intrinsics_source,
            f"{view.source_size}",
            view.world_from_cam,
        ]
    return digest_of(*parts)


def key(views: Sequence[View], pairs: Sequence[Pair], matches: Sequence[Key], config: Config) -> Key:
    """Key of the alignment: all views, all pairs and all their matches (and with them, the predictions)."""
    inputs = {
        "views": views_digest(views),
        "pairs": digest_of(*(f"{i} {j}" for i, j in pairs)),
        "matches": digest_of(*(item.digest for item in matches)),
    }
    return STAGE.key("alignment", config, inputs)


def run(
    views: Sequence[View],
    pairs: Sequence[Pair],
    load_prediction: Callable[[int], PairPrediction],
    load_matches: Callable[[int], VerifiedMatches],
    config: Config,
) -> AlignedViews:
    """Align all views; the loaders take the index of a pair, so that one pair at a time is in memory."""
    from sparse_ga.alignment.align3d import align_views

    canonical, alignment = align_views(views, pairs, load_prediction, load_matches, config.align3d)
    return AlignedViews(tuple(pack_canonical(view) for view in canonical), alignment)
