"""Scenes: depth, masks, cameras and pictures agree exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_ga.geometry import cameras, transforms
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene, without_background

SMALL = (192, 144)


@pytest.fixture(scope="module")
def turning() -> SyntheticScene:
    return make_scene(SceneConfig(views=6, size=SMALL, mesh_resolution=56, roll="half", elevations_deg=(15.0, 40.0)))


@pytest.fixture(scope="module")
def orbit() -> SyntheticScene:
    return make_scene(
        SceneConfig(views=5, size=SMALL, mesh_resolution=56, motion="orbit", shape="mug", orientation="mixed")
    )


@pytest.mark.slow
def test_depth_lies_on_the_surface(turning: SyntheticScene) -> None:
    for n in range(len(turning)):
        points = cameras.unproject_depth(turning.intrinsics[n], turning.depth[n])[turning.masks[n]]
        in_world = transforms.apply(turning.world_from_cam[n], points)
        assert turning.surface_distance(in_world).max() < 1e-5


def test_masks_are_where_depth_is(turning: SyntheticScene) -> None:
    for mask, depth in zip(turning.masks, turning.depth, strict=True):
        assert np.array_equal(mask, depth > 0)
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()


def test_object_share(turning: SyntheticScene) -> None:
    assert np.mean([mask.mean() for mask in turning.masks]) == pytest.approx(0.22, abs=0.03)


def test_background_stands_still_while_the_object_turns(turning: SyntheticScene) -> None:
    same = [n for n in range(6) if np.allclose(turning.room_from_cam[n], turning.room_from_cam[0])]
    assert same == [0]  # every other camera is upside down and there are two rings
    scene = make_scene(SceneConfig(views=3, size=SMALL, mesh_resolution=56, noise_levels=0))
    away = ~(scene.masks[0] | scene.masks[1])
    grown = np.abs(scene.images[0].astype(int) - scene.images[1]).max(-1)
    assert np.mean(grown[away] > 0) < 0.03  # only pixels that the object's edge shares
    moved = transforms.rotation_angle_deg(scene.world_from_cam[0, :3, :3].T @ scene.world_from_cam[1, :3, :3])
    assert moved > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["turning", "orbit"])
def test_colours_of_one_point_agree_between_views(name: str, request: pytest.FixtureRequest) -> None:
    """A point keeps its colour from view to view up to light and resampling: poses and pictures fit together."""
    scene: SyntheticScene = request.getfixturevalue(name)
    points = scene.surface_samples(3000)
    visible = scene.visible(points)

    def colors(n: int, shift: int) -> np.ndarray:
        in_cam = transforms.apply(transforms.inverse(scene.world_from_cam[n]), points)
        xy, _ = cameras.project(scene.intrinsics[n], in_cam)
        height, width = scene.masks[n].shape
        x = np.clip(np.round(xy[:, 0]).astype(int) + shift, 0, width - 1)
        y = np.clip(np.round(xy[:, 1]).astype(int), 0, height - 1)
        return scene.images[n][y, x].astype(float).mean(-1)

    both = visible[0] & visible[2]
    assert both.sum() > 100
    right = np.corrcoef(colors(0, 0)[both], colors(2, 0)[both])[0, 1]
    wrong = np.corrcoef(colors(0, 0)[both], colors(2, 8)[both])[0, 1]
    assert right > 0.6
    assert right > wrong + 0.2


def test_background_follows_its_own_motion(orbit: SyntheticScene) -> None:
    """An orbit is rigid: background depths of two views give the same points as the poses of the object."""
    np.testing.assert_array_equal(orbit.room_from_cam, orbit.world_from_cam)
    points = cameras.unproject_depth(orbit.intrinsics[0], orbit.background_depth[0])[::7, ::7].reshape(-1, 3)
    motion = transforms.inverse(orbit.room_from_cam[2]) @ orbit.room_from_cam[0]
    in_other = transforms.apply(motion, points)
    xy, front = cameras.project(orbit.intrinsics[2], in_other)
    cell = np.round(xy).astype(int)
    height, width = orbit.masks[2].shape
    seen = front & (cell >= 0).all(-1) & (cell[:, 0] < width) & (cell[:, 1] < height)
    depth = orbit.background_depth[2][cell[seen, 1], cell[seen, 0]]
    assert seen.sum() > 50
    assert np.median(np.abs(depth / in_other[seen, 2] - 1)) < 0.01


def test_mixed_orientation_and_off_centre_principal_point(orbit: SyntheticScene) -> None:
    assert [mask.shape for mask in orbit.masks[:2]] == [(144, 192), (192, 144)]
    scene = make_scene(
        SceneConfig(views=2, size=SMALL, mesh_resolution=56, principal_offset_px=(40.0, -20.0), focal_px=900.0)
    )
    np.testing.assert_allclose(scene.intrinsics[0], [[900, 0, 95.5 + 40], [0, 900, 71.5 - 20], [0, 0, 1]])
    rows, cols = np.nonzero(scene.masks[0])
    assert np.abs([cols.mean() - 95.5, rows.mean() - 71.5]).max() < 15  # the object stays central all the same


def test_depth_at_arbitrary_pixels(turning: SyntheticScene) -> None:
    xy = np.array([[90.0, 70.0], [0.0, 0.0]])
    depth = turning.depth_at(0, xy)
    assert depth[0] == pytest.approx(float(turning.depth[0][70, 90]), rel=1e-6)
    assert depth[1] == 0


@pytest.mark.slow
def test_same_config_same_bytes() -> None:
    config = SceneConfig(views=2, size=SMALL, mesh_resolution=56, motion="free", roll="all", shape="ring")
    one, again = make_scene(config), make_scene(config)
    assert one.digest == again.digest
    assert (
        one.digest
        != make_scene(
            SceneConfig(views=2, size=SMALL, mesh_resolution=56, motion="free", roll="all", shape="box")
        ).digest
    )


@pytest.mark.parametrize(("background", "value"), [("black", 0), ("white", 255), ("none", 128)])
def test_plain_backgrounds(background: str, value: int) -> None:
    scene = make_scene(SceneConfig(views=1, size=SMALL, mesh_resolution=56, background=background))  # type: ignore[arg-type]
    assert (scene.images[0][0] == value).all()
    assert (scene.background_depth[0] == 0).all()


def test_without_background(turning: SyntheticScene) -> None:
    bare = without_background(turning, 9)
    assert (bare.images[1][~turning.masks[1]] == 9).all()
    assert np.array_equal(bare.images[1][turning.masks[1]], turning.images[1][turning.masks[1]])


def test_views_carry_what_they_are_asked_to(turning: SyntheticScene) -> None:
    plain, known = turning.views(), turning.views(known_intrinsics=True, known_poses=True)
    assert plain[0].intrinsics is None
    assert plain[0].world_from_cam is None
    assert plain[0].digest != known[0].digest
    np.testing.assert_array_equal(known[3].intrinsics, turning.intrinsics[3])
    np.testing.assert_array_equal(known[3].world_from_cam, turning.world_from_cam[3])
    assert len({view.digest for view in plain}) == len(plain)


def test_write_gives_images_masks_and_truth(orbit: SyntheticScene, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("view_017.png", "mine.png"):
        (tmp_path / "images" / name).write_bytes(b"left over")
    orbit.write(tmp_path)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {*orbit.names, "mine.png"}
    truth = json.loads((tmp_path / "gt.json").read_text())
    assert list(truth) == list(orbit.names)
    np.testing.assert_array_equal(truth["view_001.png"]["cam2w"], orbit.world_from_cam[1])
    assert truth["view_001.png"]["size"] == [144, 192]
    assert np.array_equal(np.array(Image.open(tmp_path / "images" / "view_001.png")), orbit.images[1])
    assert np.array_equal(np.array(Image.open(tmp_path / "masks" / "view_001.png")) > 0, orbit.masks[1])


def test_visibility_and_distances(turning: SyntheticScene) -> None:
    assert not turning.visible(np.zeros((1, 3))).any()  # the middle of the object
    assert turning.signed_distance(np.zeros((1, 3)))[0] < 0
    assert turning.surface_distance(np.array([[2.0, 0, 0]]))[0] > 1
    assert turning.surface_distance(np.zeros((0, 3))).shape == (0,)
    samples = turning.surface_samples(500)
    assert samples.shape == (500, 3)
    assert turning.surface_distance(samples).max() < 1e-5


@pytest.mark.parametrize("wrong", [{"views": 0}, {"object_share": 1.5}, {"elevations_deg": ()}])
def test_bad_config_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SceneConfig(**wrong)
