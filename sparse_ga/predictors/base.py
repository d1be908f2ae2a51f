"""The predictor contract, and the optional parts a predictor may add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from sparse_ga.products import Array, PairPrediction, View

Features = dict[str, Array]
"""Per-image features: named numpy arrays, what the cache can hold."""


@runtime_checkable
class PairPredictor(Protocol):
    """Two lines of protocol: a fingerprint of weights and settings, and `predict`."""

    fingerprint: str

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        """Point maps of both views in both camera frames; a pair without result is `PairPrediction.reject`."""
        ...


@runtime_checkable
class FeaturePredictor(PairPredictor, Protocol):
    """A predictor with a per-image encoder: every image is encoded once, features may be cached."""

    def encode(self, view: View) -> Features:
        """Features of one view; depends on image and mask only, never on intrinsics."""
        ...

    def predict_from_features(
        self, view_i: View, view_j: View, features_i: Features, features_j: Features
    ) -> PairPrediction:
        """As `predict`, from features computed before."""
        ...


@runtime_checkable
class BatchPredictor(FeaturePredictor, Protocol):
    """A predictor that computes several pairs at once faster than one after the other."""

    def pairs_at_once(self, views_i: Sequence[View], views_j: Sequence[View]) -> int:
        """How many of these pairs, from the first on, fit into one batch; at least one."""
        ...

    def predict_batch(
        self,
        views_i: Sequence[View],
        views_j: Sequence[View],
        features_i: Sequence[Features],
        features_j: Sequence[Features],
    ) -> list[PairPrediction]:
        """As `predict_from_features`, for many pairs."""
        ...


@runtime_checkable
class MemoryPredictor(PairPredictor, Protocol):
    """A predictor that keeps things in memory to be faster."""

    def free_memory(self) -> None:
        """Let go of them: all pairs are done, and what comes next needs the room. It may still be asked again."""
        ...


@runtime_checkable
class Calibrator(Protocol):
    """A predictor that needs focal lengths and can find them from all views together."""

    def estimate_focal(
        self,
        views: Sequence[View],
        pairs: Sequence[tuple[int, int]],
        features: Callable[[int], Features],
        focal_bounds_px: tuple[float, float],
    ) -> tuple[float, bool]:
        """One focal length in working px for views without intrinsics, and whether the evidence sufficed."""
        ...


def mark_of_subclass(predictor: object, *stock: type) -> str:
    """What a class derived from the `stock` ones adds to their fingerprint, for it may say something else: its name.

    Its body is not looked at: whoever changes that gives it a fingerprint of its own, or the cache serves what the
    earlier body said.
    """
    kind = type(predictor)
    return "" if kind in stock else f" {kind.__module__}.{kind.__qualname__}"
