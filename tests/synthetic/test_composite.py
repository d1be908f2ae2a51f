"""Composites: the object stays, the background is one for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sparse_ga.synthetic.composite import composite_folder, composite_over_background


def test_composite_keeps_the_object_and_shares_the_background() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 60, 80, 3), dtype=np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 20:40, 20:40] = masks[1, 10:30, 40:60] = True
    one, two = (composite_over_background(images[n], masks[n], seed=5) for n in range(2))
    assert np.array_equal(one[masks[0]], images[0][masks[0]])
    away = np.ones((60, 80), bool)
    away[8:42, 18:62] = False
    assert np.array_equal(one[away], two[away])
    assert not np.array_equal(one, composite_over_background(images[0], masks[0], seed=6))


def test_composite_folder_keeps_names_and_the_object(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((48, 64), bool)
    mask[20:30, 20:40] = True
    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
    pictures = rng.integers(0, 255, (2, 48, 64, 3), dtype=np.uint8)
    for n in range(2):
        Image.fromarray(pictures[n]).save(tmp_path / "images" / f"a{n}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"a{n}.png")
    written = composite_folder(tmp_path / "images", tmp_path / "masks", tmp_path / "out", seed=2)
    assert [path.name for path in written] == ["a0.png", "a1.png"]
    again = np.array(Image.open(written[1]))
    assert np.array_equal(again[mask], pictures[1][mask])
    first = np.array(Image.open(written[0]))
    assert np.array_equal(again[:15], first[:15])
