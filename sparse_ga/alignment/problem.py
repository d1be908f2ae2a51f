"""The reprojection problem as flat arrays: observations, parameters, priors. Built once, solved by LM or Adam.

An observation says: the point at depth exp(log_depth[anchor] + log_ratio) on the ray of pixel `xy_host` of the host
view is seen at pixel `xy_target` of the target view. Every match gives two, one in each direction. Observations are
sorted by host view, then by target view; a run with one host and one target is a link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ga.alignment.edges import on_foreground
from sparse_ga.geometry.transforms import exp_so3
from sparse_ga.products import Array, CanonicalView, VerifiedMatches


@dataclass(frozen=True)
class Observations:
    """All observations, sorted by link; `link_start` (L + 1,) and `host_start` (n + 1,) delimit runs."""

    xy_host: Array  # (M, 2) float64, working px
    xy_target: Array  # (M, 2) float64, working px
    anchor: Array  # (M,) int64
    log_ratio: Array  # (M,) float64
    weight: Array  # (M,) float64
    match: Array  # (M,) int64, number of the match; every number occurs twice, once in each direction
    link_host: Array  # (L,) int64
    link_target: Array  # (L,) int64
    link_pair: Array  # (L,) int64, index of the pair
    link_start: Array  # (L + 1,) int64
    host_start: Array  # (n + 1,) int64, in links

    def __len__(self) -> int:
        return len(self.anchor)


@dataclass(frozen=True)
class State:
    """What the solver moves. Intrinsics are those of `Problem`, times exp(log_focal), plus principal_shift_px."""

    rotation: Array  # (n, 3, 3) cam from world
    translation: Array  # (n, 3)
    log_focal: Array  # (G,)
    principal_shift_px: Array  # (C, 2)
    log_scale: Array  # (n,) world units per canonical unit
    log_depth: Array  # (A,)


@dataclass(frozen=True)
class Problem:
    """One connected set of n views.

    `pose_prior` holds poses (n, 4, 4) cam from world where `pose_sigma` (n,) is finite: 0 holds a pose, a positive
    value is the standard deviation in rad of its rotation and of its position as seen from the object.
    `focal_sigma` (G,) likewise for log_focal: 0 holds, inf leaves free; `principal_sigma_px` (C,) for both coordinates
    of the principal point's shift. Views of one `group` share a focal length, those of one `centre_group`, which is
    part of a group, the principal point as well: upright and turned photographs of one camera do not.
    """

    observations: Observations
    intrinsics: Array  # (n, 3, 3) working px, where log_focal is 0
    group: Array  # (n,) int64, 0..G-1
    centre_group: Array  # (n,) int64, 0..C-1
    anchor_start: Array  # (n + 1,) int64
    canonical_log_depth: Array  # (A,)
    depth_weight: Array  # (A,) inverse variance of log_depth - log_scale - canonical_log_depth
    focal_sigma: Array  # (G,)
    principal_sigma_px: Array  # (C,)
    pose_prior: Array  # (n, 4, 4)
    pose_sigma: Array  # (n,)

    @property
    def view_count(self) -> int:
        """Number of views."""
        return len(self.intrinsics)

    @property
    def moves_principal_point(self) -> bool:
        """Whether any camera's principal point may move."""
        return bool((self.principal_sigma_px > 0).any())

    @property
    def group_of_centre(self) -> Array:
        """The group (C,) of every centre group."""
        group: Array = self.group[np.unique(self.centre_group, return_index=True)[1]]
        return group

    @property
    def anchor_view(self) -> Array:
        """The view of every anchor, (A,)."""
        return np.repeat(np.arange(self.view_count), np.diff(self.anchor_start))


def build_observations(
    pairs: Sequence[tuple[int, int]],
    canonical: Sequence[CanonicalView],
    load_matches: Callable[[int], VerifiedMatches],
    max_matches: int,
) -> Observations:
    """Observations of all `pairs`, between views indexed like `canonical`.

    Pairs with more than `max_matches` matches give that many, evenly spread over the list. A match's weight is its
    confidence relative to the median of its pair, between 0.2 and 2.
    """
    start = np.concatenate([[0], np.cumsum([len(view.anchor_xy) for view in canonical])])
    parts: list[tuple[int, int, int, tuple[Array, ...]]] = []
    total = 0
    for p, (i, j) in enumerate(pairs):
        matches = load_matches(p)
        keep = np.flatnonzero(
            on_foreground(matches, canonical[i].anchor_of_pixel >= 0, canonical[j].anchor_of_pixel >= 0)
        )
        if len(keep) > max_matches:
            keep = keep[np.linspace(0, len(keep) - 1, max_matches).astype(int)]
        if not len(keep):
            continue
        chosen = matches.matches.select(keep)
        middle = float(np.median(chosen.confidence))
        weight = np.clip(chosen.confidence / middle, 0.2, 2.0) if middle > 0 else np.ones(len(keep))
        for host, target, xy, other in ((i, j, chosen.xy_i, chosen.xy_j), (j, i, chosen.xy_j, chosen.xy_i)):
            anchor, ratio = _anchor_of(canonical[host], xy)
            order = np.argsort(anchor, kind="stable")
            columns = (xy, other, anchor + start[host], ratio, weight, total + np.arange(len(keep)))
            parts.append((host, target, p, tuple(column[order].astype(float) for column in columns)))
        total += len(keep)
    parts.sort(key=lambda part: part[:3])
    return _concatenate(parts, len(canonical))


def _anchor_of(view: CanonicalView, xy: Array) -> tuple[Array, Array]:
    """Anchor index (M,) of pixels `xy` (M, 2) and log of their depth ratio to it (M,)."""
    pixel = np.rint(xy).astype(int)
    anchor = view.anchor_of_pixel[pixel[:, 1], pixel[:, 0]]
    depth = view.depth[pixel[:, 1], pixel[:, 0]].astype(float)
    return anchor, np.log(depth / view.anchor_depth[anchor].astype(float))


def _concatenate(parts: list[tuple[int, int, int, tuple[Array, ...]]], count: int) -> Observations:
    host = np.array([part[0] for part in parts], np.int64)
    lengths = np.array([len(part[3][0]) for part in parts], np.int64)
    empty = (np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    columns = [np.concatenate([empty[k], *(part[3][k] for part in parts)]) for k in range(6)]
    return Observations(
        xy_host=columns[0],
        xy_target=columns[1],
        anchor=columns[2].astype(np.int64),
        log_ratio=columns[3],
        weight=columns[4],
        match=columns[5].astype(np.int64),
        link_host=host,
        link_target=np.array([part[1] for part in parts], np.int64),
        link_pair=np.array([part[2] for part in parts], np.int64),
        link_start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        host_start=np.searchsorted(host, np.arange(count + 1)),
    )


def centres(problem: Problem, state: State) -> Array:
    """A point near the middle of the visible object in every camera's frame, (n, 3)."""
    result = np.zeros((problem.view_count, 3))
    for n in range(problem.view_count):
        depth = state.log_depth[problem.anchor_start[n] : problem.anchor_start[n + 1]]
        result[n, 2] = np.exp(np.median(depth)) if len(depth) else 1.0
    return result


def retract(state: State, pose: Array, others: State, centre: Array) -> State:
    """Move every pose by `pose` (n, 6) and add `others` (its non-pose fields are increments).

    A pose step (w, v) turns the view's points by w about its `centre` (n, 3) and moves them by v times the centre's
    depth: X -> exp(w) (X - c) + c + |c_z| v, in the camera's frame.
    """
    turn = exp_so3(pose[:, :3])  # (n, 3, 3)
    moved = np.einsum("nij,nj->ni", turn, state.translation - centre) + centre + centre[:, 2:] * pose[:, 3:]
    return State(
        turn @ state.rotation,
        moved,
        state.log_focal + others.log_focal,
        state.principal_shift_px + others.principal_shift_px,
        state.log_scale + others.log_scale,
        state.log_depth + others.log_depth,
    )
