"""nerfstudio's transforms.json with masks, depths and the cloud to start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sparse_ga.io import ply
from sparse_ga.io.depthmaps import source_depth
from sparse_ga.io.encode import encode_json, encode_npy
from sparse_ga.io.gaussian import ImageOptions, LoadSource, centered_reconstruction, png_name, write_images
from sparse_ga.products import Reconstruction

_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
DEPTH_UNIT = 1e-3  # nerfstudio's depth_unit_scale_factor: what it multiplies a depth file's values with
_CLOUD = "sparse_pc.ply"


def depth_name(name: str) -> str:
    """Name of the depth file of a picture."""
    return str(PurePosixPath(name).with_suffix(".npy"))


def transforms(reconstruction: Reconstruction) -> dict[str, Any]:
    """Content of transforms.json for the registered views.

    Camera axes are OpenGL's there (y up, looking down -z) and pixel coordinates start at the corner of the first
    pixel; the world is the reconstruction's.
    """
    frames = []
    for n in np.nonzero(reconstruction.registered)[0]:
        k = reconstruction.intrinsics[n]
        width, height = (int(side) for side in reconstruction.source_sizes[n])
        name = png_name(reconstruction.names[n])
        frames.append(
            {
                "file_path": f"images/{name}",
                "mask_path": f"masks/{name}",
                "depth_file_path": f"depths/{depth_name(name)}",
                "fl_x": float(k[0, 0]),
                "fl_y": float(k[1, 1]),
                "cx": float(k[0, 2] + 0.5),
                "cy": float(k[1, 2] + 0.5),
                "w": width,
                "h": height,
                "transform_matrix": (reconstruction.world_from_cam[n] @ _OPENCV_FROM_OPENGL).tolist(),
            }
        )
    return {
        "camera_model": "OPENCV",
        **dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0),
        "ply_file_path": _CLOUD,
        "frames": frames,
    }


def write_nerfstudio(
    reconstruction: Reconstruction, folder: Path, load_source: LoadSource, options: ImageOptions
) -> list[Path]:
    """Write transforms.json, images/, masks/, depths/ and the cloud.

    Depths are float32 in thousandths of a world unit: whatever the unit is, no 16-bit level is too coarse or too near.
    nerfstudio knows the principal point and reads masks, so photographs keep their place unless `options` say else.
    """
    moved, shifts = centered_reconstruction(reconstruction, options.centering)
    written = write_images(moved, folder, shifts, load_source, options.background)
    for n in np.nonzero(moved.registered)[0]:
        path = folder / "depths" / depth_name(moved.names[n])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_npy(source_depth(moved, int(n)) / np.float32(DEPTH_UNIT)))
        written.append(path)
    folder.mkdir(parents=True, exist_ok=True)  # nothing is in it where nothing is registered
    start = _start_cloud(moved)
    cloud = folder / _CLOUD
    cloud.write_bytes(ply.encode_points(start.points, start.colors, start.normals, start.point_confidence))
    described = folder / "transforms.json"
    described.write_bytes(encode_json(transforms(moved)))
    return [*written, cloud, described]


def _start_cloud(reconstruction: Reconstruction) -> Reconstruction:
    """With the track points in place of a missing dense cloud."""
    r = reconstruction
    if len(r.points):
        return r
    count = len(r.track_points)
    return replace(
        r,
        points=r.track_points,
        colors=r.track_colors,
        normals=np.zeros((count, 3), np.float32),
        point_confidence=np.ones(count, np.float32),
    )
