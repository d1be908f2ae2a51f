"""MASt3R and DUSt3R networks with masks inside: architecture, forward, checkpoints.

`Architecture` describes a network, `build_model` makes it, `ImageBatch` goes in and `Output` comes out; weights are
read and written by `sparse_ga.network.checkpoint`, and `sparse_ga.predictors.mast3r` makes a predictor of it all.
"""

from sparse_ga.network.architecture import Architecture, ArchitectureError
from sparse_ga.network.model import (
    AsymmetricCroCo3DStereo,
    AsymmetricMASt3R,
    ImageBatch,
    Output,
    build_model,
    is_symmetrized,
)

__all__ = [
    "Architecture",
    "ArchitectureError",
    "AsymmetricCroCo3DStereo",
    "AsymmetricMASt3R",
    "ImageBatch",
    "Output",
    "build_model",
    "is_symmetrized",
]
