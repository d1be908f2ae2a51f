"""What products promise beyond holding arrays."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.products import DepthMaps, MaskStack


def test_depth_maps_come_back_and_reading_all_of_them_unpacks_each_mask_twice_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 9, (20, 2))]
    depths = [np.where(rng.random(size) > 0.5, 1 + rng.random(size), 0).astype(np.float32) for size in sizes]
    maps = DepthMaps.pack(depths, [depth / 4 for depth in depths])
    unpacked: list[int] = []
    mask = MaskStack.mask
    monkeypatch.setattr(MaskStack, "mask", lambda self, n: unpacked.append(n) or mask(self, n))
    for n in reversed(range(20)):
        depth, confidence = maps.view(n)
        np.testing.assert_array_equal(depth, depths[n])
        np.testing.assert_array_equal(confidence, depths[n] / 4)
    assert len(unpacked) <= 40
