"""Encoders the exports share: PNG, NPY, NPZ and JSON; the same content gives the same bytes."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import cv2
import numpy as np

from sparse_ga.products import Array

_EPOCH = (1980, 1, 1, 0, 0, 0)


def encode_png(image: Array) -> bytes:
    """PNG of grey (H, W) uint8 or uint16, RGB (H, W, 3) uint8 or RGBA (H, W, 4) uint8."""
    if image.ndim == 3:
        order = [2, 1, 0] if image.shape[2] == 3 else [2, 1, 0, 3]
        image = image[:, :, order]
    done, data = cv2.imencode(".png", np.ascontiguousarray(image), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    assert done
    return data.tobytes()


def encode_npy(array: Array) -> bytes:
    """NPY of one array."""
    data = io.BytesIO()
    np.save(data, np.ascontiguousarray(array), allow_pickle=False)
    return data.getvalue()


def encode_npz(arrays: dict[str, Array]) -> bytes:
    """Compressed NPZ with entries in the order given and a fixed date."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, encode_npy(array), compresslevel=4)
    return buffer.getvalue()


def encode_json(value: Any) -> bytes:
    """Indented JSON; refuses NaN and infinity."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("utf-8")
