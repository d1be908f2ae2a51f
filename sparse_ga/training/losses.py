"""The published losses: InfoNCE on matching descriptors and confidence-weighted regression of point maps.

InfoNCE: MASt3R (arXiv 2406.09756), eqs. 9-11. Regression: DUSt3R (arXiv 2312.14132), eqs. 2-4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class MatchLoss:
    """InfoNCE of a batch and what it says of the descriptors."""

    loss: Tensor  # () mean over valid correspondences and both directions
    each: Tensor  # (B, N) of every correspondence
    correct: Tensor  # (B, N) bool: nearest neighbours in both directions are the right ones
    accuracy: Tensor  # () share of valid correspondences that are `correct`


def _directed(logits: Tensor, ignore: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B, N) of rows of `logits` (B, N, N) against the diagonal, and hits (B, N)."""
    eye = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    dropped = (ignore | ~valid[:, None, :]) & ~eye
    logits = logits.masked_fill(dropped, -torch.inf)
    diagonal = logits.diagonal(dim1=1, dim2=2)
    return logits.logsumexp(2) - diagonal, logits.argmax(2) == torch.arange(logits.shape[1], device=logits.device)


def _near(xy: Tensor, radius: float) -> Tensor:
    """Which of the points (B, N, 2) are nearer to each other than `radius`, (B, N, N) bool; without a matrix product,
    which a GPU may round."""
    return torch.cdist(xy, xy, compute_mode="donot_use_mm_for_euclid_dist") < radius


def info_nce(
    descriptors: tuple[Tensor, Tensor],
    xy: tuple[Tensor, Tensor],
    valid: Tensor,
    scale: Tensor | float,
    radius_px: float,
) -> MatchLoss:
    """Symmetric InfoNCE of N correspondences in each of B pairs.

    `descriptors` (B, N, D) unit length and pixels `xy` (B, N, 2), of both views; `valid` (B, N) bool; `scale` is the
    inverse temperature. Candidates nearer than `radius_px` to the right one are neither right nor wrong.
    """
    logits = scale * descriptors[0] @ descriptors[1].transpose(1, 2)  # (B, N, N)
    forward, hit_forward = _directed(logits, _near(xy[1], radius_px), valid)
    backward, hit_backward = _directed(logits.transpose(1, 2), _near(xy[0], radius_px), valid)
    count = valid.sum().clamp_min(1)
    each = torch.where(valid, forward + backward, 0.0) / 2  # (B, N)
    correct = hit_forward & hit_backward & valid
    return MatchLoss(each.sum() / count, each, correct, correct.sum() / count)


def local_nce(described: Tensor, around: Tensor, target: Tensor, valid: Tensor, scale: Tensor | float) -> Tensor:
    """Cross-entropy () of where a pixel lies within a window of the other view: what makes matches exact.

    `described` (B, N, D) and the window's descriptors `around` (B, N, K, D), unit length; `target` (B, N, K): the
    weights of the K places, which add up to 1; `valid` (B, N) bool; `scale` is the inverse temperature.
    """
    logits = scale * (around @ described[..., None])[..., 0]  # (B, N, K)
    each = -(target * F.log_softmax(logits, -1)).sum(-1)
    return torch.where(valid, each, 0.0).sum() / valid.sum().clamp_min(1)


def reliability_loss(logits: Tensor, correct: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy () of predicted reliability `logits` (B, N) against what matched correctly (B, N)."""
    loss = F.binary_cross_entropy_with_logits(logits, correct.float(), reduction="none")
    return torch.where(valid, loss, 0.0).sum() / valid.sum().clamp_min(1)


def mean_distance(points: Tensor, valid: Tensor) -> Tensor:
    """Mean distance (B,) of valid points (B, P, 3) to the origin: DUSt3R's normalisation, eq. 3; 1 where none is."""
    count = valid.sum(1)
    distance = torch.where(valid, points.norm(dim=-1), 0.0).sum(1)
    return torch.where(count > 0, distance / count.clamp_min(1), 1.0).clamp_min(1e-6)


@dataclass(frozen=True, eq=False)
class RegressionLoss:
    """Confidence-weighted regression of a batch."""

    loss: Tensor  # ()
    error: Tensor  # () mean normalised distance to the truth, unweighted


def regression(points: Tensor, confidence: Tensor, truth: Tensor, valid: Tensor, alpha: float = 0.2) -> RegressionLoss:
    """DUSt3R's eq. 4 over both views of a pair, in the first camera's frame.

    `points` and `truth` (B, 2, P, 3), `confidence` (B, 2, P) >= 1, `valid` (B, 2, P) bool. Prediction and truth are
    each divided by their own mean distance to the origin over both views.
    """
    both = valid.flatten(1)
    scale = mean_distance(points.flatten(1, 2), both)[:, None, None, None]
    true_scale = mean_distance(truth.flatten(1, 2), both)[:, None, None, None]
    error = (points / scale - truth / true_scale).square().sum(-1).clamp_min(1e-12).sqrt()  # (B, 2, P)
    weighted = confidence * error - alpha * confidence.log()
    count = valid.sum().clamp_min(1)
    return RegressionLoss(
        torch.where(valid, weighted, 0.0).sum() / count, torch.where(valid, error, 0.0).sum().detach() / count
    )
