"""Triplets: exact closing errors, and wrong pairs found among good ones."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sparse_ga.geometry.transforms import exp_so3
from sparse_ga.matching.triplets import find_triplets, inconsistent_pairs, triplet_errors
from sparse_ga.products import Array


def make_graph(views: int, seed: int, noise_deg: float = 2.0, reach: int | None = None) -> tuple[Array, Array, Array]:
    """Pairs (P, 2) within `reach` on a ring, cam_from_world (N, 3, 3), and noisy i_from_j rotations (P, 3, 3)."""
    rng = np.random.default_rng(seed)
    pairs = np.array(
        [(i, j) for i, j in combinations(range(views), 2) if min(j - i, views - j + i) <= (reach or views)]
    )
    swapped = rng.random(len(pairs)) < 0.5
    pairs[swapped] = pairs[swapped][:, ::-1]
    angle = np.linspace(0, 2 * np.pi, views, endpoint=False)
    cam_from_world = exp_so3(np.array([0.5, 0, 0])) @ exp_so3(angle[:, None] * [[0, 0, 1.0]])
    noise = exp_so3(rng.normal(size=(len(pairs), 3)) * np.radians(noise_deg) / np.sqrt(3))
    return pairs, cam_from_world, relative(pairs, cam_from_world, np.eye(3)) @ noise


def relative(pairs: Array, cam_from_world: Array, turn: Array) -> Array:
    return cam_from_world[pairs[:, 0]] @ turn @ np.swapaxes(cam_from_world[pairs[:, 1]], 1, 2)


def test_closing_errors_are_exact() -> None:
    pairs, _, rotations = make_graph(5, 0, noise_deg=0)
    error, count = triplet_errors(pairs, rotations)
    np.testing.assert_allclose(error, 0, atol=1e-6)
    np.testing.assert_array_equal(count, 3)
    rotations[4] = rotations[4] @ exp_so3(np.array([0, np.radians(37), 0]))
    error, _ = triplet_errors(pairs, rotations)
    assert error[4] == pytest.approx(37)
    np.testing.assert_allclose(np.delete(error, 4), 0, atol=1e-6)  # one of three triplets: the median does not mind


def test_triplets_are_the_triangles_of_the_graph() -> None:
    pairs = np.array([[3, 0], [0, 1], [1, 2], [2, 3], [0, 2], [5, 4]])
    found = {tuple(sorted(row)) for row in find_triplets(pairs).tolist()}
    assert found == {(1, 2, 4), (0, 3, 4)}
    error, count = triplet_errors(pairs, np.broadcast_to(np.eye(3), (6, 3, 3)))
    assert count.tolist() == [1, 1, 1, 1, 2, 0]
    assert error.tolist() == [0] * 6


def test_no_pairs_and_impossible_pairs() -> None:
    error, count = triplet_errors(np.zeros((0, 2), int), np.zeros((0, 3, 3)))
    assert error.shape == count.shape == (0,)
    assert inconsistent_pairs(np.zeros((0, 2), int), np.zeros((0, 3, 3))).inconsistent.shape == (0,)
    with pytest.raises(ValueError, match="itself"):
        find_triplets(np.array([[0, 1], [2, 2]]))
    with pytest.raises(ValueError, match="twice"):
        find_triplets(np.array([[0, 1], [1, 0]]))


@pytest.mark.parametrize(("views", "reach"), [(8, None), (20, None), (40, 10)])
@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_wrong_pairs_go_and_good_ones_stay(views: int, reach: int | None, share: float, seed: int) -> None:
    pairs, _, rotations = make_graph(views, seed, reach=reach)
    rng = np.random.default_rng(seed + 10)
    wrong = np.zeros(len(pairs), bool)
    wrong[rng.permutation(len(pairs))[: round(share * len(pairs))]] = True
    turn = rng.normal(size=(wrong.sum(), 3))
    turn *= np.radians(rng.uniform(25, 180, (wrong.sum(), 1))) / np.linalg.norm(turn, axis=1, keepdims=True)
    rotations[wrong] = rotations[wrong] @ exp_so3(turn)
    verdict = inconsistent_pairs(pairs, rotations)
    assert verdict.inconsistent[wrong].mean() >= 0.98
    assert verdict.inconsistent[~wrong].mean() <= 0.02
    assert (verdict.error_deg[verdict.inconsistent] > 10).all()
    assert (verdict.error_deg[~verdict.inconsistent] <= 10).all()
    number = int(np.flatnonzero(verdict.inconsistent)[0])
    assert "contradicts its triplets" in str(verdict.reason(number))
    assert verdict.reason(int(np.flatnonzero(~verdict.inconsistent)[0])) is None


@pytest.mark.parametrize(("share", "believed"), [(0.2, False), (0.3, True)])
def test_look_alike_sides_that_agree_with_one_another(share: float, believed: bool) -> None:
    """Half a turn about the object's axis: two wrong pairs and a good one close perfectly."""
    pairs, cam_from_world, rotations = make_graph(16, 3)
    rng = np.random.default_rng(3)
    wrong = rng.random(len(pairs)) < share
    rotations[wrong] = relative(pairs, cam_from_world, exp_so3(np.array([0, 0, np.pi])))[wrong]
    confidence = np.where(wrong, rng.uniform(0.2, 0.6, len(pairs)), rng.uniform(0.4, 0.9, len(pairs)))
    verdict = inconsistent_pairs(pairs, rotations, confidence=confidence if believed else None)
    np.testing.assert_array_equal(verdict.inconsistent, wrong)


def test_opposite_views_mistaken_for_each_other() -> None:
    pairs, cam_from_world, rotations = make_graph(16, 4)
    apart = np.abs(pairs[:, 0] - pairs[:, 1])
    wrong = np.minimum(apart, 16 - apart) >= 7
    rotations[wrong] = relative(pairs, cam_from_world, exp_so3(np.array([0, 0, np.pi])))[wrong]
    np.testing.assert_array_equal(inconsistent_pairs(pairs, rotations).inconsistent, wrong)


def test_pairs_without_triplets_are_kept() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    rotations = exp_so3(np.random.default_rng(0).normal(size=(3, 3)))
    verdict = inconsistent_pairs(pairs, rotations)
    assert not verdict.inconsistent.any()
    assert verdict.triplets.tolist() == [0, 0, 0]


def test_noise_below_the_limit_drops_nothing() -> None:
    pairs, _, rotations = make_graph(12, 5, noise_deg=3)
    assert not inconsistent_pairs(pairs, rotations, 10).inconsistent.any()
    assert inconsistent_pairs(pairs, rotations, 0.5).inconsistent.any()
