"""What is odd about a set of photographs with their masks and cameras, though it can be reconstructed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparse_ga.alignment.known_poses import in_different_places
from sparse_ga.products import View
from sparse_ga.stages.ingest import Source


def remarks(views: Sequence[View], sources: Sequence[Source]) -> list[str]:
    """Warnings about a set, in words, for the run and for its report."""
    found = [_on_masks(views, sources), _on_poses(views), _on_principal_points(views)]
    return [text for text in found if text]


def _on_masks(views: Sequence[View], sources: Sequence[Source]) -> str:
    if not views or not all(view.mask.all() for view in views):
        return ""
    given = any(source.mask is not None for source in sources)
    what = "the masks are white all over" if given else "no masks and no alpha channels"
    return f"{what}: everything in the photographs counts as the object"


def _on_poses(views: Sequence[View]) -> str:
    poses = [view.world_from_cam for view in views if view.world_from_cam is not None]
    if len(poses) < 2 or in_different_places(np.array(poses)):
        return ""
    return (
        f"the {len(poses)} given poses are all in one place, so that they tell neither how the camera moved around the "
        "object nor the scale, and most are not used; poses must be as seen from the object (before a turntable, they "
        "turn with it): mend them or leave them out"
    )


def _on_principal_points(views: Sequence[View]) -> str:
    outside = []
    for view in views:
        if view.intrinsics is not None and view.intrinsics_source == "given":
            point = (np.linalg.inv(view.working_from_source) @ view.intrinsics)[:2, 2]
            if (point < -0.5).any() or (point > np.array(view.source_size) - 0.5).any():
                outside.append(view.name)
    if not outside:
        return ""
    more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
    return (
        f"{outside[0]}{more}: the given principal point lies outside of the photograph; if the photograph is no crop, "
        "K belongs to another size"
    )
