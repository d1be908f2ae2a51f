"""What a report tells beyond the reconstruction itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sparse_ga.products import Array, PairMatches, View


@dataclass(frozen=True)
class PairRecord:
    """One pair of the graph: what was matched, and why it took no part, if it did not."""

    i: int
    j: int
    matches: int | None = None  # None: the cache no longer holds them
    score: float = 0.0
    model: str = "none"
    dropped: str = ""

    @property
    def used(self) -> bool:
        """Whether the pair took part in the alignment, as far as is known."""
        return not self.dropped and self.matches is not None


@dataclass(frozen=True, eq=False)
class PairPicture:
    """A pair whose matches are drawn, and why this one."""

    record: PairRecord
    matches: PairMatches
    kind: str


@dataclass(frozen=True, eq=False)
class StageResiduals:
    """Epipolar distances of matches under the cameras of one stage."""

    stage: str
    lengths_px: Array  # (M,) float64, working px, >= 0


@dataclass(frozen=True, eq=False)
class Convergence:
    """Cost of a solver, step by step."""

    stage: str
    cost: Array  # (iterations,) float64


@dataclass(frozen=True)
class StageSize:
    """What the cache holds of one stage."""

    stage: str
    artifacts: int
    size_bytes: int
    seconds: float | None = None  # when it last computed anything; None: not known


@dataclass(frozen=True, eq=False)
class ReportDetails:
    """Everything a report shows that a `Reconstruction` does not hold; whatever is empty is left out of the report.

    Indices are those of the views in the reconstruction. `advice` has one entry a view, "" where there is none.
    """

    views: tuple[View, ...] = ()
    pairs: tuple[PairRecord, ...] = ()
    pictures: tuple[PairPicture, ...] = ()
    residuals: tuple[StageResiduals, ...] = ()
    convergence: tuple[Convergence, ...] = ()
    uncertainty_deg: Array = field(default_factory=lambda: np.zeros(0))  # (N,), 0 where unknown
    stages: tuple[StageSize, ...] = ()
    advice: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()  # "section.field = value", those that are not the defaults
