"""Small scenes of exact geometry for the alignment tests: a union of balls, ray-cast in closed form, and the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from sparse_ga.alignment.align3d import align_views
from sparse_ga.alignment.refine2d import refine_views
from sparse_ga.config import Align3dConfig, MatchConfig, Refine2dConfig
from sparse_ga.evaluation import view_rotation_errors_deg
from sparse_ga.geometry import cameras, transforms
from sparse_ga.matching.reciprocal import match_prediction
from sparse_ga.products import (
    Alignment,
    Array,
    CanonicalView,
    PairMatches,
    PairPrediction,
    VerifiedMatches,
    View,
)
from sparse_ga.synthetic.oracle import OracleNoise, OraclePredictor
from sparse_ga.synthetic.scene import Cameras, SceneConfig, SyntheticScene
from sparse_ga.synthetic.shapes import Mesh

SIZE = (192, 144)
FOCAL = 240.0
EXACT = OracleNoise(depth=0.0, rotation_deg=0.0, translation=0.0, scale=0.0, match_px=0.0, background="masked")
MILD = OracleNoise(background="masked")
Pair = tuple[int, int]


def _balls(seed: int) -> tuple[Array, Array]:
    """Centres (B, 3) and radii (B,) of overlapping balls within about one unit."""
    rng = np.random.default_rng([seed, 5])
    centres = rng.normal(size=(14, 3)) * np.array([0.22, 0.22, 0.16])
    return np.concatenate([np.zeros((1, 3)), centres]), np.concatenate([[0.3], rng.uniform(0.08, 0.17, 14)])


def _depth(intrinsics: Array, world_from_cam: Array, size: Pair, seed: int) -> Array:
    """Exact z-depth (H, W) float32 of the balls, 0 off them."""
    centres, radii = _balls(seed)
    rays = cameras.rays(intrinsics, cameras.pixel_grid(size[1], size[0]).reshape(-1, 2))  # (P, 3), z = 1
    nearest = np.full(len(rays), np.inf)
    a = (rays**2).sum(-1)
    for centre, radius in zip(transforms.apply(transforms.inverse(world_from_cam), centres), radii):
        b, c = rays @ centre, centre @ centre - radius**2
        root = b**2 - a * c
        depth = (b - np.sqrt(np.maximum(root, 0))) / a
        nearest = np.where((root > 0) & (depth > 0), np.minimum(nearest, depth), nearest)
    return np.where(np.isfinite(nearest), nearest, 0).astype(np.float32).reshape(size[1], size[0])


def look_at(position: Array, target: Array | None = None, roll_deg: float = 0.0) -> Array:
    """Pose (4, 4) of an upright camera at `position` that looks at `target` (the origin)."""
    forward = (np.zeros(3) if target is None else target) - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, np.array([0, 0, 1.0]))
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward], -1)
    spin = transforms.exp_so3(np.array([0, 0, np.radians(roll_deg)]))
    return transforms.make(rotation @ spin, position)


def ring(count: int, distance: float = 2.2, elevation_deg: float = 25.0, arc_deg: float = 360.0) -> Array:
    """Poses (N, 4, 4) around the object, slightly uneven."""
    azimuth = np.radians(np.arange(count) * arc_deg / count + 4 * np.sin(7 * np.arange(count)))
    height = np.radians(elevation_deg + 6 * np.cos(5 * np.arange(count)))
    flat = np.stack([np.cos(azimuth), np.sin(azimuth)], -1) * np.cos(height)[:, None]
    positions = distance * np.concatenate([flat, np.sin(height)[:, None]], -1)
    return np.stack([look_at(position) for position in positions])


def build_scene(world_from_cam: Array, intrinsics: Array, size: Pair = SIZE, seed: int = 0) -> SyntheticScene:
    """Views of the balls from given cameras; images are black, the background is one colour."""
    depth = [_depth(k, pose, size, seed) for pose, k in zip(world_from_cam, intrinsics)]
    count = len(depth)
    corner = np.eye(4)[:, :3]
    return SyntheticScene(
        config=SceneConfig(views=max(count, 1), size=size, background="none"),
        names=tuple(f"view_{n:03d}.png" for n in range(count)),
        images=tuple(np.zeros((*d.shape, 3), np.uint8) for d in depth),
        masks=tuple(d > 0 for d in depth),
        depth=tuple(depth),
        background_depth=tuple(np.zeros_like(d) for d in depth),
        cameras=Cameras(world_from_cam, world_from_cam, intrinsics, (size,) * count),
        mesh=Mesh(corner, np.array([[0, 1, 2]], np.int32), np.tile([0, 0, 1.0], (4, 1))),
    )


def same_intrinsics(count: int, focal: float = FOCAL, size: Pair = SIZE) -> Array:
    """Intrinsics (N, 3, 3) with the principal point in the middle."""
    return np.tile(cameras.make_intrinsics(focal, (np.array(size) - 1) / 2), (count, 1, 1))


@dataclass(frozen=True, eq=False)
class Case:
    """Everything the two stages are given, and the truth."""

    scene: SyntheticScene
    views: tuple[View, ...]
    pairs: tuple[Pair, ...]
    predictions: tuple[PairPrediction, ...]
    matches: tuple[VerifiedMatches, ...]

    def with_views(self, views: Sequence[View]) -> Case:
        """The same predictions on other views."""
        return replace(self, views=tuple(views))

    def changed(
        self, pair: int, prediction: PairPrediction | None = None, matches: VerifiedMatches | None = None
    ) -> Case:
        """The case with one pair's prediction or matches replaced."""
        predictions, found = list(self.predictions), list(self.matches)
        predictions[pair] = prediction or predictions[pair]
        found[pair] = matches or found[pair]
        return replace(self, predictions=tuple(predictions), matches=tuple(found))

    def align(self, config: Align3dConfig | None = None) -> tuple[list[CanonicalView], Alignment]:
        """The first stage."""
        return align_views(
            self.views, self.pairs, self.predictions.__getitem__, self.matches.__getitem__, config or Align3dConfig()
        )

    def refine(self, config: Refine2dConfig | None = None, coarse: Align3dConfig | None = None) -> Alignment:
        """Both stages."""
        canonical, alignment = self.align(coarse)
        return refine_views(
            self.views, canonical, alignment, self.pairs, self.matches.__getitem__, config or Refine2dConfig()
        )


def verified(matches: PairMatches, view_i: View, view_j: View) -> VerifiedMatches:
    """Matches with the score and the rejection that the match stage would give them, by their number."""
    area = min(view_i.mask.sum(), view_j.mask.sum()) / 64
    rejected = None if len(matches) >= 12 else f"only {len(matches)} matches"
    return VerifiedMatches(matches, float(min(1, len(matches) / max(area, 1))), "predictor", rejected)


def make_case(
    scene: SyntheticScene,
    pairs: Sequence[Pair],
    noise: OracleNoise = MILD,
    predictor: Callable[..., OraclePredictor] = OraclePredictor,
    spacing: int = 6,
    seed: int = 0,
) -> Case:
    """Oracle predictions of all pairs; matches on the foreground."""
    views = scene.views()
    oracle = predictor(scene, seed, noise, "matches", spacing)
    predictions = tuple(oracle.predict(views[i], views[j]) for i, j in pairs)
    found = [match_prediction(p, views[i], views[j], MatchConfig()) for p, (i, j) in zip(predictions, pairs)]
    matches = tuple(verified(m, views[i], views[j]) for m, (i, j) in zip(found, pairs))
    return Case(scene, tuple(views), tuple(pairs), predictions, matches)


def complete(count: int) -> list[Pair]:
    """All pairs."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


@cache
def ring_case(count: int = 6, noise: OracleNoise = MILD, focal: float = FOCAL) -> Case:
    """A ring of views, complete graph; cached because many tests look at the same one."""
    scene = build_scene(ring(count, 2.2 * focal / FOCAL), same_intrinsics(count, focal))
    return make_case(scene, complete(count), noise)


def rotation_errors(alignment: Alignment, scene: SyntheticScene) -> Array:
    """Rotation error (R,) deg of every registered view after the best common rotation."""
    keep = alignment.registered
    return view_rotation_errors_deg(alignment.world_from_cam[keep], scene.world_from_cam[keep])


def assert_sound(alignment: Alignment) -> None:
    """What holds whatever the input was."""
    assert np.isfinite(alignment.world_from_cam).all()
    assert np.isfinite(alignment.intrinsics).all()
    assert (alignment.intrinsics[:, [0, 1], [0, 1]] > 0).all()
    assert (alignment.anchor_depth > 0).all()
    rotation = alignment.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, 1, 2), np.tile(np.eye(3), (len(rotation), 1, 1)), atol=1e-9
    )
    for known, pose, reason in zip(alignment.registered, alignment.world_from_cam, alignment.reasons):
        assert known == (reason == "")
        if not known:
            np.testing.assert_array_equal(pose, np.eye(4))
