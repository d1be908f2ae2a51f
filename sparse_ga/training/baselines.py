"""What a learnt matcher has to beat: the classical predictor's RootSIFT inside the mask, on the same pairs."""

from __future__ import annotations

import numpy as np

from sparse_ga.predictors.classical import ClassicalPredictor, match_root_sift
from sparse_ga.products import PairMatches
from sparse_ga.training.validation import UnseenPair


def root_sift_matches(pair: UnseenPair) -> PairMatches:
    """Reciprocal RootSIFT matches that pass the ratio test, before any geometric verification."""
    predictor = ClassicalPredictor()
    i, j = predictor.encode(pair.view_i), predictor.encode(pair.view_j)
    rows, columns, reliable = match_root_sift(i["sift"], j["sift"], predictor.settings.ratio)
    return PairMatches(i["xy"][rows], j["xy"][columns], np.where(reliable, 1.0, 0.5).astype(np.float32))
