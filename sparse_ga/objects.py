"""Several objects in one set of photographs: each reconstructed on its own, in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_ga.api import CamerasArgument, reconstruct
from sparse_ga.config import Config, make_config
from sparse_ga.errors import InputError
from sparse_ga.io.images import ImagesArgument, find_images
from sparse_ga.io.masks import MasksArgument, find_masks, mask_labels
from sparse_ga.predictors.base import PairPredictor
from sparse_ga.products import Reconstruction
from sparse_ga.progress import Reporter

_FEWEST_IMAGES = 2


def object_folder(label: int) -> str:
    """Name of the folder that belongs to an object."""
    return f"object_{label}"


def find_objects(
    images: ImagesArgument, masks: MasksArgument | None, wanted: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Labels of the objects that at least two of the integer label masks show, or those `wanted`, in order.

    Raises `InputError` when there are none, and for a wanted label that no mask holds.
    """
    paths = [path for path in find_masks(find_images(images), masks) if path is not None]
    counts = Counter(label for path in paths for label in mask_labels(path))
    if not counts:
        raise InputError(
            "several objects need masks with integer labels (0 background, 1, 2, ... one for each object); these have "
            "none: leave --object out to reconstruct all that is white"
        )
    missing = sorted(set(wanted or ()) - set(counts))
    listed = ", ".join(str(label) for label in sorted(counts)[:12])
    if missing:
        raise InputError(f"object {missing[0]} is in none of the masks; they hold {listed}")
    chosen = [label for label in sorted(set(wanted or counts)) if counts[label] >= _FEWEST_IMAGES]
    if not chosen:
        raise InputError(
            f"no object is in two masks or more (labels {listed}); give one object one label in all of them"
        )
    return tuple(chosen)


def reconstruct_objects(
    images: ImagesArgument,
    masks: MasksArgument,
    *,
    cache: str | Path,
    objects: Sequence[int] | None = None,
    predictor: str | PairPredictor | None = None,
    config: Config | Mapping[str, Any] | None = None,
    intrinsics: CamerasArgument | None = None,
    reporter: Reporter | None = None,
) -> dict[int, Reconstruction]:
    """Reconstruct every object of a set of photographs on its own, from integer label masks.

    Each object has a world frame, a scale and a cache folder (``cache/object_ID``) of its own: objects that move
    against each other do no harm. One whose masks cannot be used is left out, with a warning to the reporter.

    Args:
        images: Folder, glob pattern, or list of files (JPEG, PNG, WebP, TIFF).
        masks: Folder, list, or mapping by image name, of masks with 0 for background and a label for each object.
        cache: Folder for intermediate results; a later call with the same folder goes on where this one stopped.
        objects: Labels to reconstruct; None: all that at least two masks show.
        predictor: As for `reconstruct`.
        config: As for `reconstruct`; its ``ingest.object_id`` is not looked at.
        intrinsics: As for `reconstruct`.
        reporter: Where progress goes; nothing is printed without one.

    Returns:
        The reconstructions by label.

    Raises:
        InputError: no object can be reconstructed; says why.
        OutputError: the cache cannot be written.
    """
    told = reporter or Reporter("silent")
    settings = config if isinstance(config, Config) else make_config(dict(config or {}))
    results: dict[int, Reconstruction] = {}
    reasons: list[str] = []
    for label in find_objects(images, masks, objects):
        chosen = make_config({"ingest": {"object_id": label}}, settings)
        folder = Path(cache) / object_folder(label)
        told.info(f"object {label}")
        try:
            results[label] = reconstruct(
                images,
                masks,
                cache=folder,
                predictor=predictor,
                config=chosen,
                intrinsics=intrinsics,
                reporter=told,
            )
        except InputError as error:
            reasons.append(str(error))
            told.warn(f"object {label} left out: {error}")
    if not results:
        raise InputError(f"no object could be reconstructed: {reasons[0]}")
    return results
