"""Views that are tied in loosely, placed anew where that explains the matches better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sparse_ga.alignment.edges import usable
from sparse_ga.alignment.evidence import matches_on_object, points_of
from sparse_ga.alignment.inputs import Inputs
from sparse_ga.alignment.resection import resect_views
from sparse_ga.geometry.bundle import MISSING_COST
from sparse_ga.geometry.cameras import project
from sparse_ga.geometry.transforms import apply, inverse
from sparse_ga.products import Alignment, Array

_LOOSE_DEG = 0.5  # standard deviation of a rotation, beyond what all views share
_MOST_TRIED, _MOST_IN_VAIN = 8, 3  # views in a run, and of these one after the other: every trial is two solutions
_OWN, _ALL = 0.9, 1.001  # shares of the costs, of a view's matches and of all, that a new place may leave

Solve = Callable[[Alignment], Alignment]


def reposition_loose_views(
    alignment: Alignment, inputs: Inputs, excluded: Array, solve: Solve, tried: set[int]
) -> tuple[Alignment, bool]:
    """The solved alignment with loosely tied views where they fit the matches better, and whether any has moved.

    Two photographs through a long lens, or of a small or flat part of the object, leave open how far the camera turned
    (the bas-relief ambiguity), and even to which side: a view that starts on the wrong one stays there, in a local
    minimum of the reprojection error. So it is taken out, the others are solved without it, and it is placed by the
    points they know. Where another solution from there leaves the view's own matches a cost smaller by a tenth, and all
    of them together none that is larger, it stands.

    `solve` minimises over the registered views and the pairs that are not `excluded` (P,) bool; these, which may show
    another side that looks alike, have no say. The loosest views go first; those in `tried`, to which the ones tried
    here are added, and those with a given pose stay as they are.
    """
    moved, in_vain = False, 0
    while len(tried) < _MOST_TRIED and in_vain < _MOST_IN_VAIN and alignment.registered.sum() > 2:
        looseness = _looseness_deg(alignment, inputs, tried)
        n = int(looseness.argmax())
        if looseness[n] <= _LOOSE_DEG:
            break
        tried.add(n)
        trial = _placed_anew(alignment, inputs, solve, n)
        if trial is not None and _fits_better(trial, alignment, inputs, excluded, n):
            alignment, moved, in_vain = trial, True, 0
        else:
            in_vain += 1
    return alignment, moved


def _looseness_deg(alignment: Alignment, inputs: Inputs, tried: set[int]) -> Array:
    """How uncertain each view's rotation is beyond that of the firmest, (N,) degrees; 0 for views that are to stay.

    What all views share comes from the camera's intrinsics, and no view would be placed better for it.
    """
    sigma = alignment.uncertainty_deg
    shared = sigma[alignment.registered].min(initial=np.inf)
    free = alignment.registered & np.array([view.world_from_cam is None for view in inputs.views], bool)
    free[list(tried)] = False
    return np.sqrt(np.where(free, sigma**2 - shared**2, 0.0).clip(0.0))


def _placed_anew(alignment: Alignment, inputs: Inputs, solve: Solve, n: int) -> Alignment | None:
    """The solution with view n where the points of the others place it; None where they do not."""
    others = alignment.registered & (np.arange(len(alignment.names)) != n)
    without = solve(replace(alignment, registered=others))
    placed, found = resect_views(without, inputs, refused=~alignment.registered)
    if not found[n]:
        return None
    trial = solve(replace(placed, intrinsics=alignment.intrinsics))  # a principal point freed for the others is held
    return trial if trial.status.startswith("ok") and trial.registered[n] else None


def _fits_better(trial: Alignment, alignment: Alignment, inputs: Inputs, excluded: Array, n: int) -> bool:
    """Whether a solution with view n in another place explains its matches better, and all of them no worse."""
    if trial.match_cost > _ALL * alignment.match_cost:
        return False
    return _own_cost(trial, inputs, excluded, n) < _OWN * _own_cost(alignment, inputs, excluded, n)


def _own_cost(alignment: Alignment, inputs: Inputs, excluded: Array, n: int) -> float:
    """What `match_cost` is over all matches, over those of view n in pairs that are not `excluded` (P,) bool."""
    costs = [np.zeros(0)]
    for p, (i, j) in enumerate(inputs.pairs):
        if excluded[p] or n not in (i, j) or not usable((i, j), len(inputs.views)):
            continue
        verified = inputs.load_matches(p)
        if verified.rejected is not None or not (alignment.registered[i] and alignment.registered[j]):
            continue
        matches = matches_on_object(verified, inputs.canonical[i], inputs.canonical[j])
        for (a, b), one in (((i, j), matches), ((j, i), matches.swap())):
            b_from_a = inverse(alignment.world_from_cam[b]) @ alignment.world_from_cam[a]
            points = apply(b_from_a, points_of(alignment, inputs.canonical[a], a, one.xy_i))
            there, front = project(alignment.intrinsics[b], points)
            cost = np.log1p(((there - one.xy_j) ** 2).sum(-1))
            costs.append(np.where(front, np.minimum(cost, MISSING_COST), MISSING_COST))
    together = np.concatenate(costs)
    return float(together.mean()) if len(together) else 0.0
