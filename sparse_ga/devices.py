"""Which device a setting means on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparse_ga.errors import InputError


def resolve_device(name: str, accelerators: Sequence[str] = ("cuda", "mps")) -> torch.device:
    """The device that `name` (auto, cpu, an accelerator, cuda:N) means here; raises `InputError` if there is none.

    `accelerators` are the kinds of device that the caller can use, the best first.
    """
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if name == "auto":
        return torch.device(next((kind for kind in accelerators if there[kind]), "cpu"))
    choices = ", ".join(["auto", "cpu", *(k for kind in accelerators for k in _spellings(kind))])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown; choose from {choices}") from None
    if device.type not in ("cpu", *accelerators):
        raise InputError(f"device {name!r} cannot be used for this; choose from {choices}")
    if (device.index or 0) >= there[device.type]:
        raise InputError(f"device {name!r}: PyTorch finds no such device here; choose auto or cpu")
    return device


def _spellings(kind: str) -> tuple[str, ...]:
    return ("cuda", "cuda:N") if kind == "cuda" else (kind,)
