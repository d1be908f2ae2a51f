"""What a run was asked for, kept with its results, so that status, stage, clean and export need only the folder.

The record belongs to the output folder: it lies in OUT/cache, or in OUT itself, beside the name of the cache, where
this is elsewhere. A cache that several runs share also holds the record of the last of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_ga.api import make_job
from sparse_ga.config import Config, ConfigError, load_config, with_paths_from
from sparse_ga.errors import InputError, OutputError
from sparse_ga.io.cameras_file import read_cameras
from sparse_ga.io.images import ImagesArgument
from sparse_ga.predictors.loading import PredictorRecord, load_predictor
from sparse_ga.stages.job import Job
from sparse_ga.store import TEMPORARY, sweep, write_atomically

RECORD = "job.json"
POINTER = "cache.txt"


@dataclass(frozen=True)
class JobRecord:
    """The arguments of a run, all paths absolute."""

    images: tuple[str, ...]  # a folder or pattern, or files
    masks: str | None
    cameras: str | None
    preset: str | None
    overrides: dict[str, Any]
    out: str
    predictor: PredictorRecord | None = None  # of the last run
    seconds: dict[str, float] = field(default_factory=dict)  # of each stage, when it last computed anything

    @property
    def config(self) -> Config:
        """The preset with the overrides on top; raises `ConfigError`."""
        return load_config(self.preset, self.overrides)

    @property
    def images_argument(self) -> ImagesArgument:
        """What `find_images` is asked for."""
        return self.images[0] if len(self.images) == 1 else list(self.images)

    def decided(self, job: Job) -> JobRecord:
        """The record of `job`, an attempt at this one: with its predictor, and its descriptor network."""
        overrides, descriptors = self.overrides, job.config.forward.descriptors
        if descriptors != self.config.forward.descriptors:
            overrides = merge(overrides, {"forward": {"descriptors": descriptors}})
        return dataclasses.replace(self, overrides=overrides, predictor=PredictorRecord.of(job.predictor))

    def save(self, cache: Path) -> None:
        """Write the record of a run with this cache; raises `OutputError`."""
        out, text = Path(self.out), json.dumps(dataclasses.asdict(self), indent=1).encode()
        if _is_cache_of(cache, out):
            _forget_cache_elsewhere(out)
        else:
            make_folder(out)
            write_atomically(out / POINTER, f"{cache.absolute()}\n".encode())
            write_atomically(out / RECORD, text)
        if not _belongs_to_another(cache, out):
            write_atomically(cache / RECORD, text)

    def job(self, load: bool = True) -> Job:
        """Find and hash the inputs, and load the predictor, or a stand-in for it; raises `InputError`."""
        config = self.config
        cameras = None if self.cameras is None else read_cameras(Path(self.cameras))
        if load or self.predictor is None:
            predictor = load_predictor(config.predictor, config.forward)
        else:
            predictor = self.predictor.predictor()
        return make_job(self.images_argument, self.masks, predictor, config, cameras)


def _is_cache_of(cache: Path, out: Path) -> bool:
    """Whether a cache is that of an output folder without ``--cache``."""
    return cache.resolve() == (out / "cache").resolve()


def _belongs_to_another(cache: Path, out: Path) -> bool:
    """Whether a cache lies in the output folder of another run, whose record it keeps."""
    if _is_cache_of(cache, out):
        return False
    try:
        return _is_cache_of(cache, Path(load_record(cache).out))
    except InputError:
        return False


def _forget_cache_elsewhere(out: Path) -> None:
    """Remove what an earlier run of an output folder, with ``--cache``, has left there."""
    if (out / POINTER).is_file():
        (out / RECORD).unlink(missing_ok=True)
        (out / POINTER).unlink()


def make_folder(out: Path) -> None:
    """Make an output folder, and remove from one that is there what killed writers left; raises `OutputError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        sweep(out.glob(TEMPORARY))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out") from None


def cache_of(folder: Path) -> Path:
    """The cache folder that `folder` (an output folder or a cache) means; raises `InputError` when it is neither."""
    pointer = folder / POINTER
    if pointer.is_file():
        return Path(pointer.read_text(encoding="utf-8").strip())
    for candidate in (folder, folder / "cache"):
        if (candidate / RECORD).is_file():
            return candidate
    objects = sorted(path.parent.name for path in folder.glob("object_*/cache"))
    if objects:
        raise InputError(
            f"{folder}: holds {len(objects)} objects; give the folder of one, such as {folder / objects[0]}"
        )
    raise InputError(f"{folder}: no run has been here; give the --out or --cache folder of an earlier `sparse-ga run`")


def find_run(folder: Path) -> tuple[Path, JobRecord]:
    """Cache and record of the run whose output folder or cache `folder` is; raises `InputError`.

    An output folder may have been moved since.
    """
    cache = cache_of(folder)
    if cache == folder:
        return cache, load_record(cache)
    elsewhere = (folder / POINTER).is_file()
    own = not elsewhere or (folder / RECORD).is_file()  # earlier versions left the record to the cache
    record = load_record(folder if elsewhere and own else cache)
    if not own and Path(record.out).resolve() != folder.resolve():
        raise InputError(f"{folder}: its cache has since served the run in {record.out}; run the same command again")
    return cache, dataclasses.replace(record, out=str(folder.absolute()))


def load_record(cache: Path) -> JobRecord:
    """The record in a folder; raises `InputError` when it cannot be read."""
    path = cache / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        predictor = None if values["predictor"] is None else PredictorRecord(**values["predictor"])
        return JobRecord(**{**values, "images": tuple(values["images"]), "predictor": predictor})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: cannot be read ({error}); start again with `sparse-ga run`") from None


def earlier_seconds(out: Path, cache: Path) -> dict[str, float]:
    """How long the stages took in earlier runs with this output folder, as far as its record tells."""
    try:
        return load_record(cache if _is_cache_of(cache, out) else out).seconds
    except InputError:
        return {}


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Nested overrides from ``section.field=value`` words; values are TOML, or strings where they are not.

    Raises `ConfigError` for a word without `=`.
    """
    from sparse_ga.config import tomllib

    overrides: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {setting}: write section.field=value, for example match.min_matches=20")
        try:
            value = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = None if text.strip().lower() in ("none", "null") else text.strip()
        section = overrides
        *parents, name = path.strip().split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"--set {setting}: {parent} is a value, not a section")
        section[name] = value
    return overrides


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested `base` with nested `changes` on top."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def absolute(path: str | None) -> str | None:
    """`path` from the root; None stays None."""
    return None if path is None else str(Path(path).absolute())


def _absolute_images(images: Sequence[str]) -> tuple[str, ...]:
    """Photographs that mean the same from another working folder; in a pattern the folder's own name is no pattern."""
    if len(images) == 1 and not Path(images[0]).exists():
        return (os.path.join(glob.escape(os.getcwd()), images[0]),)
    return tuple(str(Path(image).absolute()) for image in images)


def record_from(args: argparse.Namespace, out: Path, label: int | None = None) -> JobRecord:
    """The record of a `sparse-ga run` command line, for the object with this label in the masks."""
    overrides = parse_settings(args.set or [])
    if label is not None:
        overrides.setdefault("ingest", {})["object_id"] = label
    if args.predictor is not None:
        overrides["predictor"] = args.predictor
    overrides = with_paths_from(overrides, Path.cwd())
    preset = args.preset
    if preset is not None and preset.endswith(".toml"):
        preset = absolute(preset)
    images = _absolute_images(args.images)
    return JobRecord(images, absolute(args.masks), absolute(args.cameras), preset, overrides, str(out.absolute()))
