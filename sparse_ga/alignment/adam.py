"""The first-order schedule of MASt3R-SfM (arXiv 2409.19152, sections 4.1, 4.2 and 5), for comparison with LM.

300 steps on 3D distances of matched points over one similarity per view, then 300 steps on reprojections over poses,
focal lengths and anchor depths; losses x^1.5 and x^0.5, Adam with a cosine schedule, poses relative to their parent in
a view tree. Every step is vectorised over all matches of all pairs. Given poses that are a prior, which the paper does
not have, pull as they do at the other solver's cost: their squares weigh against a match whose error is its standard
deviation as they do there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import roma
import torch
from torch import Tensor

from sparse_ga.alignment.known_poses import in_different_places
from sparse_ga.alignment.levenberg import Solution
from sparse_ga.alignment.problem import Problem, State, centres
from sparse_ga.alignment.viewgraph import spanning_tree, tree_order
from sparse_ga.geometry.transforms import inverse

STEPS = 300
_RATES = (0.07, 0.014)
_POWERS = (1.5, 0.5)
_SIGMA_PX = 1.0  # of a match
_SMOOTH = 1e-3  # keeps the gradient of x^0.5 finite: relative to the scene in 3D, px in 2D


@dataclass(frozen=True)
class _Chain:
    """A view tree by levels: views whose parents are all on the level before. Held views are nobody's children.

    `metric` says whether given poses fix the unit: two in different places do.
    """

    order: tuple[tuple[Tensor, Tensor], ...]  # (children, parents) of each level
    held: Tensor  # (n,) bool
    metric: bool


@dataclass(frozen=True)
class _PosePrior:
    """Given poses of k views that are not held, cam from world, in the scene's unit."""

    view: Tensor  # (k,)
    rotation: Tensor  # (k, 3, 3)
    translation: Tensor  # (k, 3)
    depth: Tensor  # (k,) of the object in the view
    inverse_variance: Tensor  # (k,)

    def cost(self, rotation: Tensor, translation: Tensor) -> Tensor:
        """Squared errors of all poses (n, ...) over their variances, as `pose_prior_error` has them."""
        turn = rotation[self.view] @ self.rotation.transpose(-1, -2)
        centre = torch.nn.functional.pad(self.depth[:, None], (2, 0))  # (k, 3)
        start = (turn @ (self.translation - centre)[..., None])[..., 0] + centre
        shift = (translation[self.view] - start) / self.depth[:, None]
        squares = (roma.rotmat_to_rotvec(turn) ** 2).sum(-1) + (shift**2).sum(-1)
        return (self.inverse_variance * squares).sum()


@dataclass
class _Variables:
    """What Adam moves: poses relative to the parent (to the world without one), scales, focal lengths, depths."""

    quaternion: Tensor  # (n, 4), w first
    translation: Tensor  # (n, 3)
    log_scale: Tensor  # (n,)
    log_focal: Tensor  # (G,)
    log_depth: Tensor  # (A,)


@dataclass(frozen=True)
class _Matches:
    """All observations as tensors; `partner` is the same match seen the other way round."""

    host: Tensor  # (M,)
    target: Tensor  # (M,)
    anchor: Tensor  # (M,)
    log_ratio: Tensor  # (M,)
    xy_host: Tensor  # (M, 2)
    xy_target: Tensor  # (M, 2)
    weight: Tensor  # (M,)
    partner: Tensor  # (M,)


_MatchLoss = Callable[[Problem, _Variables, _Chain, _Matches, float], Tensor]


def adam_schedule(problem: Problem, start: State, steps: int = STEPS) -> Solution:
    """Both phases from `start`, `steps` each; poses, focal lengths and principal points that are held stay put, and
    given poses that are a prior pull.

    Rates are for a scene at unit distance, so that is what it is scaled to meanwhile: given poses have a unit of their
    own.
    """
    matches, chain = _tensors(problem), _make_chain(problem)
    log_unit = float(np.median(start.log_depth))
    scaled = _rescaled(start, -log_unit)
    variables, prior = _initial(scaled, chain), _pose_prior(problem, scaled, log_unit)
    history: list[float] = []
    for phase, (rate, power) in enumerate(zip(_RATES, _POWERS)):
        moved = [variables.quaternion, variables.translation]
        moved += [variables.log_scale] if phase == 0 else [variables.log_depth, variables.log_focal]
        if phase == 1:
            scale = variables.log_scale.detach()[torch.from_numpy(problem.anchor_view)]
            variables.log_depth = torch.from_numpy(problem.canonical_log_depth) + scale
            moved[2] = variables.log_depth
        match_loss = _loss_3d if phase == 0 else _loss_2d
        pull = power * _match_sigma(problem, phase) ** power / (2 * float(matches.weight.sum()))

        def loss(match_loss: _MatchLoss = match_loss, power: float = power, pull: float = pull) -> Tensor:
            value = match_loss(problem, variables, chain, matches, power)
            return value + pull * prior.cost(*_poses(variables, chain)) if len(prior.view) else value

        _descend(moved, loss, rate, steps, history)
    rotation, translation = _poses(variables, chain)
    state = State(
        rotation.detach().numpy(),
        translation.detach().numpy(),
        _free_focal(problem, variables).detach().numpy(),
        start.principal_shift_px,
        variables.log_scale.detach().numpy(),
        variables.log_depth.detach().numpy(),
    )
    return Solution(_rescaled(state, log_unit), "converged", np.array(history))


def _match_sigma(problem: Problem, phase: int) -> float:
    """Standard deviation of a match: of its distance in 3D in a scene of unit size, or of its reprojection in px."""
    weight = problem.depth_weight[problem.depth_weight > 0]
    return _SIGMA_PX if phase or not len(weight) else float(np.median(weight) ** -0.5)


def _pose_prior(problem: Problem, scaled: State, log_unit: float) -> _PosePrior:
    """The given poses that are not held, in the unit of the state that is `scaled` by it."""
    view = np.flatnonzero(np.isfinite(problem.pose_sigma) & (problem.pose_sigma > 0))
    pose = problem.pose_prior[view]
    arrays = (
        view,
        pose[:, :3, :3],
        pose[:, :3, 3] * np.exp(-log_unit),
        centres(problem, scaled)[view, 2],
        problem.pose_sigma[view] ** -2.0,
    )
    return _PosePrior(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def _rescaled(state: State, log_factor: float) -> State:
    """The same state in a world exp(log_factor) times as large."""
    return replace(
        state,
        translation=state.translation * np.exp(log_factor),
        log_scale=state.log_scale + log_factor,
        log_depth=state.log_depth + log_factor,
    )


def _descend(moved: list[Tensor], loss: Callable[[], Tensor], rate: float, steps: int, history: list[float]) -> None:
    """Adam on the tensors `moved`, in place; appends every loss to `history`."""
    for tensor in moved:
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(moved, lr=rate, betas=(0.9, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        schedule.step()
        history.append(float(value.detach()))
    for tensor in moved:
        tensor.requires_grad_(False)


def _tensors(problem: Problem) -> _Matches:
    obs = problem.observations
    length = np.diff(obs.link_start)
    order = np.argsort(obs.match, kind="stable")  # both directions of a match become neighbours
    partner = np.empty(len(obs), np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    arrays = (
        np.repeat(obs.link_host, length),
        np.repeat(obs.link_target, length),
        obs.anchor,
        obs.log_ratio,
        obs.xy_host,
        obs.xy_target,
        obs.weight,
        partner,
    )
    return _Matches(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def _make_chain(problem: Problem) -> _Chain:
    """A tree over the pairs with the most matches, from the view with the most matches; cut above held views."""
    obs = problem.observations
    pairs = np.stack([obs.link_host, obs.link_target], 1)
    length = np.diff(obs.link_start).astype(float)
    strength = np.bincount(obs.link_host, length, minlength=problem.view_count)
    root = int(np.argmax(strength))
    tree = spanning_tree(problem.view_count, pairs, length / max(length.max(initial=1.0), 1.0))
    held = problem.pose_sigma == 0
    level = {root: 0}
    levels: list[list[tuple[int, int]]] = []
    for parent, child, _ in tree_order(problem.view_count, pairs, tree, root):
        if held[child]:
            level[child] = 0
            continue
        level[child] = level[parent] + 1
        if len(levels) < level[child]:
            levels.append([])
        levels[level[child] - 1].append((child, parent))
    order = tuple((torch.tensor([c for c, _ in part]), torch.tensor([p for _, p in part])) for part in levels)
    given = np.isfinite(problem.pose_sigma)
    return _Chain(order, torch.from_numpy(held), in_different_places(inverse(problem.pose_prior[given])))


def _initial(start: State, chain: _Chain) -> _Variables:
    rotation, translation = torch.from_numpy(start.rotation), torch.from_numpy(start.translation)
    relative, offset = rotation.clone(), translation.clone()
    for child, parent in chain.order:
        relative[child] = rotation[child] @ rotation[parent].transpose(-1, -2)
        offset[child] = translation[child] - (relative[child] @ translation[parent][..., None])[..., 0]
    return _Variables(
        _quaternion(relative),
        offset.clone(),
        torch.from_numpy(start.log_scale.copy()),
        torch.from_numpy(start.log_focal.copy()),
        torch.from_numpy(start.log_depth.copy()),
    )


def _quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions (n, 4), w first, of rotations (n, 3, 3)."""
    return torch.roll(roma.rotmat_to_unitquat(rotation), 1, -1)


def _rotation(quaternion: Tensor) -> Tensor:
    """Rotations (n, 3, 3) of quaternions (n, 4) of any length, w first."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def _poses(variables: _Variables, chain: _Chain) -> tuple[Tensor, Tensor]:
    """Rotations (n, 3, 3) and translations (n, 3) cam from world, composed along the tree.

    Nothing pulls at the pose of a held view; its children move relative to it.
    """
    held = chain.held[:, None]
    rotation = _rotation(torch.where(held, variables.quaternion.detach(), variables.quaternion))
    translation = torch.where(held, variables.translation.detach(), variables.translation)
    world_r, world_t = rotation, translation
    for child, parent in chain.order:
        composed = rotation[child] @ world_r[parent]
        moved = (rotation[child] @ world_t[parent][..., None])[..., 0] + translation[child]
        world_r = world_r.index_copy(0, child, composed)
        world_t = world_t.index_copy(0, child, moved)
    return world_r, world_t


def _free_focal(problem: Problem, variables: _Variables) -> Tensor:
    return variables.log_focal * torch.from_numpy((problem.focal_sigma > 0).astype(float))


def _points(problem: Problem, variables: _Variables, matches: _Matches, log_depth: Tensor) -> tuple[Tensor, Tensor]:
    """Points (M, 3) in the hosts' frames, and every view's focal lengths (n, 2)."""
    intrinsics = torch.from_numpy(problem.intrinsics)
    factor = torch.exp(_free_focal(problem, variables))[torch.from_numpy(problem.group)]
    focal = intrinsics[:, [0, 1], [0, 1]] * factor[:, None]
    normal = (matches.xy_host - intrinsics[matches.host, :2, 2]) / focal[matches.host]
    ray = torch.cat([normal, torch.ones_like(normal[:, :1])], -1)
    return ray * torch.exp(log_depth[matches.anchor] + matches.log_ratio)[:, None], focal


def _power(distance2: Tensor, smooth: float, power: float) -> Tensor:
    return (distance2 + smooth**2) ** (power / 2)


def _loss_3d(problem: Problem, variables: _Variables, chain: _Chain, matches: _Matches, power: float) -> Tensor:
    """Weighted mean of the matched points' distances in the world, over the scenes' unit, to a power."""
    scale = variables.log_scale if chain.metric else variables.log_scale - variables.log_scale.mean()
    log_depth = torch.from_numpy(problem.canonical_log_depth) + scale[torch.from_numpy(problem.anchor_view)]
    points, _ = _points(problem, variables, matches, log_depth)
    rotation, translation = _poses(variables, chain)
    world = ((points - translation[matches.host])[:, None] @ rotation[matches.host])[:, 0]
    distance2 = ((world - world[matches.partner]) ** 2).sum(-1)
    if chain.metric and not chain.held.any():  # the unit can move, and a smaller world has shorter distances
        distance2 = distance2 * torch.exp(-2 * log_depth.mean())
    return (matches.weight * _power(distance2, _SMOOTH, power)).sum() / matches.weight.sum()


def _loss_2d(problem: Problem, variables: _Variables, chain: _Chain, matches: _Matches, power: float) -> Tensor:
    """Weighted mean of the reprojection errors, px, to a power."""
    points, focal = _points(problem, variables, matches, variables.log_depth)
    rotation, translation = _poses(variables, chain)
    relative = rotation[matches.target] @ rotation[matches.host].transpose(-1, -2)
    there = ((points - translation[matches.host])[:, None] @ relative.transpose(-1, -2))[:, 0]
    there = there + translation[matches.target]
    depth = there[:, 2:].clamp(min=1e-3)
    centre = torch.from_numpy(problem.intrinsics)[matches.target, :2, 2]
    residual = focal[matches.target] * there[:, :2] / depth + centre - matches.xy_target
    return (matches.weight * _power((residual**2).sum(-1), _SMOOTH, power)).sum() / matches.weight.sum()
