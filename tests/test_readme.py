"""The README is true: every command in it runs, in its order, on rendered photographs; so do the examples."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sparse_ga
import sparse_ga.demo
import sparse_ga.match_pair
from sparse_ga.cli import main, make_parser
from sparse_ga.config import preset_names
from sparse_ga.io.cameras_file import read_cameras
from sparse_ga.predictors.base import PairPredictor
from sparse_ga.synthetic.scene import SceneConfig, make_scene

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_lines() -> list[str]:
    """Commands of the README, one a line, without comments."""
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def own_commands() -> list[list[str]]:
    """The words of each `sparse-ga` command that stands in a block."""
    return [shlex.split(line)[1:] for line in shell_lines() if line.startswith("sparse-ga ")]


def test_every_other_command_is_an_installation_that_the_ci_script_runs_or_python():
    others = [line for line in shell_lines() if not line.startswith("sparse-ga ")]
    known = ("python3 -m venv .venv && .venv/bin/pip install ", "pip install ", "python pipelines/")
    assert [line for line in others if not line.startswith(known)] == []
    programs = re.findall(r"pipelines/\w+\.py", README)
    assert {"pipelines/two_images.py", "pipelines/several_objects.py", "pipelines/make_reference.py"} <= set(programs)
    assert all((ROOT / program).is_file() for program in programs)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for marker in re.findall(r"<!-- (\w+ command) -->", README):
        assert f"<!-- {marker} -->" in script


def test_commands_in_the_text_are_understood():
    spoken = [text for text in re.findall(r"`(sparse-ga [^`]+)`", README) if "..." not in text]
    assert len(spoken) >= 5
    for text in spoken:
        words = [word for word in shlex.split(text)[1:] if word.isascii()]
        if len(words) > 1:
            make_parser().parse_args(words)
        else:  # only the name of a command
            with pytest.raises(SystemExit, match="0"):
                make_parser().parse_args([*words, "--help"])


def test_presets_formats_and_exit_codes_are_those_of_the_program():
    from sparse_ga.cli import EXIT_CODES
    from sparse_ga.io.export import FORMATS

    assert set(preset_names()) <= set(re.findall(r"`([a-z-]+)`", README))
    assert set(FORMATS) <= set(re.findall(r"`([a-z0-9_-]+)`", README))
    for code in re.findall(r"^  (\d+)", EXIT_CODES, re.MULTILINE):
        assert f"\n| {code} |" in README


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: photos, masks, and a look-alike label folder."""
    folder = tmp_path_factory.mktemp("user")
    make_scene(SceneConfig(shape="figure", views=5, size=(256, 192), arc_deg=70, seed=1)).write(folder)
    (folder / "images").rename(folder / "photos")
    shutil.copytree(folder / "masks", folder / "labels")
    for path in (folder / "labels").iterdir():
        with Image.open(path) as mask:
            Image.fromarray(np.asarray(mask) // np.uint8(255)).save(path)
    return folder


@pytest.mark.slow
def test_every_command_runs(photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(photographs)
    commands = own_commands()
    assert len(commands) >= 10
    for words in commands:
        code = main(words)
        told = capsys.readouterr()
        assert code == 0, f"{shlex.join(words)}: {told.err}"
        assert "Traceback" not in told.err
    assert (photographs / "out" / "report.html").is_file()
    python = blocks("python")[0]
    values: dict = {}
    exec(compile(python, "README.md", "exec"), values)
    assert values["result"].registered.all()


@pytest.mark.slow
def test_the_demonstration_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    line = next(line for line in shell_lines() if "sparse-ga demo" in line)
    words = shlex.split(line.split(".venv/bin/sparse-ga ")[1])
    small = SceneConfig(shape="figure", views=5, size=(256, 192), arc_deg=70, seed=1)
    monkeypatch.setattr(sparse_ga.demo, "DEMO_SCENE", small)
    assert main(words) == 0
    assert "views registered" in capsys.readouterr().out
    assert main(["status", "out"]) == 0
    assert re.search(r"triangulate\s+done", capsys.readouterr().out)


def test_the_predictor_of_ones_own_is_one(monkeypatch: pytest.MonkeyPatch):
    calls: list[dict] = []
    monkeypatch.setattr(sparse_ga, "reconstruct", lambda *given, **named: calls.append(named), raising=False)
    block = next(block for block in blocks("python") if "class MyPredictor" in block)
    exec(compile("import sparse_ga\n" + block, "README.md", "exec"), {})
    assert isinstance(calls[0]["predictor"], PairPredictor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "told"), [("two_images.py", "2 of 2 registered"), ("several_objects.py", "object 2: 6 of 6 registered")]
)
def test_the_examples_run(
    program: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program])
    runpy.run_path(str(ROOT / "pipelines" / program), run_name="__main__")
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "words", "told"),
    [
        ("two_images.py", ["a.png", "typo.png", "a.png", "a.png"], "typo.png: there is no such file"),
        ("two_images.py", ["a.png"], "1 files; give two photographs and their masks"),
        ("several_objects.py", ["images", "typo"], "typo: there is no such folder"),
        ("several_objects.py", ["images"], "1 folders; give those of the photographs and of their masks"),
        ("make_reference.py", ["a", "b"], "unrecognized arguments: b"),
    ],
)
def test_the_examples_refuse_what_is_not_there(
    program: str,
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("a.png")
    Path("images").mkdir()
    for given, code, expected in ((words, 2, told), (["--help"], 0, f"usage: {program}")):
        monkeypatch.setattr(sys, "argv", [program, *given])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "pipelines" / program), run_name="__main__")
        assert ended.value.code == code
        written = capsys.readouterr()
        assert expected in written.out + written.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "images"]


@pytest.mark.parametrize(
    ("words", "code", "about"),
    [
        (["a.png", "a.png", "no/such/folder.png"], 4, "no/such/folder.png"),
        (["a.png", "a.png", "nameless"], 4, "nameless"),
        (["a.png", "typo.png", "x.png"], 2, "typo.png"),
    ],
)
def test_match_pair_names_what_it_cannot_read_or_write(
    words: list[str],
    code: int,
    about: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sparse_ga.match_pair, "_with_network", lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["match_pair.py", *words])
    Image.new("RGB", (64, 48)).save("a.png")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "pipelines" / "match_pair.py"), run_name="__main__")
    assert ended.value.code == code
    assert f"match_pair.py: {about}: " in capsys.readouterr().err


def test_the_cameras_file_in_the_text_is_one(tmp_path: Path):
    path = tmp_path / "cameras.json"
    path.write_text(blocks("json")[0])
    camera = read_cameras(path)["IMG_001.jpg"]
    assert camera.intrinsics_for((1600, 1200), "IMG_001.jpg") is not None
    assert camera.world_from_cam is not None


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pdoc") is None, reason="pdoc, of the docs extra, is not installed")
def test_the_reference_builds_without_warnings(tmp_path: Path):
    words = [sys.executable, str(ROOT / "pipelines" / "make_reference.py"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "warn" in line.lower()] == []
    assert "reconstruct_objects" in (tmp_path / "sparse_ga.html").read_text(encoding="utf-8")
