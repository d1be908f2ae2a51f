"""Several objects in one set of photographs, each reconstructed on its own, in one call. Run it cell by cell.

The masks hold integer labels: 0 background, 1, 2, ... one for each object. The objects may move against each other.
Without arguments a scene of two objects that turn side by side, in opposite directions, is rendered first. Everything
goes to out-several-objects. `sparse-ga run IMAGES --masks LABEL_MASKS --object all` does the same.
"""

# %% Photographs and label masks: yours, or rendered ones
import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import sparse_ga
from sparse_ga.io.export import export
from sparse_ga.progress import Reporter
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene

OUT = Path("out-several-objects")
VIEWS = 6


def render_half(shape: str, seed: int, arc_deg: float, centre_x: float) -> SyntheticScene:
    """Views of an object in half a photograph, whose centre is `centre_x` px to the right of the half's own."""
    return make_scene(
        SceneConfig(
            shape=shape,
            seed=seed,
            views=VIEWS,
            size=(256, 224),
            arc_deg=arc_deg,
            focal_px=500.0,
            object_share=0.3,
            principal_offset_px=(centre_x, 0.0),
        )
    )


def render(out: Path) -> tuple[Path, Path]:
    """Photographs of two objects side by side, taken by one camera, with label masks."""
    left, right = render_half("figure", 1, 75.0, 128.0), render_half("blob", 2, -75.0, -128.0)
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(left.names):
        photograph = np.concatenate([left.images[n], right.images[n]], 1)  # (H, 2 W, 3)
        labels = np.concatenate([left.masks[n] * np.uint8(1), right.masks[n] * np.uint8(2)], 1)  # (H, 2 W)
        Image.fromarray(photograph).save(out / "images" / name)
        Image.fromarray(labels).save(out / "labels" / name)
    return out / "images", out / "labels"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folders", nargs="*", metavar="FOLDER", help="IMAGES LABEL_MASKS")
given = parser.parse_args([] if "ipykernel" in sys.modules else None).folders  # a notebook's words are its own
if len(given) not in (0, 2):
    parser.error(f"{len(given)} folders; give those of the photographs and of their masks: IMAGES LABEL_MASKS")
for folder in given:
    if not Path(folder).is_dir():
        parser.error(f"{folder}: there is no such folder; check its path")
images, labels = given or render(OUT)

# %% One call: every label that at least two masks show
results = sparse_ga.reconstruct_objects(images, labels, cache=OUT / "cache", reporter=Reporter())

# %% Each has cameras and a scale of its own: the camera as this object saw it
for label, result in results.items():
    print(
        f"object {label}: {int(result.registered.sum())} of {len(result.names)} registered, {len(result.points)} points"
    )
    export(result, OUT / f"object_{label}", ["ply", "glb"])
