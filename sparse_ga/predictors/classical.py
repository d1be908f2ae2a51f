"""The classical predictor: RootSIFT inside the mask, essential matrices, triangulation; on a CPU in a second a pair.

With a descriptor network (1.2 million parameters, ours), pairs on which SIFT finds no pose, or one that few matches
agree on, are asked for dense matches: coarser, and rarely wrong. A pose of SIFT's that theirs confirms is refined with
them; where there is none, or they contradict it, theirs is taken.

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
from sparse_ga.network.descriptor_cnn import DenseDescriptor
from sparse_ga.predictors.base import Features, mark_of_subclass
from sparse_ga.predictors.described import DenseMatcher, DensePose, DenseSettings, dense_pose, joint_pose, pack
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
    """Lowe's ratio of the matches that give a pair its pose: few wrong ones among them make a better pose."""
    loose_ratio: float = 0.9
    """The ratio of matches that join a pose they agree with, and that give a pose where the strict ones give none."""
    strong_matches: int = 100
    """A pose that as many strict matches agree on is not compared with the descriptor network's."""
    calibration_matches: int = 100
    """A pair with as many matches within `ratio` enters calibration without the looser ones."""
    threshold_px: float = 1.5
    min_inliers: int = 20
    min_angle_deg: float = 1.5
    evidence_px: float = 12.0
    """Distance to the nearest triangulated match at which confidence has fallen to 1/e."""


class ClassicalPredictor:
    """`FeaturePredictor` and `Calibrator` (see the module's docstring).

    A class derived from it has another fingerprint by its name alone; set `fingerprint` anew whenever its body changes.
    """

    def __init__(self, settings: ClassicalSettings | None = None, describer: DenseDescriptor | None = None) -> None:
        """`describer` gives dense matches to pairs on which SIFT finds little; without one it is SIFT alone."""
        self.settings, self.describer = settings or ClassicalSettings(), describer
        self._matcher = None if describer is None else DenseMatcher(describer, DenseSettings().min_share / 2)
        content = f"classical-8 {cv2.__version__} {sorted(asdict(self.settings).items())}"
        if describer is not None:
            content += f" dense-5 {describer.fingerprint} {sorted(asdict(DenseSettings()).items())}"
        content += mark_of_subclass(self, ClassicalPredictor)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def encode(self, view: View) -> Features:
        """SIFT on the mask: `xy` (K, 2) and blob diameter `size` (K,) float32 working px, `sift` (K, 128) uint8; with a
        descriptor network also what `described.pack` makes of its map."""
        dense = {} if self.describer is None else pack(self.describer.describe(view))
        return self._sift(view) | dense

    def _sift(self, view: View) -> Features:
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
        s, views, features = self.settings, (view_i, view_j), (features_i, features_j)
        sift = features_i["sift"], features_j["sift"]
        loose = match_root_sift(*sift, s.loose_ratio)
        pose = self._pose(match_root_sift(*sift, s.ratio), views, features)
        strong = not isinstance(pose, str) and int(pose.inliers.sum()) >= s.strong_matches
        dense = None if strong else self._dense(views, features)
        if isinstance(pose, str) or (isinstance(dense, DensePose) and not dense.confirms(pose)):
            pose = self._pose(loose, views, features)
        if isinstance(dense, DensePose) and (isinstance(pose, str) or not dense.confirms(pose)):
            return self._triangulated(view_i, view_j, dense.pose, dense.matches)
        if isinstance(pose, str):
            return PairPrediction.reject(view_i, view_j, pose if dense is None else f"{pose}; {dense}")
        matches = self._agreeing(loose, pose, views, features)
        if isinstance(dense, DensePose):
            pose = self._joint(pose, matches, dense, views)
            matches = self._agreeing(loose, pose, views, features).joined(dense.matches)
        return self._triangulated(view_i, view_j, pose, matches)

    def _agreeing(
        self,
        tentative: tuple[Array, Array, Array],
        pose: RelativePose,
        views: tuple[View, View],
        features: tuple[Features, Features],
    ) -> PairMatches:
        """Those of `match_root_sift`'s matches that agree with a pose; confidence is 1 / sigma^2 in working px."""
        index_i, index_j, _ = tentative
        keep = _bearings(views, features, (index_i, index_j)).agree(pose, self.settings.threshold_px)
        index_i, index_j = index_i[keep], index_j[keep]
        size_i, size_j = features[0]["size"][index_i], features[1]["size"][index_j]
        sigma = np.maximum(location_sigma(size_i), location_sigma(size_j))
        xy_i, xy_j = features[0]["xy"][index_i], features[1]["xy"][index_j]
        return PairMatches(xy_i, xy_j, (1 / sigma**2).astype(np.float32))

    def _joint(
        self, pose: RelativePose, matches: PairMatches, dense: DensePose, views: tuple[View, View]
    ) -> RelativePose:
        """SIFT's pose and the network's, which agree, made one by the matches of both."""
        cameras = [working_intrinsics(view) for view in views]
        both = matches.joined(dense.matches)
        ends = [rays(k, xy.astype(float)) for k, xy in zip(cameras, (both.xy_i, both.xy_j))]
        focal = float(np.sqrt(cameras[0][0, 0] * cameras[1][0, 0]))
        weights = np.sqrt(both.confidence.astype(float))
        return joint_pose((pose, dense.pose), ends[0], ends[1], weights, self.settings.threshold_px / 2 / focal)

    def _dense(self, views: tuple[View, View], features: tuple[Features, Features]) -> DensePose | str | None:
        """The pair's pose by the descriptor network, or why there is none to be relied on; None without a network."""
        if self._matcher is None:
            return None
        cameras = working_intrinsics(views[0]), working_intrinsics(views[1])
        return dense_pose(self._matcher.match(views, features), cameras, DenseSettings())

    def _pose(
        self, matches: tuple[Array, Array, Array], views: tuple[View, View], features: tuple[Features, Features]
    ) -> RelativePose | str:
        """j_from_i of the views that `match_root_sift`'s `matches` agree on, or why there is none to be relied on."""
        s, (index_i, index_j, reliable) = self.settings, matches
        if len(index_i) < s.min_inliers:
            return f"only {len(index_i)} SIFT matches on the object"
        ends = _bearings(views, features, (index_i, index_j))
        pose = estimate_relative_pose(ends.rays_i, ends.rays_j, s.threshold_px / ends.focal_px, reliable)
        count = 0 if pose is None else int(pose.inliers.sum())
        if pose is None or count < s.min_inliers:
            return f"only {count} matches agree on an epipolar geometry"
        if count <= ends.chance_count(pose, s.threshold_px):
            return f"{count} of {len(index_i)} matches agree on an epipolar geometry, no more than chance may bring"
        keep = pose.inliers
        angle = float(np.median(ray_angles_deg(ends.rays_i[keep], ends.rays_j[keep], pose.rotation)))
        if angle < s.min_angle_deg:
            return f"triangulation angle {angle:.1f} degrees: the views are too close together"
        return pose

    def _triangulated(self, view_i: View, view_j: View, pose: RelativePose, matches: PairMatches) -> PairPrediction:
        """Point maps of both views from the verified matches."""
        camera_i, camera_j = working_intrinsics(view_i), working_intrinsics(view_j)
        rays_i, rays_j = rays(camera_i, matches.xy_i.astype(float)), rays(camera_j, matches.xy_j.astype(float))
        met_i, met_j = optimal_rays(rays_i, rays_j, pose.rotation, pose.translation)
        depth_i, depth_j = midpoint_depths(met_i, met_j, pose.rotation, pose.translation)
        in_front = (depth_i > 0) & (depth_j > 0)
        if not in_front.any():
            return PairPrediction.reject(view_i, view_j, "no match lies in front of both cameras")
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
        """`match_root_sift` at the strict ratio, or at the loose one where that finds little."""
        strict = match_root_sift(sift_i, sift_j, self.settings.ratio)
        if len(strict[0]) >= self.settings.calibration_matches:
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


@dataclass(frozen=True, eq=False)
class _Bearings:
    """Tentative matches of a pair as camera-frame rays, z = 1."""

    rays_i: Array  # (M, 3)
    rays_j: Array  # (M, 3)
    focal_px: float  # geometric mean of both views'

    def agree(self, pose: RelativePose, threshold_px: float) -> Array:
        """Matches (M,) bool within reach of the pose's epipolar geometry, in front of both cameras."""
        error = sampson(self.rays_i, self.rays_j, essential(pose.rotation, pose.translation)) * self.focal_px
        depth_i, depth_j = midpoint_depths(self.rays_i, self.rays_j, pose.rotation, pose.translation)
        return (np.abs(error) < threshold_px) & (depth_i > 0) & (depth_j > 0)

    def chance_count(self, pose: RelativePose, threshold_px: float) -> float:
        """As many of the matches as may agree with a pose fitted to them when their ends have nothing in common."""
        count = len(self.rays_i)
        dealt = np.random.default_rng(count).permutation(np.resize(np.arange(count), max(count, 2000)))
        starts = np.resize(np.arange(count), len(dealt))
        matrix = essential(pose.rotation, pose.translation)
        error = sampson(self.rays_i[starts], self.rays_j[dealt], matrix) * self.focal_px
        share = float((np.abs(error) < threshold_px).mean())
        return Verification(pose.inliers, "essential", share).chance_count


def _bearings(views: tuple[View, View], features: tuple[Features, Features], rows: tuple[Array, Array]) -> _Bearings:
    """Rays of matched keypoints, `rows` of the two views' features."""
    cameras = [working_intrinsics(view) for view in views]
    ends = [rays(camera, f["xy"][row].astype(float)) for camera, f, row in zip(cameras, features, rows)]
    return _Bearings(ends[0], ends[1], float(np.sqrt(cameras[0][0, 0] * cameras[1][0, 0])))


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
