"""One entry for every export format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sparse_ga.config import ExportConfig
from sparse_ga.errors import InputError
from sparse_ga.io import colmap, depthmaps, gaussian, glb, nerfstudio, npz, ply, sidecar
from sparse_ga.io.orientation import as_stored
from sparse_ga.products import Array, Reconstruction

LoadSource = Callable[[int], tuple[Array, Array]]
"""Source photograph (H, W, 3) uint8 and mask (H, W) bool of view n."""


@dataclass(frozen=True, eq=False)
class _Job:
    reconstruction: Reconstruction
    out_dir: Path
    load_source: LoadSource | None
    config: ExportConfig

    def write(self, name: str, data: bytes) -> Path:
        path = self.out_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def photographs(self, name: str) -> LoadSource:
        if self.load_source is None:
            raise InputError(f"export format {name!r} needs the photographs: give load_source, or run from the cache")
        return self.load_source

    def images(self, background: str) -> gaussian.ImageOptions:
        wanted = "transparent" if self.config.rgba else self.config.background
        return gaussian.ImageOptions(self.config.centering, background if wanted == "auto" else wanted)  # type: ignore[arg-type]


def _ply(job: _Job) -> list[Path]:
    r = job.reconstruction
    written = [job.write("points.ply", ply.encode_points(r.points, r.colors, r.normals, r.point_confidence))]
    if len(r.mesh.faces):
        written.append(job.write("mesh.ply", ply.encode_mesh(r.mesh)))
    return written


def _glb(job: _Job) -> list[Path]:
    written = [job.write("points.glb", glb.encode_glb(job.reconstruction, surface=False))]
    if len(job.reconstruction.mesh.faces):
        written.append(job.write("mesh.glb", glb.encode_glb(job.reconstruction, surface=True)))
    return written


def _colmap(job: _Job) -> list[Path]:
    return colmap.write_colmap(as_stored(job.reconstruction), job.out_dir / "colmap")


def _colmap_text(job: _Job) -> list[Path]:
    return colmap.write_colmap(as_stored(job.reconstruction), job.out_dir / "colmap_text", text=True)


def _gaussian(job: _Job) -> list[Path]:
    folder = job.out_dir / "3dgs"
    return gaussian.write_gaussian(job.reconstruction, folder, job.photographs("3dgs"), job.images("black"))


def _nerfstudio(job: _Job) -> list[Path]:
    folder = job.out_dir / "nerfstudio"
    options = gaussian.ImageOptions("off", job.images("keep").background)
    return nerfstudio.write_nerfstudio(job.reconstruction, folder, job.photographs("nerfstudio"), options)


def _depth(job: _Job) -> list[Path]:
    r = job.reconstruction
    unit = depth_png_unit(r)
    written = []
    for n, name in enumerate(r.names):
        stem = str(PurePosixPath(name).with_suffix(""))
        if not r.registered[n]:
            for suffix in (".png", ".npz") if "depth" in (sidecar.written(job.out_dir) or ()) else ():
                (job.out_dir / f"depth/{stem}{suffix}").unlink(missing_ok=True)  # it was in an earlier reconstruction
            continue
        png = depthmaps.encode_depth_png(depthmaps.source_depth(r, n), unit)
        written.append(job.write(f"depth/{stem}.png", png))
        written.append(job.write(f"depth/{stem}.npz", depthmaps.encode_depth_npz(r, n)))
    return written


def _npz(job: _Job) -> list[Path]:
    return [job.write("reconstruction.npz", npz.encode_reconstruction(job.reconstruction))]


_WRITERS: dict[str, Callable[[_Job], list[Path]]] = {
    "ply": _ply,
    "glb": _glb,
    "colmap": _colmap,
    "colmap-text": _colmap_text,
    "3dgs": _gaussian,
    "nerfstudio": _nerfstudio,
    "depth": _depth,
    "npz": _npz,
}

FORMATS: tuple[str, ...] = tuple(_WRITERS)

WITH_PHOTOGRAPHS = ("3dgs", "nerfstudio")
"""The formats that hold photographs; all others are written from the reconstruction alone."""

_MODEL = ("cameras", "images", "points3D", "frames", "rigs")

_OWN_FILES = {
    "ply": ("points.ply", "mesh.ply"),
    "glb": ("points.glb", "mesh.glb"),
    "colmap": tuple(f"colmap/{name}.bin" for name in _MODEL),
    "colmap-text": tuple(f"colmap_text/{name}.txt" for name in _MODEL),
    "3dgs": ("3dgs/images/*.png", "3dgs/masks/*.png", *(f"3dgs/sparse/0/{name}.bin" for name in _MODEL)),
    "nerfstudio": (
        *(f"nerfstudio/{name}" for name in ("images/*.png", "masks/*.png", "depths/*.npy", "depths/*.png")),
        "nerfstudio/sparse_pc.ply",
        "nerfstudio/transforms.json",
    ),
    "depth": ("depth",),  # only the folder: the user may have put pictures of their own there
    "npz": ("reconstruction.npz",),
}
"""Patterns of what each writer may have written for an earlier reconstruction."""


def _tops(formats: Sequence[str]) -> tuple[str, ...]:
    """The files and folders in an output folder that `formats` write."""
    return tuple(dict.fromkeys(PurePosixPath(pattern).parts[0] for name in formats for pattern in _OWN_FILES[name]))


def check_formats(formats: Sequence[str], names: Sequence[str] = ()) -> None:
    """Raise `InputError` for a format that does not exist, or that cannot hold photographs of these `names`."""
    unknown = [name for name in formats if name not in _WRITERS]
    if unknown:
        raise InputError(f"unknown export format {unknown[0]!r}; choose from {', '.join(FORMATS)}")
    if "colmap-text" in formats:
        colmap.check_names(names)


def check_output_folder(
    out_dir: Path, formats: Sequence[str], inputs: Collection[Path] = (), report: bool = False
) -> None:
    """Raise `InputError` where `formats`, written into `out_dir`, would harm what is the user's.

    That is a file or folder of theirs that is there under a name that is to be written, which no earlier export has
    written, and `inputs` (files or folders) that lie in what exports write, and remove when it is stale. With `report`
    there is a ``report.html`` as well.
    """
    own = sidecar.written(out_dir)
    theirs = [name for name in _tops(formats) if (out_dir / name).exists() and name not in (own or ())]
    if own is None:
        theirs += [name for name in (sidecar.SIDECAR, *["report.html"] * report) if (out_dir / name).exists()]
    if theirs:
        raise InputError(
            f"{out_dir / theirs[0]}: is there already, and no earlier run is known to have written it; move it, or "
            "choose another --out"
        )
    for path in inputs:
        for name in _tops(FORMATS):
            if path.resolve().is_relative_to((out_dir / name).resolve()):
                raise InputError(f"{path}: lies in what is written into {out_dir}; copy it, or choose another --out")


def remove_exports(out_dir: Path, formats: Sequence[str] = FORMATS, kept: Collection[Path] = ()) -> None:
    """Remove what earlier exports left in `out_dir`, except `kept`: it would pass for part of the newest result.

    Files and folders that were there before the first export stay.
    """
    own = sidecar.written(out_dir) or ()
    for pattern in (pattern for name in formats for pattern in _OWN_FILES[name]):
        if PurePosixPath(pattern).parts[0] in own:
            for path in sorted(set(out_dir.glob(pattern)) - set(kept)):
                if not path.is_dir():
                    path.unlink(missing_ok=True)


def depth_png_unit(reconstruction: Reconstruction) -> float:
    """World units of one level of the depth PNGs: the largest depth of all views takes the last level."""
    depth = reconstruction.depthmaps.depth
    return depthmaps.depth_levels([depth]) if len(depth) else 1.0


def export(
    reconstruction: Reconstruction,
    out_dir: Path | str,
    formats: Sequence[str],
    load_source: LoadSource | None = None,
    config: ExportConfig | None = None,
) -> list[Path]:
    """Write `reconstruction` into `out_dir` in every one of `formats` (see `FORMATS`); returns the files written.

    `load_source` gives the photographs, for formats that hold pictures. A sidecar ``scene.json`` tells units, frame
    and conventions, and which files and folders in `out_dir` are of this library. Unregistered views leave no trace
    but their reason there, and files of these formats that an earlier export left go. The same reconstruction and
    options give the same bytes. Raises `InputError` for an unknown format, or when photographs are needed and not
    given.
    """
    job = _Job(reconstruction, Path(out_dir), load_source, config or ExportConfig())
    check_formats(formats)
    for name in WITH_PHOTOGRAPHS:
        if name in formats:
            job.photographs(name)  # before anything is written
    own = {*(sidecar.written(job.out_dir) or ()), *(n for n in _tops(formats) if not (job.out_dir / n).exists())}
    unit = depth_png_unit(reconstruction) if "depth" in formats else sidecar.depth_unit_written(job.out_dir)

    def describe() -> Path:
        return job.write(sidecar.SIDECAR, sidecar.encode_sidecar(reconstruction, unit, sorted(own)))

    describe()  # now, so that what a killed export leaves is known for what it is
    written = [path for name in dict.fromkeys(formats) for path in _WRITERS[name](job)]
    remove_exports(job.out_dir, formats, written)
    own = {name for name in own if (job.out_dir / name).exists()}
    return [*written, describe()]
