"""`sparse-ga export`: the result of a run in other formats, without computing anything again."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sparse_ga.commands.jobs import JobRecord, cache_of, load_record, merge, parse_settings
from sparse_ga.config import load_config
from sparse_ga.errors import InputError, OutputError
from sparse_ga.io.export import FORMATS
from sparse_ga.io.export import export as write
from sparse_ga.products import InvalidProduct, Reconstruction
from sparse_ga.progress import Reporter
from sparse_ga.status import job_keys
from sparse_ga.store import Store


def export(args: argparse.Namespace, reporter: Reporter) -> int:
    """Write a finished reconstruction in the formats asked for."""
    unknown = [name for name in args.format if name not in FORMATS]
    if unknown:
        raise InputError(f"unknown export format {unknown[0]!r}; choose from {', '.join(FORMATS)}")
    folder = Path(args.folder)
    reconstruction, record = find_reconstruction(folder)
    out = Path(args.out) if args.out else Path(record.out) if record is not None else folder
    settings = parse_settings(args.set or [])
    job = (
        None if record is None else dataclasses.replace(record, overrides=merge(record.overrides, settings)).job(False)
    )
    load_source, config = (None, load_config(None, settings)) if job is None else (job.load_source, job.config)
    try:
        files = write(reconstruction, out, args.format, load_source, config.export)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out") from None
    reporter.event("summary", files=[str(path) for path in files])
    if reporter.mode != "json":
        reporter.info(f"files  {', '.join(str(path) for path in files)}")
    return 0


def find_reconstruction(folder: Path) -> tuple[Reconstruction, JobRecord | None]:
    """The reconstruction in an output or cache folder, and the run it came from; raises `InputError`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the --out or --cache folder of an earlier run")
    try:
        cache = cache_of(folder)
    except InputError:
        return _load(folder), None
    record = load_record(cache)
    if (folder / "reconstruction.safetensors").is_file():
        return _load(folder), record
    keys = job_keys(record.job(load=False), Store(cache)).by_stage["triangulate"]
    found = None if keys is None else Store(cache).get(keys[0])
    if found is None:
        raise InputError(f"{folder}: this run is not finished; `sparse-ga run` with the same arguments finishes it")
    return found, record


def _load(folder: Path) -> Reconstruction:
    try:
        return Reconstruction.load(folder)
    except InvalidProduct:
        raise InputError(f"{folder}: no reconstruction here; give the --out or --cache folder of a run") from None
