"""The registered cameras as the triangulation uses them, working px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparse_ga.alignment.intrinsics import camera_groups
from sparse_ga.geometry.transforms import inverse
from sparse_ga.products import Alignment, Array, View

_SAME = 1e-7  # rad, and share of the scene's size: far more than float64 rounds, far less than any solver moves


@dataclass(frozen=True, eq=False)
class Rig:
    """All cameras of a reconstruction, and which of their parameters must not change."""

    registered: Array  # (N,) bool
    world_from_cam: Array  # (N, 4, 4)
    intrinsics: Array  # (N, 3, 3), working px
    held_pose: Array  # (N,) bool
    held_intrinsics: Array  # (N,) bool
    sensor: Array  # (N,) int64, views of one number zoom by one factor and hold their intrinsics together
    scale: Array  # (N,), working px per source px
    rotation_sigma_deg: Array  # (N,), standard deviation of each rotation by the alignment; 0 where unknown

    @property
    def cam_from_world(self) -> Array:
        """(N, 4, 4)."""
        return inverse(self.world_from_cam)

    @property
    def projection(self) -> Array:
        """Working pixels from world, (N, 3, 4)."""
        return self.intrinsics @ self.cam_from_world[:, :3]

    @property
    def centers(self) -> Array:
        """Camera centres in the world, (N, 3)."""
        return self.world_from_cam[:, :3, 3]

    def moved(self, world_from_cam: Array, intrinsics: Array) -> Rig:
        """The same rig with other poses and intrinsics."""
        return replace(self, world_from_cam=world_from_cam, intrinsics=intrinsics)


def make_rig(views: Sequence[View], alignment: Alignment) -> Rig:
    """Cameras of an alignment.

    A pose or intrinsics the user gave is held when the alignment kept it as given; such a pose is the given one bit for
    bit. A focal length is held also where it was to stay as it is. Views of one camera and size, upright or turned,
    share a sensor, as in the alignment.
    """
    held_pose = _kept_poses(views, alignment)
    poses = alignment.world_from_cam.copy()
    for n in np.flatnonzero(held_pose).tolist():
        poses[n] = views[n].world_from_cam
    sensor = camera_groups(views).of_view
    held = np.array(
        [
            v.intrinsics_source == "given" and _kept_intrinsics(v.intrinsics, k)
            for v, k in zip(views, alignment.intrinsics, strict=True)
        ],
        bool,
    )
    if len(alignment.held_focal):
        held |= alignment.held_focal
    return Rig(
        alignment.registered,
        poses,
        alignment.intrinsics,
        held_pose,
        np.isin(sensor, sensor[held]),
        sensor,
        np.array([np.sqrt(abs(np.linalg.det(view.working_from_source[:2, :2]))) for view in views]),
        alignment.uncertainty_deg if len(alignment.uncertainty_deg) else np.zeros(len(views)),
    )


def _kept_poses(views: Sequence[View], alignment: Alignment) -> Array:
    """Which views (N,) bool have their given pose: but for rounding, which grows with the distance from the origin."""
    registered = alignment.registered
    size = _scene_size(alignment)
    kept = np.zeros(len(views), bool)
    for n in np.flatnonzero(registered).tolist():
        given, used = views[n].world_from_cam, alignment.world_from_cam[n]
        if given is not None:
            off = np.abs(given - used)[:3]
            kept[n] = off[:, :3].max() < _SAME and off[:, 3].max() < _SAME * size
    return kept


def _scene_size(alignment: Alignment) -> float:
    """How far apart things are, world units: the registered cameras, or the object from them."""
    centres = alignment.world_from_cam[alignment.registered, :3, 3]
    of_anchor = np.repeat(alignment.registered, np.diff(alignment.anchor_start))
    depths = alignment.anchor_depth[of_anchor]
    apart = np.abs(centres - centres.mean(0)).max() if len(centres) else 0.0
    return max(float(apart), float(np.median(depths)) if len(depths) else 0.0)


def _kept_intrinsics(given: Array | None, used: Array) -> bool:
    return given is not None and bool(np.allclose(given, used, rtol=1e-6, atol=1e-9))
