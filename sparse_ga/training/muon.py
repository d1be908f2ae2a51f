"""Muon for matrices, AdamW for everything else: what a transformer learns in fewer steps than with AdamW alone.

Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the scale of the update
from Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982, section 2.2), by which both share one learning
rate and weight decay. Matrices of one shape are handled together, for a small network has hundreds; PyTorch has a Muon
from version 2.9 on, which takes them one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95


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


class MuonAdamW(torch.optim.AdamW):
    """Groups with `orthogonal` hold matrices (r, c), which Muon steps; the others are AdamW's."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients at hand; parameters without one stay."""
        groups = self.param_groups
        for group in groups:
            if group.get("orthogonal"):
                self._step_matrices([p for p in group["params"] if p.grad is not None], group)
        self.param_groups = [group for group in groups if not group.get("orthogonal")]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for same in _by_shape(parameters):
            gradients = [p.grad for p in same if p.grad is not None]
            for p in same:
                if not self.state[p]:
                    self.state[p].update(momentum=torch.zeros_like(p), step=torch.zeros(()))  # AdamW looks for a step
            momenta = [self.state[p]["momentum"] for p in same]
            torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov's
            updates = orthogonalised(torch.stack(ahead))
            scale = 0.2 * math.sqrt(max(same[0].shape))
            torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(same, list(updates), alpha=-group["lr"] * scale)


def _by_shape(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    shapes = sorted({tuple(p.shape) for p in parameters})
    for shape in shapes:
        yield [p for p in parameters if tuple(p.shape) == shape]


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers: what Muon is for."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
