"""Exports with pictures: 3DGS folder with central principal points, nerfstudio, depth maps, NPZ, sidecar."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from small_reconstruction import HEIGHT, LOST, VIEWS, WIDTH, load_source, make_reconstruction

from sparse_ga.config import ExportConfig
from sparse_ga.errors import InputError
from sparse_ga.io.centering import center_principal_point, shift_image, shift_mask
from sparse_ga.io.depthmaps import source_depth
from sparse_ga.io.export import FORMATS, export
from sparse_ga.products import Array, DepthMaps, Mesh, Reconstruction, Tracks

REGISTERED = [n for n in range(VIEWS) if n != LOST]


@pytest.fixture(scope="module")
def reconstruction() -> Reconstruction:
    return make_reconstruction()


def picture(path: Path) -> Array:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image[..., [2, 1, 0, *range(3, image.shape[2])]] if image.ndim == 3 else image


def dots(n: int, points: Array, reconstruction: Reconstruction) -> tuple[Array, Array]:
    """A black photograph with a soft white dot, 3 px wide, where each point projects."""
    cam = points @ reconstruction.cam_from_world[n, :3, :3].T + reconstruction.cam_from_world[n, :3, 3]
    k = reconstruction.intrinsics[n]
    xy = cam[:, :2] / cam[:, 2:] * np.diag(k)[:2] + k[:2, 2]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = sum(250 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 1.5**2)) for u, v in xy)
    return np.repeat(np.rint(image).astype(np.uint8)[..., None], 3, 2), np.ones((HEIGHT, WIDTH), bool)


@pytest.mark.parametrize("how", ["crop", "pad"])
@pytest.mark.parametrize("offset", [(4.3, -2.6), (-7.0, 3.0), (0.25, -0.5), (0.0, 0.0)])
def test_projections_stay_where_they_were_after_centring(how: str, offset: tuple[float, float], tmp_path: Path) -> None:
    """Seen as 3DGS sees it: focal length from the model, principal point taken to be the middle of the image."""
    r = make_reconstruction(offset)
    points = np.array([[0.0, 0, 0], [0.45, 0.3, 0.1], [-0.4, -0.35, 0.2], [0.4, -0.4, -0.3]])
    export(r, tmp_path, ["3dgs"], lambda n: dots(n, points, r), ExportConfig(centering=how, background="keep"))  # type: ignore[arg-type]
    model = pycolmap.Reconstruction(str(tmp_path / "3dgs" / "sparse" / "0"))
    worst, tested = 0.0, 0
    for image in list(model.images.values())[:3]:
        seen = picture(tmp_path / "3dgs" / "images" / image.name)[..., 0].astype(float)
        camera = image.camera
        assert seen.shape == (camera.height, camera.width)
        assert (camera.principal_point_x, camera.principal_point_y) == (camera.width / 2, camera.height / 2)
        cam = points @ image.cam_from_world().matrix()[:, :3].T + image.cam_from_world().matrix()[:, 3]
        middle = np.array([camera.width, camera.height]) / 2 - 0.5
        landed = cam[:, :2] / cam[:, 2:] * [camera.focal_length_x, camera.focal_length_y] + middle
        for u, v in landed:
            if np.sort(np.abs(landed - (u, v)).max(1))[1] < 12:
                continue  # another dot would be in the way
            tested += 1
            y, x = np.mgrid[: camera.height, : camera.width]
            near = np.maximum(np.abs(x - u), np.abs(y - v)) < 6
            weight = seen * near
            centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
            worst = max(worst, float(np.abs(centre - (u, v)).max()))
    assert tested >= 6
    assert worst < 0.05


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_centring_is_exact_and_moves_whole_pixels_where_it_can(how: str) -> None:
    k = np.array([[100.0, 0, 63.0], [0, 100.0, 40.5], [0, 0, 1]])
    centered = center_principal_point(k, (WIDTH, HEIGHT), how)  # type: ignore[arg-type]
    width, height = centered.size
    np.testing.assert_allclose(centered.intrinsics[:2, 2], [(width - 1) / 2, (height - 1) / 2])
    np.testing.assert_allclose(k[:2, 2] + centered.shift, centered.intrinsics[:2, 2], atol=0.02)
    assert (centered.shift == np.rint(centered.shift)).all()
    assert (width <= WIDTH and height <= HEIGHT) if how == "crop" else (width >= WIDTH and height >= HEIGHT)
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    moved = shift_image(image, centered)
    x, y = (-centered.shift).astype(int)
    if how == "crop":
        np.testing.assert_array_equal(moved, image[max(y, 0) : max(y, 0) + height, max(x, 0) : max(x, 0) + width])
    else:
        np.testing.assert_array_equal(moved[-y if y < 0 else 0 :][:HEIGHT, -x if x < 0 else 0 :][:, :WIDTH], image)
    mask = image[..., 0] > 128
    assert shift_mask(mask, centered).shape == (height, width)


def test_off_changes_nothing() -> None:
    k = np.array([[100.0, 0, 63.0], [0, 100.0, 40.5], [0, 0, 1]])
    centered = center_principal_point(k, (WIDTH, HEIGHT), "off")
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert shift_image(image, centered) is image
    np.testing.assert_array_equal(centered.intrinsics, k)


def test_gaussian_folder(reconstruction: Reconstruction, tmp_path: Path) -> None:
    export(reconstruction, tmp_path, ["3dgs"], load_source)
    folder = tmp_path / "3dgs"
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert {c.model_name for c in model.cameras.values()} == {"PINHOLE"}
    assert sorted(path.name for path in (folder / "images").iterdir()) == [f"photo {n}.png" for n in REGISTERED]
    assert {image.name for image in model.images.values()} == {f"photo {n}.png" for n in REGISTERED}
    assert model.num_points3D() == len(reconstruction.points) + len(reconstruction.track_points)
    for n in REGISTERED:
        image, mask = picture(folder / "images" / f"photo {n}.png"), picture(folder / "masks" / f"photo {n}.png")
        assert image.shape == (*mask.shape, 3)
        assert set(np.unique(mask)) == {0, 255}
        assert (image[mask == 0] == 0).all()
        assert image[mask > 0].any()
    assert model.compute_mean_reprojection_error() < 0.2


def test_rgba_and_other_backgrounds(reconstruction: Reconstruction, tmp_path: Path) -> None:
    export(reconstruction, tmp_path / "a", ["3dgs"], load_source, ExportConfig(rgba=True))
    image = picture(tmp_path / "a" / "3dgs" / "images" / "photo 0.png")
    mask = picture(tmp_path / "a" / "3dgs" / "masks" / "photo 0.png")
    assert image.shape[2] == 4
    np.testing.assert_array_equal(image[..., 3], mask)
    export(reconstruction, tmp_path / "b", ["3dgs"], load_source, ExportConfig(background="white"))
    white = picture(tmp_path / "b" / "3dgs" / "images" / "photo 0.png")
    assert (white[mask == 0] == 255).all()
    export(reconstruction, tmp_path / "c", ["3dgs"], load_source, ExportConfig(background="keep", centering="off"))
    np.testing.assert_array_equal(picture(tmp_path / "c" / "3dgs" / "images" / "photo 0.png"), load_source(0)[0])


def test_nerfstudio(reconstruction: Reconstruction, tmp_path: Path) -> None:
    export(reconstruction, tmp_path, ["nerfstudio"], load_source)
    folder = tmp_path / "nerfstudio"
    told = json.loads((folder / "transforms.json").read_text())
    assert len(told["frames"]) == len(REGISTERED)
    assert (folder / told["ply_file_path"]).is_file()
    for frame, n in zip(told["frames"], REGISTERED, strict=True):
        image, mask = picture(folder / frame["file_path"]), picture(folder / frame["mask_path"])
        np.testing.assert_array_equal(image, load_source(n)[0])
        np.testing.assert_array_equal(mask > 0, load_source(n)[1])
        assert (frame["w"], frame["h"]) == (WIDTH, HEIGHT)
        # a point straight ahead of the principal point, in OpenGL's axes
        k = reconstruction.intrinsics[n]
        assert frame["cx"] == pytest.approx(k[0, 2] + 0.5)
        ahead = np.array(frame["transform_matrix"]) @ [0, 0, -2, 1]
        cam = reconstruction.cam_from_world[n] @ ahead
        np.testing.assert_allclose(cam[:3], [0, 0, 2], atol=1e-9)
        up = np.array(frame["transform_matrix"])[:3, 1]
        np.testing.assert_allclose(up, -reconstruction.world_from_cam[n, :3, 1], atol=1e-12)
        depth = np.load(folder / frame["depth_file_path"]) * 1e-3  # as nerfstudio reads it
        check_depth(depth, n, reconstruction, 0.015)


@pytest.mark.parametrize("scale", [2e-3, 500.0])
def test_nerfstudio_depth_is_exact_in_any_unit(reconstruction: Reconstruction, tmp_path: Path, scale: float) -> None:
    maps = reconstruction.depthmaps
    scaled = replace(reconstruction, depthmaps=replace(maps, depth=maps.depth * np.float32(scale)))
    export(scaled, tmp_path, ["nerfstudio"], load_source)
    frame = json.loads((tmp_path / "nerfstudio" / "transforms.json").read_text())["frames"][0]
    depth = np.load(tmp_path / "nerfstudio" / frame["depth_file_path"]) * 1e-3
    np.testing.assert_allclose(depth, source_depth(scaled, REGISTERED[0]), rtol=1e-6)


def without_views(reconstruction: Reconstruction) -> Reconstruction:
    """The same with nothing registered, and so with nothing in it."""
    nothing = [np.zeros((HEIGHT // 2, WIDTH // 2), np.float32)] * VIEWS
    return replace(
        reconstruction,
        registered=np.zeros(VIEWS, bool),
        reasons=("no matches",) * VIEWS,
        points=np.zeros((0, 3), np.float32),
        colors=np.zeros((0, 3), np.uint8),
        normals=np.zeros((0, 3), np.float32),
        point_confidence=np.zeros(0, np.float32),
        tracks=Tracks.empty(),
        track_points=np.zeros((0, 3)),
        track_colors=np.zeros((0, 3), np.uint8),
        track_errors=np.zeros(0),
        depthmaps=DepthMaps.pack(nothing, nothing),
        mesh=Mesh.empty(),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_with_nothing_registered_every_format_is_empty(
    reconstruction: Reconstruction, tmp_path: Path, name: str
) -> None:
    nothing = replace(without_views(reconstruction), names=tuple(f"{n}.jpg" for n in range(VIEWS)))
    files = export(nothing, tmp_path, [name], load_source)
    assert files
    assert all(path.is_file() for path in files)
    if name == "nerfstudio":
        assert json.loads((tmp_path / "nerfstudio" / "transforms.json").read_text())["frames"] == []


def test_files_of_an_earlier_result_go(reconstruction: Reconstruction, tmp_path: Path) -> None:
    plain = replace(reconstruction, names=tuple(f"{n}.jpg" for n in range(VIEWS)))
    export(plain, tmp_path, FORMATS, load_source)
    left = plain.registered & (np.arange(VIEWS) != 0)
    lost = replace(without_views(plain), registered=left, depthmaps=plain.depthmaps)
    own = tmp_path / "depth" / "own.png"
    own.write_bytes(b"not ours")
    (tmp_path / "nerfstudio" / "depths" / "1.png").write_bytes(b"as earlier versions wrote it")
    written = export(lost, tmp_path, FORMATS, load_source)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*written, own}
    assert not [path for path in written if path.stem in ("0", "mesh")]


def check_depth(depth: Array, n: int, reconstruction: Reconstruction, tolerance: float) -> None:
    """Points of a source-resolution depth map lie on the unit ball, on the object only."""
    _, mask = load_source(n)
    assert depth.shape == mask.shape
    core = cv2.erode(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (depth[core] > 0).all()
    assert (depth[~grown] == 0).all()
    y, x = np.nonzero(core)
    k = reconstruction.intrinsics[n]
    cam = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones(len(x))], 1) * depth[core][:, None]
    world = cam @ reconstruction.world_from_cam[n, :3, :3].T + reconstruction.world_from_cam[n, :3, 3]
    assert np.abs(np.linalg.norm(world, axis=1) - 1).max() < tolerance


def test_depth_maps(reconstruction: Reconstruction, tmp_path: Path) -> None:
    export(reconstruction, tmp_path, ["depth"])
    unit = json.loads((tmp_path / "scene.json").read_text())["depth_png_unit"]
    for n in REGISTERED:
        png = picture(tmp_path / "depth" / f"photo {n}.png")
        assert png.dtype == np.uint16
        check_depth(png * unit, n, reconstruction, 0.015)
        with np.load(tmp_path / "depth" / f"photo {n}.npz", allow_pickle=False) as stored:
            depth, confidence = reconstruction.depthmaps.view(n)
            np.testing.assert_array_equal(stored["depth"], depth)
            np.testing.assert_array_equal(stored["confidence"], confidence)
            np.testing.assert_allclose(stored["intrinsics"], reconstruction.working_intrinsics[n])
    assert not (tmp_path / "depth" / f"photo {LOST}.png").exists()


def test_npz_holds_everything(reconstruction: Reconstruction, tmp_path: Path) -> None:
    path = export(reconstruction, tmp_path, ["npz"])[0]
    with np.load(path, allow_pickle=False) as stored:
        assert stored["names"].tolist() == [f"photo {n}.jpg" for n in REGISTERED]
        assert stored["unregistered"].tolist() == [f"photo {LOST}.jpg"]
        np.testing.assert_array_equal(stored["points"], reconstruction.points)
        np.testing.assert_array_equal(stored["world_from_cam"], reconstruction.world_from_cam[REGISTERED])
        assert stored["track_view_index"].max() == len(REGISTERED) - 1
        for name in stored.files:
            if stored[name].dtype.kind == "f":
                assert np.isfinite(stored[name]).all(), name


def test_the_sidecar_tells_units_frame_and_what_is_missing(reconstruction: Reconstruction, tmp_path: Path) -> None:
    export(reconstruction, tmp_path, ["ply"])
    told = json.loads((tmp_path / "scene.json").read_text())
    assert told["units"] == "arbitrary"
    assert told["frame"] == "first registered camera"
    assert told["unregistered"] == [{"name": f"photo {LOST}.jpg", "reason": "no matches"}]
    assert [camera["name"] for camera in told["cameras"]] == [f"photo {n}.jpg" for n in REGISTERED]
    given = replace(reconstruction, report=replace(reconstruction.report, units="given", frame="given"))
    export(given, tmp_path, ["ply"])
    assert json.loads((tmp_path / "scene.json").read_text())["units"] == "given"


def test_every_format_twice_gives_the_same_bytes(reconstruction: Reconstruction, tmp_path: Path) -> None:
    plain = replace(reconstruction, names=tuple(f"{n}.jpg" for n in range(VIEWS)))
    files = [export(plain, tmp_path / name, FORMATS, load_source) for name in "ab"]
    assert len(files[0]) == len(files[1]) > 40
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes(), one
    assert not [path for path in (tmp_path / "a").rglob("*") if f"{LOST}." in path.name]


def test_errors_say_what_to_do(reconstruction: Reconstruction, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown export format 'stl'; choose from ply, glb"):
        export(reconstruction, tmp_path, ["stl"])
    with pytest.raises(InputError, match="'3dgs' needs the photographs"):
        export(reconstruction, tmp_path, ["ply", "3dgs"])
    assert not any(tmp_path.iterdir())


def test_cropping_around_a_principal_point_outside_leaves_nothing_and_is_refused(
    reconstruction: Reconstruction, tmp_path: Path
) -> None:
    k = reconstruction.intrinsics.copy()
    k[REGISTERED[0], 0, 2] = -20.0
    far = replace(reconstruction, intrinsics=k)
    with pytest.raises(InputError, match="centering=pad"):
        export(far, tmp_path, ["3dgs"], load_source, ExportConfig(centering="crop"))
    assert export(far, tmp_path, ["3dgs"], load_source, ExportConfig(centering="pad"))
