"""The published architectures' goldens: weights drawn from names, and where the files are."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from sparse_ga.network.architecture import Architecture
from sparse_ga.network.model import AsymmetricCroCo3DStereo, build_model


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight of this name, by the recipe of the goldens' README."""
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        a = a / np.sqrt(np.prod(shape[1:]))
    elif "norm" in name and name.endswith(".weight"):
        a = 1 + 0.1 * a
    else:
        a = 0.1 * a
    return torch.from_numpy(np.asarray(a, np.float32))


def drawn_model(arch: Architecture) -> AsymmetricCroCo3DStereo:
    """A network with the goldens' weights, strictly loaded."""
    with torch.device("meta"):
        model = build_model(arch)
    weights = {name: draw(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def golden_names(path: Path) -> list[tuple[str, list[int]]]:
    """Names and shapes of a golden state dict, in order."""
    content = json.loads(path.read_text())
    return [(name, list(shape)) for name, shape in content.get("state_dict", content).items()]


def golden_arch(path: Path) -> Architecture:
    """Architecture of a golden."""
    return Architecture.from_mapping(json.loads(path.read_text())["constructor"])
