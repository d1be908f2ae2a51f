"""Loading, describing and converting weights. Nothing in a checkpoint is ever executed.

Three containers: a folder with config.json and model.safetensors (the hub's format, and ours), and the published .pth
files (a zip with a pickle that holds `args` and `model`). Folders written here carry a SHA-256 of architecture and
tensors, checked on loading, as are files in the hub's cache against the name that the cache gave them; the entries of
a .pth are checked against the zip's CRC-32 before anything is unpickled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparse_ga.errors import OutputError
from sparse_ga.network.architecture import Architecture, ArchitectureError
from sparse_ga.network.errors import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointNotFound,
    KeyMismatch,
    LicenceNotice,
    ShapeMismatch,
    UncheckedWeights,
    UnknownArchitecture,
    UnsafeCheckpoint,
)
from sparse_ga.network.hub import CONFIG_FILE, DEFAULT_NAME, WEIGHTS_FILE, check_hub_file, fetch_weights
from sparse_ga.network.model import AsymmetricCroCo3DStereo, build_model

RELEASED_LICENCE = "CC BY-NC-SA 4.0"
LICENCE_NOTICE = (
    "The released MASt3R and DUSt3R weights (Naver) are licensed CC BY-NC-SA 4.0, some of their training data with "
    "terms of its own: no commercial use. The code that runs them here is Apache-2.0."
)

_announced: set[str] = set()


@dataclass(frozen=True)
class WeightsInfo:
    """What a checkpoint holds. `digest` (SHA-256 of architecture and stored tensors) is the same in every container."""

    source: str
    container: Literal["safetensors", "pth"]
    architecture: Architecture
    parameters: int
    size_bytes: int
    dtype: str
    digest: str
    licence: str
    checksum: Literal["sha256", "crc32", "none"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network with its weights (fp32, evaluation mode, no gradients), and what it came from."""

    model: AsymmetricCroCo3DStereo
    info: WeightsInfo


@dataclass(frozen=True, eq=False)
class _Stored:
    """A container's content, integrity checked, not yet matched to a network."""

    path: Path
    arch: Architecture
    tensors: dict[str, Tensor]
    container: Literal["safetensors", "pth"]
    licence: str
    checksum: Literal["sha256", "crc32", "none"]
    recorded_digest: str | None = None


def load_checkpoint(source: str | Path = DEFAULT_NAME, cache_dir: Path | None = None) -> Checkpoint:
    """The network of a hub name, folder or .pth file; strict.

    Raises a `CheckpointError`: not found, no network, damaged, unsafe, unknown architecture, keys or shapes that do not
    fit. Warns once (`LicenceNotice`) when the released weights' licence applies, and of weights that came without any
    checksum (`UncheckedWeights`).
    """
    stored = _read(fetch_weights(str(source), cache_dir))
    tensors = _complete(stored)
    info = _inform(stored, str(source), tensors)
    with torch.device("meta"):
        model = build_model(stored.arch)
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=True, assign=True)
    _check_cosine_tables(stored, model)
    if info.licence == RELEASED_LICENCE:
        announce_licence()
    if info.checksum == "none":
        warnings.warn(
            f"{stored.path}: comes without a checksum, so that a damaged number in it would not be noticed; "
            "`sparse-ga weights convert` writes one with it",
            UncheckedWeights,
            stacklevel=2,
        )
    return Checkpoint(model.eval().requires_grad_(False), info)


def describe_weights(source: str | Path = DEFAULT_NAME, cache_dir: Path | None = None) -> WeightsInfo:
    """What `source` holds, after every check that loading makes; a hub name is fetched first."""
    stored = _read(fetch_weights(str(source), cache_dir))
    return _inform(stored, str(source), _complete(stored))


def convert_weights(
    source: str | Path, folder: str | Path, half: bool = False, cache_dir: Path | None = None
) -> WeightsInfo:
    """Write `source` as a folder (config.json, model.safetensors with a checksum), optionally in float16.

    The licence travels with the weights. Raises `CheckpointError`, and `FileExistsError` rather than overwrite.
    """
    stored = _read(fetch_weights(str(source), cache_dir))
    tensors = _complete(stored)
    tensors = _halved(stored.path, tensors) if half else tensors
    _write(Path(folder), stored.arch, tensors, stored.licence)
    return describe_weights(folder)


def save_model(model: AsymmetricCroCo3DStereo, folder: str | Path, licence: str, half: bool = False) -> WeightsInfo:
    """Write a network as a folder that `load_checkpoint` reads; raises `FileExistsError` rather than overwrite."""
    tensors = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    _check_finite(Path(folder), tensors)
    _write(Path(folder), model.arch, _halved(Path(folder), tensors) if half else tensors, licence)
    return describe_weights(folder)


def weights_digest(arch: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the architecture and of every tensor's name, type, shape and bytes; aliases count once."""
    digest = hashlib.sha256(json.dumps(arch.to_mapping(), sort_keys=True).encode())
    dropped = _aliases(arch)
    for name in sorted(tensors):
        if name in dropped and dropped[name] in tensors:
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def announce_licence() -> None:
    """Warn of the released weights' licence, once a process."""
    if RELEASED_LICENCE not in _announced:
        _announced.add(RELEASED_LICENCE)
        warnings.warn(LICENCE_NOTICE, LicenceNotice, stacklevel=3)


def _read(path: Path) -> _Stored:
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return _read_folder(path.parent, path)
    if path.suffix not in (".pth", ".pt"):
        raise CheckpointNotFound(f"{path}: expected a .pth file, a .safetensors file, or a folder")
    return _read_pth(path)


def _read_folder(folder: Path, weights: Path | None = None) -> _Stored:
    found = sorted(folder.glob("*.safetensors"))
    if weights is None and len(found) != 1:
        remedy = "give the path of one of them" if found else f"put the weights there, beside their {CONFIG_FILE}"
        raise CheckpointNotFound(f"{folder}: expected one .safetensors file, found {len(found)}; {remedy}")
    weights = weights or found[0]
    arch = _read_config(folder / CONFIG_FILE)
    checked = check_hub_file(weights)
    try:
        with safe_open(str(weights), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointDamaged(
            f"{weights}: not a whole safetensors file ({error}); truncated? Fetch it again"
        ) from error
    recorded = metadata.get("sparse_ga_sha256")
    licence = metadata.get("licence", RELEASED_LICENCE)
    checksum: Literal["sha256", "none"] = "sha256" if recorded or checked else "none"
    return _Stored(weights, arch, tensors, "safetensors", licence, checksum, recorded)


def _read_config(path: Path) -> Architecture:
    if not path.is_file():
        raise CheckpointNotFound(f"{path}: not there; it says which network the weights are for")
    check_hub_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointDamaged(f"{path}: not valid JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UnknownArchitecture(f"{path}: expected an object with constructor arguments")
    try:
        return Architecture.from_mapping(content)
    except ArchitectureError as error:
        raise UnknownArchitecture(f"{path}: {error}") from None


def _read_pth(path: Path) -> _Stored:
    _check_zip(path)
    try:
        with _safe_globals():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        first = str(error).strip().splitlines()[-1][:200] if str(error).strip() else "unpickling failed"
        raise UnsafeCheckpoint(
            f"{path}: holds more than tensors and plain values, nothing was run ({first}). Get it from its source again"
        ) from None
    except Exception as error:  # a parser over foreign bytes: whatever it raises, the file is at fault
        raise CheckpointDamaged(f"{path}: not readable as a checkpoint ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict) or "args" not in content:
        raise UnknownArchitecture(f"{path}: expected a dict with `args` and `model`, as the published files have")
    args = content["args"]
    text = args.get("model") if isinstance(args, dict) else getattr(args, "model", None)
    if not isinstance(text, str):
        raise UnknownArchitecture(f"{path}: args.model is not the constructor call of a network")
    try:
        arch = Architecture.parse(text)
    except ArchitectureError as error:
        raise UnknownArchitecture(f"{path}: args.model: {error}") from None
    tensors = {k: v.clone() if isinstance(v, Tensor) else v for k, v in content["model"].items()}
    return _Stored(path, arch, tensors, "pth", RELEASED_LICENCE, "crc32")


def _safe_globals() -> AbstractContextManager[object]:
    """Lets the restricted unpickler build `argparse.Namespace` (plain attributes) and nothing else beyond tensors."""
    scoped = getattr(torch.serialization, "safe_globals", None)
    if scoped is not None:
        return scoped([argparse.Namespace])
    torch.serialization.add_safe_globals([argparse.Namespace])  # torch 2.4
    return nullcontext()


def _check_zip(path: Path) -> None:
    """Raise `CheckpointDamaged` unless the file is a zip whose every entry agrees with its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            bad = archive.testzip()
    except Exception as error:  # zipfile raises several kinds on foreign bytes (struct, zlib, EOF, NotImplemented)
        raise CheckpointDamaged(
            f"{path}: not a whole PyTorch file ({error}); truncated, or older than PyTorch 1.6? Fetch it again"
        ) from None
    if bad is not None:
        raise CheckpointDamaged(f"{path}: entry {bad} does not agree with its CRC-32; fetch the file again")
    if len(set(names)) != len(names):
        raise CheckpointDamaged(f"{path}: two entries of one name; fetch the file again")


def _complete(stored: _Stored) -> dict[str, Tensor]:
    """Tensors under every name the network has, in its order; raises on anything that does not fit.

    Modules that share a weight may store it under one of its names (safetensors keeps one) or under all of them.
    """
    with torch.device("meta"):
        wanted = build_model(stored.arch).state_dict()
    if stored.recorded_digest is not None and weights_digest(stored.arch, stored.tensors) != stored.recorded_digest:
        raise CheckpointDamaged(
            f"{stored.path}: weights or {CONFIG_FILE} changed since they were written (SHA-256); fetch or convert again"
        )
    tensors = dict(stored.tensors)
    for alias, name in _aliases(stored.arch).items():
        if alias in tensors and name not in tensors:
            tensors[name] = tensors[alias]
        elif name in tensors and alias not in tensors:
            tensors[alias] = tensors[name]
    _check_keys(stored.path, tensors, wanted)
    _check_shapes(stored.path, tensors, wanted)
    _check_finite(stored.path, tensors)
    for alias, name in _aliases(stored.arch).items():
        if not torch.equal(tensors[alias], tensors[name]):
            raise CheckpointDamaged(f"{stored.path}: {alias} and {name} are one weight but differ; fetch it again")
    return {name: tensors[name] for name in wanted}


def _aliases(arch: Architecture) -> dict[str, str]:
    """Second names of shared weights and their first names (the DPT head's level convolutions)."""
    if "dpt" not in arch.head_type:
        return {}
    prefixes = [f"downstream_head{side}.dpt.scratch" for side in (1, 2)]
    return {f"{p}.layer_rn.{n}.weight": f"{p}.layer{n + 1}_rn.weight" for p in prefixes for n in range(4)}


def _check_keys(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(map(str, set(tensors) - set(wanted)))
    if missing or extra:
        parts = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (("missing", missing), ("extra", extra))
            if names
        ]
        raise KeyMismatch(
            f"{path}: tensors {' and '.join(parts)}; the file is damaged or its architecture is wrongly stated"
        )


def _check_shapes(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, want in wanted.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
            raise ShapeMismatch(f"{path}: {name} is no floating-point tensor")
        if tensor.shape != want.shape:
            raise ShapeMismatch(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the network wants {tuple(want.shape)}; "
                "the architecture is wrongly stated or the file is of another network"
            )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointDamaged(f"{path}: {name} holds NaN or infinity")


def _halved(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.abs().max() > torch.finfo(torch.float16).max:
            raise CheckpointError(f"{path}: {name} does not fit half precision; convert without it")
    return {name: tensor.half() for name, tensor in tensors.items()}


def _check_cosine_tables(stored: _Stored, model: AsymmetricCroCo3DStereo) -> None:
    """Position tables in a checkpoint must be the ones that the network computes itself."""
    if stored.arch.pos_embed != "cosine":
        return
    for name, table in model.cosine_tables().items():
        if not torch.allclose(model.state_dict()[name], table, atol=1e-3):
            raise CheckpointDamaged(f"{stored.path}: {name} is not the sine-cosine table of its size")


def _inform(stored: _Stored, source: str, tensors: Mapping[str, Tensor]) -> WeightsInfo:
    aliases = _aliases(stored.arch)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    return WeightsInfo(
        source=source,
        container=stored.container,
        architecture=stored.arch,
        parameters=sum(tensor.numel() for name, tensor in tensors.items() if name not in aliases),
        size_bytes=stored.path.stat().st_size,
        dtype=", ".join(dtypes),
        digest=stored.recorded_digest or weights_digest(stored.arch, tensors),
        licence=stored.licence,
        checksum=stored.checksum,
    )


def _write(folder: Path, arch: Architecture, tensors: Mapping[str, Tensor], licence: str) -> None:
    if (folder / WEIGHTS_FILE).exists() or (folder / CONFIG_FILE).exists():
        raise FileExistsError(f"{folder}: already holds weights; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    aliases = _aliases(arch)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in aliases}
    metadata = {"format": "pt", "licence": licence, "sparse_ga_sha256": weights_digest(arch, kept)}
    metadata.update(aliases)  # safetensors' convention for a weight with two names
    temporary = folder / f".{WEIGHTS_FILE}.part"
    try:
        save_file(kept, str(temporary), metadata)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{folder}: cannot be written ({error}); choose another folder") from error
    (folder / CONFIG_FILE).write_text(json.dumps(arch.to_mapping(), indent=2) + "\n", encoding="utf-8")
    temporary.rename(folder / WEIGHTS_FILE)
