"""The registered cameras as the triangulation uses them, working px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparse_ga.alignment.intrinsics import camera_groups
from sparse_ga.geometry.transforms import inverse
from sparse_ga.products import Alignment, Array, View


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

    A pose or intrinsics the user gave is held when the alignment kept it as given; a focal length also where it was to
    stay as it is. Views of one camera and size, upright or turned, share a sensor, as in the alignment.
    """
    sensor = camera_groups(views).of_view
    held = np.array(
        [
            v.intrinsics_source == "given" and _kept(v.intrinsics, k)
            for v, k in zip(views, alignment.intrinsics, strict=True)
        ],
        bool,
    )
    if len(alignment.held_focal):
        held |= alignment.held_focal
    return Rig(
        alignment.registered,
        alignment.world_from_cam,
        alignment.intrinsics,
        np.array([_kept(v.world_from_cam, p) for v, p in zip(views, alignment.world_from_cam, strict=True)]),
        np.isin(sensor, sensor[held]),
        sensor,
        np.array([np.sqrt(abs(np.linalg.det(view.working_from_source[:2, :2]))) for view in views]),
        alignment.uncertainty_deg if len(alignment.uncertainty_deg) else np.zeros(len(views)),
    )


def _kept(given: Array | None, used: Array) -> bool:
    return given is not None and bool(np.allclose(given, used, rtol=1e-6, atol=1e-9))
