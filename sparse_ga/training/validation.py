"""Fixed pairs of unseen procedural objects, and how good matches and predictions on them are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ga.geometry.transforms import rotation_angle_deg, similarity_from_points
from sparse_ga.predictors.base import PairPredictor
from sparse_ga.products import Array, PairMatches, PairPrediction, Pointmap, View
from sparse_ga.synthetic.procedural.correspondences import correspond_views, relative_pose
from sparse_ga.synthetic.procedural.pool import Pool
from sparse_ga.training.metrics import Record


@dataclass(frozen=True, eq=False)
class UnseenPair:
    """Two views of an object no network was trained on, and the truth about them (object units)."""

    view_i: View
    view_j: View
    xy_in_j: Array  # (H, W, 2) px: where view i's pixels lie in view j
    visible: Array  # (H, W) bool: pixels of view i that view j sees
    depth_i: Array  # (H, W) z-depth, 0 off the object
    depth_j: Array  # (H, W)
    i_from_j: Array  # (4, 4)
    angle_deg: float  # between the viewing directions
    plain: bool  # bare matte


def to_view(rows: dict[str, Tensor], index: int, name: str) -> View:
    """View `index` of a rendered object as a product; the mask is the exact one."""
    image = np.ascontiguousarray(rows["image"][index].permute(1, 2, 0).numpy())
    mask, intrinsics = rows["mask"][index].numpy(), rows["intrinsics"][index].numpy().astype(np.float64)
    height, width = mask.shape
    return View(name, image, mask, intrinsics, np.eye(3), (width, height), digest=name)


def view_angle(object_from_a: Tensor, object_from_b: Tensor) -> float:
    """Angle in degrees between the directions from which two cameras (4, 4) look at the object's origin."""
    a, b = F.normalize(object_from_a[:3, 3], dim=0), F.normalize(object_from_b[:3, 3], dim=0)
    return math.degrees(math.acos(float((a @ b).clamp(-1, 1))))


def unseen_pair(rows: dict[str, Tensor], pair: tuple[int, int], name: str) -> UnseenPair:
    """Views `pair` of a rendered object and their truth."""
    i, j = pair
    both = [(rows[k][i : i + 1], rows[k][j : j + 1]) for k in ("depth", "intrinsics", "object_from_cam")]
    found = correspond_views(*both)
    height, width = rows["depth"].shape[-2:]
    depth, pose = rows["depth"].numpy(), rows["object_from_cam"].double()
    return UnseenPair(
        view_i=to_view(rows, i, f"{name}/{i}"),
        view_j=to_view(rows, j, f"{name}/{j}"),
        xy_in_j=found.xy[0].reshape(height, width, 2).numpy(),
        visible=found.visible[0].reshape(height, width).numpy(),
        depth_i=depth[i],
        depth_j=depth[j],
        i_from_j=relative_pose(pose[j : j + 1], pose[i : i + 1])[0].numpy(),
        angle_deg=view_angle(rows["object_from_cam"][i], rows["object_from_cam"][j]),
        plain=bool(rows["plain"]),
    )


def unseen_pairs(
    pool: Pool, objects: int, low_deg: float = 20.0, high_deg: float = 60.0, each: int = 2
) -> list[UnseenPair]:
    """Fixed pairs of a pool: up to `each` per object whose viewing directions are low to high degrees apart."""
    pairs = []
    for row in range(objects):
        rows = pool.rows(row)
        poses = rows["object_from_cam"]
        chosen = [
            (i, j)
            for i in range(pool.views)
            for j in range(i + 1, pool.views)
            if low_deg <= view_angle(poses[i], poses[j]) <= high_deg
        ]
        pairs += [unseen_pair(rows, pair, f"{pool.seed}/{row}") for pair in chosen[:each]]
    return pairs


@dataclass(frozen=True)
class MatchScore:
    """How many matches a pair has and how many of them are right."""

    matches: int
    correct: int
    plain: bool
    angle_deg: float

    @property
    def precision(self) -> float:
        """Share of right matches; 0 without any."""
        return self.correct / self.matches if self.matches else 0.0


def score_matches(matches: PairMatches, pair: UnseenPair, threshold_px: float = 3.0) -> MatchScore:
    """Matches that land within `threshold_px` of the truth in view j; one whose pixel view j cannot see is wrong."""
    if len(matches) == 0:
        return MatchScore(0, 0, pair.plain, pair.angle_deg)
    limit = np.array(pair.visible.shape)[::-1] - 1
    nearest = np.rint(matches.xy_i).astype(int).clip(0, limit)
    x, y = nearest.T
    expected = pair.xy_in_j[y, x] + (matches.xy_i - nearest)
    error = np.linalg.norm(expected - matches.xy_j, axis=1)
    correct = int((pair.visible[y, x] & (error < threshold_px)).sum())
    return MatchScore(len(matches), correct, pair.plain, pair.angle_deg)


def summarise_matches(scores: Sequence[MatchScore]) -> Record:
    """Mean precision and numbers of matches over pairs, of all objects and of bare matte ones.

    `solvable` is the share of pairs with at least 15 right matches that are more than a quarter of all.
    """
    record: Record = {"pairs": float(len(scores))}
    for name, part in (("", list(scores)), ("plain_", [s for s in scores if s.plain])):
        if part:
            record[f"{name}precision"] = float(np.mean([s.precision for s in part]))
            record[f"{name}matches"] = float(np.mean([s.matches for s in part]))
            record[f"{name}correct"] = float(np.mean([s.correct for s in part]))
            record[f"{name}solvable"] = float(np.mean([s.correct >= 15 and s.precision > 0.25 for s in part]))
    return record


@dataclass(frozen=True)
class PoseScore:
    """Errors of a pair's relative pose and of its depth; 180 degrees and 1 where there is no prediction."""

    rotation_deg: float
    translation_deg: float
    depth_error: float


def pose_of_prediction(prediction: PairPrediction, view_j: View) -> tuple[Array, bool]:
    """i_from_j (4, 4) of a prediction: the similarity that carries j's points from its own frame to camera i's."""
    weight = np.sqrt(prediction.j_in_i.confidence * prediction.j_in_j.confidence)[view_j.mask].astype(float)
    source, target = (p.points[view_j.mask].astype(float) for p in (prediction.j_in_j, prediction.j_in_i))
    return similarity_from_points(target, source, weight)


def _depth_error(pointmap: Pointmap, depth: Array) -> float:
    """Median relative error of z against true `depth` (H, W), after scaling by the median ratio."""
    on = depth > 0
    ratio = pointmap.points[..., 2][on] / depth[on]
    middle = float(np.median(ratio)) if on.any() else 0.0
    return float(np.median(np.abs(ratio / middle - 1))) if middle > 0 else 1.0


def score_pose(prediction: PairPrediction, pair: UnseenPair) -> PoseScore:
    """Rotation and translation angles, and relative depth error, of a prediction."""
    if prediction.rejected is not None:
        return PoseScore(180.0, 180.0, 1.0)
    i_from_j, valid = pose_of_prediction(prediction, pair.view_j)
    if not valid:
        return PoseScore(180.0, 180.0, 1.0)
    rotation = i_from_j[:3, :3] / np.cbrt(np.linalg.det(i_from_j[:3, :3]))
    angle = float(rotation_angle_deg(rotation.T @ pair.i_from_j[:3, :3]))
    a, b = i_from_j[:3, 3], pair.i_from_j[:3, 3]
    cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))
    depth = 0.5 * (_depth_error(prediction.i_in_i, pair.depth_i) + _depth_error(prediction.j_in_j, pair.depth_j))
    return PoseScore(angle, math.degrees(math.acos(min(1.0, max(-1.0, cosine)))), depth)


def summarise_poses(scores: Sequence[PoseScore]) -> Record:
    """RRA@15, RTA@15 in percent and the median relative depth error."""
    if not scores:
        return {}
    return {
        "rra15": 100 * float(np.mean([s.rotation_deg < 15 for s in scores])),
        "rta15": 100 * float(np.mean([s.translation_deg < 15 for s in scores])),
        "depth_error": float(np.median([s.depth_error for s in scores])),
    }


def reciprocal_matches(prediction: PairPrediction, view_i: View, view_j: View, stride: int = 4) -> PairMatches:
    """The prediction's own matches, or reciprocal nearest neighbours of its descriptors in view i's frame.

    Every `stride`-th foreground pixel of view i asks all foreground pixels of view j, and is asked back.
    """
    if prediction.matches is not None:
        return prediction.matches
    a, b = prediction.i_in_i.descriptors, prediction.j_in_i.descriptors
    if a is None or b is None:
        return PairMatches.empty()
    asked = np.zeros_like(view_i.mask)
    asked[::stride, ::stride] = True
    yx_i, yx_j = np.argwhere(view_i.mask & asked), np.argwhere(view_j.mask)
    if len(yx_i) == 0 or len(yx_j) == 0:
        return PairMatches.empty()
    similarity = a[tuple(yx_i.T)] @ b[tuple(yx_j.T)].T  # (P, Q)
    forward, backward = similarity.argmax(1), similarity.argmax(0)
    away = np.abs(yx_i[backward[forward]] - yx_i).max(1)
    rows = np.flatnonzero(away <= stride / 2)  # view j's pixels outnumber the asked ones
    xy_i, xy_j = yx_i[rows][:, ::-1], yx_j[forward[rows]][:, ::-1]
    confidence = similarity[rows, forward[rows]]
    return PairMatches(xy_i.astype(np.float32), xy_j.astype(np.float32), confidence.astype(np.float32))


def score_predictor(predictor: PairPredictor, pairs: Sequence[UnseenPair]) -> Record:
    """Matches, poses and depth of a predictor on unseen pairs; bare matte objects apart as well."""
    matches, poses = [], []
    for pair in pairs:
        prediction = predictor.predict(pair.view_i, pair.view_j)
        found = reciprocal_matches(prediction, pair.view_i, pair.view_j)
        matches.append(score_matches(found, pair))
        poses.append(score_pose(prediction, pair))
    plain = summarise_poses([pose for pose, pair in zip(poses, pairs) if pair.plain])
    return summarise_matches(matches) | summarise_poses(poses) | {f"plain_{k}": v for k, v in plain.items()}


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(module.parameters()).device
