"""Bytes of products: safetensors with the structure in its JSON header and a checksum over every byte.

Arrays are tensors; strings, numbers, tuples, None and nested dataclasses are a JSON tree in the header's one metadata
field. No pickle: reading builds nothing but arrays and dataclasses of this package. Equal values give equal bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

_FIELD = "sparse_ga"
_MARK = b'{\\"sha256\\":\\"'  # as it stands, escaped, in the header
_ZEROS = b"0" * 64
_MODULES = ("sparse_ga.products", "sparse_ga.stages.")


class DamagedArtifact(ValueError):
    """Bytes that are not what `encode` wrote, or were written for another version of a product."""


def _pack(value: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """JSON tree of `value`; arrays go to `tensors` under the path that leads to them."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float, np.integer, np.floating, np.bool_)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray):
        tensors[path] = np.ascontiguousarray(value).reshape(value.shape)
        return {"array": path}
    if isinstance(value, (tuple, list)):
        items = [_pack(item, f"{path}.{n}", tensors) for n, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{path}: only string keys can be stored")
        return {"dict": [[key, _pack(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        fields = [[name, _pack(getattr(value, name), f"{path}.{name}", tensors)] for name in names]
        return {"object": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    raise TypeError(f"{path}: a {type(value).__name__} cannot be stored")


def _class(name: str) -> type:
    """The product class called `name` ("module:class"), of this package only."""
    module, _, attribute = name.partition(":")
    if not module.startswith(_MODULES):
        raise DamagedArtifact(f"{name} is not a product")
    found = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise DamagedArtifact(f"{name} is not a product")
    return found


def _unpack(tree: Any, tensors: dict[str, np.ndarray]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return tensors[tree["array"]]
    if "tuple" in tree:
        return tuple(_unpack(item, tensors) for item in tree["tuple"])
    if "list" in tree:
        return [_unpack(item, tensors) for item in tree["list"]]
    if "dict" in tree:
        return {key: _unpack(item, tensors) for key, item in tree["dict"]}
    return _class(tree["object"])(**{key: _unpack(item, tensors) for key, item in tree["fields"]})


def encode(value: Any, provenance: Any = None) -> bytes:
    """Bytes of `value`, with `provenance` (anything JSON can hold) readable from the header alone.

    Raises `TypeError` for what cannot be stored.
    """
    tensors: dict[str, np.ndarray] = {}
    tree = _pack(value, "value", tensors)
    note = {"sha256": _ZEROS.decode(), "provenance": provenance, "value": tree}
    blob = safetensors.numpy.save(tensors, {_FIELD: json.dumps(note, separators=(",", ":"))})
    at = blob.index(_MARK) + len(_MARK)
    checksum = hashlib.sha256(blob).hexdigest().encode()
    return blob[:at] + checksum + blob[at + 64 :]


def intact(blob: bytes) -> bool:
    """Whether every byte of `blob` is as `encode` wrote it."""
    at = blob.find(_MARK, 0, 4096) + len(_MARK)
    if at < len(_MARK) or len(blob) < at + 64:
        return False
    digest = hashlib.sha256(memoryview(blob)[:at])
    digest.update(_ZEROS)
    digest.update(memoryview(blob)[at + 64 :])
    return digest.hexdigest().encode() == blob[at : at + 64]


def _note(blob: bytes) -> dict[str, Any]:
    length = int.from_bytes(blob[:8], "little")
    return json.loads(json.loads(blob[8 : 8 + length])["__metadata__"][_FIELD])


def decode(blob: bytes) -> Any:
    """The value whose bytes `encode` wrote; raises `DamagedArtifact` for anything else."""
    if not intact(blob):
        raise DamagedArtifact("checksum does not fit")
    try:
        return _unpack(_note(blob)["value"], safetensors.numpy.load(blob))
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        raise DamagedArtifact(f"written by another version: {error}") from error


def provenance(head: bytes) -> Any:
    """The provenance in a file's header, unverified; None when the header cannot be read."""
    try:
        return _note(head)["provenance"]
    except (KeyError, TypeError, ValueError):
        return None
