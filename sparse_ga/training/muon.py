"""Muon for matrices, AdamW for everything else: what a transformer learns in fewer steps than with AdamW alone.

Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the scale of the update
from Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982, section 2.2), by which both share one learning
rate and weight decay. Matrices of one shape are handled together: a small network has hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ADAM_BETAS, _EPSILON, _MOMENTUM = (0.9, 0.95), 1e-8, 0.95


def orthogonalised(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Matrices (N, r, c) with their singular values brought near 1, by the quintic Newton-Schulz iteration."""
    dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(rounds):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `orthogonal` hold matrices (r, c), which Muon steps; the others are stepped by AdamW."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients at hand; parameters without one stay."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if group["orthogonal"]:
                self._step_matrices(parameters, group["lr"])
            else:
                self._step_adam(parameters, group["lr"])

    def _step_matrices(self, parameters: list[Tensor], rate: float) -> None:
        for same in _by_shape(parameters):
            gradients = _gradients(same)
            for p in same:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in same]
            torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov's
            updates = orthogonalised(torch.stack(ahead))
            scale = 0.2 * math.sqrt(max(same[0].shape))
            torch._foreach_add_(same, list(updates), alpha=-rate * scale)

    def _step_adam(self, parameters: list[Tensor], rate: float) -> None:
        low, high = _ADAM_BETAS
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(first=torch.zeros_like(p), second=torch.zeros_like(p), step=torch.zeros(()))
        count = 1 + max(int(self.state[p]["step"]) for p in parameters)  # on the CPU: nothing waits for a GPU
        gradients = _gradients(parameters)
        first, second = ([self.state[p][name] for p in parameters] for name in ("first", "second"))
        torch._foreach_lerp_(first, gradients, 1 - low)
        torch._foreach_mul_(second, high)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - high)
        size = torch._foreach_sqrt(second)
        torch._foreach_div_(size, math.sqrt(1 - high**count))
        torch._foreach_add_(size, _EPSILON)
        torch._foreach_addcdiv_(parameters, first, size, -rate / (1 - low**count))
        for p in parameters:
            self.state[p]["step"].fill_(count)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _by_shape(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    shapes = sorted({tuple(p.shape) for p in parameters})
    for shape in shapes:
        yield [p for p in parameters if tuple(p.shape) == shape]


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers: what Muon is for."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
