"""Pairs that contradict their triplets: three rotations around a triangle of views must close.

A triplet with one wrong pair does not close, so a plain vote over a pair's triplets condemns good pairs as soon as
about a third of all are wrong (0.7 squared is below a half). Here the triplets of a pair count by how much their other
two pairs are believed, iterated: cycle-edge message passing (Lerman and Shi, Robust group synchronization via
cycle-edge message passing, Foundations of Computational Mathematics 2022, section 4), which estimates each pair's own
error. The worst pairs go first, and with them their triplets; then the rest is judged again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.geometry.transforms import rotation_angle_deg
from sparse_ga.products import Array

_CHUNK = 100_000  # triplets whose rotations are multiplied at once
_SHARPNESS_PER_RAD = np.geomspace(1.0, 20.0, 10)
"""How strongly a triplet is discounted for the errors of its other pairs, first to last iteration."""


@dataclass(frozen=True, eq=False)
class TripletVerdict:
    """Which pairs contradict their triplets, and what the rest looks like.

    `error_deg` is a pair's estimated own error: for a pair that was kept the believed triplets' weighted mean, for a
    dropped one the value that it was dropped for, 0 where no triplet is left. `triplets` counts the triplets of kept
    pairs that speak for or against a pair; with none of them a pair is kept, for nothing is known.
    """

    inconsistent: Array  # (P,) bool
    error_deg: Array  # (P,) float64
    triplets: Array  # (P,) int64

    def reason(self, pair: int) -> str | None:
        """Why pair number `pair` is to be dropped, in words, or None."""
        if not self.inconsistent[pair]:
            return None
        return f"rotation contradicts its triplets of views by {self.error_deg[pair]:.0f} degrees"


def find_triplets(pairs: Array) -> Array:
    """All triangles of the view graph as rows of `pairs`, (T, 3) int64: the pairs (a, b), (b, c), (a, c) for a < b < c.

    `pairs` (P, 2) are view indices in either order. Raises `ValueError` when a pair occurs twice or joins a view to
    itself.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    if len(pairs) == 0:
        return np.zeros((0, 3), np.int64)
    low, high = pairs.min(1), pairs.max(1)
    if (low == high).any():
        raise ValueError(f"pairs: view {low[low == high][0]} is paired with itself")
    size = int(high.max()) + 1
    number = np.full((size, size), -1, np.int64)
    number[low, high] = np.arange(len(pairs))
    if (number[low, high] != np.arange(len(pairs))).any():
        raise ValueError("pairs: the same two views occur twice; keep one order of each pair")
    found = []
    for edge in np.lexsort((high, low)):
        a, b = low[edge], high[edge]
        third = np.flatnonzero((number[a, b + 1 :] >= 0) & (number[b, b + 1 :] >= 0)) + b + 1
        found.append(np.stack([np.full(len(third), edge), number[b, third], number[a, third]], 1))
    return np.concatenate(found)


def closure_deg(triplets: Array, pairs: Array, rotations_i_from_j: Array) -> Array:
    """Angle in degrees, (T,), by which the three rotations of each of `triplets` (T, 3) miss the identity."""
    turned = pairs[:, 0] > pairs[:, 1]
    low_from_high = np.where(turned[:, None, None], np.swapaxes(rotations_i_from_j, 1, 2), rotations_i_from_j)
    angles = np.zeros(len(triplets))
    for start in range(0, len(triplets), _CHUNK):
        ab, bc, ac = (low_from_high[triplets[start : start + _CHUNK, k]] for k in range(3))  # (t, 3, 3)
        angles[start : start + _CHUNK] = rotation_angle_deg(ab @ bc @ np.swapaxes(ac, 1, 2))
    return angles


def triplet_errors(pairs: Array, rotations_i_from_j: Array) -> tuple[Array, Array]:
    """Median closing error in degrees of each pair's triplets, (P,), and how many triplets it has, (P,) int64.

    `pairs` (P, 2) are view indices, `rotations_i_from_j` (P, 3, 3) take vectors of view pairs[p, 1] to pairs[p, 0].
    A pair without triplets has error 0.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    triplets = find_triplets(pairs)
    angles = closure_deg(triplets, pairs, np.asarray(rotations_i_from_j, float))
    counts = np.bincount(triplets.reshape(-1), minlength=len(pairs))
    edge, value = triplets.reshape(-1), np.repeat(angles, 3)
    value = value[np.lexsort((value, edge))]
    start = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(pairs) else np.zeros(0, np.int64)
    tested = counts > 0
    median = np.zeros(len(pairs))
    lower, upper = (start + (counts - 1) // 2)[tested], (start + counts // 2)[tested]
    median[tested] = (value[lower] + value[upper]) / 2
    return median, counts


def _edge_errors(triplets: Array, angles_rad: Array, prior: Array) -> tuple[Array, Array]:
    """Each pair's estimated own error (P,), radians, by message passing over `triplets` (T, 3), and their count (P,).

    `prior` (P,) in (0, 1] is how far a pair is believed beforehand. Pairs without triplets get 0.
    """
    size = len(prior)
    edge = triplets.reshape(-1)
    counts = np.bincount(edge, minlength=size)
    other_a, other_b = np.roll(triplets, -1, 1).reshape(-1), np.roll(triplets, -2, 1).reshape(-1)
    angle, belief = np.repeat(angles_rad, 3), np.log(prior)
    error = np.zeros(size)
    for sharpness in np.concatenate([[0.0], _SHARPNESS_PER_RAD]):
        log_weight = belief[other_a] + belief[other_b] - sharpness * (error[other_a] + error[other_b])  # (3 T,)
        top = np.full(size, -np.inf)
        np.maximum.at(top, edge, log_weight)
        weight = np.exp(log_weight - top[edge])
        total = np.bincount(edge, weight, minlength=size)
        error = np.bincount(edge, weight * angle, minlength=size) / np.maximum(total, 1e-300)
    return error, counts


def inconsistent_pairs(
    pairs: Array, rotations_i_from_j: Array, max_error_deg: float = 10.0, confidence: Array | None = None
) -> TripletVerdict:
    """Which pairs to drop because their rotation contradicts the triplets they are in; the worst go first.

    `pairs` (P, 2) and `rotations_i_from_j` (P, 3, 3) as for `triplet_errors`; a pair goes when its estimated error is
    above `max_error_deg`. `confidence` (P,) in [0, 1], for example pair scores, says whom to believe where wrong pairs
    agree with one another, as those of look-alike sides do. A third of the pairs may be wrong where they are so at
    random; where they agree with one another, about a fifth, or a third if `confidence` tells them apart on average.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    triplets = find_triplets(pairs)
    angles = np.radians(closure_deg(triplets, pairs, np.asarray(rotations_i_from_j, float)))
    prior = np.ones(len(pairs)) if confidence is None else np.clip(confidence, 1e-3, 1.0)
    dropped, worst_error = np.zeros(len(pairs), bool), np.zeros(len(pairs))
    while True:
        alive = ~dropped[triplets].any(1) if len(triplets) else np.zeros(0, bool)
        error, counts = _edge_errors(triplets[alive], angles[alive], prior)
        suspects = np.flatnonzero(error > np.radians(max_error_deg))
        if len(suspects) == 0:
            break
        worst = suspects[np.argsort(-error[suspects], kind="stable")][: max(1, len(suspects) // 8)]
        dropped[worst], worst_error[worst] = True, error[worst]
    return TripletVerdict(dropped, np.degrees(np.where(dropped, worst_error, error)), np.where(dropped, 0, counts))
