"""`sparse-ga run` and `sparse-ga stage`."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ga.alignment.components import SMALLER, UNPOSED, UNUSED_POSE, about_groups
from sparse_ga.api import unregistered
from sparse_ga.attempts import Attempts
from sparse_ga.commands.jobs import JobRecord, earlier_seconds, find_run, make_folder, record_from
from sparse_ga.errors import InputError, OutputError
from sparse_ga.io.images import find_images
from sparse_ga.objects import find_objects, object_folder
from sparse_ga.pipeline import RunResult
from sparse_ga.predictors.loading import PredictorNotLoaded
from sparse_ga.products import Reconstruction
from sparse_ga.progress import Reporter
from sparse_ga.stages.job import STAGE_NAMES, Job, stage_position
from sparse_ga.store import Store

DEFAULT_FORMATS = ("ply", "glb", "colmap")
NOTHING_REGISTERED = 3
_MOST_LEFT_OUT = 4
_MOST_OBJECTS = 8


def run(args: argparse.Namespace, reporter: Reporter) -> int:
    """Reconstruct, resuming what the cache holds, and write the outputs."""
    out = Path(args.out)
    cache = Path(args.cache) if args.cache else out / "cache"
    wanted = parse_object(args.object)
    if wanted is None or isinstance(wanted, int):
        return _execute_run(args, wanted, out, cache, reporter)
    return _run_objects(args, wanted, reporter)


def _execute_run(args: argparse.Namespace, label: int | None, out: Path, cache: Path, reporter: Reporter) -> int:
    record = record_from(args, out, label)
    return _execute(record, cache, Span(args.from_stage, args.until, tuple(args.format or ())), reporter)


def parse_object(text: str | None) -> int | str | tuple[int, ...] | None:
    """What ``--object`` asks for: nothing, one label, several, or "all"; raises `InputError`."""
    if text is None or text == "all":
        return text
    try:
        labels = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--object {text}: give a label such as 3, several such as 1,3, or all") from None
    if min(labels) < 1:
        raise InputError(f"--object {text}: labels of objects start at 1, 0 is the background")
    return labels[0] if len(labels) == 1 else labels


def _run_objects(args: argparse.Namespace, wanted: str | tuple[int, ...], reporter: Reporter) -> int:
    """Reconstruct several objects of one set of photographs, each on its own, in OUT/object_ID."""
    images = args.images[0] if len(args.images) == 1 else args.images
    found = find_objects(images, args.masks, None if isinstance(wanted, str) else wanted)
    span = Span(args.from_stage, args.until, tuple(args.format or ()))
    records = {label: record_from(args, Path(args.out) / object_folder(label), label) for label in found}
    for record in records.values():
        _check_outputs(record, span)
    told: list[dict[str, Any]] = []
    for label, record in records.items():
        out = Path(args.out) / object_folder(label)
        cache = Path(args.cache) / object_folder(label) if args.cache else out / "cache"
        reporter.info(f"object {label}")
        try:
            reconstruction, files = _make(record, cache, span, reporter)
        except InputError as error:
            reporter.warn(f"object {label} left out: {error}")
            continue
        if reconstruction is None:
            reporter.info(f"object {label:<4} done up to stage {args.until}, in {out}")
            continue
        told.append({"object": label, "out": str(out), **_values(reconstruction, files)})
        reporter.event("object", **told[-1])
    if not told:
        if args.until is None or args.until == STAGE_NAMES[-1]:
            raise InputError("no object could be reconstructed; the warnings above say why")
        return 0
    return _summarize_objects(told, args.out, reporter)


def _summarize_objects(told: list[dict[str, Any]], out: str, reporter: Reporter) -> int:
    """A line for each object."""
    reporter.event("summary", objects=told, warnings=list(reporter.warnings))
    if reporter.mode != "json":
        for one in told[:_MOST_OBJECTS]:
            reporter.info(
                f"object {one['object']:<4} {one['registered']} of {one['images']} images, focal "
                f"{one['focal_px']:.0f} px, error {one['mean_reprojection_px']:.2f} px, {one['points']} points"
            )
        if len(told) > _MOST_OBJECTS:
            reporter.info(f"            and {len(told) - _MOST_OBJECTS} more")
        reporter.info(f"files       {object_folder(told[0]['object'])}/ and so on in {out}; look at each report.html")
    return 0 if any(one["registered"] for one in told) else _nothing(Path(out))


def _nothing(out: Path) -> int:
    """Say that nothing was registered and what to do, in one line."""
    print(
        f"sparse-ga: no image could be registered; {out}: report.html says why for each; try photographs 15 to 25 "
        "degrees apart, masks checked with `sparse-ga check`, or --predictor mast3r",
        file=sys.stderr,
    )
    return NOTHING_REGISTERED


def stage(args: argparse.Namespace, reporter: Reporter) -> int:
    """Compute one stage of an earlier run again, with its inputs from the cache."""
    cache, record = find_run(Path(args.folder))
    span = Span(args.name, args.name)
    if stage_position(args.name) > stage_position("forward"):
        with suppress(PredictorNotLoaded):  # the cache lacks a prediction
            return _execute(record, cache, span, reporter, load=False)
    return _execute(record, cache, span, reporter)


@dataclass(frozen=True)
class Span:
    """Stages to run, and formats to write at the end (empty: the usual ones)."""

    first: str | None = None
    last: str | None = None
    formats: tuple[str, ...] = ()


def _execute(record: JobRecord, cache: Path, span: Span, reporter: Reporter, load: bool = True) -> int:
    reconstruction, files = _make(record, cache, span, reporter, load)
    if reconstruction is None:
        reporter.event("summary", until=span.last, cache=str(cache))
        if span.formats:
            reporter.warn(f"no format is written before the last stage, {STAGE_NAMES[-1]}: --format had no effect")
        if reporter.mode != "json":
            reporter.info(
                f"done up to stage {span.last}; go on with `sparse-ga run` or look with `sparse-ga status {cache}`"
            )
        return 0
    _summarize(reconstruction, files, Path(record.out), reporter)
    return 0 if reconstruction.registered.any() else _nothing(Path(record.out))


def _make(
    record: JobRecord, cache: Path, span: Span, reporter: Reporter, load: bool = True
) -> tuple[Reconstruction | None, list[Path]]:
    """Run the stages, and write the outputs if the last one is among them: the result and the files.

    Unless the predictor is to `load`, raises `PredictorNotLoaded` where it turns out to be needed.
    """
    from sparse_ga.io.export import check_formats

    _check_outputs(record, span)
    job = record.job(load)
    check_formats(span.formats, [source.name for source in job.sources])
    record = dataclasses.replace(record, seconds=earlier_seconds(Path(record.out), cache))
    attempts = Attempts(Store(cache), reporter, lambda chosen: record.decided(chosen).save(cache))
    attempt = attempts.run(job, span.first, span.last)
    spent = {name: round(seconds, 3) for name, seconds in attempts.seconds.items()}
    dataclasses.replace(record, seconds={**record.seconds, **spent}).decided(attempt.job).save(cache)
    _tell_counts(attempt.result, reporter)
    reconstruction = attempt.result.reconstruction
    if reconstruction is None:
        return None, []
    for text in _doubts(attempt.result):
        reporter.warn(text)
    return reconstruction, write_outputs(reconstruction, Path(record.out), cache, attempt.job, span.formats)


def _check_outputs(record: JobRecord, span: Span) -> None:
    """Raise `InputError` for outputs that cannot be written without harm to what is the user's, before any work."""
    from sparse_ga.io.export import check_formats, check_output_folder

    check_formats(span.formats)
    if Path(record.out).exists() and not Path(record.out).is_dir():
        raise OutputError(f"{record.out}: is a file; choose another folder with --out")
    if span.last in (None, STAGE_NAMES[-1]):
        inputs = [Path(path) for path in (record.masks, record.cameras) if path is not None]
        inputs += find_images(record.images_argument)
        check_output_folder(Path(record.out), span.formats or DEFAULT_FORMATS, inputs, report=True)


def write_outputs(
    reconstruction: Reconstruction, out: Path, cache: Path, job: Job | None = None, formats: Sequence[str] = ()
) -> list[Path]:
    """Write the reconstruction and its exports into `out`; raises `OutputError` when that is impossible.

    Without a `job` there are no photographs for the formats that hold them, and no report.
    """
    from sparse_ga.io.export import export, remove_exports

    make_folder(out)
    try:
        files = [reconstruction.save(out)]
        formats = formats or DEFAULT_FORMATS
        if not reconstruction.registered.any():
            remove_exports(out)  # what an earlier run has left is not of this one, which has nothing to show
            formats = ()
        options = (None, None) if job is None else (job.load_source, job.config.export)
        files += export(reconstruction, out, formats, *options)
        if job is not None:
            files.append(_write_report(reconstruction, out, cache, job))
    except OSError as error:
        remedy_text = "free some space, or choose another folder with --out"
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            remedy_text = "choose another folder with --out"
        raise OutputError(f"{out}: cannot be written ({error.strerror}); {remedy_text}") from None
    return files


def _write_report(reconstruction: Reconstruction, out: Path, cache: Path, job: Job) -> Path:
    """Write ``report.html``, the same for the same reconstruction and cache."""
    from sparse_ga.report.collect import collect_details
    from sparse_ga.report.page import write_report

    advice = [remedy(reason) if reason else "" for reason in reconstruction.reasons]
    details = collect_details(job, Store(cache), reconstruction, advice, earlier_seconds(out, cache))
    return write_report(reconstruction, out / "report.html", details)


def _doubts(result: RunResult) -> list[str]:
    """What a person should know of a result whose photographs are registered, and yet may be wrong."""
    reconstruction = result.reconstruction
    if reconstruction is None or not reconstruction.registered.any():
        return []
    told = list(reconstruction.report.notes)
    if not len(reconstruction.track_points) and not len(reconstruction.points):
        told.append(
            "not a single match fits the cameras, so that they are unchecked and there are no points; where poses are "
            "given, look at their axes, their order and the photographs they belong to"
        )
    return told


def _tell_counts(result: RunResult, reporter: Reporter) -> None:
    for name, count in result.counts.items():
        if count.computed or count.reused:
            reporter.detail(f"{name}: {count.computed} computed, {count.reused} from the cache, {count.seconds:.1f} s")


def top_names(files: list[Path], out: Path) -> list[str]:
    """What was written, as one sees it in `out`: files, and folders with a slash."""
    parts = [path.relative_to(out).parts for path in files]
    return list(dict.fromkeys(f"{part[0]}/" if len(part) > 1 else part[0] for part in parts))


def _values(reconstruction: Reconstruction, files: list[Path]) -> dict[str, Any]:
    """What a summary says of one reconstruction."""
    registered = np.asarray(reconstruction.registered)
    focal = np.median(reconstruction.intrinsics[registered, 0, 0]) if registered.any() else 0.0
    return {
        "images": len(registered),
        "registered": int(registered.sum()),
        "unregistered": [
            {"name": name, "reason": reason, "remedy": remedy(reason)} for name, reason in unregistered(reconstruction)
        ],
        "focal_px": float(focal),
        "mean_reprojection_px": float(reconstruction.report.mean_reprojection_px),
        "tracks": len(reconstruction.track_points),
        "points": len(reconstruction.points),
        "files": [str(path) for path in files],
    }


def _summarize(reconstruction: Reconstruction, files: list[Path], out: Path, reporter: Reporter) -> None:
    """At most ten lines about what came out."""
    registered = np.asarray(reconstruction.registered)
    missing = unregistered(reconstruction)
    for text in about_groups([reason for _, reason in missing]):
        reporter.warn(text)
    values = _values(reconstruction, files)
    reporter.event("summary", **values, warnings=list(reporter.warnings))
    if reporter.mode == "json":
        return
    reporter.info(f"registered  {int(registered.sum())} of {len(registered)} images")
    if registered.any():
        reporter.info(f"focal       {values['focal_px']:.0f} px (median, source pixels)")
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
    (SMALLER, "add photographs between the two groups"),
    (UNPOSED, "give a pose to one of them, or add photographs in between"),
    (UNUSED_POSE, "add photographs between it and the others, or give poses of those"),
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
