"""One similarity per view from similarities per pair: along a tree, then a joint robust solve over all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, identity
from scipy.sparse.linalg import splu

from sparse_ga.alignment.viewgraph import spanning_tree, tree_order
from sparse_ga.geometry.transforms import exp_so3, inverse, make, nearest_rotation, rotation_angle_deg, skew
from sparse_ga.products import Array

_CENTRE = np.array([0.0, 0.0, 1.0])  # of the object in a canonical frame, whose median depth is 1
_MAX_TOLERANCE_DEG = 45.0


@dataclass(frozen=True)
class EdgeSet:
    """Edges of the view graph as arrays.

    `i_from_j` (P, 4, 4) are similarities between canonical frames; `precision` (P, 7, 7) is their inverse covariance
    in the coordinates of `edge_residuals`.
    """

    pairs: Array  # (P, 2) int64
    i_from_j: Array  # (P, 4, 4)
    weights: Array  # (P,)
    precision: Array  # (P, 7, 7)

    def select(self, keep: Array) -> EdgeSet:
        """The edges that `keep` (P,) bool or an index array picks."""
        return EdgeSet(self.pairs[keep], self.i_from_j[keep], self.weights[keep], self.precision[keep])

    def among(self, index: Array, count: int) -> EdgeSet:
        """The same edges between views renumbered by `index` (N,), with weights as they are; `count` views remain."""
        pairs = index[self.pairs]
        assert not len(pairs) or (pairs.min() >= 0 and pairs.max() < count)
        return EdgeSet(pairs, self.i_from_j, self.weights, self.precision)

    @property
    def rotations(self) -> Array:
        """Rotations i from j, (P, 3, 3)."""
        return nearest_rotation(self.i_from_j[:, :3, :3])

    @property
    def turn_sigma_deg(self) -> Array:
        """Standard deviation (P,) of the rotations, degrees."""
        covariance = np.linalg.inv(self.precision) if len(self.precision) else np.zeros((0, 7, 7))
        return np.degrees(np.sqrt(np.trace(covariance[:, :3, :3], axis1=-2, axis2=-1)))

    def tolerance_deg(self, max_error_deg: float) -> Array:
        """How far (P,) a rotation may be off and still agree: `max_error_deg`, more where it is known badly."""
        return np.minimum(np.hypot(max_error_deg, 2.5 * self.turn_sigma_deg), _MAX_TOLERANCE_DEG)


def log_so3(rotation: Array) -> Array:
    """Rotation vectors (..., 3), rad, of rotations (..., 3, 3); at half a turn one of the two answers."""
    angle = np.radians(rotation_angle_deg(rotation))[..., None]
    axis = np.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        -1,
    )
    sine2 = np.linalg.norm(axis, axis=-1, keepdims=True)  # 2 sin
    regular = sine2 > 1e-6
    result = axis * np.where(regular, angle / np.where(regular, sine2, 1.0), 0.5)
    half_turn = ~regular[..., 0] & (angle[..., 0] > 1.0)
    if half_turn.any():
        symmetric = (rotation[half_turn] + np.eye(3)) / 2  # n n^T
        column = np.argmax(np.diagonal(symmetric, axis1=-2, axis2=-1), -1)
        normal = np.take_along_axis(symmetric, column[:, None, None], -1)[..., 0]
        result[half_turn] = angle[half_turn] * normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    return result


def along_tree(count: int, edges: EdgeSet, tree: Array, root: int) -> Array:
    """World-from-view similarities (N, 4, 4) chained along `tree` (edge indices); `root` is the world."""
    world_from_view = np.tile(np.eye(4), (count, 1, 1))
    for parent, child, edge in tree_order(count, edges.pairs, tree, root):
        transform = edges.i_from_j[edge]
        parent_from_child = transform if edges.pairs[edge, 0] == parent else inverse(transform)
        world_from_view[child] = world_from_view[parent] @ parent_from_child
    return world_from_view


def edge_residuals(world_from_view: Array, edges: EdgeSet) -> Array:
    """How the views' relative similarities differ from the edges', (P, 7): rotation, log scale, shift.

    Left differences in view i's frame and unit: the rotation (rad, 3) that view i would have to add, the log of the
    scale ratio (1), and by how much the object's centre is displaced (3).
    """
    i, j = edges.pairs.T
    predicted = inverse(world_from_view[i]) @ world_from_view[j]
    scale = np.cbrt(np.linalg.det(predicted[:, :3, :3]))
    measured = np.cbrt(np.linalg.det(edges.i_from_j[:, :3, :3]))
    turn = predicted[:, :3, :3] / scale[:, None, None] @ np.swapaxes(edges.rotations, -1, -2)
    lever = np.einsum("pij,pj->pi", turn, _CENTRE - edges.i_from_j[:, :3, 3])
    shift = predicted[:, :3, 3] + lever - _CENTRE
    return np.concatenate([log_so3(turn), np.log(scale / measured)[:, None], shift], 1)


def edge_jacobian(world_from_view: Array, edges: EdgeSet) -> tuple[Array, Array]:
    """Jacobians (P, 7, 7) of `edge_residuals` with respect to views i and j.

    A view moves as R exp(a), log scale + l, t + scale b, in the order (a, l, b): in its own unit, so that the world's
    does not matter. First order in the residual rotation.
    """
    i, j = edges.pairs.T
    scale = np.cbrt(np.linalg.det(world_from_view[:, :3, :3]))[:, None, None]
    rotation_i = world_from_view[i, :3, :3] / scale[i]
    predicted = inverse(world_from_view[i]) @ world_from_view[j]
    rotation, shift = nearest_rotation(predicted[:, :3, :3]), predicted[:, :3, 3]
    in_j = np.einsum("pji,pj->pi", edges.rotations, _CENTRE - edges.i_from_j[:, :3, 3])
    centre = shift + np.einsum("pij,pj->pi", rotation, in_j)
    by_i, by_j = np.zeros((len(i), 7, 7)), np.zeros((len(i), 7, 7))
    by_i[:, :3, :3], by_j[:, :3, :3] = -np.eye(3), rotation
    by_i[:, 3, 3], by_j[:, 3, 3] = -1.0, 1.0
    by_i[:, 4:, :3], by_j[:, 4:, :3] = skew(centre), -rotation @ skew(in_j)
    by_i[:, 4:, 3] = -shift
    back = np.swapaxes(rotation_i, -1, -2)
    by_i[:, 4:, 4:], by_j[:, 4:, 4:] = -back, back * (scale[j] / scale[i])
    return by_i, by_j


def edge_chi2(world_from_view: Array, edges: EdgeSet) -> Array:
    """Squared Mahalanobis length (P,) of the edges' residuals."""
    residual = edge_residuals(world_from_view, edges)
    return np.einsum("pi,pij,pj->p", residual, edges.precision, residual)


def _step(world_from_view: Array, edges: EdgeSet, robust: Array, free: Array) -> Array:
    """Gauss-Newton update (N, 7) of all views; entries that are not `free` (N, 7) bool stay 0."""
    count = len(world_from_view)
    whiten = np.swapaxes(np.linalg.cholesky(edges.precision), -1, -2) * np.sqrt(edges.weights * robust)[:, None, None]
    residual = np.einsum("pij,pj->pi", whiten, edge_residuals(world_from_view, edges)).reshape(-1)
    row = np.arange(len(residual)).reshape(-1, 7, 1).repeat(7, 2)
    parts = []
    for side, jacobian in enumerate(edge_jacobian(world_from_view, edges)):
        column = (edges.pairs[:, side, None] * 7 + np.arange(7))[:, None, :].repeat(7, 1)
        parts.append((row.ravel(), column.ravel(), (whiten @ jacobian).ravel()))
    r, c, v = (np.concatenate(items) for items in zip(*parts))
    full = coo_matrix((v, (r, c)), shape=(len(residual), 7 * count)).tocsc()
    picked = np.flatnonzero(free.reshape(-1))
    used = full[:, picked]
    update = np.zeros(7 * count)
    normal = (used.T @ used + 1e-6 * identity(len(picked))).tocsc()
    update[picked] = -splu(normal).solve(used.T @ residual)
    return update.reshape(count, 7)


def stepped(world_from_view: Array, update: Array) -> Array:
    """The views after a step `update` (N, 7) in the coordinates of `edge_jacobian`, of at most 1 in each of them."""
    update = np.clip(update, -1.0, 1.0)
    scale = np.cbrt(np.linalg.det(world_from_view[:, :3, :3]))
    rotation = world_from_view[:, :3, :3] / scale[:, None, None] @ exp_so3(update[:, :3])
    centre = world_from_view[:, :3, 3] + scale[:, None] * update[:, 4:]
    return make(nearest_rotation(rotation), centre, scale * np.exp(update[:, 3]))


def average(start: Array, edges: EdgeSet, free: Array) -> tuple[Array, Array]:
    """Joint robust solve: world-from-view similarities (N, 4, 4) from `start`, and every edge's final weight (P,).

    Gauss-Newton with Geman-McClure weights on whole edges; the scale of the loss falls from the median residual to
    its final value (graduated non-convexity), so that wrong edges lose their say before they bend the solution.
    """
    world_from_view = start.copy()
    final = 25.0  # squared, in standard deviations of all seven residuals together
    robust = np.ones(len(edges.pairs))
    if not len(edges.pairs) or not free.any():
        return world_from_view, robust
    scale = 0.0
    for iteration in range(30):
        chi2 = edge_chi2(world_from_view, edges)
        scale = max(final, 4.0 * float(np.median(chi2))) if iteration == 0 else max(final, scale / 1.5)
        robust = (scale / (scale + chi2)) ** 2
        update = _step(world_from_view, edges, robust, free)
        world_from_view = stepped(world_from_view, update)
        if scale <= final and np.abs(update).max() < 1e-6:
            break
    return world_from_view, robust


def consensus(world_from_view: Array, edges: EdgeSet, max_error_deg: float) -> float:
    """Weight of the edges whose rotation the views agree with, within their tolerance."""
    residual = edge_residuals(world_from_view, edges)
    close = np.degrees(np.linalg.norm(residual[:, :3], axis=-1)) < edges.tolerance_deg(max_error_deg)
    return float((edges.weights * close).sum())


def best_tree_start(count: int, edges: EdgeSet, tree: Array, root: int, max_error_deg: float) -> Array:
    """World-from-view similarities (N, 4, 4) along the tree that most edges agree with.

    Candidates are `tree` and spanning trees of randomly perturbed weights; one wrong edge in a tree misplaces all views
    behind it, and only few of the others agree with that. Ties go to `tree`.
    """
    rng = np.random.default_rng(0)
    best = along_tree(count, edges, tree, root)
    agreed = consensus(best, edges, max_error_deg)
    trees: Sequence[Array] = [
        spanning_tree(count, edges.pairs, edges.weights * rng.uniform(0.2, 1.0, len(edges.weights))) for _ in range(30)
    ]
    for other in trees:
        if agreed >= 0.999 * edges.weights.sum():
            break
        candidate = along_tree(count, edges, other, root)
        score = consensus(candidate, edges, max_error_deg)
        if score > 1.02 * agreed:
            best, agreed = candidate, score
    return best
