"""Tracks: union of matches, conflicts told apart by reprojection, failures as values."""

from __future__ import annotations

import numpy as np
import pytest
from balls import ball_views

from sparse_ga.geometry.triangulation import Observations, residuals
from sparse_ga.products import Array, PairMatches
from sparse_ga.triangulation.tracks import TrackStatus, build_tracks, triangulate_tracks

RIG, _ = ball_views(6, size=(64, 48))
PROJECTION = RIG.projection


def seen_at(points: Array, view: int) -> Array:
    """Pixels (P, 2) of world points in a view."""
    obs = Observations(np.arange(len(points)), np.full(len(points), view), np.zeros((len(points), 2)))
    return residuals(PROJECTION, obs, points)[0]


def matches(xy_i: Array, xy_j: Array) -> PairMatches:
    return PairMatches(xy_i.astype(np.float32), xy_j.astype(np.float32), np.ones(len(xy_i), np.float32))


def chain_of_pairs(points: Array, count: int = 5) -> tuple[list[tuple[int, int]], list[PairMatches]]:
    """Exact matches between consecutive views."""
    pairs = [(v, v + 1) for v in range(count - 1)]
    return pairs, [matches(seen_at(points, i), seen_at(points, j)) for i, j in pairs]


def test_a_chain_of_pairs_is_one_track_a_point() -> None:
    points = np.array([[0.1, 0.2, 0.3], [-0.3, 0.1, -0.2], [0.4, -0.4, 0.0]])
    pairs, pair_matches = chain_of_pairs(points)
    candidates = build_tracks(pairs, lambda k: pair_matches[k])
    assert candidates.lengths.tolist() == [5, 5, 5]
    tracks = triangulate_tracks(PROJECTION, candidates, 2.0, 1.5)
    error = np.linalg.norm(tracks.points[:, None] - points, axis=2).min(0)
    assert error.max() < 1e-5
    assert tracks.rejected.sum() == 0


def test_a_wrong_match_joins_two_tracks_and_reprojection_takes_them_apart() -> None:
    points = np.array([[0.3, 0.2, 0.3], [-0.3, 0.1, -0.4]])
    pairs, pair_matches = chain_of_pairs(points)
    pairs.append((0, 4))
    pair_matches.append(matches(seen_at(points[:1], 0), seen_at(points[1:], 4)))
    candidates = build_tracks(pairs, lambda k: pair_matches[k])
    assert candidates.num_points == 1  # one component, two observations of every view
    tracks = triangulate_tracks(PROJECTION, candidates, 2.0, 1.5)
    assert len(tracks.points) == 2
    assert np.linalg.norm(tracks.points[:, None] - points, axis=2).min(0).max() < 1e-5
    assert sorted(tracks.obs.lengths.tolist()) == [5, 5]
    for row in range(2):  # and no view twice in one track
        views = tracks.obs.view_index[tracks.obs.point_index == row]
        assert len(np.unique(views)) == len(views)


def test_an_outlying_observation_is_dropped() -> None:
    points = np.array([[0.1, 0.2, 0.3]])
    xy = np.concatenate([seen_at(points, v) for v in range(6)])
    xy[2] += 15.0
    tracks = triangulate_tracks(PROJECTION, Observations(np.zeros(6, int), np.arange(6), xy), 2.0, 1.5)
    np.testing.assert_allclose(tracks.points, points, atol=1e-6)
    assert tracks.obs.view_index.tolist() == [0, 1, 3, 4, 5]


def test_dense_noisy_matches_do_not_chain_into_one_track() -> None:
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(3000, 3))
    points = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    pair_matches = []
    for i, j in pairs:
        some = points[rng.random(3000) < 0.5]
        noise = rng.normal(size=(2, len(some), 2)) * 0.5
        pair_matches.append(matches(seen_at(some, i) + noise[0], seen_at(some, j) + noise[1]))
    candidates = build_tracks(pairs, lambda k: pair_matches[k])
    assert candidates.lengths.max() < 100
    tracks = triangulate_tracks(PROJECTION, candidates, 2.0, 1.5)
    assert len(tracks.points) > 500
    off = np.abs(np.linalg.norm(tracks.points, axis=1) - 1)
    assert np.median(off) < 0.03  # one pixel is 0.03 here


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        ("parallel", TrackStatus.SMALL_ANGLE),
        ("skew", TrackStatus.HIGH_ERROR),
    ],
)
def test_failure_is_a_value(spoil: str, status: TrackStatus) -> None:
    if spoil == "parallel":  # two cameras a hair apart
        twin = PROJECTION[:2].copy()
        twin[1] = twin[0]
        twin[1, 0, 3] += 0.5
        point = np.array([[0.0, 0.0, 0.0, 1.0]])
        xy = np.concatenate([(p @ point.T)[:2].T / (p @ point.T)[2] for p in twin])
        tracks = triangulate_tracks(twin, Observations(np.zeros(2, int), np.arange(2), xy), 2.0, 1.5)
    else:
        xy = np.concatenate([seen_at(np.zeros((1, 3)), 0), seen_at(np.zeros((1, 3)), 1) + np.array([0, 20.0])])
        tracks = triangulate_tracks(PROJECTION, Observations(np.zeros(2, int), np.arange(2), xy), 2.0, 1.5)
    assert len(tracks.points) == 0
    assert len(tracks.obs) == 0
    assert tracks.rejected[status] == 1


def test_a_point_behind_the_cameras_is_rejected() -> None:
    point = np.zeros((1, 3))
    xy = np.concatenate([seen_at(point, 0), seen_at(point, 1)])
    # half a turn about the vertical axis and a mirrored image: the same pixels, but the rays meet behind
    rays_from_world = np.linalg.inv(RIG.intrinsics[0]) @ PROJECTION[:2]
    turned = RIG.intrinsics[0] @ (np.diag([-1.0, -1.0, -1.0]) @ rays_from_world)
    tracks = triangulate_tracks(turned, Observations(np.zeros(2, int), np.arange(2), xy), 2.0, 1.5)
    assert len(tracks.points) == 0
    assert tracks.rejected.sum() == 1


def test_no_matches() -> None:
    candidates = build_tracks([(0, 1)], lambda k: PairMatches.empty())
    assert len(candidates) == 0
    assert len(build_tracks([], lambda k: PairMatches.empty())) == 0
    tracks = triangulate_tracks(PROJECTION, candidates, 2.0, 1.5)
    assert len(tracks.points) == 0


def test_the_order_of_pairs_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-0.5, 0.5, (40, 3))
    pairs, pair_matches = chain_of_pairs(points)
    first = triangulate_tracks(PROJECTION, build_tracks(pairs, lambda k: pair_matches[k]), 2.0, 1.5)
    swapped = [(j, i) for i, j in reversed(pairs)]
    back = [m.swap() for m in reversed(pair_matches)]
    second = triangulate_tracks(PROJECTION, build_tracks(swapped, lambda k: back[k]), 2.0, 1.5)
    np.testing.assert_allclose(np.sort(first.points, axis=0), np.sort(second.points, axis=0), atol=1e-6)
