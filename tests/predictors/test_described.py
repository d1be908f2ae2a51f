"""The classical predictor with a descriptor network: what is stored, when dense matches are believed, who is preferred.

The network has random weights here, but where the packaged ones are tested on a bare rendered object.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_ga.config import ForwardConfig
from sparse_ga.errors import InputError
from sparse_ga.geometry.cameras import make_intrinsics, project
from sparse_ga.geometry.transforms import apply, exp_so3, inverse, make, nearest_rotation, rotation_angle_deg
from sparse_ga.geometry.two_view import RelativePose, estimate_relative_pose, rotation_sigma_deg
from sparse_ga.matching.dense import DenseMatches
from sparse_ga.network.descriptor_cnn import DenseDescriptor, DescriptorCNN, DescriptorConfig
from sparse_ga.predictors import classical, described
from sparse_ga.predictors.classical import ClassicalPredictor
from sparse_ga.predictors.described import (
    DenseMatcher,
    DensePose,
    DenseSettings,
    dense_pose,
    joint_pose,
    pack,
    unpack,
)
from sparse_ga.predictors.loading import load_predictor
from sparse_ga.products import Array, PairMatches, PairPrediction, View
from sparse_ga.synthetic.scene import SceneConfig, make_scene
from sparse_ga.training.checkpoints import export_weights
from sparse_ga.training.validation import pose_of_prediction

SMALL = DescriptorConfig(8, (8, 12, 16, 16), (1, 1, 1), 64)
TURN = exp_so3(np.array([0.1, 0.4, 0.05]))
SHIFT = np.array([-0.9, 0.1, 0.3])


def _model() -> DescriptorCNN:
    torch.manual_seed(0)
    return DescriptorCNN(SMALL).eval()


@pytest.fixture(scope="module")
def describer() -> DenseDescriptor:
    return DenseDescriptor(_model(), "test")


@pytest.fixture(scope="module")
def views() -> list[View]:
    return make_scene(SceneConfig(seed=3, views=5, arc_deg=72.0, size=(320, 240))).views(known_intrinsics=True)


def _dense(
    noise_px: float, wrong_share: float = 0.0, share: float = 0.9, count: int = 900, lens: float = 1.0
) -> DenseMatches:
    """Matches of a ball seen from two sides at 320 x 240 px, 3 px apart; a lens `lens` times as long stands back."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, 3))
    points = points / np.linalg.norm(points, axis=1, keepdims=True) * 0.5
    turned = apply(make(TURN, SHIFT + TURN @ [0, 0, 2.2] - [0, 0, 2.2]), points)
    camera = make_intrinsics(400.0 * lens, np.array([159.5, 119.5]))
    xy_i, xy_j = (project(camera, p + np.array([0, 0, 2.2 * lens]))[0] for p in (points, turned))
    xy_j = xy_j + noise_px * rng.normal(size=xy_j.shape)
    wrong = rng.random(count) < wrong_share
    xy_j[wrong] = rng.uniform(60, 180, (int(wrong.sum()), 2))
    matches = PairMatches(xy_i.astype(np.float32), xy_j.astype(np.float32), np.ones(count, np.float32))
    return DenseMatches(matches, np.tile(np.eye(2), (count, 1, 1)), share, 3.0, 3.0)


def _pose_of(found: DenseMatches, lens: float = 1.0) -> DensePose | str:
    camera = make_intrinsics(400.0 * lens, np.array([159.5, 119.5]))
    return dense_pose(found, (camera, camera), DenseSettings())


def test_a_pose_from_dense_matches() -> None:
    found = _pose_of(_dense(noise_px=1.0))
    assert isinstance(found, DensePose)
    assert rotation_angle_deg(found.pose.rotation.T @ TURN) < 3
    assert found.pose.ambiguity_deg > rotation_angle_deg(found.pose.rotation.T @ TURN)
    assert found.pose.inliers.all()
    assert 60 < len(found.matches) < 450  # one in a cell, not all
    np.testing.assert_allclose(found.matches.confidence, 1 / 9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"wrong_share": 0.7}, "agree on an epipolar geometry"),
        ({"wrong_share": 0.3, "share": 0.4}, "agree on an epipolar geometry"),
        ({"share": 0.3}, "agree with those around them"),
        ({"count": 40}, "only 40 dense matches"),
        ({"count": 0}, "only 0 dense matches"),
    ],
)
def test_doubtful_dense_matches_give_no_pose(change: dict[str, float], reason: str) -> None:
    found = _pose_of(_dense(noise_px=1.0, **change))  # type: ignore[arg-type]
    assert isinstance(found, str)
    assert reason in found


def test_parts_that_repeat_do_not_hide_a_pose_that_many_matches_agree_on() -> None:
    found = _pose_of(_dense(noise_px=1.0, wrong_share=0.3, share=0.8))
    assert isinstance(found, DensePose)
    assert rotation_angle_deg(found.pose.rotation.T @ TURN) < 5


def test_a_pose_that_is_not_determined_is_none() -> None:
    flat = _dense(noise_px=0.5)
    xy = flat.matches.xy_i  # a picture that is merely moved: no parallax, and no turn to be told
    still = replace(flat, matches=PairMatches(xy, xy + np.float32(3), flat.matches.confidence))
    found = _pose_of(still)
    assert isinstance(found, str)
    assert "triangulation angle" in found


def test_a_long_lens_leaves_the_rotation_uncertain() -> None:
    found = _pose_of(_dense(noise_px=1.0, lens=8.0), lens=8.0)
    assert isinstance(found, str)
    assert "uncertain by" in found


@pytest.mark.parametrize("spacings", [(1.0, 6.0), (6.0, 1.0)])
def test_the_coarser_view_says_how_far_off_matches_are(spacings: tuple[float, float]) -> None:
    exact = replace(_dense(noise_px=0.3), spacing_i_px=spacings[0], spacing_j_px=spacings[1])
    found = _pose_of(exact)
    assert isinstance(found, DensePose)
    np.testing.assert_allclose(found.matches.confidence, 1 / 36)


def _rays(noise: float, rng: np.random.Generator, count: int = 200) -> tuple[Array, Array]:
    points = rng.normal(size=(count, 3)) * 0.4 + [0, 0, 2.2]
    moved = apply(make(TURN, SHIFT), points)
    ends = [p / p[:, 2:] for p in (points, moved)]
    for end in ends:
        end[:, :2] += noise * rng.normal(size=(count, 2))
    return ends[0], ends[1]


@pytest.mark.slow
def test_rotation_sigma_is_the_scatter_of_estimates() -> None:
    rng, noise = np.random.default_rng(4), 2e-3
    errors, sigmas = [], []
    for _ in range(30):
        ends = _rays(noise, rng)
        pose = estimate_relative_pose(*ends, 5 * noise)
        assert pose is not None
        errors.append(rotation_angle_deg(pose.rotation.T @ TURN))
        sigmas.append(rotation_sigma_deg(*ends, pose, noise))  # a Sampson distance has the noise of one coordinate
    rms = float(np.sqrt(np.mean(np.square(errors))))
    assert 0.6 < rms / float(np.mean(sigmas)) < 1.6


def test_rotation_sigma_without_evidence_is_infinite() -> None:
    pose = RelativePose(np.eye(3), np.array([1.0, 0, 0]), np.ones(3, bool), 0.0)
    rays = np.array([[0, 0, 1.0], [0.1, 0, 1], [0, 0.1, 1]])
    assert rotation_sigma_deg(rays, rays, pose, 1e-3) == np.inf


def test_matches_of_both_kinds_make_one_pose() -> None:
    noise, errors = 1e-3, []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        ends = [np.concatenate(pair) for pair in zip(_rays(noise, rng, 40), _rays(6 * noise, rng, 160))]
        weights = np.concatenate([np.ones(40), np.full(160, 1 / 6)])
        parts = [slice(0, 40), slice(40, None)]
        alone = [estimate_relative_pose(ends[0][part], ends[1][part], 5 * noise) for part in parts]
        assert alone[0] is not None
        assert alone[1] is not None
        joint = joint_pose((alone[0], alone[1]), ends[0], ends[1], weights, noise)
        again = joint_pose((alone[1], alone[0]), ends[0], ends[1], weights, noise)
        blind = joint_pose((alone[0], alone[1]), ends[0], ends[1], 1 / weights, noise)
        np.testing.assert_allclose(joint.rotation, again.rotation, atol=1e-4)
        assert joint.ambiguity_deg == min(alone[0].ambiguity_deg, alone[1].ambiguity_deg)
        errors.append([rotation_angle_deg(p.rotation.T @ TURN) for p in (joint, alone[0], alone[1], blind)])
    rms = np.sqrt(np.mean(np.square(errors), axis=0))
    assert rms[0] < rms[1]
    assert rms[0] < 0.5 * rms[2]
    assert rms[0] < 0.9 * rms[3]  # what weighs counts


def test_a_joint_pose_looks_at_what_it_has_matched() -> None:
    """Residuals do not tell a translation from its opposite, and a weak pose may have the wrong one of them."""
    ends = _rays(1e-3, np.random.default_rng(0), 60)
    pose = estimate_relative_pose(*ends, 5e-3)
    assert pose is not None
    behind = replace(pose, translation=-pose.translation)
    for poses in ((behind, pose), (pose, behind), (behind, behind)):
        joint = joint_pose(poses, *ends, np.ones(60), 1e-3)
        assert joint.translation @ pose.translation > 0.99
        assert joint.inliers.all()


@pytest.mark.slow
def test_the_packaged_weights_find_poses_where_sift_finds_none() -> None:
    scene = make_scene(
        SceneConfig(shape="blob", seed=32, views=12, texture="weak", background="black", size=(320, 240))
    )
    views, poses = scene.views(known_intrinsics=True), scene.world_from_cam
    alone, both = (load_predictor("classical", ForwardConfig(descriptors=name)) for name in (None, "packaged"))
    for i, j in ((3, 4), (6, 7), (9, 10)):
        true = inverse(poses[i]) @ poses[j]
        assert pair_error_deg(alone.predict(views[i], views[j]), views[j], true) > 30
        assert pair_error_deg(both.predict(views[i], views[j]), views[j], true) < 8


def pair_error_deg(prediction: PairPrediction, view_j: View, true: Array) -> float:
    """Rotation error of a prediction; 180 where there is none."""
    if prediction.rejected is not None:
        return 180.0
    i_from_j, _ = pose_of_prediction(prediction, view_j)
    return float(rotation_angle_deg(nearest_rotation(i_from_j[:3, :3]).T @ true[:3, :3]))


@pytest.mark.slow
def test_pairs_are_matched_once_whatever_the_focal_length(
    monkeypatch: pytest.MonkeyPatch, describer: DenseDescriptor, views: list[View]
) -> None:
    asked: list[tuple[View, View]] = []

    def counted(describer: DenseDescriptor, pair: tuple[View, View], *_: object) -> DenseMatches:
        asked.append(pair)
        return _dense(noise_px=0.0, count=len(asked))

    monkeypatch.setattr(described, "match_described", counted)
    monkeypatch.setattr(described, "_KNOWN_PAIRS", 2)
    matcher, features = DenseMatcher(describer, 0.2), [pack(describer.describe(view)) for view in views[:3]]

    def count(i: int, j: int) -> int:
        return len(matcher.match((views[i], views[j]), (features[i], features[j])).matches)

    assert [count(0, 1), count(1, 0), count(0, 1), count(1, 0)] == [1, 2, 1, 2]
    assert [count(0, 2), count(1, 0), count(0, 1)] == [3, 2, 4]  # the one longest out of use was forgotten


def test_maps_survive_storage(describer: DenseDescriptor, views: list[View]) -> None:
    before = describer.describe(views[0])
    after = unpack(pack(before))
    assert (after.valid == before.valid).all()
    assert (after.view_from_grid == before.view_from_grid).all()
    on = before.valid
    assert ((before.descriptors[on] * after.descriptors[on]).sum(-1) > 0.9999).all()
    assert (after.descriptors[~on] == 0).all()
    empty = unpack(pack(describer.describe(replace(views[0], mask=np.zeros_like(views[0].mask)))))
    assert not empty.valid.any()


def test_features_are_deaf_to_the_background(describer: DenseDescriptor, views: list[View]) -> None:
    predictor = ClassicalPredictor(describer=describer)
    other = replace(views[0], image=np.where(views[0].mask[..., None], views[0].image, 255 - views[0].image))
    a, b = predictor.encode(views[0]), predictor.encode(other)
    assert {"described", "described_on", "described_frame"} < a.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def _given(monkeypatch: pytest.MonkeyPatch, rotation: Array, sigma_deg: float) -> None:
    xy = np.stack(np.meshgrid(np.arange(100.0, 200, 8), np.arange(80.0, 160, 8)), -1).reshape(-1, 2).astype(np.float32)
    matches = PairMatches(xy, xy + np.float32(4), np.full(len(xy), 0.1, np.float32))
    pose = RelativePose(rotation, np.array([-1.0, 0, 0]), np.ones(len(xy), bool), sigma_deg)
    monkeypatch.setattr(classical, "dense_pose", lambda *_: DensePose(pose, matches))


def test_a_strong_pose_of_sift_is_not_asked_about(
    monkeypatch: pytest.MonkeyPatch, describer: DenseDescriptor, views: list[View]
) -> None:
    plain = ClassicalPredictor().predict(views[0], views[1])
    assert plain.matches is not None
    assert len(plain.matches) >= 100
    _given(monkeypatch, exp_so3(np.array([0, 2.0, 0])), 1.0)
    both = ClassicalPredictor(describer=describer).predict(views[0], views[1])
    assert both.matches is not None
    np.testing.assert_array_equal(both.matches.xy_i, plain.matches.xy_i)


def _weak_pair(views: list[View]) -> tuple[View, View]:
    """Two views of which so little is shown that SIFT's pose rests on fewer than 100 matches."""
    shown = np.zeros_like(views[0].mask)
    shown[:, 130:185] = True
    return replace(views[0], mask=views[0].mask & shown), views[1]


def test_a_weak_pose_stays_if_confirmed_and_goes_if_contradicted(
    monkeypatch: pytest.MonkeyPatch, describer: DenseDescriptor, views: list[View]
) -> None:
    pair = _weak_pair(views)
    plain = ClassicalPredictor()
    features = plain.encode(pair[0]), plain.encode(pair[1])
    sift = features[0]["sift"], features[1]["sift"]
    pose = plain._pose(classical.match_root_sift(*sift, plain.settings.ratio), pair, features)
    assert isinstance(pose, RelativePose)
    assert pose.inliers.sum() < plain.settings.strong_matches
    expected = plain.predict(*pair).matches
    assert expected is not None
    predictor = ClassicalPredictor(describer=describer)
    dense = PairMatches(expected.xy_i + 0.2, expected.xy_j + 0.2, np.full(len(expected), 0.1, np.float32))
    monkeypatch.setattr(classical, "dense_pose", lambda *_: DensePose(replace(pose, ambiguity_deg=5.0), dense))
    kept = predictor.predict(*pair).matches
    assert kept is not None
    both = expected.joined(dense)
    missing = len(both) - len(kept)  # the pose is refined: a match or two of SIFT's may no longer agree
    assert 0 <= missing <= 0.05 * len(expected)
    np.testing.assert_array_equal(kept.confidence[-len(dense) :], dense.confidence)
    assert set(map(tuple, kept.xy_i)) <= set(map(tuple, both.xy_i))
    _given(monkeypatch, pose.rotation @ exp_so3(np.array([0, 0, 1.0])), 5.0)
    replaced = predictor.predict(*pair).matches
    assert replaced is not None
    assert (replaced.confidence < 0.2).all()  # the dense ones


def test_an_empty_mask_is_rejected_not_an_error(describer: DenseDescriptor, views: list[View]) -> None:
    empty = replace(views[1], mask=np.zeros_like(views[1].mask))
    for pair in ((views[0], empty), (empty, views[0]), (empty, empty)):
        rejected = ClassicalPredictor(describer=describer).predict(*pair).rejected
        assert rejected is not None
        assert "SIFT matches" in rejected
        assert "dense matches" in rejected  # why neither helps


def test_weights_enter_the_fingerprint_and_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    export_weights(path, _model().state_dict(), DenseDescriptor.metadata(SMALL))
    alone = load_predictor("classical", ForwardConfig(descriptors=None))
    both = load_predictor("classical", ForwardConfig(descriptors=str(path), device="cpu"))
    assert alone.fingerprint == ClassicalPredictor().fingerprint
    assert both.fingerprint != alone.fingerprint
    with pytest.raises(InputError, match="nowhere"):
        load_predictor("classical", ForwardConfig(descriptors=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="only the classical predictor"):
        load_predictor("compact", ForwardConfig(descriptors=str(path)))
    for config in ("{}", '{"dim": 16, "widths": [8, 12, 16, 16], "blocks": [1, 1, 1], "size": 64}'):
        export_weights(path, _model().state_dict(), DenseDescriptor.metadata(SMALL) | {"config": config})
        with pytest.raises(InputError, match=r"d\.safetensors: not weights of this version"):
            load_predictor("classical", ForwardConfig(descriptors=str(path)))
    path.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="descriptors"):
        load_predictor("classical", ForwardConfig(descriptors=str(path)))
