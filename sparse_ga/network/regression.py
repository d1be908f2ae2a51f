"""From raw head channels to points, confidences and descriptors (DUSt3R section 3.1, MASt3R section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sparse_ga.network.architecture import Range

_MAX_EXPONENT = 80.0  # exp stays finite in float32


def activate_points(raw: Tensor, mode: Range) -> Tensor:
    """Points (..., 3) from raw (..., 3): the direction is kept, the length goes through the mode; always finite."""
    if mode.mode == "linear":
        return raw.clamp(mode.minimum, mode.maximum) if mode.bounded else raw
    length = raw.norm(dim=-1, keepdim=True)  # (..., 1)
    direction = raw / length.clamp(min=1e-8)  # (..., 3)
    stretched = length.square() if mode.mode == "square" else length.clamp(max=_MAX_EXPONENT).expm1()  # (..., 1)
    if mode.bounded:
        stretched = stretched.clamp(mode.minimum, mode.maximum)
    return direction * stretched


def activate_confidence(raw: Tensor, mode: Range) -> Tensor:
    """Confidence (...) in the mode's interval from raw (...); always finite."""
    if mode.mode == "sigmoid":
        return mode.minimum + (mode.maximum - mode.minimum) * raw.sigmoid()
    return mode.minimum + raw.clamp(max=_MAX_EXPONENT).exp().clamp(max=mode.maximum - mode.minimum)


def activate_descriptors(raw: Tensor) -> Tensor:
    """Unit descriptors (..., D) from raw (..., D)."""
    return F.normalize(raw, dim=-1, eps=1e-8)
