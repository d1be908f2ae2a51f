"""Predictors by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_ga.config import AUTO, OFF, PACKAGED, PREDICTORS, ForwardConfig
from sparse_ga.devices import resolve_device
from sparse_ga.errors import InputError
from sparse_ga.predictors.base import Calibrator, FeaturePredictor, Features, PairPredictor
from sparse_ga.products import PairPrediction, View

if TYPE_CHECKING:
    from sparse_ga.network.descriptor_cnn import DenseDescriptor


def load_predictor(name: str, config: ForwardConfig) -> PairPredictor:
    """The predictor called `name`: classical, compact, mast3r, a hub name ("owner/model") or a path to a checkpoint.

    Raises `InputError` when there is none of that name, or when it cannot use what `config` gives.
    """
    if config.descriptors not in (AUTO, OFF) and name != "classical":
        raise InputError(f"forward.descriptors: only the classical predictor uses them, not {name}")
    if name == "classical":
        from sparse_ga.predictors.classical import ClassicalPredictor

        return ClassicalPredictor(describer=load_describer(config))
    if name == "compact":
        from sparse_ga.predictors.compact import CompactPredictor

        return CompactPredictor(config)
    if name == "mast3r" or Path(name).exists() or _is_hub_name(name):
        from sparse_ga.predictors.mast3r import Mast3rPredictor

        return Mast3rPredictor(name, config)
    raise InputError(
        f"predictor {name!r} is unknown; choose {', '.join(PREDICTORS)}, a hub name like owner/model, or a path to a "
        "checkpoint"
    )


def packaged_descriptors() -> Path:
    """The package's own weights of the descriptor network."""
    return Path(__file__).parent.parent / "weights" / "descriptors.safetensors"


def load_describer(config: ForwardConfig) -> DenseDescriptor | None:
    """The descriptor network that `config.descriptors` names; raises `InputError` where there is none."""
    from sparse_ga.network.descriptor_cnn import DenseDescriptor
    from sparse_ga.predictors.described import FIRST_SIZE

    if config.descriptors in (AUTO, OFF):
        return None
    path = packaged_descriptors() if config.descriptors == PACKAGED else config.descriptors
    device = resolve_device(config.device, ("cuda",))  # MPS has no double precision, which cut-outs are placed in
    try:
        return DenseDescriptor.load(path, FIRST_SIZE, device)
    except (OSError, ValueError) as error:
        if config.descriptors == PACKAGED:
            lost = "the packaged weights of the descriptor network are missing or damaged; install sparse_ga again"
            raise InputError(f"{path}: {lost}") from None
        raise InputError(f"forward.descriptors: {error}") from None


class PredictorNotLoaded(RuntimeError):
    """A stand-in was asked for what only the predictor itself can say."""


class RecordedPredictor:
    """Stands for the predictor of an earlier run where only its name in cache keys matters: weights are not loaded."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        """Raises `PredictorNotLoaded`: there is nothing to predict with."""
        raise PredictorNotLoaded("a recorded predictor predicts nothing")


class RecordedEncoder(RecordedPredictor):
    """The same for a `FeaturePredictor`."""

    def encode(self, view: View) -> Features:
        """Raises `PredictorNotLoaded`."""
        raise PredictorNotLoaded("a recorded predictor encodes nothing")

    def predict_from_features(
        self, view_i: View, view_j: View, features_i: Features, features_j: Features
    ) -> PairPrediction:
        """Raises `PredictorNotLoaded`."""
        return self.predict(view_i, view_j)


class RecordedCalibrator(RecordedPredictor):
    """The same for a `Calibrator`."""

    def estimate_focal(
        self,
        views: Sequence[View],
        pairs: Sequence[tuple[int, int]],
        features: Callable[[int], Features],
        focal_bounds_px: tuple[float, float],
    ) -> tuple[float, bool]:
        """Raises `PredictorNotLoaded`."""
        raise PredictorNotLoaded("a recorded predictor estimates nothing")


class RecordedEncodingCalibrator(RecordedEncoder, RecordedCalibrator):
    """The same for a predictor that is both."""


@dataclass(frozen=True)
class PredictorRecord:
    """What cache keys need to know of a predictor."""

    fingerprint: str
    encodes: bool
    calibrates: bool

    @staticmethod
    def of(predictor: PairPredictor) -> PredictorRecord:
        """The record of a loaded predictor."""
        return PredictorRecord(
            predictor.fingerprint, isinstance(predictor, FeaturePredictor), isinstance(predictor, Calibrator)
        )

    def predictor(self) -> PairPredictor:
        """A stand-in with the same keys."""
        kinds = {
            (False, False): RecordedPredictor,
            (True, False): RecordedEncoder,
            (False, True): RecordedCalibrator,
            (True, True): RecordedEncodingCalibrator,
        }
        return kinds[self.encodes, self.calibrates](self.fingerprint)


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and Path(name).suffix not in (".pth", ".pt", ".safetensors")
