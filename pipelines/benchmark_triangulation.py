"""How good and how fast the surface is: whole runs on rendered objects with known truth, and the fusion alone.

    benchmark_triangulation.py                          # 24 views of a rotating object, the oracle's predictions
    benchmark_triangulation.py --shape mug --seed 3 --motion free --predictor classical
    benchmark_triangulation.py --fault holes            # holes in two masks; also everything, eroded, fingers, cut
    benchmark_triangulation.py --known                  # true cameras given: triangulation only
    benchmark_triangulation.py --fusion                 # 100 views of 512x384, a quarter of it object: time and memory
    benchmark_triangulation.py --out FOLDER             # keeps the run, all exports and pictures of cloud and mesh
    benchmark_triangulation.py --set FOLDER             # photographs and masks of your own: exports only, no truth

Distances are in percent of the object's diameter, after a similarity from the camera centres.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pycolmap
import trimesh
from PIL import Image

import sparse_ga
from sparse_ga.config import Config, TriangulateConfig, make_config
from sparse_ga.evaluation import align_cameras, evaluate_surface, format_table
from sparse_ga.geometry import transforms
from sparse_ga.geometry.cameras import project
from sparse_ga.io.colmap import write_colmap
from sparse_ga.io.export import FORMATS, export
from sparse_ga.io.images import find_images
from sparse_ga.io.masks import find_masks
from sparse_ga.predictors.base import PairPredictor
from sparse_ga.products import Array, Reconstruction
from sparse_ga.report.showcase import Eye, draw_mesh, draw_points, eye_of
from sparse_ga.stages import ingest
from sparse_ga.synthetic.oracle import OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.triangulation.fusion import fuse, inspect_masks
from sparse_ga.triangulation.silhouettes import distance_outside, outside_votes
from sparse_ga.triangulation.views import Rig

Fault = Literal["none", "holes", "everything", "eroded", "fingers", "cut"]

_HULL_PX = 2.0
_SAMPLES = 20_000
_GAP_PX = 5
_ERODED_PX = 3
_FINGER_PX = 20


@dataclass(frozen=True)
class SurfaceBenchmarkConfig:
    """What is reconstructed, and how."""

    scene: SceneConfig
    predictor: Literal["oracle", "oracle-matches", "classical"] = "oracle"
    """oracle matches by descriptors, oracle-matches brings sparse matches of its own, which is far cheaper."""
    graph: str = "window-6"
    known: bool = False
    """Give the true cameras: nothing is left but triangulation and fusion."""
    fault: Fault = "none"
    """holes: two masks with a hole; everything: one mask of all; eroded: every mask 3 px too small; fingers: a band out
    of every mask; cut: every third view cuts a third of the object."""
    settings: str = "{}"
    """Overrides of the configuration, as JSON."""


@dataclass(frozen=True)
class SurfaceOutcome:
    """What came out; percentages, source pixels, degrees."""

    registered: int
    points: int
    accuracy_median_percent: float
    accuracy_p95_percent: float
    completeness_percent: float  # of the visible surface, within 1.5 % of a point
    outside_hull: int  # points more than 2 px outside a silhouette, the true one unless its mask is larger
    normals_away: float  # share of the normals more than 90 degrees off the true ones, percent
    mesh_watertight: bool
    mesh_volume_error_percent: float
    mesh_accuracy_median_percent: float
    silhouette_iou_least: float
    reprojection_px: float  # pycolmap's own, of the exported model
    adjustment_turns_deg: float  # pycolmap's own adjustment of the exported model
    exports_identical: bool
    seconds: float
    wrong_masks: tuple[str, ...]

    def format(self) -> str:
        """A small table."""
        return format_table([(name.replace("_", " "), _text(value)) for name, value in asdict(self).items()])


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "; ".join(value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def crop_views(scene: SyntheticScene, corners: Array, size: tuple[int, int]) -> SyntheticScene:
    """The scene with a window of `size` (W, H) cut out of every view, at corners (N, 2) px."""

    def cut(pictures: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(
            np.ascontiguousarray(picture[y : y + size[1], x : x + size[0]])
            for picture, (x, y) in zip(pictures, corners.tolist(), strict=True)
        )

    intrinsics = scene.intrinsics.copy()
    intrinsics[:, :2, 2] -= corners
    rig = replace(scene.cameras, intrinsics=intrinsics, sizes=(size,) * len(scene))
    return replace(
        scene,
        images=cut(scene.images),
        masks=cut(scene.masks),
        depth=cut(scene.depth),
        background_depth=cut(scene.background_depth),
        cameras=rig,
    )


def cut_scene(config: SceneConfig) -> SyntheticScene:
    """Views of the configured size in which every third has the object's right or left third beyond its border."""
    width, height = config.size
    margin = width // 2
    wide = make_scene(
        replace(
            config,
            size=(width + 2 * margin, height),
            focal_px=config.focal_px or 1.25 * width,
            object_share=config.object_share * width / (width + 2 * margin),
        )
    )
    corners = np.tile([margin, 0], (len(wide), 1))
    for n in range(0, len(wide), 3):
        columns = np.nonzero(wide.masks[n].any(0))[0]
        third = int(np.quantile(columns, 2 / 3 if n % 2 else 1 / 3))
        corners[n, 0] = np.clip(third - width if n % 2 else third, 0, 2 * margin)
    return crop_views(wide, corners, config.size)


def faulty_masks(masks: Sequence[Array], fault: Fault) -> list[Array]:
    """Masks (H, W) bool with the fault in one or two of them, or in all."""
    result = [mask.copy() for mask in masks]
    count = len(result)
    if fault == "everything":
        result[count // 3][:] = True
    if fault == "holes":
        for n in (count // 4, 2 * count // 3):
            rows, columns = np.nonzero(result[n])
            middle, side = (int(np.median(columns)), int(np.median(rows))), int(0.18 * np.sqrt(len(rows)))
            disc = cv2.circle(np.zeros(result[n].shape, np.uint8), middle, side, 1, -1)
            result[n] &= disc == 0
    if fault == "eroded":
        result = [distance_outside(~mask) > _ERODED_PX for mask in result]
    if fault == "fingers":
        result = [mask & ~finger(mask, 2.4 * n) for n, mask in enumerate(result)]
    return result


def finger(mask: Array, angle: float) -> Array:
    """A band (H, W) bool from near the middle of a mask to beyond its outline, in the direction `angle` (rad)."""
    rows, columns = np.nonzero(mask)
    way = np.array([np.cos(angle), np.sin(angle)])
    start = np.array([columns.mean(), rows.mean()]) + 0.1 * np.sqrt(len(rows)) * way
    end = start + sum(mask.shape) * way
    band = np.zeros(mask.shape, np.uint8)
    cv2.line(band, tuple(np.rint(start).astype(int).tolist()), tuple(np.rint(end).astype(int).tolist()), 1, _FINGER_PX)
    return band.astype(bool)


def write_scene(scene: SyntheticScene, folder: Path, fault: Fault) -> None:
    """The photographs, and the masks with their fault."""
    scene.write(folder)
    for name, mask in zip(scene.names, faulty_masks(scene.masks, fault), strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / name, compress_level=1)


def benchmark_surface(config: SurfaceBenchmarkConfig, out: Path) -> SurfaceOutcome:
    """Render, reconstruct, export into `out`, and measure what was exported."""
    scene = cut_scene(config.scene) if config.fault == "cut" else make_scene(config.scene)
    write_scene(scene, out, config.fault)
    start = time.perf_counter()
    found = sparse_ga.reconstruct(
        out / "images",
        out / "masks",
        cache=out / "cache",
        predictor=predictor_of(config, scene),
        config=settings_of(config),
        intrinsics=list(scene.intrinsics) if config.known or config.fault == "cut" else None,
        world_from_cam=list(scene.world_from_cam) if config.known else None,
    )
    seconds = time.perf_counter() - start
    identical = export_twice(found, out, sources_of(out))
    draw_sheet(found, out / "sheet.png")
    return measure(scene, found, out, seconds, identical)


def predictor_of(config: SurfaceBenchmarkConfig, scene: SyntheticScene) -> str | PairPredictor:
    """The oracle of the scene, or a predictor's name."""
    if config.predictor == "classical":
        return config.predictor
    return OraclePredictor(scene, matching="descriptors" if config.predictor == "oracle" else "matches")


def settings_of(config: SurfaceBenchmarkConfig) -> Config:
    """The defaults with the graph and the overrides."""
    return make_config(json.loads(config.settings), make_config({"pairs": {"graph": config.graph}}))


def measure(scene: SyntheticScene, found: Reconstruction, out: Path, seconds: float, identical: bool) -> SurfaceOutcome:
    """Everything in the object's frame, from the exported files where there are some."""
    known = found.registered
    truth_from_world, valid = align_cameras(found.world_from_cam[known], scene.world_from_cam[known])
    cloud = trimesh.load(out / "points.ply")
    points = transforms.apply(truth_from_world, np.asarray(cloud.vertices, float))
    sources = sources_of(out)
    distance = scene.surface_distance(points) if valid else np.full(len(points), np.inf)
    surface = evaluate_surface(points, distance, scene.surface_samples(_SAMPLES))
    volume, mesh_distance, tight = measure_mesh(scene, truth_from_world, out / "mesh.ply")
    error, turn = check_model(found, out / "model")
    overlap = [
        silhouette_iou(cover(np.asarray(cloud.vertices), found, n), scene.masks[n])
        for n in np.nonzero(known)[0].tolist()
    ]
    # what a mask wrongly calls object, it cannot bound
    bounds = [mask | ingest.load_source(source, None)[1] for mask, source in zip(scene.masks, sources, strict=True)]
    return SurfaceOutcome(
        registered=int(known.sum()),
        points=len(points),
        accuracy_median_percent=float(100 * np.median(distance)) if len(points) else np.inf,
        accuracy_p95_percent=float(100 * np.quantile(distance, 0.95)) if len(points) else np.inf,
        completeness_percent=surface.completeness_share,
        outside_hull=outside_hull(found, bounds),
        normals_away=normals_away(scene, found, truth_from_world),
        mesh_watertight=tight,
        mesh_volume_error_percent=volume,
        mesh_accuracy_median_percent=mesh_distance,
        silhouette_iou_least=min(overlap, default=0.0),
        reprojection_px=error,
        adjustment_turns_deg=turn,
        exports_identical=identical,
        seconds=seconds,
        wrong_masks=found.report.inconsistent_masks,
    )


def measure_mesh(scene: SyntheticScene, truth_from_world: Array, path: Path) -> tuple[float, float, bool]:
    """Volume error and median distance of the vertices, both in percent, and whether the mesh is watertight."""
    if not path.is_file():
        return np.inf, np.inf, False
    mesh = trimesh.load(path)
    mesh.apply_transform(truth_from_world)
    truth = trimesh.Trimesh(scene.mesh.vertices, scene.mesh.faces)
    distance = scene.surface_distance(np.asarray(mesh.vertices, float))
    return 100 * float(mesh.volume / truth.volume - 1), 100 * float(np.median(distance)), bool(mesh.is_watertight)


def normals_away(scene: SyntheticScene, found: Reconstruction, truth_from_world: Array) -> float:
    """Share of the normals, percent, that point into the object: a step along them must lead out of it."""
    if len(found.points) == 0:
        return 0.0
    points = transforms.apply(truth_from_world, found.points.astype(float))
    turned = found.normals.astype(float) @ truth_from_world[:3, :3].T
    step = 0.01 * turned / np.linalg.norm(turned, axis=1, keepdims=True)
    return float(100 * (scene.signed_distance(points + step) < scene.signed_distance(points)).mean())


def outside_hull(found: Reconstruction, masks: list[Array]) -> int:
    """Points more than 2 px outside at least one of the source masks (H, W) of registered views."""
    nobody = np.zeros(len(masks), bool)
    rig = Rig(
        found.registered,
        found.world_from_cam,
        found.intrinsics,
        nobody,
        nobody,
        np.zeros(len(masks), np.int64),
        np.ones(len(masks)),
        np.zeros(len(masks)),
    )
    return int((outside_votes(rig, masks, found.points.astype(float), _HULL_PX) > 0).sum())


def cover(points: Array, found: Reconstruction, n: int) -> Array:
    """Where points (P, 3) cover the photograph of view n: (H, W) bool, source px.

    A point is its pixel, gaps of up to 4 px between points are closed: dots that grow outwards would add a rim of
    their own, which on a thin limb is a tenth of its area.
    """
    width, height = found.source_sizes[n]
    xy, front = project(found.intrinsics[n], transforms.apply(found.cam_from_world[n], points))
    cell = np.rint(xy[front]).astype(np.int64)
    cell = cell[((cell >= 0) & (cell < [width, height])).all(1)]
    picture = np.zeros((height, width), np.uint8)
    picture[cell[:, 1], cell[:, 0]] = 1
    return cv2.morphologyEx(picture, cv2.MORPH_CLOSE, np.ones((_GAP_PX, _GAP_PX), np.uint8)).astype(bool)


def silhouette_iou(drawn: Array, mask: Array) -> float:
    """Intersection over union of two masks (H, W)."""
    return float((drawn & mask).sum() / max((drawn | mask).sum(), 1))


def check_model(found: Reconstruction, folder: Path) -> tuple[float, float]:
    """pycolmap's mean reprojection error of the exported model, and how far its adjustment turns a camera, degrees."""
    write_colmap(found, folder)
    model = pycolmap.Reconstruction(str(folder))
    if model.num_points3D() == 0:
        return np.inf, np.inf
    model.update_point_3d_errors()
    error = float(model.compute_mean_reprojection_error())
    old = _rotations(model)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    pycolmap.bundle_adjustment(model, options)
    new = _rotations(model)
    turn = transforms.rotation_angle_deg(np.swapaxes(new[0] @ old[0].T @ old, 1, 2) @ new)
    return error, float(turn.max())


def _rotations(model: pycolmap.Reconstruction) -> Array:
    """(R, 3, 3), camera from world, by image number."""
    return np.stack([model.image(n).cam_from_world().matrix()[:, :3] for n in sorted(model.images)])


def sources_of(folder: Path) -> list[ingest.Source]:
    """FOLDER/images with FOLDER/masks."""
    paths = find_images(folder / "images")
    masks = find_masks(paths, folder / "masks")
    return [ingest.make_source(path, mask, None) for path, mask in zip(paths, masks, strict=True)]


def export_twice(found: Reconstruction, folder: Path, sources: Sequence[ingest.Source]) -> bool:
    """All formats into `folder`, and whether a second export writes the same bytes."""

    def load_source(n: int) -> tuple[Array, Array]:
        return ingest.load_source(sources[n], None)

    first = export(found, folder, FORMATS, load_source)
    second = export(found, folder / "again", FORMATS, load_source)
    return all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def draw_sheet(found: Reconstruction, path: Path, side: int = 360) -> None:
    """The cloud in its colours and by its normals, and the mesh shaded, from four sides."""
    shade = (127.5 + 127.5 * found.normals).astype(np.uint8)
    rows = []
    for turn in (0.0, 90.0, 180.0, 270.0):
        eye = eye_of(found, (side, side), turn)
        panels = [draw_points(found.points, colors, eye) for colors in (found.colors, shade)]
        if len(found.mesh.faces):
            panels += [draw_mesh(found, eye), draw_mesh(shaded(found, eye), eye)]
        rows.append(np.concatenate(panels, 1))
    Image.fromarray(np.concatenate(rows)).save(path)


def shaded(found: Reconstruction, eye: Eye) -> Reconstruction:
    """With a mesh in grey, brighter where it faces the eye."""
    mesh = found.mesh
    normal = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals
    facing = np.abs(normal @ eye.world_from_cam[:3, 2])
    grey = (40 + 200 * facing).clip(0, 255).astype(np.uint8)
    return replace(found, mesh=replace(mesh, colors=np.repeat(grey[:, None], 3, 1)))


@dataclass(frozen=True)
class FusionOutcome:
    """What the fusion of many depth maps costs."""

    views: int
    foreground_percent: float
    points: int
    accuracy_median_percent: float
    mask_check_seconds: float
    fusion_seconds: float
    cpu_seconds: float  # of all threads together, both parts
    peak_gb: float  # of the whole process, the depth maps included

    def format(self) -> str:
        """A small table."""
        return format_table([(name.replace("_", " "), _text(value)) for name, value in asdict(self).items()])


def depth_views(scene: SyntheticScene, noise: float, seed: int) -> tuple[Rig, list[DepthView]]:
    """The scene's cameras, and its depth maps with a smooth relative error of deviation `noise`."""
    count = len(scene)
    rng = np.random.default_rng([seed, 5])
    nobody = np.zeros(count, bool)
    sensor, scale = np.zeros(count, np.int64), np.ones(count)
    rig = Rig(
        np.ones(count, bool), scene.world_from_cam, scene.intrinsics, nobody, nobody, sensor, scale, np.zeros(count)
    )
    views = []
    for n, (depth, mask) in enumerate(zip(scene.depth, scene.masks, strict=True)):
        height, width = depth.shape
        field = cv2.resize(rng.normal(size=(6, 8)), (width, height), interpolation=cv2.INTER_CUBIC)
        wrong = np.where(mask, depth * (1 + noise * field), 0).astype(np.float32)
        views.append(DepthView(n, wrong, mask.astype(np.float32), mask, scene.intrinsics[n], scene.world_from_cam[n]))
    return rig, views


def benchmark_fusion(config: SceneConfig, noise: float = 0.004) -> FusionOutcome:
    """Mask check and fusion of the depth maps of a scene, in this process."""
    scene = make_scene(config)
    rig, views = depth_views(scene, noise, config.seed)
    options = TriangulateConfig()
    cpu, start = time.process_time(), time.perf_counter()
    check = inspect_masks(views, rig, scene.names, options)
    middle = time.perf_counter()
    fusion = fuse(views, rig, check, options)
    end = time.perf_counter()
    return FusionOutcome(
        views=len(views),
        foreground_percent=float(100 * np.mean([mask.mean() for mask in scene.masks])),
        points=len(fusion.cloud),
        accuracy_median_percent=float(100 * np.median(scene.surface_distance(fusion.cloud.points))),
        mask_check_seconds=middle - start,
        fusion_seconds=end - middle,
        cpu_seconds=time.process_time() - cpu,
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    )


@dataclass(frozen=True)
class SetOutcome:
    """What a run on photographs without truth exported."""

    registered: int
    points: int
    mesh_watertight: bool
    silhouette_iou_least: float
    silhouette_iou_median: float
    reprojection_px: float
    adjustment_turns_deg: float
    exports_identical: bool
    wrong_masks: tuple[str, ...]

    def format(self) -> str:
        """A small table."""
        return format_table([(name.replace("_", " "), _text(value)) for name, value in asdict(self).items()])


def benchmark_set(folder: Path, out: Path, settings: Config) -> SetOutcome:
    """Reconstruct FOLDER/images with FOLDER/masks by the classical predictor, and look at what is exported."""
    found = sparse_ga.reconstruct(folder / "images", folder / "masks", cache=out / "cache", config=settings)
    sources = sources_of(folder)
    identical = export_twice(found, out, sources)
    draw_sheet(found, out / "sheet.png")
    error, turn = check_model(found, out / "model")
    points = np.asarray(trimesh.load(out / "points.ply").vertices, float)
    views = [int(n) for n in np.nonzero(found.registered)[0]]
    masks = {n: ingest.load_source(sources[n], None)[1] for n in views}
    overlap = [silhouette_iou(cover(points, found, n), masks[n]) for n in views]
    draw_overlays(found, points, sources, out / "overlays.png")
    mesh = trimesh.Trimesh(found.mesh.vertices, found.mesh.faces)
    return SetOutcome(
        registered=len(views),
        points=len(points),
        mesh_watertight=bool(mesh.is_watertight),
        silhouette_iou_least=min(overlap, default=0.0),
        silhouette_iou_median=float(np.median(overlap)) if overlap else 0.0,
        reprojection_px=error,
        adjustment_turns_deg=turn,
        exports_identical=identical,
        wrong_masks=found.report.inconsistent_masks,
    )


def draw_overlays(found: Reconstruction, points: Array, sources: Sequence[ingest.Source], path: Path) -> None:
    """Four photographs, and the cloud drawn over each from its own camera."""
    known = np.nonzero(found.registered)[0]
    rows = []
    for n in known[:: max(len(known) // 4, 1)][:4]:
        image, _ = ingest.load_source(sources[int(n)], None)
        width, height = found.source_sizes[n]
        eye = Eye(found.world_from_cam[n], found.intrinsics[n], (int(width), int(height)))
        rows.append(np.concatenate([image, draw_points(points, found.colors, eye)], 1))
    smallest = min((row.shape for row in rows), default=(1, 1))
    fitted = [cv2.resize(row, (smallest[1], smallest[0]), interpolation=cv2.INTER_AREA) for row in rows]
    if fitted:
        Image.fromarray(np.concatenate(fitted)).save(path)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="blob", help="blob, box, elongated, ring, mug or figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--views", type=int, help="default: 24, with --fusion 100")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), metavar=("W", "H"))
    parser.add_argument("--motion", choices=("rotating", "orbit", "free"), default="rotating")
    parser.add_argument("--elevations", type=float, nargs="+", default=(25.0, -10.0), metavar="DEG")
    parser.add_argument("--share", type=float, default=0.25, help="share of the image that is object")
    parser.add_argument("--predictor", choices=("oracle", "oracle-matches", "classical"), default="oracle")
    parser.add_argument("--graph", default="window-6", help="which pairs; see `sparse-ga config`")
    parser.add_argument("--known", action="store_true", help="give the true cameras")
    parser.add_argument("--fault", choices=("none", "holes", "everything", "eroded", "fingers", "cut"), default="none")
    parser.add_argument("--settings", default="{}", metavar="JSON", help="overrides of the configuration")
    parser.add_argument("--fusion", action="store_true", help="time and memory of the fusion alone")
    parser.add_argument("--set", type=Path, metavar="FOLDER", help="FOLDER/images and FOLDER/masks, without truth")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep run, exports and pictures there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(arguments)


def scene_of(args: argparse.Namespace) -> SceneConfig:
    """The scene that the arguments describe."""
    return SceneConfig(
        shape=args.shape,
        seed=args.seed,
        views=args.views or (100 if args.fusion else 24),
        size=tuple(args.size),
        motion=args.motion,
        elevations_deg=tuple(args.elevations),
        object_share=args.share,
    )


def run(args: argparse.Namespace, out: Path) -> SurfaceOutcome | FusionOutcome | SetOutcome:
    """What was asked for."""
    if args.fusion:
        return benchmark_fusion(scene_of(args))
    if args.set is not None:
        return benchmark_set(args.set, out, make_config(json.loads(args.settings)))
    config = SurfaceBenchmarkConfig(scene_of(args), args.predictor, args.graph, args.known, args.fault, args.settings)
    return benchmark_surface(config, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was measured."""
    args = parse_arguments(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        outcome = run(args, args.out or Path(scratch))
    print(json.dumps(asdict(outcome), indent=2) if args.json else outcome.format())
    return 0


if __name__ == "__main__":
    sys.exit(main())
