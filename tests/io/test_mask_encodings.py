"""Masks and photographs as odd encoders leave them: byte orders, floating point, lossy compression."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sparse_ga.io.images import read_photograph
from sparse_ga.io.masks import mask_labels, read_mask

SIZE = (48, 32)  # W, H


def blob(size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), bool)
    mask[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = True
    return mask


def write_tiff(path: Path, values: np.ndarray, order: str, orientation: int = 1) -> Path:
    """A grey TIFF of the given byte order, "<" or ">": Pillow writes only its own."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    short, long = 3, 4
    bits = values.dtype.itemsize * 8
    entries = [(256, short, width), (257, short, height), (258, short, bits), (259, short, 1), (262, short, 1)]
    entries += [(273, long, 8), (274, short, orientation), (277, short, 1), (278, short, height)]
    entries += [(279, long, len(data)), (339, short, kind)]
    out = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8 + len(data)) + data
    out += struct.pack(order + "H", len(entries))
    for tag, form, value in entries:
        out += struct.pack(order + "HHI", tag, form, 1)
        out += struct.pack(order + "HH", value, 0) if form == short else struct.pack(order + "I", value)
    path.write_bytes(out + struct.pack(order + "I", 0))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_masks_are_cut_at_one_half_in_either_byte_order(tmp_path: Path, order: str):
    soft = np.where(blob(), 65535, 0).astype(np.uint16)
    soft[:, :3], soft[-1] = 100, 40000  # a dark rim is no label: it covers no area
    path = write_tiff(tmp_path / "a.tif", soft, order)
    np.testing.assert_array_equal(read_mask(path, SIZE), soft >= 32768)
    turned = write_tiff(tmp_path / "b.tif", soft, order, orientation=3)
    np.testing.assert_array_equal(read_mask(turned, SIZE), soft[::-1, ::-1] >= 32768)
    assert mask_labels(path) == ()
    labels = blob().astype(np.uint16) * 300
    path = write_tiff(tmp_path / "l.tif", labels, order)
    np.testing.assert_array_equal(read_mask(path, SIZE, 300), blob())
    assert mask_labels(path) == (300,)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_photographs_in_floating_point_have_their_brightness(tmp_path: Path, order: str, white: float):
    shares = np.linspace(0, 1, 48 * 32, dtype=np.float32).reshape(32, 48)
    expected = np.rint(shares * 255).astype(int)
    read = read_photograph(write_tiff(tmp_path / "a.tif", shares * np.float32(white), order)).image
    assert np.abs(read - expected[..., None]).max() <= 1
    odd = shares * np.float32(white)
    odd[5, 5:9] = np.nan, np.inf, -np.inf, 1.3 * white  # as filters and dead pixels leave them
    read = read_photograph(write_tiff(tmp_path / "b.tif", odd, order)).image
    assert read[5, 5:9, 0].tolist() == [0, 255, 0, 255]
    assert np.abs(np.delete(read - expected[..., None], 5, 0)).max() <= 1
    blank = np.full((32, 48), np.nan, np.float32)
    assert not read_photograph(write_tiff(tmp_path / "c.tif", blank, order)).image.any()


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_masks_in_floating_point(tmp_path: Path, white: float):
    soft = np.where(blob(), 1, 0.3).astype(np.float32) * np.float32(white)
    soft[0, :3] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(read_mask(write_tiff(tmp_path / "s.tif", soft, "<"), SIZE), blob())
    nothing = np.full((32, 48), np.nan, np.float32)
    assert not read_mask(write_tiff(tmp_path / "n.tif", nothing, "<"), SIZE).any()


def test_labels_in_floating_point_are_labels(tmp_path: Path):
    labels = blob().astype(np.float32)
    labels[20:28, 30:40] = 3
    path = write_tiff(tmp_path / "l.tif", labels, "<")
    np.testing.assert_array_equal(read_mask(path, SIZE), labels > 0)
    np.testing.assert_array_equal(read_mask(path, SIZE, 3), labels == 3)
    assert mask_labels(path) == (1, 3)
