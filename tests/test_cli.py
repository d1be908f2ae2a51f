"""The command: what it prints, its exit codes, and one line for every wrong use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cheap_pipeline import CheapPredictor, install, write_mask, write_set
from jsonschema import Draft202012Validator
from PIL import Image

import sparse_ga.commands.jobs
import sparse_ga.commands.view
import sparse_ga.pipeline
from sparse_ga.cli import STAGES, main, make_parser
from sparse_ga.config import load_config, preset_names
from sparse_ga.errors import InputError
from sparse_ga.objects import reconstruct_objects
from sparse_ga.progress import event_schema
from sparse_ga.report.page import without_times
from sparse_ga.stages.job import STAGE_NAMES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch)
    monkeypatch.setattr(sparse_ga.commands.jobs, "load_predictor", lambda name, config: CheapPredictor())
    monkeypatch.chdir(tmp_path)
    return write_set(tmp_path)


def command(*words: object, **options: object) -> int:
    return main([str(word) for word in words])


def run(*words: object) -> int:
    return command("run", "images", "--masks", "masks", "--format", "ply", *words)


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------- right uses


def test_run_writes_the_outputs_and_a_short_summary(folder: Path, capsys: pytest.CaptureFixture):
    assert run() == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) <= 10
    assert "registered  5 of 5 images" in told
    assert {"reconstruction.safetensors", "points.ply", "scene.json", "cache"} <= {
        p.name for p in (folder / "out").iterdir()
    }


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes(folder: Path):
    assert run() == 0
    outputs = {path: path.read_bytes() for path in (folder / "out").iterdir() if path.is_file()}
    assert run() == 0
    assert {path: path.read_bytes() for path in (folder / "out").iterdir() if path.is_file()} == outputs
    assert run("--out", "again") == 0
    for path, data in outputs.items():
        again = (folder / "again" / path.name).read_bytes()
        if path.name == "report.html":
            assert without_times(again.decode()) == without_times(data.decode())
        else:
            assert again == data


def test_json_is_one_event_a_line_and_ends_with_a_summary(folder: Path, capsys: pytest.CaptureFixture):
    assert run("--json") == 0
    events = lines_of(capsys.readouterr().out)
    assert all(isinstance(event["event"], str) for event in events)
    assert events[-1]["event"] == "summary"
    assert events[-1]["registered"] == 5
    assert events[-1]["unregistered"] == []
    finished = [event["stage"] for event in events if event["event"] == "stage_finished"]
    assert finished == ["ingest", "forward", "align3d", "refine2d", "triangulate"]


def test_quiet_says_nothing_and_verbose_more(folder: Path, capsys: pytest.CaptureFixture):
    assert run("-q") == 0
    assert capsys.readouterr() == ("", "")
    assert run("-v") == 0
    assert "forward: 0 computed, 10 from the cache" in capsys.readouterr().err


@pytest.mark.slow
def test_until_stage_status_and_clean_need_only_the_folder(folder: Path, capsys: pytest.CaptureFixture):
    assert run("--until", "match") == 0
    assert "sparse-ga status" in capsys.readouterr().err
    assert command("status") == 0
    rows = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["match"] == "done"
    assert rows["align3d"] == "missing"
    assert rows["encode"] == "not"
    assert command("stage", "align3d", "out/cache") == 0
    assert command("status", "out", "--json") == 0
    events = lines_of(capsys.readouterr().out)
    assert {event["stage"]: event["done"] for event in events if event["event"] == "stage"}["align3d"] == 1
    assert run() == 0
    before = (folder / "out" / "points.ply").read_bytes()
    assert command("clean", "--dry-run") == 0
    assert "would be freed" in capsys.readouterr().err
    assert len(list((folder / "out/cache/forward").iterdir())) == 10
    assert command("clean", "out", "--keep", "match") == 0
    assert not list((folder / "out/cache/forward").iterdir())
    assert len(list((folder / "out/cache/match").iterdir())) == 10
    assert run() == 0
    assert (folder / "out" / "points.ply").read_bytes() == before


def test_status_tells_why_something_is_stale(folder: Path, capsys: pytest.CaptureFixture):
    assert run() == 0
    assert run("--until", "pairs", "--set", "match.min_matches=3", "--set", "triangulate.dense=false") == 0
    capsys.readouterr()
    assert command("status") == 0
    told = capsys.readouterr().out
    assert "stale: match.min_matches 12 -> 3 (10)" in told
    assert "triangulate.dense True -> False" in told


def test_clean_stale_says_what_it_does_not_know_yet(folder: Path, capsys: pytest.CaptureFixture):
    assert run("--until", "match") == 0
    write_mask(folder, 2, shift=5)
    capsys.readouterr()
    assert command("clean", "out", "--stale") == 0
    told = capsys.readouterr().err
    assert "forward, match" in told
    assert "--until calibrate" in told
    assert len(list((folder / "out/cache/forward").iterdir())) == 10
    assert run("--until", "calibrate") == 0
    assert command("clean", "out", "--stale", "--json") == 0
    events = lines_of(capsys.readouterr().out)
    assert [event["event"] for event in events] == ["summary"]
    assert len(list((folder / "out/cache/forward").iterdir())) == 6


def test_clean_survives_a_file_that_another_process_removes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert run() == 0
    gone = folder / "out/cache/match/gone.safetensors"
    monkeypatch.setattr(sparse_ga.commands.inspect, "removable", lambda *_: [gone])
    assert command("clean", "out") == 0
    assert "0.0 MB freed" in capsys.readouterr().err


def test_a_cache_elsewhere_is_found_from_the_output_folder(folder: Path, capsys: pytest.CaptureFixture):
    assert run("--cache", folder / "elsewhere") == 0
    assert not (folder / "out" / "cache").exists()
    assert command("status", "out") == 0
    assert "triangulate done" in capsys.readouterr().out


def test_export_from_output_and_from_cache_gives_the_same(folder: Path):
    assert run() == 0
    ply = (folder / "out" / "points.ply").read_bytes()
    for source in ("out", "out/cache"):
        assert command("export", source, "--format", "ply", "npz", "--out", folder / "ex") == 0
        assert (folder / "ex" / "points.ply").read_bytes() == ply
        shutil.rmtree(folder / "ex")
    shutil.copy(folder / "out" / "reconstruction.safetensors", folder / "images")
    assert command("export", folder / "images", "--format", "ply", "--out", folder / "ex") == 0
    assert (folder / "ex" / "points.ply").read_bytes() == ply


def test_settings_presets_objects_and_cameras_reach_the_job(folder: Path):
    (folder / "mine.toml").write_text('[pairs]\ngraph = "window-1"\n')
    cameras = {"v0.png": {"K": [[90, 0, 24], [0, 90, 16], [0, 0, 1]], "size": [48, 32]}}
    (folder / "cameras.json").write_text(json.dumps(cameras))
    for n in range(5):
        write_mask(folder, n, value=3)
    words = ["--preset", "mine.toml", "--object", "3", "--cameras", "cameras.json", "--set", "refine2d.loss_px=2"]
    assert run(*words, "--set", "ingest.object_id=3") == 0
    record = sparse_ga.commands.jobs.load_record(folder / "out" / "cache")
    assert record.config.pairs.graph == "window-1"
    assert record.config.ingest.object_id == 3
    assert record.config.refine2d.loss_px == 2.0
    assert [source.camera is not None for source in record.job().sources] == [True, False, False, False, False]
    assert Path(record.images[0]).is_absolute()


def test_nothing_registered_is_exit_code_3(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    import dataclasses

    import sparse_ga.triangulation

    real = sparse_ga.triangulation.triangulate_views

    def none(*arguments: object) -> object:
        found = real(*arguments)
        return dataclasses.replace(found, registered=np.zeros(5, bool), reasons=("lost in space",) * 5)

    monkeypatch.setattr(sparse_ga.triangulation, "triangulate_views", none)
    assert run() == 3
    told = capsys.readouterr().err
    assert "registered  0 of 5" in told
    assert "v0.png: lost in space; look at it with `sparse-ga check`" in told
    assert len(told.splitlines()) <= 10
    assert told.splitlines()[-1].startswith("sparse-ga: no image could be registered; ")


def test_config_prints_every_setting_with_its_meaning(capsys: pytest.CaptureFixture):
    assert command("config", "--set", "match.min_matches=21") == 0
    told = capsys.readouterr().out
    assert "min_matches = 21" in told
    assert "# A pair with fewer verified matches is dropped." in told
    assert told.count(" = ") >= 40
    assert command("config", "--preset", "turntable", "--json") == 0
    assert json.loads(capsys.readouterr().out)["config"]["pairs"]["graph"] == "window-5"


def test_every_preset_loads_and_is_named():
    assert preset_names() == [
        "bare",
        "few-images",
        "many-images",
        "moving-camera",
        "object",
        "preview",
        "quality",
        "turntable",
    ]
    for name in preset_names():
        load_config(name)
    assert load_config("moving-camera").forward.mask_mode == "context"
    assert load_config("preview").ingest.long_side == 256
    assert load_config("bare").forward.descriptors == "packaged"


def test_help_lists_exit_codes_and_the_stages_are_those_of_the_pipeline(capsys: pytest.CaptureFixture):
    assert tuple(STAGES) == STAGE_NAMES
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--help"])
    told = capsys.readouterr().out
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "130 "):
        assert f"\n  {code}" in told


def test_help_comes_at_once():
    times = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "sparse_ga.cli", "--help"], capture_output=True, check=True)
        times.append(time.monotonic() - start)
    assert min(times) < 1.0
    code = "import sys; import sparse_ga.cli; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.slow
def test_every_object_of_label_masks_in_one_call(folder: Path, capsys: pytest.CaptureFixture):
    for n in range(5):
        labels = np.zeros((32, 48), np.uint8)
        labels[8:24, 4:20], labels[8:24, 26:44] = 3, 7
        labels[0:2] = 9 * (n == 0)  # in one mask only
        Image.fromarray(labels).save(folder / "masks" / f"v{n}.png")
    assert run("--object", "all", "--json") == 0
    events = lines_of(capsys.readouterr().out)
    assert [one["object"] for one in events if one["event"] == "object"] == [3, 7]
    assert [one["registered"] for one in events[-1]["objects"]] == [5, 5]
    for label in (3, 7):
        assert (folder / "out" / f"object_{label}" / "report.html").is_file()
        assert run("--object", label, "--out", "alone") == 0
        alone, together = (folder / "alone", folder / "out" / f"object_{label}")
        assert (alone / "points.ply").read_bytes() == (together / "points.ply").read_bytes()
    assert command("status", "out/object_7") == 0
    capsys.readouterr()
    assert run("--object", "7,3", "-q") == 0
    assert run("--object", "3,7") == 0
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == ["object 3", "object 7"]  # what is said of an object comes below its name
    assert told[2].startswith("object 3    5 of 5 images")
    assert len(told) == 5
    found = reconstruct_objects("images", "masks", cache=folder / "c", predictor=CheapPredictor())
    assert sorted(found) == [3, 7]
    only = reconstruct_objects("images", "masks", cache=folder / "c", predictor=CheapPredictor(), objects=[7])
    np.testing.assert_array_equal(only[7].points, found[7].points)
    with pytest.raises(InputError, match="in none of the masks"):
        reconstruct_objects("images", "masks", cache=folder / "c", predictor=CheapPredictor(), objects=[8])


def test_an_object_that_cannot_be_used_leaves_the_others_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for n in range(5):
        labels = np.zeros((32, 48), np.uint8)
        labels[8:24, 4:20] = 3
        labels[8:24, 26:44] = 7 * (n in (1, 2))
        Image.fromarray(labels).save(folder / "masks" / f"v{n}.png")
    real = sparse_ga.pipeline.Pipeline.run

    def refuse(self: object, *arguments: object) -> object:
        if self.job.config.ingest.object_id == 3:  # type: ignore[attr-defined]
            raise InputError("cannot be used")
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sparse_ga.pipeline.Pipeline, "run", refuse)
    assert run("--object", "all") == 0
    told = capsys.readouterr().err
    assert "object 3 left out: cannot be used" in told
    assert "object 7" in told


# ---------------------------------------------------------------- what --json prints


@pytest.mark.slow
def test_json_obeys_its_published_schema(folder: Path, capsys: pytest.CaptureFixture):
    validator = Draft202012Validator(event_schema())
    validator.check_schema(event_schema())
    for n in range(5):
        write_mask(folder, n, value=2 if n == 3 else 1)
    masks = ["images", "--masks", "masks"]
    seen: set[tuple[str, str]] = set()
    for words in (
        ["run", *masks, "--object", "1", "--format", "ply", "-v"],
        ["run", *masks, "--object", "all", "--out", "all", "--format", "ply"],
        ["run", *masks, "--until", "match", "--set", "match.min_matches=3"],
        ["run", "images", "--format", "ply", "--out", "bare"],
        ["run", "nowhere"],
        ["rum"],
        ["status", "out"],
        ["stage", "align3d", "out"],
        ["check", *masks, "--object", "1"],
        ["match", "images/v0.png", "images/v1.png", "--masks", "masks", "--object", "1"],
        ["export", "bare", "--format", "npz"],
        ["clean", "bare"],
        ["config"],
    ):
        command(*words, "--json")
        events = lines_of(capsys.readouterr().out)
        for event in events:
            validator.validate(event)
            seen.add((event["event"], event.get("command", "")))
        assert events[-1]["event"] in ("summary", "error"), words
    kinds = {kind for kind, _ in seen}
    assert kinds >= {"stage_started", "stage_finished", "detail", "warning", "error", "object", "stage", "summary"}
    assert {name for kind, name in seen if kind == "summary"} == {
        "run", "status", "stage", "check", "match", "export", "clean", "config"
    }  # fmt: skip
    for wrong_event in (
        {"event": "unknown"},
        {"event": "summary", "command": "run", "images": 3},
        {"event": "error", "message": "two\nlines", "exit_code": 2},
        {"event": "stage_finished", "stage": "x", "done": 1, "total": 1, "seconds": None},
    ):
        assert not validator.is_valid(wrong_event)


def obeying(capsys: pytest.CaptureFixture) -> list[dict]:
    """What was printed, all of which has to obey the published schema."""
    events = lines_of(capsys.readouterr().out)
    for event in events:
        Draft202012Validator(event_schema()).validate(event)
    return events


@pytest.mark.slow
def test_doctor_and_view_obey_the_schema(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert command("doctor", "--json") == 0
    assert obeying(capsys)[-1]["passed"] is True
    assert run() == 0
    capsys.readouterr()

    class Shown:
        def __init__(self, *_: object) -> None:
            self.closed = False

        def close(self) -> None:
            self.closed = True

    def stopped(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sparse_ga.commands.view, "require_viser", lambda: None)
    monkeypatch.setattr(sparse_ga.commands.view, "Viewer", Shown)
    monkeypatch.setattr(sparse_ga.commands.view.time, "sleep", stopped)
    assert command("view", "out", "--json") == 0
    assert [event["event"] for event in obeying(capsys)] == ["serving"]


@pytest.mark.slow
def test_demo_obeys_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert command("demo", "--out", tmp_path / "out", "--views", "4", "--json") in (0, 3)
    assert obeying(capsys)[-1]["command"] == "demo"


# ---------------------------------------------------------------- wrong uses: one line, exit code 2 (or 4)


def wrong(capsys: pytest.CaptureFixture, code: int = 2) -> str:
    """What was printed, which has to be one line."""
    _, err = capsys.readouterr()
    problems = [line for line in err.splitlines() if line.startswith("sparse-ga: ")]
    assert len(problems) == 1
    assert err.splitlines()[-1] == problems[0]
    assert "Traceback" not in err
    assert len(problems[0]) < 400
    return problems[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere"], "no such folder"),
        (["run", "images", "--masks", "nowhere"], "no such folder of masks"),
        (["run", "masks", "--masks", "images"], "exchanged"),
        (["run", "images/v0.png", "--masks", "masks"], "at least two"),
        (["run", "*.jpg"], "no such folder or file"),
        (["run", "empty"], "no photographs here"),
        (["run", "images", "--preset", "turntabel"], "unknown preset 'turntabel'; presets are bare, few-images"),
        (["run", "images", "--preset", "none.toml"], "unknown preset"),
        (["run", "images", "--preset", "broken.toml"], "not valid TOML"),
        (["run", "images", "--set", "match.min_match=3"], "did you mean 'min_matches'"),
        (["run", "images", "--set", "macth.min_matches=3"], "did you mean 'match'"),
        (["run", "images", "--set", "match.min_matches=many"], "match.min_matches"),
        (["run", "images", "--set", "match.min_matches"], "write section.field=value"),
        (["run", "images", "--set", "predictor.x=1"], "predictor"),
        (["run", "images", "--set", "pairs.graph=windw-3"], "is not a graph"),
        (["run", "images", "--set", "pairs.graph=oneref-9"], "there are 5 images"),
        (["run", "images", "--set", "pairs.pairs_file=none.txt"], "pairs file cannot be read"),
        (["run", "images", "--masks", "masks", "--cameras", "none.json"], "no such cameras file"),
        (["run", "images", "--masks", "masks", "--cameras", "images"], "no COLMAP model"),
        (["run", "images", "--masks", "masks", "--cameras", "other.json"], "no camera fits"),
        (["run", "images", "--masks", "masks", "--cameras", "size.json"], "give the camera of this photograph"),
        (["run", "images", "--masks", "masks", "--cameras", "normalised.json"], "must be in pixels of this photograph"),
        (["run", "images", "masks"], "images: this is a folder among several words"),
        (["run", "images", "--masks", "masks", "--from", "match", "--until", "forward"], "exchange --from and --until"),
        (["run", "images", "--masks", "masks", "--format", "obj"], "unknown export format 'obj'"),
        (["export", "images", "--format", "ply", "--set", "match.min_matches=3"], "nothing is computed again here"),
        (["run", "images", "--masks", "masks", "--object", "9"], "object 9 is in none of the masks"),
        (["run", "truncated", "--masks", "masks"], "truncated/v2.png: this photograph is broken or cut off"),
        (["run", "text", "--masks", "masks"], "text/v2.png: this photograph is not an image"),
        (["run", "twice"], "have one name"),
        (["run", "images", "--masks", "one_missing"], "v3.png: no mask"),
        (["run", "images", "--masks", "one_empty"], "v3.png is empty"),
        (["run", "images", "--masks", "wrong_size"], "20x20 but its photograph 48x32"),
        (["run", "images", "--masks", "turned"], "before turning it upright"),
        (["run", "images", "--masks", "broken_mask"], "this mask is broken"),
        (["run", "images/v0.png", "images/v9.png"], "images/v9.png: there is no such file"),
        (["status", "images"], "no run has been here"),
        (["status", "nowhere"], "no run has been here"),
        (["stage", "match", "nowhere"], "no run has been here"),
        (["clean", "nowhere"], "no run has been here"),
        (["export", "images", "--format", "ply"], "no run has been here"),
        (["export", "nowhere", "--format", "ply"], "no such folder"),
        (["export", "images", "--format", "obj"], "unknown export format 'obj'"),
        (["match", "images/v0.png", "images/v9.png"], "v9.png: there is no such photograph"),
        (["match", "images/v0.png", "images/v1.png", "--masks", "a", "b", "c"], "give a folder or two files"),
        (["check", "nowhere"], "no such folder"),
        (["weights", "convert", "nowhere"], "--out"),
        (["config", "--preset", "nope"], "unknown preset"),
        (["config", "--set", "ingest.long_side=0"], "ingest.long_side"),
        (["run", "images", "--set", "match.min_match=3", "--set", "macth.x=3"], "; "),
        (["run", "images", "--masks", "masks/v0.png"], "no such folder of masks"),
        (["run", "images", "--masks", "masks", "--cameras", "broken.json"], "broken.json"),
        (
            ["run", "images", "--masks", "masks", "--object", "one"],
            "give a label such as 3, several such as 1,3, or all",
        ),
        (["run", "images", "--masks", "masks", "--object", "all"], "need masks with integer labels"),
        (["run", "images", "--masks", "labels", "--object", "1,9"], "object 9 is in none of the masks; they hold 1, 2"),
        (["run", "images", "--object", "all"], "need masks with integer labels"),
        (["status", "objects"], "give the folder of one, such as objects/object_2"),
        (["check", "images", "--masks", "one_missing"], "v3.png: no mask"),
        (["match", "images/v0.png", "images/v1.png", "--masks", "masks", "--set", "x.y=1"], "no such field"),
        (["view", "nowhere"], ""),
        (["demo", "--views", "0"], "--views"),
    ],
)
def test_every_wrong_use_ends_in_one_line(folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture):
    (folder / "empty").mkdir()
    (folder / "objects" / "object_2" / "cache").mkdir(parents=True)
    (folder / "broken.json").write_text("{")
    shutil.copytree(folder / "masks", folder / "labels")
    for n in range(5):
        Image.fromarray(np.uint8([[0, 1], [2, 0]]).repeat(16, 0).repeat(24, 1)).save(folder / "labels" / f"v{n}.png")
    (folder / "broken.toml").write_text("[pairs\n")
    k = [[90, 0, 24], [0, 90, 16], [0, 0, 1]]
    (folder / "other.json").write_text(json.dumps({"x.png": {"K": k}}))
    (folder / "normalised.json").write_text(json.dumps({"v0": {"K": [[1.25, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]]}}))
    (folder / "size.json").write_text(json.dumps({"v0.png": {"K": k, "size": [50, 20]}}))
    for name in ("truncated", "text"):
        shutil.copytree(folder / "images", folder / name)
    data = (folder / "images" / "v2.png").read_bytes()
    (folder / "truncated" / "v2.png").write_bytes(data[: len(data) // 2])
    (folder / "text" / "v2.png").write_text("no image")
    shutil.copytree(folder / "images", folder / "twice")
    Image.open(folder / "images" / "v0.png").save(folder / "twice" / "v0.jpg")
    for name in ("one_missing", "one_empty", "wrong_size", "turned", "broken_mask"):
        shutil.copytree(folder / "masks", folder / name)
    (folder / "one_missing" / "v3.png").unlink()
    Image.new("L", (48, 32)).save(folder / "one_empty" / "v3.png")
    Image.new("L", (20, 20), 255).save(folder / "wrong_size" / "v3.png")
    Image.new("L", (32, 48), 255).save(folder / "turned" / "v3.png")
    mask = (folder / "masks" / "v3.png").read_bytes()
    (folder / "broken_mask" / "v3.png").write_bytes(mask[:-20])
    assert command(*words) == 2
    assert message in wrong(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "did you mean 'run'?"),
        (["run"], "the following arguments are required: images; see `sparse-ga run --help`"),
        (["run", "images", "--until", "mtch"], "did you mean 'match'?"),
        (["stage", "x"], "invalid choice: 'x'"),
        (["run", "images", "--x"], "unknown words: --x"),
        (["view", "--port", "many"], "invalid int value: 'many'"),
        (["export", "out"], "the following arguments are required: --format"),
        (["weights", "delete"], "choose from"),
    ],
)
def test_words_that_are_no_command_end_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture):
    assert command(*words) == 2
    told = wrong(capsys)
    assert message in told
    assert "--help`" in told
    assert command(*words, "--json") == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


@pytest.mark.slow
def test_outputs_and_caches_that_cannot_be_written_are_exit_code_4(folder: Path, capsys: pytest.CaptureFixture):
    (folder / "file").write_text("x")
    assert command("match", "images/v0.png", "images/v1.png", "--masks", "masks", "--out", "file") == 4
    assert "choose another folder with --out" in wrong(capsys, 4)
    assert command("demo", "--out", "file/inside") == 4
    assert "choose another folder with --out" in wrong(capsys, 4)
    assert run("--out", "file", "--cache", "cache") == 4
    assert "choose another folder with --out" in wrong(capsys, 4)
    assert run("--out", "out", "--cache", "file") == 4
    assert "choose another with --cache" in wrong(capsys, 4)


@pytest.mark.slow
def test_a_full_disk_is_exit_code_4_and_the_cache_stays_usable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    import errno

    calls = []
    real = os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 24:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert run() == 4
    assert "the disk is full" in wrong(capsys, 4)
    monkeypatch.setattr(os, "fsync", real)
    assert run() == 0
    assert run("--out", "fresh") == 0
    assert (folder / "out" / "points.ply").read_bytes() == (folder / "fresh" / "points.ply").read_bytes()


def test_a_damaged_job_record_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture):
    assert run("--until", "ingest") == 0
    capsys.readouterr()
    (folder / "out" / "cache" / "job.json").write_text("{")
    assert command("status") == 2
    assert "start again with `sparse-ga run`" in wrong(capsys)


def test_a_warning_is_told_once_and_in_the_summary(folder: Path, capsys: pytest.CaptureFixture):
    assert command("run", "images", "--format", "ply") == 0
    told = capsys.readouterr().err
    assert told.count("no masks and no alpha channels: everything in the photographs counts as the object") == 1
    for n in range(5):
        Image.new("L", (48, 32), 255).save(folder / "masks" / f"v{n}.png")
    assert run() == 0
    assert "the masks are white all over: everything" in capsys.readouterr().err
    assert "the masks are white all over: everything" in (folder / "out" / "report.html").read_text()


def test_poses_of_a_camera_that_stands_still_are_a_warning(folder: Path, capsys: pytest.CaptureFixture):
    pose = np.eye(4).tolist()
    cameras = {f"v{n}": {"K": [[90, 0, 80], [0, 90, 16], [0, 0, 1]], "cam2w": pose} for n in range(4)}
    (folder / "cameras.json").write_text(json.dumps(cameras))
    assert run("--cameras", "cameras.json", "--until", "ingest") == 0
    told = capsys.readouterr().err
    assert "the 4 given poses are all in one place" in told
    assert "v0.png and 3 more: the given principal point lies outside of the photograph" in told
    cameras["v3"] = {"cam2w": [[1, 0, 0, 1], *pose[1:]], "K": [[90, 0, 24], [0, 90, 16], [0, 0, 1]]}
    (folder / "cameras.json").write_text(json.dumps({"v0": {"cam2w": pose}, "v3": cameras["v3"]}))
    assert run("--cameras", "cameras.json", "--until", "ingest") == 0
    assert "given" not in capsys.readouterr().err


def test_a_folder_of_an_earlier_run_that_cannot_be_read_names_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert command("status", "out") == 2
    assert "out/cache.txt: Permission denied; check its permissions" in wrong(capsys)


def test_clean_of_a_folder_that_cannot_be_written_is_exit_code_4(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert run() == 0
    capsys.readouterr()

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert command("clean") == 4
    assert "cannot be removed (Permission denied); check the folder's permissions" in wrong(capsys, 4)


# ---------------------------------------------------------------- interrupted


_SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background shell makes its children ignore
sys.path.insert(0, {tests!r})
import pytest, cheap_pipeline
patch = pytest.MonkeyPatch()
cheap_pipeline.install(patch)
import sparse_ga.commands.jobs as jobs
class Slow(cheap_pipeline.CheapPredictor):
    def predict(self, view_i, view_j):
        time.sleep(0.3)
        return super().predict(view_i, view_j)
jobs.load_predictor = lambda name, config: Slow()
from sparse_ga.cli import main
sys.exit(main(["run", "images", "--masks", "masks", "--format", "ply"]))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_interrupted_it_says_how_to_go_on_and_the_cache_serves(folder: Path, sent: signal.Signals):
    script = _SCRIPT.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    forward = folder / "out" / "cache" / "forward"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(forward.glob("*.safetensors"))) < 2:
        time.sleep(0.02)
    process.send_signal(sent)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in told
    assert "the same command goes on" in told
    assert not list(forward.glob(".*.tmp"))
    done = len(list(forward.iterdir()))
    assert 2 <= done < 10
    assert run() == 0
    assert run("--out", "fresh") == 0
    assert (folder / "out" / "points.ply").read_bytes() == (folder / "fresh" / "points.ply").read_bytes()


@pytest.mark.slow
def test_pycolmap_leaves_the_signals_to_the_command():
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *given: sys.exit(7))\n"
        "import sparse_ga.triangulation\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")
