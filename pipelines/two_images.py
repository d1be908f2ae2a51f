"""Two photographs, step by step: matches, cameras, points. Made to be read, and run cell by cell.

Without arguments two photographs of a turning object are rendered first. Everything goes to out-two-images.
"""

# %% Two photographs and their masks: yours, or two rendered ones
import argparse
import sys
from pathlib import Path

import numpy as np

import sparse_ga
from sparse_ga.io.drawing import draw_matches
from sparse_ga.io.export import export
from sparse_ga.match_pair import match_pair
from sparse_ga.synthetic.scene import SceneConfig, make_scene

OUT = Path("out-two-images")
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("files", nargs="*", metavar="FILE", help="IMAGE_A IMAGE_B MASK_A MASK_B")
given = parser.parse_args([] if "ipykernel" in sys.modules else None).files  # a notebook's words are its own
if len(given) not in (0, 4):
    parser.error(f"{len(given)} files; give two photographs and their masks: IMAGE_A IMAGE_B MASK_A MASK_B")
for file in given:
    if not Path(file).is_file():
        parser.error(f"{file}: there is no such file; check its path")
if not given:
    scene = make_scene(SceneConfig(views=2, size=(320, 240), arc_deg=14.0, shape="figure", seed=1))
    scene.write(OUT)
    given = [str(OUT / folder / name) for folder in ("images", "masks") for name in scene.names]
images, masks = (given[0], given[1]), (given[2], given[3])

# %% What matches? Only pixels of the object take part: the background moved differently.
pair = match_pair(images, masks)
verified = pair.verified
OUT.mkdir(exist_ok=True)
draw_matches(pair.view_i, pair.view_j, verified.matches).save(OUT / "matches.png")
print(f"{len(verified.matches)} matches, score {verified.score:.2f}", verified.rejected or "")

# %% Cameras and points. Two views hardly tell the focal length: give it if you know it.
width, height = pair.view_i.source_size
focal_px = 1.25 * max(width, height)  # that of the rendered photographs; a telephone has about 0.8 of the long side
known = np.array([[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1]])
result = sparse_ga.reconstruct(
    images,
    masks,
    cache=OUT / "cache",
    config=sparse_ga.load_config("few-images"),
    intrinsics=[known, known],
)
print(f"{int(result.registered.sum())} of 2 registered, {len(result.points)} points")
for name, reason in zip(result.names, result.reasons, strict=True):
    if reason:
        print(f"{name} left out: {reason}")

# %% The second camera as the first one sees it. Its distance is 1 by choice: two views have no scale.
if result.registered.all():
    a_from_b = result.cam_from_world[0] @ result.world_from_cam[1]
    angle_deg = np.degrees(np.arccos(np.clip((np.trace(a_from_b[:3, :3]) - 1) / 2, -1, 1)))
    print(f"turned by {angle_deg:.1f} degrees, moved along {a_from_b[:3, 3] / np.linalg.norm(a_from_b[:3, 3])}")
    export(result, OUT, ["ply", "glb"])
