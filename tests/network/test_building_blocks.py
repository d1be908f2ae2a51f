"""Attention over packed sequences, rotary positions, activations, packed layers, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from small_networks import random_model, small_mast3r

from sparse_ga.network.architecture import Range
from sparse_ga.network.attention import attend, attend_padded
from sparse_ga.network.dpt import DPT
from sparse_ga.network.grids import Window, whole
from sparse_ga.network.inference import PackedLinear, for_inference, packing_works, resolve_precision
from sparse_ga.network.model import ImageBatch, build_model
from sparse_ga.network.patch_embed import InvalidInput
from sparse_ga.network.positions import Rotation, cosine_embedding, grid_positions
from sparse_ga.network.reference import plain_both_orders, plain_pair
from sparse_ga.network.regression import activate_confidence, activate_descriptors, activate_points

DTYPES = (torch.float32, torch.float64)


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention of one sequence, (L, h, d), as its definition reads."""
    weights = torch.einsum("qhd,khd->hqk", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "lengths", [((5, 5), (7, 7)), ((5, 2, 9), (1, 8, 3)), ((4, 0, 3), (2, 6, 0)), ((0, 0), (3, 3))]
)
def test_packed_attention_is_attention_of_each(
    dtype: torch.dtype, lengths: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    q_lengths, k_lengths = lengths
    q = torch.randn(sum(q_lengths), 2, 8, dtype=dtype)
    k, v = (torch.randn(sum(k_lengths), 2, 8, dtype=dtype) for _ in range(2))
    want = []
    for a, b, c in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True):
        want.append(plain_attention(a, b, c) if len(b) else torch.zeros_like(a))
    for function in (attend, attend_padded):
        torch.testing.assert_close(function(q, k, v, q_lengths, k_lengths), torch.cat(want))


def test_padding_holds_nothing_of_the_neighbours() -> None:
    """NaN in one sequence stays in it, whichever way attention is computed."""
    q, k, v = (torch.randn(9, 2, 8) for _ in range(3))
    v[:4] = float("nan")
    for function in (attend, attend_padded):
        out = function(q, k, v, (4, 5), (4, 5))
        assert out[:4].isnan().all()
        assert not out[4:].isnan().any()


def test_rotation_makes_products_depend_on_offsets_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 3, 16), torch.randn(1, 3, 16)

    def product(at_q: tuple[int, int], at_k: tuple[int, int]) -> torch.Tensor:
        turned = [Rotation.at(torch.tensor([at]), 16, 100.0)(x) for at, x in ((at_q, q), (at_k, k))]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product((3, 5), (1, 9)), product((13, 25), (11, 29)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(product((3, 5), (1, 9)), product((3, 5), (9, 1)), rtol=1e-2)
    assert torch.equal(Rotation.at(torch.zeros(1, 2), 16, 100.0)(q), q)


def test_cosine_embedding_is_that_of_mae() -> None:
    table = cosine_embedding(grid_positions(3, 5), 16)
    assert table.shape == (15, 16)
    y, x = 2, 4
    row = table[y * 5 + x]
    for n in range(4):
        frequency = 10000 ** (-n / 4)
        want = [math.sin(x * frequency), math.cos(x * frequency), math.sin(y * frequency), math.cos(y * frequency)]
        torch.testing.assert_close(row[n::4], torch.tensor(want))


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype: torch.dtype) -> None:
    unbounded = Range("exp", -math.inf, math.inf)
    raw = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [0.0, 300.0, 0.0]], dtype=dtype)
    points = activate_points(raw, unbounded)
    torch.testing.assert_close(points[0], torch.tensor([0.6, 0.0, 0.8], dtype=dtype) * math.expm1(5))
    assert (points[1] == 0).all()
    assert torch.isfinite(points).all()
    assert torch.equal(activate_points(raw, Range("linear", -math.inf, math.inf)), raw)
    torch.testing.assert_close(activate_points(raw, Range("square", -math.inf, math.inf))[0], raw[0] * 5)
    assert activate_points(raw, Range("linear", -1.0, 1.0)).abs().max() == 1
    confidence = activate_confidence(torch.tensor([0.0, -100.0, 1000.0], dtype=dtype), Range("exp", 1.0, math.inf))
    assert confidence[0] == 2
    assert confidence[1] == 1
    assert torch.isfinite(confidence).all()
    assert activate_confidence(torch.tensor([5.0]), Range("exp", 0.0, 4.0)) == 4
    assert activate_confidence(torch.tensor([0.0]), Range("sigmoid", 1.0, 3.0)) == 2
    assert torch.isfinite(activate_descriptors(torch.zeros(2, 5))).all()


def test_sizes_that_do_not_fit_are_refused() -> None:
    model = random_model(small_mast3r("linear"))
    many = random_model(small_mast3r("linear", patch_embed_cls="ManyAR_PatchEmbed"))
    good = ImageBatch(torch.zeros(1, 3, 32, 48))
    for bad in (torch.zeros(1, 3, 32, 40), torch.zeros(1, 1, 32, 48), torch.zeros(3, 32, 48)):
        with pytest.raises(InvalidInput, match="multiples of 16"):
            model(ImageBatch(bad), good)
    turned = ImageBatch(torch.zeros(1, 3, 32, 48), torch.tensor([[48, 32]]))
    with pytest.raises(InvalidInput, match="ManyAR"):
        model(turned, good)
    with pytest.raises(InvalidInput, match="true shape"):
        many(ImageBatch(torch.zeros(1, 3, 32, 48), torch.tensor([[32, 64]])), good)
    with pytest.raises(InvalidInput, match="true shape"):
        many(ImageBatch(torch.zeros(1, 3, 48, 32), torch.tensor([[32, 48]])), good)


@pytest.mark.skipif(not packing_works(), reason="this PyTorch has no packed kernels")
@pytest.mark.parametrize("rows", [0, 1, 37, 768])
def test_packed_linear_layers_agree(rows: int) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96)
    x = torch.randn(rows, 64)
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x), rtol=1e-4, atol=1e-5)
    want = torch.nn.functional.gelu(linear(x))
    torch.testing.assert_close(PackedLinear(linear, gelu=True)(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "dpt", "catmlp+dpt", "catconv"])
def test_inference_copies_say_the_same(head: str) -> None:
    model = random_model(small_mast3r(head))
    copy = for_inference(model, torch.device("cpu"))
    views = ImageBatch(torch.rand(1, 3, 64, 96)), ImageBatch(torch.rand(1, 3, 96, 64))
    for a, b in zip(model(*views), copy(*views), strict=True):
        torch.testing.assert_close(a.points, b.points, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.confidence, b.confidence, rtol=1e-3, atol=1e-4)


def test_precision_of_a_cpu_is_single_unless_asked() -> None:
    assert resolve_precision("auto", torch.device("cpu")) is None
    assert resolve_precision("fp32", torch.device("cpu")) is None
    assert resolve_precision("bf16", torch.device("cpu")) is torch.bfloat16


@pytest.mark.parametrize("mode", ["tokens", "fill", "context"])
@pytest.mark.parametrize("head", ["linear", "dpt", "catmlp+dpt", "catconv"])
def test_gradients_reach_every_weight_and_are_finite(head: str, mode: str) -> None:
    torch.manual_seed(0)
    model = build_model(small_mast3r(head))
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 10:50, 20:70] = masks[1, 30:60, 5:40] = True
    views = ImageBatch(torch.rand(2, 3, 64, 96), masks=masks), ImageBatch(torch.rand(2, 3, 64, 96), masks=masks)
    loss = torch.zeros(())
    for output in model(*views, mode):
        parts = [output.points, output.confidence, output.descriptors, output.descriptor_confidence]
        loss = loss + sum(part.square().mean() for part in parts if part is not None)
    loss.backward()
    unused = ("mask_token", "refinenet4.resConfUnit1")
    for name, parameter in model.named_parameters():
        if not any(part in name for part in unused):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0 or name.endswith(("bias", "projk.weight")), name


@pytest.mark.parametrize("head", ["dpt", "catmlp+dpt"])
def test_fast_path_agrees_with_the_plain_one(head: str) -> None:
    model = random_model(small_mast3r(head, depth=6))
    a, b = torch.rand(2, 3, 80, 112), torch.rand(2, 3, 80, 112)
    both = [*model(ImageBatch(a), ImageBatch(b)), *model(ImageBatch(b), ImageBatch(a))]
    assert torch.equal(plain_pair(model, a, b)[0].points, plain_both_orders(model, a, b)[0].points)
    for fast, plain in zip(both, plain_both_orders(model, a, b), strict=True):
        for name in ("points", "confidence", "descriptors", "descriptor_confidence"):
            if getattr(plain, name) is not None:
                torch.testing.assert_close(getattr(fast, name), getattr(plain, name), rtol=1e-3, atol=1e-4)


def test_a_window_of_the_dpt_head_is_exact() -> None:
    """In float64, so that a cell too few on any level would show."""
    torch.manual_seed(0)
    dpt = DPT((12, 8, 8, 8), 4, 16).double()
    for parameter in dpt.parameters():
        parameter.data = torch.randn_like(parameter) / parameter[0].numel() ** 0.5
    grids = [torch.randn(1, dim, 15, 22, dtype=torch.float64) for dim in (12, 8, 8, 8)]
    with torch.no_grad():
        full = dpt(grids, whole(15, 22))
        assert full.shape == (1, 4, 240, 352)
        for window in (Window(6, 8, 9, 11), Window(0, 3, 0, 2), Window(13, 15, 4, 22), Window(7, 8, 21, 22)):
            got = dpt(grids, window)
            torch.testing.assert_close(got, window.scaled(16).cut(full, whole(240, 352)), rtol=1e-9, atol=1e-9)


def test_bands_of_the_dpt_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the full-size maps are computed a few patch rows at a time."""
    torch.manual_seed(0)
    head = DPT((12, 8, 8, 8), 4, 16).double()
    grids = [torch.randn(2, dim, 9, 7, dtype=torch.float64) for dim in (12, 8, 8, 8)]
    window = Window(1, 9, 2, 7)
    with torch.no_grad():
        at_once = head(grids, window)
        for bytes_of_band in (1, 16 * 16 * 5 * 2 * 8 * 8 * 3):  # one row of patches, and three
            monkeypatch.setattr("sparse_ga.network.dpt._BAND_BYTES", bytes_of_band)
            torch.testing.assert_close(head(grids, window), at_once, rtol=1e-9, atol=1e-9)
