"""Metrics: exact on constructed errors, strict about sign, unregistered views and degenerate sets."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from sparse_ga import evaluation
from sparse_ga.evaluation import CameraSet
from sparse_ga.geometry import transforms
from sparse_ga.products import Array, InvalidProduct
from sparse_ga.synthetic.scene import SceneConfig, make_scene


def ring(n: int = 8) -> Array:
    """Poses (N, 4, 4) looking inwards from a ring of radius 2."""
    angle = np.arange(n) * 2 * np.pi / n
    turn = transforms.exp_so3(np.stack([0 * angle, angle, 0 * angle], -1))
    return transforms.make(turn, -2 * turn[:, :, 2] + [0, 0.3, 0])


def camera_set(poses: Array, focal: float = 500.0) -> CameraSet:
    k = np.array([[focal, 0, 320], [0, focal, 240], [0, 0, 1.0]])
    names = [f"{n:02d}.png" for n in range(len(poses))]
    return CameraSet.known(names, poses, np.tile(k, (len(poses), 1, 1)))


def similarity(scale: float) -> Array:
    return transforms.make(transforms.exp_so3(np.array([0.4, -1.2, 2.0])), np.array([3.0, -1, 5]), scale)


def moved(poses: Array, scale: float = 0.37) -> Array:
    """The same cameras in another world frame."""
    result = similarity(scale) @ poses
    result[:, :3, :3] /= scale
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_perfect_up_to_similarity(dtype: type) -> None:
    truth = camera_set(ring())
    metrics = evaluation.evaluate_cameras(camera_set(moved(ring()).astype(dtype)), truth)
    limit = 0.05 if dtype is np.float32 else 1e-5
    assert (metrics.rra5, metrics.rta5, metrics.auc30, metrics.auc30_registered) == (100, 100, 100, 100)
    assert metrics.rotation_median_deg < limit
    assert metrics.worst_view_deg < limit
    assert metrics.ate < limit
    assert metrics.focal_error_percent == 0


def test_relative_errors_equal_the_rotation_put_in() -> None:
    truth = ring(4)
    estimate = truth.copy()
    estimate[2, :3, :3] = estimate[2, :3, :3] @ transforms.exp_so3(np.radians([0, 7.0, 0]))
    rotation, direction = evaluation.relative_errors_deg(estimate, truth)
    touched = np.array([2 in pair for pair in zip(*np.triu_indices(4, 1), strict=True)])
    np.testing.assert_allclose(rotation, np.where(touched, 7.0, 0), atol=1e-6)
    first = np.array([i == 2 for i, _ in zip(*np.triu_indices(4, 1), strict=True)])  # direction is in the first's frame
    np.testing.assert_allclose(direction[~first], 0, atol=1e-6)
    assert direction[first][0] == pytest.approx(7.0, abs=1e-6)


def test_translation_direction_has_a_sign() -> None:
    truth = np.tile(np.eye(4), (2, 1, 1))
    truth[1, 0, 3] = 1
    estimate = truth.copy()
    estimate[1, 0, 3] = -1
    _, direction = evaluation.relative_errors_deg(estimate, truth)
    assert direction[0] == pytest.approx(180)
    estimate[1, 0, 3] = 0
    _, direction = evaluation.relative_errors_deg(estimate, truth)
    assert direction[0] == 180  # two centres made one


def test_pairs_without_a_baseline_are_judged_by_rotation() -> None:
    truth = ring(4)
    truth[1, :3, 3] = truth[0, :3, 3]
    estimate = truth.copy()
    estimate[1, :3, 3] += 0.01
    _, direction = evaluation.relative_errors_deg(estimate, truth)
    assert direction[0] == 0


def test_area_under_curve_counts_thresholds() -> None:
    assert evaluation.area_under_curve(np.array([0.5])) == pytest.approx(100)
    assert evaluation.area_under_curve(np.array([14.5])) == pytest.approx(100 * 16 / 30)  # 15, 16, ..., 30
    assert evaluation.area_under_curve(np.array([30.0])) == 0
    assert evaluation.area_under_curve(np.array([0.5, np.inf])) == pytest.approx(50)
    assert evaluation.area_under_curve(np.zeros(0)) == 0


def test_unregistered_and_missing_views_are_failures() -> None:
    truth = camera_set(ring(5))
    good = camera_set(moved(ring(5)))
    partial = CameraSet(
        good.names[:4], np.array([True, True, True, False]), good.world_from_cam[:4], good.intrinsics[:4]
    )
    metrics = evaluation.evaluate_cameras(partial, truth)
    assert metrics.registered == 3
    assert metrics.rra5 == pytest.approx(100 * 3 / 10)  # three pairs of ten
    assert metrics.auc30 == pytest.approx(100 * 3 / 10)
    assert metrics.auc30_registered == pytest.approx(100)
    assert metrics.ate == pytest.approx(0, abs=1e-9)


def test_poses_of_unregistered_views_are_not_looked_at() -> None:
    truth = camera_set(ring(5))
    poses = ring(5)
    poses[4] = np.nan
    registered = np.array([True, True, True, True, False])
    metrics = evaluation.evaluate_cameras(CameraSet(truth.names, registered, poses, truth.intrinsics), truth)
    assert metrics.auc30 == pytest.approx(60)
    assert np.isfinite(metrics.worst_view_deg)


def test_nothing_registered() -> None:
    truth = camera_set(ring(3))
    nothing = CameraSet((), np.zeros(0, bool), np.zeros((0, 4, 4)), np.zeros((0, 3, 3)))
    metrics = evaluation.evaluate_cameras(nothing, truth)
    assert (metrics.registered, metrics.rra15, metrics.auc30, metrics.auc30_registered) == (0, 0, 0, 0)
    assert metrics.ate is None
    assert metrics.focal_error_percent is None
    assert "not determined" in metrics.format()
    assert json.loads(metrics.to_json())["ate"] is None


def test_one_wrong_view_is_the_worst_and_leaves_the_others() -> None:
    poses = moved(ring(8))
    poses[3, :3, :3] = poses[3, :3, :3] @ transforms.exp_so3(np.radians([40.0, 0, 0]))
    errors = evaluation.view_rotation_errors_deg(poses, ring(8))
    assert errors[3] == pytest.approx(40, abs=1e-6)
    np.testing.assert_allclose(np.delete(errors, 3), 0, atol=1e-6)


def test_trajectory_error_is_in_units_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = ring(200)
    noisy = truth.copy()
    noisy[:, :3, 3] += rng.normal(size=(200, 3)) * 0.01
    metrics = evaluation.evaluate_cameras(camera_set(moved(noisy)), camera_set(truth))
    assert metrics.ate == pytest.approx(0.01 * np.sqrt(3), rel=0.1)
    assert metrics.ate_percent == pytest.approx(100 * metrics.ate / 4, rel=1e-6)


def test_focal_error() -> None:
    metrics = evaluation.evaluate_cameras(camera_set(ring(), 510.0), camera_set(ring(), 500.0))
    assert metrics.focal_error_percent == pytest.approx(2)


def test_collinear_centres_do_not_align() -> None:
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 0, 3] = np.arange(4)
    metrics = evaluation.evaluate_cameras(camera_set(poses), camera_set(poses))
    assert metrics.ate is None
    assert metrics.auc30 == 100


def test_two_views_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidProduct, match="one name"):
        CameraSet.known(["a", "a"], ring(2), np.tile(np.eye(3), (2, 1, 1)))


def test_surface_metrics() -> None:
    surface = np.stack([np.linspace(0, 1, 101), np.zeros(101), np.zeros(101)], -1)
    points = surface[:51] + np.array([0, 0.004, 0])
    points[:10, 1] = 0.5
    metrics = evaluation.evaluate_surface(points, points[:, 1], surface, 2.0, (0.01, 0.005))
    assert metrics.accuracy_median == pytest.approx(0.2)
    assert metrics.accuracy_share == pytest.approx(100 * 41 / 51)
    assert metrics.completeness_share == pytest.approx(100 * 41 / 101)
    empty = evaluation.evaluate_surface(np.zeros((0, 3)), np.zeros(0), surface)
    assert (empty.points, empty.accuracy_median, empty.accuracy_share, empty.completeness_share) == (0, None, 0, 0)
    assert "not determined" in empty.format()


def evaluate_program(name: str = "evaluate") -> ModuleType:
    path = Path(__file__).parents[1] / "pipelines" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_program", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_text_model(folder: Path, names: Sequence[str], poses: Array) -> None:
    """A COLMAP text model written by hand, one camera of focal length 500."""
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text("1 PINHOLE 640 480 500 500 320 240\n")
    (folder / "points3D.txt").write_text("")
    lines = []
    for n, (name, cam_from_world) in enumerate(zip(names, transforms.inverse(poses), strict=True)):
        x, y, z, w = Rotation.from_matrix(cam_from_world[:3, :3]).as_quat()
        lines.append(" ".join(map(str, [n + 1, w, x, y, z, *cam_from_world[:3, 3], 1, name])) + "\n\n")
    (folder / "images.txt").write_text("".join(lines))


def write_truth(path: Path, truth: CameraSet) -> None:
    rows = zip(truth.names, truth.intrinsics, truth.world_from_cam, strict=True)
    path.write_text(json.dumps({n: {"K": k.tolist(), "cam2w": p.tolist(), "size": [640, 480]} for n, k, p in rows}))


def run_program(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    return evaluate_program().main()


@pytest.mark.parametrize("sub", ["sparse/0", "colmap/sparse/0", "colmap", "."])
def test_program_reads_colmap_models(
    sub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = camera_set(ring(6), 505.0)
    write_truth(tmp_path / "gt.json", truth)
    names = [name.replace(".png", ".jpg") for name in truth.names[:5]]  # one is missing, extensions differ
    write_text_model(tmp_path / "run" / "out" / sub, names, moved(ring(6))[:5])
    assert run_program(monkeypatch, tmp_path / "run" / "out", tmp_path / "gt.json", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["registered"] == 5
    assert metrics["auc30"] == pytest.approx(100 * 10 / 15)
    assert metrics["auc30_registered"] == pytest.approx(100)
    assert metrics["focal_error_percent"] == pytest.approx(100 * 5 / 505)


def test_program_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_truth(tmp_path / "gt.json", camera_set(ring(3)))
    assert run_program(monkeypatch, tmp_path, tmp_path / "gt.json") == 2
    assert "neither a COLMAP model" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text('{"a.png": 3}')
    assert run_program(monkeypatch, tmp_path, tmp_path / "bad.json") == 2
    assert "bad.json" in capsys.readouterr().err


@pytest.mark.slow
def test_program_renders_what_it_reconstructs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = evaluate_program()
    monkeypatch.setattr(program, "reconstruct_set", lambda args: program.read_truth(args.run / "gt.json"))
    words = ["--rendered", "shape=box", "views=4", "size=[160,120]", "mesh_resolution=24"]
    for views in (5, 4):  # the second time nothing of the first scene is left
        words[2] = f"views={views}"
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path), *words, "--json"])
        assert program.main() == 0
        assert json.loads(capsys.readouterr().out)["registered"] == views
        assert len(list((tmp_path / "set" / "images").iterdir())) == views
    with Image.open(tmp_path / "set" / "images" / program.read_truth(tmp_path / "set" / "gt.json").names[0]) as image:
        assert image.size == (160, 120)
    assert run_program(monkeypatch, tmp_path, "--rendered", "shapes=box") == 2
    assert "shapes" in capsys.readouterr().err
    for wrong in ([], ["gt.json", "--rendered", "shape=box"]):
        with pytest.raises(SystemExit, match="2"):
            run_program(monkeypatch, tmp_path, *wrong)


@pytest.mark.slow
def test_pairs_are_judged_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene(SceneConfig(shape="figure", views=3, size=(320, 240), arc_deg=36, seed=1))
    scene.write(tmp_path)
    gt = tmp_path / "gt.json"
    program = evaluate_program("evaluate_pairs")
    monkeypatch.setattr(sys, "argv", ["evaluate_pairs.py", str(tmp_path), "--json"])
    assert program.main() == 0
    found = json.loads(capsys.readouterr().out)["all"]
    assert (found["pairs"], found["right"], found["wrong"]) == (3, 100, 0)
    cameras = json.loads(gt.read_text())
    rolled = scene.world_from_cam[0] @ transforms.make(transforms.exp_so3(np.array([0, 0, 1.0])), np.zeros(3))
    cameras[scene.names[0]]["cam2w"] = rolled.tolist()  # a false truth: pairs with this view are off, those only
    gt.write_text(json.dumps(cameras))
    assert program.main() == 0
    assert json.loads(capsys.readouterr().out)["all"]["right"] == pytest.approx(100 / 3, abs=0.1)
    del cameras[scene.names[0]]["K"]
    gt.write_text(json.dumps(cameras))
    assert program.main() == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["all"]["pairs"] == 1
    assert scene.names[0] in told.err
    gt.unlink()
    assert program.main() == 2
    assert "gt.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "names"),
    [(75.0, ["0 to 30", "30 to 50", "50 to 75"]), (60.0, ["0 to 30", "30 to 50", "50 to 60"]), (20.0, ["0 to 20"])],
)
def test_every_pair_is_in_one_range_of_angles(limit: float, names: list[str]) -> None:
    angles = np.linspace(0, limit, 11)
    rows = np.stack([angles, np.where(angles < 10, 1.0, np.inf)], 1)
    parts = evaluate_program("evaluate_pairs").by_angle(rows, limit)
    assert list(parts) == [f"{name} degrees" for name in names] + ["all"]
    assert sum(part["pairs"] for name, part in parts.items() if name != "all") == parts["all"]["pairs"] == 11


@pytest.mark.shared
def test_program_reads_the_truth_of_the_real_sets(shared_dir: Path) -> None:
    truth = evaluate_program().read_truth(shared_dir / "data" / "temple16" / "gt.json")
    metrics = evaluation.evaluate_cameras(truth, truth)
    assert metrics.views == 16
    assert metrics.auc30 == 100
    assert transforms.rotation_angle_deg(truth.world_from_cam[0, :3, :3].T @ truth.world_from_cam[1, :3, :3]) > 5
