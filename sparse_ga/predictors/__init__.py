"""Pair predictors: anything that turns two masked views into point maps. `PairPredictor` is the contract."""

from sparse_ga.predictors.base import PairPredictor

__all__ = ["PairPredictor"]
