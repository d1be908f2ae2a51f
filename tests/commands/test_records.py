"""Which run a folder stands for, and what of its record the commands need."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cheap_pipeline import CheapPredictor, write_set

import sparse_ga.commands.jobs as jobs
from sparse_ga.cli import main
from sparse_ga.commands.jobs import find_run
from sparse_ga.config import load_config
from sparse_ga.errors import InputError
from sparse_ga.predictors.loading import RecordedPredictor, _is_hub_name
from sparse_ga.products import Reconstruction


def run(*words: object) -> int:
    return main(["run", "images", "--masks", "masks", "--format", "ply", "-q", *map(str, words)])


def test_the_cache_of_the_last_run_counts(folder: Path) -> None:
    assert run("--until", "ingest") == 0
    assert run("--cache", "elsewhere") == 0
    cache, record = find_run(Path("out"))
    assert cache == folder / "elsewhere"
    assert record.out == str(folder / "out")
    assert run("--until", "ingest") == 0
    assert find_run(Path("out"))[0] == Path("out/cache")
    assert not (folder / "out" / "cache.txt").exists()
    assert not (folder / "out" / "job.json").exists()


def test_runs_that_share_a_cache_keep_their_records(folder: Path) -> None:
    for out in ("a", "b"):
        assert run("--out", out, "--cache", "shared", "--until", "ingest") == 0
    for out in ("a", "b"):
        cache, record = find_run(Path(out))
        assert (cache, record.out) == (folder / "shared", str(folder / out))
    assert find_run(Path("shared"))[1].out == str(folder / "b")


def test_a_cache_in_another_output_folder_stays_that_ones(folder: Path) -> None:
    assert run("--out", "a", "--until", "ingest") == 0
    assert run("--out", "b", "--cache", "a/cache", "--until", "ingest", "--set", "match.min_matches=3") == 0
    assert find_run(Path("a"))[1].config.match.min_matches == 12
    assert find_run(Path("b"))[1].config.match.min_matches == 3


def test_a_moved_output_folder_is_itself(folder: Path) -> None:
    assert run("--until", "ingest") == 0
    os.rename("out", "moved")
    assert find_run(Path("moved"))[1].out == str(folder / "moved")


def test_an_output_folder_of_an_earlier_version_is_not_taken_for_another_run(folder: Path) -> None:
    assert run("--out", "a", "--cache", "shared", "--until", "ingest") == 0
    (folder / "a" / "job.json").unlink()
    assert find_run(Path("a"))[1].out == str(folder / "a")
    assert run("--out", "b", "--cache", "shared", "--until", "ingest") == 0
    with pytest.raises(InputError, match="since served the run in"):
        find_run(Path("a"))


def test_a_pattern_works_in_a_folder_whose_name_looks_like_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(folder / "set[2]")
    monkeypatch.chdir(folder / "set[2]")
    assert main(["run", "images/v*.png", "--masks", "masks", "--until", "ingest", "-q"]) == 0
    monkeypatch.chdir(folder)
    assert main(["status", "set[2]/out"]) == 0


def test_files_that_a_preset_names_lie_beside_it(folder: Path) -> None:
    (folder / "job").mkdir()
    (folder / "job" / "pairs.txt").write_text("v0 v1\n")
    (folder / "job" / "model").mkdir()
    lines = [
        'predictor = "model"',
        "[pairs]",
        'pairs_file = "pairs.txt"',
        "[forward]",
        'descriptors = "own.safetensors"',
    ]
    (folder / "job" / "p.toml").write_text("\n".join(lines))
    config = load_config("job/p.toml", {"match": {"min_matches": 3}})
    assert config.pairs.pairs_file == str(folder / "job" / "pairs.txt")
    assert config.predictor == str(folder / "job" / "model")
    assert config.forward.descriptors == str(folder / "job" / "own.safetensors")
    (folder / "job" / "p.toml").write_text('predictor = "me/model"\n[forward]\ndescriptors = "off"\n')
    config = load_config("job/p.toml")
    assert (config.predictor, config.forward.descriptors) == ("me/model", "off")


def test_hub_names_may_hold_a_dot() -> None:
    assert _is_hub_name("me/mast3r-v1.5")
    assert not _is_hub_name("weights/missing.pth")
    assert not _is_hub_name("weights/missing.safetensors")


@pytest.mark.parametrize("text", ["0", "1,0", "-2"])
def test_the_background_is_no_object(folder: Path, text: str, capsys: pytest.CaptureFixture) -> None:
    assert run(f"--object={text}") == 2
    assert "labels of objects start at 1" in capsys.readouterr().err
    assert main(["check", "images", "--masks", "masks", "--object=0"]) == 2
    assert "labels of objects start at 1" in capsys.readouterr().err


# ---------------------------------------------------------------- one stage again


def test_a_stage_after_forward_loads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run() == 0
    loaded: list[str] = []
    monkeypatch.setattr(jobs, "load_predictor", lambda name, config: loaded.append(name) or CheapPredictor())
    points = (folder / "out" / "points.ply").read_bytes()
    for name in ("match", "align3d", "refine2d", "triangulate"):
        assert main(["stage", name, "out", "-q"]) == 0
    assert (folder / "out" / "points.ply").read_bytes() == points
    assert loaded == []
    before = json.loads((folder / "out" / "cache" / "job.json").read_text())["predictor"]
    assert before["fingerprint"] == CheapPredictor.fingerprint
    assert main(["stage", "forward", "out", "-q"]) == 0
    assert loaded == ["classical"]


def test_a_stage_that_lacks_predictions_loads_the_predictor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run() == 0
    for path in (folder / "out" / "cache" / "forward").iterdir():
        path.unlink()
    loaded: list[str] = []
    monkeypatch.setattr(jobs, "load_predictor", lambda name, config: loaded.append(name) or CheapPredictor())
    assert main(["stage", "align3d", "out", "-q"]) == 0
    assert loaded == ["classical"]
    assert len(list((folder / "out" / "cache" / "forward").glob("*.safetensors"))) == 10
    with pytest.raises(RuntimeError):
        RecordedPredictor("x").predict(None, None)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what is left behind


def test_temporary_files_of_killed_writers_go_wherever_they_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparse_ga.store

    monkeypatch.setattr(sparse_ga.store, "_is_alive", lambda pid: False)
    name = f".{sparse_ga.store._host()}~99~abcdef.tmp"
    places = [folder / "out", folder / "out" / "cache", folder / "out" / "cache" / "ingest"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"half")
    assert run() == 0
    assert not [place for place in places if (place / name).exists()]


def test_saving_a_result_is_all_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run() == 0
    found = Reconstruction.load(folder / "out")
    before = (folder / "out" / "reconstruction.safetensors").read_bytes()
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor) or real(descriptor))
    found.save(folder / "out")
    assert synced

    def killed(descriptor: int) -> None:
        # another run into the same folder, while this one is half done
        monkeypatch.setattr(os, "fsync", real)
        found.save(folder / "out")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        found.save(folder / "out")
    assert (folder / "out" / "reconstruction.safetensors").read_bytes() == before
    assert not [path for path in (folder / "out").iterdir() if path.name.endswith((".tmp", ".partial"))]


def test_nothing_registered_leaves_no_files_of_an_earlier_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    import numpy as np

    import sparse_ga.triangulation

    assert run("--format", "ply", "glb") == 0
    for name in ("points.ply", "points.glb"):
        assert (folder / "out" / name).is_file()
    (folder / "out" / "colmap").mkdir()
    (folder / "out" / "colmap" / "cameras.bin").write_bytes(b"the user's own")
    real = sparse_ga.triangulation.triangulate_views

    def none(*arguments: object) -> object:
        return dataclasses.replace(real(*arguments), registered=np.zeros(5, bool), reasons=("lost",) * 5)

    monkeypatch.setattr(sparse_ga.triangulation, "triangulate_views", none)
    assert run("--from", "triangulate") == 3
    left = {path.name for path in (folder / "out").iterdir()}
    assert left == {"cache", "reconstruction.safetensors", "report.html", "scene.json", "colmap"}
    assert (folder / "out" / "colmap" / "cameras.bin").read_bytes() == b"the user's own"
    assert len(json.loads((folder / "out" / "scene.json").read_text())["unregistered"]) == 5
