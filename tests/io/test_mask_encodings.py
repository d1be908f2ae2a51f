"""Masks and photographs as odd encoders leave them: byte orders, floating point, lossy compression."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_ga.errors import InputError
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


WIDE = (320, 240)  # W, H


def star(colours: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Star-shaped areas side by side (H, W, 3) uint8, and the distance (H, W) in px outside of their outlines."""
    width, height = WIDE
    y, x = np.mgrid[:height, :width]
    image, distance = np.zeros((height, width, 3), np.uint8), np.full((height, width), np.inf)
    for n, colour in enumerate(colours):
        middle = width * (n + 0.5) / len(colours)
        radius = (
            0.4 * min(width / len(colours), height) * (1 + 0.15 * np.sin(7 * np.arctan2(y - height / 2, x - middle)))
        )
        outside = np.hypot(y - height / 2, x - middle) - radius
        image[outside < 0] = colour
        distance = np.minimum(distance, outside)
    return image, distance


def check_compressed(path: Path, distance: np.ndarray) -> None:
    wrong = read_mask(path, WIDE) != (distance < 0)
    assert np.abs(distance[wrong]).max(initial=0) <= 2, path.name
    assert wrong.sum() <= 0.01 * (distance < 0).sum(), path.name


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize(
    "colours",
    [
        [(255, 255, 255)],
        [(255, 250, 235)],
        [(200, 200, 200)],
        [(255, 0, 0)],
        [(0, 0, 255)],
        [(128, 0, 0)],
        [(255, 0, 0), (0, 255, 0)],
    ],
)
def test_compression_adds_nothing_to_masks(tmp_path: Path, suffix: str, quality: int, colours: list):
    image, distance = star(colours)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(image).save(path, quality=quality)
    check_compressed(path, distance)
    assert mask_labels(path) == ()
    if image[image > 0].min() >= 235 and image.min(-1).any():
        Image.open(path).convert("RGB").save(tmp_path / "converted.png")
        check_compressed(tmp_path / "converted.png", distance)
    Image.fromarray(np.zeros_like(image)).save(path, quality=quality)
    assert not read_mask(path, WIDE).any()


def test_lossless_colours_stay_labels_however_dark(tmp_path: Path):
    image, distance = star([(255, 255, 255), (0, 64, 128), (9, 0, 0)])
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {})):
        Image.fromarray(image).save(tmp_path / name, **options)
        np.testing.assert_array_equal(read_mask(tmp_path / name, WIDE), distance < 0, name)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=90)
    with pytest.raises(InputError, match=r"a\.jpg: areas of brightness 1\d\d beside 25\d .* PNG"):
        read_mask(tmp_path / "a.jpg", WIDE)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("quality", [50, 95])
def test_a_compressed_photograph_is_no_mask(tmp_path: Path, suffix: str, quality: int):
    _, distance = star([(255, 0, 0)])
    rng = np.random.default_rng(0)
    shading = 40 + 180 * np.clip(-distance / 90, 0, 1)[..., None] * np.array([1, 0.7, 0.5])
    noisy = np.where(distance[..., None] < 0, shading + rng.normal(0, 8, image_shape := (*distance.shape, 3)), 5)
    for n, background in enumerate(
        (noisy, np.where(distance[..., None] < 0, noisy, 255), rng.normal(128, 30, image_shape))
    ):
        path = tmp_path / f"{n}.{suffix}"
        Image.fromarray(background.clip(0, 255).astype(np.uint8)).save(path, quality=quality)
        with pytest.raises(InputError, match=r"exchanged|the compression blurs both"):
            read_mask(path, WIDE)


@pytest.mark.parametrize("bright", [240, 255])
def test_a_darker_area_of_a_lossy_mask_is_not_dropped_silently_and_a_wide_soft_edge_is_cut(
    tmp_path: Path, bright: int
) -> None:
    values = np.zeros((120, 160), np.uint8)
    values[20:100, 20:70], values[20:100, 90:140] = 100, bright
    Image.fromarray(values).save(tmp_path / "areas.jpg", quality=90)
    with pytest.raises(InputError, match="may be object or not"):
        read_mask(tmp_path / "areas.jpg", (160, 120))
    ramp = np.clip((np.arange(160) - 30) * 5, 0, bright).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (120, 1))).save(tmp_path / "soft.jpg", quality=90)
    mask = read_mask(tmp_path / "soft.jpg", (160, 120))
    assert abs(mask[60].argmax() - (ramp >= bright / 2).argmax()) <= 1


def test_nearly_grey_areas_of_a_lossless_mask_are_all_object(tmp_path: Path) -> None:
    values = np.zeros((60, 80, 3), np.uint8)
    values[10:50, 10:35], values[10:50, 45:70] = (100, 100, 110), 255
    Image.fromarray(values).save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png", (80, 60))
    np.testing.assert_array_equal(mask, values.any(-1))
