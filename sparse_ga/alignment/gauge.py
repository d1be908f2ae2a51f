"""The gauge of an `Alignment`, which frame and unit the world has; and its status in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparse_ga.products import Alignment, Array, View

_CONTRADICTED = 0.2  # share of the verified pairs, by score, that may contradict the result without remark


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


def status_of(contradicted: float) -> str:
    """Status of an alignment that a share of its well matched pairs, by score, contradict."""
    if contradicted > _CONTRADICTED:
        share = f"{contradicted:.0%}"
        return f"ok, in doubt: {share} of the well matched pairs contradict the cameras (sides that look alike?)"
    return "ok"
