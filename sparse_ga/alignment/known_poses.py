"""Camera poses the user gave: the frame and scale they fix, and where they place views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparse_ga.geometry.cameras import rays
from sparse_ga.geometry.transforms import make, nearest_rotation
from sparse_ga.products import Array, View


@dataclass(frozen=True)
class KnownPoses:
    """Poses given for some of N views, and what follows from them; of views with an empty mask they say nothing.

    `metric` says whether they fix the scale: two cameras in different places do. `spread` is the largest distance of a
    given centre from their mean. `object_centre` is the point nearest to the rays through the middles of the masks, a
    stand-in for the object where nothing else tells a view's depth. `middles` are these rays, in each camera's axes.
    """

    given: Array  # (N,) bool
    world_from_cam: Array  # (N, 4, 4), identity where not given
    metric: bool
    spread: float
    object_centre: Array  # (3,)
    middles: Array  # (N, 3), NaN where the mask is empty

    def forgotten(self) -> KnownPoses:
        """The same views without any given pose."""
        return replace(self, given=np.zeros_like(self.given), metric=False)


def known_poses(views: Sequence[View], intrinsics: Array) -> KnownPoses:
    """The given poses of `views`; `intrinsics` (N, 3, 3), working px, aim the rays."""
    given = np.array([view.world_from_cam is not None and bool(view.mask.any()) for view in views], bool)
    poses = np.tile(np.eye(4), (len(views), 1, 1))
    for n, view in enumerate(views):
        if given[n] and view.world_from_cam is not None:
            poses[n] = view.world_from_cam
    spread = _spread(poses[given, :3, 3])
    metric = spread > 0
    middles = np.array([_middle_ray(view.mask, k) for view, k in zip(views, intrinsics)]).reshape(-1, 3)
    centre = np.zeros(3)
    if metric:
        aim = (poses[given, :3, :3] @ middles[given, :, None])[..., 0]
        centre = _nearest_point(poses[given, :3, 3], aim)
    return KnownPoses(given, poses, metric, spread, centre, middles)


def _middle_ray(mask: Array, intrinsics: Array) -> Array:
    """Ray (3,) through the middle of a mask (H, W), NaN without one."""
    if not mask.any():
        return np.full(3, np.nan)
    middle: Array = rays(intrinsics, np.stack(np.nonzero(mask)[::-1], -1).mean(0)[None])[0]
    return middle


def _spread(places: Array) -> float:
    """Largest distance of `places` (K, 3) from their mean; 0 where it is no more than rounding."""
    apart = np.linalg.norm(places - places.mean(0), axis=-1).max() if len(places) else 0.0
    return float(apart) if apart > 1e-9 * np.abs(places).max(initial=0.0) else 0.0


def in_different_places(world_from_cam: Array) -> bool:
    """Whether not all cameras (K, 4, 4) have one centre."""
    return _spread(world_from_cam[:, :3, 3]) > 0


def _nearest_point(origins: Array, directions: Array) -> Array:
    """Point (3,) nearest to lines from `origins` (K, 3) along `directions` (K, 3), in the least-squares sense.

    Of all points that parallel lines are equally near to, the one nearest to the origins' mean.
    """
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    across = np.eye(3) - unit[:, :, None] * unit[:, None, :]  # (K, 3, 3)
    middle = origins.mean(0)  # what the ridge pulls to, and no digits are lost to a frame that begins far away
    system = across.sum(0) + 1e-9 * np.eye(3)
    return middle + np.linalg.solve(system, (across @ (origins - middle)[:, :, None]).sum(0)[:, 0])


def depth_of_centre(known: KnownPoses, view: int) -> float:
    """Depth of the object's centre in a given camera, world units; the cameras' spread if it would be behind it."""
    pose = known.world_from_cam[view]
    depth = float((known.object_centre - pose[:3, 3]) @ pose[:3, 2])
    return depth if depth > 0 else known.spread


def _depth_in_component(world_from_view: Array, members: Array, known: KnownPoses, view: int) -> float:
    """Depth of the object's centre in one view of a component, in that view's own units.

    The centre is the point nearest to the members' rays through their masks' middles. A view's unit is the median
    depth of the surface it sees, and a centre lies behind that by less than the distance again: what contradicts it,
    from rays that are all but parallel, is cut to this range.
    """
    seen = np.flatnonzero(members & np.isfinite(known.middles).all(-1))
    if len(seen) < 2:
        return 1.0
    aim = (world_from_view[seen, :3, :3] @ known.middles[seen, :, None])[..., 0]
    centre = _nearest_point(world_from_view[seen, :3, 3], aim)
    axes = world_from_view[view, :3, :3]  # scaled by the view's unit
    depth = float(np.linalg.solve(axes, centre - world_from_view[view, :3, 3])[2])
    return min(max(depth, 1.0), 2.0)


def frame_from_given(world_from_view: Array, members: Array, known: KnownPoses) -> Array:
    """Similarity (4, 4) that takes a component's frame to the frame of the given poses.

    `world_from_view` (N, 4, 4) are the component's similarities, `members` (N,) bool. With two given views or more in
    different places, their rotations and centres decide; with one, its pose, and the depth of the object's centre,
    there and in the component, gives the scale. At least one member must have a given pose.
    """
    index = np.flatnonzero(members & known.given)
    scale = np.cbrt(np.linalg.det(world_from_view[index, :3, :3]))
    rotations = world_from_view[index, :3, :3] / scale[:, None, None]
    turns = known.world_from_cam[index, :3, :3] @ np.swapaxes(rotations, -1, -2)
    rotation = nearest_rotation(np.median(turns, axis=0))
    here, there = world_from_view[index, :3, 3] @ rotation.T, known.world_from_cam[index, :3, 3]
    spread_here = np.linalg.norm(here - here.mean(0), axis=-1)
    spread_there = np.linalg.norm(there - there.mean(0), axis=-1)
    if len(index) >= 2 and spread_here.max() > 1e-9 and _spread(there) > 0:
        size = float(np.median(spread_there[spread_here > 1e-9] / spread_here[spread_here > 1e-9]))
    elif known.metric:
        first = int(index[0])
        here_first = _depth_in_component(world_from_view, members, known, first) * float(scale[0])
        size = depth_of_centre(known, first) / here_first
    else:
        size = 1.0
    return make(rotation, np.median(there - size * here, axis=0), size)
