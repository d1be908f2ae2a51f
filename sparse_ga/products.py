"""Frozen, validated products that pass between stages.

Conventions used by every product:

* Transforms are called ``a_from_b``; camera axes are OpenCV's (x right, y down, z forward).
* Pixels are (x, y) and integer coordinates are pixel centres.
* *working* pixels are those of :attr:`View.image` (what a predictor sees); *source* pixels are those of the
  photograph after EXIF orientation. ``View.working_from_source`` maps the latter to the former.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
IntrinsicsSource = Literal["unknown", "exif", "given"]


class InvalidProduct(ValueError):
    """A product was built from arrays of the wrong shape, type or value; names the field and what it expects."""


def check(array: Array, name: str, shape: tuple[int | None, ...], kind: str) -> None:
    """Raise `InvalidProduct` unless `array` has the shape (None matches anything) and dtype kind (numpy letters)."""
    if not isinstance(array, np.ndarray):
        raise InvalidProduct(f"{name}: expected a numpy array, got {type(array).__name__}")
    if array.dtype.kind not in kind:
        raise InvalidProduct(f"{name}: expected dtype kind in {kind!r}, got {array.dtype}")
    fits = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise InvalidProduct(f"{name}: expected shape {shape}, got {array.shape}")


def check_finite(array: Array, name: str) -> None:
    """Raise `InvalidProduct` if `array` holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise InvalidProduct(f"{name}: contains NaN or infinity")


def is_rigid(pose: Array) -> bool:
    """Whether `pose` (4, 4) is a rotation and a translation but for rounding to few digits: no scale, no mirroring."""
    rotation = pose[:3, :3]
    straight = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    return bool(straight and np.allclose(pose[3], [0, 0, 0, 1]))


def exact_pose(pose: Array) -> Array:
    """The rigid transform (4, 4) float64 that `pose`, in float32 or of few digits, stands for: the nearest rotation.

    A rotation that is one to float64's rounding stays as it is, bit for bit, so that what is exact is never changed.
    """
    result = pose.astype(np.float64)
    rotation = result[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-12:
        u, _, vt = np.linalg.svd(rotation)
        result[:3, :3] = u @ vt
    result[3] = 0, 0, 0, 1
    return result


@dataclass(frozen=True, eq=False)
class View:
    """One photograph as a predictor sees it: resized, cropped to a multiple of the patch, with its object mask.

    `intrinsics` are in working pixels. `intrinsics_source` tells how far to trust them: ``given`` ones may be held
    fixed, ``exif`` ones are a prior for the focal length only. `world_from_cam` is a camera pose the user gave; its
    rotation is made exact here (`exact_pose`), for all later stages to keep as it is.
    `digest` identifies the content a predictor can see (image, mask, intrinsics), not the file it came from.
    """

    name: str
    image: Array  # (H, W, 3) uint8
    mask: Array  # (H, W) bool, True on the object
    intrinsics: Array | None  # (3, 3) float64, working px
    working_from_source: Array  # (3, 3) float64 affine
    source_size: tuple[int, int]  # (W, H) of the photograph
    digest: str
    intrinsics_source: IntrinsicsSource = "unknown"
    world_from_cam: Array | None = None  # (4, 4) float64
    camera: str = ""  # views with the same camera and source_size share their intrinsics
    orientation: int = 1  # EXIF orientation of the photograph's file: how its stored pixels were turned upright
    exif_focal_px: float | None = None  # source px, by the EXIF data alone

    def __post_init__(self) -> None:
        check(self.image, f"View({self.name}).image", (None, None, 3), "u")
        check(self.mask, f"View({self.name}).mask", self.image.shape[:2], "b")
        check(self.working_from_source, f"View({self.name}).working_from_source", (3, 3), "f")
        if self.intrinsics is not None:
            check(self.intrinsics, f"View({self.name}).intrinsics", (3, 3), "f")
            check_finite(self.intrinsics, f"View({self.name}).intrinsics")
        if self.world_from_cam is not None:
            check(self.world_from_cam, f"View({self.name}).world_from_cam", (4, 4), "f")
            check_finite(self.world_from_cam, f"View({self.name}).world_from_cam")
            if not is_rigid(self.world_from_cam):
                raise InvalidProduct(f"View({self.name}).world_from_cam: must be a rotation and a translation")
            object.__setattr__(self, "world_from_cam", exact_pose(self.world_from_cam))

    @property
    def height(self) -> int:
        """Height in working pixels."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Width in working pixels."""
        return int(self.image.shape[1])

    @property
    def principal_point(self) -> Array:
        """Principal point, (2,) working px: of the intrinsics if known, else the centre of the source photograph."""
        if self.intrinsics is not None:
            return self.intrinsics[:2, 2]
        width, height = self.source_size
        centre = np.array([(width - 1) / 2, (height - 1) / 2, 1.0])
        return (self.working_from_source @ centre)[:2]

    @property
    def photographed(self) -> tuple[slice, slice]:
        """Rows and columns of the working image that show the photograph; what is beyond them is padding.

        Pixels whose centre lies in the photograph. Those of the mask are among them, whatever its threshold.
        """
        corners = np.array([[-0.5, -0.5], np.array(self.source_size) - 0.5])  # (2, 2), source px
        corners = corners @ self.working_from_source[:2, :2].T + self.working_from_source[:2, 2]
        first, last = np.ceil(corners.min(0) - 1e-6), np.floor(corners.max(0) + 1e-6)
        sides = []
        for axis, (length, held) in enumerate(((self.width, self.mask.any(0)), (self.height, self.mask.any(1)))):
            on = np.flatnonzero(held)
            low, high = np.clip([first[axis], last[axis] + 1], 0, length).astype(int).tolist()
            if len(on):
                low, high = min(low, int(on[0])), max(high, int(on[-1]) + 1)
            sides.append(slice(low, high))
        return sides[1], sides[0]


@dataclass(frozen=True, eq=False)
class Pointmap:
    """Dense 3D points of one view, in the camera frame that the `PairPrediction` field names.

    Outside the view's mask `confidence` is at its minimum; the points carry no meaning there but are finite.
    """

    points: Array  # (H, W, 3) float32
    confidence: Array  # (H, W) float32, >= 0
    descriptors: Array | None = None  # (H, W, D) float32
    descriptor_confidence: Array | None = None  # (H, W) float32

    def __post_init__(self) -> None:
        check(self.points, "Pointmap.points", (None, None, 3), "f")
        check(self.confidence, "Pointmap.confidence", self.points.shape[:2], "f")
        if self.descriptors is not None:
            check(self.descriptors, "Pointmap.descriptors", (*self.points.shape[:2], None), "f")
        if self.descriptor_confidence is not None:
            check(self.descriptor_confidence, "Pointmap.descriptor_confidence", self.points.shape[:2], "f")


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Pixel correspondences between two views, working pixels, both ends on the object."""

    xy_i: Array  # (M, 2) float32
    xy_j: Array  # (M, 2) float32
    confidence: Array  # (M,) float32

    def __post_init__(self) -> None:
        check(self.xy_i, "PairMatches.xy_i", (None, 2), "f")
        check(self.xy_j, "PairMatches.xy_j", (len(self.xy_i), 2), "f")
        check(self.confidence, "PairMatches.confidence", (len(self.xy_i),), "f")
        check_finite(self.xy_i, "PairMatches.xy_i")
        check_finite(self.xy_j, "PairMatches.xy_j")
        check_finite(self.confidence, "PairMatches.confidence")

    def __len__(self) -> int:
        return len(self.xy_i)

    def select(self, keep: Array) -> PairMatches:
        """The matches that `keep` (M,) bool, or an index array, picks."""
        return PairMatches(self.xy_i[keep], self.xy_j[keep], self.confidence[keep])

    def joined(self, other: PairMatches) -> PairMatches:
        """These matches, then those of `other`."""
        both = zip((self.xy_i, self.xy_j, self.confidence), (other.xy_i, other.xy_j, other.confidence))
        return PairMatches(*(np.concatenate(pair) for pair in both))

    def swap(self) -> PairMatches:
        """The same matches seen from view j."""
        return PairMatches(self.xy_j, self.xy_i, self.confidence)

    @staticmethod
    def empty() -> PairMatches:
        """No matches at all: what a pair without overlap has."""
        return PairMatches(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.float32))


@dataclass(frozen=True, eq=False)
class PairPrediction:
    """What a predictor says of one pair: X11, X21, X22, X12 of MASt3R-SfM (arXiv 2409.19152, section 3.1).

    ``j_in_i`` are the points of view j's pixels in camera i's frame. A pair the predictor gives up on carries the
    reason in `rejected`; no later stage uses its points or matches then.
    """

    i_in_i: Pointmap
    j_in_i: Pointmap
    j_in_j: Pointmap
    i_in_j: Pointmap
    matches: PairMatches | None = None
    rejected: str | None = None

    @staticmethod
    def reject(view_i: View, view_j: View, reason: str) -> PairPrediction:
        """A prediction that says nothing (zero confidence, unit depth, no matches) and why."""

        def nothing(view: View) -> Pointmap:
            points = np.zeros((view.height, view.width, 3), np.float32)
            points[..., 2] = 1.0
            return Pointmap(points, np.zeros(points.shape[:2], np.float32))

        return PairPrediction(
            nothing(view_i), nothing(view_j), nothing(view_j), nothing(view_i), PairMatches.empty(), reason
        )


@dataclass(frozen=True, eq=False)
class VerifiedMatches:
    """What the match stage keeps of a pair: foreground matches, the pair's score and why it was dropped, if it was.

    `score` is in [0, 1] and orders pairs for the view tree. `model` names the geometric model that verified the
    matches. A pair with `rejected` set takes no part in the alignment; its matches stay for the report.
    """

    matches: PairMatches
    score: float
    model: Literal["essential", "fundamental", "homography", "predictor", "none"] = "none"
    rejected: str | None = None


@dataclass(frozen=True, eq=False)
class CanonicalView:
    """One view's depth, merged from all its pairs, and its anchors (MASt3R-SfM, section 3.3).

    An anchor is a foreground pixel that carries the depth of its block of pixels; every other foreground pixel of the
    block has a fixed depth ratio to it. Pixels outside the mask belong to no anchor.
    """

    name: str
    depth: Array  # (H, W) float32, > 0 on the foreground, 0 elsewhere; z in the camera frame, arbitrary scale
    confidence: Array  # (H, W) float32, 0 outside the mask
    focal_px: float  # working px
    anchor_xy: Array  # (A, 2) int32, working px
    anchor_of_pixel: Array  # (H, W) int32, index into anchor_xy, -1 outside the mask

    def __post_init__(self) -> None:
        check(self.depth, "CanonicalView.depth", (None, None), "f")
        check(self.confidence, "CanonicalView.confidence", self.depth.shape, "f")
        check(self.anchor_xy, "CanonicalView.anchor_xy", (None, 2), "i")
        check(self.anchor_of_pixel, "CanonicalView.anchor_of_pixel", self.depth.shape, "i")
        check_finite(self.depth, "CanonicalView.depth")
        if (self.depth[self.anchor_of_pixel >= 0] <= 0).any():
            raise InvalidProduct("CanonicalView.depth: non-positive depth on the foreground")

    @property
    def anchor_depth(self) -> Array:
        """Canonical depth of each anchor, (A,)."""
        return self.depth[self.anchor_xy[:, 1], self.anchor_xy[:, 0]]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Cameras and anchor depths of all views in one frame: what align3d and refine2d return.

    Views outside the chosen component are not registered: their pose is the identity and means nothing, and
    ``reasons[n]`` says why. Depths are those of the anchors of ``CanonicalView`` n, rows ``anchor_start[n]`` to
    ``anchor_start[n + 1]``, in world units. The gauge: the first registered view is the world's origin and the median
    anchor depth over the registered views is 1, unless known poses fix the frame. `uncertainty_deg` is one standard
    deviation of a view's rotation (NaN-free; 0 where unknown). `residual_history` is what the solver minimised, whose
    losses follow the residuals; `match_cost` can be compared between alignments of the same photographs. `held_focal`
    says whose focal length was to stay as it is, which holds for whatever adjusts the cameras afterwards.
    """

    names: tuple[str, ...]
    registered: Array  # (N,) bool
    world_from_cam: Array  # (N, 4, 4) float64
    intrinsics: Array  # (N, 3, 3) float64, working px
    anchor_depth: Array  # (sum A,) float64
    anchor_start: Array  # (N + 1,) int64
    reasons: tuple[str, ...]  # (N,) "" where registered
    dropped_pairs: tuple[str, ...] = ()  # "name_i | name_j | why"
    status: str = "ok"
    residual_history: Array = field(default_factory=lambda: np.zeros(0))  # (iterations,) robust cost
    uncertainty_deg: Array = field(default_factory=lambda: np.zeros(0))  # (N,)
    metric_frame: bool = False  # True when known poses fix scale and frame
    match_cost: float = 0.0  # mean over both views of all matches, log(1 + r^2) of the error r in px, at most log(10)
    held_focal: Array = field(default_factory=lambda: np.zeros(0, bool))  # (N,) bool; empty: none

    def __post_init__(self) -> None:
        n = len(self.names)
        check(self.registered, "Alignment.registered", (n,), "b")
        check(self.world_from_cam, "Alignment.world_from_cam", (n, 4, 4), "f")
        check(self.intrinsics, "Alignment.intrinsics", (n, 3, 3), "f")
        check(self.anchor_start, "Alignment.anchor_start", (n + 1,), "i")
        for name in ("world_from_cam", "intrinsics", "anchor_depth", "uncertainty_deg", "residual_history"):
            check_finite(getattr(self, name), f"Alignment.{name}")
        check_finite(np.array(self.match_cost), "Alignment.match_cost")

    @property
    def doubt(self) -> str:
        """What a person should know of the status: "" where all is well."""
        head, _, doubt = self.status.split("; ")[0].partition("ok, in doubt: ")
        if head.startswith("ok") or not self.status:
            return ""
        return doubt or f"the refinement ended with: {self.status}"

    @property
    def rotation_sigma_deg(self) -> Array:
        """`uncertainty_deg` of the registered views in their order, (R,); 0 where it is unknown."""
        if len(self.uncertainty_deg) == 0:
            return np.zeros(int(self.registered.sum()))
        return self.uncertainty_deg[self.registered]

    @property
    def dropped_names(self) -> frozenset[tuple[str, str]]:
        """(name_i, name_j) of every dropped pair."""
        parts = (text.split(" | ", 2) for text in self.dropped_pairs)
        return frozenset((part[0], part[1]) for part in parts)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Multi-view tracks: which pixel of which view observes which 3D point. Pixels are source px."""

    point_index: Array  # (O,) int64, row of Reconstruction.track_points, ascending
    view_index: Array  # (O,) int64
    xy: Array  # (O, 2) float64, source px

    def __post_init__(self) -> None:
        check(self.point_index, "Tracks.point_index", (None,), "i")
        check(self.view_index, "Tracks.view_index", (len(self.point_index),), "i")
        check(self.xy, "Tracks.xy", (len(self.point_index), 2), "f")
        check_finite(self.xy, "Tracks.xy")

    def __len__(self) -> int:
        return len(self.point_index)

    @staticmethod
    def empty() -> Tracks:
        """No observation at all."""
        return Tracks(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))


@dataclass(frozen=True, eq=False)
class MaskStack:
    """Masks of views of any sizes, one bit a pixel."""

    shapes: Array  # (N, 2) int64, (H, W)
    bits: Array  # (sum ceil(H W / 8),) uint8

    def __post_init__(self) -> None:
        check(self.shapes, "MaskStack.shapes", (None, 2), "i")
        check(self.bits, "MaskStack.bits", (int(self._starts[-1]),), "u")

    @cached_property
    def _starts(self) -> Array:
        """Byte of `bits` at which each mask begins, (N + 1,), the last one where they end."""
        return np.concatenate([[0], np.cumsum((self.shapes.prod(1) + 7) // 8)]).astype(int)

    def __len__(self) -> int:
        return len(self.shapes)

    def mask(self, n: int) -> Array:
        """Mask of view n, (H, W) bool."""
        height, width = (int(side) for side in self.shapes[n])
        packed = self.bits[self._starts[n] : self._starts[n + 1]]
        return np.unpackbits(packed, count=height * width).reshape(height, width).astype(bool)

    @staticmethod
    def pack(masks: list[Array]) -> MaskStack:
        """From a list of (H, W) bool masks."""
        shapes = np.array([mask.shape for mask in masks], np.int64).reshape(-1, 2)
        bits = [np.packbits(mask) for mask in masks]
        return MaskStack(shapes, np.concatenate([*bits, np.zeros(0, np.uint8)]))


@dataclass(frozen=True, eq=False)
class DepthMaps:
    """Depth of the object's pixels in every view, working px; z in the camera frame, world units."""

    valid: MaskStack  # pixels with a depth
    depth: Array  # (F,) float32, > 0, the valid pixels of view 0 in row order, then those of view 1, ...
    confidence: Array  # (F,) float32 in [0, 1]

    def __post_init__(self) -> None:
        check(self.depth, "DepthMaps.depth", (None,), "f")
        check(self.confidence, "DepthMaps.confidence", self.depth.shape, "f")
        check_finite(self.depth, "DepthMaps.depth")
        check_finite(self.confidence, "DepthMaps.confidence")

    def __len__(self) -> int:
        return len(self.valid)

    @cached_property
    def _starts(self) -> Array:
        """Row of `depth` at which each view begins, (N + 1,), the last one where they end."""
        return np.concatenate([[0], np.cumsum([self.valid.mask(n).sum() for n in range(len(self))])]).astype(int)

    def view(self, n: int) -> tuple[Array, Array]:
        """Depth and confidence of view n, (H, W) float32 each; 0 where there is none."""
        mask = self.valid.mask(n)
        rows = slice(self._starts[n], self._starts[n + 1])
        depth, confidence = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
        depth[mask], confidence[mask] = self.depth[rows], self.confidence[rows]
        return depth, confidence

    @staticmethod
    def pack(depths: list[Array], confidences: list[Array]) -> DepthMaps:
        """From lists of (H, W) maps; pixels whose depth is 0 have none."""
        valid = [depth > 0 for depth in depths]
        empty = np.zeros(0, np.float32)
        depth = np.concatenate([*(d[v] for d, v in zip(depths, valid, strict=True)), empty]).astype(np.float32)
        confidence = np.concatenate([*(c[v] for c, v in zip(confidences, valid, strict=True)), empty]).astype(
            np.float32
        )
        return DepthMaps(MaskStack.pack(valid), depth, confidence)


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh in the world frame; counter-clockwise triangles face outwards."""

    vertices: Array  # (V, 3) float64
    faces: Array  # (F, 3) int32
    colors: Array  # (V, 3) uint8

    def __post_init__(self) -> None:
        check(self.vertices, "Mesh.vertices", (None, 3), "f")
        check(self.faces, "Mesh.faces", (None, 3), "i")
        check(self.colors, "Mesh.colors", (len(self.vertices), 3), "u")
        check_finite(self.vertices, "Mesh.vertices")

    @staticmethod
    def empty() -> Mesh:
        """No surface."""
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32), np.zeros((0, 3), np.uint8))


@dataclass(frozen=True)
class ReconstructionReport:
    """What the triangulation found, in numbers and sentences; lengths in world units, errors in source px."""

    units: str = "arbitrary"  # or "given", when known poses fix them
    frame: str = "first registered camera"  # or "given", when a registered view has a given pose
    diameter: float = 0.0  # of the object: diagonal of the box that holds 96 % of the points on each axis
    mean_reprojection_px: float = 0.0  # over all observations of all tracks, source px
    mean_track_length: float = 0.0
    rejected_tracks: tuple[str, ...] = ()  # "reason: count"
    bundle_adjustment: str = "off"  # starts with "kept", or says why it was not
    rms_before_px: float = 0.0  # of the bundle adjustment, working px
    rms_after_px: float = 0.0
    inconsistent_masks: tuple[str, ...] = ()  # "name: what is wrong"
    dense: str = "off"
    notes: tuple[str, ...] = ()  # doubts about the cameras and their unit, in words


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Cameras, point cloud, tracks and depth maps of an object: what the whole pipeline makes.

    Everything is finite. `intrinsics`, tracks and `source_sizes` are in source px; depth maps and `masks` are in
    working px, tied to the former by `working_from_source`. The pose of an unregistered view is the identity and
    means nothing; ``reasons[n]`` says why it is not registered.
    """

    names: tuple[str, ...]
    registered: Array  # (N,) bool
    reasons: tuple[str, ...]  # (N,) "" where registered
    world_from_cam: Array  # (N, 4, 4) float64
    intrinsics: Array  # (N, 3, 3) float64, source px
    source_sizes: Array  # (N, 2) int64, (W, H)
    working_from_source: Array  # (N, 3, 3) float64
    points: Array  # (P, 3) float64: given poses may lie millions of units from their origin
    colors: Array  # (P, 3) uint8
    normals: Array  # (P, 3) float32, unit, towards the cameras
    point_confidence: Array  # (P,) float32 in [0, 1]
    tracks: Tracks
    track_points: Array  # (T, 3) float64
    track_colors: Array  # (T, 3) uint8
    track_errors: Array  # (T,) float64, mean reprojection error, source px
    depthmaps: DepthMaps
    masks: MaskStack
    mesh: Mesh = field(default_factory=Mesh.empty)
    report: ReconstructionReport = field(default_factory=ReconstructionReport)
    photographs: tuple[str, ...] = ()  # (N,) digest of each view's photograph and mask, empty where nobody noted them
    orientations: tuple[int, ...] = ()  # (N,) EXIF orientation of each photograph's file, empty: all are stored upright

    def __post_init__(self) -> None:
        n, p, t = len(self.names), len(self.points), len(self.track_points)
        check(self.registered, "Reconstruction.registered", (n,), "b")
        check(self.world_from_cam, "Reconstruction.world_from_cam", (n, 4, 4), "f")
        check(self.intrinsics, "Reconstruction.intrinsics", (n, 3, 3), "f")
        check(self.source_sizes, "Reconstruction.source_sizes", (n, 2), "i")
        check(self.working_from_source, "Reconstruction.working_from_source", (n, 3, 3), "f")
        check(self.points, "Reconstruction.points", (p, 3), "f")
        check(self.colors, "Reconstruction.colors", (p, 3), "u")
        check(self.normals, "Reconstruction.normals", (p, 3), "f")
        check(self.point_confidence, "Reconstruction.point_confidence", (p,), "f")
        check(self.track_points, "Reconstruction.track_points", (t, 3), "f")
        check(self.track_colors, "Reconstruction.track_colors", (t, 3), "u")
        check(self.track_errors, "Reconstruction.track_errors", (t,), "f")
        for name in ("world_from_cam", "intrinsics", "points", "normals", "point_confidence", "track_points"):
            check_finite(getattr(self, name), f"Reconstruction.{name}")
        if len(self.reasons) != n or len(self.depthmaps) != n or len(self.masks) != n:
            raise InvalidProduct("Reconstruction: reasons, depthmaps and masks have one entry a view")
        if len(self.photographs) not in (0, n):
            raise InvalidProduct("Reconstruction.photographs: expected one digest a view, or none at all")
        if len(self.orientations) not in (0, n) or not set(self.orientations) <= set(range(1, 9)):
            raise InvalidProduct("Reconstruction.orientations: expected one of 1 to 8 a view, or none at all")

    @property
    def cam_from_world(self) -> Array:
        """Inverse of `world_from_cam`, (N, 4, 4)."""
        rotation = np.swapaxes(self.world_from_cam[:, :3, :3], 1, 2)
        result = np.tile(np.eye(4), (len(self.names), 1, 1))
        result[:, :3, :3] = rotation
        result[:, :3, 3] = -(rotation @ self.world_from_cam[:, :3, 3:])[..., 0]
        return result

    @property
    def working_intrinsics(self) -> Array:
        """Intrinsics (N, 3, 3) in working px: those of `depthmaps` and `masks`."""
        return self.working_from_source @ self.intrinsics

    def save(self, folder: str | Path) -> Path:
        """Write ``reconstruction.safetensors`` into `folder` (made if missing); same content, same bytes.

        Raises `OutputError` when that is impossible; an earlier file is then as it was.
        """
        from safetensors.numpy import save as encode

        from sparse_ga.store import write_atomically

        arrays: dict[str, Array] = {}
        text = _flatten(self, "", arrays)
        path = Path(folder) / _FILE
        # one metadata entry: safetensors writes several in an order that changes from run to run
        write_atomically(path, encode(arrays, {"reconstruction": json.dumps(text, sort_keys=True)}))
        return path

    @staticmethod
    def load(folder: str | Path) -> Reconstruction:
        """Read what `save` wrote; raises `InvalidProduct` naming the file if it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / _FILE
        try:
            with safe_open(str(path), framework="numpy") as file:
                text = json.loads(file.metadata()["reconstruction"])
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return _unflatten(Reconstruction, text, "", arrays)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InvalidProduct(
                f"{path}: not a saved reconstruction ({error}); run the triangulate stage again"
            ) from None


_FILE = "reconstruction.safetensors"
_NESTED = {
    "tracks": Tracks,
    "depthmaps": DepthMaps,
    "valid": MaskStack,
    "masks": MaskStack,
    "mesh": Mesh,
    "report": ReconstructionReport,
}


def _flatten(product: Any, prefix: str, arrays: dict[str, Array]) -> dict[str, Any]:
    """Put the arrays of a product into `arrays` under dotted names and return everything else as plain values."""
    text: dict[str, Any] = {}
    for item in dataclasses.fields(product):
        value = getattr(product, item.name)
        if isinstance(value, np.ndarray):
            arrays[prefix + item.name] = np.ascontiguousarray(value)
        elif dataclasses.is_dataclass(value):
            text[item.name] = _flatten(value, f"{prefix}{item.name}.", arrays)
        else:
            text[item.name] = value
    return text


def _unflatten(kind: type, text: dict[str, Any], prefix: str, arrays: dict[str, Array]) -> Any:
    """The product of type `kind` that `_flatten` took apart."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        key = prefix + item.name
        if key in arrays:
            values[item.name] = arrays[key]
        elif item.name in _NESTED:
            values[item.name] = _unflatten(_NESTED[item.name], text[item.name], f"{key}.", arrays)
        elif item.name in text or item.default is dataclasses.MISSING:  # else written before there was such a field
            value = text[item.name]
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
