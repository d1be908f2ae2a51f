"""Stage refine2d: cameras, focal lengths and anchor depths from the reprojection of all matches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sparse_ga.alignment.adam import adam_schedule
from sparse_ga.alignment.components import GIVEN, JOINT, TRIPLETS
from sparse_ga.alignment.evidence import PairEvidence, gather_evidence
from sparse_ga.alignment.gauge import fix_gauge, status_of, suspect_poses
from sparse_ga.alignment.inputs import Inputs
from sparse_ga.alignment.intrinsics import camera_groups
from sparse_ga.alignment.levenberg import Solution, minimise, rotation_sigma_deg
from sparse_ga.alignment.loose import reposition_loose_views
from sparse_ga.alignment.normal_equations import Loss, free_columns, linearise
from sparse_ga.alignment.principal_point import free_principal_point
from sparse_ga.alignment.problem import Observations, Problem, State, build_observations
from sparse_ga.alignment.resection import resect_views
from sparse_ga.alignment.residuals import current_intrinsics, residual_lengths
from sparse_ga.alignment.robust import robust_scale
from sparse_ga.alignment.viewgraph import TieEvidence, confirmed_members
from sparse_ga.config import Refine2dConfig
from sparse_ga.geometry.bundle import MISSING_COST
from sparse_ga.geometry.transforms import inverse, nearest_rotation
from sparse_ga.products import Alignment, Array, CanonicalView, VerifiedMatches, View
from sparse_ga.work import advance, expect

_MAX_TOTAL_MATCHES = 1_500_000
_DEPTH_SIGMA = 0.1  # log depth: how far a canonical depth may be off after its view's scale
_CANONICAL_SIGMA = 0.03  # the same where parallax is missing, unless the other anchors show more
_WELL_KNOWN = 0.01  # log depth, by the matches alone
_STAGES_PX = (16.0, 4.0)  # scales of the loss before the final one, where residuals are that large
_RAYLEIGH = 1.1774  # median length of a 2D normal residual of unit standard deviation per coordinate
_KNOWN_BY = 20  # residuals
_ROUNDS = 8  # of solving, judging pairs and placing views
_ADMIT, _DISMISS = 0.6, 0.2  # shares of agreeing matches that bring a pair back, and that drop one


def refine_views(
    views: Sequence[View],
    canonical: Sequence[CanonicalView],
    alignment: Alignment,
    pairs: Sequence[tuple[int, int]],
    load_matches: Callable[[int], VerifiedMatches],
    config: Refine2dConfig,
) -> Alignment:
    """Refined cameras and anchor depths of the registered views of `alignment`.

    Minimises the robust reprojection error, working px, of all matches of the pairs that `alignment` did not drop.
    Then every pair is judged by the result: pairs whose matches it contradicts go, dropped pairs that it explains come
    back, unregistered views that it places beyond doubt are added, loosely tied ones are moved to where they fit
    better, and it is solved again. Views left without any agreeing pair are not registered. Gauge as `Alignment`
    states; `residual_history` is the robust cost of every iteration but those of trials, `status` starts with ok unless
    nothing could be refined.
    """
    inputs = Inputs(views, canonical, pairs, load_matches, config, alignment.intrinsics)
    excluded, against = _dropped(alignment, pairs), _contradicting(alignment, pairs)
    refused, tried = np.zeros(len(views), bool), set[int]()
    current, history = alignment, [np.zeros(0)]
    expect(_ROUNDS)
    for remaining in reversed(range(_ROUNDS)):
        solved = _solve_once(inputs, current, excluded)
        advance()
        history.append(solved.residual_history)
        current = solved
        if config.solver == "adam" or not current.status.startswith("ok"):
            break
        evidence = gather_evidence(current, canonical, pairs, load_matches, config.loss_px)
        judged = _judged(evidence, excluded)
        against = judged & (against | ~excluded)
        current = _confirmed(inputs, current, evidence, _Verdicts(excluded, judged, against))
        refused |= solved.registered & ~current.registered
        same = (judged == excluded).all() and not (solved.registered & ~current.registered).any()
        if not remaining:
            break
        current, placed = resect_views(current, inputs, refused)
        if same and not placed.any():
            solve = partial(_solve_once, inputs, excluded=judged)
            current, moved = reposition_loose_views(current, inputs, judged, solve, tried)
            if not moved:
                break
        placed_again = np.array([placed[list(pair)].any() for pair in pairs], bool)
        excluded = judged & ~(placed_again & ~_rejected(load_matches, judged & placed_again))
    if not current.registered.any() and alignment.registered.any():
        current = replace(current, status="failed: the matches contradict every camera")
    held = _held_focal(views, config)
    return replace(fix_gauge(current, views), residual_history=np.concatenate(history), held_focal=held)


def _dropped(alignment: Alignment, pairs: Sequence[tuple[int, int]]) -> Array:
    """Which pairs (P,) bool the alignment left out."""
    names, left_out = alignment.names, alignment.dropped_names
    return np.array([i == j or (names[i], names[j]) in left_out for i, j in pairs], bool)


def _contradicting(alignment: Alignment, pairs: Sequence[tuple[int, int]]) -> Array:
    """Which pairs (P,) bool the alignment left out although their own geometry is sound."""
    parts = [text.split(" | ", 2) for text in alignment.dropped_pairs if text.endswith((TRIPLETS, JOINT, GIVEN))]
    found = {(part[0], part[1]) for part in parts}
    return np.array([(alignment.names[i], alignment.names[j]) in found for i, j in pairs], bool)


def _rejected(load_matches: Callable[[int], VerifiedMatches], asked: Array) -> Array:
    """Which of the pairs `asked` (P,) bool the matching rejected: no evidence ever judges what those still hold."""
    return np.array([ask and load_matches(p).rejected is not None for p, ask in enumerate(asked.tolist())], bool)


def _judged(evidence: PairEvidence, excluded: Array) -> Array:
    """Pairs (P,) bool left out from now on, of which `excluded` (P,) bool were before."""
    tested = evidence.share >= 0
    return np.where(excluded, ~(tested & (evidence.share > _ADMIT)), tested & (evidence.share < _DISMISS))


@dataclass(frozen=True, eq=False)
class _Verdicts:
    """What is thought of the pairs."""

    before: Array  # (P,) bool, left out so far
    now: Array  # (P,) bool, left out from now on
    against: Array  # (P,) bool, of the latter those whose own geometry is sound: they contradict the others


def _confirmed(inputs: Inputs, alignment: Alignment, evidence: PairEvidence, verdicts: _Verdicts) -> Alignment:
    """The alignment without views that no agreeing pair ties to the rest."""
    tested, judged, against = evidence.share >= 0, verdicts.now, verdicts.against
    names, pairs = alignment.names, inputs.pairs
    settled = (judged != verdicts.before) | (tested & ~judged)  # what was said of these pairs before holds no longer
    outdated = [f"{names[i]} | {names[j]} | " for (i, j), gone in zip(pairs, settled) if gone]
    kept = [text for text in alignment.dropped_pairs if not text.startswith(tuple(outdated))]
    new = [
        f"{names[i]} | {names[j]} | {share:.0%} of its matches agree with the refined cameras"
        for (i, j), now, before, share in zip(pairs, judged, verdicts.before, evidence.share)
        if now and not before
    ]
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    contested = np.zeros(len(names), bool)
    contested[ends[tested & against]] = True
    agree = tested & ~judged & (evidence.confirms() | ~contested[ends].any(-1))
    ties = TieEvidence(ends, evidence.score, agree, tested & against, np.zeros(len(pairs), bool))
    posed = np.array([view.world_from_cam is not None for view in inputs.views], bool) & alignment.metric_frame
    registered = confirmed_members(alignment.registered, ties, posed)
    reasons = tuple(
        "its matches contradict the refined cameras" if was and not now else reason
        for was, now, reason in zip(alignment.registered, registered, alignment.reasons)
    )
    inside = tested & registered[ends].all(-1)
    contradicted = evidence.score[inside & against].sum() / max(evidence.score[inside].sum(), 1e-12)
    held = posed & registered & inputs.config.hold_given_poses
    suspects = suspect_poses(ends[inside], evidence.score[inside], against[inside], held)
    verdict = status_of(float(contradicted), [names[n] for n in np.flatnonzero(suspects)])
    status = "; ".join([verdict, *alignment.status.split("; ")[1:]])
    return replace(alignment, registered=registered, reasons=reasons, dropped_pairs=(*kept, *new), status=status)


def _solve_once(inputs: Inputs, alignment: Alignment, excluded: Array) -> Alignment:
    """One robust solve over the registered views and the pairs that are not `excluded` (P,) bool."""
    chosen = np.flatnonzero(alignment.registered)
    position = np.full(len(alignment.names), -1)
    position[chosen] = np.arange(len(chosen))
    used = [p for p, (i, j) in enumerate(inputs.pairs) if not excluded[p] and position[i] >= 0 and position[j] >= 0]
    local = [(int(position[inputs.pairs[p][0]]), int(position[inputs.pairs[p][1]])) for p in used]
    limit = max(100, _MAX_TOTAL_MATCHES // max(len(used), 1))
    registered = [inputs.canonical[n] for n in chosen.tolist()]
    observations = build_observations(local, registered, lambda k: inputs.load_matches(used[k]), limit)
    if len(chosen) < 2 or not len(observations):
        status = alignment.status if not len(chosen) else "failed: no matches between registered views"
        return replace(alignment, status=status)
    problem, start = _set_up(inputs, alignment, chosen, observations)
    views = [inputs.views[n] for n in chosen.tolist()]
    sigma_px = _principal_sigma(views, problem.centre_group, inputs.config)
    solution, problem = _solve(problem, start, inputs.config, sigma_px)
    result = _result(alignment, chosen, problem, solution, inputs.config)
    return replace(result, intrinsics=_shared_with_others(inputs.views, alignment, result))


def _shared_with_others(views: Sequence[View], before: Alignment, after: Alignment) -> Array:
    """Intrinsics (N, 3, 3) where unregistered views take part in what happens to their camera.

    A view that is placed later would otherwise have another focal length, or another principal point, than the other
    photographs of its camera.
    """
    intrinsics, group, seen = after.intrinsics.copy(), camera_groups(views).of_view, after.registered
    zoom = after.intrinsics[:, 0, 0] / before.intrinsics[:, 0, 0]
    for g in np.unique(group[seen]):
        others = (group == g) & ~seen
        intrinsics[others, :2, :2] *= float(np.median(zoom[(group == g) & seen]))
    group, shift = camera_groups(views, turned_apart=True).of_view, after.intrinsics - before.intrinsics
    for g in np.unique(group[seen]):
        others = (group == g) & ~seen
        intrinsics[others, :2, 2] += np.median(shift[(group == g) & seen, :2, 2], axis=0)
    return intrinsics


def _set_up(inputs: Inputs, alignment: Alignment, chosen: Array, observations: Observations) -> tuple[Problem, State]:
    """The problem of the views `chosen` (n,), and where to start.

    Priors are about what was given or first estimated, whatever earlier rounds have made of it: else every round would
    let the cameras go as far from it again. Principal points of a camera that an earlier round has freed stay free.
    """
    views, config = [inputs.views[n] for n in chosen.tolist()], inputs.config
    first, now = inputs.intrinsics[chosen], alignment.intrinsics[chosen]
    shift = now[:, :2, 2] - first[:, :2, 2]  # (n, 2)
    groups = camera_groups(inputs.views).among(chosen)
    apart = camera_groups(inputs.views, turned_apart=True).among(chosen)
    canon = [np.log(inputs.canonical[n].anchor_depth.astype(float)) for n in chosen.tolist()]
    start = [alignment.anchor_depth[alignment.anchor_start[n] : alignment.anchor_start[n + 1]] for n in chosen]
    anchor_start = np.concatenate([[0], np.cumsum([len(c) for c in canon])]).astype(np.int64)
    cam_from_world = inverse(alignment.world_from_cam[chosen])
    focal_sigma = _focal_sigma(groups.source, config)
    moved = np.array([shift[groups.of_view == g].any() for g in range(len(groups))], bool)
    free = (focal_sigma > 0) & (moved | (config.principal_point == "free"))  # (G,)
    problem = Problem(
        observations=observations,
        intrinsics=first,
        group=groups.of_view,
        centre_group=apart.of_view,
        anchor_start=anchor_start,
        canonical_log_depth=np.concatenate(canon),
        depth_weight=np.full(anchor_start[-1], _DEPTH_SIGMA**-2.0),
        focal_sigma=focal_sigma,
        principal_sigma_px=np.where(
            apart.median(free[groups.of_view]) > 0, _principal_sigma(views, apart.of_view, config), 0.0
        ),
        pose_prior=_given_poses(views, cam_from_world),
        pose_sigma=_pose_sigma(views, alignment.metric_frame, config),
    )
    scale = [np.median(np.log(s) - c) if len(c) else 0.0 for s, c in zip(start, canon)]
    return problem, State(
        cam_from_world[:, :3, :3],
        cam_from_world[:, :3, 3],
        groups.median(np.log(now[:, 0, 0] / first[:, 0, 0])),
        apart.median(shift),
        np.array(scale),
        np.log(np.concatenate(start)),
    )


def _focal_sigma(sources: Sequence[str], config: Refine2dConfig) -> Array:
    """Standard deviation (G,) of each group's log focal length; 0 where it is held."""
    result = np.full(len(sources), config.focal_percent / 100 if config.optimize_focal else 0.0)
    for g, source in enumerate(sources):
        if source == "exif" and config.optimize_focal:
            result[g] = config.exif_focal_percent / 100
        if source == "given" and config.hold_given_intrinsics:
            result[g] = 0.0
    return result


def _held_focal(views: Sequence[View], config: Refine2dConfig) -> Array:
    """Views (N,) bool whose focal length stays as it is."""
    groups = camera_groups(views)
    return (_focal_sigma(groups.source, config) == 0)[groups.of_view]


def _principal_sigma(views: Sequence[View], group: Array, config: Refine2dConfig) -> Array:
    """Standard deviation (C,) px of the principal point of each of the groups (n,), where it is not held."""
    side = np.array([max(view.width, view.height) for view in views], float)
    return np.array([side[group == g].max() for g in range(group.max() + 1)]) * config.principal_point_percent / 100


def _given_poses(views: Sequence[View], otherwise: Array) -> Array:
    """Poses (n, 4, 4) cam from world as the user gave them; `otherwise` (n, 4, 4) where none is given."""
    result = otherwise.copy()
    for n, view in enumerate(views):
        if view.world_from_cam is not None:
            result[n] = inverse(view.world_from_cam)
    return result


def _pose_sigma(views: Sequence[View], metric_frame: bool, config: Refine2dConfig) -> Array:
    """Standard deviation (n,) rad of each view's given pose; 0 where it is held, inf where there is none.

    A single given pose, or several in one place, is a matter of gauge and leaves the solver free.
    """
    sigma = 0.0 if config.hold_given_poses else np.radians(config.pose_prior_deg)
    given = np.array([view.world_from_cam is not None for view in views], bool)
    return np.where(given & metric_frame, sigma, np.inf)


def _solve(problem: Problem, start: State, config: Refine2dConfig, sigma_px: Array) -> tuple[Solution, Problem]:
    """Robust loss from coarse to fine; then principal points, under a prior of `sigma_px` (C,), if matches insist."""
    if config.solver == "adam":
        return adam_schedule(problem, start), problem
    state, history = start, [np.zeros(0)]
    for scale in _STAGES_PX:
        if scale > 1.5 * config.loss_px and np.median(residual_lengths(problem, state)) > 0.5 * scale:
            coarse = minimise(problem, state, Loss(scale * config.loss_px), 8, 3e-2)
            state = coarse.state
            history.append(coarse.history)
    final = minimise(problem, state, Loss(config.loss_px), 8, 1e-3)
    history.append(final.history)
    problem = replace(problem, observations=weighted_by_pair(problem, final.state, config.loss_px))
    measured = adapted_loss(problem, final.state, config.loss_px)
    problem = replace(problem, depth_weight=adapted_depth_weight(problem, final.state, measured))
    loss = solving(measured, config.loss_px)
    final = minimise(problem, final.state, loss, config.max_iterations)
    history.append(final.history)
    if config.principal_point == "auto":
        freed, moved = free_principal_point(problem, final.state, (loss, measured), sigma_px)
        if freed is not None:
            final, problem = freed, moved
            history.append(freed.history)
    return Solution(final.state, final.status, np.concatenate(history)), problem


def weighted_by_pair(problem: Problem, state: State, loss_px: float) -> Observations:
    """The observations, those of pairs whose matches scatter more than most with less weight, of pairs whose matches
    scatter less with more: (sigma / sigma_pair)^2.

    Matches of one predictor may come from sub-pixel keypoints on one pair and from coarse descriptors on another; the
    scatter of a pair's residuals tells (feasible generalised least squares). Few residuals tell little: the logarithm
    of a pair's variance is averaged with that of `_KNOWN_BY` residuals of all pairs. Weights change 30 times at most.
    """
    observations, lengths = problem.observations, residual_lengths(problem, state)
    pair = np.repeat(observations.link_pair, np.diff(observations.link_start))  # (M,)
    floor = 0.02 * loss_px
    middle = max(float(np.median(lengths)), floor)
    order = np.lexsort((lengths, pair))
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    spread = np.maximum(lengths[order][starts + counts // 2], floor)  # (P,) upper medians
    factor = np.clip((middle / spread) ** (2 * counts / (counts + _KNOWN_BY)), 1 / 30, 30.0)
    rows = np.repeat(factor, counts)
    weight = observations.weight.copy()
    weight[order] *= rows
    return replace(observations, weight=weight)


def adapted_loss(problem: Problem, state: State, loss_px: float) -> Loss:
    """The loss at 2.5 standard deviations of the residuals, between a fifth of `loss_px` and four times as much.

    Sub-pixel keypoints scatter by a tenth of a pixel, and at the scale of a pixel their outliers would weigh like
    inliers; coarse descriptors scatter by several, and most of them would count as outliers. Its `sigma_px` is what
    the residuals show: right for uncertainties. In a solve priors shall not fade where the residuals are small, which
    depths that give way make them; see `solving`.
    """
    sigma = float(np.median(residual_lengths(problem, state))) / _RAYLEIGH
    scale = float(np.clip(2.5 * sigma, 0.2 * loss_px, 4.0 * loss_px))
    return Loss(scale, max(sigma, 0.02 * loss_px))


def adapted_depth_weight(problem: Problem, state: State, measured: Loss) -> Array:
    """Inverse variance (A,) of every anchor's canonical depth: what the well determined anchors show, for the others.

    Where the matches tell depths to a percent, canonical depths hardly matter and are given little weight, for their
    errors are shared by neighbours. Where there is no parallax, depths under that little weight would give way to the
    matches' noise, a thousand times over, and pull the cameras apart.
    """
    equations = linearise(problem, state, measured)
    told = np.concatenate([np.zeros(0), *(back.hessian + back.scale_coupling for back in equations.back)])
    sigma = 1.0 / np.sqrt(np.maximum(told, 1e-12))  # (A,) by the matches alone
    error = state.log_depth - state.log_scale[problem.anchor_view] - problem.canonical_log_depth
    well = sigma < _WELL_KNOWN
    canonical = robust_scale(error[well]) if well.sum() >= 50 else _CANONICAL_SIGMA
    canonical = float(np.clip(canonical, _WELL_KNOWN, _DEPTH_SIGMA))
    return np.where(sigma > canonical, canonical, _DEPTH_SIGMA) ** -2.0


def solving(loss: Loss, loss_px: float) -> Loss:
    """The loss to solve with: a standard deviation of at least `loss_px`."""
    return replace(loss, sigma_px=max(loss.sigma_px, loss_px))


def _uncertainty_deg(problem: Problem, state: State, loss_px: float) -> Array:
    """One standard deviation (n,) of every view's rotation, degrees.

    Every match is two observations with one error: the variance is twice that of as many independent ones. And depths
    absorb the part of a residual that lies along the epipolar line, so that its length is that of a normal variable of
    less than two dimensions (median by Wilson and Hilferty's approximation), and understates the error.
    """
    equations = linearise(problem, state, adapted_loss(problem, state, loss_px))
    total = np.concatenate([np.zeros(0), *(back.hessian for back in equations.back)])  # (A,)
    prior = np.concatenate([np.zeros(0), *(-back.scale_coupling for back in equations.back)])  # (A,)
    absorbed = float((1.0 - prior / np.maximum(total, 1e-12)).clip(0.0, 1.0).sum())
    dimensions = float(np.clip(2.0 - absorbed / len(problem.observations), 1.0, 2.0))
    expected = np.sqrt(dimensions) * (1.0 - 2.0 / (9.0 * dimensions)) ** 1.5
    return rotation_sigma_deg(equations, free_columns(problem)) * (np.sqrt(2.0) * _RAYLEIGH / expected)


def _result(
    alignment: Alignment, chosen: Array, problem: Problem, solution: Solution, config: Refine2dConfig
) -> Alignment:
    """The alignment with the solver's cameras, depths and uncertainties."""
    state = solution.state
    poses, intrinsics = alignment.world_from_cam.copy(), alignment.intrinsics.copy()
    cam_from_world = np.tile(np.eye(4), (len(chosen), 1, 1))
    cam_from_world[:, :3, :3] = nearest_rotation(state.rotation)
    cam_from_world[:, :3, 3] = state.translation
    poses[chosen] = inverse(cam_from_world)
    held = problem.pose_sigma == 0
    poses[chosen[held]] = alignment.world_from_cam[chosen[held]]
    intrinsics[chosen] = current_intrinsics(problem, state)
    depth = alignment.anchor_depth.copy()
    for k, n in enumerate(chosen):
        rows = slice(problem.anchor_start[k], problem.anchor_start[k + 1])
        depth[alignment.anchor_start[n] : alignment.anchor_start[n + 1]] = np.exp(state.log_depth[rows])
    uncertainty = np.zeros(len(alignment.names))
    uncertainty[chosen] = _uncertainty_deg(problem, state, config.loss_px)
    words = {"converged": "", "iterations": "; iteration limit reached", "stalled": "; stalled"}
    return replace(
        alignment,
        world_from_cam=poses,
        intrinsics=intrinsics,
        anchor_depth=depth,
        status=alignment.status.split("; ")[0] + words[solution.status],
        residual_history=solution.history,
        uncertainty_deg=uncertainty,
        match_cost=float(np.minimum(np.log1p(residual_lengths(problem, state) ** 2), MISSING_COST).mean()),
    )
