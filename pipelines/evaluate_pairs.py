"""How good a predictor's pairs are, one by one, on photographs with known cameras.

    evaluate_pairs.py SET                                          # SET/images, SET/masks, SET/gt.json
    evaluate_pairs.py SET --descriptors weights.safetensors        # the classical predictor with a descriptor network
    evaluate_pairs.py SET --predictor compact --max-angle 60

Intrinsics are the true ones; nothing is aligned. gt.json is as for evaluate.py. *right* is a pose with rotation and
direction of translation within 15 degrees, *close* within 5; *wrong* is one that is off by more than 15.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_ga.api import given_cameras, make_job
from sparse_ga.config import make_config
from sparse_ga.errors import InputError
from sparse_ga.evaluation import format_table, relative_errors_deg
from sparse_ga.geometry.transforms import inverse
from sparse_ga.io.cameras_file import assign_cameras, read_cameras
from sparse_ga.io.images import find_images
from sparse_ga.predictors.base import FeaturePredictor, PairPredictor
from sparse_ga.predictors.loading import load_predictor
from sparse_ga.products import Array, PairPrediction, View
from sparse_ga.stages import ingest
from sparse_ga.training.validation import pose_of_prediction

_EDGES_DEG = (0.0, 30.0, 50.0, 75.0)


def pair_errors_deg(prediction: PairPrediction, view_j: View, i_from_j: Array) -> tuple[float, float]:
    """Rotation and translation error of a predicted pose; infinite where there is none."""
    if prediction.rejected is not None:
        return np.inf, np.inf
    found, valid = pose_of_prediction(prediction, view_j)
    if not valid:
        return np.inf, np.inf
    found[:3, :3] /= np.cbrt(np.linalg.det(found[:3, :3]))
    rotation, direction = relative_errors_deg(np.stack([np.eye(4), found]), np.stack([np.eye(4), i_from_j]))
    return float(rotation[0]), float(direction[0])


def measure(predictor: PairPredictor, views: Sequence[View], poses: Array, max_angle: float) -> Array:
    """Rows (P, 2): angle between the optical axes and worst error of the pose, both in degrees, of all pairs within
    `max_angle`; `poses` (N, 4, 4) are the true world_from_cam."""
    features = [predictor.encode(view) for view in views] if isinstance(predictor, FeaturePredictor) else []
    rows = []
    for i in range(len(views)):
        for j in range(i + 1, len(views)):
            angle = float(np.degrees(np.arccos(np.clip(poses[i, :3, 2] @ poses[j, :3, 2], -1, 1))))
            if angle > max_angle:
                continue
            if isinstance(predictor, FeaturePredictor):
                found = predictor.predict_from_features(views[i], views[j], features[i], features[j])
            else:
                found = predictor.predict(views[i], views[j])
            rows.append((angle, max(pair_errors_deg(found, views[j], inverse(poses[i]) @ poses[j]))))
    return np.array(rows).reshape(-1, 2)


def summarise(rows: Array) -> dict[str, Any]:
    """Number of pairs, and how many of them are right, close and wrong, in percent."""
    error = rows[:, 1]
    shares = {"right": error < 15, "close": error < 5, "wrong": (error >= 15) & np.isfinite(error)}
    return {"pairs": len(rows), **{k: round(100 * float(v.mean()), 1) if len(v) else 0.0 for k, v in shares.items()}}


def by_angle(rows: Array, max_angle: float) -> dict[str, dict[str, Any]]:
    """`summarise` of the rows (P, 2) in each range of angles up to `max_angle`, which is in the last, and of all."""
    edges = [edge for edge in _EDGES_DEG if edge < max_angle] + [max_angle]
    index = np.clip(np.searchsorted(edges, rows[:, 0], side="right") - 1, 0, len(edges) - 2)
    parts = {f"{a:g} to {b:g} degrees": summarise(rows[index == n]) for n, (a, b) in enumerate(pairwise(edges))}
    return parts | {"all": summarise(rows)}


def read_set(folder: Path, predictor: PairPredictor) -> tuple[list[View], Array]:
    """Working views of SET with the true intrinsics, and their true poses world_from_cam (N, 4, 4)."""
    images, masks, truth = folder / "images", folder / "masks", folder / "gt.json"
    paths = find_images(images)
    cameras = assign_cameras([path.name for path in paths], read_cameras(truth), str(truth))
    rows = [
        (path, camera.intrinsics, camera.world_from_cam)
        for path, camera in zip(paths, cameras)
        if camera is not None and camera.intrinsics is not None and camera.world_from_cam is not None
    ]
    if not rows:
        raise InputError(f"{truth}: no image has both K and cam2w")
    found = [path for path, _, _ in rows]
    for path in paths:
        if path not in found:
            print(f"evaluate_pairs: {path.name} is left out, for {truth} has no K and cam2w of it", file=sys.stderr)
    given = given_cameras([path.name for path in found], [k for _, k, _ in rows], None)
    job = make_job(found, masks if masks.is_dir() else None, predictor, make_config({}), given)
    return [ingest.run(source, job.config) for source in job.sources], np.stack([pose for _, _, pose in rows])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="folder with images, masks and gt.json")
    parser.add_argument("--predictor", default="classical", help="classical, compact, mast3r, a hub name, a checkpoint")
    parser.add_argument("--descriptors", help="of the classical predictor: a file of weights")
    parser.add_argument("--max-angle", type=float, default=75.0, help="pairs further apart are left out, degrees")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def main() -> int:
    """Print the shares by angle; 2 when something cannot be read."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    try:
        config = make_config({"forward": {"descriptors": args.descriptors}})
        predictor = load_predictor(args.predictor, config.forward)
        views, poses = read_set(args.set, predictor)
    except ValueError as error:
        print(f"evaluate_pairs: {error}", file=sys.stderr)
        return 2
    rows = measure(predictor, views, poses, args.max_angle)
    parts = by_angle(rows, args.max_angle)
    if args.json:
        print(json.dumps(parts))
    else:
        print(format_table([(name, "  ".join(f"{k} {v}" for k, v in part.items())) for name, part in parts.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
