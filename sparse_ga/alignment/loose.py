"""Views that are tied in loosely, placed anew where that explains the matches better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sparse_ga.alignment.inputs import Inputs
from sparse_ga.alignment.resection import resect_views
from sparse_ga.products import Alignment, Array

_LOOSE_DEG = 0.5  # standard deviation of a rotation, beyond what all views share
_MOST_TRIED = 8  # views in a run: every trial is two solutions
_LESS = 0.99  # of the cost of the matches, for a new place to be taken

Solve = Callable[[Alignment], Alignment]


def reposition_loose_views(
    alignment: Alignment, inputs: Inputs, solve: Solve, tried: set[int]
) -> tuple[Alignment, bool]:
    """The solved alignment with loosely tied views where they fit the matches better, and whether any has moved.

    Two photographs through a long lens, or of a small or flat part of the object, leave open how far the camera turned
    (the bas-relief ambiguity), and even to which side: a view that starts on the wrong one stays there, in a local
    minimum of the reprojection error. So it is taken out, the others are solved without it, and it is placed by the
    points they know. Where that and another solution leave a smaller `match_cost`, this one stands.

    `solve` minimises over the registered views. The loosest views go first; those in `tried`, to which the ones tried
    here are added, and those with a given pose stay as they are.
    """
    moved = False
    while len(tried) < _MOST_TRIED and alignment.registered.sum() > 2:
        looseness = _looseness_deg(alignment, inputs, tried)
        n = int(looseness.argmax())
        if looseness[n] <= _LOOSE_DEG:
            break
        tried.add(n)
        trial = _placed_anew(alignment, inputs, solve, n)
        if trial is not None and trial.match_cost < _LESS * alignment.match_cost:
            alignment, moved = trial, True
    return alignment, moved


def _looseness_deg(alignment: Alignment, inputs: Inputs, tried: set[int]) -> Array:
    """How uncertain each view's rotation is beyond that of the firmest, (N,) degrees; 0 for views that are to stay.

    What all views share comes from the camera's intrinsics, and no view would be placed better for it.
    """
    free = alignment.registered & np.array([view.world_from_cam is None for view in inputs.views], bool)
    sigma = alignment.uncertainty_deg
    shared = sigma[free].min(initial=np.inf)
    free[list(tried)] = False
    return np.sqrt(np.where(free, sigma**2 - shared**2, 0.0).clip(0.0))


def _placed_anew(alignment: Alignment, inputs: Inputs, solve: Solve, n: int) -> Alignment | None:
    """The solution with view n where the points of the others place it; None where they do not."""
    others = alignment.registered & (np.arange(len(alignment.names)) != n)
    without = solve(replace(alignment, registered=others))
    placed, found = resect_views(without, inputs, refused=~alignment.registered)
    if not found[n]:
        return None
    trial = solve(placed)
    return trial if trial.status.startswith("ok") and trial.registered[n] else None
