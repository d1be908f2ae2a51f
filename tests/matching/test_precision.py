"""A textured object that turns before a static background: noisy descriptors, known correspondences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from moving_object import Scene, describe, make_scene

from sparse_ga.config import MatchConfig
from sparse_ga.matching import match_prediction, verify_matches
from sparse_ga.products import PairMatches

CONFIG = MatchConfig(subsample=4)


def precision(scene: Scene, matches: PairMatches) -> float:
    """Share of matches within 3 px of the true correspondence."""
    true_xy, _ = scene.true_xy_j(matches.xy_i)
    return float((np.linalg.norm(true_xy - matches.xy_j, axis=1) <= 3).mean())


@pytest.mark.parametrize("turn_deg", [10.0, 25.0, 45.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_precision_at_3_px_and_no_background(turn_deg: float, seed: int) -> None:
    scene = make_scene(turn_deg=turn_deg)
    matches = match_prediction(describe(scene, 0.15, seed), scene.view_i, scene.view_j, CONFIG)
    assert len(matches) > 300
    assert precision(scene, matches) >= 0.99
    for xy, view in ((matches.xy_i, scene.view_i), (matches.xy_j, scene.view_j)):
        x, y = xy.astype(int).T
        assert view.mask[y, x].all()
    verified = verify_matches(matches, scene.view_i, scene.view_j, CONFIG)
    assert (verified.rejected, verified.model) == (None, "essential")
    assert precision(scene, verified.matches) >= 0.99


def test_the_background_wins_without_masks() -> None:
    """What the masks are for: unmasked, a good part of the matches says that nothing moved."""
    scene = make_scene()
    prediction = describe(scene, 0.15, 0)
    everything = np.ones_like(scene.view_i.mask)
    views = [
        type(v)(v.name, v.image, everything, None, np.eye(3), v.source_size, "") for v in (scene.view_i, scene.view_j)
    ]
    matches = match_prediction(prediction, views[0], views[1], CONFIG)
    still = np.linalg.norm(matches.xy_i - matches.xy_j, axis=1) < 1
    assert still.mean() > 0.2


def test_what_only_one_view_sees_is_not_matched() -> None:
    """A large turn hides much of each view from the other; hidden pixels find one another at random."""
    scene = make_scene(turn_deg=70.0)
    prediction = describe(scene, 0.15, 0)
    raw = match_prediction(prediction, scene.view_i, scene.view_j, replace(CONFIG, max_dissimilarity=None))
    gated = match_prediction(prediction, scene.view_i, scene.view_j, CONFIG)
    verified, checked = (verify_matches(m, scene.view_i, scene.view_j, CONFIG) for m in (raw, gated))
    assert precision(scene, raw) < 0.9
    assert precision(scene, verified.matches) > precision(scene, raw)
    assert precision(scene, gated) > precision(scene, verified.matches)
    assert precision(scene, checked.matches) >= 0.99
    assert len(checked.matches) > 0.8 * precision(scene, raw) * len(raw)
