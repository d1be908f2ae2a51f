"""The demonstration: a rendered object that turns before a static background, reconstructed, against the truth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sparse_ga.api import reconstruct
from sparse_ga.evaluation import (
    CameraMetrics,
    CameraSet,
    SurfaceMetrics,
    align_cameras,
    evaluate_cameras,
    evaluate_surface,
    format_table,
)
from sparse_ga.geometry import cameras, transforms
from sparse_ga.products import Array, Reconstruction
from sparse_ga.progress import Reporter
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene

DEMO_SCENE = SceneConfig(shape="mug", views=16, seed=4, focal_px=420.0, elevations_deg=(28.0,))  # a telephone's lens
DEMO_SETTINGS = {"forward": {"descriptors": "off"}}  # one attempt: the mug has texture enough
_MASK_MARGIN = 0.01  # of the image's long side: how far a point may miss the true mask before it is off the object


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demonstration reconstructed, and how far it is from the truth."""

    reconstruction: Reconstruction
    cameras: CameraMetrics
    surface: SurfaceMetrics
    off_object: int  # points that project outside the object in some registered view
    render_s: float
    reconstruct_s: float

    def format(self) -> str:
        """A small table."""
        metrics, surface = self.cameras, self.surface
        focal = metrics.focal_error_percent
        return format_table(
            [
                ("views registered", f"{metrics.registered} of {metrics.views}"),
                ("rotations within 5 degrees (RRA@5)", f"{metrics.rra5:.1f} %"),
                ("cameras overall (AUC@30)", f"{metrics.auc30:.1f}"),
                ("focal length, which was unknown", "not determined" if focal is None else f"{focal:.2f} % off"),
                ("points", f"{surface.points:,}"),
                (
                    f"points within {surface.accuracy_tolerance:g} % of the object's diameter of its true surface",
                    f"{surface.accuracy_share:.1f} %",
                ),
                (
                    f"true surface within {surface.completeness_tolerance:g} % of a point",
                    f"{surface.completeness_share:.1f} %",
                ),
                ("points on the background", f"{self.off_object}"),
                ("rendering", f"{self.render_s:.1f} s"),
                ("reconstruction", f"{self.reconstruct_s:.1f} s"),
            ]
        )


def run_demo(
    out: str | Path, config: SceneConfig = DEMO_SCENE, predictor: str = "classical", reporter: Reporter | None = None
) -> DemoResult:
    """Render a scene into `out`, reconstruct it from images and masks alone, compare with the truth.

    Writes ``images/``, ``masks/``, ``gt.json``, ``cache/`` and the saved reconstruction.
    """
    out = Path(out)
    start = time.monotonic()
    scene = make_scene(config)
    scene.write(out)
    rendered = time.monotonic()
    reconstruction = reconstruct(
        out / "images",
        out / "masks",
        cache=out / "cache",
        predictor=predictor,
        config=DEMO_SETTINGS,
        reporter=reporter,
    )
    done = time.monotonic()
    reconstruction.save(out)
    return DemoResult(
        reconstruction=reconstruction,
        cameras=evaluate_cameras(camera_set(reconstruction), true_cameras(scene)),
        surface=compare_surface(reconstruction, scene),
        off_object=count_off_object(reconstruction, scene),
        render_s=rendered - start,
        reconstruct_s=done - rendered,
    )


def camera_set(reconstruction: Reconstruction) -> CameraSet:
    """The cameras of a reconstruction, for evaluation."""
    return CameraSet(
        reconstruction.names, reconstruction.registered, reconstruction.world_from_cam, reconstruction.intrinsics
    )


def true_cameras(scene: SyntheticScene) -> CameraSet:
    """The cameras of a scene, for evaluation."""
    return CameraSet.known(scene.names, scene.world_from_cam, scene.intrinsics)


def compare_surface(reconstruction: Reconstruction, scene: SyntheticScene) -> SurfaceMetrics:
    """Points against the true surface, after the similarity that takes the cameras to the true ones.

    Without at least three registered views not on a line there is no such similarity, and no point counts.
    """
    estimate = camera_set(reconstruction).in_order(scene.names)
    known = estimate.registered
    truth_from_estimate, valid = align_cameras(estimate.world_from_cam[known], scene.world_from_cam[known])
    points = reconstruction.points if valid else reconstruction.points[:0]
    aligned = transforms.apply(truth_from_estimate, points.astype(float))
    return evaluate_surface(aligned, scene.surface_distance(aligned), scene.surface_samples(4000))


def count_off_object(reconstruction: Reconstruction, scene: SyntheticScene) -> int:
    """Number of points that project clearly outside the true mask of some registered view.

    Points project through the reconstruction's own cameras; the masks are grown by a hundredth of the image.
    """
    off = np.zeros(len(reconstruction.points), bool)
    points = reconstruction.points.astype(float)
    row = {name: n for n, name in enumerate(scene.names)}
    for n in np.flatnonzero(reconstruction.registered):
        in_cam = transforms.apply(transforms.inverse(reconstruction.world_from_cam[n]), points)
        xy, front = cameras.project(reconstruction.intrinsics[n], in_cam)
        off |= front & _misses(scene.masks[row[reconstruction.names[n]]], xy)
    return int(off.sum())


def _misses(mask: Array, xy: Array) -> Array:
    """Whether pixels (P, 2) lie in the image and outside the grown mask (H, W)."""
    height, width = mask.shape
    radius = int(np.ceil(_MASK_MARGIN * max(height, width)))
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)) > 0
    cell = np.round(np.nan_to_num(xy, nan=-1.0)).clip(-1, max(height, width)).astype(int)
    inside = (cell >= 0).all(-1) & (cell[:, 0] < width) & (cell[:, 1] < height)
    result = np.zeros(len(xy), bool)
    result[inside] = ~grown[cell[inside, 1], cell[inside, 0]]
    return result
