"""Bundle adjustment: repairs small errors, holds what is given, refuses what cannot be right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from balls import ball_views

from sparse_ga.geometry import transforms
from sparse_ga.geometry.transforms import apply, similarity_from_points
from sparse_ga.geometry.triangulation import Observations, errors_px, residuals
from sparse_ga.products import Array
from sparse_ga.triangulation.adjust import (
    LOSS_SIGMAS,
    _make_problem,
    _turns_deg,
    _with_observations,
    adjust_bundle,
    pose_sigma_deg,
)
from sparse_ga.triangulation.sparse import residual_sigma_px
from sparse_ga.triangulation.tracks import TriangulatedTracks, triangulate_tracks
from sparse_ga.triangulation.views import Rig

TRUE, _ = ball_views(8, size=(256, 192))


def candidates(noise: float = 0.05, count: int = 300) -> Observations:
    """Points on the ball seen by the views that face them."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    facing = (TRUE.centers[:, None] * points).sum(2) > 1.3  # (V, P)
    view, point = np.nonzero(facing)
    order = np.lexsort((view, point))
    obs = Observations(np.unique(point[order], return_inverse=True)[1], view[order], np.zeros((len(view), 2)))
    points = points[np.unique(point)]
    xy, _ = residuals(TRUE.projection, obs, points)
    return Observations(obs.point_index, obs.view_index, xy + noise * rng.normal(size=xy.shape))


def disturbed(turn_deg: float = 0.5, zoom: float = 1.01) -> Rig:
    """The true cameras turned about the object, but the first, with another focal length."""
    rng = np.random.default_rng(5)
    turn = np.radians(turn_deg) * rng.normal(size=(8, 3))
    turn[0] = 0
    poses = transforms.make(transforms.exp_so3(turn), np.zeros((8, 3))) @ TRUE.world_from_cam
    k = TRUE.intrinsics.copy()
    k[:, 0, 0] *= zoom
    k[:, 1, 1] *= zoom
    return TRUE.moved(poses, k)


def solve(rig: Rig, obs: Observations) -> tuple[Rig, str, TriangulatedTracks]:
    tracks = triangulate_tracks(rig.projection, obs, 6.0, 1.5)
    result = adjust_bundle(rig, tracks, 1.0)
    return result.rig, result.status, tracks


def pose_errors_deg(rig: Rig) -> Array:
    """Rotation between neighbouring cameras against the truth, (V - 1,) degrees: free of gauge."""

    def between(r: Array) -> Array:
        return np.swapaxes(r[:-1, :3, :3], 1, 2) @ r[1:, :3, :3]

    return transforms.rotation_angle_deg(np.swapaxes(between(TRUE.world_from_cam), 1, 2) @ between(rig.world_from_cam))


def test_errors_of_poses_and_focal_are_repaired() -> None:
    start = disturbed()
    rig, status, _ = solve(start, candidates())
    assert status == "kept"
    assert pose_errors_deg(start).max() > 0.5
    assert pose_errors_deg(rig).max() < 0.15
    assert rig.intrinsics[0, 0, 0] == pytest.approx(TRUE.intrinsics[0, 0, 0], rel=5e-3)


def test_gauge_and_principal_point_stay() -> None:
    start = disturbed()
    rig, _, _ = solve(start, candidates())
    np.testing.assert_allclose(rig.world_from_cam[0], start.world_from_cam[0], atol=1e-9)
    np.testing.assert_array_equal(rig.intrinsics[:, :2, 2], start.intrinsics[:, :2, 2])
    depth = [np.median(np.linalg.norm(r.centers, axis=1)) for r in (start, rig)]
    assert depth[0] == pytest.approx(depth[1], rel=0.03)
    np.testing.assert_allclose(np.linalg.det(rig.world_from_cam[:, :3, :3]), 1, atol=1e-9)
    assert len(np.unique(rig.intrinsics[:, 0, 0])) == 1  # one sensor, one focal length


def test_each_sensor_has_its_focal_length() -> None:
    start = replace(disturbed(), sensor=np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    rig, status, _ = solve(start, candidates())
    assert status == "kept"
    assert len(np.unique(rig.intrinsics[:, 0, 0])) == 2


def test_what_is_given_is_held_bit_by_bit() -> None:
    start = disturbed(zoom=1.0)
    held = np.zeros(8, bool)
    held[[2, 5]] = True
    start = replace(start, held_pose=held, held_intrinsics=np.ones(8, bool))
    rig, status, _ = solve(start, candidates())
    assert status == "kept"
    np.testing.assert_array_equal(rig.world_from_cam[held], start.world_from_cam[held])
    np.testing.assert_array_equal(rig.intrinsics, start.intrinsics)
    assert not np.allclose(rig.world_from_cam[1], start.world_from_cam[1], atol=1e-6)


def test_turned_photographs_with_a_principal_point_of_their_own_share_the_focal_length() -> None:
    """Every other photograph is turned by 90 degrees and cut: pixels and cameras say the same as before."""
    start, obs, odd = disturbed(), candidates(), np.arange(8) % 2 == 1
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # of the picture, and of the camera's axes
    poses, k = start.world_from_cam.copy(), start.intrinsics.copy()
    poses[odd, :3, :3] = poses[odd, :3, :3] @ turn.T
    k[odd, :2, 2] = k[odd, :2, 2] @ turn[:2, :2].T + (230.0, -7.0)
    xy = np.where(odd[obs.view_index][:, None], obs.xy @ turn[:2, :2].T + (230.0, -7.0), obs.xy)
    upright, _, _ = solve(start, obs)
    mixed, status, _ = solve(start.moved(poses, k), replace(obs, xy=xy))
    assert status == "kept"
    np.testing.assert_allclose(mixed.intrinsics[:, 0, 0], upright.intrinsics[0, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(mixed.intrinsics[:, :2, 2], k[:, :2, 2])
    np.testing.assert_allclose(mixed.centers, upright.centers, atol=1e-4)


def test_it_is_refused_when_it_tears_a_camera_off() -> None:
    start = disturbed(0.0, 1.0)
    tracks = triangulate_tracks(start.projection, candidates(), 6.0, 1.5)
    obs = tracks.obs
    # every observation of one view shifted as if its camera looked far past the object
    xy = obs.xy + np.where(obs.view_index == 3, 130.0, 0.0)[:, None] * (1, 0)
    spoilt = replace(tracks, obs=Observations(obs.point_index, obs.view_index, xy))
    result = adjust_bundle(start, spoilt, 50.0)
    assert not result.kept
    assert "refused" in result.status
    np.testing.assert_array_equal(result.rig.world_from_cam, start.world_from_cam)


def test_too_few_tracks_change_nothing() -> None:
    obs = candidates(count=10)
    rig, status, _ = solve(disturbed(), obs)
    assert status == "too few tracks"
    np.testing.assert_array_equal(rig.world_from_cam, disturbed().world_from_cam)


@pytest.mark.slow
def test_the_uncertainty_of_poses_is_that_of_their_errors() -> None:
    exact, noise, turns, shifts = candidates(0.0), 0.1, [], []
    for seed in range(30):
        xy = exact.xy + noise * np.random.default_rng(seed).normal(size=exact.xy.shape)
        tracks = triangulate_tracks(TRUE.projection, replace(exact, xy=xy), 6.0, 1.5)
        found = adjust_bundle(TRUE, tracks, LOSS_SIGMAS * noise).rig
        turns.append(_turns_deg(TRUE, found))
        true_from_found, valid = similarity_from_points(TRUE.centers, found.centers)
        assert valid
        shift = np.linalg.norm(apply(true_from_found, found.centers) - TRUE.centers, axis=1)
        shifts.append(np.degrees(shift / np.linalg.norm(TRUE.centers, axis=1)))
    problem = _make_problem(TRUE, tracks, TRUE.registered)
    told = pose_sigma_deg(problem, TRUE, LOSS_SIGMAS * noise)
    for column, errors in enumerate((turns, shifts)):
        np.testing.assert_allclose(told[:, column], np.sqrt(np.square(errors).mean(0)), rtol=0.35)
    halved = pose_sigma_deg(problem, TRUE, LOSS_SIGMAS * noise / 2)
    assert (halved < told).all()


@pytest.mark.parametrize("every", [1000, 60])
def test_a_chain_of_tracks_of_two_views_leaves_baselines_open_and_the_cameras_alone(every: int) -> None:
    """Every so many points are seen by all views that face them, the others by two neighbours."""
    tracks = triangulate_tracks(TRUE.projection, candidates(0.3), 6.0, 1.5)
    point, view = tracks.obs.point_index, tracks.obs.view_index
    keep = (view == point % 7) | (view == point % 7 + 1) | (point % every == every - 1)
    chain = _with_observations(tracks, keep & (np.bincount(point, keep)[point] >= 2))
    rig = replace(disturbed(), rotation_sigma_deg=np.full(8, 0.5))
    sigma = pose_sigma_deg(_make_problem(rig, chain, rig.registered), rig, LOSS_SIGMAS * 0.3)
    assert sigma[:, 1].max() > 3 * 0.5
    result = adjust_bundle(rig, chain, LOSS_SIGMAS * 0.3)
    assert result.status == "the tracks tell less than the alignment"
    np.testing.assert_array_equal(result.rig.world_from_cam, rig.world_from_cam)


def loosely_told(noise: float) -> TriangulatedTracks:
    """Tracks in which view 3 has nothing but tracks of two views, with view 2."""
    tracks = triangulate_tracks(TRUE.projection, candidates(noise), 6.0, 1.5)
    obs, pair = tracks.obs, np.isin(tracks.obs.view_index, [2, 3])
    shared = (np.bincount(obs.point_index, pair) == 2)[obs.point_index] & (obs.point_index % 2 == 0)
    keep = np.where(shared, pair, obs.view_index != 3)
    return _with_observations(tracks, keep & (np.bincount(obs.point_index, keep)[obs.point_index] >= 2))


def test_a_view_that_the_tracks_leave_loose_is_carried_along() -> None:
    tracks, known = loosely_told(0.3), np.full(8, 0.3)
    start = disturbed(0.05, 1.02)
    informed = adjust_bundle(replace(start, rotation_sigma_deg=known), tracks, LOSS_SIGMAS * 0.3)
    trusting = adjust_bundle(start, tracks, LOSS_SIGMAS * 0.3)
    assert informed.status.startswith("kept; 1 views")
    assert trusting.status == "kept"
    turned = [_turns_deg(TRUE, result.rig)[3] for result in (informed, trusting)]
    assert turned[0] < 0.3
    assert turned[1] > 2 * turned[0]
    rig = informed.rig
    assert rig.intrinsics[3, 0, 0] == pytest.approx(rig.intrinsics[2, 0, 0])  # one sensor, one focal length
    distance = np.linalg.norm(rig.centers, axis=1)
    assert distance[3] == pytest.approx(distance[[2, 4]].mean(), rel=0.01)


def test_the_first_camera_stays_although_the_tracks_leave_it_loose() -> None:
    """View 0 has tracks of two views only, with view 1: it takes no part, and the world is its frame all the same."""
    tracks = loosely_told(0.3)
    back = replace(tracks, obs=replace(tracks.obs, view_index=(tracks.obs.view_index - 3) % 8))
    order = np.roll(np.arange(8), -3)
    turned = replace(disturbed(0.05, 1.02), rotation_sigma_deg=np.full(8, 0.3))
    start = turned.moved(turned.world_from_cam[order], turned.intrinsics[order])
    result = adjust_bundle(start, back, LOSS_SIGMAS * 0.3)
    assert result.status.startswith("kept; 1 views")
    np.testing.assert_array_equal(result.rig.world_from_cam[0], start.world_from_cam[0])
    assert errors_px(result.rig.projection, back.obs, back.points).mean() < 2  # the others came along


def test_cameras_that_share_no_track_are_left_alone_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    tracks = triangulate_tracks(TRUE.projection, candidates(), 6.0, 1.5)
    point, side = tracks.obs.point_index, tracks.obs.view_index < 4
    keep = side == (point % 2 == 0)
    apart = _with_observations(tracks, keep & (np.bincount(point, keep)[point] >= 2))
    rig = replace(disturbed(), rotation_sigma_deg=np.full(8, 0.3))
    sigma = pose_sigma_deg(_make_problem(rig, apart, rig.registered), rig, 1.0)
    assert not np.isfinite(sigma).any()
    result = adjust_bundle(rig, apart, 1.0)
    np.testing.assert_array_equal(result.rig.world_from_cam, rig.world_from_cam)
    assert capfd.readouterr().err == ""


def test_the_same_bytes_every_time() -> None:
    results = [solve(disturbed(), candidates())[0] for _ in range(2)]
    assert results[0].world_from_cam.tobytes() == results[1].world_from_cam.tobytes()
    assert results[0].intrinsics.tobytes() == results[1].intrinsics.tobytes()


@pytest.mark.parametrize("noise", [0.1, 0.2, 0.4])
def test_the_scatter_of_residuals_is_measured_whatever_few_wrong_ones_say(noise: float) -> None:
    obs = candidates(noise)
    spoilt = obs.xy.copy()
    spoilt[::20] += 1.5
    for xy in (obs.xy, spoilt):
        tracks = triangulate_tracks(TRUE.projection, Observations(obs.point_index, obs.view_index, xy), 2.0, 1.5)
        assert 0.55 * noise < residual_sigma_px(TRUE, tracks, 2.0) < 0.85 * noise  # points absorb the rest
    assert residual_sigma_px(TRUE, TriangulatedTracks.empty(), 2.0) == 2.0
    assert residual_sigma_px(TRUE, triangulate_tracks(TRUE.projection, candidates(0.0), 2.0, 1.5), 2.0) == 0.05
