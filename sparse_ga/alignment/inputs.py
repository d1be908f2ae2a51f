"""What refine2d is given and keeps at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparse_ga.config import Refine2dConfig
from sparse_ga.products import Array, CanonicalView, VerifiedMatches, View


@dataclass(frozen=True)
class Inputs:
    """What stays the same while views and pairs come and go.

    `intrinsics` are the first estimates: what the priors of focal lengths and principal points are about.
    """

    views: Sequence[View]
    canonical: Sequence[CanonicalView]
    pairs: Sequence[tuple[int, int]]
    load_matches: Callable[[int], VerifiedMatches]
    config: Refine2dConfig
    intrinsics: Array  # (N, 3, 3) working px
