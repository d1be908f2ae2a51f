"""Geometric verification of a pair's matches, and the score by which pairs are chosen.

Three models are tried: the essential matrix where both intrinsics are known, the fundamental matrix otherwise (and
where the intrinsics turn out not to fit), and always the homography, which a planar object and a camera that only turns
satisfy. A match counts when it agrees with the epipolar geometry or, where a homography carries most of the pair, with
that. All are robust fits by OpenCV's USAC with MAGSAC++ scoring (Barath et al., CVPR 2020), drawn with a fixed seed and
in the order of confidence (PROSAC, Chum and Matas, CVPR 2005); inliers are judged here, in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from sparse_ga.config import MatchConfig
from sparse_ga.products import Array, PairMatches, VerifiedMatches, View

Model = Literal["essential", "fundamental", "homography", "predictor", "none"]

COVERAGE_BLOCK_PX = 32
"""Side of the blocks in which coverage of the foreground is counted."""
_TRUSTED_SHARE = 0.7  # of a predictor's own matches that must agree with one geometry for all to be kept
_PLANAR_SHARE = 0.5  # of the inliers that a homography must explain for its inliers to count
_SUPPORT = 48  # matches at which a pair has half the support it could have
_SEED = 5


@dataclass(frozen=True, eq=False)
class Verification:
    """Which matches agree with the pair's geometry, (M,) bool, and the model that explains them.

    `chance` is the share of matches that would agree with it if the ends in view j were dealt out at random.
    """

    inliers: Array
    model: Model
    chance: float = 0.0

    @property
    def chance_count(self) -> float:
        """As many inliers a best fit to matches without any common geometry may collect.

        Eight that the fit itself consumes, the expected number of random ones, and five standard deviations of that,
        for the search takes the best of thousands of models; simulated for 12 to 5,000 random matches.
        """
        expected = self.chance * len(self.inliers)
        return min(8 + expected + 5 * np.sqrt(expected), 1.5 + 0.7 * len(self.inliers))


def sampson_px(fundamental: Array, xy_i: Array, xy_j: Array) -> Array:
    """Sampson distance (M,) in px of matches (M, 2) to ``x_j F x_i = 0`` (Hartley and Zisserman, eq. 11.9, root)."""
    i, j = (np.concatenate([xy, np.ones((len(xy), 1))], 1).astype(float) for xy in (xy_i, xy_j))
    line_j, line_i = i @ fundamental.T, j @ fundamental  # (M, 3)
    norm2 = (line_j[:, :2] ** 2).sum(1) + (line_i[:, :2] ** 2).sum(1)
    return np.abs((j * line_j).sum(1)) / np.sqrt(np.maximum(norm2, 1e-300))


def transfer_px(homography: Array, xy_i: Array, xy_j: Array) -> Array:
    """Root mean square (M,) of the transfer errors in both images, px, of matches (M, 2) to ``x_j ~ H x_i``."""
    total = np.zeros(len(xy_i))
    for matrix, start, end in ((homography, xy_i, xy_j), (np.linalg.pinv(homography), xy_j, xy_i)):
        mapped = np.concatenate([start, np.ones((len(start), 1))], 1).astype(float) @ matrix.T  # (M, 3)
        depth = np.where(np.abs(mapped[:, 2:]) < 1e-12, np.nan, mapped[:, 2:])
        total += ((mapped[:, :2] / depth - end) ** 2).sum(1)
    return np.nan_to_num(np.sqrt(total / 2), nan=np.inf)


def _usac(threshold_px: float) -> cv2.UsacParams:
    params = cv2.UsacParams()
    params.confidence = 0.9999
    params.maxIterations = 5000
    params.threshold = threshold_px
    params.randomGeneratorState = _SEED
    params.isParallel = False
    params.sampler = cv2.SAMPLING_PROSAC
    params.score = cv2.SCORE_METHOD_MAGSAC
    params.loMethod = cv2.LOCAL_OPTIM_SIGMA
    params.loIterations = 10
    params.loSampleSize = 50
    params.final_polisher = cv2.MAGSAC
    params.final_polisher_iterations = 5
    params.neighborsSearch = cv2.NEIGH_GRID
    return params


def _fit(model: Model, xy_i: Array, xy_j: Array, intrinsics: tuple[Array, Array] | None, px: float) -> Array | None:
    """The matrix (3, 3), in pixels, of a model fitted to matches (M, 2) sorted by falling confidence."""
    params = _usac(px)
    try:
        if model == "homography":
            matrix, _ = cv2.findHomography(xy_i, xy_j, params)
        elif model == "fundamental":
            matrix, _ = cv2.findFundamentalMat(xy_i, xy_j, params)
        else:
            assert intrinsics is not None
            matrix, _ = cv2.findEssentialMat(xy_i, xy_j, *intrinsics, np.zeros(5), np.zeros(5), params)
    except cv2.error:
        return None  # too few distinct or only collinear points
    if matrix is None or matrix.shape[0] < 3 or not np.isfinite(matrix[:3]).all():
        return None
    if model == "essential" and intrinsics is not None:
        return np.linalg.inv(intrinsics[1]).T @ matrix[:3] @ np.linalg.inv(intrinsics[0])
    return matrix[:3]


@dataclass(frozen=True, eq=False)
class _Geometry:
    """A fitted model and the matches (M,) bool within reach of it."""

    model: Model
    matrix: Array | None  # (3, 3) in pixels
    inliers: Array

    def agrees(self, xy_i: Array, xy_j: Array, px: float) -> Array:
        if self.matrix is None:
            return np.zeros(len(xy_i), bool)
        return (transfer_px if self.model == "homography" else sampson_px)(self.matrix, xy_i, xy_j) <= px


def _consensus(model: Model, matches: PairMatches, intrinsics: tuple[Array, Array] | None, px: float) -> _Geometry:
    """The best fit of `model` and the matches within `px` of it."""
    order = np.argsort(-matches.confidence, kind="stable")
    xy_i, xy_j = matches.xy_i[order].astype(np.float64), matches.xy_j[order].astype(np.float64)
    fitted = _Geometry(model, _fit(model, xy_i, xy_j, intrinsics, px), np.zeros(0, bool))
    return replace(fitted, inliers=fitted.agrees(matches.xy_i, matches.xy_j, px))


def _epipolar(matches: PairMatches, intrinsics: tuple[Array, Array] | None, px: float) -> _Geometry:
    """The essential matrix, or the fundamental matrix where intrinsics are unknown or clearly do not fit."""
    if intrinsics is None:
        return _consensus("fundamental", matches, None, px)
    calibrated = _consensus("essential", matches, intrinsics, px)
    if calibrated.inliers.mean() >= 0.8:
        return calibrated
    free = _consensus("fundamental", matches, None, px)
    return free if free.inliers.sum() > 1.25 * calibrated.inliers.sum() else calibrated


def verify_geometry(
    matches: PairMatches, intrinsics: tuple[Array, Array] | None, max_epipolar_px: float
) -> Verification:
    """Which matches agree with one two-view geometry; `intrinsics` are those of both views, working px, if known.

    Fewer than eight matches verify nothing. Deterministic.
    """
    if len(matches) < 8:
        return Verification(np.zeros(len(matches), bool), "none")
    epipolar = _epipolar(matches, intrinsics, max_epipolar_px)
    planar = _consensus("homography", matches, None, max_epipolar_px)
    geometries = [epipolar]
    if planar.inliers.sum() >= _PLANAR_SHARE * epipolar.inliers.sum():
        geometries.append(planar)
    inliers = np.logical_or.reduce([g.inliers for g in geometries])
    if not inliers.any():
        return Verification(inliers, "none")
    dealt = np.random.default_rng(_SEED).permutation(np.resize(np.arange(len(matches)), max(len(matches), 2000)))
    starts = np.resize(np.arange(len(matches)), len(dealt))
    random = [g.agrees(matches.xy_i[starts], matches.xy_j[dealt], max_epipolar_px) for g in geometries]
    mostly_planar = planar.inliers.sum() >= 0.9 * inliers.sum()
    chance = float(np.logical_or.reduce(random).mean())
    return Verification(inliers, "homography" if mostly_planar else epipolar.model, chance)


def coverage(mask: Array, xy: Array) -> float:
    """Share of the foreground of `mask` (H, W) in blocks of `COVERAGE_BLOCK_PX` that hold one of `xy` (M, 2)."""
    height, width = mask.shape
    side = COVERAGE_BLOCK_PX
    columns = -(-width // side)
    y, x = np.nonzero(mask)
    foreground = np.bincount(y // side * columns + x // side, minlength=-(-height // side) * columns)
    cell = np.clip(np.rint(xy), 0, [width - 1, height - 1]).astype(int) // side
    hit = np.unique(cell[:, 1] * columns + cell[:, 0])
    return float(foreground[hit].sum() / max(foreground.sum(), 1))


def pair_score(inlier_share: float, inliers: int, covered: float) -> float:
    """Score in [0, 1] of a pair: geometric mean of inlier share, support ``n / (n + 48)`` and foreground coverage."""
    return float(np.cbrt(inlier_share * inliers / (inliers + _SUPPORT) * covered))


def _known_intrinsics(view_i: View, view_j: View) -> tuple[Array, Array] | None:
    if view_i.intrinsics is None or view_j.intrinsics is None:
        return None
    return view_i.intrinsics.astype(np.float64), view_j.intrinsics.astype(np.float64)


def _why_rejected(found: PairMatches, checked: Verification, covered: float, config: MatchConfig) -> str | None:
    """A sentence on why a pair with the verified matches `found` is dropped, or None."""
    total, count = len(checked.inliers), len(found)
    if count < config.min_matches:
        return f"{count} of {total} matches agree on one geometry, fewer than {config.min_matches}"
    if count / total < config.min_inlier_share:
        return f"{count / total:.0%} of {total} matches agree on one geometry, less than {config.min_inlier_share:.0%}"
    if count <= checked.chance_count:
        return f"{count} of {total} matches agree on one geometry, no more than chance may bring"
    if covered < config.min_coverage:
        return f"low overlap: matches reach {covered:.1%} of the object, less than {config.min_coverage:.1%}"
    confidence = float(np.median(found.confidence))
    if confidence < config.min_confidence:
        return f"low confidence: median {confidence:.3g} of the matches, below {config.min_confidence:.3g}"
    return None


def verify_matches(
    matches: PairMatches, view_i: View, view_j: View, config: MatchConfig, from_predictor: bool = False
) -> VerifiedMatches:
    """The matches that agree with one two-view geometry, the pair's score, and why the pair is dropped if it is.

    `from_predictor` says that the predictor brought the matches and has verified them itself: as long as most agree
    with one geometry, all are kept (model "predictor"). A dropped pair keeps its matches for the report and scores 0.
    """
    total = len(matches)
    least = max(config.min_matches, 1)
    if total < least:
        reason = f"{total} matches on the object, fewer than {least}"
        return VerifiedMatches(matches, 0.0, "none", reason)
    checked = verify_geometry(matches, _known_intrinsics(view_i, view_j), config.max_epipolar_px)
    trusted = from_predictor and checked.inliers.mean() >= _TRUSTED_SHARE
    model: Model = "predictor" if trusted else checked.model
    found = matches if trusted else matches.select(checked.inliers)
    covered = min(coverage(view_i.mask, found.xy_i), coverage(view_j.mask, found.xy_j))
    why = _why_rejected(found, checked, covered, config)
    if why is not None:
        return VerifiedMatches(found if len(found) else matches, 0.0, model, why)
    return VerifiedMatches(found, pair_score(len(found) / total, len(found), covered), model)
