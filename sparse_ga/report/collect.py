"""Gathering what a report tells from the cache of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ga.config import Config
from sparse_ga.geometry.cameras import rays
from sparse_ga.geometry.transforms import inverse
from sparse_ga.geometry.two_view import essential, sampson
from sparse_ga.products import Alignment, Array, PairMatches, Reconstruction, VerifiedMatches
from sparse_ga.report.details import (
    Convergence,
    PairPicture,
    PairRecord,
    ReportDetails,
    StageResiduals,
    StageSize,
)
from sparse_ga.stages.calibrate import Calibration, warning_of
from sparse_ga.stages.job import Job
from sparse_ga.stages.remarks import remarks
from sparse_ga.status import JobKeys, job_keys, status
from sparse_ga.store import Key, Store

_PICTURES_OF_A_KIND = 3
_MATCHES_OF_A_PAIR = 300  # at most, in the residuals


@dataclass(frozen=True, eq=False)
class CameraStage:
    """The cameras as one stage left them, working px."""

    stage: str
    registered: Array  # (N,) bool
    world_from_cam: Array  # (N, 4, 4)
    intrinsics: Array  # (N, 3, 3)


def collect_details(
    job: Job,
    store: Store,
    reconstruction: Reconstruction,
    advice: Sequence[str] = (),
    seconds: Mapping[str, float] | None = None,
) -> ReportDetails:
    """Details of a run from its cache, without computing any product; what the cache has lost is left out.

    `seconds` is the time each stage took, as far as it is known.
    """
    keys = job_keys(job, store)
    views = tuple(view for key in keys.by_stage["ingest"] or [] if (view := store.get(key)) is not None)
    if len(views) < len(reconstruction.names):
        return ReportDetails(advice=tuple(advice), settings=changed_settings(job.config))
    coarse, refined = _alignments(keys, store)
    pairs = _load_pairs(keys, store)
    reasons = _dropped_reasons([coarse, refined], reconstruction.names)
    records, residuals = read_pairs(store, pairs, reasons, camera_stages(coarse, refined, reconstruction))
    times = seconds or {}
    stages = [
        StageSize(item.stage, item.done, item.size_bytes, times.get(item.stage))
        for item in status(job, store)
        if item.done
    ]
    return ReportDetails(
        views=views,
        pairs=records,
        pictures=_pictures(store, pairs, records),
        residuals=residuals,
        convergence=_convergence(coarse, refined),
        uncertainty_deg=np.zeros(0) if refined is None else refined.uncertainty_deg,
        stages=tuple(stages),
        advice=tuple(advice),
        warnings=(*remarks(views, job.sources), *_warnings(records, _calibration(keys, store))),
        settings=changed_settings(job.config),
    )


@dataclass(frozen=True)
class _PairKey:
    """A pair of the graph and where its matches are."""

    i: int
    j: int
    key: Key


def _load_pairs(keys: JobKeys, store: Store) -> list[_PairKey]:
    found = store.get((keys.by_stage["pairs"] or [])[0]) if keys.by_stage["pairs"] else None
    if found is None:
        return []
    matched = keys.by_stage["match"] or []
    return [_PairKey(i, j, key) for (i, j), key in zip(found.as_tuples(), matched, strict=True)]


def _alignments(keys: JobKeys, store: Store) -> tuple[Alignment | None, Alignment | None]:
    """What align3d and refine2d made, as far as the cache holds it."""
    aligned = store.get((keys.by_stage["align3d"] or [])[0]) if keys.by_stage["align3d"] else None
    refined = store.get((keys.by_stage["refine2d"] or [])[0]) if keys.by_stage["refine2d"] else None
    return (None if aligned is None else aligned.alignment), refined


def camera_stages(
    coarse: Alignment | None, refined: Alignment | None, reconstruction: Reconstruction
) -> list[CameraStage]:
    """The cameras after each stage that moves them."""
    stages = [
        CameraStage(name, alignment.registered, alignment.world_from_cam, alignment.intrinsics)
        for name, alignment in (("align3d", coarse), ("refine2d", refined))
        if alignment is not None
    ]
    r = reconstruction
    return [*stages, CameraStage("triangulate", r.registered, r.world_from_cam, r.working_intrinsics)]


def _dropped_reasons(alignments: Sequence[Alignment | None], names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Why pairs were dropped in the last of the alignments, by the pair's names."""
    last = next((one for one in reversed(alignments) if one is not None), None)
    if last is None:
        return {}
    known = set(names)
    reasons: dict[tuple[str, str], str] = {}
    for text in last.dropped_pairs:
        parts = text.split(" | ")
        for cut in range(1, len(parts) - 1):  # names may hold the separator, too
            for end in range(cut + 1, len(parts)):
                pair = " | ".join(parts[:cut]), " | ".join(parts[cut:end])
                if pair[0] in known and pair[1] in known:
                    reasons.setdefault(pair, " | ".join(parts[end:]))
    return reasons


def read_pairs(
    store: Store, pairs: Sequence[_PairKey], reasons: dict[tuple[str, str], str], cameras: Sequence[CameraStage]
) -> tuple[tuple[PairRecord, ...], tuple[StageResiduals, ...]]:
    """What became of every pair, and the residuals of those used; one pair at a time is in memory."""
    records: list[PairRecord] = []
    lengths: list[list[Array]] = [[] for _ in cameras]
    for pair in pairs:
        found: VerifiedMatches | None = store.get(pair.key)
        first, _, second = pair.key.label.partition(" | ")
        dropped = reasons.get((first, second), "")
        if found is None:
            records.append(PairRecord(pair.i, pair.j, dropped=dropped))
            continue
        dropped = found.rejected or dropped
        record = PairRecord(pair.i, pair.j, len(found.matches), float(found.score), found.model, dropped)
        records.append(record)
        if record.used and all(one.registered[[pair.i, pair.j]].all() for one in cameras):
            every = max(1, -(-len(found.matches) // _MATCHES_OF_A_PAIR))
            some = found.matches.select(np.arange(0, len(found.matches), every))
            for stage, kept in zip(cameras, lengths, strict=True):
                kept.append(epipolar_distances(stage, pair.i, pair.j, some))
    residuals = [
        StageResiduals(stage.stage, np.concatenate([*kept, np.zeros(0)]))
        for stage, kept in zip(cameras, lengths, strict=True)
        if kept
    ]
    return tuple(records), tuple(residuals)


def epipolar_distances(stage: CameraStage, i: int, j: int, matches: PairMatches) -> Array:
    """Sampson distances (M,) of matches, working px, >= 0; large where the cameras coincide."""
    j_from_i = inverse(stage.world_from_cam[j]) @ stage.world_from_cam[i]
    matrix = essential(j_from_i[:3, :3], j_from_i[:3, 3])
    rays_i = rays(stage.intrinsics[i], matches.xy_i.astype(float))  # (M, 3)
    rays_j = rays(stage.intrinsics[j], matches.xy_j.astype(float))  # (M, 3)
    focal = float(np.sqrt(stage.intrinsics[i, 0, 0] * stage.intrinsics[j, 0, 0]))
    return np.abs(sampson(rays_i, rays_j, matrix)) * focal


def choose_pictures(records: Sequence[PairRecord], count: int = _PICTURES_OF_A_KIND) -> list[tuple[int, str]]:
    """Indices of the pairs worth drawing, with the kind: the best and the worst used, the largest dropped."""
    order = sorted((k for k, one in enumerate(records) if one.used), key=lambda k: (-records[k].score, k))
    best = order[:count]
    worst = [k for k in reversed(order) if k not in best][:count]
    dropped = [k for k, one in enumerate(records) if one.dropped and one.matches]
    dropped.sort(key=lambda k: (-(records[k].matches or 0), k))
    return [(k, "best") for k in best] + [(k, "worst") for k in worst] + [(k, "dropped") for k in dropped[:count]]


def _pictures(store: Store, pairs: Sequence[_PairKey], records: Sequence[PairRecord]) -> tuple[PairPicture, ...]:
    pictures = []
    for k, kind in choose_pictures(records):
        found: VerifiedMatches | None = store.get(pairs[k].key)
        if found is not None:
            pictures.append(PairPicture(records[k], found.matches, kind))
    return tuple(pictures)


def _convergence(coarse: Alignment | None, refined: Alignment | None) -> tuple[Convergence, ...]:
    return tuple(
        Convergence(name, alignment.residual_history)
        for name, alignment in (("align3d", coarse), ("refine2d", refined))
        if alignment is not None and len(alignment.residual_history) > 1
    )


def _calibration(keys: JobKeys, store: Store) -> Calibration | None:
    """The focal lengths that the run went on with, where it had to estimate them."""
    calibrated = keys.by_stage["calibrate"]
    return store.get(calibrated[-1]) if calibrated else None


def _warnings(records: Sequence[PairRecord], calibration: Calibration | None) -> tuple[str, ...]:
    warnings = []
    if calibration is not None and (text := warning_of(calibration)):
        warnings.append(text)
    lost = sum(one.matches is None for one in records)
    if lost:
        warnings.append(
            f"the cache no longer holds the matches of {lost} pairs (cleaned, or cache.budget_gb); "
            "their scores and residuals are missing from this report"
        )
    return tuple(warnings)


def changed_settings(config: Config) -> tuple[str, ...]:
    """Settings that are not the defaults, "section.field = value", in the order of their declaration."""
    return tuple(_changes(config, Config(), ""))


def _changes(value: Any, default: Any, path: str) -> list[str]:
    changes = []
    for item in dataclasses.fields(value):
        ours, usual = getattr(value, item.name), getattr(default, item.name)
        name = f"{path}{item.name}"
        if dataclasses.is_dataclass(ours):
            changes += _changes(ours, usual, f"{name}.")
        elif ours != usual:
            changes.append(f"{name} = {ours}")
    return changes
