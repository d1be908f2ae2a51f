"""The gauge of an `Alignment`, which frame and unit the world has; and its status in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparse_ga.products import Alignment, Array, View

_CONTRADICTED = 0.2  # share of the verified pairs, by score, that may contradict the result without remark
_MOST_NAMED = 3


def fix_gauge(alignment: Alignment, views: Sequence[View]) -> Alignment:
    """The same alignment in its stated gauge.

    If given poses fix frame and scale (`Alignment.metric_frame`) nothing changes. Else the median anchor depth over
    the registered views becomes 1, and the world is the frame of the first registered view, or, where a single pose
    is given, the frame which that pose is in (with the unit chosen by the median depth). Poses of views that are not
    registered become the identity.
    """
    count, registered = len(alignment.names), alignment.registered
    poses = alignment.world_from_cam.copy()
    poses[~registered] = np.eye(4)
    if not registered.any() or alignment.metric_frame:
        return replace(alignment, world_from_cam=poses)
    of_anchor = np.repeat(np.arange(count), np.diff(alignment.anchor_start))
    depths = alignment.anchor_depth[registered[of_anchor]]
    scale = float(np.median(depths)) if len(depths) else 1.0
    anchor_view, target = int(np.flatnonzero(registered)[0]), np.eye(4)
    for n in np.flatnonzero(registered).tolist():
        given = views[n].world_from_cam
        if given is not None:
            anchor_view, target = n, given
            break
    here = poses[anchor_view].copy()
    moved = _rigid_inverse(here) @ poses
    moved[:, :3, 3] /= scale
    poses = target @ moved
    poses[anchor_view] = target
    poses[~registered] = np.eye(4)
    depth = alignment.anchor_depth / np.where(registered[of_anchor], scale, 1.0)
    return replace(alignment, world_from_cam=poses, anchor_depth=depth)


def _rigid_inverse(pose: Array) -> Array:
    result = np.eye(4)
    result[:3, :3] = pose[:3, :3].T
    result[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return result


def status_of(contradicted: float, suspects: Sequence[str] = ()) -> str:
    """Status of an alignment that a share of its well matched pairs, by score, contradict.

    `suspects` are views whose given pose, held as it is, most of their own pairs contradict.
    """
    if contradicted <= _CONTRADICTED:
        return "ok"
    hint = "sides that look alike?"
    if len(suspects) > _MOST_NAMED:
        hint = "the given poses may be wrong"
    elif suspects:
        hint = f"the given pose of {' or '.join(suspects)} may be wrong"
    return f"ok, in doubt: {contradicted:.0%} of the well matched pairs contradict the cameras ({hint})"


def suspect_poses(pairs: Array, weights: Array, against: Array, held: Array) -> Array:
    """Views (N,) bool with a `held` (N,) pose that most of their pairs (P, 2) contradict, by weight (P,).

    Those with the largest share of pairs `against` (P,) bool: a single wrong pose also contradicts pairs of right ones.
    Pairs that look alike leave every view more pairs that agree.
    """
    ends, weight = pairs.reshape(-1), np.repeat(weights, 2)
    total = np.bincount(ends, weight, minlength=len(held))
    share = np.bincount(ends, weight * np.repeat(against, 2), minlength=len(held)) / np.maximum(total, 1e-12)
    worst = float(share[held].max(initial=0.0))
    return held & (share > 0.5) & np.isclose(share, worst)
