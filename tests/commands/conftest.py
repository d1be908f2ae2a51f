"""A folder of photographs and masks in which the command costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from cheap_pipeline import CheapPredictor, install, write_set

import sparse_ga.commands.jobs as jobs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with images/ and masks/ in it."""
    install(monkeypatch)
    monkeypatch.setattr(jobs, "load_predictor", lambda name, config: CheapPredictor())
    monkeypatch.chdir(tmp_path)
    return write_set(tmp_path)
