"""COLMAP models, binary and text, with tracks and 2D points.

COLMAP puts the origin of pixel coordinates at the corner of the first pixel, this library at its centre: every
coordinate and principal point gains half a pixel on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparse_ga.errors import InputError
from sparse_ga.geometry.triangulation import Observations
from sparse_ga.products import Array, Reconstruction
from sparse_ga.triangulation.colmap_model import ModelCameras, build_model

_HALF_PX = 0.5

Points = Literal["tracks", "dense"]


def registered_tracks(reconstruction: Reconstruction, views: Array) -> Observations:
    """The tracks with view numbers replaced by rows of `views` (R,); all tracks lie in registered views."""
    row = np.full(len(reconstruction.names), -1)
    row[views] = np.arange(len(views))
    tracks = reconstruction.tracks
    return Observations(tracks.point_index, row[tracks.view_index], tracks.xy)


def colmap_model(reconstruction: Reconstruction, points: Points = "tracks") -> Any:
    """A `pycolmap.Reconstruction` of the registered views: source resolution, half-pixel origin.

    `points` "tracks" gives the track points with their observations; "dense" adds the whole cloud after them, without
    observations, as a start for 3D Gaussian splatting, and makes all cameras PINHOLE, the only model that reads. Else
    cameras with square pixels are SIMPLE_PINHOLE: their one focal length stays one when COLMAP adjusts it. Views with
    equal intrinsics and size share a camera.
    """
    views = np.nonzero(reconstruction.registered)[0]
    cameras = _cameras(reconstruction, views, any_model=points == "tracks")
    obs = registered_tracks(reconstruction, views)
    shifted = Observations(obs.point_index, obs.view_index, obs.xy + _HALF_PX)
    model = build_model(cameras, shifted, reconstruction.track_points, reconstruction.track_colors)
    if points == "dense":
        _add_dense(model, reconstruction)
    model.update_point_3d_errors()
    return model


def _cameras(reconstruction: Reconstruction, views: Array, any_model: bool) -> ModelCameras:
    k = reconstruction.intrinsics[views]
    sizes = reconstruction.source_sizes[views]
    params = np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2] + _HALF_PX, k[:, 1, 2] + _HALF_PX], 1)  # (R, 4)
    _, first, camera = np.unique(
        np.concatenate([np.round(params, 9), sizes], 1), axis=0, return_index=True, return_inverse=True
    )
    square = any_model and np.allclose(params[:, 0], params[:, 1], rtol=1e-9)
    return ModelCameras(
        [reconstruction.names[n] for n in views],
        reconstruction.cam_from_world[views],
        camera.reshape(-1),
        "SIMPLE_PINHOLE" if square else "PINHOLE",
        params[first][:, [0, 2, 3]] if square else params[first],
        sizes[first],
    )


def _add_dense(model: Any, reconstruction: Reconstruction) -> None:
    from sparse_ga._pycolmap import pycolmap

    for point, color in zip(reconstruction.points.astype(np.float64), reconstruction.colors, strict=True):
        model.add_point3D(point, pycolmap.Track(), color)


def check_names(names: Sequence[str]) -> None:
    """Raise `InputError` for names that the text format cannot hold, which parts its words by blanks."""
    spaced = [name for name in names if len(name.split()) != 1]
    if spaced:
        raise InputError(
            f"COLMAP's text format cannot hold {spaced[0]!r}: rename the image, or export the binary model"
        )


def write_colmap(
    reconstruction: Reconstruction, folder: Path, text: bool = False, points: Points = "tracks"
) -> list[Path]:
    """Write a COLMAP model into `folder` (made if missing), binary or text; returns the files.

    Cameras are those of the `reconstruction`, of upright photographs; `orientation.as_stored` turns them for COLMAP,
    which reads files as they are stored. Raises `InputError` for names that the text format cannot hold.
    """
    if text:
        check_names([name for name, seen in zip(reconstruction.names, reconstruction.registered, strict=True) if seen])
    folder.mkdir(parents=True, exist_ok=True)
    model = colmap_model(reconstruction, points)
    if text:
        model.write_text(str(folder))
    else:
        model.write_binary(str(folder))
    return sorted(folder.glob("*.txt" if text else "*.bin"))
