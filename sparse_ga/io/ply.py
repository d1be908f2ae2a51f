"""Binary PLY point clouds and meshes; the same content gives the same bytes.

Positions are doubles: in the frame of given poses an object may lie where float32 has steps of decimetres.
"""

from __future__ import annotations

import numpy as np

from sparse_ga.products import Array, Mesh

_POINT = np.dtype(
    [
        *((name, "<f8") for name in ("x", "y", "z")),
        *((name, "<f4") for name in ("nx", "ny", "nz")),
        *((name, "u1") for name in ("red", "green", "blue")),
        ("confidence", "<f4"),
    ]
)
_VERTEX = np.dtype([*((name, "<f8") for name in ("x", "y", "z")), *((name, "u1") for name in ("red", "green", "blue"))])
_FACE = np.dtype([("count", "u1"), ("a", "<i4"), ("b", "<i4"), ("c", "<i4")])
_TYPES = {"<f8": "double", "<f4": "float", "|u1": "uchar"}


def _header(elements: list[str], comment: str) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", f"comment {comment}", *elements, "end_header"]
    return ("\n".join(lines) + "\n").encode("ascii")


def _element(name: str, count: int, kind: np.dtype) -> list[str]:
    assert kind.fields is not None
    return [f"element {name} {count}", *(f"property {_TYPES[kind[field].str]} {field}" for field in kind.fields)]


def encode_points(points: Array, colors: Array, normals: Array, confidence: Array) -> bytes:
    """A PLY of points (P, 3) with colours (P, 3) uint8, normals (P, 3) and confidence (P,)."""
    table = np.zeros(len(points), _POINT)
    for k, name in enumerate("xyz"):
        table[name], table["n" + name] = points[:, k], normals[:, k]
    for k, name in enumerate(("red", "green", "blue")):
        table[name] = colors[:, k]
    table["confidence"] = confidence
    header = _header(_element("vertex", len(points), _POINT), "sparse_ga point cloud, OpenCV axes of the world frame")
    return header + table.tobytes()


def encode_mesh(mesh: Mesh) -> bytes:
    """A PLY of a vertex-coloured triangle mesh."""
    vertices = np.zeros(len(mesh.vertices), _VERTEX)
    for k, name in enumerate("xyz"):
        vertices[name] = mesh.vertices[:, k]
    for k, name in enumerate(("red", "green", "blue")):
        vertices[name] = mesh.colors[:, k]
    faces = np.zeros(len(mesh.faces), _FACE)
    faces["count"] = 3
    for k, name in enumerate("abc"):
        faces[name] = mesh.faces[:, k]
    elements = [
        *_element("vertex", len(vertices), _VERTEX),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
    ]
    return _header(elements, "sparse_ga mesh, OpenCV axes of the world frame") + vertices.tobytes() + faces.tobytes()
