"""forward: the predictor on every pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparse_ga.config import Config
from sparse_ga.predictors.base import BatchPredictor, FeaturePredictor, Features, PairPredictor
from sparse_ga.products import PairPrediction, View
from sparse_ga.stages.base import Stage
from sparse_ga.stages.packing import PackedPrediction, pack_prediction
from sparse_ga.store import Key

STAGE = Stage(
    "forward", 3, "pair", ("ingest", "calibrate", "encode"), ("forward.cross_stride", "forward.keep_descriptors")
)


def key(view_i: View, view_j: View, predictor: PairPredictor, config: Config) -> Key:
    """Key of a pair: what the predictor sees of both views, and the predictor with its settings."""
    inputs = {"view_i": view_i.digest, "view_j": view_j.digest, "predictor": predictor.fingerprint}
    return STAGE.key(f"{view_i.name} | {view_j.name}", config, inputs)


def run(
    view_i: View,
    view_j: View,
    predictor: PairPredictor,
    features_i: Callable[[], Features],
    features_j: Callable[[], Features],
) -> PairPrediction:
    """The prediction for one pair, from features where the predictor has an encoder."""
    if isinstance(predictor, FeaturePredictor):
        return predictor.predict_from_features(view_i, view_j, features_i(), features_j())
    return predictor.predict(view_i, view_j)


def run_batch(
    views_i: Sequence[View],
    views_j: Sequence[View],
    predictor: BatchPredictor,
    features_i: Sequence[Features],
    features_j: Sequence[Features],
) -> list[PairPrediction]:
    """The predictions for several pairs at once."""
    return predictor.predict_batch(views_i, views_j, features_i, features_j)


def pack(prediction: PairPrediction, view_i: View, view_j: View, config: Config) -> PackedPrediction:
    """What the cache keeps of a prediction."""
    options = config.forward
    return pack_prediction(prediction, view_i, view_j, options.cross_stride, options.keep_descriptors)
