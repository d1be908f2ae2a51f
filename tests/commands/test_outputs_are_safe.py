"""Nothing of the user's in an output folder is overwritten or removed, and no output becomes an input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_ga.cli import main


def run(*words: object) -> int:
    return main(["run", "images", "--masks", "masks", "-q", *map(str, words)])


@pytest.mark.parametrize("name", ["points.ply", "mesh.glb", "colmap/cameras.bin", "scene.json", "report.html"])
def test_what_was_there_before_the_first_run_is_not_touched(
    folder: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    own = folder / "out" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"the user's own")
    assert run() == 2
    message = capsys.readouterr().err
    assert name.split("/")[0] in message
    assert "--out" in message
    assert own.read_bytes() == b"the user's own"
    assert not (folder / "out" / "cache").exists()  # told before any work


def test_other_formats_do_not_mind_and_leave_it_alone(folder: Path) -> None:
    own = folder / "out" / "3dgs" / "images" / "own.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"the user's own")
    assert run() == 0
    assert run("--format", "ply") == 0
    assert main(["export", "out", "--format", "3dgs", "-q"]) == 2
    assert main(["export", "out", "--format", "3dgs", "--out", "ex", "-q"]) == 0
    assert [path.name for path in own.parent.iterdir()] == ["own.png"]


def test_what_a_run_has_written_the_next_one_replaces(folder: Path) -> None:
    assert run() == 0
    before = (folder / "out" / "points.ply").read_bytes()
    (folder / "out" / "points.ply").write_bytes(b"cut off")
    assert run() == 0
    assert (folder / "out" / "points.ply").read_bytes() == before


def test_what_a_killed_export_has_left_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparse_ga.io.export

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(sparse_ga.io.export._WRITERS, "glb", killed)
        run()
    assert (folder / "out" / "points.ply").is_file()
    assert run() == 0


def test_inputs_may_not_lie_in_what_is_written(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run() == 0
    before = {path.name: path.read_bytes() for path in (folder / "out" / "colmap").iterdir()}
    assert run("--cameras", "out/colmap") == 2
    assert "out/colmap" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (folder / "out" / "colmap").iterdir()} == before
    shutil.copytree("out/colmap", "given")
    assert run("--cameras", "given") == 0
    assert run("--cameras", "out/colmap", "--out", "other") == 0
    pictures = folder / "out" / "nerfstudio" / "images"
    shutil.copytree("images", pictures)
    assert main(["run", f"{pictures}/*.png", "--masks", "masks", "-q"]) == 2
    assert main(["run", "out/*/images/*.png", "--masks", "masks", "-q"]) == 2


def test_the_demo_keeps_away_from_photographs(folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(path.name for path in (folder / "images").iterdir())
    assert main(["demo", "--out", str(folder), "-q"]) == 2
    assert "--out" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "images").iterdir()) == before


def test_formats_without_effect_are_told(folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["run", "images", "--masks", "masks"]
    assert main([*words, "--until", "ingest", "--format", "ply"]) == 0
    assert "--format had no effect" in capsys.readouterr().err


def test_what_stands_in_the_way_of_one_object_is_told_before_work_on_any(folder: Path) -> None:
    for n in range(5):
        labels = np.zeros((32, 48), np.uint8)
        labels[8:24, 4:20], labels[8:24, 26:44] = 1, 2
        Image.fromarray(labels).save(folder / "masks" / f"v{n}.png")
    own = folder / "out" / "object_2" / "points.ply"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"the user's own")
    assert run("--object", "all") == 2
    assert not (folder / "out" / "object_1").exists()


def test_export_does_not_mind_a_report_of_somebody_else(folder: Path) -> None:
    assert run() == 0
    (folder / "ex").mkdir()
    (folder / "ex" / "report.html").write_bytes(b"the user's own")
    assert main(["export", "out", "--format", "ply", "--out", "ex", "-q"]) == 0
    assert (folder / "ex" / "report.html").read_bytes() == b"the user's own"
