"""What products promise beyond holding arrays."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.io.resample import WorkingGrid, choose_grid, resample_mask
from sparse_ga.products import DepthMaps, MaskStack, View


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


def view_on(grid: WorkingGrid, source_size: tuple[int, int], mask: np.ndarray | None = None) -> View:
    width, height = grid.size
    mask = np.zeros((height, width), bool) if mask is None else mask
    return View("a", np.zeros((height, width, 3), np.uint8), mask, None, grid.working_from_source, source_size, "a")


@pytest.mark.parametrize(("source", "long_side"), [((240, 150), 512), ((1000, 637), 320), ((333, 500), 200)])
def test_padding_is_what_shows_nothing_of_the_photograph(source: tuple[int, int], long_side: int) -> None:
    everything = np.ones(source[::-1], bool)
    grid = choose_grid(source, (0, 0, *source), long_side, 16)
    mask = resample_mask(everything, grid, 0.5)
    assert not mask.all()
    for held in (None, mask):
        seen = np.zeros(mask.shape, bool)
        seen[view_on(grid, source, held).photographed] = True
        np.testing.assert_array_equal(seen, mask)


def test_a_working_image_that_ends_inside_its_photograph_has_no_padding() -> None:
    grid = WorkingGrid((64, 48), 2.0, (10.0, 20.0))
    assert view_on(grid, (640, 480)).photographed == (slice(0, 48), slice(0, 64))
    assert view_on(grid, (100, 480)).photographed == (slice(0, 48), slice(0, 45))


def test_mask_pixels_are_photographed_however_little_of_them_is() -> None:
    source = (100, 70)
    grid = WorkingGrid((64, 48), 2.0, (-9.5, -0.5))
    mask = resample_mask(np.ones(source[::-1], bool), grid, 0.1)
    rows, columns = view_on(grid, source).photographed
    assert columns.start == 5
    held = view_on(grid, source, mask).photographed
    assert held == (slice(0, rows.stop + 1), slice(4, columns.stop))


def test_a_working_image_of_padding_alone_shows_nothing() -> None:
    rows, columns = view_on(WorkingGrid((64, 48), 1.0, (200.0, 0.0)), (100, 70)).photographed
    assert len(range(*rows.indices(48))) == 48
    assert len(range(*columns.indices(64))) == 0
