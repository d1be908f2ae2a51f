"""`sparse-ga run` and `sparse-ga stage`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparse_ga.commands.jobs import JobRecord, cache_of, earlier_seconds, load_record, record_from
from sparse_ga.errors import InputError, OutputError
from sparse_ga.pipeline import Pipeline, RunResult, unregistered
from sparse_ga.predictors.loading import PredictorRecord
from sparse_ga.products import Reconstruction
from sparse_ga.progress import Reporter
from sparse_ga.stages.job import Job
from sparse_ga.store import Store, write_atomically

DEFAULT_FORMATS = ("ply", "glb", "colmap")
NOTHING_REGISTERED = 3
_MOST_LEFT_OUT = 4


def run(args: argparse.Namespace, reporter: Reporter) -> int:
    """Reconstruct, resuming what the cache holds, and write the outputs."""
    out = Path(args.out)
    cache = Path(args.cache) if args.cache else out / "cache"
    record = record_from(args, out)
    return _execute(record, cache, Span(args.from_stage, args.until, tuple(args.format or ())), reporter)


def stage(args: argparse.Namespace, reporter: Reporter) -> int:
    """Compute one stage of an earlier run again, with its inputs from the cache."""
    cache = cache_of(Path(args.folder))
    return _execute(load_record(cache), cache, Span(args.name, args.name), reporter)


@dataclass(frozen=True)
class Span:
    """Stages to run, and formats to write at the end (empty: the usual ones)."""

    first: str | None = None
    last: str | None = None
    formats: tuple[str, ...] = ()


def _execute(record: JobRecord, cache: Path, span: Span, reporter: Reporter) -> int:
    _check_formats(span.formats)
    job = record.job()
    store = Store(cache)
    record = dataclasses.replace(record, predictor=PredictorRecord.of(job.predictor), seconds=earlier_seconds(cache))
    record.save(cache)
    out = Path(record.out)
    result = Pipeline(job, store, reporter).run(span.first, span.last)
    spent = {name: round(count.seconds, 3) for name, count in result.counts.items() if count.computed}
    dataclasses.replace(record, seconds={**record.seconds, **spent}).save(cache)
    _tell_counts(result, reporter)
    if result.reconstruction is None:
        reporter.info(
            f"done up to stage {span.last}; go on with `sparse-ga run` or look with `sparse-ga status {cache}`"
        )
        return 0
    files = write_outputs(result.reconstruction, out, cache, job, span.formats)
    _summarize(result.reconstruction, files, out, reporter)
    return 0 if result.reconstruction.registered.any() else NOTHING_REGISTERED


def _check_formats(formats: Sequence[str]) -> None:
    """Raise `InputError` for a format that does not exist, before any work."""
    if not formats:
        return
    from sparse_ga.io.export import FORMATS

    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise InputError(f"unknown export format {unknown[0]!r}; choose from {', '.join(FORMATS)}")


def write_outputs(
    reconstruction: Reconstruction, out: Path, cache: Path, job: Job | None = None, formats: Sequence[str] = ()
) -> list[Path]:
    """Write the reconstruction and its exports into `out`; raises `OutputError` when that is impossible.

    Without a `job` there are no photographs for the formats that hold them, and no report.
    """
    from sparse_ga.io.export import export

    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [reconstruction.save(out)]
        if reconstruction.registered.any():
            options = (None, None) if job is None else (job.load_source, job.config.export)
            files += export(reconstruction, out, formats or DEFAULT_FORMATS, *options)
        if job is not None:
            files.append(_write_report(reconstruction, out, cache, job))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out") from None
    if cache.absolute() != (out / "cache").absolute():
        write_atomically(out / "cache.txt", f"{cache.absolute()}\n".encode())
    return files


def _write_report(reconstruction: Reconstruction, out: Path, cache: Path, job: Job) -> Path:
    """Write ``report.html``, the same for the same reconstruction and cache."""
    from sparse_ga.report.collect import collect_details
    from sparse_ga.report.page import write_report

    advice = [remedy(reason) if reason else "" for reason in reconstruction.reasons]
    return write_report(reconstruction, out / "report.html", collect_details(job, Store(cache), reconstruction, advice))


def _tell_counts(result: RunResult, reporter: Reporter) -> None:
    for name, count in result.counts.items():
        if count.computed or count.reused:
            reporter.detail(f"{name}: {count.computed} computed, {count.reused} from the cache, {count.seconds:.1f} s")


def top_names(files: list[Path], out: Path) -> list[str]:
    """What was written, as one sees it in `out`: files, and folders with a slash."""
    parts = [path.relative_to(out).parts for path in files]
    return list(dict.fromkeys(f"{part[0]}/" if len(part) > 1 else part[0] for part in parts))


def _summarize(reconstruction: Reconstruction, files: list[Path], out: Path, reporter: Reporter) -> None:
    """At most ten lines about what came out."""
    registered = np.asarray(reconstruction.registered)
    missing = unregistered(reconstruction)
    if any(reason.startswith("in a smaller component") for _, reason in missing):
        reporter.warn("the photographs fall into groups that nothing ties together; the largest was reconstructed")
    focal = np.median(reconstruction.intrinsics[registered, 0, 0]) if registered.any() else 0.0
    reporter.event(
        "summary",
        images=len(registered),
        registered=int(registered.sum()),
        unregistered=[{"name": name, "reason": reason} for name, reason in missing],
        focal_px=float(focal),
        mean_reprojection_px=reconstruction.report.mean_reprojection_px,
        tracks=len(reconstruction.track_points),
        points=len(reconstruction.points),
        files=[str(path) for path in files],
        warnings=list(reporter.warnings),
    )
    if reporter.mode == "json":
        return
    reporter.info(f"registered  {int(registered.sum())} of {len(registered)} images")
    if registered.any():
        reporter.info(f"focal       {focal:.0f} px (median, source pixels)")
        reporter.info(
            f"error       {reconstruction.report.mean_reprojection_px:.2f} px mean over "
            f"{len(reconstruction.track_points)} tracks"
        )
        reporter.info(f"points      {len(reconstruction.points)}")
    reporter.info(f"files       {', '.join(top_names(files, out))} in {out}")
    for name, reason in missing[:_MOST_LEFT_OUT]:
        reporter.info(f"left out    {name}: {shortened(reason)}; {remedy(reason)}")
    if len(missing) > _MOST_LEFT_OUT:
        reporter.info(f"left out    {len(missing) - _MOST_LEFT_OUT} more images (all of them: --json, scene.json)")


_REMEDIES = (
    ("in a smaller component", "add photographs between the two groups"),
    ("its pairs contradict", "add photographs between it and its neighbours, so that like sides can be told apart"),
    ("no usable pair", "add photographs between it and its neighbours, or try another predictor"),
    ("no pair", "its neighbours are not in the pair graph; try pairs.graph=complete"),
    ("object ", "nothing to be done"),
    ("the mask is empty", "mark the object in its mask"),
)


def remedy(reason: str) -> str:
    """What to do about an image that is not registered for this reason."""
    return next((text for start, text in _REMEDIES if reason.startswith(start)), "look at it with `sparse-ga check`")


def shortened(text: str, most: int = 110) -> str:
    """`text`, cut at a word when it is long."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " ..."
