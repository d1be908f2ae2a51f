"""Losses against slow references, exact answers and gradcheck."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparse_ga.training.losses import info_nce, local_nce, mean_distance, regression, reliability_loss


def _unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(values, dim=-1)


def _spread(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.stack([torch.arange(count) * 10.0, torch.zeros(count)], -1)[None].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_info_nce_equals_a_loop(dtype: torch.dtype) -> None:
    a, b = _unit(1, 6, 5, dtype=dtype), _unit(1, 6, 5, seed=1, dtype=dtype)
    xy = (_spread(6, dtype), _spread(6, dtype).clone())
    xy[1][0, 1] = xy[1][0, 0] + 1  # too near to candidate 0 to count against it, and the other way round
    valid = torch.tensor([[True, True, True, True, False, True]])
    found = info_nce((a, b), xy, valid, 7.0, 2.5)
    expected = 0.0
    for direction in (0, 1):
        query, key, at = (a, b, xy[1]) if direction == 0 else (b, a, xy[0])
        for i in range(6):
            if not valid[0, i]:
                continue
            terms = []
            for j in range(6):
                near = i != j and float((at[0, i] - at[0, j]).norm()) < 2.5
                if (valid[0, j] and not near) or i == j:
                    terms.append(math.exp(7 * float(query[0, i] @ key[0, j])))
            expected += math.log(sum(terms)) - 7 * float(query[0, i] @ key[0, i])
    assert float(found.loss) == pytest.approx(expected / 10, rel=1e-5)
    assert float(found.each.sum() / 5) == pytest.approx(expected / 10, rel=1e-5)


def test_info_nce_of_equal_descriptors_is_solved_and_of_cycled_ones_is_not() -> None:
    a = _unit(2, 20, 16)
    xy, valid = (_spread(20).expand(2, -1, -1),) * 2, torch.ones(2, 20, dtype=torch.bool)
    right, wrong = info_nce((a, a), xy, valid, 60.0, 2.5), info_nce((a, a.roll(1, 1)), xy, valid, 60.0, 2.5)
    assert float(right.accuracy) == 1
    assert float(right.loss) < 0.05
    assert float(wrong.accuracy) == 0
    assert float(wrong.loss) > 10


def test_info_nce_without_valid_correspondences_is_zero_and_differentiable() -> None:
    a = _unit(1, 4, 3).requires_grad_()
    found = info_nce((a, a), (_spread(4), _spread(4)), torch.zeros(1, 4, dtype=torch.bool), 10.0, 2.5)
    found.loss.backward()
    assert float(found.loss) == 0
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def test_losses_pass_gradcheck() -> None:
    a, b = (_unit(1, 5, 4, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1))
    xy, valid = (_spread(5, torch.float64),) * 2, torch.tensor([[True, True, False, True, True]])
    assert torch.autograd.gradcheck(lambda p, q: info_nce((p, q), xy, valid, 5.0, 2.5).loss, (a, b))
    points = torch.randn(1, 2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    confidence = (1 + torch.rand(1, 2, 6, dtype=torch.float64)).requires_grad_()
    truth, on = torch.randn(1, 2, 6, 3, dtype=torch.float64), torch.ones(1, 2, 6, dtype=torch.bool)
    on[0, 1, 3] = False
    assert torch.autograd.gradcheck(lambda p, c: regression(p, c, truth, on).loss, (points, confidence))


def test_regression_does_not_see_scale_nor_invalid_points() -> None:
    truth = torch.randn(3, 2, 50, 3, generator=torch.Generator().manual_seed(3)) + torch.tensor([0.0, 0, 4])
    on = torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(4)) < 0.7
    points = torch.where(on[..., None], truth * 7.5, 1e6)
    exact = regression(points, torch.ones(3, 2, 50), truth, on)
    assert float(exact.error) < 1e-5
    assert float(exact.loss) < 1e-5
    sure = regression(points, torch.full((3, 2, 50), math.e), truth, on, alpha=0.2)
    assert float(sure.loss) == pytest.approx(-0.2, abs=1e-4)


def test_regression_error_is_the_normalised_distance() -> None:
    truth = torch.tensor([[[[0.0, 0, 2], [0, 0, 4]], [[0, 0, 2], [0, 0, 4]]]])  # mean distance 3
    points = truth.clone()
    points[0, 0, 0] = torch.tensor([0.0, 2, 0])  # same length, turned by a right angle
    found = regression(points, torch.ones(1, 2, 2), truth, torch.ones(1, 2, 2, dtype=torch.bool))
    assert float(found.error) == pytest.approx(math.sqrt(8) / 3 / 4, rel=1e-5)


def test_regression_of_nothing_is_zero() -> None:
    points = torch.randn(1, 2, 4, 3, requires_grad=True)
    found = regression(points, torch.ones(1, 2, 4), torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4, dtype=torch.bool))
    found.loss.backward()
    assert float(found.loss) == 0
    assert torch.isfinite(points.grad).all()  # type: ignore[arg-type]


def test_mean_distance() -> None:
    points = torch.tensor([[[3.0, 4, 0], [0, 0, 1]], [[1.0, 1, 1], [2, 2, 2]]])
    valid = torch.tensor([[True, False], [False, False]])
    assert mean_distance(points, valid).tolist() == [5.0, 1.0]


def test_reliability_loss_rewards_the_truth() -> None:
    correct, valid = torch.tensor([[True, False, True]]), torch.tensor([[True, True, False]])
    good = reliability_loss(torch.tensor([[4.0, -4.0, -50.0]]), correct, valid)
    bad = reliability_loss(torch.tensor([[-4.0, 4.0, 50.0]]), correct, valid)
    assert float(good) == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-4)
    assert float(bad) > 4


def test_local_nce_is_least_at_the_right_place_and_counts_valid_pixels_only() -> None:
    described, around = _unit(1, 4, 8), _unit(1, 4, 9, 8, seed=1)
    around[:, :, 5] = described
    target = torch.zeros(1, 4, 9)
    target[..., 5] = 1
    valid = torch.tensor([[True, True, True, False]])
    assert float(local_nce(described, around, target, valid, 200.0)) < 1e-3
    assert float(local_nce(described, around, target.roll(1, -1), valid, 200.0)) > 10
    garbled = around.clone()
    garbled[0, 3] = torch.roll(garbled[0, 3], 1, 0)
    assert float(local_nce(described, garbled, target, valid, 9.0)) == pytest.approx(
        float(local_nce(described, around, target, valid, 9.0))
    )
    assert float(local_nce(described, around, target, torch.zeros_like(valid), 9.0)) == 0


def test_local_nce_passes_gradcheck() -> None:
    described, around = _unit(1, 3, 4, dtype=torch.float64), _unit(1, 3, 5, 4, seed=1, dtype=torch.float64)
    target = torch.softmax(torch.randn(1, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5)), -1)
    valid = torch.tensor([[True, False, True]])
    inputs = described.requires_grad_(), around.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, a: local_nce(d, a, target, valid, 5.0), inputs)
