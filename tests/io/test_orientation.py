"""EXIF orientation: COLMAP's cameras are of the pixels as files store them, ours of the upright photograph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_ga._pycolmap import pycolmap
from sparse_ga.config import Config
from sparse_ga.errors import InputError
from sparse_ga.geometry import transforms
from sparse_ga.geometry.cameras import make_intrinsics, project
from sparse_ga.io.cameras_file import GivenCamera, assign_cameras, read_cameras
from sparse_ga.io.export import export
from sparse_ga.io.images import read_photograph
from sparse_ga.io.orientation import is_mirrored, turned_size, upright_from_stored
from sparse_ga.products import DepthMaps, MaskStack, Reconstruction, Tracks
from sparse_ga.stages import ingest

STORED = (48, 32)
K = np.array([[50.0, 0, 21.0], [0, 52.0, 17.5], [0, 0, 1]])
POSE = np.array([[0.8, 0, 0.6, -1.2], [0, 1, 0, 0.1], [-0.6, 0, 0.8, -1.6], [0, 0, 0, 1]])
POINTS = np.array([[0.0, 0, 0], [0.2, 0.1, 0.05], [-0.15, 0.2, 0.1]])


def stored_pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (STORED[1], STORED[0], 3)).astype(np.uint8)


def save(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(stored_pixels()).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_stored_pixel_comes_to_where_reading_puts_it(tmp_path: Path, orientation: int, suffix: str) -> None:
    photograph = read_photograph(save(tmp_path / f"a{suffix}", orientation))
    assert photograph.orientation == orientation
    assert photograph.size == turned_size(STORED, orientation)
    y, x = np.mgrid[: STORED[1], : STORED[0]].reshape(2, -1)
    moved = upright_from_stored(orientation, STORED) @ np.stack([x, y, np.ones_like(x)])
    u, v = np.rint(moved[:2]).astype(int)
    np.testing.assert_array_equal(photograph.image[v, u], stored_pixels()[y, x])


def view_of(path: Path, camera: GivenCamera | None) -> ingest.View:
    return ingest.run(ingest.make_source(path, None, camera), Config())


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_colmap_camera_is_turned_with_its_photograph(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "a.png", orientation)
    view = view_of(path, GivenCamera(K, POSE, STORED, stored=True))
    assert view.intrinsics is not None
    assert view.world_from_cam is not None
    upright = upright_from_stored(orientation, STORED)
    xy_stored, _ = project(K, transforms.apply(np.linalg.inv(POSE), POINTS))
    xy, _ = project(view.intrinsics, transforms.apply(np.linalg.inv(view.world_from_cam), POINTS))
    to_working = (view.working_from_source @ upright)[:2]
    np.testing.assert_allclose(xy, xy_stored @ to_working[:, :2].T + to_working[:, 2], atol=1e-9)


def test_cameras_of_upright_copies_and_of_json_files_stay(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 6)
    upright_size = turned_size(STORED, 6)
    k = make_intrinsics(50.0, np.array([15.0, 23.0]))
    for camera in (GivenCamera(k, POSE, upright_size, stored=True), GivenCamera(k, POSE)):
        view = view_of(path, camera)
        np.testing.assert_array_equal(view.world_from_cam, POSE)
        np.testing.assert_allclose(view.intrinsics, view.working_from_source @ k)


def test_a_mirrored_photograph_has_no_colmap_camera(tmp_path: Path) -> None:
    assert [tag for tag in range(1, 9) if is_mirrored(tag)] == [2, 4, 5, 7]
    with pytest.raises(InputError, match="mirrors"):
        view_of(save(tmp_path / "a.png", 5), GivenCamera(K, POSE, STORED, stored=True))


def test_the_digest_of_a_view_knows_which_pixels_a_camera_is_of(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 3)
    sources = [ingest.make_source(path, None, GivenCamera(K, POSE, STORED, stored=stored)) for stored in (False, True)]
    assert sources[0].content_digest != sources[1].content_digest


def turned_reconstruction(orientations: tuple[int, ...]) -> Reconstruction:
    """Photographs of one camera, stored alike and read upright by their orientations; tracks of `POINTS`."""
    n = len(orientations)
    views = []
    for tag in orientations:
        camera = GivenCamera(K, POSE, STORED, stored=True)
        views.append(camera if is_mirrored(tag) else camera.upright(tag, turned_size(STORED, tag), "a"))
    poses = np.stack([v.world_from_cam for v in views if v.world_from_cam is not None])
    intrinsics = np.stack([v.intrinsics for v in views if v.intrinsics is not None])
    xy = [project(k, transforms.apply(np.linalg.inv(p), POINTS))[0] for k, p in zip(intrinsics, poses, strict=True)]
    count = len(POINTS)
    tracks = Tracks(np.repeat(np.arange(count), n), np.tile(np.arange(n), count), np.stack(xy, 1).reshape(-1, 2))
    nothing = np.zeros((4, 4), np.float32)
    return Reconstruction(
        names=tuple(f"{number}.png" for number in range(n)),
        registered=np.ones(n, bool),
        reasons=("",) * n,
        world_from_cam=poses,
        intrinsics=intrinsics,
        source_sizes=np.array([v.size for v in views], np.int64),
        working_from_source=np.tile(np.eye(3), (n, 1, 1)),
        points=POINTS,
        colors=np.zeros((count, 3), np.uint8),
        normals=np.tile(np.float32([0, 0, 1]), (count, 1)),
        point_confidence=np.ones(count, np.float32),
        tracks=tracks,
        track_points=POINTS,
        track_colors=np.zeros((count, 3), np.uint8),
        track_errors=np.zeros(count),
        depthmaps=DepthMaps.pack([nothing] * n, [nothing] * n),
        masks=MaskStack.pack([nothing > 0] * n),
        orientations=orientations,
    )


def test_an_exported_model_fits_the_files_that_colmap_opens(tmp_path: Path) -> None:
    orientations = (1, 3, 6, 8)
    made = turned_reconstruction(orientations)
    export(made, tmp_path, ["colmap", "colmap-text"])
    for folder in ("colmap", "colmap_text"):
        model = pycolmap.Reconstruction(str(tmp_path / folder))
        assert len(model.cameras) == 1  # one sensor, however it was held
        for image in model.images.values():
            assert (image.camera.width, image.camera.height) == STORED
            np.testing.assert_allclose(image.cam_from_world().matrix(), np.linalg.inv(POSE)[:3], atol=1e-9)
            for seen in image.points2D:
                error = image.project_point(model.points3D[seen.point3D_id].xyz) - seen.xy
                assert np.abs(error).max() < 1e-6
    given = read_cameras(tmp_path / "colmap")
    back = assign_cameras(made.names, given, "cameras")
    for n, tag in enumerate(orientations):
        camera = back[n]
        assert camera is not None
        upright = camera.upright(tag, tuple(made.source_sizes[n].tolist()), "a")
        np.testing.assert_allclose(upright.intrinsics, made.intrinsics[n], atol=1e-9)
        np.testing.assert_allclose(upright.world_from_cam, made.world_from_cam[n], atol=1e-9)


def test_upright_and_mirrored_photographs_are_exported_upright(tmp_path: Path) -> None:
    made = turned_reconstruction((1, 5, 2))
    export(made, tmp_path / "a", ["colmap"])
    export(replace(made, orientations=()), tmp_path / "b", ["colmap"])
    for name in ("cameras", "images", "points3D"):
        assert (tmp_path / "a/colmap" / f"{name}.bin").read_bytes() == (
            tmp_path / "b/colmap" / f"{name}.bin"
        ).read_bytes()
