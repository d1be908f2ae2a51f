"""Photographs: finding them, reading them upright as 8-bit RGB, and the focal length their EXIF data tells."""

from __future__ import annotations

import glob
import math
import os
import re
import struct
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparse_ga.errors import InputError
from sparse_ga.products import Array

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
_ORIENTATION = 0x0112
_EXIF_FOLDER = 0x8769
_FOCAL_35MM = 0xA405
_DIAGONAL_35MM = math.hypot(36.0, 24.0)
_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, zlib.error, IndexError, KeyError, EOFError)

ImagesArgument = str | Path | Sequence[str | Path]


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph at source resolution, turned upright."""

    image: Array  # (H, W, 3) uint8
    alpha: Array | None  # (H, W) bool, None without a channel of its own or when it is opaque everywhere
    focal_px: float | None  # source px, from the 35 mm equivalent
    orientation: int = 1  # EXIF orientation of the file

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return int(self.image.shape[1]), int(self.image.shape[0])


def natural_order(path: Path) -> tuple[list[tuple[int, str | int]], str]:
    """Sorting key by which img2 comes before img10."""
    parts = re.split(r"(\d+)", path.name)
    return [(1, int(part)) if part.isdecimal() else (0, part.lower()) for part in parts], str(path)


def comparable(name: str) -> str:
    """`name` so that it equals the same name from another system: macOS takes accents and letters apart."""
    return unicodedata.normalize("NFC", name)


def is_image(path: Path) -> bool:
    """Whether a file is taken for a photograph: by its extension, and not named as a mask."""
    if path.suffix.lower() not in SUFFIXES or path.name.lower().endswith(".mask.png"):
        return False
    return path.is_file() and not _is_colmap_mask(path)


def _is_colmap_mask(path: Path) -> bool:
    """Whether a file is named as the mask of a photograph beside it: a.jpg.png of a.jpg."""
    photograph = path.with_suffix("")
    return path.suffix.lower() == ".png" and photograph.suffix.lower() in SUFFIXES and photograph.is_file()


@contextmanager
def naming_what_is_forbidden() -> Iterator[None]:
    """Turn a lack of permission, wherever in a path it shows, into an `InputError`."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None


def leads_nowhere(path: Path) -> bool:
    """Whether a path is a link to a file that is not there."""
    return path.is_symlink() and not path.exists()


def refuse_links_to_nowhere(paths: Iterable[Path]) -> None:
    """Raise `InputError` for the first of the paths that is a link to a file that is not there."""
    for path in paths:
        if leads_nowhere(path):
            raise InputError(f"{path}: a link to {os.readlink(path)}, which is not there; mend the link or remove it")


def _refuse_undecodable(path: Path) -> None:
    """Raise `InputError` for a name that is not UTF-8: it could not be written into any result."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        readable = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise InputError(f"{readable}: the name is not valid UTF-8; rename the file or its folder") from None


def _in_folder(folder: Path) -> list[Path]:
    """The photographs in a folder; raises `InputError` that says what is there instead."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    refuse_links_to_nowhere(path for path in entries if path.suffix.lower() in SUFFIXES)
    found = sorted((path for path in entries if is_image(path)), key=natural_order)
    if found:
        return found
    below = sorted(path.name for path in entries if path.is_dir() and any(is_image(inner) for inner in path.iterdir()))
    if below:
        raise InputError(
            f"{folder}: no photographs here, but in {', '.join(below[:3])}{' ...' if len(below) > 3 else ''} below it; "
            f"give such a folder, or the quoted pattern '{folder}/*/*' if no two have one name"
        )
    others = Counter(path.suffix.lower() or "no extension" for path in entries if path.is_file())
    what = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(3)) or "no files"
    raise InputError(f"{folder}: no photographs here ({what}); give a folder of JPEG, PNG, WebP or TIFF files")


def _candidates(images: ImagesArgument) -> list[Path]:
    if not isinstance(images, (str, Path)):
        return [Path(item) for item in images]
    folder = Path(images)
    if folder.is_dir():
        return _in_folder(folder)
    if folder.is_file():
        return [folder]
    found = sorted((Path(name) for name in glob.glob(str(images))), key=natural_order)
    refuse_links_to_nowhere(path for path in found if path.suffix.lower() in SUFFIXES)
    found = [path for path in found if is_image(path)]
    if not found:
        raise InputError(
            f"{images}: there is no such folder or file; give a folder, a quoted pattern or a list of files"
        )
    return found


@naming_what_is_forbidden()
def find_images(images: ImagesArgument) -> list[Path]:
    """Paths of the photographs in a folder, of a pattern, or of a list, whose order is kept.

    Raises `InputError` when there are none, one is missing or has a name that is not UTF-8, or two would go by the same
    name (masks, cameras and outputs are found by file name).
    """
    paths = _candidates(images)
    seen: dict[str, Path] = {}
    refuse_links_to_nowhere(paths)
    for path in paths:
        _refuse_undecodable(path)
        if path.is_dir():
            raise InputError(f"{path}: this is a folder among several words; give one folder alone, or only files")
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; check the list of photographs")
        other = seen.setdefault(comparable(path.stem), path)
        if other is not path:
            raise InputError(f"{other} and {path} have one name; masks and cameras go by name: rename or remove one")
    return paths


def _white(values: Array, mode: str) -> float:
    """The value of white in a grey image (H, W) of more than 8 bits: 1, 255 or 65535.

    Floating point may go somewhat beyond it: filters overshoot.
    """
    if "16" in mode:
        return 65535.0
    largest = float(values.max(initial=0, where=np.isfinite(values)))
    if mode == "F":
        return next((white for white in (1.0, 255.0) if largest <= 2 * white), 65535.0)
    return 255.0 if largest <= 255 else 65535.0


def _to_bytes(image: Image.Image) -> tuple[Array, Array | None]:
    """(H, W, 3) uint8 and alpha (H, W) uint8 of an image of any mode Pillow knows."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        values = np.asarray(image).astype(np.float64)  # (H, W)
        shares = np.nan_to_num(np.clip(values / _white(values, image.mode), 0, 1))  # what is not a number is black
        grey = np.rint(shares * 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1), None
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not has_alpha:
        return np.asarray(image.convert("RGB")), None
    rgba = np.asarray(image.convert("RGBA"))  # (H, W, 4)
    return np.ascontiguousarray(rgba[..., :3]), rgba[..., 3]


def _focal_px(image: Image.Image) -> float | None:
    """Focal length in pixels from the 35 mm equivalent, which by CIPA DCG-001 relates the diagonals."""
    try:
        focal_mm = float(image.getexif().get_ifd(_EXIF_FOLDER).get(_FOCAL_35MM, 0))
    except (*_UNREADABLE, TypeError, ZeroDivisionError):
        return None
    if not math.isfinite(focal_mm) or not 5 <= focal_mm <= 3000:
        return None
    return focal_mm / _DIAGONAL_35MM * math.hypot(*image.size)


def open_image(path: Path, what: str = "photograph") -> Image.Image:
    """The whole image in memory, turned upright; raises `InputError` when it is missing, broken or cut off."""
    return _open_turned(path, what)[0]


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, by which Pillow turns an image upright; 1 where there is none, or no such one."""
    tag = image.getexif().get(_ORIENTATION, 1)
    return tag if tag in range(1, 9) else 1


def _open_turned(path: Path, what: str) -> tuple[Image.Image, int]:
    """What `open_image` gives, and the EXIF orientation that the file has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; what cannot be read raises
            with Image.open(path) as image:
                orientation = _orientation(image)  # before loading, which turns a TIFF upright and forgets this
                image.load()
                return ImageOps.exif_transpose(image), orientation
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such {what}") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: this {what} is not an image Pillow can read; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: this {what} is too large ({error}); make it smaller") from None
    except _UNREADABLE as error:
        reason = str(error).strip() or type(error).__name__
        raise InputError(
            f"{path}: this {what} is broken or cut off ({reason}); copy it again or leave it out"
        ) from None


def read_photograph(path: Path) -> Photograph:
    """Read a JPEG, PNG, WebP or TIFF file (8 or 16 bit, grey, RGB, with or without alpha) upright.

    Raises `InputError` naming the file when it cannot be read to its end.
    """
    image, orientation = _open_turned(path, "photograph")
    rgb, alpha = _to_bytes(image)
    cut_out = None if alpha is None or (alpha >= 128).all() else alpha >= 128
    return Photograph(rgb, cut_out, _focal_px(image), orientation)
