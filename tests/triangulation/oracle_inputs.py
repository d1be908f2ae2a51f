"""Inputs of the triangulation made from exact synthetic scenes: true cameras, canonical views and matches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.geometry import transforms
from sparse_ga.products import Alignment, Array, CanonicalView, PairMatches, VerifiedMatches, View
from sparse_ga.synthetic.oracle import OracleNoise, OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything `triangulate_views` takes."""

    scene: SyntheticScene
    views: list[View]
    canonical: list[CanonicalView]
    alignment: Alignment
    pairs: list[tuple[int, int]]
    matches: list[VerifiedMatches]

    def load_matches(self, number: int) -> VerifiedMatches:
        return self.matches[number]

    def load_source(self, n: int) -> tuple[Array, Array]:
        return self.scene.images[n], self.scene.masks[n]


def block_anchors(mask: Array, block: int = 8) -> tuple[Array, Array]:
    """One anchor a block: the foreground pixel nearest to the block's centre; xy (A, 2) and index (H, W)."""
    height, width = mask.shape
    of_pixel = np.full(mask.shape, -1, np.int32)
    anchors = []
    for y in range(0, height, block):
        for x in range(0, width, block):
            rows, cols = np.nonzero(mask[y : y + block, x : x + block])
            if len(rows) == 0:
                continue
            best = np.argmin((rows - block / 2) ** 2 + (cols - block / 2) ** 2)
            of_pixel[y + rows, x + cols] = len(anchors)
            anchors.append((x + cols[best], y + rows[best]))
    return np.array(anchors, np.int32).reshape(-1, 2), of_pixel


def canonical_view(name: str, depth: Array, confidence: Array, focal: float) -> CanonicalView:
    """A canonical view of a depth map (H, W), 0 outside the mask."""
    anchor_xy, of_pixel = block_anchors(depth > 0)
    return CanonicalView(name, depth.astype(np.float32), confidence.astype(np.float32), focal, anchor_xy, of_pixel)


def oracle_inputs(config: SceneConfig, noise: OracleNoise, pose_deg: float = 0.0, known: bool = False) -> Inputs:
    """Canonical views as means of the oracle's noisy depths over all pairs, matches of the oracle, true cameras.

    `pose_deg` turns every camera but the first about the object by a random angle of that deviation; `known` gives the
    views their intrinsics.
    """
    scene = make_scene(config)
    views = scene.views(known_intrinsics=known)
    oracle = OraclePredictor(scene, noise=noise, matching="matches")
    count = len(views)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    log_depth = [np.zeros(view.mask.shape) for view in views]
    weight = [np.zeros(view.mask.shape) for view in views]
    matches = []
    for i, j in pairs:
        prediction = oracle.predict(views[i], views[j])
        for n, own in ((i, prediction.i_in_i), (j, prediction.j_in_j)):
            z = np.log(own.points[..., 2])
            middle = np.median(z[views[n].mask] - np.log(scene.depth[n][views[n].mask]))
            log_depth[n] += own.confidence * (z - middle)
            weight[n] += own.confidence
        assert prediction.matches is not None
        matches.append(foreground(prediction.matches, views[i], views[j]))
    depths = [np.where(v.mask, np.exp(d / w), 0.0) for v, d, w in zip(views, log_depth, weight, strict=True)]
    canonical = [
        canonical_view(v.name, d, np.where(v.mask, w / count, 0), k[0, 0])
        for v, d, w, k in zip(views, depths, weight, scene.intrinsics, strict=True)
    ]
    return Inputs(scene, views, canonical, true_alignment(scene, canonical, pose_deg), pairs, matches)


def foreground(matches: PairMatches, view_i: View, view_j: View) -> VerifiedMatches:
    """Only the matches whose both ends lie on the object."""
    keep = on_mask(matches.xy_i, view_i.mask) & on_mask(matches.xy_j, view_j.mask)
    return VerifiedMatches(matches.select(keep), 1.0, "predictor")


def on_mask(xy: Array, mask: Array) -> Array:
    """Whether the nearest pixel is in the image and on the mask, (M,)."""
    cell = np.rint(xy).astype(int)
    inside = (cell >= 0).all(1) & (cell[:, 0] < mask.shape[1]) & (cell[:, 1] < mask.shape[0])
    return inside & mask[np.where(inside, cell[:, 1], 0), np.where(inside, cell[:, 0], 0)]


def true_alignment(scene: SyntheticScene, canonical: list[CanonicalView], pose_deg: float = 0.0) -> Alignment:
    """The scene's cameras, and the canonical anchor depths as they are."""
    rng = np.random.default_rng(7)
    poses = scene.world_from_cam.copy()
    if pose_deg:
        turn = rng.normal(size=(len(poses), 3)) * np.radians(pose_deg)
        turn[0] = 0
        poses = transforms.make(transforms.exp_so3(turn), np.zeros((len(poses), 3))) @ poses
    sizes = [len(view.anchor_xy) for view in canonical]
    return Alignment(
        names=scene.names,
        registered=np.ones(len(scene), bool),
        world_from_cam=poses,
        intrinsics=scene.intrinsics,
        anchor_depth=np.concatenate([view.anchor_depth for view in canonical]).astype(np.float64),
        anchor_start=np.cumsum([0, *sizes]).astype(np.int64),
        reasons=("",) * len(scene),
    )
