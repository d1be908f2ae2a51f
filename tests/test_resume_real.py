"""The real thing, real geometry and real files: killed and resumed, run twice, every preset; with the classical
predictor on rendered photographs. Slow."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sparse_ga.api import reconstruct
from sparse_ga.config import load_config, preset_names
from sparse_ga.report.page import without_times
from sparse_ga.synthetic.oracle import OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rendered photographs of an object that turns before a background that does not."""
    folder = tmp_path_factory.mktemp("set")
    make_scene(SceneConfig(views=6, size=(256, 192), arc_deg=150, seed=1)).write(folder)
    return folder


def start(photographs: Path, out: Path) -> subprocess.Popen:
    words = ["run", photographs / "images", "--masks", photographs / "masks", "--out", out, "-q"]
    words += ["--set", "forward.descriptors=off"]  # one attempt: this is killed often
    words += ["--format", "ply", "glb", "colmap", "npz", "depth", "3dgs", "nerfstudio"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "sparse_ga.cli", *map(str, words)], env=environment)


def digests(out: Path) -> dict[str, str]:
    """Digest of every file of a run, without how long it took and the record of its arguments, with folders' names."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "job.json")
    return {str(path.relative_to(out)): hashlib.sha256(content(path)).hexdigest() for path in files}


def content(path: Path) -> bytes:
    """A file's bytes, a report's without the times of its stages."""
    if path.name != "report.html":
        return path.read_bytes()
    return without_times(path.read_text(encoding="utf-8")).encode()


@pytest.fixture(scope="module")
def whole(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Digests of an uninterrupted run, and its seconds."""
    out = tmp_path_factory.mktemp("whole")
    begun = time.monotonic()
    assert start(photographs, out).wait() == 0
    return digests(out), time.monotonic() - begun


def test_two_runs_give_identical_bytes(photographs: Path, whole: tuple[dict[str, str], float], tmp_path: Path):
    assert start(photographs, tmp_path).wait() == 0
    assert digests(tmp_path) == whole[0]
    names = set(whole[0])
    assert {"points.ply", "points.glb", "reconstruction.npz", "reconstruction.safetensors"} <= names
    assert any(name.startswith("cache/triangulate/") for name in names)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("wanted", [5, pytest.param(25, marks=pytest.mark.bars)])
def test_killed_many_times_and_resumed_it_ends_with_identical_bytes(
    wanted: int, photographs: Path, whole: tuple[dict[str, str], float], tmp_path: Path
):
    expected, seconds = whole
    rng = np.random.default_rng(wanted)
    kills = 0
    out = tmp_path / "out"
    while kills < wanted:
        process = start(photographs, out)
        try:
            code = process.wait(timeout=float(rng.uniform(0.1, 1.0)) * seconds)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert code == 0
        assert digests(out) == expected
        shutil.rmtree(out)
    assert start(photographs, out).wait() == 0
    assert digests(out) == expected


def test_a_byte_changed_in_every_artifact_is_mended(
    photographs: Path, whole: tuple[dict[str, str], float], tmp_path: Path
):
    assert start(photographs, tmp_path).wait() == 0
    rng = np.random.default_rng(1)
    for path in sorted((tmp_path / "cache").glob("*/*.safetensors")):
        data = bytearray(path.read_bytes())
        at = int(rng.integers(len(data)))
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data[: at + 1] if rng.random() < 0.3 else data))
    assert start(photographs, tmp_path).wait() == 0
    assert digests(tmp_path) == whole[0]


@pytest.fixture(scope="module")
def scene() -> SyntheticScene:
    return make_scene(SceneConfig(views=6, size=(160, 128), arc_deg=150))


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_reconstructs(preset: str, scene: SyntheticScene, tmp_path: Path):
    scene.write(tmp_path)
    predictor = OraclePredictor(scene, matching="matches", match_spacing=4)
    result = reconstruct(
        tmp_path / "images",
        tmp_path / "masks",
        cache=tmp_path / "cache",
        predictor=predictor,
        config=load_config(preset),
    )
    assert result.registered.all()
    assert len(result.points) > 200
    assert (len(result.mesh.faces) > 0) == (preset != "preview")
    focal = result.intrinsics[:, 0, 0] / scene.intrinsics[0, 0, 0]
    assert np.abs(focal - 1).max() < 0.05
