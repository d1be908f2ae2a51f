"""What the command line says when something is wrong: early, of the right thing, and to programs too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sparse_ga.commands.run
from sparse_ga.cli import main


def run(*words: object) -> int:
    return main(["run", "images", "--masks", "masks", *map(str, words)])


def test_a_bug_is_an_event_before_it_is_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(sparse_ga.commands.run, "_execute_run", broken)
    with pytest.raises(ZeroDivisionError):
        run("--json")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("error", 1)
    assert "by nothing" in last["message"]


def test_names_that_a_format_cannot_hold_are_told_before_any_work(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for sub in ("images", "masks"):
        (folder / sub / "v1.png").rename(folder / sub / "v 1.png")
    assert run("--format", "colmap-text", "-q") == 2
    assert "'v 1.png'" in capsys.readouterr().err
    assert not (folder / "out" / "cache" / "forward").exists()
    assert run("--format", "colmap", "-q") == 0


def test_an_output_folder_that_is_a_file_is_told_as_such(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "taken").write_bytes(b"")
    assert run("--out", "taken", "-q") == 4
    told = capsys.readouterr().err
    assert "is a file" in told
    assert "--out" in told


def test_export_of_a_folder_of_objects_says_which_to_give(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for n in range(5):
        labels = np.zeros((32, 48), np.uint8)
        labels[8:24, 4:20], labels[8:24, 26:44] = 1, 2
        Image.fromarray(labels).save(folder / "masks" / f"v{n}.png")
    assert run("--object", "all", "--format", "ply", "-q") == 0
    assert main(["export", "out", "--format", "npz", "-q"]) == 2
    assert "out/object_1" in capsys.readouterr().err
    assert main(["export", "images", "--format", "npz", "-q"]) == 2
    assert "no run has been here" in capsys.readouterr().err


def test_a_quiet_check_tells_errors_only(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", "images", "-q"]) == 0
    assert capsys.readouterr().out == ""
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(folder / "masks" / "v1.png")
    assert main(["check", "images", "--masks", "masks", "-q"]) == 2
    told = capsys.readouterr().out.splitlines()
    assert told
    assert all(line.startswith("error") for line in told)


def test_a_result_that_no_match_supports_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import dataclasses

    import sparse_ga.triangulation

    real = sparse_ga.triangulation.triangulate_views

    def without_tracks(*arguments: object) -> object:
        found = real(*arguments)
        nothing = np.zeros((0, 3))
        return dataclasses.replace(
            found,
            points=nothing,
            colors=nothing.astype(np.uint8),
            normals=nothing.astype(np.float32),
            point_confidence=np.zeros(0, np.float32),
            tracks=type(found.tracks).empty(),
            track_points=nothing,
            track_colors=nothing.astype(np.uint8),
            track_errors=np.zeros(0),
        )

    monkeypatch.setattr(sparse_ga.triangulation, "triangulate_views", without_tracks)
    assert run("--format", "ply") == 0
    assert "not a single match fits the cameras" in capsys.readouterr().err
