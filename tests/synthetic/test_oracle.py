"""The oracle: exact without noise, off by what it is told, deterministic, and hostile outside the mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from sparse_ga.geometry import cameras, transforms
from sparse_ga.predictors.base import PairPredictor
from sparse_ga.products import Array
from sparse_ga.synthetic.oracle import OracleNoise, OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene

EXACT = OracleNoise(depth=0, rotation_deg=0, translation=0, scale=0, match_px=0)


@pytest.fixture(scope="module")
def scene() -> SyntheticScene:
    return make_scene(SceneConfig(views=8, size=(256, 192), mesh_resolution=56, roll="half"))


def true_points(scene: SyntheticScene, n: int, in_view: int) -> Array:
    """The object's points of view n, exact, in the camera frame of `in_view`, (H, W, 3)."""
    points = cameras.unproject_depth(scene.intrinsics[n], scene.depth[n])
    motion = transforms.inverse(scene.world_from_cam[in_view]) @ scene.world_from_cam[n]
    return transforms.apply(motion, points)


@pytest.mark.slow
def test_without_noise_it_is_the_truth(scene: SyntheticScene) -> None:
    views = scene.views()
    prediction = OraclePredictor(scene, noise=EXACT).predict(views[0], views[1])
    for pointmap, n, frame in (
        (prediction.i_in_i, 0, 0),
        (prediction.j_in_i, 1, 0),
        (prediction.j_in_j, 1, 1),
        (prediction.i_in_j, 0, 1),
    ):
        error = np.abs(pointmap.points - true_points(scene, n, frame))[scene.masks[n]]
        assert error.max() < 1e-4


def test_background_moves_with_the_room(scene: SyntheticScene) -> None:
    views = scene.views()
    prediction = OraclePredictor(scene, noise=EXACT).predict(views[0], views[2])
    off = ~scene.masks[2]
    np.testing.assert_allclose(  # the camera stood still: the background has not moved, though the object has
        prediction.j_in_i.points[off], prediction.j_in_j.points[off], rtol=0.05, atol=0.15
    )
    assert prediction.j_in_i.confidence[off].mean() > prediction.j_in_i.confidence[~off].mean()
    moved = np.linalg.norm(prediction.j_in_i.points - prediction.j_in_j.points, axis=-1)[~off]
    assert np.median(moved) > 0.1


def test_noise_has_the_size_it_is_told(scene: SyntheticScene) -> None:
    views, mask = scene.views(), scene.masks[0]
    depth_error, scales, angles = [], [], []
    for seed in range(12):
        oracle = OraclePredictor(scene, seed, matching="matches")
        prediction = oracle.predict(views[0], views[1])
        ratio = np.log(prediction.i_in_i.points[mask, 2] / scene.depth[0][mask])
        scales.append(ratio.mean())
        depth_error.append(ratio.std())
        truth = true_points(scene, 1, 0)[scene.masks[1]]
        found, valid = transforms.similarity_from_points(prediction.j_in_i.points[scene.masks[1]].astype(float), truth)
        assert valid
        angles.append(transforms.rotation_angle_deg(transforms.nearest_rotation(found[:3, :3])))
    assert 0.02 < np.std(scales) < 0.1
    assert 0.005 < np.mean(depth_error) < 0.025
    assert 1.0 < np.median(angles) < 6.0  # smooth depth noise turns the surface too


def test_deterministic_and_symmetric(scene: SyntheticScene) -> None:
    views = scene.views()
    one = OraclePredictor(scene, 3).predict(views[0], views[1])
    again = OraclePredictor(scene, 3).predict(views[0], views[1])
    swapped = OraclePredictor(scene, 3).predict(views[1], views[0])
    other = OraclePredictor(scene, 4).predict(views[0], views[1])
    for name, mirrored in (("i_in_i", "j_in_j"), ("j_in_i", "i_in_j")):
        for part in ("points", "confidence", "descriptors"):
            value = getattr(getattr(one, name), part)
            assert np.array_equal(value, getattr(getattr(again, name), part))
            assert np.array_equal(value, getattr(getattr(swapped, mirrored), part))
            assert not np.array_equal(value, getattr(getattr(other, name), part))


def test_descriptors_match_to_a_pixel(scene: SyntheticScene) -> None:
    views = scene.views()
    oracle = OraclePredictor(scene)
    prediction = oracle.predict(views[0], views[1])
    exact = OraclePredictor(scene, noise=EXACT, matching="matches", match_spacing=4).predict(views[0], views[1]).matches
    assert exact is not None
    start = np.round(exact.xy_i).astype(int)
    on_grid = np.abs(exact.xy_i - start).max(-1) < 1e-6
    on_grid &= scene.masks[0][start[:, 1], start[:, 0]]
    start, target = start[on_grid], exact.xy_j[on_grid]
    assert len(start) > 300
    assert prediction.i_in_i.descriptors is not None
    assert prediction.j_in_i.descriptors is not None
    np.testing.assert_allclose(np.linalg.norm(prediction.i_in_i.descriptors, axis=-1), 1, atol=1e-5)
    database = prediction.j_in_i.descriptors.reshape(-1, 24)  # all pixels: background does not steal matches
    _, nearest = cKDTree(database).query(prediction.i_in_i.descriptors[start[:, 1], start[:, 0]])
    found = np.stack([nearest % 256, nearest // 256], -1)
    error = np.linalg.norm(found - target, axis=-1)
    assert 0.4 < np.median(error) < 1.1
    assert np.mean(error < 4) > 0.9


def test_matches_land_where_the_geometry_says(scene: SyntheticScene) -> None:
    views = scene.views()
    matches = OraclePredictor(scene, matching="matches").predict(views[2], views[1]).matches
    assert matches is not None
    xy_i, xy_j = matches.xy_i.astype(float), matches.xy_j.astype(float)
    cell = np.round(xy_i).astype(int)
    on_object = scene.masks[2][cell[:, 1], cell[:, 0]]
    assert 0.1 < on_object.mean() < 0.9  # the rest is on the static background
    depth = scene.depth_at(2, xy_i[on_object])
    points = cameras.rays(scene.intrinsics[2], xy_i[on_object]) * depth[:, None]
    motion = transforms.inverse(scene.world_from_cam[1]) @ scene.world_from_cam[2]
    target, _ = cameras.project(scene.intrinsics[1], transforms.apply(motion, points))
    error = (target - xy_j[on_object])[depth > 0]
    assert 0.4 < 1.4826 * np.median(np.abs(error)) < 1.2
    start, landed = np.round(xy_j[~on_object]).astype(int), xy_i[~on_object]
    depth = scene.background_depth[1][start[:, 1], start[:, 0]]
    room = cameras.rays(scene.intrinsics[1], start.astype(float)) * depth[:, None]
    motion = transforms.inverse(scene.room_from_cam[2]) @ scene.room_from_cam[1]
    target, _ = cameras.project(scene.intrinsics[2], transforms.apply(motion, room))
    exact = np.linalg.norm(target - landed, axis=1) < 0.1  # noise carries a few of the object's over its edge
    assert exact.sum() > 50
    assert exact.mean() > 0.9


def test_masked_background_has_least_confidence_and_no_matches(scene: SyntheticScene) -> None:
    views = scene.views()
    oracle = OraclePredictor(scene, noise=replace(EXACT, background="masked"), matching="matches")
    prediction = oracle.predict(views[0], views[1])
    assert (prediction.i_in_i.confidence[~scene.masks[0]] == 1).all()
    assert (prediction.i_in_i.confidence[scene.masks[0]] > 1).all()
    assert prediction.matches is not None
    cell = np.round(prediction.matches.xy_i).astype(int)
    assert scene.masks[0][cell[:, 1], cell[:, 0]].all()


@pytest.mark.parametrize("kind", ["lookalike", "shuffled"])
def test_wrong_pairs(scene: SyntheticScene, kind: str) -> None:
    noise = replace(EXACT, wrong_share=0.3, wrong_kind=kind)  # type: ignore[arg-type]
    oracle = OraclePredictor(scene, noise=noise, matching="matches")
    views = scene.views()
    pairs = [(i, j) for i in range(8) for j in range(i)]
    wrong = [oracle.is_wrong(views[i].name, views[j].name) for i, j in pairs]
    assert wrong == [oracle.is_wrong(views[j].name, views[i].name) for i, j in pairs]
    assert 0.1 < np.mean(wrong) < 0.55
    for (i, j), bad in zip(pairs, wrong, strict=True):
        if i - j > 2:
            continue
        points = oracle.predict(views[i], views[j]).j_in_i.points[scene.masks[j]]
        error = np.linalg.norm(points - true_points(scene, j, i)[scene.masks[j]], axis=-1)
        assert (np.median(error) > 0.1) == bad


def test_the_other_order_of_a_wrong_pair_is_as_wrong(scene: SyntheticScene) -> None:
    oracle = OraclePredictor(scene, noise=replace(EXACT, wrong_share=1.0), matching="matches")
    views = scene.views()
    prediction = oracle.predict(views[0], views[1])
    mask = scene.masks[1]
    back, valid = transforms.similarity_from_points(
        prediction.j_in_i.points[mask].astype(float), prediction.j_in_j.points[mask].astype(float)
    )
    forth, _ = transforms.similarity_from_points(
        prediction.i_in_j.points[scene.masks[0]].astype(float), prediction.i_in_i.points[scene.masks[0]].astype(float)
    )
    assert valid
    np.testing.assert_allclose(back @ forth, np.eye(4), atol=1e-3)


def test_protocol_and_fingerprint(scene: SyntheticScene) -> None:
    assert isinstance(OraclePredictor(scene), PairPredictor)
    prints = {
        OraclePredictor(scene).fingerprint,
        OraclePredictor(scene, 1).fingerprint,
        OraclePredictor(scene, noise=EXACT).fingerprint,
        OraclePredictor(scene, matching="matches").fingerprint,
    }
    assert len(prints) == 4
    assert OraclePredictor(scene).fingerprint in prints


def test_foreign_views_are_refused(scene: SyntheticScene) -> None:
    view = scene.views()[0]
    with pytest.raises(ValueError, match="not of this scene"):
        OraclePredictor(scene).predict(replace(view, name="other.png"), view)
    small = replace(view, image=view.image[:96, :96], mask=view.mask[:96, :96])
    with pytest.raises(ValueError, match="rendered size"):
        OraclePredictor(scene).predict(view, small)
