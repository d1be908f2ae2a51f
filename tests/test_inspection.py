"""What `check` finds in photographs and masks, `match` on two of them, and how progress is told."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from sparse_ga import inspection
from sparse_ga.api import make_job
from sparse_ga.cli import main
from sparse_ga.config import make_config
from sparse_ga.errors import InputError
from sparse_ga.geometry.cameras import project, rays
from sparse_ga.geometry.transforms import apply, inverse
from sparse_ga.inspection import Finding, inspect
from sparse_ga.io.drawing import draw_matches
from sparse_ga.match_pair import match_pair
from sparse_ga.products import PairMatches, View
from sparse_ga.progress import Reporter, event_schema
from sparse_ga.synthetic.scene import SceneConfig, make_scene

SIZE = (160, 120)


def texture(seed: int = 0) -> np.ndarray:
    """Something with corners at every scale, larger than a photograph."""
    rng = np.random.default_rng(seed)
    levels = [cv2.resize(rng.random((n, n)).astype(np.float32), (400, 400), interpolation=2) for n in (10, 25, 60, 130)]
    return np.clip(np.sum(levels, 0) / 4 * 255, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)


def photograph(n: int) -> np.ndarray:
    """A window on the texture that moves and turns with n; what falls in has sub-pixel shifts."""
    transform = cv2.getRotationMatrix2D((200, 200), 4.0 * n, 1.0 + 0.02 * n)
    transform[:, 2] += (-100 + 5.5 * n, -120 - 3.0 * n)
    return cv2.warpAffine(texture(), transform, SIZE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
    for n in range(5):
        Image.fromarray(photograph(n)).save(tmp_path / "images" / f"p{n}.png")
        write_mask(tmp_path, n)
    return tmp_path


def write_mask(folder: Path, n: int, box: tuple[int, int, int, int] = (20, 10, 140, 110)) -> None:
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(mask).save(folder / "masks" / f"p{n}.png")


def find(folder: Path) -> list[Finding]:
    steps: list[int] = []
    job = make_job(folder / "images", folder / "masks", None, make_config({}))  # type: ignore[arg-type]
    findings = inspect(job.sources, job.config, lambda: steps.append(1))
    assert len(steps) == len(job.sources)
    return findings


def about(findings: list[Finding], name: str) -> str:
    return " / ".join(f"{finding.severity} {finding.text}" for finding in findings if finding.name == name)


def test_a_good_set_has_no_warnings(folder: Path):
    findings = find(folder)
    assert [finding for finding in findings if finding.severity != "note"] == []
    assert "a typical photograph shares" in about(findings, "")


def test_blur_exposure_masks_duplicates_and_strangers_are_found(folder: Path):
    Image.fromarray(cv2.GaussianBlur(photograph(1), (0, 0), 3)).save(folder / "images" / "p1.png")
    Image.fromarray(np.clip(photograph(2).astype(int) * 4 - 300, 0, 255).astype(np.uint8)).save(
        folder / "images" / "p2.png"
    )
    write_mask(folder, 3, (60, 50, 90, 70))
    write_mask(folder, 4, (0, 0, 160, 120))
    Image.fromarray(photograph(0)).save(folder / "images" / "p5.png")
    write_mask(folder, 5)
    Image.fromarray(texture(9)[:120, :160]).save(folder / "images" / "p6.png")
    write_mask(folder, 6, (20, 10, 160, 110))
    findings = find(folder)
    assert "warning blurred compared with the others" in about(findings, "p1.png")
    assert "pure black or white" in about(findings, "p2.png")
    assert "of its neighbours' size" in about(findings, "p3.png")
    assert "warning everything is foreground" in about(findings, "p4.png")
    assert "warning shows the same as p0.png" in about(findings, "p5.png")
    assert "features match any other photograph" in about(findings, "p6.png")
    assert "cut off by the border" in about(findings, "p6.png")
    assert about(findings, "p0.png") == ""
    order = [finding.severity for finding in findings]
    assert order == sorted(order, key=["error", "warning", "note"].index)


def test_unreadable_files_and_empty_masks_are_errors_and_the_rest_is_checked(folder: Path):
    (folder / "images" / "p1.png").write_bytes(b"x")
    write_mask(folder, 3, (0, 0, 0, 0))
    findings = find(folder)
    assert "p1.png: this photograph is not an image" in about(findings, "p1.png")
    assert "error" in about(findings, "p3.png")
    assert "is empty" in about(findings, "p3.png")
    assert sum(finding.severity == "error" for finding in findings) == 2


def test_an_object_cut_off_on_opposite_sides_is_told_though_the_working_image_is_padded(folder: Path):
    for n in range(5):
        write_mask(folder, n, (0, 0, 160, 120) if n else (30, 0, 130, 120))
        cut = np.asarray(Image.open(folder / "images" / f"p{n}.png"))[:119, :159]
        Image.fromarray(cut).save(folder / "images" / f"p{n}.png")
        mask = np.asarray(Image.open(folder / "masks" / f"p{n}.png"))[:119, :159]
        Image.fromarray(mask).save(folder / "masks" / f"p{n}.png")
    assert "cut off" in about(find(folder), "p0.png")


def test_inverted_masks_are_noticed_and_frames_cut_by_the_border_are_not(folder: Path):
    for n in range(4):
        write_mask(folder, n, (0, 0, 160, 120) if n < 3 else (0, 0, 150, 120))
        mask = np.asarray(Image.open(folder / "masks" / f"p{n}.png")).copy()
        bottom = 120 if n == 1 else 100  # the object may stand on the border
        mask[20:bottom, 30:130] = 255 if n == 2 else 0
        Image.fromarray(mask).save(folder / "masks" / f"p{n}.png")
    findings = find(folder)
    for n in (0, 1):
        assert "warning the mask covers the border and leaves out the middle; if it is inverted" in about(
            findings, f"p{n}.png"
        )
        assert "cut off" not in about(findings, f"p{n}.png")
    assert "everything is foreground" in about(findings, "p2.png")
    assert "inverted" not in about(findings, "p3.png") + about(findings, "p4.png")


@pytest.mark.parametrize(("bits", "told"), [(10, True), (12, True), (16, False)])
def test_few_bits_in_files_of_sixteen_are_told_once_and_not_as_bad_exposure(folder: Path, bits: int, told: bool):
    for n in range(5):
        grey = photograph(n)[..., 0].astype(np.float64) / 255 * (2**bits - 1)
        Image.fromarray(grey.astype(np.uint16)).save(folder / "images" / f"p{n}.png")
    findings = find(folder)
    assert ("warning all photographs are nearly black; if they hold 10 or 12 bits" in about(findings, "")) is told
    assert "expose anew" not in " ".join(finding.text for finding in findings)


def test_check_takes_the_objects_that_run_takes(folder: Path, capsys: pytest.CaptureFixture):
    for n in range(5):
        labels = np.zeros((120, 160), np.uint8)
        labels[10:110, 10:80], labels[10:110, 80:150] = 1, 2 if n else 0
        Image.fromarray(labels).save(folder / "masks" / f"p{n}.png")
    (folder / "images" / "p4.png").write_bytes(b"x")
    words = ["check", "images", "--masks", "masks"]
    for chosen in ("all", "1,2"):
        assert main([*words, "--object", chosen]) == 2
        told = capsys.readouterr().out
        assert told.count("p4.png") == 1  # true of both objects
        assert "warning  p0.png: object 2: the object is not in this image" in told
        assert "object 1: a typical photograph shares" in told
        assert "object 2: a typical photograph shares" in told
        assert "5 photographs, 1 errors" in told
    assert main([*words, "--object", "2"]) == 2
    assert "warning  p0.png: the object is not in this image" in capsys.readouterr().out
    assert main([*words, "--object", "1,7"]) == 2
    assert "object 7 is in none of the masks" in capsys.readouterr().err
    assert main([*words, "--object", "x"]) == 2
    assert "give a label such as 3, several such as 1,3, or all" in capsys.readouterr().err


def test_check_command(folder: Path, capsys: pytest.CaptureFixture):
    assert main(["check", "images", "--masks", "masks"]) == 0
    assert "5 photographs, 0 errors, 0 warnings" in capsys.readouterr().out
    (folder / "images" / "p1.png").write_bytes(b"x")
    assert main(["check", "images", "--masks", "masks", "--json"]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1] == {"event": "summary", "command": "check", "images": 5, "errors": 1, "warnings": 0}
    assert any(event["event"] == "finding" and event["name"] == "p1.png" for event in events)


@pytest.mark.parametrize(
    ("settings", "photographs", "severity", "said"),
    [
        ({}, 5, "note", "network will be asked"),
        ({}, 21, "warning", "--set forward.descriptors=packaged"),  # a run leaves out one in 21 without asking
        ({"forward": {"descriptors": "packaged"}}, 21, "note", "network will be asked"),
        ({"forward": {"descriptors": "off"}}, 5, "warning", "--set forward.descriptors=packaged"),
        ({"predictor": "mast3r"}, 5, "warning", "another predictor"),
    ],
)
def test_few_features_are_a_warning_where_a_run_would_not_ask_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, photographs: int, severity: str, said: str
):
    monkeypatch.setattr(inspection, "best_match_counts", lambda views: np.array([6] + [200] * (len(views) - 1)))
    sources = make_job(folder / "images", folder / "masks", None, make_config({})).sources  # type: ignore[arg-type]
    findings = inspect((*sources[:1], *sources[1:2] * (photographs - 1)), make_config(settings), lambda: None)
    told = [finding for finding in findings if "at most 6 features" in finding.text]
    assert [(finding.name, finding.severity) for finding in told] == [("p0.png", severity)]
    assert said in told[0].text


@pytest.mark.slow
def test_check_of_a_bare_object_warns_where_sift_is_all_there_is(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = SceneConfig("figure", 31, views=6, arc_deg=150, size=(320, 240), texture="weak", background="black")
    make_scene(config).write(tmp_path)
    words = ["check", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    for preset, warnings in (("object", 0), ("bare", 0), ("many-images", 6)):
        assert main([*words, "--preset", preset]) == 0
        assert f"0 errors, {warnings} warnings" in capsys.readouterr().out


@pytest.mark.slow
def test_match_command_draws_and_writes_source_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    scene = make_scene(SceneConfig(views=2, size=(320, 240), arc_deg=15, seed=1))
    scene.write(tmp_path)
    words = ["match", "images/view_000.png", "images/view_001.png", "--masks", "masks", "--out", "made", "--json"]
    assert main([*words, "--set", "ingest.long_side=256"]) == 0
    told = capsys.readouterr().out
    assert "descriptor network" not in told
    event = json.loads(told.splitlines()[-1])
    assert event["matches"] >= 20
    assert event["rejected"] is None
    assert Image.open("made/view_000_view_001_matches.png").width > 2 * 256
    numbers = np.load("made/view_000_view_001_matches.npz")
    xy_i, xy_j = numbers["xy_i"].astype(float), numbers["xy_j"].astype(float)
    assert xy_i.shape == (event["matches"], 2)
    # where the true surface puts the pixels of the first photograph in the second
    points = rays(scene.intrinsics[0], xy_i) * scene.depth_at(0, xy_i)[:, None]
    cam1_from_cam0 = inverse(scene.world_from_cam[1]) @ scene.world_from_cam[0]
    truth, _ = project(scene.intrinsics[1], apply(cam1_from_cam0, points))
    assert np.median(np.linalg.norm(truth - xy_j, axis=1)) < 1.0


def test_match_pair_checks_its_files(folder: Path):
    with pytest.raises(InputError, match=r"p9\.png"):
        match_pair(("images/p0.png", "images/p9.png"))
    write_mask(folder, 1, (0, 0, 0, 0))
    with pytest.raises(InputError, match="is empty"):
        match_pair(("images/p0.png", "images/p1.png"), ("masks/p0.png", "masks/p1.png"))


def plain_view(seed: int = 0) -> View:
    image = np.random.default_rng(seed).integers(100, 255, (64, 96, 3)).astype(np.uint8)
    mask = np.zeros((64, 96), bool)
    mask[16:48, 24:72] = True
    return View("a", image, mask, None, np.eye(3), (96, 64), "")


@pytest.mark.parametrize("count", [0, 1, 500])
def test_drawing_dims_the_background_and_takes_any_number_of_matches(count: int):
    xy = np.random.default_rng(1).uniform((30, 20), (70, 45), (count, 2)).astype(np.float32)
    matches = PairMatches(xy, xy, np.ones(count, np.float32))
    picture = np.asarray(draw_matches(plain_view(), plain_view(1), matches))
    assert picture.shape == (64 * 2 + 20, 96 * 4 + 8, 3)
    assert picture[:20, :40].mean() < 0.5 * picture[40:90, 50:140].mean()
    bare = np.asarray(draw_matches(plain_view(), plain_view(1), PairMatches.empty()))
    assert (np.abs(picture[:128].astype(int) - bare[:128]).sum() > 0) == (count > 0)
    again = np.asarray(draw_matches(plain_view(), plain_view(1), matches))
    np.testing.assert_array_equal(picture, again)


# ---------------------------------------------------------------- progress


def test_lines_are_printed_for_long_stages_only(monkeypatch: pytest.MonkeyPatch):
    import sparse_ga.progress as module

    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.05)
    monkeypatch.setattr(module, "_PULSE_S", 0.05)
    stream = io.StringIO()
    reporter = Reporter("auto", 0, stream)
    assert reporter.mode == "lines"  # a StringIO is no terminal
    with reporter.stage("short", 3, "pair") as bar:
        bar.advance(3)
    assert stream.getvalue() == ""
    with reporter.stage("long", 4, "pair") as bar:
        bar.advance()
        time.sleep(0.3)
    told = stream.getvalue()
    assert "long: 1 of 4 pairs" in told
    assert "s to go" in told


def test_json_mode_tells_the_steps_and_never_more_than_the_total():
    stream = io.StringIO()
    reporter = Reporter("json", 0, stream)
    with reporter.stage("forward", 2, "pair") as bar:
        bar.advance(5)
        bar.advance()
    reporter.warn("a")
    reporter.warn("a")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["stage_started", "stage_finished", "warning"]
    assert events[1]["done"] == 2
    assert reporter.warnings == ["a"]


def test_bars_in_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    reporter = Reporter("auto", 0, stream)
    assert reporter.mode == "bars"
    with reporter.stage("forward", 2, "pair") as bar:
        time.sleep(0.6)
        bar.advance()
        bar.note("v0 | v1")
        bar.advance()
    reporter.info("done")
    assert "forward" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "done" in stream.getvalue()


def test_quiet_is_silent_and_a_failing_stage_ends_its_bar():
    stream = io.StringIO()
    reporter = Reporter("auto", -1, stream)
    with pytest.raises(ValueError, match="x"), reporter.stage("forward", 2, "pair"):
        raise ValueError("x")
    reporter.info("a")
    reporter.warn("b")
    assert stream.getvalue() == ""


@pytest.mark.slow
@pytest.mark.parametrize("head", ["catmlp+dpt", "dpt"])
def test_match_and_run_with_a_random_checkpoint_of_a_network(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "network"))
    from small_networks import random_model, small_mast3r

    from sparse_ga.network.checkpoint import save_model

    monkeypatch.chdir(tmp_path)
    save_model(random_model(small_mast3r(head)), tmp_path / "weights", "Apache-2.0")
    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
    for n in range(2):
        Image.fromarray(photograph(n)).save(tmp_path / "images" / f"p{n}.jpg", quality=95)
        write_mask(tmp_path, n)
    words = ["images/p0.jpg", "images/p1.jpg", "--masks", "masks", "--predictor", "weights", "--json"]
    assert main(["match", *words]) in (0, 3)  # random weights: any number of matches, no error
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event["event"] == "summary"
    assert Path("p0_p1_matches.png").is_file()
    assert main(["run", "images", "--masks", "masks", "--predictor", "weights", "--json", "--format", "ply"]) in (0, 3)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["images"] == 2
    monkeypatch.chdir(tmp_path.parent)
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "triangulate done" in capsys.readouterr().out
    assert main(["weights", "info", str(tmp_path / "weights"), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    Draft202012Validator(event_schema()).validate(described)
    assert described["licence"] == "Apache-2.0"
    assert main(["weights", "convert", str(tmp_path / "weights"), "--out", str(tmp_path / "half"), "--half"]) == 0
    assert main(["weights", "info", str(tmp_path / "none")]) == 2
