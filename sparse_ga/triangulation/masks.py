"""Masks against each other: which are too large or too small, and masks mended by what the other views show."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sparse_ga.products import Array
from sparse_ga.triangulation.silhouettes import (
    Hull,
    HullVotes,
    box_around,
    distance_outside,
    hull_silhouette,
    project_nearest,
    seen_outside,
    vote_cells,
)
from sparse_ga.triangulation.views import Rig

_EXCESS = 0.15
_HOLE = 0.02
_HOLE_MARGIN_PX = 3.0
_HOLE_ROUNDS = 3
_ACCUSED_SHARE = 0.2
_HOLE_DENSITY = 0.33
_RIM_INSIDE_PX = 6.0
_RIM_SHARE = 0.5
_HEAP = 3.0  # times the mean: what more points there are on one pixel does not count, they make no long outline
_TIGHT_PX = 2  # from here on it is told
_TIGHT_LIMIT_PX = 8


@dataclass(frozen=True, eq=False)
class MaskCheck:
    """Masks to trust: what is wrong with which, and masks mended by what the other views say."""

    votes: list[Array]  # (H, W) bool each: pixels that do not speak against a point
    depths: list[Array]  # (H, W) bool each: pixels whose depth may be used
    wrong: tuple[str, ...]  # "name: what is wrong"


def check_masks(rig: Rig, masks: list[Array], names: tuple[str, ...], points: Array) -> MaskCheck:
    """Compare every mask with the visual hull of the other views, and with points (P, 3) that others confirm.

    A mask is too small where confirmed points fall outside it, all along its outline (it is tight: eroded) or in a part
    of it (a hole, a finger before the object): it has no say there. A mask so mended is too large where its rays miss
    the others' hull (a mask of everything, a wrong object): its depths are then used inside the hull only. One other
    view may disagree with the hull, so that a second wrong mask does not accuse all.
    """
    views = [int(n) for n in np.nonzero(rig.registered)[0]]
    votes, depths, wrong = list(masks), list(masks), []
    for view in views:
        tight = _tightness(rig, view, masks[view], points)
        if tight:
            votes[view] = distance_outside(masks[view]) <= tight
        if tight >= _TIGHT_PX:
            wrong.append(f"{names[view]}: the mask is about {tight} px smaller than what the other views see as object")
    holes = _fill_holes(rig, votes, points)
    wrong += [f"{names[n]}: the mask leaves out {size} px that other views see as object" for n, size in holes.items()]
    low, high = box_around(points)
    cells = vote_cells(rig, votes, low, high)
    spare = 1 if len(views) >= 5 else 0
    for view in views:
        mask = masks[view]
        reach = _reach(rig, view, votes[view], cells, spare)
        excess = float((mask & ~reach).sum() / max(mask.sum(), 1))
        if excess > _EXCESS:
            depths[view] = mask & reach
            wrong.append(f"{names[view]}: {excess:.0%} of the mask lies outside the visual hull of the other views")
    return MaskCheck(votes, depths, tuple(wrong))


def _fill_holes(rig: Rig, votes: list[Array], points: Array) -> dict[int, int]:
    """Fill in `votes` what points (P, 3) show to be holes; the size in px of what was filled, by view.

    Only points that one view in five at most accuses show a hole. Where many masks have holes (fingers in all of
    them), filling some takes accusations away and shows others, so it is done in rounds.
    """
    views = [int(n) for n in np.nonzero(rig.registered)[0]]
    accuses = {view: seen_outside(rig, view, votes[view], points, 1.0) for view in views}
    seen = np.sum([project_nearest(rig, view, points, votes[view].shape)[1] for view in views], axis=0)  # (P,)
    filled: dict[int, int] = {}
    for _ in range(_HOLE_ROUNDS):
        accused = np.sum([accuses[view] for view in views], axis=0)  # (P,)
        trusted = points[accused <= np.maximum(_ACCUSED_SHARE * seen, 1)]
        found = {view: _missing(rig, view, votes[view], trusted) for view in views}
        found = {view: hole for view, hole in found.items() if hole.sum() > _HOLE * votes[view].sum()}
        for view, hole in found.items():
            votes[view] = votes[view] | hole
            filled[view] = filled.get(view, 0) + int(hole.sum())
            accuses[view] = seen_outside(rig, view, votes[view], points, 1.0)
        if not found:
            break
    return filled


def _tightness(rig: Rig, view: int, mask: Array, points: Array) -> int:
    """How many px the outline that points (P, 3) show lies outside the mask's outline; 0 where it is near it.

    Points are as dense beyond the outline of an eroded mask as they are inside it; beyond that of a good mask they are
    few, and beyond a hole's or a finger's they are in a part of the outline only. The outline that the points show is
    where their density falls to a half, less one px by which points of good masks scatter.
    """
    pixel, inside = project_nearest(rig, view, points, mask.shape)
    count = np.bincount(pixel[inside], minlength=mask.size).reshape(mask.shape).astype(np.float64)
    rim = mask & (distance_outside(~mask) <= _RIM_INSIDE_PX)
    if not count[rim].any():
        return 0
    count = np.minimum(count, max(_HEAP * count[rim].mean(), 1.0))
    outside = distance_outside(mask)
    for pixels in range(_TIGHT_LIMIT_PX + 1):
        ring = (outside > pixels) & (outside <= pixels + 1)
        if not ring.any() or count[ring].mean() < _RIM_SHARE * count[rim].mean():
            return max(pixels - 1, 0)
    return 0  # no end: the mask is not of this object, or the camera is wrong


def _reach(rig: Rig, view: int, mask: Array, cells: HullVotes, spare: int) -> Array:
    """Silhouette (H, W) in one view of the hull that the other views span, `spare` of which may disagree."""
    centers = Hull(cells.origin, cells.cell, cells.seen >= 0).centers(cells.seen >= 0)
    pixel, inside = project_nearest(rig, view, centers, mask.shape)
    own = (inside & ~mask.reshape(-1)[pixel]).reshape(cells.outside.shape)
    hull = cells.hull((cells.outside - own <= spare) & (cells.seen >= 2))
    return hull_silhouette(rig, view, hull, mask.shape)


def _missing(rig: Rig, view: int, mask: Array, points: Array) -> Array:
    """Pixels (H, W) outside the mask that points (P, 3) cover without gaps, beyond a margin around its outline.

    A hole in a mask is as full of the surface behind it as the mask is around it; points that float beside the object
    are few, and single ones and thin lines of them do not count.
    """
    pixel, inside = project_nearest(rig, view, points, mask.shape)
    count = np.bincount(pixel[inside], minlength=mask.size).reshape(mask.shape).astype(np.float32)
    density = cv2.blur(count, (5, 5))
    square = np.ones((3, 3), np.uint8)
    covered = cv2.morphologyEx((count > 0).astype(np.uint8), cv2.MORPH_CLOSE, square).astype(bool)
    covered &= density >= _HOLE_DENSITY * density[mask].mean() if mask.any() else False
    core = covered & (distance_outside(mask) > _HOLE_MARGIN_PX)
    core = cv2.morphologyEx(core.astype(np.uint8), cv2.MORPH_OPEN, square).astype(bool)
    if not core.any():
        return np.zeros(mask.shape, bool)
    grown = distance_outside(core) <= _HOLE_MARGIN_PX + 1
    return grown & ~mask
