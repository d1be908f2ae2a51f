"""The sparse reduced system: the dense one's values, without the blocks of all hosts at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from alignment_scenes import ring

import sparse_ga.alignment.normal_equations as equations_module
from sparse_ga.alignment.assembly import add_block, empty_system
from sparse_ga.alignment.normal_equations import Loss, NormalEquations, free_columns, linearise, solve_step
from sparse_ga.alignment.problem import Observations, Problem, State
from sparse_ga.geometry.transforms import inverse


def test_blocks_add_up_to_the_dense_sum() -> None:
    rng = np.random.default_rng(0)
    width = np.array([6, 6, 6, 6, 3, 1, 1, 1, 1])
    touched = [np.array(t) for t in ([0, 1, 4, 5], [1, 2, 3, 4, 6], [2, 4, 7], [3, 8])]
    start = np.cumsum(width) - width
    dense, system = np.zeros((width.sum(),) * 2), empty_system(width, touched)
    for parameters in touched:
        index = np.concatenate([start[p] + np.arange(width[p]) for p in parameters])
        block = rng.normal(size=(len(index), len(index)))
        dense[np.ix_(index, index)] += block
        add_block(system, index, width[parameters], block)
    np.testing.assert_array_equal(system.toarray(), dense)
    assert system.has_canonical_format
    assert system.nnz == (dense != 0).sum()  # no place but for what some block holds


def test_a_system_without_hosts_is_empty() -> None:
    assert empty_system(np.array([6, 1, 1]), []).shape == (8, 8)
    assert empty_system(np.zeros(0, int), []).nnz == 0


def band_problem(count: int, reach: int, groups: int = 1) -> tuple[Problem, State]:
    """A ring of views that each match the `reach` views to either side; random pixels, a few anchors."""
    rng = np.random.default_rng(0)
    anchors, matches = 20, 6
    host = np.repeat(np.arange(count), 2 * reach)
    target = (host + np.tile([d for d in range(-reach, reach + 1) if d], count)) % count
    total = matches * len(host)
    anchor = np.sort(rng.integers(0, anchors, (len(host), matches)), 1) + anchors * host[:, None]
    observations = Observations(
        xy_host=rng.uniform(0, 300, (total, 2)),
        xy_target=rng.uniform(0, 300, (total, 2)),
        anchor=anchor.ravel(),
        log_ratio=np.zeros(total),
        weight=np.ones(total),
        match=np.arange(total),
        link_host=host,
        link_target=target,
        link_pair=np.arange(len(host)),
        link_start=np.arange(len(host) + 1) * matches,
        host_start=np.arange(count + 1) * 2 * reach,
    )
    pose = inverse(ring(count))
    intrinsics = np.tile(np.array([[300.0, 0, 150], [0, 300, 150], [0, 0, 1]]), (count, 1, 1))
    problem = Problem(
        observations=observations,
        intrinsics=intrinsics,
        group=np.arange(count) % groups,
        centre_group=np.arange(count) % groups,
        anchor_start=np.arange(count + 1) * anchors,
        canonical_log_depth=np.zeros(count * anchors),
        depth_weight=np.full(count * anchors, 100.0),
        focal_sigma=np.full(groups, 0.15),
        principal_sigma_px=np.full(groups, 3.0 * (groups > 1)),
        pose_prior=pose,
        pose_sigma=np.full(count, np.inf),
    )
    zeros = np.zeros(count)
    depth = np.full(count * anchors, 0.7)
    return problem, State(pose[:, :3, :3], pose[:, :3, 3], np.zeros(groups), np.zeros((groups, 2)), zeros, depth)


def traced(problem: Problem, state: State) -> tuple[NormalEquations, int]:
    """The reduced system, and the most memory, bytes, that it took."""
    tracemalloc.start()
    equations = linearise(problem, state, Loss(1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return equations, peak


@pytest.mark.parametrize("groups", [1, 40])
def test_the_sparse_system_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    problem, state = band_problem(80, 12, groups)
    dense, dense_peak = traced(problem, state)
    monkeypatch.setattr(equations_module, "_DENSE_VIEWS", 0)
    sparse, sparse_peak = traced(problem, state)
    assert sparse_peak < 1.5 * dense_peak  # all hosts' blocks at once take 14 and 22 times as much
    scale = np.abs(dense.hessian).max()
    np.testing.assert_allclose(sparse.hessian.toarray(), dense.hessian, rtol=0, atol=1e-14 * scale)
    np.testing.assert_array_equal(sparse.gradient, dense.gradient)
    step = solve_step(dense, free_columns(problem), 1e-3)
    assert step is not None
    np.testing.assert_allclose(
        solve_step(sparse, free_columns(problem), 1e-3), step, rtol=0, atol=1e-9 * np.abs(step).max()
    )
