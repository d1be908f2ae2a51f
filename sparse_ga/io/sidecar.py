"""What a person or program needs to know of exported files: units, frame, conventions, views."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ga.io import nerfstudio
from sparse_ga.io.encode import encode_json
from sparse_ga.products import Reconstruction

SIDECAR = "scene.json"

_CONVENTIONS = {
    "camera_axes": "OpenCV: x right, y down, z forward; in transforms.json OpenGL: x right, y up, z backward",
    "poses": "world_from_cam, 4x4, world points = world_from_cam @ camera points",
    "pixels": "(x, y), integers are pixel centres here and in NPZ files; in those of COLMAP, 3DGS and nerfstudio "
    "the origin is the corner of the first pixel: half a pixel more",
    "orientation": "photographs are upright by their EXIF orientation; in colmap/ and colmap_text/ cameras are of "
    "the pixels as files store them, which is how COLMAP reads them",
    "depth": "z along the camera's axis, in world units",
    "glb": "geometry in the world frame under a node that turns it by 180 degrees about x (glTF is y up); where the "
    "world's origin is far away, geometry (float32) relative to the scene's middle, and the node shifts it as well; "
    "programs whose transforms are float32 too lose that shift's last digits",
}


def written(folder: Path) -> tuple[str, ...] | None:
    """The files and folders in `folder` that the sidecar there knows for exports; None where no export has been."""
    names = _read(folder).get("written")
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def depth_unit_written(folder: Path) -> float | None:
    """World units of one level of the depth PNGs that exports have left in `folder`; None where there are none."""
    unit = _read(folder).get("depth_png_unit")
    return float(unit) if isinstance(unit, (int, float)) and "depth" in (written(folder) or ()) else None


def _read(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def encode_sidecar(reconstruction: Reconstruction, depth_unit: float | None, written: Sequence[str] = ()) -> bytes:
    """JSON with units, frame, cameras of the registered views, and why the others are not.

    `depth_unit` is that of depth PNGs; `written` are the files and folders beside it that exports have written.
    """
    r = reconstruction
    cameras = [
        {
            "name": r.names[n],
            "size": [int(side) for side in r.source_sizes[n]],
            "intrinsics": r.intrinsics[n].tolist(),
            "world_from_cam": r.world_from_cam[n].tolist(),
        }
        for n in np.nonzero(r.registered)[0]
    ]
    return encode_json(
        {
            "units": r.report.units,
            "frame": r.report.frame,
            "object_diameter": r.report.diameter,
            "conventions": _CONVENTIONS,
            "depth_png_unit": depth_unit,
            "depth_unit_nerfstudio": nerfstudio.DEPTH_UNIT,
            "points": len(r.points),
            "tracks": len(r.track_points),
            "report": dataclasses.asdict(r.report),
            "cameras": cameras,
            "unregistered": [
                {"name": name, "reason": reason}
                for name, reason, good in zip(r.names, r.reasons, r.registered, strict=True)
                if not good
            ],
            "written": list(written),
        }
    )
