"""Textures: detectable at all scales where they should be, plain where not, static backgrounds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sparse_ga.synthetic.scene import SceneConfig, make_scene
from sparse_ga.synthetic.texture import make_texture, photo_like


def keypoints_on_object(texture: str) -> int:
    scene = make_scene(SceneConfig(views=1, size=(384, 288), mesh_resolution=56, background="none", texture=texture))  # type: ignore[arg-type]
    mask = cv2.erode(scene.masks[0].astype(np.uint8), np.ones((9, 9), np.uint8))
    return len(cv2.SIFT_create(contrastThreshold=0.02).detect(cv2.cvtColor(scene.images[0], cv2.COLOR_RGB2GRAY), mask))


@pytest.mark.slow
def test_rich_texture_is_rich_and_weak_is_weak() -> None:
    rich, weak = keypoints_on_object("rich"), keypoints_on_object("weak")
    assert rich > 200
    assert weak < rich / 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_colour_depends_on_the_point_alone(dtype: type) -> None:
    texture = make_texture(3)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3)).astype(dtype)
    whole = texture.color(points)
    assert whole.dtype == np.float32
    assert whole.min() >= 0
    assert whole.max() <= 1
    np.testing.assert_array_equal(whole[100:], texture.color(points[100:]))
    assert texture.color(np.zeros((0, 3))).shape == (0, 3)
    assert np.abs(whole - make_texture(4).color(points)).mean() > 0.05


def test_photo_like_pictures_are_cluttered() -> None:
    picture = photo_like(240, 320, 0)
    assert picture.shape == (240, 320, 3)
    grey = cv2.cvtColor((picture * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    assert len(cv2.SIFT_create().detect(grey, None)) > 100
    np.testing.assert_array_equal(picture, photo_like(240, 320, 0))
