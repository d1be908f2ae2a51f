"""The whole stage on synthetic scenes with an oracle's predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from offscreen import render_points, silhouette_iou
from oracle_inputs import Inputs, oracle_inputs
from scipy.spatial import cKDTree

from sparse_ga.config import TriangulateConfig
from sparse_ga.geometry import transforms
from sparse_ga.products import PairMatches, Reconstruction, VerifiedMatches
from sparse_ga.synthetic.oracle import OracleNoise
from sparse_ga.synthetic.scene import SceneConfig
from sparse_ga.triangulation import MatchedPairs, triangulate_views
from sparse_ga.triangulation.silhouettes import outside_votes
from sparse_ga.triangulation.views import make_rig

pytestmark = pytest.mark.slow

CONFIG = TriangulateConfig(mesh_depth=6)
NOISE = OracleNoise(background="masked")


@pytest.fixture(scope="module")
def small() -> Inputs:
    return oracle_inputs(SceneConfig(views=8, size=(160, 128), object_share=0.3), NOISE, pose_deg=0.3, known=True)


@pytest.fixture(scope="module")
def result(small: Inputs) -> Reconstruction:
    return run(small)


def run(inputs: Inputs, config: TriangulateConfig = CONFIG) -> Reconstruction:
    return triangulate_views(
        inputs.views,
        inputs.canonical,
        inputs.alignment,
        MatchedPairs(inputs.pairs, inputs.load_matches),
        inputs.load_source,
        config,
    )


def object_from_world(inputs: Inputs, reconstruction: Reconstruction) -> np.ndarray:
    good = reconstruction.registered
    aligned, found = transforms.similarity_from_points(
        inputs.scene.world_from_cam[good, :3, 3], reconstruction.world_from_cam[good, :3, 3]
    )
    assert found
    return aligned


def test_surface_and_tracks_lie_on_the_object(small: Inputs, result: Reconstruction) -> None:
    aligned = object_from_world(small, result)
    dense = small.scene.surface_distance(transforms.apply(aligned, result.points.astype(float)))
    tracks = small.scene.surface_distance(transforms.apply(aligned, result.track_points))
    assert len(result.points) > 3000
    assert np.median(dense) < 0.01
    assert (dense < 0.02).mean() > 0.9
    assert np.median(tracks) < 0.015
    assert result.report.bundle_adjustment == "kept"
    assert result.report.rms_after_px < 1
    assert result.report.inconsistent_masks == ()


def test_everything_is_finite_and_of_the_object(small: Inputs, result: Reconstruction) -> None:
    for name in ("points", "normals", "point_confidence", "track_points", "track_errors", "world_from_cam"):
        assert np.isfinite(getattr(result, name)).all(), name
    rig = make_rig(small.views, small.alignment).moved(result.world_from_cam, result.working_intrinsics)
    masks = [view.mask for view in small.views]
    assert outside_votes(rig, masks, result.points.astype(float), 2.0).max() == 0
    for n, view in enumerate(small.views):
        depth, confidence = result.depthmaps.view(n)
        assert not (depth > 0)[~view.mask].any()
        assert (confidence[depth == 0] == 0).all()
        np.testing.assert_array_equal(result.masks.mask(n), view.mask)


def test_tracks_reproject_where_they_were_seen(result: Reconstruction) -> None:
    tracks = result.tracks
    cam = np.einsum(
        "oij,oj->oi", result.cam_from_world[tracks.view_index, :3, :3], result.track_points[tracks.point_index]
    )
    cam += result.cam_from_world[tracks.view_index, :3, 3]
    k = result.intrinsics[tracks.view_index]
    xy = cam[:, :2] / cam[:, 2:] * np.stack([k[:, 0, 0], k[:, 1, 1]], 1) + k[:, :2, 2]
    error = np.linalg.norm(xy - tracks.xy, axis=1)
    assert error.max() < 2.0 + 1e-6
    mean = np.bincount(tracks.point_index, error) / np.bincount(tracks.point_index)
    np.testing.assert_allclose(mean, result.track_errors, atol=1e-6)
    assert (np.diff(tracks.point_index) >= 0).all()


def test_the_same_bytes_every_time_and_through_a_file(small: Inputs, result: Reconstruction, tmp_path) -> None:  # type: ignore[no-untyped-def]
    first = result.save(tmp_path / "a").read_bytes()
    assert run(small).save(tmp_path / "b").read_bytes() == first
    again = Reconstruction.load(tmp_path / "a")
    assert again.save(tmp_path / "c").read_bytes() == first
    assert again.report == result.report
    np.testing.assert_array_equal(again.mesh.faces, result.mesh.faces)


def test_known_cameras_are_triangulated_and_not_moved(small: Inputs) -> None:
    poses, k = small.scene.world_from_cam, small.scene.intrinsics
    views = [
        replace(view, intrinsics=k[n], intrinsics_source="given", world_from_cam=poses[n])
        for n, view in enumerate(small.views)
    ]
    alignment = replace(small.alignment, world_from_cam=poses, metric_frame=True)
    result = run(replace(small, views=views, alignment=alignment))
    assert result.world_from_cam.tobytes() == poses.tobytes()
    np.testing.assert_allclose(result.intrinsics, k, atol=1e-9)
    assert result.report.units == "given"
    distance = small.scene.surface_distance(result.points.astype(float))
    assert np.median(distance) < 0.006


FAR = np.array([5e5, 4.5e6, 120.0])  # metres east, north and up, as maps have it


def test_cameras_in_a_maps_coordinates_lose_nothing(small: Inputs) -> None:
    """The same scene about its origin and far from it: the same cloud, normals and mesh."""
    found = []
    for shift in (np.zeros(3), FAR):
        poses = small.scene.world_from_cam.copy()
        poses[:, :3, 3] = np.ldexp(np.rint(np.ldexp(poses[:, :3, 3], 24)), -24) + shift  # a sum without rounding
        views = [replace(view, world_from_cam=pose) for view, pose in zip(small.views, poses)]
        result = run(replace(small, views=views, alignment=replace(small.alignment, world_from_cam=poses)))
        assert result.world_from_cam.tobytes() == poses.tobytes()
        found.append(result)
    near, far = found
    assert len(near.points) > 3000
    np.testing.assert_allclose(far.points - FAR, near.points, rtol=0, atol=2e-9)
    np.testing.assert_allclose(far.track_points - FAR, near.track_points, rtol=0, atol=2e-9)
    np.testing.assert_allclose(far.mesh.vertices - FAR, near.mesh.vertices, rtol=0, atol=2e-9)
    np.testing.assert_array_equal(far.normals, near.normals)
    np.testing.assert_array_equal(far.colors, near.colors)


def test_a_single_given_pose_gives_its_frame_and_is_kept(small: Inputs) -> None:
    frames = []
    for shift in (np.zeros(3), FAR):
        poses = small.alignment.world_from_cam.copy()
        poses[:, :3, 3] += shift
        views = [replace(view, world_from_cam=poses[n]) if n == 2 else view for n, view in enumerate(small.views)]
        alignment = replace(small.alignment, world_from_cam=poses)
        result = run(replace(small, views=views, alignment=alignment), replace(CONFIG, dense=False, mesh=False))
        assert (result.report.frame, result.report.units) == ("given", "arbitrary")
        assert result.report.bundle_adjustment == "kept"
        np.testing.assert_array_equal(result.world_from_cam[2], poses[2])
        frames.append(result.world_from_cam[:, :3, 3] - shift)
    np.testing.assert_allclose(frames[1], frames[0], atol=1e-5)


@pytest.mark.parametrize(("given", "noted"), [([2], True), ([2, 5], False)])
def test_a_unit_that_rests_on_one_tied_pose_is_noted(small: Inputs, given: list[int], noted: bool) -> None:
    poses = small.alignment.world_from_cam
    views = [replace(view, world_from_cam=poses[n]) if n in given else view for n, view in enumerate(small.views)]
    inputs = replace(small, views=views, alignment=replace(small.alignment, metric_frame=True))
    result = run(inputs, replace(CONFIG, dense=False, mesh=False, bundle_adjustment=False))
    assert result.report.units == "given"
    assert [small.views[2].name in note for note in result.report.notes] == [True] * noted


@pytest.mark.parametrize(("sigma_deg", "told"), [(0.4, False), (3.4, True)])
def test_doubts_of_the_alignment_are_told(small: Inputs, sigma_deg: float, told: bool) -> None:
    """A photograph that is not registered has no camera that could be uncertain."""
    status = "ok, in doubt: 33% contradict (why?)" if told else "ok"
    registered, sigma = np.arange(8) != 0, np.full(8, 0.1)
    sigma[[0, 5]] = 9.0, sigma_deg
    alignment = replace(
        small.alignment, registered=registered, uncertainty_deg=sigma, status=status, reasons=("no matches", *[""] * 7)
    )
    result = run(replace(small, alignment=alignment), replace(CONFIG, dense=False, mesh=False))
    notes = result.report.notes
    assert len(notes) == 2 * told
    if told:
        assert notes[0] == "33% contradict (why?)"
        assert notes[1].startswith("1 of 7 registered photographs are tied in loosely")
        assert f"the rotation of {small.views[5].name} is known to 3 degrees" in notes[1]


def test_the_frame_is_that_of_the_first_camera_where_no_registered_view_is_given(
    small: Inputs, result: Reconstruction
) -> None:
    assert result.report.frame == "first registered camera"
    views = [replace(view, world_from_cam=np.eye(4)) if n == 3 else view for n, view in enumerate(small.views)]
    registered = np.arange(8) != 3
    alignment = replace(small.alignment, registered=registered, reasons=("", "", "", "no matches", "", "", "", ""))
    lost = run(replace(small, views=views, alignment=alignment), replace(CONFIG, dense=False, mesh=False))
    assert lost.report.frame == "first registered camera"


def test_nothing_registered_is_nothing_given(small: Inputs) -> None:
    alignment = replace(small.alignment, registered=np.zeros(8, bool), reasons=("no matches",) * 8)
    result = run(replace(small, alignment=alignment))
    assert len(result.points) == len(result.track_points) == 0
    assert result.report.bundle_adjustment == "no view is registered"


def test_unregistered_views_give_and_get_nothing(small: Inputs) -> None:
    registered = small.alignment.registered.copy()
    registered[3] = False
    poses = small.alignment.world_from_cam.copy()
    poses[3] = np.eye(4)
    reasons = ("", "", "", "no matches", "", "", "", "")
    alignment = replace(small.alignment, registered=registered, world_from_cam=poses, reasons=reasons)
    result = run(replace(small, alignment=alignment))
    assert (result.tracks.view_index != 3).all()
    assert not (result.depthmaps.view(3)[0] > 0).any()
    assert result.reasons[3] == "no matches"
    np.testing.assert_array_equal(result.world_from_cam[3], np.eye(4))
    assert len(result.points) > 2000


def test_what_covers_the_object_has_no_influence(small: Inputs) -> None:
    """Holes in all masks are filled by what other views show, but never looked at."""
    held, other = [], []
    for n, view in enumerate(small.views):
        rows, columns = np.nonzero(view.mask)
        y, x = np.mgrid[: view.height, : view.width]
        way = np.array([np.cos(2.4 * n), np.sin(2.4 * n)])
        x, y = x - columns.mean(), y - rows.mean()
        finger = (x * way[0] + y * way[1] > 3) & (np.abs(y * way[0] - x * way[1]) < 7)
        view = replace(view, mask=view.mask & ~finger)
        noise = np.random.default_rng(n).integers(0, 256, view.image.shape).astype(np.uint8)
        held.append(view)
        other.append(replace(view, image=np.where(view.mask[..., None], view.image, noise)))
    first, second = (run(replace(small, views=views)) for views in (held, other))
    assert any("leaves out" in text for text in first.report.inconsistent_masks)
    assert len(first.points) > 1000
    np.testing.assert_array_equal(first.points, second.points)


def test_source_pixels_of_a_larger_photograph(small: Inputs, result: Reconstruction) -> None:
    """The same working views of photographs three times as large, cut by a few pixels: only source numbers change."""
    affine = np.array([[1 / 3, 0, -2 + (1 / 3 - 1) / 2], [0, 1 / 3, -1 + (1 / 3 - 1) / 2], [0, 0, 1]])
    size = (160 * 3 + 12, 128 * 3 + 6)
    views = [replace(view, working_from_source=affine, source_size=size) for view in small.views]

    def load_source(n: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = small.load_source(n)
        image = np.pad(np.repeat(np.repeat(image, 3, 0), 3, 1), ((3, 3), (6, 6), (0, 0)))
        return image, np.pad(np.repeat(np.repeat(mask, 3, 0), 3, 1), ((3, 3), (6, 6)))

    matched = MatchedPairs(small.pairs, small.load_matches)
    large = triangulate_views(views, small.canonical, small.alignment, matched, load_source, CONFIG)
    assert large.intrinsics[0, 0, 0] == pytest.approx(3 * result.intrinsics[0, 0, 0])
    np.testing.assert_allclose(large.working_intrinsics[:, 0, 0], result.working_intrinsics[:, 0, 0], rtol=1e-3)
    assert large.report.mean_reprojection_px == pytest.approx(3 * result.report.mean_reprojection_px, rel=0.02)
    np.testing.assert_allclose(large.world_from_cam, result.world_from_cam, atol=2e-3)
    height, width = 128 * 3 + 6, 160 * 3 + 12
    assert large.tracks.xy[:, 0].max() < width
    assert large.tracks.xy[:, 1].max() < height
    assert np.median(np.abs(np.median(large.colors, axis=0) - np.median(result.colors, axis=0))) < 8


def test_without_dense_the_tracks_are_the_cloud(small: Inputs) -> None:
    result = run(small, replace(CONFIG, dense=False))
    assert len(result.points) == len(result.track_points) > 100
    assert (result.colors > 0).any()
    assert len(result.mesh.faces) == 0
    assert result.report.dense == "off"


def test_anchors_alone_work_too(small: Inputs) -> None:
    result = run(small, replace(CONFIG, dense_method="anchors", bundle_adjustment=False, mesh=False))
    assert len(result.points) > 2000
    assert result.report.bundle_adjustment == "off"
    np.testing.assert_array_equal(result.world_from_cam, small.alignment.world_from_cam)


@pytest.mark.parametrize("what", ["no matches", "nothing registered"])
def test_no_evidence_gives_an_empty_reconstruction(small: Inputs, what: str) -> None:
    inputs = replace(small, matches=[VerifiedMatches(PairMatches.empty(), 0.0, "none", "no overlap")] * 28)
    if what == "nothing registered":
        inputs = replace(inputs, alignment=replace(small.alignment, registered=np.zeros(8, bool)))
    result = run(inputs)
    assert len(result.track_points) == len(result.points) == len(result.mesh.faces) == 0
    assert np.isfinite(result.world_from_cam).all()


def test_dropped_and_rejected_pairs_take_no_part(small: Inputs) -> None:
    wrong = [
        VerifiedMatches(
            PairMatches(m.matches.xy_i, m.matches.xy_j[::-1].copy(), m.matches.confidence), 1.0, "none", why
        )
        for m, why in zip(small.matches, ["bad"] + [None] * 27, strict=True)
    ]
    matches = [*wrong[:2], *small.matches[2:]]
    names = small.alignment.names
    i, j = small.pairs[1]
    alignment = replace(small.alignment, dropped_pairs=(f"{names[i]} | {names[j]} | disagrees with its triplets",))
    with_wrong = run(replace(small, matches=matches, alignment=alignment), replace(CONFIG, dense=False))
    nothing = VerifiedMatches(PairMatches.empty(), 0.0)
    without = run(replace(small, matches=[nothing, nothing, *small.matches[2:]]), replace(CONFIG, dense=False))
    np.testing.assert_array_equal(with_wrong.track_points, without.track_points)


def test_matches_off_the_object_change_nothing(small: Inputs) -> None:
    """To the bit: the stage may be given matches that no mask has seen."""

    def soiled(number: int) -> VerifiedMatches:
        rng = np.random.default_rng(number)
        off = [np.argwhere(~small.views[n].mask)[:, ::-1] for n in small.pairs[number]]
        ends = [rng.choice(pixels, 60).astype(np.float32) for pixels in off]
        ends[0][:10] = (small.views[0].width + 5, -3)  # not in the image at all
        background = PairMatches(*ends, np.full(60, 9, np.float32))
        return replace(small.matches[number], matches=small.matches[number].matches.joined(background))

    config = replace(CONFIG, dense=False)
    clean = run(small, config)
    dirty = run(replace(small, matches=[soiled(k) for k in range(28)]), config)
    for name in ("track_points", "track_colors", "track_errors", "world_from_cam", "intrinsics"):
        np.testing.assert_array_equal(getattr(clean, name), getattr(dirty, name), err_msg=name)
    np.testing.assert_array_equal(clean.tracks.xy, dirty.tracks.xy)


@pytest.mark.bars
def test_24_views_of_a_rotating_object() -> None:
    inputs = oracle_inputs(SceneConfig(views=24, elevations_deg=(25.0, -10.0)), NOISE, pose_deg=0.2)
    scene = inputs.scene
    result = run(inputs, TriangulateConfig())
    aligned = object_from_world(inputs, result)
    distance = scene.surface_distance(transforms.apply(aligned, result.points.astype(float)))
    nearest, _ = cKDTree(transforms.apply(aligned, result.points.astype(float))).query(scene.surface_samples(20000))
    assert np.median(distance) <= 0.007
    assert (nearest <= 0.015).mean() >= 0.9
    rig = make_rig(inputs.views, inputs.alignment).moved(result.world_from_cam, result.working_intrinsics)
    assert outside_votes(rig, [view.mask for view in inputs.views], result.points.astype(float), 2.0).max() == 0
    mesh = trimesh.Trimesh(transforms.apply(aligned, result.mesh.vertices.astype(float)), result.mesh.faces)
    truth = trimesh.Trimesh(scene.mesh.vertices, scene.mesh.faces)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(truth.volume, rel=0.05)
    overlap = []
    for n, view in enumerate(inputs.views):
        size = (view.width, view.height)
        _, drawn = render_points(result.points, result.colors, result.intrinsics[n], result.cam_from_world[n], size)
        overlap.append(silhouette_iou(drawn, view.mask))
    assert min(overlap) >= 0.95
