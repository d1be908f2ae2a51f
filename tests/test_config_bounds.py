"""Every number that can be set has bounds: what is accepted works, what cannot work says so before any work."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparse_ga
from sparse_ga.config import Config, ConfigError, make_config
from sparse_ga.synthetic.oracle import OraclePredictor
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene

UNSET = {("ingest", "object_id"), ("match", "pixel_tolerance"), ("cache", "budget_gb")}
MAY_BE_ZERO = {
    ("match", "pixel_tolerance"),
    ("match", "border_px"),
    ("match", "min_matches"),
    ("match", "min_inlier_share"),
    ("match", "min_coverage"),
    ("match", "min_confidence"),
    ("align3d", "min_matches"),
    ("refine2d", "max_iterations"),
    ("triangulate", "min_angle_deg"),
    ("triangulate", "silhouette_px"),
    ("triangulate", "min_confidence"),
    ("triangulate", "voxel"),
    ("cache", "budget_gb"),
}


def numbers() -> list[tuple[str, str]]:
    """Section and field of every number in the settings."""
    found = []
    for section in dataclasses.fields(Config):
        values = getattr(Config(), section.name)
        if dataclasses.is_dataclass(values):
            for item in dataclasses.fields(values):
                value = getattr(values, item.name)
                if (section.name, item.name) in UNSET or (isinstance(value, (int, float)) and value is not True):
                    found.append((section.name, item.name))
    return [one for one in found if not isinstance(getattr(getattr(Config(), one[0]), one[1]), bool)]


@pytest.mark.parametrize(("section", "name"), numbers())
def test_what_is_no_such_number_is_refused_by_its_name(section: str, name: str) -> None:
    for value in (-1, math.nan, math.inf, -math.inf):
        with pytest.raises(ConfigError, match=rf"{section}\.{name}: "):
            make_config({section: {name: value}})
    if (section, name) in MAY_BE_ZERO:
        make_config({section: {name: 0}})
    else:
        with pytest.raises(ConfigError, match=rf"{section}\.{name}: "):
            make_config({section: {name: 0}})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"calibrate": {"min_focal": 3.0, "max_focal": 2.0}}, "max_focal"),
        ({"ingest": {"multiple": 1000}}, "multiple"),
        ({"triangulate": {"min_confidence": 2}}, "min_confidence"),
        ({"triangulate": {"voxel": 1.5}}, "voxel"),
        ({"triangulate": {"mesh_depth": 1}}, "mesh_depth"),
        ({"match": {"min_coverage": 1.1}}, "min_coverage"),
    ],
)
def test_what_contradicts_itself_or_means_nothing_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_config(settings)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticScene, Path]:
    made = make_scene(SceneConfig(views=5, seed=61, size=(128, 96), arc_deg=150.0, mesh_resolution=48))
    folder = tmp_path_factory.mktemp("extremes")
    made.write(folder)
    return made, folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("ingest", "multiple", 1),
        ("forward", "cross_stride", 1000),
        ("match", "min_coverage", 0),
        ("align3d", "anchor_px", 1),
        ("align3d", "anchors_per_block", 1024),
        ("refine2d", "max_iterations", 0),
        ("refine2d", "principal_point_percent", 1e-6),
        ("triangulate", "track_cell_px", 0.1),
        ("triangulate", "silhouette_px", 0),
        ("triangulate", "min_views", 1000),
        ("triangulate", "voxel", 1),
        ("triangulate", "mesh_depth", 2),
    ],
)
def test_what_is_accepted_works(scene: tuple[SyntheticScene, Path], section: str, name: str, value: float) -> None:
    made, folder = scene
    predictor = OraclePredictor(made, 61, matching="matches", match_spacing=6)
    config = {section: {name: value}}
    found = sparse_ga.reconstruct(
        folder / "images", folder / "masks", cache=folder / "cache", predictor=predictor, config=config
    )
    assert found.registered.all()
    assert np.isfinite(found.points).all()
