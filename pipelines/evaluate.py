"""How good a reconstruction is against known cameras.

    evaluate.py OUT gt.json                          # OUT: folder of a run, or a COLMAP model
    evaluate.py OUT gt.json --run SET                # reconstruct SET/images with SET/masks into OUT first
    evaluate.py OUT gt.json --run SET --background   # the same, with a textured, still background put in
    evaluate.py OUT --rendered shape=figure texture=weak views=12 --preset bare     # a scene that is rendered into OUT

gt.json maps image names to {"K": 3x3, "cam2w": 4x4 in OpenCV axes, "size": [W, H]}. What a rendered scene can be made
of is in sparse_ga/synthetic/scene_config.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

import sparse_ga
from sparse_ga.commands.jobs import parse_settings
from sparse_ga.errors import InputError
from sparse_ga.evaluation import CameraSet, evaluate_cameras
from sparse_ga.products import Reconstruction
from sparse_ga.progress import Reporter
from sparse_ga.synthetic.composite import composite_folder
from sparse_ga.synthetic.scene import SceneConfig, make_scene

_MODELS = ("sparse/0", "colmap/sparse/0", "colmap", ".")


def read_truth(path: Path) -> CameraSet:
    """Cameras from gt.json; raises `InputError` when it is missing or not such a file."""
    try:
        cameras = json.loads(path.read_text(encoding="utf-8"))
        poses = np.array([camera["cam2w"] for camera in cameras.values()], float)
        intrinsics = np.array([camera["K"] for camera in cameras.values()], float)
        return CameraSet.known(tuple(cameras), poses, intrinsics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no true cameras (name -> K, cam2w) can be read from it: {error}") from None


def read_estimate(out: Path) -> CameraSet:
    """Cameras of a run's folder: of its COLMAP model, or of the saved reconstruction; raises `InputError`."""
    for sub in _MODELS:
        if any((out / sub / name).is_file() for name in ("images.bin", "images.txt")):
            return read_colmap(out / sub)
    if (out / "reconstruction.safetensors").is_file():
        found = Reconstruction.load(out)
        return CameraSet(found.names, found.registered, found.world_from_cam, found.intrinsics)
    raise InputError(f"{out}: neither a COLMAP model ({', '.join(_MODELS)}) nor reconstruction.safetensors is there")


def read_colmap(folder: Path) -> CameraSet:
    """Registered cameras of a COLMAP model."""
    import pycolmap

    model = pycolmap.Reconstruction(str(folder))
    images = [image for image in model.images.values() if image.has_pose]
    poses = np.tile(np.eye(4), (len(images), 1, 1))
    for n, image in enumerate(images):
        poses[n, :3] = image.cam_from_world().inverse().matrix()
    intrinsics = np.array([image.camera.calibration_matrix() for image in images]).reshape(-1, 3, 3)
    names = tuple(Path(image.name).name for image in images)
    return CameraSet(names, np.ones(len(images), bool), poses, intrinsics)


def with_names_of(estimate: CameraSet, truth: CameraSet) -> CameraSet:
    """The estimate with names as the truth spells them where only the extension differs."""
    spelled = {Path(name).stem: name for name in truth.names}
    names = tuple(name if name in truth.names else spelled.get(Path(name).stem, name) for name in estimate.names)
    return CameraSet(names, estimate.registered, estimate.world_from_cam, estimate.intrinsics)


def reconstruct_set(args: argparse.Namespace) -> CameraSet:
    """Reconstruct SET/images with SET/masks into OUT."""
    images, masks = args.run / "images", args.run / "masks"
    if args.background:
        composite_folder(images, masks, args.out / "composited", args.seed)
        images = args.out / "composited"
    found = sparse_ga.reconstruct(
        images,
        masks if masks.is_dir() and not args.no_masks else None,
        cache=args.out / "cache",
        config=sparse_ga.load_config(args.preset, parse_settings(args.set)),
        predictor=args.predictor,
        reporter=Reporter("silent" if args.json else "auto"),
    )
    found.save(args.out)
    return CameraSet(found.names, found.registered, found.world_from_cam, found.intrinsics)


def render_set(words: list[str], folder: Path) -> None:
    """Render the scene that `words` (setting=value) describe into a folder of images, masks and gt.json.

    It takes the place of a scene rendered there before. Raises `InputError` for a setting or a value that there is not.
    """
    settings = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value  # a name, not a number or a list
    try:
        scene = make_scene(SceneConfig(**settings))
        if (folder / "gt.json").is_file():
            shutil.rmtree(folder)
        scene.write(folder)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"--rendered {' '.join(words)}: {error}") from None


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of a run, or a COLMAP model")
    parser.add_argument("truth", type=Path, nargs="?", help="gt.json; not needed with --rendered")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--run", type=Path, metavar="SET", help="reconstruct SET/images with SET/masks into OUT first")
    parser.add_argument(
        "--rendered", nargs="*", metavar="SETTING=VALUE", help="render a scene into OUT/set and reconstruct it"
    )
    parser.add_argument("--background", action="store_true", help="with --run: put a still textured background in")
    parser.add_argument("--no-masks", action="store_true", help="with --run: leave the masks out, to see what they do")
    parser.add_argument("--seed", type=int, default=0, help="with --background: which background")
    parser.add_argument("--preset", help="with --run: a preset, or a TOML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="with --run: section.field=value",
    )
    parser.add_argument(
        "--predictor", help="with --run: classical, compact, mast3r, a hub name, or a checkpoint's path"
    )
    args = parser.parse_args()
    if args.rendered is not None and (args.truth or args.run):
        parser.error("--rendered brings its own photographs and truth")
    if args.rendered is None and args.truth is None:
        parser.error("give gt.json, or --rendered")
    return args


def main() -> int:
    """Print the metrics; 2 when something cannot be read."""
    args = parse_arguments()
    try:
        if args.rendered is not None:
            args.run, args.truth = args.out / "set", args.out / "set" / "gt.json"
            render_set(args.rendered, args.run)
        truth = read_truth(args.truth)
        estimate = reconstruct_set(args) if args.run else read_estimate(args.out)
        metrics = evaluate_cameras(with_names_of(estimate, truth), truth)
    except ValueError as error:  # InputError, ConfigError and InvalidProduct: all say what to mend
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(metrics.to_json() if args.json else metrics.format())
    return 0


if __name__ == "__main__":
    sys.exit(main())
