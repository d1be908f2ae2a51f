"""COLMAP models: what pycolmap reads equals what was written; its own errors, pixels and adjustment agree."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from small_reconstruction import LOST, VIEWS, make_reconstruction

from sparse_ga.errors import InputError
from sparse_ga.geometry import transforms
from sparse_ga.io.colmap import colmap_model, write_colmap
from sparse_ga.products import Reconstruction, Tracks

VIEW_OF_IMAGE = [n for n in range(VIEWS) if n != LOST]


@pytest.fixture(scope="module")
def reconstruction() -> Reconstruction:
    return make_reconstruction()


@pytest.fixture(params=[False, True], ids=["binary", "text"])
def model(request: pytest.FixtureRequest, reconstruction: Reconstruction, tmp_path: Path) -> pycolmap.Reconstruction:
    if request.param:
        names = tuple(name.replace(" ", "_") for name in reconstruction.names)
        reconstruction = replace(reconstruction, names=names)
    write_colmap(reconstruction, tmp_path / "model", text=request.param)
    return pycolmap.Reconstruction(str(tmp_path / "model"))


def test_cameras_and_poses_are_read_as_written(model: pycolmap.Reconstruction, reconstruction: Reconstruction) -> None:
    assert model.num_reg_images() == VIEWS - 1
    assert model.num_cameras() == 1
    for image in model.images.values():
        n = reconstruction.names.index(image.name.replace("_", " "))
        np.testing.assert_allclose(
            image.cam_from_world().matrix(), reconstruction.cam_from_world[n, :3], rtol=0, atol=1e-12
        )
        k = image.camera.calibration_matrix()
        np.testing.assert_allclose(k[:2, :2], reconstruction.intrinsics[n, :2, :2], rtol=1e-12)
        np.testing.assert_allclose(k[:2, 2], reconstruction.intrinsics[n, :2, 2] + 0.5, rtol=1e-12)
        assert (image.camera.width, image.camera.height) == tuple(reconstruction.source_sizes[n])
        assert image.camera.model_name == "PINHOLE"  # fx and fy differ
    assert not any(str(LOST) in image.name for image in model.images.values())


def test_tracks_and_2d_points_are_read_as_written(
    model: pycolmap.Reconstruction, reconstruction: Reconstruction
) -> None:
    tracks = reconstruction.tracks
    assert model.num_points3D() == len(reconstruction.track_points)
    assert model.compute_num_observations() == len(tracks)
    for row in (0, 17, len(reconstruction.track_points) - 1):
        point = model.point3D(row + 1)
        np.testing.assert_allclose(point.xyz, reconstruction.track_points[row], atol=1e-12)
        np.testing.assert_array_equal(point.color, reconstruction.track_colors[row])
        mine = np.nonzero(tracks.point_index == row)[0]
        found = {e.image_id: model.image(e.image_id).point2D(e.point2D_idx).xy for e in point.track.elements}
        assert sorted(found) == sorted(VIEW_OF_IMAGE.index(int(n)) + 1 for n in tracks.view_index[mine])
        for o in mine:
            seen = found[VIEW_OF_IMAGE.index(int(tracks.view_index[o])) + 1]
            np.testing.assert_allclose(seen, tracks.xy[o] + 0.5, atol=1e-6)


def test_pycolmaps_own_error_knows_the_half_pixel(model: pycolmap.Reconstruction) -> None:
    model.update_point_3d_errors()
    # noise of 0.1 px a coordinate: 0.125 on average; half a pixel off would be 0.7
    assert model.compute_mean_reprojection_error() == pytest.approx(0.125, abs=0.02)


def test_pycolmaps_bundle_adjustment_moves_no_camera(
    model: pycolmap.Reconstruction, reconstruction: Reconstruction
) -> None:
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.ceres.solver_options.num_threads = 1
    pycolmap.bundle_adjustment(model, options)
    new = np.stack([model.image(i + 1).cam_from_world().matrix()[:, :3] for i in range(VIEWS - 1)])
    old = reconstruction.cam_from_world[VIEW_OF_IMAGE, :3, :3]
    turn = transforms.rotation_angle_deg(np.swapaxes(new[0] @ old[0].T @ old, 1, 2) @ new)
    assert turn.max() < 0.5


def test_intrinsics_that_differ_get_cameras_of_their_own(reconstruction: Reconstruction) -> None:
    k = reconstruction.intrinsics.copy()
    k[1, 0, 0] += 10
    model = colmap_model(replace(reconstruction, intrinsics=k))
    assert model.num_cameras() == 2
    assert model.image(2).camera.params[0] == pytest.approx(k[1, 0, 0])


def test_square_pixels_keep_one_focal_length(reconstruction: Reconstruction) -> None:
    k = reconstruction.intrinsics.copy()
    k[:, 1, 1] = k[:, 0, 0]
    square = replace(reconstruction, intrinsics=k)
    model, dense = colmap_model(square), colmap_model(square, "dense")  # kept: cameras are references into them
    camera = model.image(1).camera
    assert camera.model_name == "SIMPLE_PINHOLE"
    np.testing.assert_allclose(camera.params, [k[0, 0, 0], k[0, 0, 2] + 0.5, k[0, 1, 2] + 0.5])
    assert dense.image(1).camera.model_name == "PINHOLE"


def test_the_dense_cloud_comes_after_the_tracks(reconstruction: Reconstruction, tmp_path: Path) -> None:
    write_colmap(reconstruction, tmp_path, points="dense")
    model = pycolmap.Reconstruction(str(tmp_path))
    count = len(reconstruction.track_points)
    assert model.num_points3D() == count + len(reconstruction.points)
    np.testing.assert_allclose(model.point3D(count + 1).xyz, reconstruction.points[0], atol=1e-6)
    assert model.point3D(count + 1).track.length() == 0


def test_nothing_registered_is_an_empty_model(reconstruction: Reconstruction, tmp_path: Path) -> None:
    empty = replace(
        reconstruction,
        registered=np.zeros(VIEWS, bool),
        tracks=Tracks.empty(),
        track_points=np.zeros((0, 3)),
        track_colors=np.zeros((0, 3), np.uint8),
        track_errors=np.zeros(0),
    )
    write_colmap(empty, tmp_path)
    assert pycolmap.Reconstruction(str(tmp_path)).num_images() == 0


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(reconstruction: Reconstruction, tmp_path: Path) -> None:
    plain = replace(reconstruction, names=tuple(name.replace(" ", "_") for name in reconstruction.names))
    here = [path for text in (False, True) for path in write_colmap(plain, tmp_path / "a" / str(text), text)]
    plain.save(tmp_path)
    script = (
        "import sys; from pathlib import Path; from sparse_ga.products import Reconstruction; "
        "from sparse_ga.io.colmap import write_colmap; folder = Path(sys.argv[1]); "
        "[write_colmap(Reconstruction.load(folder), folder / 'b' / str(t), t) for t in (False, True)]"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    for path in here:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes(), path.name


def test_text_models_cannot_hold_names_with_spaces(reconstruction: Reconstruction, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'photo 0\.jpg'.*binary"):
        write_colmap(reconstruction, tmp_path, text=True)
    names = tuple(f"photo 3{n}.jpg" if n == LOST else f"photo{n}.jpg" for n in range(VIEWS))
    assert write_colmap(replace(reconstruction, names=names), tmp_path, text=True)  # what is not written has any name
