"""How accurate and how fast the alignment is, on predictions with known truth.

    benchmark_alignment.py                     # 8 views, 28 pairs, 512x384: second-order solver against Adam
    benchmark_alignment.py --views 24 --graph window-3
    benchmark_alignment.py --views 200 --graph window-10 --no-adam      # 2,000 pairs: time and memory

Both solvers start from the same coarse alignment and see the same matches, in one process. Predictions come from the
oracle (`sparse_ga.synthetic.oracle`): exact geometry with a network's errors. Making them is not part of the times.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from sparse_ga._open3d import open3d
from sparse_ga.alignment.align3d import align_views
from sparse_ga.alignment.refine2d import refine_views
from sparse_ga.config import Align3dConfig, MatchConfig, Refine2dConfig
from sparse_ga.evaluation import CameraSet, evaluate_cameras
from sparse_ga.geometry import cameras
from sparse_ga.matching.reciprocal import match_prediction
from sparse_ga.pairs import build_pairs
from sparse_ga.products import Alignment, Array, PairPrediction, VerifiedMatches
from sparse_ga.synthetic.oracle import OracleNoise, OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, place_cameras
from sparse_ga.synthetic.shapes import Mesh, make_shape


@dataclass(frozen=True)
class AlignmentBenchmarkConfig:
    """What is aligned."""

    scene: SceneConfig
    graph: str = "complete"
    noise: OracleNoise = field(default_factory=OracleNoise)
    seed: int = 0
    adam: bool = True
    """Run the first-order schedule too."""


@dataclass(frozen=True)
class Outcome:
    """Accuracy and time of one stage."""

    stage: str
    seconds: float
    registered: int
    rotation_median_deg: float
    auc30: float
    rra5: float
    rta5: float
    focal_error_percent: float
    status: str


class Predictions:
    """Predictions and matches of all pairs, made when asked for; `seconds` is the time that took."""

    def __init__(self, scene: SyntheticScene, pairs: Sequence[tuple[int, int]], noise: OracleNoise, seed: int) -> None:
        self.views, self.pairs = scene.views(), pairs
        self.oracle = OraclePredictor(scene, seed, noise, "matches")
        self.seconds = 0.0
        self._matches: dict[int, VerifiedMatches] = {}

    def prediction(self, pair: int) -> PairPrediction:
        """The prediction of one pair, made anew every time: nothing but the matches is kept."""
        start = time.perf_counter()
        i, j = self.pairs[pair]
        prediction = self.oracle.predict(self.views[i], self.views[j])
        self.seconds += time.perf_counter() - start
        return prediction

    def matches(self, pair: int) -> VerifiedMatches:
        """Foreground matches of one pair; the score is the share of the smaller foreground that they cover."""
        if pair not in self._matches:
            prediction = self.prediction(pair)
            start = time.perf_counter()
            i, j = self.pairs[pair]
            found = match_prediction(prediction, self.views[i], self.views[j], MatchConfig())
            area = min(self.views[i].mask.sum(), self.views[j].mask.sum()) / self.oracle.match_spacing**2
            rejected = None if len(found) >= MatchConfig().min_matches else f"{len(found)} matches"
            score = float(min(1.0, len(found) / max(area, 1.0)))
            self._matches[pair] = VerifiedMatches(found, score, "predictor", rejected)
            self.seconds += time.perf_counter() - start
        return self._matches[pair]


def depth_scene(config: SceneConfig) -> SyntheticScene:
    """The scene of `config` with depths and masks but black images: all that the oracle's matches need."""
    mesh = make_shape(config.shape, config.seed)
    rig = place_cameras(config, mesh)
    depth = [_depth(mesh, rig.world_from_cam[n], rig.intrinsics[n], rig.sizes[n]) for n in range(config.views)]
    return SyntheticScene(
        config=replace(config, background="none"),
        names=tuple(f"view_{n:03d}.png" for n in range(config.views)),
        images=tuple(np.zeros((*d.shape, 3), np.uint8) for d in depth),
        masks=tuple(d > 0 for d in depth),
        depth=tuple(depth),
        background_depth=tuple(np.zeros_like(d) for d in depth),
        cameras=rig,
        mesh=mesh,
    )


def _depth(mesh: Mesh, world_from_cam: Array, intrinsics: Array, size: tuple[int, int]) -> Array:
    """Exact z-depth (H, W) float32 of a mesh at the pixel centres, 0 off the object."""
    o3d = open3d()
    caster = o3d.t.geometry.RaycastingScene(nthreads=2)
    vertices = o3d.core.Tensor(np.ascontiguousarray(mesh.vertices, np.float32))
    caster.add_triangles(vertices, o3d.core.Tensor(np.ascontiguousarray(mesh.faces, np.uint32)))
    width, height = size
    rays = cameras.rays(intrinsics, cameras.pixel_grid(height, width).reshape(-1, 2)) @ world_from_cam[:3, :3].T
    origin = np.broadcast_to(world_from_cam[:3, 3], rays.shape)
    query = o3d.core.Tensor(np.concatenate([origin, rays], 1).astype(np.float32))
    hit = caster.cast_rays(query)["t_hit"].numpy().reshape(height, width)
    return np.where(np.isfinite(hit), hit, 0.0).astype(np.float32)


def benchmark(config: AlignmentBenchmarkConfig) -> list[Outcome]:
    """Coarse alignment, then both solvers from it on the same matches."""
    scene = depth_scene(config.scene)
    pairs = build_pairs(len(scene), config.graph)
    given = Predictions(scene, pairs, config.noise, config.seed)
    for pair in range(len(pairs)):
        given.matches(pair)
    seconds, (canonical, coarse) = _timed(
        given, lambda: align_views(given.views, pairs, given.prediction, given.matches, Align3dConfig())
    )
    outcomes = [_outcome("align3d", seconds, coarse, scene)]
    for solver in ("lm", "adam") if config.adam else ("lm",):
        settings = replace(Refine2dConfig(), solver=solver)
        seconds, refined = _timed(
            given, lambda s=settings: refine_views(given.views, canonical, coarse, pairs, given.matches, s)
        )
        outcomes.append(_outcome(f"refine2d {solver}", seconds, refined, scene))
    return outcomes


def _timed(given: Predictions, work: Callable) -> tuple:
    """Seconds that `work()` took without making predictions, and what it returned."""
    before, start = given.seconds, time.perf_counter()
    result = work()
    return time.perf_counter() - start - (given.seconds - before), result


def _outcome(stage: str, seconds: float, alignment: Alignment, scene: SyntheticScene) -> Outcome:
    truth = CameraSet.known(scene.names, scene.world_from_cam, scene.intrinsics)
    estimate = CameraSet(alignment.names, alignment.registered, alignment.world_from_cam, alignment.intrinsics)
    found = evaluate_cameras(estimate, truth)
    nan = float("nan")
    return Outcome(
        stage,
        seconds,
        found.registered,
        nan if found.rotation_median_deg is None else found.rotation_median_deg,
        found.auc30,
        found.rra5,
        found.rta5,
        nan if found.focal_error_percent is None else found.focal_error_percent,
        alignment.status,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--graph", default="complete", help="complete, window-K, ...")
    parser.add_argument("--shape", default="blob")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), metavar=("W", "H"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong-share", type=float, default=0.0, help="share of wrong pairs")
    parser.add_argument("--no-adam", action="store_true", help="leave the first-order schedule out")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    told = parser.parse_args(arguments)
    scene = SceneConfig(shape=told.shape, seed=told.seed, views=told.views, size=tuple(told.size), background="none")
    noise = OracleNoise(wrong_share=told.wrong_share)
    config = AlignmentBenchmarkConfig(scene, told.graph, noise, told.seed, not told.no_adam)
    outcomes = benchmark(config)
    if told.json:
        print("\n".join(json.dumps(asdict(outcome)) for outcome in outcomes))
        return 0
    print(f"{told.views} views, {len(build_pairs(told.views, told.graph))} pairs, {told.size[0]}x{told.size[1]}")
    for o in outcomes:
        print(
            f"{o.stage:14s} {o.seconds:8.2f} s  {o.registered} views  rotation {o.rotation_median_deg:.4f} deg  "
            f"AUC@30 {o.auc30:.2f}  RRA@5 {o.rra5:.1f}  RTA@5 {o.rta5:.1f}  "
            f"focal {o.focal_error_percent:.3f} %  {o.status}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"peak memory of the process, predictions included: {peak:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
