"""The descriptor network: exact symmetry under quarter turns, deafness to the background, pairs, resume, validation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ga.matching.dense import coarse_matches, match_maps
from sparse_ga.network.descriptor_cnn import (
    DenseDescriptor,
    DescriptorCNN,
    DescriptorConfig,
    cycled,
)
from sparse_ga.products import Array, PairMatches, View
from sparse_ga.synthetic.procedural.pool import Pool
from sparse_ga.synthetic.procedural.scene import SceneConfig
from sparse_ga.training.checkpoints import export_weights
from sparse_ga.training.descriptor_task import DescriptorTask, DescriptorTaskConfig, at_pixels, make_pair, window_loss
from sparse_ga.training.loop import Chunk, LoopConfig, run
from sparse_ga.training.validation import score_matches, summarise_matches, unseen_pairs

SMALL = DescriptorConfig(dim=8, widths=(8, 12, 16, 16), blocks=(1, 1, 1), size=64)


def _network(seed: int = 0) -> DescriptorCNN:
    torch.manual_seed(seed)
    model = DescriptorCNN(SMALL)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)  # residual branches start at zero
    return model.eval()


@pytest.fixture(scope="module")
def describer() -> DenseDescriptor:
    return DenseDescriptor(_network(), "test")


def _picture(seed: int = 0, shape: tuple[int, int] = (80, 96)) -> tuple[Array, Array]:
    image = np.random.default_rng(seed).integers(0, 255, (*shape, 3)).astype(np.uint8)
    mask = np.zeros(shape, bool)
    mask[20:62, 15:70] = True
    mask[20:35, 15:30] = False
    return image, mask


def _view(image: Array, mask: Array) -> View:
    image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask)
    return View("v", image, mask, None, np.eye(3), (image.shape[1], image.shape[0]), "d")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    config = SceneConfig(objects=1, views=3, height=64, width=64, grid=20, background="clean")
    return Pool(tmp_path_factory.mktemp("pool"), config, 5)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_quarter_turn_only_cycles_descriptors(describer: DenseDescriptor, turns: int) -> None:
    image, mask = _picture()
    upright = describer.describe(_view(image, mask))
    turned = describer.describe(_view(np.rot90(image, turns), np.rot90(mask, turns)))
    back = cycled(np.rot90(turned.descriptors, -turns), -turns)
    np.testing.assert_allclose(back, upright.descriptors, atol=2e-5)
    np.testing.assert_allclose(np.rot90(turned.reliability, -turns), upright.reliability, atol=2e-5)
    norms = np.linalg.norm(upright.descriptors, axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_matches_of_a_turned_picture_are_exact(describer: DenseDescriptor, turns: int) -> None:
    image, mask = _picture()
    a, b = (_view(np.rot90(x, k), np.rot90(m, k)) for (x, m), k in (((image, mask), 0), ((image, mask), turns)))
    maps = describer.describe(a), describer.describe(b)
    _, found = coarse_matches(*maps)
    matches = match_maps(*maps, found)
    assert found == -turns % 4
    assert len(matches) > 300
    x, y = matches.xy_i.T
    height, width = mask.shape
    expected = {0: (x, y), 1: (y, width - 1 - x), 2: (width - 1 - x, height - 1 - y), 3: (height - 1 - y, x)}[turns]
    error = np.linalg.norm(matches.xy_j - np.stack(expected, 1), axis=1)
    assert np.quantile(error, 0.95) < 1.0
    rows, columns = np.rint(matches.xy_i).astype(int)[:, ::-1].T
    assert mask[rows.clip(0, height - 1), columns.clip(0, width - 1)].mean() > 0.97


def test_grid_points_lie_on_the_object_in_view_pixels(describer: DenseDescriptor) -> None:
    image, mask = _picture()
    found = describer.describe(_view(image, mask))
    y, x = np.nonzero(found.valid)
    xy = np.stack([x, y, np.ones_like(x)], 1) @ found.view_from_grid.T
    assert (found.view_from_grid[0, 0] > 0) and found.view_from_grid[0, 1] == 0  # noqa: PT018
    assert xy[:, 0].min() == pytest.approx(15, abs=2.5)
    assert xy[:, 0].max() == pytest.approx(69, abs=2.5)
    assert xy[:, 1].min() == pytest.approx(20, abs=2.5)
    assert xy[:, 1].max() == pytest.approx(61, abs=2.5)


def test_background_cannot_speak(describer: DenseDescriptor) -> None:
    image, mask = _picture()
    other = np.where(mask[..., None], image, 255 - image).astype(np.uint8)
    a, b = describer.describe(_view(image, mask)), describer.describe(_view(other, mask))
    assert np.array_equal(a.descriptors, b.descriptors)
    assert np.array_equal(a.reliability, b.reliability)


def test_empty_mask_gives_no_matches(describer: DenseDescriptor) -> None:
    image, mask = _picture()
    nothing = describer.describe(_view(image, np.zeros_like(mask)))
    assert not nothing.valid.any()
    assert np.isfinite(nothing.descriptors).all()
    something = describer.describe(_view(image, mask))
    assert len(coarse_matches(something, nothing)[0]) == 0
    assert len(match_maps(nothing, something, 0)) == 0


def test_tiny_object_and_whole_image(describer: DenseDescriptor) -> None:
    image, mask = _picture()
    one = np.zeros_like(mask)
    one[40, 40] = True
    assert np.isfinite(describer.describe(_view(image, one)).descriptors).all()
    assert describer.describe(_view(image, np.ones_like(mask))).valid.mean() > 0.5


def test_weights_file_round_trip_and_errors(tmp_path: Path) -> None:
    model = _network(3)
    path = tmp_path / "d.safetensors"
    export_weights(path, model.state_dict(), DenseDescriptor.metadata(SMALL))
    loaded = DenseDescriptor.load(path)
    image, mask = _picture(4)
    a, b = DenseDescriptor(model, "x").describe(_view(image, mask)), loaded.describe(_view(image, mask))
    assert float((a.descriptors * b.descriptors).sum(-1).min()) > 0.999  # half precision
    assert loaded.fingerprint != DenseDescriptor.load(path, size=96).fingerprint
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DenseDescriptor.load(tmp_path / "nowhere.safetensors")
    export_weights(path, model.state_dict(), {"format": "other"})
    with pytest.raises(ValueError, match="not weights of the descriptor network"):
        DenseDescriptor.load(path)


@pytest.mark.slow
def test_training_pairs_hold_true_correspondences_at_all_rolls(pool: Pool) -> None:
    config = DescriptorTaskConfig(correspondences=64, first_objects=4, objects_per_step=0, min_visible=30)
    angles = []
    for step in range(12):
        pair = make_pair(pool, config, 64, step, 0)
        assert pair.images.shape == (2, 3, 64, 64)
        if int(pair.valid.sum()) < 30:
            continue
        a, b = pair.xy[:, pair.valid]
        x, y = a.round().long().clamp(0, 63).T
        assert float(pair.masks[0][y, x].float().mean()) > 0.7  # masks may be imperfect
        a, b = a - a.mean(0), b - b.mean(0)
        turn = math.degrees(math.atan2(float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()), float((a * b).sum())))
        angles.append(turn)
    assert len(angles) > 6
    assert max(abs(angle) for angle in angles) < 100
    assert np.std(angles) > 5
    again = make_pair(pool, config, 64, 3, 0)
    assert torch.equal(again.images, make_pair(pool, config, 64, 3, 0).images)
    assert not torch.equal(again.images, make_pair(pool, config, 64, 3, 1).images)


def test_window_loss_tells_the_exact_place() -> None:
    config = DescriptorTaskConfig(windows=16)
    generator = torch.Generator().manual_seed(1)
    maps = F.interpolate(torch.randn(1, 32, 12, 12, generator=generator), (32, 32), mode="bicubic").expand(
        2, -1, -1, -1
    )
    xy = (20 + 24 * torch.rand(1, 1, 24, 2, generator=generator)).expand(-1, 2, -1, -1)  # both views are the same
    valid = torch.ones(1, 24, dtype=torch.bool)
    scale = torch.tensor(50.0)

    def loss(shift: float, on: Tensor = valid) -> float:
        moved = torch.stack([xy[:, 0], xy[:, 1] + shift], 1)
        described = F.normalize(at_pixels(maps, xy.flatten(0, 1)), dim=-1).unflatten(0, (-1, 2))
        return float(window_loss(maps, described, moved, on, scale, config, step=3))

    exact = loss(0.0)
    assert exact < min(loss(1.0), loss(-1.0), loss(2.0))
    assert loss(0.0, torch.zeros_like(valid)) == 0
    assert loss(0.0) == exact  # windows depend on seed and step only


def _task(pool: Pool) -> DescriptorTask:
    config = DescriptorTaskConfig(
        pairs=2, correspondences=48, first_objects=2, objects_per_step=0.5, unseen_objects=2, min_visible=20
    )
    return DescriptorTask(SMALL, config, (pool, Pool(pool.folder, pool.config, 6)))


@pytest.mark.slow
def test_descriptor_training_learns_and_resumes_with_the_same_bytes(pool: Pool, tmp_path: Path) -> None:
    loop = LoopConfig(steps=8, learning_rate=3e-3, warmup=2, validate_every=8, log_every=1)
    run(_task(pool), loop, tmp_path / "whole", torch.device("cpu"), Chunk())
    run(_task(pool), loop, tmp_path / "parts", torch.device("cpu"), Chunk(until_step=5))
    run(_task(pool), loop, tmp_path / "parts", torch.device("cpu"), Chunk())
    whole, parts = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
def test_descriptor_loss_falls_on_one_batch(pool: Pool) -> None:
    task = _task(pool)
    model = task.build().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss, _ = task.loss(model, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_scores_of_true_shifted_and_no_matches(pool: Pool) -> None:
    pair = unseen_pairs(pool, 6, 0, 180, 1)[0]
    y, x = np.nonzero(pair.visible)
    xy_i = np.stack([x, y], 1).astype(np.float32)
    truth = pair.xy_in_j[y, x].astype(np.float32)
    ones = np.ones(len(x), np.float32)
    right = score_matches(PairMatches(xy_i, truth, ones), pair)
    shifted = score_matches(PairMatches(xy_i, truth + 5, ones), pair)
    nothing = score_matches(PairMatches.empty(), pair)
    assert (right.precision, shifted.precision, nothing.precision) == (1, 0, 0)
    unseen = np.argwhere(~pair.visible)[:50, ::-1].astype(np.float32)
    blind = PairMatches(unseen, np.zeros((50, 2), np.float32), np.ones(50, np.float32))
    assert score_matches(blind, pair).correct == 0
    summary = summarise_matches([right, shifted, nothing])
    assert summary["precision"] == pytest.approx(1 / 3)
    assert summary["solvable"] == pytest.approx(1 / 3)
