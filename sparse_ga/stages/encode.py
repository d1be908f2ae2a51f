"""encode: a predictor's features of one view, for predictors that encode every image once."""

from __future__ import annotations

from sparse_ga.config import Config
from sparse_ga.predictors.base import FeaturePredictor, Features
from sparse_ga.products import View
from sparse_ga.stages.base import Stage
from sparse_ga.store import Key, digest_of

STAGE = Stage("encode", 1, "view", ("ingest",))


def key(view: View, predictor: FeaturePredictor, config: Config) -> Key:
    """Key of the features: image, mask and predictor; what is known of the camera does not matter."""
    content = digest_of(view.image, view.mask)
    return STAGE.key(view.name, config, {"view": content, "predictor": predictor.fingerprint})


def run(view: View, predictor: FeaturePredictor) -> Features:
    """Features of one view."""
    return predictor.encode(view)
