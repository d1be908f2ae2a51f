"""`sparse-ga export` and `view`: every camera with its own photograph, or none at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cheap_pipeline import CheapPredictor, install, write_mask, write_set
from PIL import Image

import sparse_ga.commands.jobs as jobs
import sparse_ga.commands.view
from sparse_ga.cli import main
from sparse_ga.products import Reconstruction


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets of photographs of the same names, A and B."""
    install(monkeypatch)
    monkeypatch.setattr(jobs, "load_predictor", lambda name, config: CheapPredictor())
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "A")
    for path in (write_set(tmp_path / "B") / "images").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return tmp_path


def run(name: str, *words: object) -> int:
    return main(["run", f"{name}/images", "--masks", f"{name}/masks", "--format", "ply", "-q", *map(str, words)])


def export(*words: object) -> int:
    return main(["export", *map(str, words), "-q"])


def assert_pictures_are(out: Path, name: str) -> None:
    """Every photograph exported for nerfstudio is that of the same name in a set."""
    pictures = sorted((out / "nerfstudio" / "images").iterdir())
    assert [path.name for path in pictures] == [f"v{n}.png" for n in range(5)]
    for path in pictures:
        np.testing.assert_array_equal(Image.open(path), Image.open(Path(name) / "images" / path.name))


def test_runs_that_share_a_cache_export_their_own_photographs_into_their_own_folders(folder: Path) -> None:
    assert run("A", "--out", "outA", "--cache", "C") == 0
    assert run("B", "--out", "outB", "--cache", "C") == 0
    before = {path: path.read_bytes() for path in Path("outB").iterdir()}
    assert export("outA", "--format", "nerfstudio") == 0
    assert_pictures_are(folder / "outA", "A")
    assert {path: path.read_bytes() for path in Path("outB").iterdir()} == before


def test_photographs_are_found_by_name(folder: Path) -> None:
    assert run("A") == 0
    shutil.copy("A/images/v3.png", "A/images/a.png")  # comes first now, and has no mask
    assert export("out", "--format", "nerfstudio") == 0
    assert_pictures_are(folder / "out", "A")


def wrong(capsys: pytest.CaptureFixture) -> str:
    """What `export` says to photographs that are not there or not those of the run; nothing is written."""
    assert export("out", "--format", "ply", "nerfstudio", "--out", "ex") == 2
    assert not Path("ex").exists()
    return capsys.readouterr().err


def test_photographs_that_are_not_those_of_the_result_are_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("A") == 0
    assert run("B", "--until", "ingest") == 0
    assert "'nerfstudio' needs the photographs" in (told := wrong(capsys))
    assert "B/images/v0.png: this photograph or its mask has changed since the run; run again" in told
    assert run("A", "--until", "ingest") == 0
    write_mask(folder / "A", 2, shift=1)
    assert "v2.png: this photograph or its mask has changed" in wrong(capsys)
    write_mask(folder / "A", 2)
    (folder / "A" / "images" / "v4.png").unlink()
    assert "v4.png: no longer among the photographs" in wrong(capsys)


def test_another_object_of_the_same_masks_is_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for n in range(5):
        labels = np.zeros((32, 48), np.uint8)
        labels[8:24, 4:20], labels[8:24, 26:44] = 1, 2
        Image.fromarray(labels).save(folder / "A" / "masks" / f"v{n}.png")
    assert run("A", "--object", 1) == 0
    assert export("out", "--format", "nerfstudio") == 0
    assert run("A", "--object", 2, "--until", "ingest") == 0
    assert "has changed since the run" in wrong(capsys)


def test_it_says_where_things_are_and_keeps_the_unit_of_depths(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("A") == 0
    assert main(["export", "out", "--format", "depth", "nerfstudio", "--out", "ex"]) == 0
    assert "files  depth/, nerfstudio/, scene.json in ex" in capsys.readouterr().err
    unit = json.loads(Path("ex/scene.json").read_text())["depth_png_unit"]
    assert unit is not None
    assert export("out", "--format", "ply", "--out", "ex") == 0
    assert json.loads(Path("ex/scene.json").read_text())["depth_png_unit"] == unit


def test_the_same_object_by_another_label_is_exported(folder: Path) -> None:
    for n in range(5):
        write_mask(folder / "A", n, value=1)
    assert run("A", "--object", 1) == 0
    assert run("A") == 0  # every label, which is the same object: nothing of it is computed again
    assert export("out", "--format", "nerfstudio") == 0


def test_a_result_that_tells_no_photographs_is_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    import dataclasses

    assert run("A") == 0
    dataclasses.replace(Reconstruction.load("out"), photographs=()).save("out")
    assert "of an earlier version" in wrong(capsys)


@pytest.mark.parametrize("lost", ["photographs", "cache", "record", "preset"])
def test_formats_without_photographs_need_the_result_only(folder: Path, lost: str) -> None:
    (folder / "p.toml").write_text("[match]\nmin_matches = 3\n")
    assert run("A", "--preset", "p.toml", "--cache", "C") == 0
    if lost == "photographs":
        shutil.rmtree("A")
    elif lost == "cache":
        shutil.rmtree("C")
    elif lost == "record":
        (folder / "out" / "job.json").write_text("{")
    else:
        (folder / "p.toml").unlink()
    points = (folder / "out" / "points.ply").read_bytes()
    assert export("out", "--format", "ply", "glb", "depth", "npz", "colmap-text", "--out", "ex") == 0
    assert (folder / "ex" / "points.ply").read_bytes() == points


def test_a_moved_result_is_exported_where_it_is(folder: Path) -> None:
    assert run("A") == 0
    shutil.move("out", "moved")
    assert export("moved", "--format", "nerfstudio") == 0
    assert_pictures_are(folder / "moved", "A")
    assert not (folder / "out").exists()


def test_view_shows_no_photographs_rather_than_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given: list[object] = []

    class Shown:
        def __init__(self, reconstruction: object, folder: Path, load_source: object, port: int) -> None:
            given.append(load_source)

        def close(self) -> None:
            pass

    def stopped(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sparse_ga.commands.view, "require_viser", lambda: None)
    monkeypatch.setattr(sparse_ga.commands.view, "Viewer", Shown)
    monkeypatch.setattr(sparse_ga.commands.view.time, "sleep", stopped)
    assert run("A") == 0
    shutil.copy("A/images/v3.png", "A/images/a.png")
    assert main(["view", "out"]) == 0
    np.testing.assert_array_equal(given[0](2)[0], Image.open("A/images/v2.png"))  # type: ignore[operator]
    assert run("B", "--until", "ingest") == 0
    assert main(["view", "out"]) == 0
    assert given[1] is None
    assert "shown without photographs" in capsys.readouterr().err
