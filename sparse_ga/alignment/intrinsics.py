"""Working-pixel intrinsics of all views: what was given, what EXIF says, what the point maps say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ga.geometry.cameras import make_intrinsics
from sparse_ga.geometry.focal import FocalVotes
from sparse_ga.products import Array, IntrinsicsSource, View

_TRUST: tuple[IntrinsicsSource, ...] = ("unknown", "exif", "given")  # the better known, the later


@dataclass(frozen=True)
class CameraGroups:
    """Which views share their focal length: those of one `View.camera` and size of the photograph, upright or turned.

    Sharing means one focal length in source pixels; `scale` is that of the working image, f_work = scale f_source.
    `source` is where the best known intrinsics of any view of the camera come from, which are those of all its views.
    """

    of_view: Array  # (N,) int64
    scale: Array  # (N,) float64
    source: tuple[IntrinsicsSource, ...]  # (G,)

    def __len__(self) -> int:
        return len(self.source)

    def among(self, chosen: Array) -> CameraGroups:
        """The groups of the views `chosen` (n,) alone, numbered anew; what is known of a camera stays known."""
        kept, of_view = np.unique(self.of_view[chosen], return_inverse=True)
        return CameraGroups(of_view.reshape(-1), self.scale[chosen], tuple(self.source[g] for g in kept))

    def median(self, values: Array) -> Array:
        """Median (G, ...) over every group's views of `values` (N, ...)."""
        return np.array([np.median(values[self.of_view == g], axis=0) for g in range(len(self))])


def camera_groups(views: Sequence[View], turned_apart: bool = False) -> CameraGroups:
    """Groups of views that share one camera.

    Upright and turned photographs of one camera have one focal length, but not one principal point: with
    `turned_apart` they are groups of their own.
    """
    cameras = [(view.camera, max(view.source_size), min(view.source_size)) for view in views]
    best: dict[tuple[str, int, int], IntrinsicsSource] = {}
    for camera, view in zip(cameras, views):
        best[camera] = max(best.get(camera, "unknown"), view.intrinsics_source, key=_TRUST.index)
    keys = [(camera, view.source_size if turned_apart else ()) for camera, view in zip(cameras, views)]
    distinct = sorted(set(keys))
    of_view = np.array([distinct.index(key) for key in keys], np.int64)
    scale = np.array([np.sqrt(abs(np.linalg.det(view.working_from_source[:2, :2]))) for view in views])
    return CameraGroups(of_view, scale, tuple(best[camera] for camera, _ in distinct))


def focal_votes(views: Sequence[View], groups: CameraGroups) -> list[FocalVotes]:
    """One empty vote per group, in source px, between a fifth and 200 times the photograph's long side."""
    sides = np.array([max(view.source_size) for view in views], float)
    result = []
    for group in range(len(groups)):
        side = float(sides[groups.of_view == group].max())
        result.append(FocalVotes(0.2 * side, 200.0 * side))
    return result


def initial_intrinsics(views: Sequence[View], groups: CameraGroups, votes: Sequence[FocalVotes]) -> Array:
    """Intrinsics (N, 3, 3), working px: given ones as they are, else those of the camera, else the group's estimate.

    Without any evidence the focal length is 1.2 times the long side of the photograph.
    """
    result = np.zeros((len(views), 3, 3))
    lenders = [_lenders(views, groups, g) for g in range(len(groups))]
    for n, view in enumerate(views):
        group = groups.of_view[n]
        if view.intrinsics is not None and view.intrinsics_source == "given":
            result[n] = view.intrinsics
        elif lenders[group]:
            result[n] = _borrowed(view, lenders[group])
        else:
            focal, found = votes[group].estimate()
            if not found:
                focal = 1.2 * max(view.source_size)
            result[n] = make_intrinsics(focal * groups.scale[n], view.principal_point)
    return result


def _lenders(views: Sequence[View], groups: CameraGroups, group: int) -> list[View]:
    """The views of a group that know their intrinsics best."""
    members = [views[n] for n in np.flatnonzero(groups.of_view == group).tolist()]
    return [v for v in members if v.intrinsics is not None and v.intrinsics_source == groups.source[group]]


def _borrowed(view: View, lenders: Sequence[View]) -> Array:
    """Intrinsics (3, 3), working px, of a view that has the camera of `lenders`: the median of theirs, in source px.

    Only given ones tell the principal point, and only of photographs that are held the same way: which way the others
    were turned is not known.
    """
    alike = [lender for lender in lenders if lender.source_size == view.source_size]
    known = [np.linalg.inv(v.working_from_source) @ v.intrinsics for v in alike or lenders if v.intrinsics is not None]
    source = np.median(known, axis=0)  # (3, 3)
    if not alike:
        source[[0, 1], [0, 1]] = source[[1, 0], [1, 0]]
    result: Array = view.working_from_source @ source
    if not alike or lenders[0].intrinsics_source != "given":
        result[:2, 2] = view.principal_point
    return result
