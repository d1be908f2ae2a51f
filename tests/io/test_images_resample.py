"""The working grid and exact area resampling."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.io.resample import (
    WorkingGrid,
    choose_grid,
    compare_sizes,
    foreground_box,
    resample_image,
    resample_mask,
    resize_mask,
)


def everywhere(image: np.ndarray, grid: WorkingGrid) -> np.ndarray:
    """The image resampled with everything object."""
    working = np.ones((grid.size[1], grid.size[0]), bool)
    return resample_image(image, grid, np.ones(image.shape[:2], bool), working)


def plain_area_mean(image: np.ndarray, grid: WorkingGrid) -> np.ndarray:
    """Slow reference: the mean of every output pixel over a fine grid of point samples, border repeated."""
    height, width = image.shape[:2]
    fine = 40
    offsets = (np.arange(fine) + 0.5) / fine
    xs = grid.origin[0] + grid.step * (np.arange(grid.size[0])[:, None] + offsets)  # (w, fine)
    ys = grid.origin[1] + grid.step * (np.arange(grid.size[1])[:, None] + offsets)
    columns = np.clip(np.floor(xs).astype(int), 0, width - 1)
    rows = np.clip(np.floor(ys).astype(int), 0, height - 1)
    by_column = image[:, columns].mean(2)  # (H, w, C)
    return by_column[rows].mean(1)


def test_a_vga_photograph_becomes_512x384_exactly():
    grid = choose_grid((640, 480), (0, 0, 640, 480), 512, 16)
    assert grid.size == (512, 384)
    assert grid.step == 1.25
    assert grid.origin == (0, 0)
    # the centre of the corner pixel: source 0.125 is the middle of the first 1.25 px
    np.testing.assert_allclose(grid.working_from_source @ [0.125, 0.125, 1], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(grid.working_from_source @ [319.5, 239.5, 1], [255.5, 191.5, 1], atol=1e-12)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (4000, 3000), (1000, 563), (513, 512), (511, 200), (100, 37)])
@pytest.mark.parametrize("box", [None, (0, 0, 1, 1), "all", "centre", "corner"])
def test_no_foreground_is_ever_cropped_away(size: tuple[int, int], box):
    width, height = size
    boxes = {
        "all": (0, 0, width, height),
        "centre": (width // 3, height // 3, width // 2, height // 2),
        "corner": (width // 2, height - 9, width, height),
    }
    box = boxes.get(box, box)
    grid = choose_grid(size, box, 512, 16)
    assert grid.size[0] % 16 == 0
    assert grid.size[1] % 16 == 0
    assert max(grid.size) <= 512 + 16
    x0, y0, x1, y1 = box or (width // 2, height // 2, width // 2 + 1, height // 2 + 1)
    end = [corner + grid.step * side for corner, side in zip(grid.origin, grid.size, strict=True)]
    assert grid.origin[0] <= x0
    assert grid.origin[1] <= y0
    assert end[0] >= x1 - 1e-6
    assert end[1] >= y1 - 1e-6
    assert all(corner == int(corner) for corner in grid.origin)


def test_small_photographs_keep_their_scale():
    grid = choose_grid((320, 240), (0, 0, 320, 240), 512, 16)
    assert (grid.size, grid.step, grid.origin) == ((320, 240), 1.0, (0, 0))
    np.testing.assert_array_equal(grid.working_from_source, np.eye(3))


def test_background_is_cropped_rather_than_padded_and_centrally():
    grid = choose_grid((512, 390), (100, 100, 300, 300), 512, 16)
    assert grid.size == (512, 384)
    assert grid.origin == (0, 3)
    low = choose_grid((512, 390), (100, 0, 300, 300), 512, 16)
    assert low.origin == (0, 0)
    high = choose_grid((512, 390), (100, 100, 300, 390), 512, 16)
    assert high.origin == (0, 6)
    padded = choose_grid((512, 390), (100, 0, 300, 390), 512, 16)
    assert padded.size == (512, 400)
    assert padded.origin == (0, -5)


@pytest.mark.parametrize(
    "grid",
    [
        WorkingGrid((32, 16), 1.25, (0, 0)),
        WorkingGrid((16, 16), 2.7, (-3, -1)),
        WorkingGrid((16, 16), 1.0, (5, 3)),
        WorkingGrid((16, 16), 5.5, (-20, -30)),
    ],
)
def test_area_resampling_equals_a_slow_mean(grid: WorkingGrid):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    expected = plain_area_mean(image.astype(float), grid)
    # the reference samples 40 points a pixel, so it is good to 1/40 of a step in each direction
    assert np.abs(everywhere(image, grid).astype(float) - expected).max() < 255 * 2 / 40
    assert np.abs(everywhere(image, grid).astype(float) - expected).mean() < 1.5


def test_resampling_moves_no_content():
    """A linear ramp of the source keeps its values at the pixels that `working_from_source` says."""
    x = np.arange(200, dtype=float)
    image = np.repeat(np.repeat(np.rint(x)[None, :, None], 40, 0), 3, 2).astype(np.uint8)
    grid = WorkingGrid((64, 16), 2.4, (7, 1))
    source_from_working = np.linalg.inv(grid.working_from_source)
    expected = source_from_working[0, 0] * np.arange(64) + source_from_working[0, 2]
    assert np.abs(everywhere(image, grid)[5, :, 0] - expected).max() <= 0.51  # rounding to a grey level


def test_constant_images_stay_constant_and_masks_end_at_the_photograph():
    image = np.full((30, 30, 3), 77, np.uint8)
    grid = WorkingGrid((32, 32), 1.5, (-6, -6))
    assert (everywhere(image, grid) == 77).all()
    mask = resample_mask(np.ones((30, 30), bool), grid, 0.5)
    inside = np.zeros((32, 32), bool)
    inside[4:24, 4:24] = True
    np.testing.assert_array_equal(mask, inside)


def test_no_background_bleeds_into_the_object_and_none_of_the_object_into_the_background():
    rng = np.random.default_rng(3)
    mask = rng.random((60, 80)) < 0.5
    image = rng.integers(0, 255, (60, 80, 3)).astype(np.uint8)
    grid = WorkingGrid((48, 32), 1.6, (1, 2))
    working = resample_mask(mask, grid, 0.5)
    first = resample_image(image, grid, mask, working)
    other = resample_image(np.where(mask[..., None], image, 255 - image), grid, mask, working)
    assert (first[working] == other[working]).all()
    swapped = resample_image(np.where(mask[..., None], 255 - image, image), grid, mask, working)
    assert (first[~working] == swapped[~working]).all()
    assert (first[~working] != other[~working]).any()


def test_mask_threshold_is_the_share_of_the_pixel():
    mask = np.zeros((32, 32), bool)
    mask[:, :17] = True  # half of the ninth working column
    grid = WorkingGrid((16, 16), 2.0, (0, 0))
    assert resample_mask(mask, grid, 0.5)[0].sum() == 9
    assert resample_mask(mask, grid, 0.51)[0].sum() == 8
    assert resample_mask(np.zeros((32, 32), bool), grid, 0.5).sum() == 0


def test_resize_mask_keeps_the_shape_of_things():
    mask = np.zeros((30, 40), bool)
    mask[10:20, 10:30] = True
    big = resize_mask(mask, (120, 90))
    expected = np.zeros((90, 120), bool)
    expected[30:60, 30:90] = True
    np.testing.assert_array_equal(big, expected)
    np.testing.assert_array_equal(resize_mask(big, (40, 30)), mask)
    assert resize_mask(mask, (40, 30)) is mask


def test_foreground_box():
    mask = np.zeros((10, 20), bool)
    assert foreground_box(mask) is None
    mask[3, 7] = mask[8, 12] = True
    assert foreground_box(mask) == (7, 3, 13, 9)


@pytest.mark.parametrize(
    ("size", "reference", "relation"),
    [
        ((640, 480), (640, 480), "same"),
        ((320, 240), (640, 480), "proportional"),
        ((1280, 960), (640, 480), "proportional"),
        ((341, 256), (4000, 3000), "proportional"),
        ((480, 640), (640, 480), "turned"),
        ((240, 320), (640, 480), "turned"),
        ((640, 479), (640, 480), "proportional"),
        ((640, 470), (640, 480), "different"),
        ((512, 512), (640, 480), "different"),
    ],
)
def test_compare_sizes(size, reference, relation):
    assert compare_sizes(size, reference) == relation
