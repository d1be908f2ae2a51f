"""Pairs that a run drops - low confidence, low overlap, against their triplets - and what `sparse-ga status` says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sparse_ga.commands.jobs
from sparse_ga.cli import main
from sparse_ga.products import PairPrediction, View
from sparse_ga.synthetic.oracle import OracleNoise, OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, make_scene

UNSURE = ("view_000.png", "view_001.png")
LOCAL = ("view_001.png", "view_002.png")


class Troubled(OraclePredictor):
    """The oracle, wrong about some pairs, unsure about one, and with matches in one spot only of another."""

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        prediction = super().predict(view_i, view_j)
        matches = prediction.matches
        assert matches is not None
        if (view_i.name, view_j.name) == UNSURE:
            matches = replace(matches, confidence=1e-3 * matches.confidence)
        if (view_i.name, view_j.name) == LOCAL:
            centre = np.median(matches.xy_i, 0)
            matches = matches.select(np.argsort(np.linalg.norm(matches.xy_i - centre, axis=1))[:30])
        return replace(prediction, matches=matches)


@pytest.mark.slow
def test_every_dropped_pair_has_a_reason_that_status_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    scene = make_scene(SceneConfig(views=8, size=(256, 192), arc_deg=200.0))
    scene.write(tmp_path)
    noise = OracleNoise(wrong_share=0.12, wrong_kind="lookalike")
    predictor = Troubled(scene, matching="matches", match_spacing=4, noise=noise)
    monkeypatch.setattr(sparse_ga.commands.jobs, "load_predictor", lambda name, config: predictor)
    monkeypatch.chdir(tmp_path)
    limits = ("match.min_confidence=0.01", "match.min_coverage=0.3")
    settings = [word for limit in limits for word in ("--set", limit)]
    assert main(["run", "images", "--masks", "masks", "--until", "align3d", *settings]) == 0
    capsys.readouterr()
    assert main(["status", "out", "-v"]) == 0
    told = {}
    for line in capsys.readouterr().out.split("pairs dropped:")[1].strip().splitlines():
        pair, reason = line.strip().split(": ", 1)
        told[tuple(pair.split(" | "))] = reason
    assert told[UNSURE].startswith("low confidence: median")
    assert told[LOCAL].startswith("low overlap: matches reach")
    assert "rotation disagrees with the pair's triplets" in told.values()
    assert all(told.values())
    assert len(told) < 12  # of 28: most pairs are right, and stay
