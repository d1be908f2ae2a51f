"""What the report takes from a run's cache, and the report of whole runs: with geometry that costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cheap_pipeline import CheapPredictor, install, run, write_mask, write_set

import sparse_ga.commands.jobs
from sparse_ga.api import make_job
from sparse_ga.cli import main
from sparse_ga.config import Config
from sparse_ga.report.collect import collect_details
from sparse_ga.report.details import ReportDetails
from sparse_ga.report.page import without_times
from sparse_ga.store import Store

SCRIPT = """
import sys
from pathlib import Path
import pytest
from cheap_pipeline import CheapPredictor, install
import sparse_ga.commands.jobs
from sparse_ga.cli import main
patch = pytest.MonkeyPatch()
install(patch)
patch.setattr(sparse_ga.commands.jobs, "load_predictor", lambda name, config: CheapPredictor())
sys.exit(main(["run", "images", "--masks", "masks", "--format", "ply", "-q"]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch)
    monkeypatch.setattr(sparse_ga.commands.jobs, "load_predictor", lambda name, config: CheapPredictor())
    return write_set(tmp_path)


def gathered(folder: Path) -> ReportDetails:
    """Details of a run of the cheap pipeline in `folder`."""
    result = run(folder, CheapPredictor())
    assert result.reconstruction is not None
    job = make_job(folder / "images", folder / "masks", CheapPredictor(), Config())
    return collect_details(job, Store(folder / "cache"), result.reconstruction)


def test_everything_a_cache_holds_is_found(folder: Path):
    details = gathered(folder)
    assert [view.name for view in details.views] == [f"v{n}.png" for n in range(5)]
    assert [(one.i, one.j) for one in details.pairs] == [(i, j) for i in range(5) for j in range(i + 1, 5)]
    assert all(one.used and one.matches == 4 for one in details.pairs)
    assert len(details.pictures) == 6
    assert [one.stage for one in details.residuals] == ["align3d", "refine2d", "triangulate"]
    assert all(len(one.lengths_px) == 40 and np.isfinite(one.lengths_px).all() for one in details.residuals)
    sizes = {one.stage: one for one in details.stages}
    assert sizes["match"].artifacts == 10
    assert sizes["match"].size_bytes == sum(path.stat().st_size for path in (folder / "cache" / "match").iterdir())
    assert details.warnings == ()


def test_what_a_cache_has_lost_is_said(folder: Path):
    gathered(folder)
    for path in sorted((folder / "cache" / "match").iterdir())[:3]:
        path.unlink()
    details = gathered(folder)  # the result is there, so nothing is computed again
    assert sum(one.matches is None for one in details.pairs) == 3
    assert any("no longer holds the matches of 3 pairs" in text for text in details.warnings)
    next((folder / "cache" / "ingest").iterdir()).unlink()
    job = make_job(folder / "images", folder / "masks", CheapPredictor(), Config())
    reconstruction = run(folder, CheapPredictor(), cache=folder / "other").reconstruction
    assert reconstruction is not None
    assert collect_details(job, Store(folder / "cache"), reconstruction).pairs == ()


def test_a_run_writes_it_with_advice_for_what_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    for n in range(5):
        write_mask(folder, n, value=2 if n == 3 else 1)
    assert main(["run", "images", "--masks", "masks", "--object", "1", "--format", "ply", "-q"]) == 0
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "4 of 5" in text
    assert 'class="badge bad">not registered</span><p class="reason">' in text
    assert 'class="advice">nothing to be done<' in text
    assert json.loads((folder / "out" / "cache" / "job.json").read_text())["seconds"].keys() >= {"forward", "align3d"}


@pytest.mark.slow
def test_times_of_earlier_runs_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    words = ["run", "images", "--masks", "masks", "--format", "ply", "-q"]
    record = folder / "out" / "cache" / "job.json"
    assert main(words) == 0
    first = json.loads(record.read_text())["seconds"]
    report = (folder / "out" / "report.html").read_text(encoding="utf-8")
    told = json.loads(report.split('id="stage-seconds">')[1].split("<")[0])
    assert told == {name: round(value, 1) for name, value in first.items()}
    assert 'id="stage-seconds"' not in without_times(report)
    assert main(words) == 0
    assert json.loads(record.read_text())["seconds"] == first
    assert main([*words, "--from", "triangulate"]) == 0
    again = json.loads(record.read_text())["seconds"]
    assert {name: value for name, value in again.items() if name != "triangulate"} == {
        name: value for name, value in first.items() if name != "triangulate"
    }


@pytest.mark.slow
def test_processes_in_other_folders_write_the_same_bytes(tmp_path: Path):
    reports = []
    for seed in ("1", "2"):
        folder = write_set(tmp_path / f"run{seed}")
        tests = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": tests}
        subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, env=environment, check=True)
        reports.append(without_times((folder / "out" / "report.html").read_text(encoding="utf-8")))
    assert reports[0] == reports[1]
