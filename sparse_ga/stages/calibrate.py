"""calibrate: focal lengths, where neither the user, the EXIF data nor the predictor knows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparse_ga.config import Config
from sparse_ga.geometry.bundle import MISSING_COST
from sparse_ga.geometry.cameras import make_intrinsics
from sparse_ga.pairs import Pair
from sparse_ga.predictors.base import Calibrator, Features, PairPredictor
from sparse_ga.products import Alignment, Array, View, check, check_finite
from sparse_ga.stages import align3d, encode, forward, match, refine2d
from sparse_ga.stages.align3d import views_digest
from sparse_ga.stages.base import Stage, versions_digest
from sparse_ga.stages.ingest import with_intrinsics
from sparse_ga.store import Key, digest_of

STAGE = Stage("calibrate", 2, "run", ("ingest", "pairs", "encode"), ("calibrate", "ingest.shared_intrinsics"))
FROM_RECONSTRUCTION = Stage(
    "calibrate",
    5,
    "run",
    ("ingest", "pairs", "forward", "match", "align3d", "refine2d"),
    ("calibrate", "ingest.shared_intrinsics", *forward.STAGE.config, "match", "align3d", "refine2d"),
)
_THROUGH = (encode.STAGE, STAGE, forward.STAGE, match.STAGE, align3d.STAGE, refine2d.STAGE)

FIRST_GUESS = 1.2
"""Focal length to start from when nothing is known, in units of the photograph's long side."""

_GUESSES = (FIRST_GUESS, 2 * FIRST_GUESS, 0.75)  # a plain guess, a longer lens, a phone's wide one
_STEP = 0.005
_FEWEST_VIEWS = 3  # two views alone do not tell a focal length: a longer one always fits a little better
_SETTLED = 0.02  # logarithm of the focal length: a reconstruction that moved it by less starts where it ends
_STILL_OPEN = 1.15  # cost, in units of the best: what was found at more is not tried again


@dataclass(frozen=True, eq=False)
class Calibration:
    """Focal length of every view in working px (0 where another source knows it), and whether to believe it."""

    focal_px: Array  # (N,) float64
    sufficient: Array  # (N,) bool, False where the evidence did not decide
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self.focal_px, "Calibration.focal_px", (None,), "f")
        check(self.sufficient, "Calibration.sufficient", (len(self.focal_px),), "b")
        check_finite(self.focal_px, "Calibration.focal_px")


@dataclass(frozen=True)
class CameraGroup:
    """Views (indices) taken with one camera and zoom, and which of them lack intrinsics."""

    members: tuple[int, ...]
    unknown: tuple[int, ...]


def is_needed(views: Sequence[View], predictor: PairPredictor) -> bool:
    """Whether the predictor needs focal lengths that nobody has given."""
    return isinstance(predictor, Calibrator) and any(view.intrinsics is None and view.mask.any() for view in views)


def camera_groups(views: Sequence[View], shared: bool) -> list[CameraGroup]:
    """Views of one camera whose photographs have the same size, upright or turned, in order of first appearance.

    Where intrinsics are not shared, all views of a size are one group: their common focal length is where each starts.
    """
    by_size: dict[tuple[str, int, int], list[int]] = {}
    for n, view in enumerate(views):
        if view.mask.any():
            size = (view.camera if shared else "", max(view.source_size), min(view.source_size))
            by_size.setdefault(size, []).append(n)
    return [
        CameraGroup(tuple(members), tuple(n for n in members if views[n].intrinsics is None))
        for members in by_size.values()
    ]


def source_long_side(view: View) -> float:
    """Long side of the whole photograph in working px."""
    return max(view.source_size) * float(view.working_from_source[0, 0])


def rounded(focal_px: float) -> float:
    """The nearest focal length on a scale of half percents.

    A small change of one mask then leaves the estimate, and with it all pairs of other views, as they are.
    """
    return float(math.exp(round(math.log(focal_px) / _STEP) * _STEP))


def key(views: Sequence[View], pairs: Sequence[Pair], predictor: PairPredictor, config: Config) -> Key:
    """Key of the focal lengths voted for by all views together."""
    return STAGE.key("vote", config, _inputs(views, pairs, predictor))


def key_from_reconstruction(
    views: Sequence[View], pairs: Sequence[Pair], predictor: PairPredictor, config: Config
) -> Key:
    """Key of the focal lengths found by reconstructing from a guess."""
    return FROM_RECONSTRUCTION.key("reconstruction", config, _inputs_of_reconstruction(views, pairs, predictor))


def key_from_start(
    views: Sequence[View], pairs: Sequence[Pair], predictor: PairPredictor, config: Config, start: Calibration
) -> Key:
    """Key of what one reconstruction makes of the focal lengths that it starts from; kept until they are decided."""
    inputs = _inputs_of_reconstruction(views, pairs, predictor) | {"start": digest_of(start.focal_px)}
    return FROM_RECONSTRUCTION.key("start", config, inputs)


def _inputs(views: Sequence[View], pairs: Sequence[Pair], predictor: PairPredictor) -> dict[str, str]:
    return {
        "views": views_digest(views),
        "pairs": digest_of(*(f"{i} {j}" for i, j in pairs)),
        "predictor": predictor.fingerprint,
    }


def _inputs_of_reconstruction(views: Sequence[View], pairs: Sequence[Pair], predictor: PairPredictor) -> dict[str, str]:
    """The artifacts of the stages it goes through are gone when it is done: their versions stand for them."""
    return _inputs(views, pairs, predictor) | {"stages": versions_digest(_THROUGH)}


def _known_focal(views: Sequence[View], group: CameraGroup) -> float | None:
    """Median focal length, working px, of the group's views whose intrinsics are known."""
    known = [view.intrinsics[0, 0] for n in group.members if (view := views[n]).intrinsics is not None]
    return float(np.median(known)) if known else None


def _vote(
    views: Sequence[View],
    group: CameraGroup,
    pairs: Sequence[Pair],
    predictor: Calibrator,
    features: Callable[[int], Features],
    config: Config,
) -> tuple[float, bool]:
    """Focal length of a group in working px, and whether its triplets sufficed."""
    place = {n: position for position, n in enumerate(group.members)}
    inside = [(place[i], place[j]) for i, j in pairs if i in place and j in place]
    long_side = source_long_side(views[group.members[0]])
    bounds = (config.calibrate.min_focal * long_side, config.calibrate.max_focal * long_side)
    members = [views[n] for n in group.members]
    focal, sufficient = predictor.estimate_focal(members, inside, lambda n: features(group.members[n]), bounds)
    usable = math.isfinite(focal) and bounds[0] <= focal <= bounds[1]
    return (rounded(focal), bool(sufficient)) if usable else (rounded(FIRST_GUESS * long_side), False)


def run(
    views: Sequence[View],
    pairs: Sequence[Pair],
    predictor: Calibrator,
    features: Callable[[int], Features],
    config: Config,
) -> Calibration:
    """Focal lengths by camera group: from views of the group that know theirs, or by the predictor's vote."""
    focal, sufficient = np.zeros(len(views)), np.ones(len(views), bool)
    notes = []
    for group in camera_groups(views, config.ingest.shared_intrinsics):
        if not group.unknown:
            continue
        unknown = list(group.unknown)
        known = _known_focal(views, group) if config.ingest.shared_intrinsics else None
        if known is not None:
            focal[unknown] = known
            notes.append(f"focal length of {len(unknown)} views taken from views of the same size that know theirs")
            continue
        focal[unknown], sufficient[unknown] = _vote(views, group, pairs, predictor, features, config)
    return Calibration(focal, sufficient, tuple(notes))


def first_guess(views: Sequence[View], calibration: Calibration) -> Calibration:
    """The calibration with a plain guess wherever the evidence did not suffice."""
    guesses = [rounded(FIRST_GUESS * source_long_side(view)) for view in views]
    return Calibration(
        np.where(calibration.sufficient, calibration.focal_px, guesses), calibration.sufficient, calibration.notes
    )


def warning_of(calibration: Calibration) -> str:
    """What a person should know of a final calibration; empty where every focal length is known."""
    guessed = int((~calibration.sufficient).sum())
    if not guessed:
        return ""
    return (
        f"the focal length of {guessed} photographs is a guess, {FIRST_GUESS} times their long side: too few of them "
        "hang together to tell it; give it (--cameras) if you know it"
    )


def starts(views: Sequence[View], voted: Calibration) -> list[Calibration]:
    """Where to start reconstructing from: what too few votes were for, a plain guess, a longer and a shorter one.

    A focal length moves only so far while cameras are adjusted, for the pairs' poses were found with the old one.
    """
    guesses = [np.array([rounded(factor * source_long_side(view)) for view in views]) for factor in _GUESSES]
    found = [np.where(voted.sufficient, voted.focal_px, focal) for focal in (voted.focal_px, *guesses)]
    distinct = [focal for n, focal in enumerate(found) if not any(np.array_equal(focal, f) for f in found[:n])]
    return [replace(voted, focal_px=focal) for focal in distinct]


def can_be_reconstructed(views: Sequence[View]) -> bool:
    """Whether enough views show the object for a reconstruction to tell a focal length."""
    return sum(bool(view.mask.any()) for view in views) >= _FEWEST_VIEWS


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """Focal lengths that a reconstruction has refined, and how well it explains the photographs."""

    calibration: Calibration
    measured: Array  # (N,) bool, undecided views whose focal length, or whose camera's, was refined
    moved: float  # largest change of a focal length, in logarithms
    registered: int
    matches: int  # between registered views, in pairs that were kept
    cost: float  # of all matches, by a loss that is the same for all reconstructions; infinite without any

    def cost_among(self, others: Sequence[Reconstructed]) -> float:
        """The cost, with every match that another one explains and this one lost counted as 3 px off in both views.

        So a reconstruction gains nothing by losing pairs, or views.
        """
        most = max(one.matches for one in (self, *others))
        return self.cost + 2 * (most - self.matches) * MISSING_COST

    def decided(self) -> Calibration:
        """The calibration, believed where a focal length was refined with at least three views."""
        measured = self.measured & (self.registered >= _FEWEST_VIEWS)
        return replace(self.calibration, sufficient=self.calibration.sufficient | measured)


def best_reconstruction(
    begin: Sequence[Calibration], reconstruct: Callable[[Calibration], Reconstructed]
) -> Reconstructed:
    """The one that explains the photographs best, of those that start from what a first one has found.

    A focal length is believed by the reconstruction that starts from it, for that is where the run will start. The most
    promising is tried first; what has hardly moved has started from itself; what explains much less is not tried.
    """
    first = [reconstruct(start) for start in begin]
    again: list[Reconstructed] = []
    for found in sorted(first, key=lambda one: one.cost_among(first)):
        everything = (*first, *again)
        costs = [one.cost_among(everything) for one in again]
        if costs and found.cost_among(everything) > _STILL_OPEN * min(costs):
            break
        again.append(found if found.moved < _SETTLED else reconstruct(found.calibration))
    return min(again, key=lambda one: one.cost_among(again))


def from_alignment(
    views: Sequence[View], start: Calibration, alignment: Alignment, matches: int, config: Config
) -> Reconstructed:
    """The calibration with undecided focal lengths replaced by those that a reconstruction has refined.

    One value for each camera group, the median over its registered views; groups without any keep theirs. `matches` is
    the number that the alignment was refined with.
    """
    focal, measured = start.focal_px.copy(), np.zeros(len(views), bool)
    for group in camera_groups(views, config.ingest.shared_intrinsics):
        open_views = [n for n in group.unknown if not start.sufficient[n]]
        refined = [alignment.intrinsics[n, 0, 0] for n in open_views if alignment.registered[n]]
        if not refined:
            continue
        long_side = source_long_side(views[group.members[0]])
        low, high = config.calibrate.min_focal * long_side, config.calibrate.max_focal * long_side
        focal[open_views] = rounded(float(np.clip(np.median(refined), low, high)))
        measured[open_views] = True
    moved = float(np.abs(np.log(focal[measured] / start.focal_px[measured])).max(initial=0.0))
    cost = 2 * matches * alignment.match_cost if len(alignment.residual_history) else math.inf
    registered = int(alignment.registered.sum())
    return Reconstructed(replace(start, focal_px=focal), measured, moved, registered, matches, cost)


def apply(views: Sequence[View], calibration: Calibration) -> list[View]:
    """The views with the estimated intrinsics put in; they stay free to be refined (`intrinsics_source` unknown)."""
    return [
        view if view.intrinsics is not None or focal <= 0 else with_intrinsics(view, _intrinsics(view, focal))
        for view, focal in zip(views, calibration.focal_px, strict=True)
    ]


def _intrinsics(view: View, focal_px: float) -> Array:
    return make_intrinsics(float(focal_px), view.principal_point)
