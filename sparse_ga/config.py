"""Configuration: one frozen pydantic dataclass per stage. Defaults live here; presets in configs/ override a few.

The text under a field is its documentation and the help of the command line. A field whose metadata says
``runtime`` (device, batch size, ...) changes how fast a result comes, not the result, and stays out of cache keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

PREDICTORS = ("classical", "compact", "mast3r")
AUTO, OFF, PACKAGED = "auto", "off", "packaged"
"""What `forward.descriptors` can say instead of a file: PACKAGED is the network that comes with the package; with AUTO
a run starts without one (`sparse_ga.attempts`)."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_RUNTIME = {"runtime": True}


class ConfigError(ValueError):
    """A preset or an override that cannot be used; says which field and what would be right."""


@dataclass(frozen=True, config=_STRICT)
class IngestConfig:
    """Reading photographs and masks."""

    long_side: Annotated[int, Field(ge=32)] = 512
    """Long side of the working images in pixels."""
    multiple: Annotated[int, Field(ge=1)] = 16
    """Both sides of a working image are multiples of this (the network's patch)."""
    mask_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A working pixel is object when at least this share of it is."""
    object_id: Annotated[int, Field(ge=1)] | None = None
    """In integer label masks: the label of the object. Unset: every non-zero label."""
    shared_intrinsics: bool = True
    """All photographs of one size come from one camera with one zoom setting: what is given for one holds for all."""

    @model_validator(mode="after")
    def _check_multiple(self) -> IngestConfig:
        if self.multiple > self.long_side:
            raise ValueError(f"multiple = {self.multiple} must not be more than long_side = {self.long_side}")
        return self


@dataclass(frozen=True, config=_STRICT)
class PairsConfig:
    """Which pairs of views are looked at."""

    graph: str = "complete"
    """complete, window-K, logwindow-K, oneref-I (window graphs close the ring; append -open for a line of views)."""
    pairs_file: str | None = None
    """Text file with two image names a line, in quotes where they hold blanks; replaces `graph`."""


@dataclass(frozen=True, config=_STRICT)
class CalibrateConfig:
    """Focal length, where neither the user nor the predictor knows it (classical predictor)."""

    min_focal: Annotated[float, Field(ge=0.05, le=100)] = 0.5
    """Smallest focal length considered, in units of the photograph's long side."""
    max_focal: Annotated[float, Field(ge=0.05, le=100)] = 8.0
    """Largest focal length considered, in units of the photograph's long side."""

    @model_validator(mode="after")
    def _check_order(self) -> CalibrateConfig:
        if self.min_focal >= self.max_focal:
            raise ValueError(f"min_focal = {self.min_focal:g} must be less than max_focal = {self.max_focal:g}")
        return self


@dataclass(frozen=True, config=_STRICT)
class ForwardConfig:
    """Running the predictor on every pair."""

    mask_mode: Literal["tokens", "fill", "context"] = "tokens"
    """tokens: background patches leave the attention; fill: background painted; context: the network sees all."""
    cross_stride: Annotated[int, Field(ge=1)] = 2
    """The other view's points are kept at every n-th pixel in both directions."""
    keep_descriptors: bool = False
    """Keep descriptors in the cache after matching: to match again with other settings without the network. DUSt3R has
    none, so that its network runs again all the same."""
    descriptors: Annotated[str, BeforeValidator(lambda value: "off" if value is None else value)] = "auto"
    """Descriptor network of the classical predictor, for pairs on which SIFT finds no pose or a weak one: packaged (the
    weights that come with this package), a file that pipelines/train_descriptors.py exported, or off (SIFT alone).
    auto: SIFT alone, and once more with packaged where it leaves out, or ties in loosely, one photograph in twenty (in
    `match`: where it refuses the pair)."""
    device: str = field(default="auto", metadata=_RUNTIME)
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network's transformer; heads are always fp32. auto: bf16 on GPUs that have it."""
    memory_gb: Annotated[float, Field(gt=0)] = field(default=4.0, metadata=_RUNTIME)
    """Memory a batch may fill."""


@dataclass(frozen=True, config=_STRICT)
class MatchConfig:
    """Matching descriptors on the foreground, and verifying matches."""

    subsample: Annotated[int, Field(ge=1)] = 8
    """Spacing in pixels of the query grid of the reciprocal search."""
    max_rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds there and back after which a query that has not settled is given up."""
    pixel_tolerance: Annotated[float, Field(ge=0)] | None = None
    """Reciprocal matches may miss their start by this many pixels. Unset: however far the search wandered."""
    max_dissimilarity: Annotated[float, Field(gt=0)] | None = 10.0
    """Matches whose descriptors lie further apart (squared distance) than this many times the pair's lower quartile are
    dropped: pixels that only one view sees find one another at random, but do not look alike. Unset: all stay."""
    border_px: Annotated[int, Field(ge=0)] = 3
    """Matches nearer than this to the image border are ignored."""
    max_epipolar_px: Annotated[float, Field(gt=0)] = 2.0
    """Verification: largest Sampson distance of a match to the pair's epipolar geometry."""
    min_matches: Annotated[int, Field(ge=0)] = 12
    """A pair with fewer verified matches is dropped."""
    min_inlier_share: Annotated[float, Field(ge=0, le=1)] = 0.15
    """A pair of whose matches a smaller share agrees with one geometry is dropped."""
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.03
    """A pair whose verified matches reach less than this share of either foreground is dropped."""
    min_confidence: Annotated[float, Field(ge=0)] = 0.0
    """A pair whose verified matches have a lower median confidence is dropped (the scale is the predictor's)."""
    device: str = field(default="auto", metadata=_RUNTIME)
    """auto, cpu, cuda or cuda:N. Matches are the same on all of them."""


@dataclass(frozen=True, config=_STRICT)
class Align3dConfig:
    """Coarse alignment of all views by similarities."""

    anchor_px: Annotated[int, Field(ge=1)] = 8
    """Side in pixels of the blocks that hold the anchors."""
    anchors_per_block: Annotated[int, Field(ge=1, le=1024)] = 4
    """Most anchors in one block; matched pixels come first. 1 gives one anchor a block."""
    tree: Literal["mst", "hierarchical"] = "mst"
    """View tree: maximum spanning tree of pair scores, or hierarchical clustering."""
    max_triplet_deg: Annotated[float, Field(gt=0, le=180)] = 10.0
    """A pair whose rotation disagrees with most of its triplets by more than this is dropped."""
    min_matches: Annotated[int, Field(ge=0)] = 8
    """Pairs with fewer matches cannot register a view; their point maps still help between registered views."""


@dataclass(frozen=True, config=_STRICT)
class Refine2dConfig:
    """Reprojection refinement of cameras, focal length and anchor depths."""

    solver: Literal["lm", "adam"] = "lm"
    """lm: Levenberg-Marquardt with eliminated depths; adam: the schedule of the MASt3R-SfM paper, for comparison."""
    loss_px: Annotated[float, Field(ge=0.01)] = 1.0
    """Scale of the robust loss in working pixels."""
    optimize_focal: bool = True
    """Refine focal lengths that were not given."""
    principal_point: Literal["auto", "fixed", "free"] = "auto"
    """fixed: keep it; free: refine it as well; auto: refine it where the matches determine it and insist on it."""
    principal_point_percent: Annotated[float, Field(gt=0, le=100)] = 3.0
    """How far an unknown principal point may be from the image centre, in percent of the image's long side."""
    hold_given_intrinsics: bool = True
    """Keep intrinsics the user gave exactly as they are."""
    hold_given_poses: bool = True
    """Keep camera poses the user gave exactly as they are; otherwise they are a prior."""
    pose_prior_deg: Annotated[float, Field(gt=0, le=180)] = 1.0
    """How far given poses may be wrong when they are a prior: rotation, and position as seen from the object."""
    focal_percent: Annotated[float, Field(gt=0, le=1000)] = 15.0
    """How far the first estimate of an unknown focal length may be wrong; decides where the matches tell nothing."""
    exif_focal_percent: Annotated[float, Field(gt=0, le=1000)] = 10.0
    """How far a focal length from EXIF may be wrong."""
    max_iterations: Annotated[int, Field(ge=0)] = 40
    """Most linearisations of the lm solver."""


@dataclass(frozen=True, config=_STRICT)
class TriangulateConfig:
    """Tracks, triangulation, bundle adjustment and the dense cloud."""

    max_reprojection_px: Annotated[float, Field(gt=0)] = 2.0
    """Largest reprojection error of a track's observation, in working pixels; less where they scatter less."""
    min_angle_deg: Annotated[float, Field(ge=0, lt=90)] = 1.5
    """Smallest angle between two rays of a track."""
    bundle_adjustment: bool = True
    """Refine cameras and track points together at the end; kept only if it lowers the error."""
    track_cell_px: Annotated[float, Field(ge=0.1)] = 1.0
    """Matches that end within one cell of this many working pixels are one observation of a track."""
    dense: bool = True
    """Fuse the depth maps of all views into a dense cloud; otherwise only track points are exported."""
    dense_method: Literal["anchors", "stereo"] = "stereo"
    """anchors: depth maps from the refined anchors and tracks; stereo: those, refined by photometric consistency."""
    silhouette_px: Annotated[float, Field(ge=0)] = 1.0
    """A point that projects farther than this outside the mask of a view, in working pixels, is dropped."""
    consistency: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Two views agree on a point when their depths differ by at most this share of the object's diameter."""
    min_views: Annotated[int, Field(ge=1)] = 3
    """A dense point needs this many views that agree on it (fewer when fewer views see it)."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.4
    """A dense point needs this confidence, 0 to 1; lower values fill hollows with less certain points."""
    voxel: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Side of the cells that hold one dense point each, as a share of the object's diameter; 0: one pixel."""
    mesh: bool = True
    """Make a watertight mesh from the dense cloud."""
    mesh_depth: Annotated[int, Field(ge=2, le=12)] = 7
    """Depth of the octree of the Poisson reconstruction: 2 to this power cells along the object."""
    mesh_hull: bool = False
    """Bound the mesh by the visual hull where no view gives a depth."""


@dataclass(frozen=True, config=_STRICT)
class ExportConfig:
    """Files for other programs. No stage depends on it: exports are made from the cache, anew each time."""

    centering: Literal["off", "crop", "pad"] = "pad"
    """3DGS folder: shift photographs until the principal point is central, by cutting or by adding background."""
    background: Literal["auto", "keep", "black", "white"] = "auto"
    """Background of exported photographs; auto: black for 3DGS, which reads no masks, kept for nerfstudio."""
    rgba: bool = False
    """Exported photographs carry their mask as alpha channel."""


@dataclass(frozen=True, config=_STRICT)
class CacheConfig:
    """Disk use."""

    budget_gb: Annotated[float, Field(ge=0)] | None = field(default=None, metadata=_RUNTIME)
    """Evict what is cheapest to recompute when the cache grows beyond this."""


@dataclass(frozen=True, config=_STRICT)
class Config:
    """Everything a run can be told."""

    predictor: str = "classical"
    """classical, mast3r, compact, a hub name, or a path to a checkpoint."""
    ingest: IngestConfig = field(default_factory=IngestConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    forward: ForwardConfig = field(default_factory=ForwardConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    align3d: Align3dConfig = field(default_factory=Align3dConfig)
    refine2d: Refine2dConfig = field(default_factory=Refine2dConfig)
    triangulate: TriangulateConfig = field(default_factory=TriangulateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        known = dataclasses.fields(Config)
        for part in path[:-1]:
            match = [f for f in known if f.name == part]
            if match and dataclasses.is_dataclass(match[0].default_factory):
                known = dataclasses.fields(match[0].default_factory)
        close = difflib.get_close_matches(path[-1], [f.name for f in known], n=1)
        unknown = item["type"] == "unexpected_keyword_argument"
        hint = f" (did you mean {close[0]!r}?)" if unknown and close else ""
        message = "no such field" if unknown else item["msg"].removeprefix("Value error, ")
        lines.append(f"{source}: {'.'.join(path)}: {message}{hint}")
    return "\n".join(lines)


def make_config(overrides: dict[str, Any], base: Config | None = None, source: str = "config") -> Config:
    """`base` (default: the defaults) with nested `overrides`; raises `ConfigError` naming field and source."""
    merged = _merge(dataclasses.asdict(base or Config()), overrides)
    try:
        return TypeAdapter(Config).validate_python(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, source)) from None


def presets_dir() -> Path:
    """The folder with the presets: inside the package when installed, configs/ in a checkout."""
    installed = Path(__file__).parent / "presets"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def preset_names() -> list[str]:
    """Names of all presets that ship with the package."""
    return sorted(path.stem for path in presets_dir().glob("*.toml"))


def with_paths_from(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`settings` in which the files that they name mean the same everywhere: relative paths start at `folder`."""
    changes: dict[str, Any] = {}
    predictor = settings.get("predictor")
    if isinstance(predictor, str) and predictor not in PREDICTORS and (folder / predictor).exists():
        changes["predictor"] = str(folder / predictor)
    for section, name, words in (("pairs", "pairs_file", ()), ("forward", "descriptors", (AUTO, OFF, PACKAGED))):
        values = settings.get(section)
        value = values.get(name) if isinstance(values, dict) else None
        if isinstance(value, str) and value not in words:
            changes[section] = {name: str(folder / value)}
    return _merge(settings, changes)


def load_config(preset: str | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """A preset by name, or a TOML file by path, with nested overrides on top; raises `ConfigError`.

    Files that a TOML file names are looked for from its own folder.
    """
    changes: dict[str, Any] = {}
    source = "config"
    if preset is not None:
        path = Path(preset) if preset.endswith(".toml") else presets_dir() / f"{preset}.toml"
        if not path.is_file():
            raise ConfigError(
                f"unknown preset {preset!r}; presets are {', '.join(preset_names())}, or give a .toml file"
            )
        source = path.name
        try:
            changes = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        changes = with_paths_from(changes, path.absolute().parent)
    config = make_config(changes, source=source)
    return make_config(overrides, config, "override") if overrides else config


def output_fields(section: Any) -> dict[str, Any]:
    """The fields of a config section that affect its stage's output: what enters the cache key."""
    return {
        f.name: getattr(section, f.name) for f in dataclasses.fields(section) if not f.metadata.get("runtime", False)
    }
