"""Anchors: on the foreground, one to several a block, matched pixels first."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.alignment.anchors import choose_anchors


def blobs(seed: int = 0) -> np.ndarray:
    """A ragged mask (41, 57) with thin parts."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((41, 57), bool)
    mask[5:30, 10:44] = rng.random((25, 34)) < 0.7
    mask[35, 3:50] = True
    return mask


@pytest.mark.parametrize("per_block", [1, 4])
def test_anchors_are_foreground_and_serve_their_own_block(per_block: int) -> None:
    mask = blobs()
    rng = np.random.default_rng(1)
    anchors = choose_anchors(mask, (rng.random(mask.shape) < 0.1).astype(int), 8, per_block)
    assert mask[anchors.xy[:, 1], anchors.xy[:, 0]].all()
    np.testing.assert_array_equal(anchors.of_pixel >= 0, mask)
    y, x = np.nonzero(mask)
    own = anchors.xy[anchors.of_pixel[y, x]]
    np.testing.assert_array_equal(own // 8, np.stack([x, y], -1) // 8)
    blocks = {tuple(b) for b in np.stack([x, y], -1) // 8}
    per = np.unique(anchors.xy // 8, axis=0, return_counts=True)
    assert {tuple(b) for b in per[0]} == blocks
    assert per[1].max() <= per_block
    np.testing.assert_array_equal(anchors.of_pixel[anchors.xy[:, 1], anchors.xy[:, 0]], np.arange(len(anchors.xy)))


def test_pixels_go_to_the_nearest_anchor_of_their_block() -> None:
    mask = np.ones((8, 8), bool)
    count = np.zeros((8, 8), int)
    count[1, 1], count[6, 6] = 3, 2
    anchors = choose_anchors(mask, count, 8, 4)
    np.testing.assert_array_equal(anchors.xy, [[1, 1], [6, 6]])
    assert anchors.of_pixel[0, 2] == 0
    assert anchors.of_pixel[7, 5] == 1


def test_the_most_matched_pixels_become_anchors() -> None:
    mask = np.ones((8, 8), bool)
    count = np.zeros((8, 8), int)
    count[0, :6] = [1, 5, 2, 6, 3, 4]
    anchors = choose_anchors(mask, count, 8, 3)
    assert sorted(anchors.xy[:, 0]) == [1, 3, 5]


def test_matches_on_the_background_make_no_anchor() -> None:
    mask = np.zeros((16, 16), bool)
    mask[:8, :8] = True
    count = np.zeros((16, 16), int)
    count[12, 12] = 9
    anchors = choose_anchors(mask, count, 8, 4)
    assert len(anchors.xy) == 1
    assert (anchors.of_pixel[8:] == -1).all()


def test_an_empty_mask_has_no_anchor() -> None:
    anchors = choose_anchors(np.zeros((16, 24), bool), np.zeros((16, 24), int), 8, 4)
    assert anchors.xy.shape == (0, 2)
    assert (anchors.of_pixel == -1).all()
