"""Everything the triangulation found as one `Reconstruction`, in source pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparse_ga.config import TriangulateConfig
from sparse_ga.geometry.triangulation import errors_px
from sparse_ga.products import (
    Alignment,
    Array,
    DepthMaps,
    MaskStack,
    Mesh,
    Reconstruction,
    ReconstructionReport,
    Tracks,
    View,
)
from sparse_ga.triangulation.fusion import Cloud, Fusion, LoadSource, color_points
from sparse_ga.triangulation.mesh import poisson_mesh, with_hull
from sparse_ga.triangulation.sparse import SparseResult
from sparse_ga.triangulation.tracks import TrackStatus, TriangulatedTracks
from sparse_ga.triangulation.views import Rig

_LOOSE_DEG = 3.0  # a rotation known no better is told of; a free principal point of a wide lens makes 2 of all of them


def track_cloud(sparse: SparseResult) -> Cloud:
    """The track points as a cloud: normals towards the cameras that see them, confidence from their number."""
    tracks = sparse.tracks
    if len(tracks.points) == 0:
        return Cloud.empty()
    to_camera = sparse.rig.centers[tracks.obs.view_index] - tracks.points[tracks.obs.point_index]
    to_camera /= np.maximum(np.linalg.norm(to_camera, axis=1, keepdims=True), 1e-12)
    total = np.stack([np.bincount(tracks.obs.point_index, to_camera[:, k]) for k in range(3)], 1)
    normal = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    return Cloud(tracks.points, normal, 1 - 1 / np.maximum(tracks.obs.lengths, 1))


def assemble(
    views: Sequence[View],
    alignment: Alignment,
    sparse: SparseResult,
    fusion: Fusion,
    config: TriangulateConfig,
    load_source: LoadSource,
) -> Reconstruction:
    """Colour the cloud and the tracks, make the mesh, and go over to source pixels."""
    rig, tracks, cloud = sparse.rig, sparse.tracks, fusion.cloud
    frame, notes = _frame(views, alignment), _notes(views, alignment, tracks)
    working_from_source = np.stack([view.working_from_source for view in views])
    source_from_working = np.linalg.inv(working_from_source)
    colors = color_points(_join(cloud, track_cloud(sparse)), working_from_source, fusion.depths, load_source)
    errors = _source_errors(rig, tracks)
    return Reconstruction(
        names=tuple(alignment.names),
        registered=alignment.registered,
        reasons=tuple(alignment.reasons),
        world_from_cam=rig.world_from_cam,
        intrinsics=source_from_working @ rig.intrinsics,
        source_sizes=np.array([view.source_size for view in views], np.int64).reshape(-1, 2),
        working_from_source=working_from_source,
        points=cloud.points,
        colors=colors[: len(cloud)],
        normals=cloud.normals.astype(np.float32),
        point_confidence=cloud.confidence.astype(np.float32),
        tracks=_source_tracks(tracks, source_from_working),
        track_points=tracks.points,
        track_colors=colors[len(cloud) :],
        track_errors=errors,
        depthmaps=_pack_depths(views, fusion),
        masks=MaskStack.pack([view.mask for view in views]),
        mesh=_mesh(rig, fusion, colors[: len(cloud)], config),
        report=replace(_report(alignment, sparse, fusion, errors, config), frame=frame, notes=notes),
    )


def _join(a: Cloud, b: Cloud) -> Cloud:
    return Cloud(
        np.concatenate([a.points, b.points]),
        np.concatenate([a.normals, b.normals]),
        np.concatenate([a.confidence, b.confidence]),
    )


def _source_tracks(tracks: TriangulatedTracks, source_from_working: Array) -> Tracks:
    to_source = source_from_working[tracks.obs.view_index]
    xy = np.einsum("oij,oj->oi", to_source[:, :2, :2], tracks.obs.xy) + to_source[:, :2, 2]
    return Tracks(tracks.obs.point_index.astype(np.int64), tracks.obs.view_index.astype(np.int64), xy)


def _pack_depths(views: Sequence[View], fusion: Fusion) -> DepthMaps:
    by_view = {view.index: view for view in fusion.depths}
    nothing = [np.zeros(view.mask.shape, np.float32) for view in views]
    return DepthMaps.pack(
        [by_view[n].depth if n in by_view else nothing[n] for n in range(len(views))],
        [by_view[n].confidence if n in by_view else nothing[n] for n in range(len(views))],
    )


def _mesh(rig: Rig, fusion: Fusion, colors: Array, config: TriangulateConfig) -> Mesh:
    if not (config.mesh and config.dense and len(fusion.cloud)):
        return Mesh.empty()
    bound = with_hull(fusion.cloud, rig, fusion.votes, fusion.diameter) if config.mesh_hull else fusion.cloud
    return poisson_mesh(bound, fusion.cloud.points, colors, config.mesh_depth)


def _source_errors(rig: Rig, tracks: TriangulatedTracks) -> Array:
    """Mean reprojection error of each track, (T,) source px."""
    if len(tracks.points) == 0:
        return np.zeros(0)
    error = errors_px(rig.projection, tracks.obs, tracks.points) / rig.scale[tracks.obs.view_index]
    return np.bincount(tracks.obs.point_index, error) / tracks.obs.lengths


def _frame(views: Sequence[View], alignment: Alignment) -> str:
    """Whose frame the world is: a single given pose fixes it already, though not the unit."""
    posed = any(view.world_from_cam is not None for view, good in zip(views, alignment.registered, strict=True) if good)
    return "given" if posed else "first registered camera"


def _notes(views: Sequence[View], alignment: Alignment, tracks: TriangulatedTracks) -> tuple[str, ...]:
    """What a person should know before trusting the result, in words, the gravest first."""
    found = [alignment.doubt, _on_uncertainty(alignment), _on_unit(views, alignment, tracks)]
    return tuple(text for text in found if text)


def _on_uncertainty(alignment: Alignment) -> str:
    sigma = alignment.rotation_sigma_deg
    loose = int((sigma > _LOOSE_DEG).sum())
    if not loose:
        return ""
    worst = [name for name, good in zip(alignment.names, alignment.registered, strict=True) if good][sigma.argmax()]
    known = f"is known to {sigma.max():.0f} degrees at best" if sigma.max() < 60 else "is hardly known at all"
    return (
        f"{loose} of {len(sigma)} registered photographs are tied in loosely, so that cameras may be wrong: the "
        f"rotation of {worst} {known}; more photographs between them help, and so do given intrinsics"
    )


def _on_unit(views: Sequence[View], alignment: Alignment, tracks: TriangulatedTracks) -> str:
    """Where the unit of length comes from, if not from two given poses."""
    tied = [n for n in np.unique(tracks.obs.view_index).tolist() if views[n].world_from_cam is not None]
    if not alignment.metric_frame or len(tied) != 1:
        return ""
    return (
        f"of the photographs with given poses only {views[tied[0]].name} has matches to others: the size of the "
        "object is estimated from where the given cameras look, and can be several percent off"
    )


def _report(
    alignment: Alignment, sparse: SparseResult, fusion: Fusion, errors: Array, config: TriangulateConfig
) -> ReconstructionReport:
    tracks, adjustment = sparse.tracks, sparse.adjustment
    lengths = tracks.obs.lengths
    return ReconstructionReport(
        units="given" if alignment.metric_frame else "arbitrary",
        diameter=fusion.diameter,
        mean_reprojection_px=float((errors * lengths).sum() / lengths.sum()) if len(lengths) else 0.0,
        mean_track_length=float(lengths.mean()) if len(lengths) else 0.0,
        rejected_tracks=tuple(
            f"{TrackStatus(code).name.lower()}: {int(count)}" for code, count in enumerate(tracks.rejected) if count
        ),
        bundle_adjustment=adjustment.status,
        rms_before_px=adjustment.rms_before_px,
        rms_after_px=adjustment.rms_after_px,
        inconsistent_masks=fusion.wrong_masks,
        dense=config.dense_method if config.dense else "off",
    )
