"""Checkpoints that resume exactly: model, moving average and optimiser state as safetensors, settings as JSON."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_FORMAT = "sparse_ga.training/1"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; names the file, what is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class TrainState:
    """All that a run changes while it goes: the step count and what the optimiser and the average remember."""

    step: int
    model: nn.Module
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer


def _flatten(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in state.average.items()}
    for index, entry in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in entry.items()}
    return {name: value.detach().contiguous().cpu().clone() for name, value in tensors.items()}


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write aside, sync, rename: an interrupted write leaves the old checkpoint in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp{os.getpid()}")
    save_file(tensors, aside, metadata)
    with open(aside, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(aside, path)


def save(path: Path, state: TrainState, settings: str) -> None:
    """Write a checkpoint; `settings` is text that a resumed run must repeat."""
    # One entry: safetensors writes several in no fixed order, and equal states shall make equal bytes.
    content = json.dumps({"format": _FORMAT, "step": state.step, "settings": settings})
    _write(_flatten(state), path, {"checkpoint": content})


def _content(metadata: dict[str, str] | None, path: Path) -> tuple[str, int]:
    """Settings text and step in a checkpoint's metadata."""
    content = json.loads((metadata or {}).get("checkpoint", "{}"))
    if content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this trainer (format {content.get('format')!r})")
    return content["settings"], int(content["step"])


def _settings_difference(saved: str, wanted: str) -> str:
    old, new = json.loads(saved), json.loads(wanted)
    return ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old.keys() | new) if old.get(k) != new.get(k))


def restore(path: Path, state: TrainState, settings: str) -> TrainState:
    """The state saved at `path`, loaded into the model and optimiser of `state`, which must be built alike.

    Raises `CheckpointError` when the file is damaged, or was written with other settings.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors raises its own kinds for damaged headers
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}); delete it to start again") from error
    written_with, step = _content(metadata, path)
    if written_with != settings:
        difference = _settings_difference(written_with, settings)
        raise CheckpointError(f"{path}: was written with other settings ({difference}); use a new folder for them")
    device = next(state.model.parameters()).device
    state.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    average = {k[8:]: v.to(device) for k, v in tensors.items() if k.startswith("average/")}
    saved = state.optimizer.state_dict()
    saved["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, field = name.split("/")
            saved["state"].setdefault(int(index), {})[field] = value
    state.optimizer.load_state_dict(saved)
    return TrainState(step, state.model, average, state.optimizer)


def averaged_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Averaged weights of a checkpoint, the settings it was written with, and its step."""
    with safe_open(path, framework="pt") as handle:
        settings, step = _content(handle.metadata(), path)
        names = [name for name in handle.keys() if name.startswith("average/")]  # noqa: SIM118 (not a dict)
        weights = {name[8:]: handle.get_tensor(name) for name in names}
    return weights, json.loads(settings), step


def export_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write weights for use (not for resuming): floating-point tensors in half precision, with their metadata."""
    half = {k: (v.half() if v.is_floating_point() else v).detach().contiguous().cpu() for k, v in weights.items()}
    _write(half, path, metadata)


def export_parts(folder: Path, weights: dict[str, Tensor], max_bytes: int = 15 << 20) -> list[Path]:
    """Write `weights` in half precision as numbered files of at most `max_bytes` each, to carry between machines.

    A single tensor larger than that gets a file of its own.
    """
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, value in weights.items():
        size = value.numel() * (2 if value.is_floating_point() else value.element_size())
        if parts[-1] and filled + size > max_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = value
        filled += size
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part-{number:02d}.safetensors" for number in range(len(parts))]
    for number, (path, part) in enumerate(zip(paths, parts)):
        export_weights(path, part, {"part": f"{number + 1}/{len(parts)}"})
    return paths


def load_parts(folder: Path) -> dict[str, Tensor]:
    """Weights (fp32) that `export_parts` wrote; raises `CheckpointError` when a part is missing or damaged."""
    weights: dict[str, Tensor] = {}
    paths = sorted(folder.glob("part-*.safetensors"))
    for number, path in enumerate(paths):
        try:
            with safe_open(path, framework="pt") as handle:
                place = (handle.metadata() or {}).get("part")
                values = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:  # safetensors raises its own kinds for damaged headers
            raise CheckpointError(f"{path}: not readable ({error}); fetch it again") from error
        if place != f"{number + 1}/{len(paths)}":
            raise CheckpointError(f"{path}: is part {place}, expected {number + 1}/{len(paths)}; a part is missing")
        weights |= {name: value.float() if value.is_floating_point() else value for name, value in values.items()}
    if not weights:
        raise CheckpointError(f"{folder}: no part-*.safetensors in it")
    return weights


def digest_of(weights: dict[str, Tensor]) -> str:
    """Short SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
