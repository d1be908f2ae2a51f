"""The compact network's task and predictor: truth of a batch, losses in every mode, exact resume, scoring, contract."""

from __future__ import annotations

import json
import math
import runpy
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sparse_ga.config import ForwardConfig
from sparse_ga.errors import InputError
from sparse_ga.network.checkpoint import save_model
from sparse_ga.network.masking import MaskMode
from sparse_ga.network.model import AsymmetricMASt3R, ImageBatch
from sparse_ga.predictors.base import BatchPredictor, FeaturePredictor
from sparse_ga.predictors.compact import CompactPredictor, SmallNetworkPredictor, enlarge, shrink
from sparse_ga.products import PairMatches, PairPrediction, Pointmap, View
from sparse_ga.synthetic.procedural.bundle import Draw
from sparse_ga.synthetic.procedural.correspondences import unproject
from sparse_ga.synthetic.procedural.pool import Pool
from sparse_ga.synthetic.procedural.scene import SceneConfig
from sparse_ga.training.budget import stages, train_within
from sparse_ga.training.checkpoints import load_parts
from sparse_ga.training.compact_task import (
    CompactTask,
    CompactTaskConfig,
    PairBatch,
    architecture,
    draw_matches,
    interleave,
    near_pairs,
    pair_again,
    sample_pixels,
    true_points,
)
from sparse_ga.training.dense import forward_pairs
from sparse_ga.training.loop import Chunk, LoopConfig, run
from sparse_ga.training.metrics import read_log
from sparse_ga.training.validation import (
    UnseenPair,
    reciprocal_matches,
    score_matches,
    score_pose,
    score_predictor,
    summarise_poses,
    unseen_pairs,
)

CPU = torch.device("cpu")
PROGRAM = Path(__file__).resolve().parents[2] / "pipelines" / "train_compact.py"
CONFIG = ForwardConfig(device="cpu")
TINY = CompactTaskConfig(size="tiny", side=48, objects=2, views=2, grid=20, rendered_steps=1, correspondences=64)


@pytest.fixture(scope="module")
def drawn() -> tuple[PairBatch, MaskMode, Draw]:
    return CompactTask(TINY, None).batch(1, CPU)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> UnseenPair:
    config = SceneConfig(objects=1, views=2, height=64, width=64, grid=20)
    return unseen_pairs(Pool(tmp_path_factory.mktemp("unseen"), config, 8), 1, 0, 180, 1)[0]


@pytest.fixture(scope="module")
def model() -> AsymmetricMASt3R:
    torch.manual_seed(0)
    return AsymmetricMASt3R(architecture("tiny", 64)).eval()


def test_shipped_sizes_stay_below_32_megabytes() -> None:
    for name in ("patch8", "patch16"):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AsymmetricMASt3R(architecture(name, 256)).parameters())  # type: ignore[arg-type]
        assert 12e6 < parameters < 16e6, name


def test_true_points_of_both_orders_agree(drawn: tuple[PairBatch, MaskMode, Draw]) -> None:
    pairs = drawn[0]
    points, on = true_points(pairs)
    assert points.shape[:2] == (4, 2)
    own = unproject(pairs.intrinsics[0], pairs.depth[0])
    torch.testing.assert_close(points[::2, 0], own)
    # The same surface seen from the two frames differs by one rigid motion: distances between points agree.
    for order in (0, 1):
        a, b = points[order, 0][on[order, 0]][::17][:40], points[1 - order, 1][on[1 - order, 1]][::17][:40]
        assert len(a) > 10
        torch.testing.assert_close(
            torch.cdist(a.double(), a.double()), torch.cdist(b.double(), b.double()), atol=1e-4, rtol=0
        )


def test_drawn_matches_show_the_same_points(drawn: tuple[PairBatch, MaskMode, Draw]) -> None:
    pairs, _, draw = drawn
    xy, valid = draw_matches(draw, pairs, 64)
    assert xy.shape == (2, 2, 64, 2)
    assert int(valid.sum()) > 20
    points, _ = true_points(pairs)
    a = sample_pixels(points[::2, 0], xy[0])
    b = sample_pixels(points[::2, 1], xy[1])  # view b's points in view a's frame
    size = a[valid].norm(dim=-1)
    assert float(((a - b).norm(dim=-1)[valid] / size).median()) < 5e-3
    x, y = xy[0].long().unbind(-1)
    told = pairs.masks[0].flatten(1).gather(1, y * pairs.masks.shape[-1] + x)
    assert bool(told[valid].all())


def test_draw_matches_without_any_overlap(drawn: tuple[PairBatch, MaskMode, Draw]) -> None:
    pairs, _, draw = drawn
    _, valid = draw_matches(draw, replace(pairs, masks=torch.zeros_like(pairs.masks)), 64)
    assert not bool(valid.any())


@pytest.mark.slow
def test_steps_that_are_rendered_together_get_different_objects() -> None:
    task = CompactTask(replace(TINY, objects=1, rendered_steps=2), None)
    first, second, third = (task.batch(step, CPU)[0].images for step in (0, 1, 2))
    assert not torch.equal(first, second)
    fresh = CompactTask(replace(TINY, objects=1, rendered_steps=2), None)
    assert torch.equal(fresh.batch(2, CPU)[0].images, third)  # no matter what was rendered before
    assert torch.equal(fresh.batch(1, CPU)[0].images, second)


@pytest.mark.slow
def test_batches_from_a_pool_show_pool_objects_and_are_the_same_again(tmp_path: Path) -> None:
    pool = Pool(tmp_path, SceneConfig(objects=1, views=3, height=48, width=48, grid=20), 9)
    task = CompactTask(replace(TINY, pool_objects=2), None, pool=pool)
    pairs, _, draw = task.batch(4, CPU)
    again, _, _ = CompactTask(task.config, None, pool=pool).batch(4, CPU)
    assert torch.equal(pairs.images, again.images)
    assert not torch.equal(pairs.images, task.batch(5, CPU)[0].images)
    shown = torch.cat([pool.rows(k)["image"] for k in (0, 1)]).float() / 127.5 - 1
    for image in pairs.images.flatten(0, 1):
        assert (shown - image).abs().amax((1, 2, 3)).min() == 0
    assert int(draw_matches(draw, pairs, 64)[1].sum()) > 0
    assert task.settings()["pool"] != CompactTask(TINY, None).settings()["pool"]
    larger = replace(pool, config=replace(pool.config, height=64, width=64))
    with pytest.raises(ValueError, match="rendered with other settings"):
        CompactTask(task.config, None, pool=larger).batch(4, CPU)
    with pytest.raises(ValueError, match="a pool needs"):
        CompactTask(replace(TINY, pool_objects=0), None, pool=pool)


def test_pairs_from_a_pool_look_from_neighbouring_directions() -> None:
    poses = torch.eye(4).repeat(4, 1, 1)
    for pose, angle in zip(poses, (0.0, 50.0, 100.0, 230.0)):
        turn = math.radians(angle)
        pose[:3, 3] = torch.tensor([math.sin(turn), 0.0, -math.cos(turn)])
    assert near_pairs(poses, 75.0) == [(0, 1), (1, 2)]
    assert near_pairs(poses[[0, 2, 3]], 75.0) == [(0, 1)]  # none within the limit: the nearest


def test_views_used_again_form_other_pairs_that_look_from_neighbouring_directions() -> None:
    close, ring = torch.eye(4).repeat(4, 1, 1), torch.eye(4).repeat(4, 1, 1)
    for poses, step in ((close, 20.0), (ring, 60.0)):
        for k, pose in enumerate(poses):
            turn = math.radians(step * k)
            pose[:3, 3] = torch.tensor([math.sin(turn), 0.0, -math.cos(turn)])
    poses = torch.stack([close, ring])
    assert [pair_again(poses, turn, 75.0)[0].tolist() for turn in range(4)] == [
        [0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2], [0, 1, 2, 3]
    ]  # fmt: skip
    for turn in range(3):  # 120 and 180 degrees apart: not a pair
        assert pair_again(poses, turn, 75.0)[1].tolist() == [0, 1, 2, 3]
    assert pair_again(poses[1:], 1, 30.0).tolist() == [[0, 1, 2, 3]]  # none within the limit: the nearest


@pytest.mark.slow
def test_rendered_objects_are_used_again_in_other_pairs() -> None:
    task = CompactTask(replace(TINY, views=4, rendered_steps=2, repeats=2, pair_deg=180.0), None)
    batches = [task.batch(step, CPU)[0] for step in range(5)]
    shown = [set(batch.images.flatten(0, 1).flatten(1).sum(1).tolist()) for batch in batches]
    assert shown[0] == shown[2]
    assert shown[1] == shown[3]
    assert not shown[0] & shown[1]
    assert not shown[0] & shown[4]  # rendered anew
    assert not torch.equal(batches[0].images, batches[2].images)
    assert torch.equal(CompactTask(task.config, None).batch(2, CPU)[0].images, batches[2].images)


def test_interleave_puts_both_orders_next_to_each_other() -> None:
    first, second = interleave(torch.tensor([[1, 2], [10, 20]]))
    assert first.tolist() == [1, 10, 2, 20]
    assert second.tolist() == [10, 1, 20, 2]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_loss_is_finite_and_reaches_every_part_in_every_mode(mode: int) -> None:
    weights = tuple(float(k == mode) for k in range(3))
    task = CompactTask(replace(TINY, mode_weights=weights), None)  # type: ignore[arg-type]
    model = task.build()
    loss, record = task.loss(model, 0)
    loss.backward()
    assert record["mode"] == mode
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        if name != "mask_token":
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_fresh_descriptors_tell_of_patches_and_not_of_the_place_within() -> None:
    """With a word for every place in a patch InfoNCE starts at twice its chance level, and training stays at chance."""
    model = CompactTask(TINY, None).build()
    assert isinstance(model, AsymmetricMASt3R)
    images = torch.rand(2, 1, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for output in forward_pairs(model, images, torch.ones(2, 1, 48, 48, dtype=torch.bool), "tokens"):
        assert output.descriptors is not None
        patches = output.descriptors.unflatten(1, (6, 8)).unflatten(3, (6, 8))  # (2, 6, 8, 6, 8, D)
        torch.testing.assert_close(patches, patches[:, :, :1, :, :1].expand_as(patches), atol=1e-5, rtol=0)
        assert float(patches[0, :, 0, :, 0].flatten(0, 1).std(0).max()) > 0.01  # patches differ


@pytest.mark.slow
def test_same_step_same_loss_and_other_step_other_loss() -> None:
    task = CompactTask(TINY, None)
    model = task.build()
    with torch.no_grad():
        first, again, other = (float(task.loss(model, step)[0]) for step in (3, 3, 4))
    assert first == again
    assert first != other


class _Fixed(CompactTask):
    """Always the same batch, rendered once."""

    @cached_property
    def _first(self) -> tuple[PairBatch, MaskMode, Draw]:
        return super().batch(0, CPU)

    def batch(self, step: int, device: torch.device) -> tuple[PairBatch, MaskMode, Draw]:
        pairs, mode, _ = self._first
        return pairs, mode, Draw(torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_compact_loss_falls_on_one_batch() -> None:
    task = _Fixed(TINY, None)
    model = task.build()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    records = []
    for _ in range(20):
        loss, record = task.loss(model, 0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        records.append(record | {"total": float(loss.detach())})
    assert records[-1]["error"] < 0.8 * records[0]["error"]
    assert records[-1]["total"] < 0.8 * records[0]["total"]


@pytest.mark.slow
def test_compact_training_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    loop = LoopConfig(steps=3, learning_rate=1e-3, warmup=1, validate_every=3, log_every=2)
    run(CompactTask(TINY, None), loop, tmp_path / "whole", CPU, Chunk())
    for stop in (1, None):
        run(CompactTask(TINY, None), loop, tmp_path / "parts", CPU, Chunk(until_step=stop))
    whole, parts = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
def test_a_training_in_a_given_time_goes_from_small_to_large_and_resumes(tmp_path: Path) -> None:
    task = replace(TINY, objects=1, grid=16, correspondences=16)
    small, large = stages(replace(task, side=64), 0.5)
    assert (small.task.side, small.task.correspondences, large.task.side) == (32, 8, 64)
    assert small.task.seed != large.task.seed  # other objects
    plan = [replace(small, task=replace(small.task, side=32)), replace(large, task=replace(large.task, side=48))]
    said: list[str] = []
    loop = LoopConfig(learning_rate=1e-3, optimizer="muon")
    weights = train_within(0.12, plan, loop, tmp_path, CPU, report=said.append)
    for name, value in load_parts(tmp_path / "weights").items():
        torch.testing.assert_close(value, weights[name].float(), atol=1e-3, rtol=1e-3)
    figures = json.loads(said[0])
    assert figures["device"] == "cpu"
    assert figures["steps"] >= 10
    planned = [(tmp_path / f"side-{side}" / "plan.json").read_text() for side in (32, 48)]
    log = [read_log(tmp_path / f"side-{side}" / "metrics.jsonl") for side in (32, 48)]
    train_within(0.12, plan, loop, tmp_path, CPU, report=said.append)  # what is done stays done
    assert planned == [(tmp_path / f"side-{side}" / "plan.json").read_text() for side in (32, 48)]
    assert read_log(tmp_path / "side-32" / "metrics.jsonl")[: len(log[0])] == log[0]
    assert sum("seconds_per_step" in text for text in said) == 2  # measured once for each stage


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compact_training_learns_shape_on_unseen_batches(tmp_path: Path) -> None:
    """40 steps at tiny size: the error on batches never trained on falls well below that of the untrained network."""
    task = CompactTask(replace(TINY, objects=4, repeats=3), None)
    loop = LoopConfig(steps=40, learning_rate=2e-3, warmup=5, validate_every=1000, log_every=10)
    state = run(task, loop, tmp_path, CPU, Chunk())

    def error(network: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(np.mean([task.loss(network, 99_999 + 3 * k)[1]["error"] for k in range(6)]))

    assert error(state.model) < 0.4 * error(task.build())


def _perfect(pair: UnseenPair) -> PairPrediction:
    """The truth as a prediction."""
    views, depths = (pair.view_i, pair.view_j), (pair.depth_i, pair.depth_j)
    own = [
        unproject(torch.from_numpy(v.intrinsics)[None].float(), torch.from_numpy(d)[None])[0].numpy()  # type: ignore[arg-type]
        for v, d in zip(views, depths)
    ]
    rotation, shift = pair.i_from_j[:3, :3], pair.i_from_j[:3, 3]
    crossed = own[1] @ rotation.T + shift, (own[0] - shift) @ rotation

    def pointmap(points: np.ndarray, view: View) -> Pointmap:
        return Pointmap(points.astype(np.float32) * 3, view.mask.astype(np.float32))

    i, j = views
    return PairPrediction(
        pointmap(own[0], i), pointmap(crossed[0], j), pointmap(own[1], j), pointmap(crossed[1], i), PairMatches.empty()
    )


def test_scores_of_the_truth_and_of_a_rejected_pair(pair: UnseenPair) -> None:
    right = score_pose(_perfect(pair), pair)
    assert right.rotation_deg < 0.1
    assert right.translation_deg < 0.1
    assert right.depth_error < 1e-5
    nothing = score_pose(PairPrediction.reject(pair.view_i, pair.view_j, "no"), pair)
    assert (nothing.rotation_deg, nothing.depth_error) == (180.0, 1.0)
    summary = summarise_poses([right, nothing])
    assert (summary["rra15"], summary["rta15"]) == (50.0, 50.0)


def test_reciprocal_matches_from_descriptors(pair: UnseenPair) -> None:
    """Descriptors that encode the true position in view j match it."""
    height, width = pair.visible.shape
    y, x = np.mgrid[:height, :width]

    def encode(xy: np.ndarray) -> np.ndarray:
        # Neighbouring pixels are one radian apart at the finest scale, so the nearest descriptor is the nearest pixel.
        phase = np.concatenate([xy / s for s in (1, 4, 16)], -1)
        both = np.concatenate([np.cos(phase), np.sin(phase)], -1)
        return (both / np.linalg.norm(both, axis=-1, keepdims=True)).astype(np.float32)

    truth = _perfect(pair)
    prediction = replace(
        truth,
        i_in_i=replace(truth.i_in_i, descriptors=encode(pair.xy_in_j)),
        j_in_i=replace(truth.j_in_i, descriptors=encode(np.stack([x, y], -1).astype(float))),
        matches=None,
    )
    found = score_matches(reciprocal_matches(prediction, pair.view_i, pair.view_j, 2), pair)
    assert found.matches > 50
    assert found.precision > 0.8 * pair.visible.sum() / pair.view_i.mask.sum()
    assert len(reciprocal_matches(replace(truth, matches=None), pair.view_i, pair.view_j)) == 0


def test_predictor_contract(model: AsymmetricMASt3R, pair: UnseenPair) -> None:
    predictor = SmallNetworkPredictor(model, CONFIG, 64)
    assert isinstance(predictor, FeaturePredictor)
    found = predictor.predict(pair.view_i, pair.view_j)
    for maps, view in ((found.i_in_i, pair.view_i), (found.j_in_i, pair.view_j)):
        assert maps.points.shape == (*view.mask.shape, 3)
        assert np.isfinite(maps.points).all()
        assert (maps.confidence[~view.mask] == 1).all()
        norms = np.linalg.norm(maps.descriptors, axis=-1)  # type: ignore[arg-type]
        np.testing.assert_allclose(norms[view.mask], 1, atol=1e-4)
        assert (norms[~view.mask] == 0).all()
    swapped = predictor.predict(pair.view_j, pair.view_i)
    np.testing.assert_allclose(swapped.i_in_i.points, found.j_in_j.points, atol=1e-4)
    np.testing.assert_allclose(swapped.j_in_i.points, found.i_in_j.points, atol=1e-4)


def test_batches_are_chosen_at_the_networks_own_size(model: AsymmetricMASt3R, pair: UnseenPair) -> None:
    predictor = SmallNetworkPredictor(model, CONFIG, 32)
    assert isinstance(predictor, BatchPredictor)
    views = [replace(pair.view_i, name=str(n)) for n in range(100)]
    assert predictor.pairs_at_once(views, views) == 1  # on a CPU
    predictor.network.device = torch.device("meta")
    predictor.network.config = replace(CONFIG, memory_gb=1.3)
    small = [shrink(view, 32, model.arch.patch_size) for view in views]
    expected = predictor.network.pairs_at_once(small, small)
    assert 1 < predictor.network.pairs_at_once(views, views) < expected < 100
    assert predictor.pairs_at_once(views, views) == expected


def test_predictor_agrees_with_the_network_at_its_own_size(model: AsymmetricMASt3R, pair: UnseenPair) -> None:
    found = SmallNetworkPredictor(model, CONFIG, 64).predict(pair.view_i, pair.view_j)
    batches = []
    for view in (pair.view_i, pair.view_j):
        image = torch.from_numpy(view.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        batches.append(ImageBatch(image, masks=torch.from_numpy(view.mask.copy())[None]))
    with torch.no_grad():
        first, second = model(*batches, "tokens")
    np.testing.assert_allclose(found.i_in_i.points, first.points[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(found.j_in_i.points, second.points[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("side", [64, 32])
def test_background_does_not_change_one_bit(model: AsymmetricMASt3R, pair: UnseenPair, side: int) -> None:
    predictor = SmallNetworkPredictor(model, CONFIG, side)
    painted = np.where(pair.view_i.mask[..., None], pair.view_i.image, 255 - pair.view_i.image).astype(np.uint8)
    a = predictor.predict(pair.view_i, pair.view_j)
    b = predictor.predict(replace(pair.view_i, image=painted), pair.view_j)
    assert np.array_equal(a.i_in_i.points, b.i_in_i.points)
    assert np.array_equal(a.j_in_i.points, b.j_in_i.points)
    assert np.array_equal(a.i_in_i.descriptors, b.i_in_i.descriptors)  # type: ignore[arg-type]


def test_empty_mask_rejects_the_pair(model: AsymmetricMASt3R, pair: UnseenPair) -> None:
    blank = replace(pair.view_i, mask=np.zeros_like(pair.view_i.mask))
    found = SmallNetworkPredictor(model, CONFIG, 64).predict(blank, pair.view_j)
    assert found.rejected is not None
    assert "mask is empty" in found.rejected


def test_shrink_and_enlarge_keep_positions_and_foreground_apart() -> None:
    mask = np.zeros((96, 128), bool)
    mask[:, 40:] = True
    image = np.where(mask[..., None], 200, 0).astype(np.uint8).repeat(3, 2)
    small = shrink(View("v", image, mask, None, np.eye(3), (128, 96), "d"), 64, 8)
    assert small.image.shape == (48, 64, 3)
    assert small.mask.sum() == 48 * 44
    np.testing.assert_allclose(small.working_from_source[:2, :2], np.eye(2) / 2)
    np.testing.assert_allclose(small.working_from_source[:2, 2], -0.25)
    assert (small.image[small.mask] == 200).all()
    ramp = torch.arange(64.0).expand(48, 64)[..., None]
    large = enlarge(ramp, torch.from_numpy(small.mask), (96, 128))[..., 0]
    expected = ((torch.arange(128.0) + 0.5) / 2 - 0.5).clamp(20, 63)
    torch.testing.assert_close(large[50, 40:], expected[40:], atol=1e-3, rtol=0)
    assert torch.equal(enlarge(ramp, torch.ones(48, 64, dtype=torch.bool), (48, 64)), ramp)


def test_compact_predictor_without_weights_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ships no compact weights.*classical"):
        CompactPredictor(ForwardConfig(), tmp_path)


def test_compact_predictor_loads_exported_weights(model: AsymmetricMASt3R, pair: UnseenPair, tmp_path: Path) -> None:
    save_model(model, tmp_path / "compact", "Apache-2.0", half=True)
    predictor = CompactPredictor(CONFIG, tmp_path / "compact")
    direct = SmallNetworkPredictor(model, CONFIG, 64).predict(pair.view_i, pair.view_j)
    loaded = predictor.predict(pair.view_i, pair.view_j)
    assert np.abs(loaded.i_in_i.points - direct.i_in_i.points).mean() < 0.02
    other = CompactPredictor(ForwardConfig(device="cpu", mask_mode="fill"), tmp_path / "compact")
    assert other.fingerprint != predictor.fingerprint


def test_score_predictor_reports_every_metric(model: AsymmetricMASt3R, pair: UnseenPair) -> None:
    record = score_predictor(SmallNetworkPredictor(model, CONFIG, 64), [pair])
    assert {"precision", "matches", "rra15", "rta15", "depth_error"} <= set(record)


def test_seeded_draws_do_not_touch_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    CompactTask(TINY, None).build()
    Draw(torch.Generator().manual_seed(0)).uniform(0, 1, 3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_starts_from_given_weights(model: AsymmetricMASt3R) -> None:
    initial = {name: value + 0.01 for name, value in model.state_dict().items()}
    task = CompactTask(TINY, None, initial)
    for name, value in task.build().state_dict().items():
        assert torch.equal(value, initial[name])
    assert task.settings()["initial"] != CompactTask(TINY, None).settings()["initial"]


@pytest.mark.slow
def test_program_trains_validates_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def program(action: str, *words: str) -> str:
        small = "--size tiny --side 48 --objects 1 --views 2 --pool 2 --steps 2 --unseen 2 --correspondences 32"
        monkeypatch.setattr(sys, "argv", ["train_compact.py", action, str(tmp_path), *words, *small.split()])
        runpy.run_path(str(PROGRAM), run_name="__main__")
        return capsys.readouterr().out

    assert "step 2 of 2" in program("train")
    for mode, background in (("tokens", "mixed"), ("fill", "still"), ("context", "clean")):
        found = json.loads(program("validate", "--mode", mode, "--background", background))
        assert found["pairs"] > 0
        assert 0 < found["error"] < 10
        assert found["nce"] > 0
    assert "M parameters" in program("export", str(tmp_path / "weights"))
    assert "step 2" in program("pack", str(tmp_path / "packed"))
    program("export", str(tmp_path / "again"), "--start", str(tmp_path / "packed"))
    assert json.loads(program("validate", "--start", str(tmp_path / "packed")))["pairs"] == found["pairs"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("weights", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
