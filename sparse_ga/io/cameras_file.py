"""Known cameras: a JSON file by image name, or a COLMAP model."""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sparse_ga.errors import InputError, UnusedCameras
from sparse_ga.io.images import naming_what_is_forbidden
from sparse_ga.io.orientation import is_mirrored, turned_camera, turned_size, upright_from_stored
from sparse_ga.io.resample import compare_sizes
from sparse_ga.products import Array, exact_pose, is_rigid

_PINHOLE_PARAMETERS = {
    "SIMPLE_PINHOLE": 3,
    "PINHOLE": 4,
    "SIMPLE_RADIAL": 3,
    "RADIAL": 3,
    "OPENCV": 4,
    "FULL_OPENCV": 4,
}
"""COLMAP's models that are a pinhole where all that follows this many parameters is zero; a fisheye is none."""

# In long sides of the photograph. A pinhole that sees 157 degrees is none that a lens makes; a principal point as far
# out as that belongs to another photograph, but it may lie outside of a crop.
_SHORTEST_FOCAL = 0.1
_FARTHEST_PRINCIPAL_POINT = 3.0
_AT_A_CORNER = 0.02


@dataclass(frozen=True, eq=False)
class GivenCamera:
    """What the user knows of one photograph's camera."""

    intrinsics: Array | None = None  # (3, 3) float64, source px, integer coordinates are pixel centres
    world_from_cam: Array | None = None  # (4, 4) float64, OpenCV axes
    size: tuple[int, int] | None = None  # (W, H) the intrinsics refer to
    stored: bool = False  # of the pixels as the file stores them, as COLMAP reads it, before its EXIF orientation

    def upright(self, orientation: int, size: tuple[int, int], name: str) -> GivenCamera:
        """The camera of the upright photograph of `size` (W, H), whose file has this EXIF orientation.

        A camera whose own size is upright already is of a turned copy of the photograph and stays as it is. Raises
        `InputError` where stored and upright pixels are mirror images.
        """
        if not self.stored or orientation == 1:
            return self
        seen = self.size or turned_size(size, orientation)
        if compare_sizes(seen, turned_size(size, orientation)) not in ("same", "proportional"):
            return replace(self, stored=False)
        if is_mirrored(orientation):
            raise InputError(
                f"{name}: its EXIF orientation mirrors it, but its camera is of the file as it is stored, as COLMAP "
                "reads it; save the photograph upright, without the orientation, and run COLMAP on that"
            )
        k = np.eye(3) if self.intrinsics is None else self.intrinsics
        pose = np.eye(4) if self.world_from_cam is None else self.world_from_cam
        k, pose = turned_camera(k, pose, upright_from_stored(orientation, seen))
        return GivenCamera(
            None if self.intrinsics is None else k,
            None if self.world_from_cam is None else pose,
            turned_size(seen, orientation),
        )

    def intrinsics_for(self, size: tuple[int, int], name: str) -> Array | None:
        """Intrinsics (3, 3) for a photograph of `size` (W, H), scaled if they were given for another size.

        Raises `InputError` when the two sizes differ in ratio, and for a camera that cannot be this photograph's.
        """
        if self.intrinsics is None:
            return None
        scaled = self._scaled(self.intrinsics, size, name)
        _check_plausible(scaled, size, name)
        return scaled

    def _scaled(self, intrinsics: Array, size: tuple[int, int], name: str) -> Array:
        if self.size is None or self.size == size:
            return intrinsics
        if compare_sizes(self.size, size) != "proportional":
            raise InputError(
                f"{name}: its camera is given for {self.size[0]}x{self.size[1]} but the photograph is "
                f"{size[0]}x{size[1]}; give the camera of this photograph"
            )
        scale = max(size) / max(self.size)
        shift = (scale - 1) / 2
        return np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1.0]]) @ intrinsics


def _check_plausible(intrinsics: Array, size: tuple[int, int], name: str) -> None:
    """Raise `InputError` for intrinsics (3, 3) that are not in pixels of a photograph of `size` (W, H)."""
    remedy = (
        f"K must be in pixels of this photograph, {size[0]}x{size[1]} "
        '(or give the "size" that it is for; a normalised K: first row times width, second times height)'
    )
    long_side = max(size)
    focal_px = float(min(intrinsics[0, 0], intrinsics[1, 1]))
    if focal_px < _SHORTEST_FOCAL * long_side:
        raise InputError(f"{name}: K has a focal length of {focal_px:.3g} px, which no camera has; {remedy}")
    point = intrinsics[:2, 2]
    middle = (np.array(size) - 1) / 2
    from_corner = np.abs(np.abs(point - middle) - middle)  # (2,), of the corner nearest to it
    if long_side > 2 / _AT_A_CORNER and (from_corner <= _AT_A_CORNER * long_side).all():
        where = "in a corner of the photograph"
    elif (np.abs(point - middle) > _FARTHEST_PRINCIPAL_POINT * long_side).any():
        where = "far outside of the photograph"
    else:
        return
    raise InputError(f"{name}: K has its principal point ({point[0]:.4g}, {point[1]:.4g}) {where}; {remedy}")


def _matrix(value: Any, sides: tuple[int, ...], what: str) -> Array | None:
    """`value` as finite numbers of shape `sides`; None stays None."""
    if value is None:
        return None
    try:
        matrix = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{what} must hold {'x'.join(map(str, sides))} numbers") from None
    if matrix.shape == (3, 4) and sides == (4, 4):
        matrix = np.concatenate([matrix, [[0, 0, 0, 1.0]]])
    if matrix.shape != sides:
        raise InputError(f"{what} must hold {'x'.join(map(str, sides))} numbers, found shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise InputError(f"{what} has a number that is not finite (NaN or infinity); leave it out if it is not known")
    return matrix


def check_intrinsics(value: Any, name: str) -> Array | None:
    """Intrinsics (3, 3) of a pinhole camera; raises `InputError` for anything else."""
    matrix = _matrix(value, (3, 3), f"{name}: K")
    if matrix is None:
        return None
    skew = abs(matrix[0, 1]) + abs(matrix[1, 0])
    if min(matrix[0, 0], matrix[1, 1]) <= 0 or skew > 1e-6 * matrix[0, 0] or not np.allclose(matrix[2], [0, 0, 1]):
        raise InputError(f"{name}: K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths")
    return matrix


def check_pose(value: Any, name: str) -> Array | None:
    """Rigid transform world_from_cam (4, 4), its rotation made exact; raises `InputError` for anything else."""
    matrix = _matrix(value, (4, 4), f"{name}: cam2w")
    if matrix is None:
        return None
    if not is_rigid(matrix):
        raise InputError(f"{name}: cam2w must be a rotation and a translation, without scale or mirroring")
    return exact_pose(matrix)


def _read_json(path: Path) -> dict[str, GivenCamera]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: the cameras file cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(item, dict) for item in content.values()):
        raise InputError(f'{path}: expected {{"image name": {{"K": 3x3, "cam2w": 4x4, "size": [W, H]}}, ...}}')
    cameras = {}
    for name, item in content.items():
        unknown = set(item) - {"K", "cam2w", "size"}
        if unknown:
            raise InputError(f"{path}: {name}: unknown field {sorted(unknown)[0]!r}; known are K, cam2w and size")
        where = f"{path}: {name}"
        size = _matrix(item.get("size"), (2,), f"{where}: size")
        cameras[name] = GivenCamera(
            check_intrinsics(item.get("K"), where),
            check_pose(item.get("cam2w"), where),
            None if size is None else (int(size[0]), int(size[1])),
        )
    return cameras


def _colmap_intrinsics(camera: Any, where: str) -> Array:
    """Intrinsics (3, 3) with integer pixel centres; COLMAP counts from the image's corner, half a pixel further."""
    model = str(camera.model.name)
    pinhole = _PINHOLE_PARAMETERS.get(model)
    if pinhole is None or np.asarray(camera.params)[pinhole:].any():
        raise InputError(f"{where}: {model} cameras with distortion; run `colmap image_undistorter` and use its output")
    matrix = np.asarray(camera.calibration_matrix(), float)
    matrix[:2, 2] -= 0.5
    return matrix


def _read_colmap(folder: Path) -> dict[str, GivenCamera]:
    from sparse_ga._pycolmap import pycolmap

    try:
        model = pycolmap.Reconstruction(str(folder))
    except Exception as error:  # pycolmap raises what its C++ throws
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: not a COLMAP model ({first})") from None
    cameras = {}
    names = Counter(PurePosixPath(image.name).name for image in model.images.values())
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        world_from_cam = np.eye(4)
        world_from_cam[:3] = image.cam_from_world().inverse().matrix()
        where = f"{folder}: {image.name}"
        name = PurePosixPath(image.name).name
        cameras[name if names[name] == 1 else image.name] = GivenCamera(
            _colmap_intrinsics(camera, where), world_from_cam, (int(camera.width), int(camera.height)), stored=True
        )
    return cameras


def _model_folder(folder: Path) -> Path | None:
    for candidate in (folder, folder / "sparse" / "0", folder / "sparse"):
        if any((candidate / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return candidate
    return None


@naming_what_is_forbidden()
def read_cameras(path: Path) -> dict[str, GivenCamera]:
    """Cameras by image name, from a JSON file or from a folder with a COLMAP model (text or binary).

    The name is that of the file; where files in several folders of a COLMAP model have one name, it is the path there.
    COLMAP takes no notice of EXIF orientation: its cameras are of the pixels as files store them.

    JSON: ``{"name": {"K": 3x3, "cam2w": 4x4, "size": [W, H]}}``, each field optional, in source pixels whose integer
    coordinates are pixel centres. Raises `InputError`.
    """
    if path.is_dir():
        folder = _model_folder(path)
        if folder is None:
            raise InputError(
                f"{path}: no COLMAP model here (cameras.bin or cameras.txt); give its folder or a JSON file"
            )
        return _read_colmap(folder)
    if not path.exists():
        raise InputError(f"{path}: there is no such cameras file; check --cameras")
    return _read_json(path)


def assign_cameras(names: Sequence[str], cameras: Mapping[str, GivenCamera], where: str) -> list[GivenCamera | None]:
    """The camera of each image, found by file name or by stem; None where there is none.

    Both may be paths: where several cameras have the name of an image, the one in the same folders is taken. Raises
    `InputError` when two fit as well, or when not a single name fits; warns of cameras that fit no image.
    """
    by_stem: dict[str, list[str]] = {}
    for name in cameras:
        by_stem.setdefault(_path(name).stem, []).append(name)
    found = [_best_fit(name, by_stem.get(_path(name).stem, []), where) for name in names]
    used = set(found)
    left = [name for name in cameras if name not in used]
    if left and len(left) == len(cameras):
        raise InputError(f"{where}: no camera fits an image name (cameras: {left[0]!r}, images: {names[0]!r})")
    if left:
        text = f"{len(left)} of {len(cameras)} cameras fit no image and are not used, among them {left[0]!r}"
        with_camera = sum(name is not None for name in found)
        warnings.warn(f"{where}: {text}; {with_camera} of {len(names)} images have one", UnusedCameras, stacklevel=2)
    return [None if name is None else cameras[name] for name in found]


def _path(name: str) -> PurePosixPath:
    """The path that an image or a camera is named by, on whatever system it was written."""
    return PurePosixPath(name.replace("\\", "/"))


def _best_fit(image: str, candidates: Sequence[str], where: str) -> str | None:
    """That of the `candidates`, cameras of the stem of `image`, whose path fits best; raises `InputError` for a tie."""
    exact = [name for name in candidates if _path(name).name == _path(image).name]
    depths = {name: _common_folders(image, name) for name in exact or candidates}
    best = sorted(name for name, depth in depths.items() if depth == max(depths.values()))
    if len(best) > 1:
        raise InputError(
            f"{where}: the cameras of {best[0]!r} and {best[1]!r} fit {image} equally well; give the photographs in "
            "the folders that the cameras name, or files of different names"
        )
    return best[0] if best else None


def _common_folders(one: str, other: str) -> int:
    """How many folders above the file two paths have in common."""
    pairs = zip(reversed(_path(one).parent.parts), reversed(_path(other).parent.parts))
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
