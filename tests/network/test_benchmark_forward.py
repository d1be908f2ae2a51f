"""The forward's benchmark runs and reports what it measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "pipelines"))
from benchmark_forward import SMALL, VIT_LARGE, ForwardBenchmarkConfig, benchmark_forward, random_views

TINY = replace(SMALL, enc_embed_dim=32, enc_num_heads=2, dec_embed_dim=32, dec_num_heads=2, dpt_width=16)


def test_a_graph_of_fewer_pairs_than_the_plain_loop_is_asked_for() -> None:
    result = benchmark_forward(ForwardBenchmarkConfig(arch=TINY, views=2, size=(32, 32), plain_pairs=4))
    assert (result.pairs, result.plain_pairs) == (1, 1)


def test_reports_times_and_ratios() -> None:
    config = ForwardBenchmarkConfig(arch=TINY, views=3, size=(64, 96), plain_pairs=2)
    result = benchmark_forward(config)
    assert result.pairs == 3
    assert abs(result.foreground - 0.25) < 0.01
    assert 0.25 < result.foreground_tokens < 0.6
    assert min(result.plain_s, result.unmasked_s, result.masked_s) > 0
    assert 0 < result.masked_encode_s < result.masked_s
    assert result.unmasked_ratio == result.plain_s / result.unmasked_s
    assert "times faster" in result.format()


def test_the_benchmarked_network_and_object_are_those_of_the_issue() -> None:
    assert (VIT_LARGE.enc_embed_dim, VIT_LARGE.enc_depth, VIT_LARGE.dec_depth) == (1024, 24, 12)
    views = random_views(ForwardBenchmarkConfig(), masked=True)
    assert len(views) == 8
    assert views[0].image.shape == (384, 512, 3)
    assert abs(views[0].mask.mean() - 0.25) < 0.002
