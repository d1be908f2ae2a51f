"""`sparse-ga export`: the result of a run in other formats, without computing anything again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_ga.commands.jobs import cache_of, find_run, merge, parse_settings
from sparse_ga.commands.photographs import find_photographs
from sparse_ga.commands.run import top_names
from sparse_ga.config import ExportConfig, load_config
from sparse_ga.errors import InputError, OutputError
from sparse_ga.io.export import WITH_PHOTOGRAPHS, LoadSource, check_formats, check_output_folder
from sparse_ga.io.export import export as write
from sparse_ga.products import InvalidProduct, Reconstruction
from sparse_ga.progress import Reporter
from sparse_ga.status import job_keys
from sparse_ga.store import Store


def export(args: argparse.Namespace, reporter: Reporter) -> int:
    """Write a finished reconstruction in the formats asked for."""
    check_formats(args.format)
    folder, settings = Path(args.folder), parse_settings(args.set or [])
    others = [name for name in settings if name != "export"]
    if others:
        raise InputError(f"--set {others[0]}: nothing is computed again here, only export.FIELD=VALUE has an effect")
    reconstruction, home = find_reconstruction(folder)
    out = Path(args.out) if args.out else home
    check_output_folder(out, args.format)
    if {"colmap", "colmap-text"} & {*args.format} and reconstruction.photographs and not reconstruction.orientations:
        reporter.warn(
            "this result is of an earlier version, which did not note the EXIF orientation of photographs: cameras for "
            "COLMAP are of the upright ones; run again where files are stored turned"
        )
    load_source, config = None, load_config(None, settings).export
    pictured = [name for name in args.format if name in WITH_PHOTOGRAPHS]
    if pictured:
        load_source, config = _photographs(folder, reconstruction, settings, pictured[0])
    try:
        files = write(reconstruction, out, args.format, load_source, config)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out") from None
    reporter.event("summary", files=[str(path) for path in files])
    if reporter.mode != "json":
        reporter.info(f"files  {', '.join(top_names(files, out))} in {out}")
    return 0


def _photographs(
    folder: Path, reconstruction: Reconstruction, settings: dict[str, Any], name: str
) -> tuple[LoadSource, ExportConfig]:
    """The photographs for format `name`, and how the run in `folder`, with `settings` on top, wants them."""
    try:
        record = find_run(folder)[1]
        load_source = find_photographs(record, reconstruction)
    except InputError as error:
        raise InputError(f"export format {name!r} needs the photographs: {error}") from None
    return load_source, load_config(record.preset, merge(record.overrides, settings)).export


def find_reconstruction(folder: Path) -> tuple[Reconstruction, Path]:
    """The reconstruction in an output or cache folder, and the output folder; raises `InputError`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the --out or --cache folder of an earlier run")
    if (folder / "reconstruction.safetensors").is_file():
        return _load(folder), folder
    cache_of(folder)
    cache, record = find_run(folder)
    keys = job_keys(record.job(load=False), Store(cache)).by_stage["triangulate"]
    found = None if keys is None else Store(cache).get(keys[0])
    if found is None:
        raise InputError(f"{folder}: this run is not finished; `sparse-ga run` with the same arguments finishes it")
    return found, Path(record.out)


def _load(folder: Path) -> Reconstruction:
    try:
        return Reconstruction.load(folder)
    except InvalidProduct:
        raise InputError(f"{folder}: no reconstruction here; give the --out or --cache folder of a run") from None
