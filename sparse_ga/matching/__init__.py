"""Matching on the foreground: nearest neighbours, reciprocal and fine matches, verification of pairs."""

from sparse_ga.matching.reciprocal import match_prediction
from sparse_ga.matching.verify import verify_matches

__all__ = ["match_prediction", "verify_matches"]
