"""EXIF orientation: photographs are read upright, COLMAP reads them as they are stored.

Cameras of COLMAP models belong to the stored pixels and are turned with the photograph when they come in; models that
go out are turned back, so that they fit the files that COLMAP will open.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparse_ga.products import Array, Reconstruction, Tracks

# Rows of the upright pixel (x, y) by the stored one (x, y): factors of each, EXIF 2.32, tag 0x0112.
_AXES = {
    1: ((1, 0), (0, 1)),
    2: ((-1, 0), (0, 1)),
    3: ((-1, 0), (0, -1)),
    4: ((1, 0), (0, -1)),
    5: ((0, 1), (1, 0)),
    6: ((0, -1), (1, 0)),
    7: ((0, -1), (-1, 0)),
    8: ((0, 1), (-1, 0)),
}


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(W, H) of the upright photograph whose stored pixels are `size` (W, H), and the other way round."""
    return (size[1], size[0]) if orientation >= 5 else size


def is_mirrored(orientation: int) -> bool:
    """Whether upright and stored pixels are mirror images: no camera that sees the one sees the other."""
    return bool(np.linalg.det(np.array(_AXES[orientation], float)) < 0)


def upright_from_stored(orientation: int, stored_size: tuple[int, int]) -> Array:
    """Affine (3, 3) that takes stored pixels of a photograph of `stored_size` (W, H) to upright ones."""
    axes = np.array(_AXES[orientation], float)  # (2, 2)
    size = np.array(turned_size(stored_size, orientation), float)
    result = np.eye(3)
    result[:2, :2] = axes
    result[:2, 2] = np.where(axes.sum(1) < 0, size - 1, 0)
    return result


def turned_camera(intrinsics: Array, world_from_cam: Array, pixels: Array) -> tuple[Array, Array]:
    """Intrinsics (3, 3) and pose (4, 4) of a camera whose pixels are moved by `pixels` (3, 3), a turn by right angles:
    its axes turn with them."""
    turn = np.eye(4)
    turn[:2, :2] = pixels[:2, :2]
    return pixels @ intrinsics @ turn[:3, :3].T, world_from_cam @ turn.T


def as_stored(reconstruction: Reconstruction) -> Reconstruction:
    """The reconstruction with the cameras and observations of the photographs as their files store them.

    Mirrored photographs stay upright: no rigid camera sees them as they are stored. Depth maps and masks stay too,
    `working_from_source` leads to them.
    """
    r = reconstruction
    turned = [n for n, tag in enumerate(r.orientations) if tag != 1 and not is_mirrored(tag)]
    if not turned:
        return r
    pose, k, sizes = r.world_from_cam.copy(), r.intrinsics.copy(), r.source_sizes.copy()
    working, xy = r.working_from_source.copy(), r.tracks.xy.copy()
    for n in turned:
        size = turned_size((int(sizes[n, 0]), int(sizes[n, 1])), r.orientations[n])
        upright = upright_from_stored(r.orientations[n], size)
        stored = np.linalg.inv(upright)
        k[n], pose[n] = turned_camera(k[n], pose[n], stored)
        sizes[n], working[n] = size, working[n] @ upright
        seen = r.tracks.view_index == n
        xy[seen] = xy[seen] @ stored[:2, :2].T + stored[:2, 2]
    tracks = Tracks(r.tracks.point_index, r.tracks.view_index, xy)
    return replace(r, world_from_cam=pose, intrinsics=k, source_sizes=sizes, working_from_source=working, tracks=tracks)
