"""Fusion of depth maps: accuracy, silhouettes, wrong masks, cleaning, and what a hundred views cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from balls import RADIUS, ball_views

from sparse_ga.config import TriangulateConfig
from sparse_ga.products import Array
from sparse_ga.triangulation.consistency import check_view, depth_normals
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.triangulation.fusion import (
    Cloud,
    Fusion,
    _sample_image,
    color_points,
    fuse,
    inspect_masks,
    object_diameter,
)
from sparse_ga.triangulation.silhouettes import distance_outside, outside_votes, project_nearest
from sparse_ga.triangulation.views import Rig

CONFIG = TriangulateConfig()
NAMES = tuple(f"view_{n}" for n in range(16))


def fused(views: list[DepthView], rig: Rig, config: TriangulateConfig = CONFIG) -> Fusion:
    return fuse(views, rig, inspect_masks(views, rig, NAMES, config), config)


def surface_errors(cloud: Cloud) -> Array:
    """Distance (P,) to the ball in diameters."""
    return np.abs(np.linalg.norm(cloud.points, axis=1) - RADIUS) / (2 * RADIUS)


@pytest.fixture(scope="module")
def ball() -> tuple[Rig, list[DepthView]]:
    return ball_views(16, size=(192, 144), noise=0.004)


@pytest.fixture(scope="module")
def clean_fusion(ball: tuple[Rig, list[DepthView]]) -> Fusion:
    return fused(ball[1], ball[0])


def test_noise_averages_out(ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion) -> None:
    single = np.concatenate([np.linalg.norm(view.world_points(), axis=1) - RADIUS for view in ball[1]])
    assert np.median(surface_errors(clean_fusion.cloud)) < 0.6 * np.median(np.abs(single)) / (2 * RADIUS)
    assert np.quantile(surface_errors(clean_fusion.cloud), 0.99) < 0.01
    assert clean_fusion.wrong_masks == ()


def test_what_comes_out_is_finite_and_faces_outwards(clean_fusion: Fusion) -> None:
    cloud = clean_fusion.cloud
    assert all(np.isfinite(a).all() for a in (cloud.points, cloud.normals, cloud.confidence))
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-6)
    outwards = (cloud.normals * cloud.points).sum(1) / np.linalg.norm(cloud.points, axis=1)
    assert np.median(outwards) > 0.99
    assert (outwards > 0).mean() > 0.999
    assert cloud.confidence.min() >= 0
    assert cloud.confidence.max() <= 1


def test_no_point_outside_any_mask(ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion) -> None:
    masks = [view.mask for view in ball[1]]
    assert outside_votes(ball[0], masks, clean_fusion.cloud.points, 2.0).max() == 0


@pytest.mark.slow
def test_a_mask_of_everything_is_named_and_does_no_harm(
    ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion
) -> None:
    rig, views = ball
    views = list(views)
    wrong = views[3]
    background = np.where(wrong.mask, wrong.depth, 1.2 * wrong.depth.max()).astype(np.float32)
    everything = np.ones_like(wrong.mask)
    views[3] = replace(wrong, mask=everything, depth=background, confidence=np.ones_like(background))
    fusion = fused(views, rig)
    assert [text.split(":")[0] for text in fusion.wrong_masks] == ["view_3"]
    assert np.quantile(surface_errors(fusion.cloud), 0.99) < 0.013
    assert np.median(surface_errors(fusion.cloud)) < 1.3 * np.median(surface_errors(clean_fusion.cloud))
    masks = [view.mask for view in ball[1]]
    outside = outside_votes(rig, [everything if n == 3 else m for n, m in enumerate(masks)], fusion.cloud.points, 2.0)
    assert outside.max() == 0


def test_a_hole_in_a_mask_is_named_and_digs_no_tunnel(ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion) -> None:
    rig, views = ball
    views = list(views)
    mask = views[5].mask.copy()
    mask[60:84, 84:108] = False
    views[5] = replace(views[5], mask=mask, depth=np.where(mask, views[5].depth, 0))
    fusion = fused(views, rig)
    assert [text.split(":")[0] for text in fusion.wrong_masks] == ["view_5"]
    pixel, inside = project_nearest(rig, 5, fusion.cloud.points, mask.shape)
    hole = np.zeros_like(mask)
    hole[66:78, 90:102] = True
    covered = np.zeros(mask.size, bool)
    covered[pixel[inside]] = True
    assert covered.reshape(mask.shape)[hole].mean() > 0.9
    assert np.median(surface_errors(fusion.cloud)) < 1.1 * np.median(surface_errors(clean_fusion.cloud))


def masked(view: DepthView, mask: Array) -> DepthView:
    return replace(view, mask=mask, depth=np.where(mask, view.depth, 0).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [2, 4])
def test_eroded_masks_are_named_and_cost_few_points(
    ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion, pixels: int
) -> None:
    rig, views = ball
    eroded = [masked(view, distance_outside(~view.mask) > pixels) for view in views]
    fusion = fused(eroded, rig)
    assert [text.split(":")[0] for text in fusion.wrong_masks] == list(NAMES)
    assert all("smaller than" in text for text in fusion.wrong_masks)
    assert len(fusion.cloud) > 0.85 * len(clean_fusion.cloud)
    assert np.quantile(surface_errors(fusion.cloud), 0.99) < 0.01
    assert outside_votes(rig, [view.mask for view in views], fusion.cloud.points, 2.0).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("fingers", "kept"), [(1, 0.9), (2, 0.8)])
def test_fingers_in_every_mask_cost_few_points(
    ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion, fingers: int, kept: float
) -> None:
    rig, views = ball
    held = []
    for view in views:
        height, width = view.mask.shape
        y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
        mask = view.mask.copy()
        for finger in range(fingers):
            angle = 2.4 * view.index + 2.0 * finger
            along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            mask &= ~((along > 5) & (np.abs(across) < 8))
        held.append(masked(view, mask))
    fusion = fused(held, rig)
    assert all("leaves out" in text for text in fusion.wrong_masks)
    assert len(fusion.cloud) > kept * len(clean_fusion.cloud)
    assert np.quantile(surface_errors(fusion.cloud), 0.99) < 0.01


def test_what_most_masks_leave_out_is_left_out(ball: tuple[Rig, list[DepthView]]) -> None:
    """A plate under the object that six masks of sixteen hold."""
    rig, views = ball
    plate = -0.4 * RADIUS
    cut = []
    for view in views:
        below = np.zeros(view.mask.shape, bool)
        below[view.valid] = view.world_points()[:, 2] < plate
        cut.append(view if view.index % 3 == 0 else masked(view, view.mask & ~below))
    cloud = fused(cut, rig).cloud
    assert len(cloud) > 1000
    assert np.quantile(cloud.points[:, 2], 0.001) > plate - 0.1 * RADIUS


@pytest.mark.slow
def test_an_object_cut_by_the_image_border(ball: tuple[Rig, list[DepthView]]) -> None:
    rig, views = ball
    intrinsics = rig.intrinsics.copy()
    cut = []
    for view in views:
        if view.index % 3 == 0:
            k = view.intrinsics.copy()
            k[0, 2] -= 80
            view = replace(
                view, depth=view.depth[:, 80:], mask=view.mask[:, 80:], confidence=view.confidence[:, 80:], intrinsics=k
            )
        intrinsics[view.index] = view.intrinsics
        cut.append(view)
    fusion = fused(cut, rig.moved(rig.world_from_cam, intrinsics))
    assert fusion.wrong_masks == ()
    assert np.quantile(surface_errors(fusion.cloud), 0.99) < 0.012
    directions = fusion.cloud.points / np.linalg.norm(fusion.cloud.points, axis=1, keepdims=True)
    azimuth = np.histogram(np.arctan2(directions[:, 1], directions[:, 0]), 24)[0]
    assert azimuth.min() > 0.3 * azimuth.mean()  # no side is missing


@pytest.mark.slow
def test_floating_points_that_one_view_invents_are_dropped(ball: tuple[Rig, list[DepthView]]) -> None:
    rig, views = ball
    views = list(views)
    depth = views[0].depth.copy()
    depth[60:90, 80:110] *= 0.8  # a plate in front of the ball, inside its outline in this view
    views[0] = replace(views[0], depth=depth)
    cloud = fused(views, rig).cloud
    assert np.linalg.norm(cloud.points, axis=1).max() < 1.05 * RADIUS


def test_voxels_thin_the_cloud(ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion) -> None:
    thin = fused(ball[1], ball[0], replace(CONFIG, voxel=0.03)).cloud
    assert 50 < len(thin) < len(clean_fusion.cloud) / 3
    assert np.quantile(surface_errors(thin), 0.95) < 0.01


def test_nothing_to_fuse(ball: tuple[Rig, list[DepthView]]) -> None:
    rig, views = ball
    empty = [replace(view, depth=np.zeros_like(view.depth)) for view in views]
    assert len(fused(empty, rig).cloud) == 0
    assert object_diameter(np.zeros((0, 3))) == 0
    assert len(fused([], replace(rig, registered=np.zeros(16, bool))).cloud) == 0


def test_a_view_without_neighbours_confirms_nothing(ball: tuple[Rig, list[DepthView]]) -> None:
    assert len(fused(ball[1][:1], replace(ball[0], registered=np.arange(16) == 0)).cloud) == 0


def test_agreement_moves_a_wrong_depth_towards_the_others(ball: tuple[Rig, list[DepthView]]) -> None:
    _, exact = ball_views(16, size=(192, 144))
    wrong = replace(exact[0], depth=exact[0].depth * np.float32(1.003), confidence=exact[0].confidence)
    agreement = check_view(wrong, [exact[2], exact[14]], tolerance=0.1)
    truth = exact[0].depth[exact[0].valid]
    inner = agreement.agree == 2
    before = np.abs(wrong.depth[wrong.valid] - truth)[inner]
    after = np.abs(agreement.depth - truth)[inner]
    assert np.median(after) < 0.45 * np.median(before)


def test_normals_of_a_depth_map() -> None:
    _, views = ball_views(4, size=(192, 144))
    view = views[0]
    normal = depth_normals(view) @ view.world_from_cam[:3, :3].T
    truth = view.world_points() / RADIUS
    inner = distance_outside(~view.mask)[view.valid] > 4
    angle = np.degrees(np.arccos(np.clip((normal * truth).sum(1), -1, 1)))
    assert np.median(angle[inner]) < 0.5
    assert np.quantile(angle[inner], 0.95) < 4


def test_colours_come_from_the_source_photographs(ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion) -> None:
    _, views = ball
    half = np.diag([0.5, 0.5, 1.0])
    half[:2, 2] = -0.25  # working px of a photograph twice as large
    by_index = {view.index: view for view in views}

    def load_source(n: int) -> tuple[Array, Array]:
        view = by_index[n]
        points = view.world_from_cam[:3, 3] + np.zeros((*view.mask.shape, 3))
        points[view.valid] = view.world_points()
        image = np.where(view.mask[..., None], 128 + 100 * points, 255).clip(0, 255).astype(np.uint8)
        return np.repeat(np.repeat(image, 2, 0), 2, 1), np.repeat(np.repeat(view.mask, 2, 0), 2, 1)

    colors = color_points(clean_fusion.cloud, np.tile(half, (16, 1, 1)), clean_fusion.depths, load_source)
    wanted = 128 + 100 * clean_fusion.cloud.points
    assert colors.dtype == np.uint8
    assert np.median(np.abs(colors - wanted)) < 2
    assert np.quantile(np.abs(colors - wanted), 0.99) < 12


@pytest.mark.parametrize("zoom", [1, 2])
def test_the_background_of_the_photographs_colours_no_point(
    ball: tuple[Rig, list[DepthView]], clean_fusion: Fusion, zoom: int
) -> None:
    """To the last level, at the outline too and where the photograph is larger than what was aligned."""
    by_index = {view.index: view for view in ball[1]}
    affine = np.diag([1 / zoom, 1 / zoom, 1.0])
    affine[:2, 2] = (1 / zoom - 1) / 2

    def colors(background: int) -> Array:
        def load_source(n: int) -> tuple[Array, Array]:
            mask = np.repeat(np.repeat(by_index[n].mask, zoom, 0), zoom, 1)
            own = np.random.default_rng(n).integers(60, 140, (*mask.shape, 3))
            return np.where(mask[..., None], own, background).astype(np.uint8), mask

        return color_points(clean_fusion.cloud, np.tile(affine, (16, 1, 1)), clean_fusion.depths, load_source)

    black = colors(0)
    np.testing.assert_array_equal(black, colors(255))
    assert black.min() >= 60


@pytest.mark.parametrize("background", [0, 255])
def test_a_wire_one_pixel_wide_keeps_its_colour(background: int) -> None:
    mask = np.zeros((20, 20), bool)
    mask[:, 10] = True
    image = np.where(mask[..., None], np.uint8(100), np.uint8(background)).repeat(3, -1)
    xy = np.stack([np.linspace(9.51, 10.49, 30), np.linspace(0, 19, 30)], 1)
    color, inner = _sample_image(image, mask, xy, np.eye(3))
    np.testing.assert_allclose(color, 100, atol=1e-9)
    assert (inner > 0).all()
    assert (_sample_image(image, mask, xy + np.array([3, 0]), np.eye(3))[1] == 0).all()


_HUNDRED_VIEWS = """
import json, resource, sys, time
sys.path.insert(0, {tests!r})
import numpy as np
from test_fusion import CONFIG, ball_views, fuse, inspect_masks, surface_errors
rig, views = ball_views(100, noise=0.004)
before = time.process_time()
fusion = fuse(views, rig, inspect_masks(views, rig, tuple(str(n) for n in range(100)), CONFIG), CONFIG)
seconds = time.process_time() - before  # of both cores together, so that other work on the machine does not count
print(json.dumps(dict(
    share=float(views[0].mask.mean()), seconds=seconds, points=len(fusion.cloud),
    error=float(np.median(surface_errors(fusion.cloud))),
    peak_kib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
)))
"""


@pytest.fixture(scope="module")
def hundred_views() -> dict[str, float]:
    """What fusing a hundred views found and cost, in a process of its own: memory is a process's."""
    script = _HUNDRED_VIEWS.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_hundred_views_cost_three_gigabytes(hundred_views: dict[str, float]) -> None:
    assert hundred_views["share"] == pytest.approx(0.25, abs=0.01)
    assert hundred_views["points"] > 100_000
    assert hundred_views["error"] < 0.002
    assert hundred_views["peak_kib"] < 3e6


@pytest.mark.bars
def test_a_hundred_views_cost_a_minute(hundred_views: dict[str, float]) -> None:
    """Processor time; yet a neighbour on a shared core lengthens that too, so a bar for an idle machine."""
    assert hundred_views["seconds"] < 60
