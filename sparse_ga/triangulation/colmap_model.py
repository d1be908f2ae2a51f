"""pycolmap models in memory: what bundle adjustment works on and what the COLMAP export writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ga._pycolmap import pycolmap
from sparse_ga.geometry.triangulation import Observations
from sparse_ga.products import Array


@dataclass(frozen=True, eq=False)
class ModelCameras:
    """Images of a model and the cameras they share; identifiers are indices plus one."""

    names: Sequence[str]  # (N,) image names
    cam_from_world: Array  # (N, 4, 4)
    camera_of_image: Array  # (N,) int64, index into the cameras
    model_name: str  # SIMPLE_PINHOLE or PINHOLE
    params: Array  # (C, 3 or 4): f, cx, cy or fx, fy, cx, cy
    sizes: Array  # (C, 2) int64, (W, H)


def build_model(cameras: ModelCameras, obs: Observations, points: Array, colors: Array | None = None) -> Any:
    """A `pycolmap.Reconstruction` with every image registered and points (P, 3) with their tracks.

    `obs` indexes the images of `cameras`; pixels are taken as they are. Image n gets identifier n + 1, point p gets
    p + 1, and the 2D points of an image are its observations in the order of `obs`.
    """
    model = pycolmap.Reconstruction()
    for index, (params, size) in enumerate(zip(cameras.params, cameras.sizes, strict=True)):
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                model=cameras.model_name,
                width=int(size[0]),
                height=int(size[1]),
                params=[float(value) for value in params],
                camera_id=index + 1,
            )
        )
    slot = np.zeros(len(obs), np.int64)
    for index, name in enumerate(cameras.names):
        rows = np.nonzero(obs.view_index == index)[0]
        slot[rows] = np.arange(len(rows))
        image = pycolmap.Image(
            name=name,
            keypoints=np.ascontiguousarray(obs.xy[rows], dtype=np.float64).reshape(-1, 2),
            camera_id=int(cameras.camera_of_image[index]) + 1,
            image_id=index + 1,
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(cameras.cam_from_world[index, :3]))
    _add_points(model, obs, slot, points, colors)
    return model


def _add_points(model: Any, obs: Observations, slot: Array, points: Array, colors: Array | None) -> None:
    starts = np.append(obs.starts, len(obs))
    images = (obs.view_index + 1).tolist()
    slots = slot.tolist()
    for row, point in enumerate(points):
        track = pycolmap.Track(
            [pycolmap.TrackElement(images[o], slots[o]) for o in range(starts[row], starts[row + 1])]
        )
        color = np.zeros(3, np.uint8) if colors is None else colors[row]
        model.add_point3D(point, track, color)


def read_cam_from_world(model: Any, count: int) -> Array:
    """Poses (count, 4, 4) of the images 1..count."""
    result = np.tile(np.eye(4), (count, 1, 1))
    for index in range(count):
        result[index, :3] = model.image(index + 1).cam_from_world().matrix()
    return result
