"""Masks inside the network: what they must not change, what they must, and what they may cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_networks import random_model, small_mast3r

from sparse_ga.network.architecture import Architecture
from sparse_ga.network.grids import TokenGrid, Window, double, shepard_weights, whole
from sparse_ga.network.masking import paint_background, patch_has_foreground
from sparse_ga.network.model import AsymmetricCroCo3DStereo, ImageBatch, Output, is_symmetrized

HEADS = ("linear", "dpt", "catmlp+dpt", "catconv")
MODES = ("tokens", "fill", "context")
SIZE = (96, 128)


def images(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Noise images (count, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=generator) * 2 - 1


def disc(centre: tuple[float, float], radius: float, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """A disc mask (H, W) bool around (y, x)."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def masks() -> torch.Tensor:
    """Two masks of different sizes (2, H, W)."""
    return torch.stack([disc((50, 70), 30), disc((30, 40), 18)])


def parts(output: Output) -> list[torch.Tensor]:
    """All arrays of an output."""
    every = (output.points, output.confidence, output.descriptors, output.descriptor_confidence)
    return [x for x in every if x is not None]


def equal(a: tuple[Output, Output], b: tuple[Output, Output]) -> bool:
    """Whether two results are equal bit for bit."""
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) for p, q in pairs for x, y in zip(parts(p), parts(q), strict=True))


@pytest.fixture(scope="module", params=HEADS)
def model(request: pytest.FixtureRequest) -> AsymmetricCroCo3DStereo:
    return random_model(small_mast3r(request.param))


@pytest.mark.parametrize("mode", MODES)
def test_all_foreground_is_the_unmasked_network_exactly(model: AsymmetricCroCo3DStereo, mode: str) -> None:
    a, b, full = images(2), images(2, 1), torch.ones(2, *SIZE, dtype=torch.bool)
    unmasked = model(ImageBatch(a), ImageBatch(b))
    assert equal(unmasked, model(ImageBatch(a, masks=full), ImageBatch(b, masks=full), mode))
    assert equal(unmasked, model(ImageBatch(a, masks=full), ImageBatch(b), mode))


@pytest.mark.parametrize("mode", ["tokens", "fill"])
def test_background_pixels_do_not_change_one_bit(model: AsymmetricCroCo3DStereo, mode: str) -> None:
    a, b, mask = images(2), images(2, 1), masks()
    reference = model(ImageBatch(a, masks=mask), ImageBatch(b, masks=mask.flip(0)), mode)
    for seed, scale in ((5, 1.0), (6, 100.0)):
        noise = images(2, seed) * scale
        other_a = torch.where(mask[:, None], a, noise)
        other_b = torch.where(mask.flip(0)[:, None], b, noise.flip(1))
        changed = model(ImageBatch(other_a, masks=mask), ImageBatch(other_b, masks=mask.flip(0)), mode)
        assert equal(reference, changed)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads that PyTorch computes with; put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count"), [((48, 64), 1), ((176, 80), 3), ((96, 256), 2)])
def test_background_pixels_do_not_change_one_bit_at_any_size_batch_and_number_of_threads(
    model: AsymmetricCroCo3DStereo, threads: int, size: tuple[int, int], count: int
) -> None:
    a, b = images(count, 0, size), images(count, 1, size)
    mask = torch.stack([disc((size[0] / 2, size[1] / 3), 12 + 9 * n, size) for n in range(count)])
    every = mask[:1].expand(count, -1, -1)  # sequences of one length: another attention kernel
    for m_a, m_b in ((mask, mask.flip(0)), (every, every)):
        reference = model(ImageBatch(a, masks=m_a), ImageBatch(b, masks=m_b))
        other_a, other_b = (
            torch.where(m[:, None], x, 10 * images(count, seed, size)) for x, m, seed in ((a, m_a, 8), (b, m_b, 9))
        )
        assert equal(reference, model(ImageBatch(other_a, masks=m_a), ImageBatch(other_b, masks=m_b)))


def test_a_device_without_autocast_computes_the_same(
    model: AsymmetricCroCo3DStereo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MPS before PyTorch 2.5, where asking autocast for anything raises."""
    a, mask = images(2), masks()
    reference = model(ImageBatch(a, masks=mask), ImageBatch(a, masks=mask))
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False)
    monkeypatch.setattr(torch, "autocast", None)
    assert equal(reference, model(ImageBatch(a, masks=mask), ImageBatch(a, masks=mask)))


def test_nan_in_the_background_stays_there(model: AsymmetricCroCo3DStereo) -> None:
    a, mask = images(2), masks()
    spoilt = torch.where(mask[:, None], a, torch.tensor(float("nan")))
    result = model(ImageBatch(spoilt, masks=mask), ImageBatch(spoilt, masks=mask))
    assert equal(result, model(ImageBatch(a, masks=mask), ImageBatch(a, masks=mask)))


def test_foreground_pixels_and_context_do_matter(model: AsymmetricCroCo3DStereo) -> None:
    a, mask = images(2), masks()
    reference = model(ImageBatch(a, masks=mask), ImageBatch(a, masks=mask))
    touched = a.clone()
    touched[0, :, 50, 70] += 1.0
    assert not equal(reference, model(ImageBatch(touched, masks=mask), ImageBatch(a, masks=mask)))
    context = model(ImageBatch(a, masks=mask), ImageBatch(a, masks=mask), "context")
    outside = torch.where(mask[:, None], a, -a)
    assert not equal(context, model(ImageBatch(outside, masks=mask), ImageBatch(a, masks=mask), "context"))


@pytest.mark.parametrize("mode", MODES)
def test_outside_the_mask_nothing_is_said_and_nothing_is_nan(model: AsymmetricCroCo3DStereo, mode: str) -> None:
    a, mask = images(2), masks()
    arch = model.arch
    for output in model(ImageBatch(a, masks=mask), ImageBatch(a, masks=mask), mode):
        assert all(torch.isfinite(x).all() for x in parts(output))
        assert (output.confidence[~mask] == arch.conf_mode.minimum).all()
        assert (output.confidence[mask] > arch.conf_mode.minimum).any()
        assert (output.points[~mask] == torch.tensor([0.0, 0.0, 1.0])).all()
        if output.descriptors is not None and output.descriptor_confidence is not None:
            assert (output.descriptors[~mask] == 0).all()
            assert (output.descriptor_confidence[~mask] == arch.descriptor_range.minimum).all()
            torch.testing.assert_close(output.descriptors[mask].norm(dim=-1), torch.ones(int(mask.sum())))


@pytest.mark.parametrize("mode", MODES)
def test_empty_and_one_pixel_masks(model: AsymmetricCroCo3DStereo, mode: str) -> None:
    a = images(3)
    mask = torch.zeros(3, *SIZE, dtype=torch.bool)
    mask[1, 17, 3] = True
    mask[2, 95, 127] = True
    for first, second in ((mask, mask.roll(1, 0)), (mask, torch.zeros_like(mask)), (torch.zeros_like(mask), mask)):
        outputs = model(ImageBatch(a, masks=first), ImageBatch(a, masks=second), mode)
        for output, m in zip(outputs, (first, second), strict=True):
            assert all(torch.isfinite(x).all() for x in parts(output))
            assert (output.confidence[~m] == model.arch.conf_mode.minimum).all()


def test_windowed_heads_say_what_whole_heads_say(model: AsymmetricCroCo3DStereo) -> None:
    """In `context` and `tokens` mode, computing the head on the mask's window changes rounding only."""
    a, b, mask = images(2), images(2, 1), masks()
    plain = model(ImageBatch(a), ImageBatch(b))
    for output, reference in zip(
        model(ImageBatch(a, masks=mask), ImageBatch(b, masks=mask), "context"), plain, strict=True
    ):
        for x, y in zip(parts(output), parts(reference), strict=True):
            torch.testing.assert_close(x[mask], y[mask], rtol=2e-4, atol=2e-5)


def test_a_masked_image_does_not_feel_its_batch(model: AsymmetricCroCo3DStereo) -> None:
    a, b, mask = images(2), images(2, 1), masks()
    together = model(ImageBatch(a, masks=mask), ImageBatch(b, masks=mask.flip(0)))
    for n in (0, 1):
        one = slice(n, n + 1)
        alone = model(ImageBatch(a[one], masks=mask[one]), ImageBatch(b[one], masks=mask.flip(0)[one]))
        for x, y in zip(together, alone, strict=True):
            for p, q in zip(parts(x), parts(y), strict=True):
                torch.testing.assert_close(p[one], q, rtol=2e-4, atol=2e-5)


def test_portrait_masks_turn_with_their_images() -> None:
    model = random_model(small_mast3r("catmlp+dpt", patch_embed_cls="ManyAR_PatchEmbed"))
    portrait, mask = images(1, size=(128, 96)), disc((70, 50), 30, (128, 96))[None]
    landscape = ImageBatch(portrait.transpose(2, 3), torch.tensor([[128, 96]]), mask.transpose(1, 2))
    upright = ImageBatch(portrait, None, mask)
    for turned, straight in zip(model(landscape, landscape), model(upright, upright), strict=True):
        for x, y in zip(parts(turned), parts(straight), strict=True):
            assert torch.equal(x.transpose(1, 2), y)


def test_symmetrized_batch_encodes_once_and_says_the_same(
    model: AsymmetricCroCo3DStereo, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, mask = images(4), images(4, 1), masks().repeat(2, 1, 1)
    first, second, m1, m2 = a.clone(), b.clone(), mask.clone(), mask.flip(0).clone()
    for n in (1, 3):
        first[n], second[n] = b[n - 1], a[n - 1]
        m1[n], m2[n] = m2[n - 1].clone(), m1[n - 1].clone()
    views = ImageBatch(first, masks=m1), ImageBatch(second, masks=m2)
    assert is_symmetrized([0, 9, 2, 8], [9, 0, 8, 2])
    assert not is_symmetrized([0, 9, 2, 8], [9, 0, 8, 3])
    assert not is_symmetrized([0], [0])
    plain = model(*views)
    encoded = []
    embed = model.patch_embed.forward
    monkeypatch.setattr(model.patch_embed, "forward", lambda x: encoded.append(len(x)) or embed(x))
    half = model(*views, symmetrized=True)
    tokens = [int(patch_has_foreground(m, 16).sum()) for m in (*m1[::2], *m2[::2])]
    assert sum(encoded) == sum(tokens)
    for x, y in zip(plain, half, strict=True):
        for p, q in zip(parts(x), parts(y), strict=True):
            torch.testing.assert_close(p, q, rtol=2e-4, atol=2e-5)


def test_both_orders_in_one_batch(model: AsymmetricCroCo3DStereo) -> None:
    a, b, mask = images(2), images(2, 1), masks()
    first = model.encode_masked(list(a), list(mask), "tokens")
    second = model.encode_masked(list(b), [None, None], "tokens")
    raw1, raw2 = model.decode_both(first, second)
    forward, backward = model.decode(first, second), model.decode(second, first)
    for side, raw in enumerate((raw1, raw2)):
        for got, want in zip(raw, [*forward[side], *backward[side]], strict=True):
            assert got.points is not None
            torch.testing.assert_close(got.points, want.points, rtol=2e-4, atol=2e-5)


def test_tokens_mode_costs_what_the_foreground_costs() -> None:
    model = random_model(small_mast3r("catmlp+dpt"))
    seen: dict[str, int] = {}

    def count(name: str) -> object:
        def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            seen[name] = seen.get(name, 0) + len(arguments[0])

        return hook

    for name in ("enc_blocks.0.mlp", "dec_blocks.0.mlp", "downstream_head1.head_local_features"):
        model.get_submodule(name).register_forward_pre_hook(count(name))
    mask = masks()
    model(ImageBatch(images(2), masks=mask), ImageBatch(images(2), masks=mask))
    foreground = sum(int(patch_has_foreground(m, 16).sum()) for m in mask)
    assert seen == {
        "enc_blocks.0.mlp": 2 * foreground,
        "dec_blocks.0.mlp": foreground,
        "downstream_head1.head_local_features": foreground,
    }


def test_cosine_positions_work_at_any_size_and_under_masks() -> None:
    arch: Architecture = small_mast3r("linear", pos_embed="cosine", img_size=[64, 64])
    model = random_model(arch)
    mask = masks()
    result = model(ImageBatch(images(2), masks=mask), ImageBatch(images(2), masks=mask))
    assert all(torch.isfinite(x).all() for output in result for x in parts(output))


def test_paint_joins_the_silhouette_without_an_edge() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 128), indexing="ij")
    image = torch.stack([0.5 * x, 0.5 * y, 0.3 * x * y])
    mask = disc((50, 60), 30)
    painted = paint_background(torch.where(mask, image, torch.tensor(1.0)), mask)
    assert torch.equal(painted[:, mask], image[:, mask])
    edge = mask[:, 1:] != mask[:, :-1]
    steps = (painted[:, :, 1:] - painted[:, :, :-1]).abs()
    assert steps[:, edge].max() < 0.06
    assert painted.min() >= image[:, mask].min() - 1e-6
    assert painted.max() <= image[:, mask].max() + 1e-6


def test_paint_of_nothing_is_grey_and_of_everything_is_the_image() -> None:
    image = images(1)[0]
    assert (paint_background(image, torch.zeros(SIZE, dtype=torch.bool)) == 0).all()
    assert torch.equal(paint_background(image, torch.ones(SIZE, dtype=torch.bool)), image)


def test_absent_tokens_are_a_blend_of_the_nearest() -> None:
    kept = torch.zeros(4, 5, dtype=torch.bool)
    kept[1, 1] = kept[2, 4] = True
    grid = TokenGrid(4, 5, kept, kept)
    tokens = torch.tensor([[0.0], [10.0]])
    full = grid.fill(tokens).view(4, 5)
    assert full[1, 1] == 0
    assert full[2, 4] == 10
    assert full[1, 0] < 0.5
    assert full[3, 4] > 9.5
    torch.testing.assert_close(shepard_weights(kept).sum(1), torch.ones(18))


def test_doubling_a_cut_is_cutting_the_double() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows, columns = (int(n) for n in rng.integers(1, 12, 2))
        x = torch.from_numpy(rng.standard_normal((1, 3, rows, columns)))
        top, left = int(rng.integers(0, 2 * rows)), int(rng.integers(0, 2 * columns))
        want = Window(top, int(rng.integers(top + 1, 2 * rows + 1)), left, int(rng.integers(left + 1, 2 * columns + 1)))
        have = want.before_doubling(rows, columns)
        full = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        got = double(have.cut(x, whole(rows, columns)), have, (rows, columns), want)
        torch.testing.assert_close(got, want.cut(full, whole(2 * rows, 2 * columns)))
