"""A network without descriptors (DUSt3R) through the whole pipeline: its 3D points are matched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sparse_ga
from sparse_ga.evaluation import CameraSet, evaluate_cameras
from sparse_ga.products import PairPrediction, View
from sparse_ga.synthetic.oracle import OracleNoise, OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, make_scene


class PointsOnly:
    """What the oracle says, without its descriptors."""

    def __init__(self, oracle: OraclePredictor) -> None:
        self.oracle = oracle
        self.fingerprint = f"points only {oracle.fingerprint}"

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        found = self.oracle.predict(view_i, view_j)
        maps = (found.i_in_i, found.j_in_i, found.j_in_j, found.i_in_j)
        return PairPrediction(*(replace(m, descriptors=None, descriptor_confidence=None) for m in maps))


@pytest.mark.slow
def test_cameras_of_an_object_before_a_still_background(tmp_path: Path) -> None:
    """The background is predicted as surely as the object, and contradicts it; only the masks keep it out."""
    scene = make_scene(SceneConfig(views=6, size=(256, 192), arc_deg=120.0))
    scene.write(tmp_path)
    predictor = PointsOnly(OraclePredictor(scene, noise=OracleNoise(rotation_deg=1.0, depth=0.01)))
    found = sparse_ga.reconstruct(
        tmp_path / "images", tmp_path / "masks", cache=tmp_path / "cache", predictor=predictor
    )
    assert found.registered.all(), found.reasons
    truth = CameraSet.known(found.names, scene.world_from_cam, scene.intrinsics)
    estimate = CameraSet(found.names, found.registered, found.world_from_cam, found.intrinsics)
    metrics = evaluate_cameras(estimate, truth)
    print(metrics.format())
    assert metrics.rra5 == 100
    assert metrics.rta5 > 80
    assert len(found.points) > 1000
    assert np.isfinite(found.points).all()
