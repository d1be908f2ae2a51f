"""Working-pixel intrinsics of all views: what was given, what EXIF says, what the point maps say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ga.geometry.cameras import make_intrinsics
from sparse_ga.geometry.focal import FocalVotes
from sparse_ga.products import Array, View


@dataclass(frozen=True)
class CameraGroups:
    """Which views share their focal length: one `View.camera`, size of the photograph and origin of the intrinsics.

    Sharing means one focal length in source pixels; `scale` is that of the working image, f_work = scale f_source.
    """

    of_view: Array  # (N,) int64
    scale: Array  # (N,) float64
    source: tuple[str, ...]  # (G,) unknown, exif or given

    def __len__(self) -> int:
        return len(self.source)


def camera_groups(views: Sequence[View], turned_apart: bool = False) -> CameraGroups:
    """Groups of views that share one camera.

    Upright and turned photographs of one camera have one focal length, but not one principal point: with
    `turned_apart` they are groups of their own.
    """
    sizes = [view.source_size if turned_apart else (max(view.source_size), min(view.source_size)) for view in views]
    keys = [(view.camera, size, view.intrinsics_source) for view, size in zip(views, sizes)]
    distinct = sorted(set(keys))
    of_view = np.array([distinct.index(key) for key in keys], np.int64)
    scale = np.array([np.sqrt(abs(np.linalg.det(view.working_from_source[:2, :2]))) for view in views])
    return CameraGroups(of_view, scale, tuple(key[2] for key in distinct))


def focal_votes(views: Sequence[View], groups: CameraGroups) -> list[FocalVotes]:
    """One empty vote per group, in source px, between a fifth and 200 times the photograph's long side."""
    sides = np.array([max(view.source_size) for view in views], float)
    result = []
    for group in range(len(groups)):
        side = float(sides[groups.of_view == group].max())
        result.append(FocalVotes(0.2 * side, 200.0 * side))
    return result


def initial_intrinsics(views: Sequence[View], groups: CameraGroups, votes: Sequence[FocalVotes]) -> Array:
    """Intrinsics (N, 3, 3), working px: a view's own where it has any, else its group's estimate.

    Without any evidence the focal length is 1.2 times the long side of the photograph.
    """
    result = np.zeros((len(views), 3, 3))
    for n, view in enumerate(views):
        if view.intrinsics is not None:
            result[n] = view.intrinsics
            continue
        focal, found = votes[groups.of_view[n]].estimate()
        if not found:
            focal = 1.2 * max(view.source_size)
        result[n] = make_intrinsics(focal * groups.scale[n], view.principal_point)
    return result
