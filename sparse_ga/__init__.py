"""Cameras and a point cloud from masked photographs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparse_ga.api import reconstruct
    from sparse_ga.config import Config, load_config
    from sparse_ga.errors import InputError, OutputError
    from sparse_ga.objects import reconstruct_objects
    from sparse_ga.predictors.base import PairPredictor
    from sparse_ga.products import PairMatches, PairPrediction, Pointmap, Reconstruction, View

_HOME = {
    "Config": "config",
    "InputError": "errors",
    "OutputError": "errors",
    "PairMatches": "products",
    "PairPrediction": "products",
    "PairPredictor": "predictors.base",
    "Pointmap": "products",
    "Reconstruction": "products",
    "View": "products",
    "load_config": "config",
    "reconstruct": "api",
    "reconstruct_objects": "objects",
}

__all__ = [
    "Config",
    "InputError",
    "OutputError",
    "PairMatches",
    "PairPrediction",
    "PairPredictor",
    "Pointmap",
    "Reconstruction",
    "View",
    "load_config",
    "reconstruct",
    "reconstruct_objects",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that the command starts at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparse_ga' has no attribute {name!r}")
    return getattr(import_module(f"sparse_ga.{_HOME[name]}"), name)
