"""A folder that 3D Gaussian splatting reads as it is: images/, masks/, sparse/0 with PINHOLE cameras.

The original implementation (Kerbl et al., ToG 2023) takes the principal point to be the image centre, so photographs
are shifted until it is. The background moves relative to the object, so it is painted or made transparent unless the
user wants to keep it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from sparse_ga.errors import InputError
from sparse_ga.io.centering import (
    Background,
    Centered,
    Centering,
    center_principal_point,
    paint_background,
    shift_image,
    shift_mask,
)
from sparse_ga.io.colmap import write_colmap
from sparse_ga.io.encode import encode_png
from sparse_ga.products import Array, Reconstruction, Tracks

LoadSource = Callable[[int], tuple[Array, Array]]


@dataclass(frozen=True)
class ImageOptions:
    """How photographs leave the program."""

    centering: Centering
    background: Background


def png_name(name: str) -> str:
    """The name of an exported picture: that of the photograph, as PNG."""
    return str(PurePosixPath(name).with_suffix(".png"))


def centered_reconstruction(reconstruction: Reconstruction, how: Centering) -> tuple[Reconstruction, list[Centered]]:
    """The reconstruction on photographs whose principal point is central, and the shift of each of them.

    Intrinsics, sizes, tracks and `working_from_source` change together, so that every projection stays on its spot.
    Raises `InputError` where nothing would be left of a photograph.
    """
    r = reconstruction
    k, sides = r.intrinsics[:, :2, 2], r.source_sizes
    outside = r.registered & ~((k > -0.5) & (k < sides - 0.5)).all(1)
    if how == "crop" and outside.any():
        raise InputError(
            f"{r.names[int(np.argmax(outside))]}: its principal point lies outside of it, and cropping around that "
            "leaves nothing; use export.centering=pad"
        )
    shifts = [
        center_principal_point(k, (int(size[0]), int(size[1])), how if good else "off")
        for k, size, good in zip(r.intrinsics, r.source_sizes, r.registered, strict=True)
    ]
    offset = np.array([s.shift for s in shifts]).reshape(-1, 2)
    old_from_new = np.tile(np.eye(3), (len(shifts), 1, 1))
    old_from_new[:, :2, 2] = -offset
    moved = replace(
        r,
        intrinsics=np.array([s.intrinsics for s in shifts]).reshape(-1, 3, 3),
        source_sizes=np.array([s.size for s in shifts], np.int64).reshape(-1, 2),
        working_from_source=r.working_from_source @ old_from_new,
        tracks=Tracks(r.tracks.point_index, r.tracks.view_index, r.tracks.xy + offset[r.tracks.view_index]),
    )
    return moved, shifts


def write_images(
    reconstruction: Reconstruction,
    folder: Path,
    shifts: list[Centered],
    load_source: LoadSource,
    background: Background,
) -> list[Path]:
    """Write images/NAME.png and masks/NAME.png (white on the object) of every registered view."""
    written = []
    for n in np.nonzero(reconstruction.registered)[0]:
        image, mask = load_source(int(n))
        shift = shifts[int(n)]
        fill = 255 if background == "white" else 0
        image, mask = shift_image(image, shift, fill), shift_mask(mask, shift)
        name = png_name(reconstruction.names[int(n)])
        pictures = {"images": paint_background(image, mask, background), "masks": mask.astype(np.uint8) * 255}
        for sub, picture in pictures.items():
            path = folder / sub / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(picture))
            written.append(path)
    return written


def write_gaussian(
    reconstruction: Reconstruction, folder: Path, load_source: LoadSource, options: ImageOptions
) -> list[Path]:
    """Write the whole folder; the dense cloud (track points where there is none) is the start of the Gaussians."""
    moved, shifts = centered_reconstruction(reconstruction, options.centering)
    written = write_images(moved, folder, shifts, load_source, options.background)
    renamed = replace(moved, names=tuple(png_name(name) for name in moved.names))
    written += write_colmap(renamed, folder / "sparse" / "0", points="dense")
    return written
