"""Shapes: closed, oriented, of diameter one, and true to their implicit functions."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.products import Array
from sparse_ga.synthetic.shapes import Mesh, make_shape, shape_names, surface_nets


def edge_counts(faces: Array) -> Array:
    """How often each directed edge's reverse exists: (E, 2) counts of an edge and of its reverse."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    key = edges[:, 0].astype(np.int64) * (faces.max() + 1) + edges[:, 1]
    reverse = edges[:, 1].astype(np.int64) * (faces.max() + 1) + edges[:, 0]
    return np.stack([np.unique(key, return_counts=True)[1], np.isin(np.unique(key), reverse)], -1)


@pytest.mark.parametrize("name", shape_names())
def test_closed_oriented_unit_diameter(name: str) -> None:
    mesh = make_shape(name, seed=1, resolution=64)
    assert (edge_counts(mesh.faces) == 1).all()  # each edge once in each direction: closed and oriented
    assert mesh.diameter == pytest.approx(1, abs=1e-9)
    assert mesh.volume > 0.01
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    across = np.einsum("ij,ij->i", np.cross(b - a, c - a), mesh.normals[mesh.faces].mean(1))
    assert (across > 0).mean() > 0.999
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-9)


def test_seed_changes_the_shape_and_nothing_else_does() -> None:
    one, again, other = (make_shape("blob", seed, 48) for seed in (0, 0, 1))
    assert np.array_equal(one.vertices, again.vertices)
    assert one.vertices.shape != other.vertices.shape or not np.allclose(one.vertices, other.vertices)


def test_surface_nets_of_a_ball() -> None:
    vertices, faces = surface_nets(lambda p: np.linalg.norm(p, axis=1) - 0.4, 64)
    mesh = Mesh(vertices, faces, vertices / np.linalg.norm(vertices, axis=1, keepdims=True))
    assert (edge_counts(faces) == 1).all()
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 0.4, atol=0.002)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)
    assert mesh.diameter == pytest.approx(0.8, rel=0.01)


def test_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown shape 'cube'; shapes are blob"):
        make_shape("cube", 0)
