"""Everything of a reconstruction in one NPZ."""

from __future__ import annotations

import numpy as np

from sparse_ga.io.encode import encode_npz
from sparse_ga.products import Reconstruction


def encode_reconstruction(reconstruction: Reconstruction) -> bytes:
    """An NPZ with cameras, cloud, tracks, mesh and depth maps of the registered views.

    ``names`` are the registered views; cameras and tracks are numbered by them. ``depth_000`` and so on hold the depth
    (H, W) float32 of each in working px, 0 off the object, to be used with ``working_intrinsics``.
    """
    r = reconstruction
    views = np.nonzero(r.registered)[0]
    row = np.full(len(r.names), -1)
    row[views] = np.arange(len(views))
    arrays = {
        "names": np.array([r.names[n] for n in views], dtype=str),
        "world_from_cam": r.world_from_cam[views],
        "intrinsics": r.intrinsics[views],
        "source_sizes": r.source_sizes[views],
        "working_from_source": r.working_from_source[views],
        "working_intrinsics": r.working_intrinsics[views],
        "points": r.points,
        "colors": r.colors,
        "normals": r.normals,
        "point_confidence": r.point_confidence,
        "track_points": r.track_points,
        "track_colors": r.track_colors,
        "track_errors_px": r.track_errors,
        "track_point_index": r.tracks.point_index,
        "track_view_index": row[r.tracks.view_index],
        "track_xy": r.tracks.xy,
        "mesh_vertices": r.mesh.vertices,
        "mesh_faces": r.mesh.faces,
        "mesh_colors": r.mesh.colors,
        "unregistered": np.array(
            [name for name, good in zip(r.names, r.registered, strict=True) if not good], dtype=str
        ),
    }
    for number, n in enumerate(views):
        depth, confidence = r.depthmaps.view(int(n))
        arrays[f"depth_{number:03d}"] = depth
        arrays[f"depth_confidence_{number:03d}"] = confidence
        arrays[f"mask_{number:03d}"] = r.masks.mask(int(n))
    return encode_npz(arrays)
