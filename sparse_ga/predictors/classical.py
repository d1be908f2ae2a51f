"""The classical predictor: RootSIFT inside the mask, essential matrices, triangulation. No weights, CPU only.

Point maps come from the triangulated inliers: their log depth is spread over the mask by harmonic interpolation, with
a confidence that falls with the distance to the evidence, and with the ambiguity of the pair's pose. Depth is
normalised to a median of 1, so scale differs from pair to pair. Nothing the background shows has any influence: it is
painted over from the foreground before anything looks at the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from sparse_ga.geometry.cameras import make_intrinsics, rays, unproject_depth
from sparse_ga.geometry.transforms import apply, inverse, make
from sparse_ga.geometry.two_view import (
    RelativePose,
    essential,
    estimate_relative_pose,
    midpoint_depths,
    optimal_rays,
    ray_angles_deg,
    sampson,
)
from sparse_ga.matching.verify import Verification
from sparse_ga.predictors.base import Features
from sparse_ga.predictors.interpolation import distance_to, harmonic_field, paint_background
from sparse_ga.predictors.self_calibration import KeypointMatches, Keypoints, calibrate
from sparse_ga.products import Array, PairMatches, PairPrediction, Pointmap, View

GUESSED_FOCAL = 1.2  # of the image's long side, where nothing is known: a common phone or kit lens
MAX_CALIBRATION_VIEWS = 32


@dataclass(frozen=True)
class ClassicalSettings:
    """What the classical predictor can be told; all of it enters its fingerprint."""

    contrast_threshold: float = 0.002
    """Least contrast of a SIFT blob. Bare matte surfaces have no strong ones; what noise adds does not match itself."""
    max_keypoints: int = 4000
    """Most keypoints of a view, those of highest contrast; 0 keeps all."""
    ratio: float = 0.8
    """Lowe's ratio, tried first: fewer wrong matches make a better pose."""
    loose_ratio: float = 0.9
    """The ratio for pairs with fewer than `enough` matches; MAGSAC and the triplets of pairs judge what passes."""
    enough: int = 50
    """Verified matches with which a pair's pose is good; twice as many tentative ones are enough for calibration."""
    threshold_px: float = 1.5
    min_inliers: int = 20
    min_angle_deg: float = 1.5
    evidence_px: float = 12.0
    """Distance to the nearest triangulated match at which confidence has fallen to 1/e."""


class ClassicalPredictor:
    """`FeaturePredictor` and `Calibrator` without weights (see the module's docstring)."""

    def __init__(self, settings: ClassicalSettings | None = None) -> None:
        self.settings = settings or ClassicalSettings()
        content = f"classical-6 {cv2.__version__} {sorted(asdict(self.settings).items())}"
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def encode(self, view: View) -> Features:
        """SIFT on the mask: `xy` (K, 2) and blob diameter `size` (K,) float32 working px, `sift` (K, 128) uint8."""
        image = cv2.cvtColor(paint_background(view.image, view.mask), cv2.COLOR_RGB2GRAY)
        detector = cv2.SIFT.create(
            nfeatures=self.settings.max_keypoints,
            contrastThreshold=self.settings.contrast_threshold,
            enable_precise_upscale=True,  # without it locations are biased, which bends long focal lengths by 7 %
        )
        keypoints, descriptors = detector.detectAndCompute(image, view.mask.astype(np.uint8) * 255)
        if descriptors is None:
            return {
                "xy": np.zeros((0, 2), np.float32),
                "size": np.zeros(0, np.float32),
                "sift": np.zeros((0, 128), np.uint8),
            }
        xy = np.array([k.pt for k in keypoints], np.float32)
        column, row = np.round(xy).astype(int).T
        inside = view.mask[row.clip(0, view.height - 1), column.clip(0, view.width - 1)]
        order = np.lexsort((np.arange(len(xy)), xy[:, 0], xy[:, 1]))
        order = order[inside[order]]
        size = np.array([k.size for k in keypoints], np.float32)
        return {"xy": xy[order], "size": size[order], "sift": descriptors[order].astype(np.uint8)}

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        """Point maps and inlier matches of a pair; rejected with the reason where there is no reliable geometry."""
        return self.predict_from_features(view_i, view_j, self.encode(view_i), self.encode(view_j))

    def predict_from_features(
        self, view_i: View, view_j: View, features_i: Features, features_j: Features
    ) -> PairPrediction:
        """As `predict`, from features computed before. Views without intrinsics get a common guess of the focal."""
        strict = self._predict_at_ratio(self.settings.ratio, (view_i, view_j), (features_i, features_j))
        if _verified(strict) >= self.settings.enough:
            return strict
        loose = self._predict_at_ratio(self.settings.loose_ratio, (view_i, view_j), (features_i, features_j))
        return loose if _verified(loose) >= _verified(strict) else strict

    def _predict_at_ratio(
        self, ratio: float, views: tuple[View, View], features: tuple[Features, Features]
    ) -> PairPrediction:
        """The prediction from matches that pass the ratio test at `ratio`; rejected where too few of them agree."""
        s, (view_i, view_j), (features_i, features_j) = self.settings, views, features
        index_i, index_j, reliable = match_root_sift(features_i["sift"], features_j["sift"], ratio)
        if len(index_i) < s.min_inliers:
            return PairPrediction.reject(view_i, view_j, f"only {len(index_i)} SIFT matches on the object")
        xy_i, xy_j = features_i["xy"][index_i].astype(float), features_j["xy"][index_j].astype(float)
        camera_i, camera_j = working_intrinsics(view_i), working_intrinsics(view_j)
        rays_i, rays_j = rays(camera_i, xy_i), rays(camera_j, xy_j)
        threshold = s.threshold_px / np.sqrt(camera_i[0, 0] * camera_j[0, 0])
        pose = estimate_relative_pose(rays_i, rays_j, threshold, reliable)
        if pose is None or pose.inliers.sum() < s.min_inliers:
            count = 0 if pose is None else int(pose.inliers.sum())
            return PairPrediction.reject(view_i, view_j, f"only {count} matches agree on an epipolar geometry")
        if pose.inliers.sum() <= _chance_count(rays_i, rays_j, pose, threshold):
            count = int(pose.inliers.sum())
            reason = f"{count} of {len(index_i)} matches agree on an epipolar geometry, no more than chance may bring"
            return PairPrediction.reject(view_i, view_j, reason)
        keep = pose.inliers
        angle = float(np.median(ray_angles_deg(rays_i[keep], rays_j[keep], pose.rotation)))
        if angle < s.min_angle_deg:
            reason = f"triangulation angle {angle:.1f} degrees: the views are too close together"
            return PairPrediction.reject(view_i, view_j, reason)
        kept_i, kept_j = index_i[keep], index_j[keep]
        sigma = np.maximum(location_sigma(features_i["size"][kept_i]), location_sigma(features_j["size"][kept_j]))
        confidence = (1 / sigma**2).astype(np.float32)
        matches = PairMatches(features_i["xy"][kept_i], features_j["xy"][kept_j], confidence)
        return self._triangulated(view_i, view_j, pose, matches)

    def _triangulated(self, view_i: View, view_j: View, pose: RelativePose, matches: PairMatches) -> PairPrediction:
        """Point maps of both views from the verified matches."""
        camera_i, camera_j = working_intrinsics(view_i), working_intrinsics(view_j)
        rays_i, rays_j = rays(camera_i, matches.xy_i.astype(float)), rays(camera_j, matches.xy_j.astype(float))
        met_i, met_j = optimal_rays(rays_i, rays_j, pose.rotation, pose.translation)
        depth_i, depth_j = midpoint_depths(met_i, met_j, pose.rotation, pose.translation)
        in_front = (depth_i > 0) & (depth_j > 0)
        matches, depth_i, depth_j = matches.select(in_front), depth_i[in_front], depth_j[in_front]
        scale = float(np.median(depth_i))
        map_i = self._depth_map(view_i, matches.xy_i, depth_i / scale, pose.certainty)
        map_j = self._depth_map(view_j, matches.xy_j, depth_j / scale, pose.certainty)
        j_from_i = make(pose.rotation, pose.translation / scale)
        points_i, points_j = unproject_depth(camera_i, map_i[0]), unproject_depth(camera_j, map_j[0])
        return PairPrediction(
            i_in_i=_pointmap(points_i, map_i[1]),
            j_in_i=_pointmap(_moved(inverse(j_from_i), points_j), map_j[1]),
            j_in_j=_pointmap(points_j, map_j[1]),
            i_in_j=_pointmap(_moved(j_from_i, points_i), map_i[1]),
            matches=matches,
        )

    def _depth_map(self, view: View, xy: Array, depth: Array, certainty: float) -> tuple[Array, Array]:
        """Depth and confidence, (H, W) each, from depths (M,) at pixels (M, 2) and the certainty of the pair's pose."""
        xy = xy.astype(float)
        log_depth = harmonic_field(view.mask, xy, np.log(depth))
        low, high = np.log(depth.min()), np.log(depth.max())
        dense = np.exp(np.clip(log_depth, low, high))
        confidence = certainty * np.exp(-distance_to(xy, view.mask.shape) / self.settings.evidence_px)
        return np.where(view.mask, dense, 1.0), np.where(view.mask, np.maximum(confidence, 1e-3), 0.0)

    def _tentative(self, sift_i: Array, sift_j: Array) -> tuple[Array, Array, Array]:
        """`match_root_sift` at the first ratio, or at the loose one where that finds little."""
        strict = match_root_sift(sift_i, sift_j, self.settings.ratio)
        if len(strict[0]) >= 2 * self.settings.enough:
            return strict
        return match_root_sift(sift_i, sift_j, self.settings.loose_ratio)

    def estimate_focal(
        self,
        views: Sequence[View],
        pairs: Sequence[tuple[int, int]],
        features: Callable[[int], Features],
        focal_bounds_px: tuple[float, float],
    ) -> tuple[float, bool]:
        """Focal length in working px shared by all views, and whether the evidence singles it out.

        With many views an evenly spaced choice of them speaks for all; their pairs need not be in `pairs`.
        """
        pairs = _calibration_pairs(len(views), pairs)
        used = sorted({view for pair in pairs for view in pair})
        loaded = {n: features(n) for n in used}
        keypoints = [
            Keypoints(
                loaded[n]["xy"].astype(float) - view.principal_point, location_sigma(loaded[n]["size"].astype(float))
            )
            if n in loaded
            else Keypoints(np.zeros((0, 2)), np.zeros(0))
            for n, view in enumerate(views)
        ]
        matches = [KeypointMatches(i, j, *self._tentative(loaded[i]["sift"], loaded[j]["sift"])) for i, j in pairs]
        long_side = max(max(view.width, view.height) for view in views)
        found = calibrate(keypoints, matches, focal_bounds_px, GUESSED_FOCAL * long_side)
        return found.focal_px, found.trusted


def _calibration_pairs(views: int, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs calibration looks at: the given ones, or all among an evenly spaced choice of many views."""
    if views <= MAX_CALIBRATION_VIEWS:
        return sorted({(min(p), max(p)) for p in pairs})
    chosen = np.unique(np.linspace(0, views - 1, MAX_CALIBRATION_VIEWS).round().astype(int)).tolist()
    return [(i, j) for n, i in enumerate(chosen) for j in chosen[n + 1 :]]


def _verified(prediction: PairPrediction) -> int:
    """How many matches a prediction brings."""
    return 0 if prediction.matches is None else len(prediction.matches)


def _chance_count(rays_i: Array, rays_j: Array, pose: RelativePose, threshold: float) -> float:
    """As many of the matches (M, 3), (M, 3) as may agree with a pose when their ends have nothing in common."""
    dealt = np.random.default_rng(len(rays_i)).permutation(np.resize(np.arange(len(rays_i)), max(len(rays_i), 2000)))
    starts = np.resize(np.arange(len(rays_i)), len(dealt))
    error = sampson(rays_i[starts], rays_j[dealt], essential(pose.rotation, pose.translation))
    return Verification(pose.inliers, "essential", float((np.abs(error) < threshold).mean())).chance_count


def match_root_sift(sift_i: Array, sift_j: Array, ratio: float) -> tuple[Array, Array, Array]:
    """Rows (M,), (M,) of mutual nearest neighbours of SIFT descriptors (K, 128), and which are reliable (M,) bool.

    RootSIFT (Arandjelovic and Zisserman, CVPR 2012) with Lowe's ratio test on Euclidean distances (IJCV 2004): a match
    must pass it from one side, a reliable one passes it from both.
    """
    nothing = np.zeros(0, np.int64)
    if len(sift_i) < 2 or len(sift_j) < 2:
        return nothing, nothing, nothing.astype(bool)
    similarity = _root(sift_i) @ _root(sift_j).T  # (Ki, Kj)
    best_j = similarity.argmax(1)
    best_i = similarity.argmax(0)
    mutual = best_i[best_j] == np.arange(len(sift_i))
    forward, backward = _distinct(similarity, ratio), _distinct(similarity.T, ratio)[best_j]
    keep = np.flatnonzero(mutual & (forward | backward))
    return keep, best_j[keep], (forward & backward)[keep]


def location_sigma(size: Array) -> Array:
    """Uncertainty (K,) of keypoints of blob diameter `size` (K,) px, 1 for the sharpest.

    The location error of a blob grows with its scale (measured on rendered scenes: in proportion).
    """
    return np.maximum(size / 3.0, 1.0)


def _root(sift: Array) -> Array:
    """RootSIFT descriptors, unit length."""
    values = sift.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1e-9))


def _distinct(similarity: Array, ratio: float) -> Array:
    """Rows whose best Euclidean distance is below `ratio` times the second best, (rows,)."""
    top = np.partition(similarity, similarity.shape[1] - 2, axis=1)[:, -2:]
    distance = np.sqrt(np.maximum(2 - 2 * top, 0))
    return distance[:, 1] < ratio * distance[:, 0]


def working_intrinsics(view: View) -> Array:
    """The view's intrinsics (3, 3) in working px; without any, a guessed focal and the photograph's centre."""
    if view.intrinsics is not None:
        return view.intrinsics
    return make_intrinsics(GUESSED_FOCAL * max(view.width, view.height), view.principal_point)


def _pointmap(points: Array, confidence: Array) -> Pointmap:
    return Pointmap(points.astype(np.float32), confidence.astype(np.float32))


def _moved(b_from_a: Array, points: Array) -> Array:
    return apply(b_from_a, points.reshape(-1, 3)).reshape(points.shape)
