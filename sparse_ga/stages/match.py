"""match: foreground correspondences of a pair, verified."""

from __future__ import annotations

from sparse_ga.config import Config
from sparse_ga.products import PairMatches, PairPrediction, VerifiedMatches, View
from sparse_ga.stages.base import Stage
from sparse_ga.store import Key

STAGE = Stage("match", 1, "pair", ("ingest", "forward"), ("match",))


def key(forward: Key, config: Config) -> Key:
    """Key of a pair's matches."""
    return STAGE.key(forward.label, config, {"forward": forward.digest})


def run(prediction: PairPrediction, view_i: View, view_j: View, config: Config) -> VerifiedMatches:
    """Matches of one pair; a pair that the predictor rejected keeps its reason."""
    if prediction.rejected is not None:
        return VerifiedMatches(PairMatches.empty(), 0.0, "none", prediction.rejected)
    from sparse_ga.matching import match_prediction, verify_matches

    matches = match_prediction(prediction, view_i, view_j, config.match)
    return verify_matches(matches, view_i, view_j, config.match, from_predictor=prediction.matches is not None)
