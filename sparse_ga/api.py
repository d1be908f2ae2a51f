"""`reconstruct`, the whole job in one call; and making a job from photographs, masks and cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ga.attempts import Attempts
from sparse_ga.config import Config, make_config
from sparse_ga.errors import InputError
from sparse_ga.io.cameras_file import GivenCamera, assign_cameras, check_intrinsics, check_pose
from sparse_ga.io.images import ImagesArgument, comparable, find_images
from sparse_ga.io.masks import MasksArgument, find_masks
from sparse_ga.predictors.base import PairPredictor
from sparse_ga.predictors.loading import load_predictor
from sparse_ga.products import Array, Reconstruction
from sparse_ga.progress import Reporter
from sparse_ga.stages import ingest
from sparse_ga.stages.job import Job
from sparse_ga.store import Store

CamerasArgument = Mapping[str, Array] | Sequence[Array | None]


def _given(values: CamerasArgument | None, names: Sequence[str], what: str) -> list[Array | None]:
    """Per-view arrays from a mapping by name or a sequence in the order of the images."""
    if values is None:
        return [None] * len(names)
    if isinstance(values, Mapping):
        by_name = {comparable(name): value for name, value in values.items()}
        full = [comparable(name) for name in names]
        unknown = set(by_name) - set(full) - {Path(name).stem for name in full}
        if unknown:
            raise InputError(f"{what}: no image is called {sorted(unknown)[0]!r} (the first image is {names[0]!r})")
        return [by_name.get(name, by_name.get(Path(name).stem)) for name in full]
    if len(values) != len(names):
        raise InputError(f"{what}: {len(values)} given for {len(names)} images; give one for each, None where unknown")
    return list(values)


def make_job(
    images: ImagesArgument,
    masks: MasksArgument | None,
    predictor: PairPredictor,
    config: Config,
    cameras: Mapping[str, GivenCamera] | None = None,
) -> Job:
    """Find photographs and masks and hash them; raises `InputError` naming what is missing or cannot be read."""
    paths = find_images(images)
    if len(paths) < 2:
        raise InputError(f"{images}: {len(paths)} photograph; a reconstruction needs at least two of the same object")
    mask_paths = find_masks(paths, masks)
    given: Sequence[GivenCamera | None] = [None] * len(paths)
    if cameras:
        by_name = {comparable(name): camera for name, camera in cameras.items()}
        given = assign_cameras([comparable(str(path.absolute())) for path in paths], by_name, "cameras")
    sources = [ingest.make_source(*item) for item in zip(paths, mask_paths, given, strict=True)]
    return Job(tuple(sources), predictor, config)


def given_cameras(
    names: Sequence[str], intrinsics: CamerasArgument | None, world_from_cam: CamerasArgument | None
) -> dict[str, GivenCamera]:
    """Cameras from the arguments of `reconstruct`; raises `InputError` for matrices that are no camera."""
    k, pose = _given(intrinsics, names, "intrinsics"), _given(world_from_cam, names, "world_from_cam")
    return {
        name: GivenCamera(check_intrinsics(k[n], name), check_pose(pose[n], name))
        for n, name in enumerate(names)
        if k[n] is not None or pose[n] is not None
    }


def reconstruct(
    images: ImagesArgument,
    masks: MasksArgument | None = None,
    *,
    cache: str | Path,
    predictor: str | PairPredictor | None = None,
    config: Config | Mapping[str, Any] | None = None,
    intrinsics: CamerasArgument | None = None,
    world_from_cam: CamerasArgument | None = None,
    reporter: Reporter | None = None,
) -> Reconstruction:
    """Cameras and points of the masked object, from photographs.

    Args:
        images: Folder, glob pattern, or list of files (JPEG, PNG, WebP, TIFF).
        masks: Folder, list, or mapping by image name; None uses alpha channels, or everything.
        cache: Folder for intermediate results; a later call with the same folder goes on where this one stopped.
        predictor: classical (default), compact, mast3r, a hub name, a checkpoint's path, or your own `PairPredictor`.
        config: A `Config`, or nested overrides of the defaults such as ``{"pairs": {"graph": "window-4"}}``.
        intrinsics: (3, 3) pinhole matrices in source px, by image name or in the order of the images.
        world_from_cam: (4, 4) camera poses in OpenCV axes, likewise; known poses fix frame and scale,
            and are kept as they are, rotations of few digits as the nearest exact ones.
        reporter: Where progress goes; nothing is printed without one.

    Returns:
        The reconstruction. Images that could not be tied in are unregistered, with the reason; of several components
        the largest is returned. World scale is arbitrary unless poses are given. `report.notes` holds doubts
        about the cameras, in words.

    Raises:
        InputError: photographs, masks or cameras that cannot be used; says which and how to mend it.
        OutputError: the cache cannot be written.
    """
    settings = config if isinstance(config, Config) else make_config(dict(config or {}))
    chosen = settings.predictor if predictor is None else predictor
    loaded = load_predictor(chosen, settings.forward) if isinstance(chosen, str) else chosen
    names = [path.name for path in find_images(images)]
    job = make_job(images, masks, loaded, settings, given_cameras(names, intrinsics, world_from_cam))
    result = Attempts(Store(Path(cache)), reporter or Reporter("silent")).run(job).result
    assert result.reconstruction is not None
    return result.reconstruction


def unregistered(reconstruction: Reconstruction) -> list[tuple[str, str]]:
    """Names of the images that are not registered, and why."""
    return [
        (name, reason)
        for name, done, reason in zip(
            reconstruction.names, np.asarray(reconstruction.registered), reconstruction.reasons, strict=True
        )
        if not done
    ]
