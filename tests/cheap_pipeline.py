"""A predictor and geometry stages that cost nothing but depend on every input: for tests of what is computed when."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sparse_ga.alignment.align3d
import sparse_ga.alignment.refine2d
import sparse_ga.matching
import sparse_ga.triangulation
from sparse_ga.api import make_job
from sparse_ga.config import Config, make_config
from sparse_ga.pipeline import Pipeline, RunResult
from sparse_ga.products import (
    Alignment,
    CanonicalView,
    DepthMaps,
    MaskStack,
    PairMatches,
    PairPrediction,
    Pointmap,
    Reconstruction,
    Tracks,
    VerifiedMatches,
    View,
)
from sparse_ga.store import Store


def number(*parts: object) -> float:
    """A number in [0, 1) that depends on everything given."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return int.from_bytes(state.digest()[:6], "big") / 2**48


class CheapPredictor:
    """Point maps and matches made from a hash of both views."""

    fingerprint = "cheap 1"

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        self.calls.append((view_i.name, view_j.name))
        seed = number(view_i.image, view_i.mask, view_j.image, view_j.mask)

        def flat(view: View) -> Pointmap:
            points = np.full((*view.mask.shape, 3), 1 + seed, np.float32)
            return Pointmap(points, np.ones(view.mask.shape, np.float32))

        xy = np.argwhere(view_i.mask)[:4, ::-1].astype(np.float32)
        matches = PairMatches(xy, xy + np.float32(seed), np.ones(len(xy), np.float32))
        return PairPrediction(flat(view_i), flat(view_j), flat(view_j), flat(view_i), matches)


class DescribingPredictor(CheapPredictor):
    """The same without matches, with descriptors."""

    fingerprint = "describing 1"

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        bare = super().predict(view_i, view_j)

        def described(pointmap: Pointmap) -> Pointmap:
            descriptors = np.repeat(pointmap.points, 2, -1)
            return Pointmap(pointmap.points, pointmap.confidence, descriptors, pointmap.confidence)

        maps = (bare.i_in_i, bare.j_in_i, bare.j_in_j, bare.i_in_j)
        return PairPrediction(*map(described, maps))


class EncodingPredictor(CheapPredictor):
    """The same with an encoder, and a focal length that it finds."""

    fingerprint = "encoding 1"

    def __init__(self, sufficient: bool = True) -> None:
        super().__init__()
        self.encoded: list[str] = []
        self.votes = 0
        self.sufficient = sufficient

    def encode(self, view: View) -> dict[str, np.ndarray]:
        self.encoded.append(view.name)
        return {"mean": view.image.mean((0, 1))}

    def predict_from_features(self, view_i, view_j, features_i, features_j) -> PairPrediction:
        assert view_i.intrinsics is not None
        np.testing.assert_array_equal(features_i["mean"], view_i.image.mean((0, 1)))
        np.testing.assert_array_equal(features_j["mean"], view_j.image.mean((0, 1)))
        return self.predict(view_i, view_j)

    def estimate_focal(self, views, pairs, features, focal_bounds_px) -> tuple[float, bool]:
        self.votes += 1
        assert all(0 <= n < len(views) for pair in pairs for n in pair)
        assert len(features(0)["mean"]) == 3
        return 2.0 * max(views[0].source_size), self.sufficient


class BatchingPredictor(DescribingPredictor):
    """The same, four pairs at a time."""

    fingerprint = "batching 1"

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode(self, view: View) -> dict[str, np.ndarray]:
        return {"mean": view.image.mean((0, 1))}

    def predict_from_features(self, view_i, view_j, features_i, features_j) -> PairPrediction:
        return self.predict(view_i, view_j)

    def pairs_at_once(self, views_i, views_j) -> int:
        assert len(views_i) == len(views_j) > 0
        return 4

    def predict_batch(self, views_i, views_j, features_i, features_j) -> list[PairPrediction]:
        self.batches.append(len(views_i))
        np.testing.assert_array_equal(features_j[-1]["mean"], views_j[-1].image.mean((0, 1)))
        return [self.predict(*views) for views in zip(views_i, views_j, strict=True)]


def match_prediction(prediction, view_i, view_j, config) -> PairMatches:
    if prediction.matches is not None:
        return prediction.matches
    value = np.float32(number(prediction.i_in_i.descriptors, prediction.j_in_i.descriptors, config))
    return PairMatches(np.full((1, 2), value), np.full((1, 2), value), np.ones(1, np.float32))


def verify_matches(matches, view_i, view_j, config, from_predictor=False) -> VerifiedMatches:
    return VerifiedMatches(matches, number(matches.xy_j, config), "none")


def canonical_view(view: View, value: float) -> CanonicalView:
    depth = np.where(view.mask, np.float32(1 + value), np.float32(0))
    anchors = np.where(view.mask, 0, -1).astype(np.int32)
    xy = np.argwhere(view.mask)[:1, ::-1].astype(np.int32)
    return CanonicalView(view.name, depth, depth, 100.0, np.ascontiguousarray(xy), anchors)


def align_views(views, pairs, load_prediction, load_matches, config):
    seen = [number(load_prediction(k).i_in_i.points) for k in range(len(pairs))]
    seen += [number(load_matches(k).matches.xy_j, load_matches(k).score) for k in range(len(pairs))]
    poses = np.tile(np.eye(4), (len(views), 1, 1))
    poses[:, 0, 3] = number(seen, config)
    intrinsics = np.tile(np.diag([300.0, 300.0, 1.0]), (len(views), 1, 1))
    names = tuple(view.name for view in views)
    registered = np.array([view.mask.any() for view in views])
    reasons = tuple("" if done else "empty mask" for done in registered)
    start = np.arange(len(views) + 1)
    alignment = Alignment(names, registered, poses, intrinsics, np.ones(len(views)), start, reasons)
    return [canonical_view(view, number(seen)) for view in views], alignment


def refine_views(views, canonical, alignment, pairs, load_matches, config) -> Alignment:
    seen = [number(load_matches(k).matches.xy_j) for k in range(len(pairs))]
    poses = alignment.world_from_cam.copy()
    poses[:, 1, 3] = number(seen, config, poses, canonical[0].depth)
    values = {name: getattr(alignment, name) for name in alignment.__dataclass_fields__}
    return Alignment(**{**values, "world_from_cam": poses})


def triangulate_views(views, canonical, alignment, matched, load_source, config) -> Reconstruction:
    seen = [number(matched.load(k).matches.xy_j) for k in range(len(matched.pairs))]
    colors = [number(*load_source(n)) for n in range(len(views))]
    count = len(views)
    points = np.full((5, 3), number(seen, colors, config, alignment.world_from_cam), np.float32)
    maps = [view.depth for view in canonical]
    return (
        Reconstruction(
            names=alignment.names,
            registered=alignment.registered,
            reasons=alignment.reasons,
            world_from_cam=alignment.world_from_cam,
            intrinsics=alignment.intrinsics,
            source_sizes=np.array([view.source_size for view in views]),
            working_from_source=np.stack([view.working_from_source for view in views]),
            points=points,
            colors=np.zeros((5, 3), np.uint8),
            normals=np.zeros((5, 3), np.float32),
            point_confidence=np.zeros(5, np.float32),
            tracks=Tracks.empty(),
            track_points=np.zeros((0, 3)),
            track_colors=np.zeros((0, 3), np.uint8),
            track_errors=np.zeros(0),
            depthmaps=DepthMaps.pack(maps, maps),
            masks=MaskStack.pack([view.mask for view in views]),
        )
        if count
        else None
    )


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the cheap geometry in place of the real one."""
    patch.setattr(sparse_ga.matching, "match_prediction", match_prediction, raising=False)
    patch.setattr(sparse_ga.matching, "verify_matches", verify_matches, raising=False)
    patch.setattr(sparse_ga.alignment.align3d, "align_views", align_views)
    patch.setattr(sparse_ga.alignment.refine2d, "refine_views", refine_views)
    patch.setattr(sparse_ga.triangulation, "triangulate_views", triangulate_views)


def write_set(folder: Path, count: int = 5, size: tuple[int, int] = (48, 32)) -> Path:
    """`count` photographs of noise with masks of a box: images/ and masks/ in `folder`."""
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        image = np.random.default_rng(n).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"v{n}.png")
        write_mask(folder, n, size)
    return folder


def write_mask(folder: Path, n: int, size: tuple[int, int] = (48, 32), shift: int = 0, value: int = 255) -> None:
    """Mask of photograph n, moved by `shift` pixels."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[8:24, 8 + shift : 30 + shift] = value
    Image.fromarray(mask).save(folder / "masks" / f"v{n}.png")


def run(
    folder: Path,
    predictor: object,
    config: dict | Config | None = None,
    first: str | None = None,
    last: str | None = None,
    cache: Path | None = None,
) -> RunResult:
    """Run the pipeline on a set that `write_set` wrote."""
    settings = config if isinstance(config, Config) else make_config(config or {})
    job = make_job(folder / "images", folder / "masks", predictor, settings)  # type: ignore[arg-type]
    return Pipeline(job, Store(cache or folder / "cache")).run(first, last)


def computed(result: RunResult) -> dict[str, int]:
    """How many artifacts each stage computed, those with none left out."""
    return {name: count.computed for name, count in result.counts.items() if count.computed}
