"""Procedural objects: fields, tracing, truth against ray casting of an extracted mesh, sensors, determinism."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_ga._open3d import open3d
from sparse_ga.synthetic.procedural.backgrounds import RIGID, STATIC, render_background
from sparse_ga.synthetic.procedural.bundle import Draw, axis_rotation, select
from sparse_ga.synthetic.procedural.cameras import camera_rays, sample_cameras
from sparse_ga.synthetic.procedural.correspondences import correspond_views
from sparse_ga.synthetic.procedural.meshing import Mesh, extract_mesh
from sparse_ga.synthetic.procedural.noise import fractal_noise, noise_tables, value_noise
from sparse_ga.synthetic.procedural.pool import Pool, complete_shards, write_shard
from sparse_ga.synthetic.procedural.sampling import sample_objects
from sparse_ga.synthetic.procedural.scene import Batch, Scene, SceneConfig, render, render_batch, sample_scene
from sparse_ga.synthetic.procedural.sensor import gaussian_blur, imperfect_masks, jpeg_like
from sparse_ga.synthetic.procedural.shapes import BOUND_RADIUS, fuse_distances, normals, signed_distance
from sparse_ga.synthetic.procedural.tracing import build_grid, trace


def _draw(seed: int = 0) -> Draw:
    return Draw(torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return render_batch(SceneConfig(objects=3, views=2, height=40, width=48, grid=32), seed=3, index=1)


@pytest.mark.bars
@pytest.mark.timeout(1200)
def test_fused_distances_are_the_same(batch: Batch) -> None:
    """Compiling takes a minute or two without a GPU."""
    points = torch.rand(3, 3, 1000, generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2
    objects = sample_objects(_draw(7), 3)
    expected = signed_distance(objects, points)
    fuse_distances(1 << 12)
    try:
        found = signed_distance(objects, points)
        again = render_batch(SceneConfig(objects=3, views=2, height=40, width=48, grid=32), seed=3, index=1)
    finally:
        fuse_distances(0)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert float((again.mask == batch.mask).float().mean()) > 0.999
    both = again.mask & batch.mask
    torch.testing.assert_close(again.depth[both], batch.depth[both], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_batch_is_deterministic_and_indices_differ(batch: Batch) -> None:
    config = SceneConfig(objects=3, views=2, height=40, width=48, grid=32)
    again, other = render_batch(config, 3, 1), render_batch(config, 3, 2)
    for name in batch.__dataclass_fields__:
        assert torch.equal(getattr(batch, name), getattr(again, name)), name
    assert not torch.equal(batch.image, other.image)


def test_batch_shapes_and_consistency(batch: Batch) -> None:
    assert batch.image.shape == (3, 2, 3, 40, 48)
    assert batch.image.dtype == torch.uint8
    assert torch.equal(batch.depth > 0, batch.mask)
    assert batch.mask.flatten(2).any(2).all()
    assert not bool((batch.background_depth > 0)[batch.mask].any())
    for tensor in (batch.depth, batch.intrinsics, batch.object_from_cam):
        assert torch.isfinite(tensor).all()
    rotation = batch.object_from_cam[..., :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(-1, -2), torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0
    )
    assert (torch.linalg.det(rotation) > 0.99).all()


@pytest.mark.parametrize("dtype", [torch.float32])
def test_field_never_exceeds_distances(dtype: torch.dtype) -> None:
    """|d(p) - d(q)| <= |p - q|: what sphere tracing relies on; also d(outside) must not jump over the surface."""
    objects = sample_objects(_draw(5), 12)
    draw = _draw(6)
    p = draw.uniform(-1.2, 1.2, 12, 3, 3000).to(dtype)
    q = p + draw.normal(12, 3, 3000) * 0.05
    change = (signed_distance(objects, p) - signed_distance(objects, q)).abs()
    ratio = change / (p - q).norm(dim=1)
    # Noise is bounded in slope on average, not at every point: a small share may exceed 1 a little.
    assert float((ratio > 1.001).float().mean()) < 2e-3
    assert float(ratio.max()) < 1.5


def test_objects_are_solid_bounded_and_varied() -> None:
    objects = sample_objects(_draw(7), 24)
    points = _draw(8).uniform(-1.3, 1.3, 24, 3, 4000)
    inside = signed_distance(objects, points) < 0
    share = inside.float().mean(1)
    assert bool((share > 0.0005).all())
    assert not bool(inside[points.norm(dim=1) > BOUND_RADIUS + 1e-4].any())
    assert float(share.std()) > 0.01
    assert int(objects.active.sum(1).min()) >= 1
    assert len(objects.active.int().sum(1).unique()) > 3


def test_normals_are_unit_and_point_outwards() -> None:
    objects = sample_objects(_draw(9), 4)
    points = _draw(10).direction(4, 500).transpose(1, 2) * 0.8
    normal = normals(objects, points)
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(4, 500), atol=1e-4, rtol=0)
    step = 1e-2
    rise = signed_distance(objects, points + step * normal) - signed_distance(objects, points - step * normal)
    assert float((rise > 0).float().mean()) > 0.97


def test_trace_lands_on_the_surface_and_misses_are_misses() -> None:
    objects = sample_objects(_draw(11), 3)
    grid = build_grid(objects, 32)
    draw = _draw(12)
    origins = (draw.direction(3, 400) * 2.5).transpose(1, 2)
    aims = (draw.direction(3, 400) * draw.uniform(0, 0.9, 3, 400, 1)).transpose(1, 2)
    directions = torch.nn.functional.normalize(aims - origins, dim=1)
    t, hit = trace(objects, grid, origins, directions)
    residual = signed_distance(objects, origins + t[:, None] * directions).abs()
    assert 0.2 < float(hit.float().mean()) < 0.99
    assert float(residual[hit].quantile(0.99)) < 1e-4
    # Dense sampling along rays that miss finds no inside point deeper than the hit distance.
    steps = torch.linspace(0, 5, 400)
    for k in range(40):
        along = origins[:, :, k, None] + directions[:, :, k, None] * steps
        entered = (signed_distance(objects, along) < -2e-3).any(1)
        assert not bool((entered & ~hit[:, k]).any())


def test_trace_without_any_hit() -> None:
    objects = sample_objects(_draw(13), 2)
    origins = torch.tensor([5.0, 0, 0])[None, :, None].expand(2, 3, 7)
    t, hit = trace(objects, build_grid(objects, 16), origins, torch.tensor([1.0, 0, 0])[None, :, None].expand(2, 3, 7))
    assert not bool(hit.any())
    assert torch.equal(t, torch.zeros(2, 7))


def _cast(mesh: Mesh, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Distances (R,) at which rays (R, 3) meet a mesh, infinite where they do not; open3d."""
    o3d = open3d()
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(mesh.vertices.numpy().astype(np.float32), mesh.triangles.numpy().astype(np.uint32))
    rays = np.concatenate([origins, directions], 1).astype(np.float32)
    return scene.cast_rays(o3d.core.Tensor(rays))["t_hit"].numpy()


def _one(scene: Scene, row: int) -> object:
    objects = scene.objects
    parts = {name: getattr(objects, name)[row : row + 1] for name in objects.__dataclass_fields__}
    return type(objects)(**parts)


def _compare_with_mesh(config: SceneConfig, seed: int, resolution: int) -> tuple[float, float, float]:
    """Mask agreement (IoU), median relative depth error and share of wrong visibilities, worst over the objects."""
    scene, _ = sample_scene(config, seed, 0)
    _, depth, _ = render(scene, (config.width, config.height))
    rays, z = camera_rays(scene.cameras, config.height, config.width)
    worst = [1.0, 0.0, 0.0]
    for row in range(config.objects):
        mesh = extract_mesh(_one(scene, row), resolution)  # type: ignore[arg-type]
        pose = scene.cameras.object_from_cam[row]
        for view in range(config.views):
            directions = (pose[view, :3, :3] @ rays[row, view]).T.numpy()
            eye = pose[view, :3, 3].numpy()
            t = _cast(mesh, np.broadcast_to(eye, directions.shape), directions)
            cast = np.where(np.isfinite(t), t * z[row, view].numpy(), 0).reshape(config.height, config.width)
            mine = depth[row, view].numpy()
            both = (cast > 0) & (mine > 0)
            worst[0] = min(worst[0], both.sum() / max(1, ((cast > 0) | (mine > 0)).sum()))
            error = np.abs(mine[both] / cast[both] - 1)
            worst[1] = max(worst[1], float(np.quantile(error, 0.9)))
        worst[2] = max(worst[2], _wrong_visibility(scene, mesh, depth, row))
    return worst[0], worst[1], worst[2]


def _wrong_visibility(scene: Scene, mesh: Mesh, depth: torch.Tensor, row: int) -> float:
    """Share of pixels called visible in view 1 that the mesh hides by more than six pixel widths."""
    cameras = scene.cameras
    pairs = [(x[row : row + 1, 0], x[row : row + 1, 1]) for x in (depth, cameras.intrinsics, cameras.object_from_cam)]
    found = correspond_views(*pairs)
    pose = cameras.object_from_cam[row, 1].numpy()
    points = found.points[0][found.visible[0]].numpy() @ pose[:3, :3].T + pose[:3, 3]
    if len(points) == 0:
        return 0.0
    towards = points - pose[:3, 3]
    distance = np.linalg.norm(towards, axis=1)
    t = _cast(mesh, np.broadcast_to(pose[:3, 3], points.shape), towards / distance[:, None])
    hidden = distance * 6 / float(cameras.intrinsics[row, 1, 0, 0])
    return float((t < distance - hidden).mean())


@pytest.mark.slow
def test_depth_masks_and_correspondences_agree_with_a_mesh() -> None:
    iou, depth_error, wrong = _compare_with_mesh(SceneConfig(2, 2, 64, 64, grid=32), seed=21, resolution=128)
    assert iou > 0.97
    assert depth_error < 2e-3
    assert wrong < 0.01


@pytest.mark.bars
def test_depth_masks_and_correspondences_agree_with_meshes_of_many_objects() -> None:
    iou, depth_error, wrong = _compare_with_mesh(SceneConfig(8, 2, 128, 128, grid=48), seed=22, resolution=160)
    assert iou > 0.96
    assert depth_error < 2e-3
    assert wrong < 0.01


@pytest.mark.slow
def test_mesh_of_a_field_is_closed_and_on_the_surface() -> None:
    objects = sample_objects(_draw(14), 1)
    mesh = extract_mesh(objects, 64)
    residual = signed_distance(objects, mesh.vertices.T[None])[0].abs()
    assert float(residual.quantile(0.95)) < 1e-3
    edges = torch.cat([mesh.triangles[:, [0, 1]], mesh.triangles[:, [1, 2]], mesh.triangles[:, [2, 0]]])
    forward = {tuple(e) for e in edges.tolist()}
    assert all((b, a) in forward for a, b in forward)
    a, b, c = mesh.vertices[mesh.triangles].double().unbind(1)
    assert float((a * torch.linalg.cross(b, c)).sum()) > 0  # signed volume: faces point outwards


def test_correspondences_round_trip_and_identity(batch: Batch) -> None:
    depth, intrinsics, pose = batch.depth[:, 0], batch.intrinsics[:, 0], batch.object_from_cam[:, 0]
    same = correspond_views((depth, depth), (intrinsics, intrinsics), (pose, pose))
    y, x = torch.meshgrid(torch.arange(40), torch.arange(48), indexing="ij")
    pixels = torch.stack([x, y], -1).flatten(0, 1).float().expand(3, -1, -1)
    on = batch.mask[:, 0].flatten(1)
    torch.testing.assert_close(same.xy[on], pixels[on], atol=2e-3, rtol=0)
    interior = torch.nn.functional.avg_pool2d(batch.mask[:, :1, :, :].float(), 3, 1, 1)[:, 0].flatten(1) > 0.99
    assert float(same.visible[interior].float().mean()) > 0.8  # but for depth edges and grazing angles
    assert not bool(same.visible[~on].any())
    nothing = correspond_views((depth * 0, depth), (intrinsics, intrinsics), (pose, pose))
    assert not bool(nothing.visible.any())


def test_correspondences_show_the_same_paint() -> None:
    """Without highlights and view-dependent light, both views see the same radiance at corresponding pixels."""
    scene, _ = sample_scene(SceneConfig(1, 2, 96, 96, grid=32, plain_share=0.0, background="clean"), 31, 4)
    object.__setattr__(scene.finish, "specular", torch.zeros(1))
    object.__setattr__(scene.finish, "bump", torch.zeros(1))
    for name in ("position", "up"):
        value = getattr(scene.lights, name)
        object.__setattr__(scene.lights, name, value[:, :1].expand_as(value).clone())
    colour, depth, _ = render(scene, (96, 96))
    pairs = [(x[:, 0], x[:, 1]) for x in (depth, scene.cameras.intrinsics, scene.cameras.object_from_cam)]
    found = correspond_views(*pairs)
    grid = (found.xy / 95 * 2 - 1)[:, :, None]
    seen = torch.nn.functional.grid_sample(colour[:, 1], grid, align_corners=True)[0, :, :, 0].T
    expected = colour[0, 0].flatten(1).T
    visible = found.visible[0]
    assert int(visible.sum()) > 200
    error = (seen - expected).abs().mean(1)[visible] / expected.mean(1)[visible].clamp_min(0.02)
    shuffled = (seen[visible].roll(57, 0) - expected[visible]).abs().mean(1) / expected.mean(1)[visible].clamp_min(0.02)
    assert float(error.median()) < 0.1
    assert float(error.median()) < 0.5 * float(shuffled.median())


def test_cameras_cover_fields_of_view_rolls_and_face_the_object() -> None:
    cameras = sample_cameras(_draw(15), torch.zeros(200, 3), torch.ones(200), 4, (64, 48))
    fov = 2 * torch.rad2deg(torch.atan(32 / cameras.intrinsics[..., 0, 0]))
    assert float(fov.min()) >= 9.9
    assert float(fov.min()) < 15
    assert 65 < float(fov.max()) <= 80.1
    forward = cameras.object_from_cam[..., :3, 2]
    eye = cameras.object_from_cam[..., :3, 3]
    assert float((forward * -torch.nn.functional.normalize(eye, dim=-1)).sum(-1).min()) > 0.7
    assert float(eye.norm(dim=-1).min()) > 1.0
    relative = cameras.object_from_cam[:, 0, :3, :3].transpose(1, 2) @ cameras.object_from_cam[:, 1, :3, :3]
    roll = torch.atan2(relative[:, 1, 0] - relative[:, 0, 1], relative[:, 0, 0] + relative[:, 1, 1])
    counts = torch.histc(roll, 4, -math.pi, math.pi)
    assert int(counts.min()) > 5


def test_static_background_stands_still_and_rigid_background_moves() -> None:
    scene, _ = sample_scene(SceneConfig(2, 3, 24, 24, grid=24), 41, 0)
    background = scene.background
    object.__setattr__(background, "kind", torch.tensor([STATIC, RIGID]))
    rays = camera_rays(scene.cameras, 24, 24)
    colour, floor = render_background(background, scene.cameras, scene.lights, scene.grid, rays)
    views = colour.reshape(2, 3, 3, -1)
    torch.testing.assert_close(views[0, :, 0], views[0, :, 1], atol=1e-4, rtol=1e-3)
    assert float((views[1, :, 0] - views[1, :, 1]).abs().max()) > 1e-3
    assert not bool((floor[0] > 0).any())


def test_selection_round_trip_and_empty() -> None:
    mask = torch.tensor([[True, False, True, False], [False, False, False, True], [False] * 4])
    values = torch.arange(24.0).reshape(3, 2, 4)
    chosen = select(mask)
    assert chosen.count == 2
    assert chosen.valid.tolist() == [[True, True], [True, False], [False, False]]
    picked = chosen.gather(values)
    assert picked[0].tolist() == [[0.0, 2.0], [4.0, 6.0]]
    back = chosen.scatter(torch.zeros_like(values), picked)
    assert torch.equal(back, torch.where(mask[:, None], values, 0.0))
    assert select(torch.zeros(2, 5, dtype=torch.bool)).count == 0


def test_noise_is_periodic_continuous_and_fades_below_the_pixel() -> None:
    tables = noise_tables(_draw(16), 1)
    points = _draw(17).uniform(0, 32, 1, 3, 500)
    torch.testing.assert_close(value_noise(tables, points), value_noise(tables, points + 32), atol=1e-4, rtol=0)
    change = (value_noise(tables, points) - value_noise(tables, points + 1e-3)).abs()
    assert float(change.max()) < 0.02
    coarse = fractal_noise(tables, points, 3, torch.full((1, 500), 10.0))
    assert torch.equal(coarse, torch.zeros_like(coarse))


def test_axis_rotation_turns_by_the_angle() -> None:
    turned = axis_rotation(torch.tensor([0.0, 0, 1]), torch.tensor(math.pi / 2)) @ torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(turned, torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def test_jpeg_like_agrees_with_jpeg() -> None:
    """Against Pillow's encoder at the same quality without chroma subsampling."""
    smooth = gaussian_blur(_draw(18).uniform(0, 1, 1, 3, 64, 72), torch.tensor([1.5]))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    pixels = (smooth[0] * 255).round().byte().permute(1, 2, 0).numpy()
    for quality in (30, 75):
        stored = io.BytesIO()
        Image.fromarray(pixels).save(stored, "JPEG", quality=quality, subsampling=0)
        theirs = np.asarray(Image.open(stored)).astype(float)
        ours = jpeg_like(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, torch.tensor([float(quality)]))
        ours_pixels = ours[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(ours_pixels - theirs).mean() < 0.35 * np.abs(pixels - theirs).mean()


def test_jpeg_like_keeps_sizes_that_are_no_multiples_of_eight() -> None:
    image = torch.full((2, 3, 13, 21), 0.5)
    torch.testing.assert_close(jpeg_like(image, torch.tensor([90.0, 90.0])), image, atol=0.02, rtol=0)


def test_imperfect_masks_are_near_the_exact_ones_and_never_empty() -> None:
    mask = torch.zeros(30, 2, 48, 48, dtype=torch.bool)
    mask[:, :, 12:36, 10:40] = True
    mask[0, 0] = False
    mask[0, 0, 20, 20] = True
    rough = imperfect_masks(_draw(19), mask)
    iou = (rough & mask).flatten(2).sum(2) / (rough | mask).flatten(2).sum(2)
    assert float(iou[1:].min()) > 0.75
    assert bool(rough.flatten(2).any(2).all())
    exact = (rough == mask).flatten(1).all(1)
    assert 2 < int(exact.sum()) < 20


@pytest.mark.slow
def test_pool_renders_what_is_missing_and_reads_what_is_there(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    config = SceneConfig(objects=2, views=2, height=24, width=24, grid=16, background="clean")
    write_shard(folder, config, 7, 0)
    assert complete_shards(folder, 7) == 1
    pool = Pool(folder, config, 7)
    row = pool.rows(3)
    assert complete_shards(folder, 7) == 2
    assert torch.equal(row["image"], render_batch(config, 7, 1).image[1])
    assert row["depth"].shape == (2, 24, 24)
