"""The batched forward of training against the network's own: values and gradients, every mode, odd masks included."""

from __future__ import annotations

import pytest
import torch

from sparse_ga.network.masking import MaskMode
from sparse_ga.network.model import AsymmetricMASt3R, ImageBatch
from sparse_ga.training.compact_task import architecture, interleave
from sparse_ga.training.dense import forward_pairs


@pytest.fixture(scope="module")
def model() -> AsymmetricMASt3R:
    torch.manual_seed(3)
    return AsymmetricMASt3R(architecture("tiny", 48))


def _pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Three landscape pairs: a round and a small mask, a full one, and one without any foreground."""
    generator = torch.Generator().manual_seed(5)
    images = torch.rand((2, 3, 3, 32, 48), generator=generator) * 2 - 1
    y, x = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    masks = torch.stack([(y - 14) ** 2 + (x - 22 - 3 * k) ** 2 < (11 - k) ** 2 for k in range(6)]).reshape(2, 3, 32, 48)
    masks[0, 1] = (y > 19) & (x < 5)
    masks[1, 1] = True
    masks[0, 2] = False
    return images, masks


@pytest.mark.parametrize("mode", ["tokens", "fill", "context"])
def test_dense_forward_says_what_the_network_says(model: AsymmetricMASt3R, mode: MaskMode) -> None:
    images, masks = _pairs()
    views = [ImageBatch(i, masks=m) for i, m in zip(interleave(images), interleave(masks))]
    expected = model(views[0], views[1], mode, symmetrized=True)
    weights = [torch.rand_like(output.points) for output in expected]
    found = forward_pairs(model, images, masks, mode)
    gradients = []
    for outputs in (expected, found):
        model.zero_grad()
        loss = torch.zeros(())
        for weight, output in zip(weights, outputs):
            assert output.descriptors is not None
            loss = loss + (weight * output.points).sum() + output.confidence.sum() + output.descriptors[..., 0].sum()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for mine, theirs in zip(found, expected):
        for name in ("points", "confidence", "descriptors", "descriptor_confidence"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), atol=2e-5, rtol=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        size = float(gradient.abs().max())
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4 * max(size, 1e-3), rtol=1e-3, msg=name)


def test_dense_forward_never_reads_the_background(model: AsymmetricMASt3R) -> None:
    images, masks = _pairs()
    noisy = torch.where(masks[:, :, None], images, torch.full_like(images, torch.nan))
    for mode in ("tokens", "fill"):
        for one, two in zip(forward_pairs(model, images, masks, mode), forward_pairs(model, noisy, masks, mode)):
            assert torch.equal(one.points, two.points)
            assert torch.equal(one.descriptors, two.descriptors)  # type: ignore[arg-type]


def test_half_precision_is_near_and_has_finite_gradients(model: AsymmetricMASt3R) -> None:
    images, masks = _pairs()
    for mode in ("tokens", "fill", "context"):
        model.zero_grad()
        exact = forward_pairs(model, images, masks, mode)
        rough = forward_pairs(model, images, masks, mode, torch.bfloat16)
        for one, two in zip(exact, rough):
            assert two.points.dtype == torch.float32
            points, descriptors = (p.detach() for p in (one.points - two.points, one.descriptors - two.descriptors))  # type: ignore[operator]
            assert float(points.norm() / one.points.detach().norm()) < 2e-2
            assert float(descriptors.norm() / one.descriptors.detach().norm()) < 5e-2  # type: ignore[union-attr]
        sum(o.points.sum() + o.descriptors.sum() for o in rough).backward()  # type: ignore[union-attr]
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
