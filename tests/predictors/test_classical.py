"""The classical predictor on rendered scenes with exact truth: background, focal length, rejected pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparse_ga.geometry.transforms import apply, inverse, rotation_angle_deg, similarity_from_points
from sparse_ga.predictors.classical import ClassicalPredictor, match_root_sift
from sparse_ga.products import View
from sparse_ga.synthetic.scene import SceneConfig, make_scene


@pytest.fixture(scope="module")
def scene():
    return make_scene(SceneConfig(seed=3, views=5, arc_deg=72.0, size=(320, 240)))


@pytest.fixture(scope="module")
def views(scene) -> list[View]:
    return scene.views(known_intrinsics=True)


@pytest.fixture(scope="module")
def prediction(views: list[View]):
    return ClassicalPredictor().predict(views[0], views[1])


@pytest.mark.slow
def test_matches_are_right_and_on_the_object(scene, views: list[View], prediction) -> None:
    assert prediction.rejected is None
    matches = prediction.matches
    column, row = np.round(matches.xy_i).astype(int).T
    assert views[0].mask[row, column].all()
    depth = scene.depth[0][row, column]
    homogeneous = np.concatenate([matches.xy_i, np.ones((len(matches), 1))], 1)
    points = (homogeneous @ np.linalg.inv(scene.intrinsics[0]).T) * depth[:, None]
    seen = apply(inverse(scene.world_from_cam[1]) @ scene.world_from_cam[0], points) @ scene.intrinsics[1].T
    error = np.linalg.norm(seen[:, :2] / seen[:, 2:] - matches.xy_j, axis=1)
    assert np.median(error) < 1.0
    assert (error < 3).mean() > 0.9


def test_point_maps_agree_with_the_truth_up_to_scale(scene, views: list[View], prediction) -> None:
    confident = (prediction.i_in_i.confidence > 0.7) & views[0].mask
    ratio = prediction.i_in_i.points[confident][:, 2] / scene.depth[0][confident]
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.02
    i_from_j, valid = similarity_from_points(
        prediction.j_in_i.points[views[1].mask].astype(float), prediction.j_in_j.points[views[1].mask].astype(float)
    )
    assert valid
    truth = inverse(scene.world_from_cam[0]) @ scene.world_from_cam[1]
    assert rotation_angle_deg(i_from_j[:3, :3].T @ truth[:3, :3]) < 3


def test_everything_is_finite_and_confidence_is_zero_off_the_object(views: list[View], prediction) -> None:
    for pointmap, view in (
        (prediction.i_in_i, views[0]),
        (prediction.i_in_j, views[0]),
        (prediction.j_in_j, views[1]),
        (prediction.j_in_i, views[1]),
    ):
        assert np.isfinite(pointmap.points).all()
        assert (pointmap.confidence[~view.mask] == 0).all()
        assert (pointmap.confidence[view.mask] > 0).all()


def test_no_background_pixel_has_any_influence(views: list[View], prediction) -> None:
    noise = np.random.default_rng(0).integers(0, 255, views[0].image.shape, dtype=np.uint8)
    changed = [replace(v, image=np.where(v.mask[..., None], v.image, noise)) for v in views[:2]]
    again = ClassicalPredictor().predict(*changed)
    assert (again.matches.xy_i == prediction.matches.xy_i).all()
    assert (again.i_in_j.points == prediction.i_in_j.points).all()


@pytest.mark.parametrize("kind", ["empty", "one pixel", "same view"])
def test_hopeless_pairs_are_rejected_with_a_reason(views: list[View], kind: str) -> None:
    mask = np.zeros_like(views[1].mask)
    mask[100, 100] = kind == "one pixel"
    other = views[0] if kind == "same view" else replace(views[1], mask=mask)
    result = ClassicalPredictor().predict(views[0], other)
    assert result.rejected
    assert len(result.matches) == 0
    assert np.isfinite(result.j_in_i.points).all()


def test_a_surface_with_little_contrast_still_matches(scene, views: list[View]) -> None:
    pale = [replace(v, image=np.rint(150 + 0.2 * (v.image.astype(float) - 150)).astype(np.uint8)) for v in views[:2]]
    found = ClassicalPredictor().predict(pale[0], pale[1])
    assert found.rejected is None
    on_j = views[1].mask
    i_from_j, valid = similarity_from_points(
        found.j_in_i.points[on_j].astype(float), found.j_in_j.points[on_j].astype(float)
    )
    assert valid
    truth = inverse(scene.world_from_cam[0]) @ scene.world_from_cam[1]
    assert rotation_angle_deg(i_from_j[:3, :3].T @ truth[:3, :3]) < 5


@pytest.mark.parametrize("seed", range(3))
def test_matches_that_agree_by_chance_are_no_pair(views: list[View], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sift = rng.integers(0, 255, (800, 128)).astype(np.uint8)  # each has its match, at a random place
    y, x = (np.argwhere(views[0].mask)[rng.integers(0, views[0].mask.sum(), 1600)]).T
    xy = np.stack([x, y], 1).astype(np.float32)
    features = [{"xy": part, "size": np.full(800, 3, np.float32), "sift": sift} for part in (xy[:800], xy[800:])]
    found = ClassicalPredictor().predict_from_features(views[0], views[1], features[0], features[1])
    assert found.rejected is not None
    assert "agree" in found.rejected


def test_ratio_test_on_tiny_sets() -> None:
    one = np.full((1, 128), 3, np.uint8)
    index_i, index_j, reliable = match_root_sift(one, one, 0.8)
    assert len(index_i) == len(index_j) == len(reliable) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "focal_px"), [(3, None), (5, 1100.0)])
def test_focal_length_is_found_from_the_images_alone(seed: int, focal_px: float | None) -> None:
    scene = make_scene(SceneConfig(seed=seed, views=9, arc_deg=180.0, size=(384, 288), focal_px=focal_px))
    views = scene.views()
    predictor = ClassicalPredictor()
    features = [predictor.encode(v) for v in views]
    pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
    focal, trusted = predictor.estimate_focal(views, pairs, lambda n: features[n], (192.0, 3072.0))
    assert trusted
    assert abs(focal / scene.intrinsics[0, 0, 0] - 1) < 0.05
    rng = np.random.default_rng(0)
    for found in features[4:]:  # what four of nine views agree on is not believed
        found["sift"] = rng.integers(0, 255, found["sift"].shape).astype(np.uint8)
    assert not predictor.estimate_focal(views, pairs, lambda n: features[n], (192.0, 3072.0))[1]


def test_without_matches_the_focal_is_a_guess_that_says_so(views: list[View]) -> None:
    nothing = {"xy": np.zeros((0, 2)), "size": np.zeros(0), "sift": np.zeros((0, 128), np.uint8)}
    focal, trusted = ClassicalPredictor().estimate_focal(views, [(0, 1)], lambda _: nothing, (160.0, 2560.0))
    assert not trusted
    assert focal == pytest.approx(1.2 * 320)


def test_a_derived_class_has_a_fingerprint_of_its_own() -> None:
    class Stricter(ClassicalPredictor):
        pass

    class Looser(ClassicalPredictor):
        pass

    found = {ClassicalPredictor().fingerprint, Stricter().fingerprint, Looser().fingerprint}
    assert len(found) == 3
    assert Stricter().fingerprint == Stricter().fingerprint
