"""The photographs of a finished run, found again: by name, and only as they were."""

from __future__ import annotations

import numpy as np

from sparse_ga.commands.jobs import JobRecord
from sparse_ga.errors import InputError
from sparse_ga.io.export import LoadSource
from sparse_ga.io.images import find_images
from sparse_ga.io.masks import find_masks
from sparse_ga.products import Array, Reconstruction
from sparse_ga.stages import ingest
from sparse_ga.stages.ingest import Source


def find_photographs(record: JobRecord, reconstruction: Reconstruction) -> LoadSource:
    """Photograph and mask of every registered view at source resolution.

    Raises `InputError` for one that is missing, or is not what `reconstruction` was made from.
    """
    if not reconstruction.photographs:
        raise InputError("the result does not tell its photographs, it is of an earlier version; run again")
    object_id = record.config.ingest.object_id
    sources = _sources(record, reconstruction)
    for n, source in sources.items():
        if ingest.picture_digest(source, object_id) != reconstruction.photographs[n]:
            raise InputError(f"{source.image}: this photograph or its mask has changed since the run; run again")

    def load_source(n: int) -> tuple[Array, Array]:
        return ingest.load_source(sources[n], object_id)

    return load_source


def _sources(record: JobRecord, reconstruction: Reconstruction) -> dict[int, Source]:
    """The files of each registered view, by its number."""
    there = {path.name: path for path in find_images(record.images_argument)}
    views = [int(n) for n in np.flatnonzero(reconstruction.registered)]
    missing = [reconstruction.names[n] for n in views if reconstruction.names[n] not in there]
    if missing:
        where = ", ".join(record.images[:3])
        raise InputError(f"{missing[0]}: no longer among the photographs ({where}); put it back, or run again")
    images = [there[reconstruction.names[n]] for n in views]
    masks = find_masks(images, record.masks)
    return {n: ingest.make_source(image, mask, None) for n, image, mask in zip(views, images, masks, strict=True)}
