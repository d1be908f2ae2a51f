"""The world that is triangulated in: that of the alignment, with the first registered camera at the origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparse_ga.geometry.placement import shifted, shifted_poses
from sparse_ga.products import Alignment, Array, Reconstruction, View
from sparse_ga.triangulation.views import Rig


def local_origin(alignment: Alignment) -> Array:
    """Centre (3,) of the first registered camera: exactly 0 unless given poses fix the frame."""
    return next(iter(alignment.world_from_cam[alignment.registered, :3, 3]), np.zeros(3))


def about_origin(views: Sequence[View], alignment: Alignment, origin: Array) -> tuple[list[View], Alignment]:
    """Views and alignment in the world that has its origin at `origin` (3,) of the present one."""
    near = []
    for view in views:
        pose = view.world_from_cam
        if pose is not None:
            pose = pose.copy()
            pose[:3, 3] -= origin
        near.append(replace(view, world_from_cam=pose))
    return near, replace(alignment, world_from_cam=shifted_poses(alignment, -origin))


def in_given_world(local: Reconstruction, origin: Array, near: Rig, given: Rig) -> Reconstruction:
    """The reconstruction back in the world in which its origin is `origin` (3,).

    `near` and `given` are the cameras to begin with, about the origin and in that world. Those that nothing has moved
    come out as they were, bit for bit: there and back is rounded.
    """
    result = shifted(local, origin)
    unmoved = (local.world_from_cam == near.world_from_cam).all((1, 2))  # (N,)
    poses = np.where(unmoved[:, None, None], given.world_from_cam, result.world_from_cam)
    return replace(result, world_from_cam=poses)
