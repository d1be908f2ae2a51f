"""Fixtures for all tests: one thread for torch, and where the shared data lives."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once; read when numpy and torch are loaded

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is a bar is slow, so that `-m "not slow"`, which replaces the default selection, leaves bars out too."""
    for item in items:
        if item.get_closest_marker("bars"):
            item.add_marker(pytest.mark.slow)
