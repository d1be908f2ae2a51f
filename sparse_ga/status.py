"""What of a job is done, stale (and why) or missing, and what of its cache can go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparse_ga import codec
from sparse_ga.products import View
from sparse_ga.stages import align3d, calibrate, ingest, pairs, refine2d, triangulate
from sparse_ga.stages.job import STAGE_NAMES, Job
from sparse_ga.stages.pairwise import PairStages
from sparse_ga.store import Key, Store, stat_of


@dataclass(frozen=True)
class StageStatus:
    """State of one stage of a job."""

    stage: str
    total: int | None  # None: not known before the stages above are done
    done: int
    size_bytes: int  # of this job's artifacts
    stale: tuple[str, ...]  # why artifacts of earlier runs do not serve, "reason (count)"
    other_bytes: int  # of artifacts that are not this job's


@dataclass(frozen=True, eq=False)
class JobKeys:
    """Keys of all artifacts of a job, as far as its cache tells them; None where it does not yet."""

    by_stage: dict[str, list[Key] | None]
    pair_names: tuple[str, ...]


def job_keys(job: Job, store: Store) -> JobKeys:
    """The keys of a job's artifacts, without computing any."""
    keys: dict[str, list[Key] | None] = dict.fromkeys(STAGE_NAMES)
    ingested = [ingest.key(source, job.config) for source in job.sources]
    keys["ingest"] = ingested
    views: list[View] = [view for key in ingested if (view := store.get(key)) is not None]
    if len(views) < len(ingested):
        return JobKeys(keys, ())
    views = ingest.name_cameras(views, job.config.ingest.shared_intrinsics)
    graph = pairs.key(views, job.config)
    keys["pairs"] = [graph]
    found = store.get(graph)
    if found is None:
        return JobKeys(keys, ())
    pair_list = found.as_tuples()
    work = PairStages(store, views, pair_list, job.predictor, job.config)
    keys["encode"] = list(work.features.keys)
    keys["calibrate"], calibrated = _calibrated(job, store, views, pair_list)
    if calibrated is None:
        return JobKeys(keys, ())
    work = PairStages(store, calibrated, pair_list, job.predictor, job.config)
    aligned = align3d.key(calibrated, pair_list, work.match_keys, job.config)
    refined = refine2d.key(aligned, job.config)
    keys |= {"forward": list(work.forward_keys), "match": list(work.match_keys)}
    keys |= {"align3d": [aligned], "refine2d": [refined]}
    keys |= {"triangulate": [triangulate.key(refined, job.sources, job.config)]}
    return JobKeys(keys, tuple(key.label for key in work.match_keys))


def _calibrated(
    job: Job, store: Store, views: list[View], pair_list: list[tuple[int, int]]
) -> tuple[list[Key], list[View] | None]:
    """Keys of the calibration, and the views with its focal lengths; None when these are not there yet."""
    if not calibrate.is_needed(views, job.predictor):
        return [], views
    keys = [calibrate.key(views, pair_list, job.predictor, job.config)]
    calibration = store.get(keys[0])
    if calibration is not None and not calibration.sufficient.all():
        keys.append(calibrate.key_from_reconstruction(views, pair_list, job.predictor, job.config))
        calibration = store.get(keys[1])
    return keys, None if calibration is None else calibrate.apply(views, calibration)


def status(job: Job, store: Store) -> list[StageStatus]:
    """State of every stage of a job."""
    keys = job_keys(job, store)
    return [_stage_status(store, name, keys.by_stage[name]) for name in STAGE_NAMES]


def _stage_status(store: Store, name: str, keys: list[Key] | None) -> StageStatus:
    expected = {store.path(key): key for key in keys or []}
    present = {path: stat.st_size for path in store.entries(name) if (stat := stat_of(path)) is not None}
    missing = [key for path, key in expected.items() if path not in present]
    others = [path for path in present if path not in expected]
    return StageStatus(
        name,
        None if keys is None else len(expected),
        len(expected) - len(missing),
        sum(size for path, size in present.items() if path in expected),
        _why_stale(missing, others),
        sum(present[path] for path in others),
    )


def _why_stale(missing: Sequence[Key], others: Sequence[Path]) -> tuple[str, ...]:
    """Why artifacts of the same label do not serve for the keys that are missing, with counts."""
    if not missing or not others:
        return ()
    earlier: dict[str, list[dict]] = {}
    for path in others:
        note = codec.provenance(read_header(path))
        if note is not None:
            earlier.setdefault(note["label"], []).append(note)
    reasons: Counter[str] = Counter()
    for key in missing:
        notes = earlier.get(key.label)
        if notes:
            changes = min((_changes(note, key) for note in notes), key=len)
            reasons.update(["; ".join(changes)] if changes else [])
    return tuple(f"{reason} ({count})" for reason, count in reasons.most_common(3))


def _changes(note: dict, key: Key) -> list[str]:
    """What differs between an artifact's provenance and a key."""
    changes = [] if note["version"] == key.version else [f"stage version {note['version']} -> {key.version}"]
    for name, value in key.config.items():
        before = note["config"].get(name)
        if before != value:
            changes.append(f"{name} {before} -> {value}")
    changes += [f"{name} changed" for name, value in key.inputs.items() if note["inputs"].get(name) != value]
    return changes


def read_header(path: Path) -> bytes:
    """The part of an artifact's file that `codec.provenance` needs; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            return start + file.read(length) if length < 1 << 28 else b""
    except OSError:
        return b""


def dropped_pairs(job: Job, store: Store) -> list[tuple[str, str]]:
    """Pairs that take no part, "name_i | name_j", and why: refused by the predictor, in matching or in alignment."""
    keys = job_keys(job, store)
    dropped: dict[str, str] = {}
    for key in keys.by_stage["match"] or []:
        matches = store.get(key)
        if matches is not None and matches.rejected:
            dropped[key.label] = matches.rejected
    aligned = [store.get(key) for key in keys.by_stage["align3d"] or []]
    for text in aligned[0].alignment.dropped_pairs if aligned and aligned[0] is not None else ():
        name_i, name_j, why = (part.strip() for part in text.split("|", 2))
        dropped.setdefault(f"{name_i} | {name_j}", why)
    return sorted(dropped.items())


NEEDED_BY = {
    "encode": ("forward",),
    "forward": ("match", "align3d"),
    "match": ("align3d", "refine2d", "triangulate"),
}
"""Stages whose artifacts can go once those of the stages named here exist; the others are small, and kept."""


def undecided_stages(keys: JobKeys) -> tuple[str, ...]:
    """Stages of which nobody can say yet what is stale: their keys, or the focal lengths in them, are not known."""
    unknown = tuple(name for name in STAGE_NAMES if keys.by_stage[name] is None)
    searching = keys.by_stage["calibrate"] is not None and keys.by_stage["forward"] is None
    return ("calibrate", *unknown) if searching else unknown


def removable(job: Job, store: Store, keep: Sequence[str] = (), stale: bool = False) -> list[Path]:
    """Files of a cache that no later stage of the job needs; with `stale`, also those that are not of this job.

    What belongs to `undecided_stages` is not stale: most of it may serve the next run.
    """
    found = job_keys(job, store)
    keys = found.by_stage
    files: list[Path] = []
    for name, users in NEEDED_BY.items():
        ready = all(keys[user] is not None and all(store.has(key) for key in keys[user] or []) for user in users)
        finished = all(store.has(key) for key in keys["triangulate"] or []) and keys["triangulate"] is not None
        if name not in keep and (ready or finished):
            files += [store.path(key) for key in keys[name] or [] if store.has(key)]
    if stale:
        known = {store.path(key) for stage_keys in keys.values() for key in stage_keys or []}
        kept = {*keep, *undecided_stages(found)}
        files += [path for name in STAGE_NAMES if name not in kept for path in store.entries(name) if path not in known]
    return files


def keep_within_budget(
    job: Job, store: Store, spared: Job | None = None, amid_stage: bool = False
) -> tuple[int, float]:
    """Remove artifacts until the cache fits `cache.budget_gb`; bytes freed, and bytes still too many.

    Nothing goes that the job, or one to be `spared`, still needs: first what is not of this job, oldest first, then,
    unless a stage is amid its work, what later stages have made superfluous.
    """
    budget = job.config.cache.budget_gb
    if budget is None:
        return 0, 0.0
    excess = sum(usage.size_bytes for usage in store.usage()) - budget * 1e9
    freed = 0
    if excess <= 0:
        return 0, 0.0
    needless = removable(job, store)
    kept = set(needless) if spared is None else {*needless, *_needed(spared, store)}
    foreign = _with_stat([path for path in removable(job, store, stale=True) if path not in kept])
    superfluous = [] if amid_stage else _with_stat(needless)
    for path, stat in [*sorted(foreign, key=lambda item: item[1].st_mtime), *superfluous]:
        if freed >= excess:
            break
        freed += stat.st_size
        path.unlink(missing_ok=True)
    return freed, max(excess - freed, 0.0)


def _with_stat(paths: Sequence[Path]) -> list[tuple[Path, os.stat_result]]:
    """Files with their size and times, without those that another process has removed meanwhile."""
    return [(path, stat) for path in paths if (stat := stat_of(path)) is not None]


def _needed(job: Job, store: Store) -> set[Path]:
    """Files of the artifacts, there or not, that are a job's result or that its later stages still read."""
    keys = job_keys(job, store).by_stage.values()
    return {store.path(key) for stage_keys in keys for key in stage_keys or []} - set(removable(job, store))
