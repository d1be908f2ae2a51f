"""The stages in order, and what a job is."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_ga.config import Config
from sparse_ga.errors import InputError
from sparse_ga.predictors.base import PairPredictor
from sparse_ga.products import Array
from sparse_ga.stages import align3d, calibrate, encode, forward, ingest, match, pairs, refine2d, triangulate
from sparse_ga.stages.base import Stage
from sparse_ga.stages.ingest import Source

STAGES: tuple[Stage, ...] = (
    ingest.STAGE,
    pairs.STAGE,
    encode.STAGE,
    calibrate.STAGE,
    forward.STAGE,
    match.STAGE,
    align3d.STAGE,
    refine2d.STAGE,
    triangulate.STAGE,
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)


@dataclass(frozen=True, eq=False)
class Job:
    """What to reconstruct, and how."""

    sources: tuple[Source, ...]
    predictor: PairPredictor
    config: Config

    def load_source(self, n: int) -> tuple[Array, Array]:
        """Photograph (H, W, 3) uint8 and mask (H, W) bool of view n at source resolution, upright."""
        return ingest.load_source(self.sources[n], self.config.ingest.object_id)


def stage_position(name: str) -> int:
    """Position of a stage in `STAGES`; raises `InputError` for a name that is none."""
    if name not in STAGE_NAMES:
        raise InputError(f"there is no stage {name!r}; stages are {', '.join(STAGE_NAMES)}")
    return STAGE_NAMES.index(name)
