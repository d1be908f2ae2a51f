"""ingest: a photograph and its mask become a `View`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparse_ga.config import Config
from sparse_ga.errors import InputError
from sparse_ga.geometry.cameras import make_intrinsics
from sparse_ga.io.cameras_file import GivenCamera
from sparse_ga.io.images import Photograph, read_photograph
from sparse_ga.io.masks import describe_label_choice, read_mask
from sparse_ga.io.resample import choose_grid, foreground_box, resample_image, resample_mask
from sparse_ga.products import Array, IntrinsicsSource, View
from sparse_ga.stages.base import Stage
from sparse_ga.store import Key, digest_of, digest_of_file

STAGE = Stage(
    "ingest", 6, "view", (), ("ingest.long_side", "ingest.multiple", "ingest.mask_threshold", "ingest.object_id")
)

_SAME_ZOOM = 0.01  # largest step between the logarithms of focal lengths of one zoom


@dataclass(frozen=True, eq=False)
class Source:
    """Where a view comes from, with digests of the files' content."""

    name: str
    image: Path
    mask: Path | None  # None: the alpha channel, or everything
    camera: GivenCamera | None
    image_digest: str
    mask_digest: str

    @property
    def content_digest(self) -> str:
        """Digest of all that the user gave for this view."""
        camera = self.camera or GivenCamera()
        size = None if camera.size is None else f"{camera.size}"
        given = (camera.intrinsics, camera.world_from_cam, size, "stored" if camera.stored else "upright")
        return digest_of(self.image_digest, self.mask_digest, *given)


def picture_digest(source: Source, object_id: int | None) -> str:
    """Digest of what `load_source` gives: the files of photograph and mask, and which object is marked in it."""
    return digest_of(source.image_digest, source.mask_digest, str(object_id))


def make_source(image: Path, mask: Path | None, camera: GivenCamera | None) -> Source:
    """Hash the files of one view; raises `InputError` when one cannot be read."""
    try:
        digests = [digest_of_file(path) if path is not None else "" for path in (image, mask)]
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    return Source(image.name, image, mask, camera, digests[0], digests[1])


def key(source: Source, config: Config) -> Key:
    """Key of a view: its name and the content of photograph, mask and given camera."""
    return STAGE.key(source.name, config, {"name": source.name, "source": source.content_digest})


def view_digest(view: View) -> str:
    """Digest of what a predictor can see of a view."""
    return digest_of(view.image, view.mask, view.intrinsics, view.working_from_source)


def with_intrinsics(view: View, intrinsics: Array) -> View:
    """The view with estimated `intrinsics` (3, 3), working px, and the digest that belongs to them."""
    changed = replace(view, intrinsics=intrinsics)
    return replace(changed, digest=view_digest(changed))


def _source_mask(source: Source, photograph: Photograph, object_id: int | None) -> Array:
    """Foreground (H, W) bool at source resolution."""
    if source.mask is not None:
        return read_mask(source.mask, photograph.size, object_id)
    if photograph.alpha is not None:
        return photograph.alpha
    return np.ones(photograph.image.shape[:2], bool)


def load_source(source: Source, object_id: int | None) -> tuple[Array, Array]:
    """Photograph (H, W, 3) uint8 and mask (H, W) bool at source resolution, upright."""
    photograph = read_photograph(source.image)
    return photograph.image, _source_mask(source, photograph, object_id)


def _check_mask(source: Source, mask: Array, object_id: int | None) -> None:
    """Raise `InputError` for an empty mask, unless it lacks the one label asked for (the object is not in view)."""
    if mask.any() or (object_id is not None and source.mask is not None):
        return
    where = source.mask or source.image
    raise InputError(f"{where}: the mask of {source.name} is empty; mark the object, or leave the photograph out")


def _intrinsics(camera: GivenCamera | None, photograph: Photograph, name: str) -> tuple[Array | None, IntrinsicsSource]:
    """Intrinsics (3, 3) in source px and where they come from."""
    if camera is not None:
        given = camera.intrinsics_for(photograph.size, name)
        if given is not None:
            return given, "given"
    if photograph.focal_px is None:
        return None, "unknown"
    width, height = photograph.size
    return make_intrinsics(photograph.focal_px, np.array([(width - 1) / 2, (height - 1) / 2])), "exif"


def run(source: Source, config: Config) -> View:
    """The working image of a photograph, with mask and what is known of its camera; raises `InputError`."""
    options = config.ingest
    photograph = read_photograph(source.image)
    mask = _source_mask(source, photograph, options.object_id)  # (H, W)
    _check_mask(source, mask, options.object_id)
    grid = choose_grid(photograph.size, foreground_box(mask), options.long_side, options.multiple)
    working_mask = resample_mask(mask, grid, options.mask_threshold)
    if mask.any() and not working_mask.any():
        raise InputError(
            f"{source.mask or source.image}: the object is smaller than a pixel of the working image; "
            "crop the photograph around it or raise ingest.long_side"
        )
    camera = source.camera and source.camera.upright(photograph.orientation, photograph.size, source.name)
    known, origin = _intrinsics(camera, photograph, source.name)
    view = View(
        name=source.name,
        image=resample_image(photograph.image, grid, mask, working_mask),
        mask=working_mask,
        intrinsics=None if known is None else grid.working_from_source @ known,
        working_from_source=grid.working_from_source,
        source_size=photograph.size,
        digest="",
        intrinsics_source=origin,
        world_from_cam=None if camera is None else camera.world_from_cam,
        orientation=photograph.orientation,
        exif_focal_px=photograph.focal_px,
    )
    return replace(view, digest=view_digest(view))


def name_cameras(views: Sequence[View], shared: bool) -> list[View]:
    """The views with the cameras named whose intrinsics they share.

    Shared: photographs of one size, upright or turned, have one camera, unless their known focal lengths lie more than
    a percent apart. EXIF data is less exact than that: what it says is compared with what it says of others, and where
    it finds one zoom, intrinsics given for one photograph hold for all. Otherwise every view has its own.
    """
    if not shared:
        return [replace(view, camera=view.name) for view in views]
    cameras = [""] * len(views)
    sizes = [(max(view.source_size), min(view.source_size)) for view in views]
    for size in set(sizes):
        known = [n for n, view in enumerate(views) if sizes[n] == size and view.intrinsics is not None]
        zooms = _given_apart([views[n] for n in known], _zooms([_log_focal(views[n], exif=True) for n in known]))
        if len(set(zooms)) > 1:
            for n, zoom in zip(known, zooms, strict=True):
                cameras[n] = zoom
    return [replace(view, camera=camera) for view, camera in zip(views, cameras, strict=True)]


def _log_focal(view: View, exif: bool = False) -> float:
    """Logarithm of the known focal length, by `exif` where it tells one, in units of the photograph's long side."""
    assert view.intrinsics is not None
    focal_px = float(view.intrinsics[0, 0]) / float(view.working_from_source[0, 0])
    if exif and view.exif_focal_px is not None:
        focal_px = view.exif_focal_px
    return math.log(focal_px / max(view.source_size))


def _given_apart(views: Sequence[View], zooms: Sequence[str]) -> list[str]:
    """The zooms of `views`, with the given focal lengths told apart of those of one zoom that were given several."""
    result = list(zooms)
    for zoom in set(zooms):
        given = [n for n, v in enumerate(views) if zooms[n] == zoom and v.intrinsics_source == "given"]
        found = _zooms([_log_focal(views[n]) for n in given])
        if len(set(found)) > 1:
            for n, name in zip(given, found, strict=True):
                result[n] = f"given {name}"
    return result


def _zooms(log_focals: Sequence[float]) -> list[str]:
    """A name for each focal length, the same for those that lie together: cut where neighbours are further apart than
    a percent, so that it does not matter where on a scale they lie."""
    names = [""] * len(log_focals)
    previous = -math.inf
    for n in sorted(range(len(log_focals)), key=lambda n: log_focals[n]):
        if log_focals[n] - previous > _SAME_ZOOM:
            name = f"focal {math.exp(log_focals[n]):.4g}"
        names[n], previous = name, log_focals[n]
    return names


def explain_missing_object(source: Source, object_id: int) -> str:
    """Why a view without foreground takes no part, for the list of unregistered images."""
    held = "" if source.mask is None else f" (the mask has {describe_label_choice(source.mask)})"
    return f"object {object_id} is not in this image{held}"
