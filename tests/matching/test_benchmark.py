"""The benchmark runs, and finds what the plain algorithm finds, at a size that takes no time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

_PATH = Path(__file__).resolve().parents[2] / "pipelines" / "benchmark_matching.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_matching", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_matching"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_identical_to_the_plain_algorithm(benchmark: ModuleType, seed: int) -> None:
    result = benchmark.benchmark_matching(seed, height=72, width=96, subsample=4, repeats=1)
    assert result.identical_everything
    assert result.identical_foreground
    assert result.matches_everything > 300
    assert result.foreground_share == pytest.approx(0.25, abs=0.01)
    assert 50 < result.matches_foreground < result.matches_everything


def test_the_plain_search_is_right_across_blocks(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "BLOCK", 37)
    rng = np.random.default_rng(0)
    queries, rows = rng.normal(size=(90, 5)), rng.normal(size=(200, 5))
    found = benchmark.plain_nearest(torch.from_numpy(queries), torch.from_numpy(rows))
    np.testing.assert_array_equal(found.numpy(), (queries @ rows.T).argmax(1))


@pytest.mark.bars
def test_several_times_faster_than_the_plain_algorithm(benchmark: ModuleType) -> None:
    """At half the size of the script's own pair. A bar, since beside another test its seconds say little."""
    result = benchmark.benchmark_matching(0, height=192, width=256, repeats=3)
    assert result.identical_everything
    assert result.identical_foreground
    assert result.speedup_everything > 3
    assert result.speedup_foreground > 25
