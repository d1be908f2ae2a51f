"""Fixtures for all tests: one thread for torch, and where the shared data lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def _shared_dir() -> Path:
    return Path(os.environ.get("SPARSE_GA_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real photographs and goldens; the test is skipped only where it does not exist."""
    path = _shared_dir()
    if not path.is_dir():
        pytest.skip(f"shared data not there: {path}")
    return path
