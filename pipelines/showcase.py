"""Draw one picture of a run for a README or a talk: masked photographs beside the points and the mesh.

    showcase.py OUT IMAGES MASKS PICTURE [TURN_DEG]

OUT holds the reconstruction. The picture in the README comes from the demonstration:

    sparse-ga demo --out demo && python pipelines/showcase.py demo demo/images demo/masks .github/demo.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from sparse_ga.config import Config
from sparse_ga.errors import InputError
from sparse_ga.io.images import find_images
from sparse_ga.io.masks import find_masks
from sparse_ga.products import InvalidProduct, Reconstruction
from sparse_ga.report.showcase import showcase
from sparse_ga.stages import ingest

_PHOTOGRAPHS = 3


def main(out: str, images: str, masks: str, picture: str, turn_deg: str = "25") -> int:
    """Draw the picture of a finished run."""
    reconstruction = Reconstruction.load(out)
    paths = find_images(images)
    mask_paths = find_masks(paths, masks)
    chosen = [len(paths) * k // _PHOTOGRAPHS for k in range(min(_PHOTOGRAPHS, len(paths)))]
    views = [ingest.run(ingest.make_source(paths[n], mask_paths[n], None), Config()) for n in chosen]
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    showcase(reconstruction, views, turn_deg=float(turn_deg)).save(picture, quality=88)
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except (InputError, InvalidProduct) as error:
        sys.exit(f"showcase.py: {error}")
