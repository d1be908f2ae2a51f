"""The loop, its checkpoints and its log: exact resume, errors that help, schedules."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparse_ga.training.checkpoints import (
    CheckpointError,
    averaged_weights,
    digest_of,
    export_parts,
    export_weights,
    load_parts,
)
from sparse_ga.training.loop import Chunk, LoopConfig, learning_rate, make_optimizer, run, update_average
from sparse_ga.training.metrics import MetricsLog, Record, read_log, write_plots
from sparse_ga.training.muon import orthogonalised

CPU = torch.device("cpu")
LOOP = LoopConfig(steps=8, learning_rate=0.05, warmup=2, validate_every=4, log_every=2, average_decay=0.9)


class _Line:
    """Fits y = 3 x + 1 from noisy batches; batch norm gives it buffers, one of them a counter."""

    def __init__(self, spoil: int | None = None, seed: int = 0) -> None:
        self.spoil, self.seed = spoil, seed

    def settings(self) -> dict[str, object]:
        return {"line": {"seed": self.seed}}

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def loss(self, model: nn.Module, step: int) -> tuple[Tensor, Record]:
        x = torch.randn(32, 1, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - 3 * x - 1).square().mean()
        if step == self.spoil:
            loss = loss * math.nan
        return loss, {"seen": float(step)}

    def validate(self, model: nn.Module) -> Record:
        x = torch.linspace(-1, 1, 9)[:, None]
        return {"error": float((model(x) - 3 * x - 1).abs().mean())}


def test_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    run(_Line(), LOOP, tmp_path / "whole", CPU, Chunk())
    for stop in (3, 4, 7, None):
        state = run(_Line(), LOOP, tmp_path / "parts", CPU, Chunk(until_step=stop))
        assert state.step == (stop or 8)
    whole, parts = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_run_killed_after_its_checkpoint_repeats_the_lost_steps(tmp_path: Path) -> None:
    run(_Line(), LOOP, tmp_path / "a", CPU, Chunk(until_step=4))
    kept = (tmp_path / "a" / "last.safetensors").read_bytes()
    run(_Line(), LOOP, tmp_path / "a", CPU, Chunk(until_step=6))
    (tmp_path / "a" / "last.safetensors").write_bytes(kept)  # as if killed before the next checkpoint
    run(_Line(), LOOP, tmp_path / "a", CPU, Chunk())
    run(_Line(), LOOP, tmp_path / "b", CPU, Chunk())
    a, b = tmp_path / "a", tmp_path / "b"
    assert (a / "last.safetensors").read_bytes() == (b / "last.safetensors").read_bytes()
    strip = [[{k: v for k, v in r.items() if k != "seconds"} for r in read_log(f / "metrics.jsonl")] for f in (a, b)]
    assert strip[0] == strip[1]
    assert [r["step"] for r in strip[0]] == [2, 4, 4, 6, 8, 8]


def test_training_lowers_the_loss_and_logs_it(tmp_path: Path) -> None:
    loop = LoopConfig(steps=150, learning_rate=0.05, warmup=5, validate_every=50, log_every=10, average_decay=0.9)
    run(_Line(), loop, tmp_path, CPU, Chunk())
    log = read_log(tmp_path / "metrics.jsonl")
    losses = [r["loss"] for r in log if "loss" in r]
    assert losses[-1] < 0.2 * losses[0]
    assert [r for r in log if "val_error" in r][-1]["val_error"] < 0.5
    page = (tmp_path / "plots.html").read_text()
    assert page.count("<svg") >= 4
    assert "val_error" in page


def test_no_minutes_left_saves_and_stops(tmp_path: Path) -> None:
    state = run(_Line(), LOOP, tmp_path, CPU, Chunk(minutes=0))
    assert state.step == 0
    assert run(_Line(), LOOP, tmp_path, CPU, Chunk()).step == 8


def test_a_step_without_finite_gradient_changes_no_weights(tmp_path: Path) -> None:
    state = run(_Line(spoil=0), LOOP, tmp_path, CPU, Chunk(until_step=1))
    fresh = _Line().build()
    for mine, theirs in zip(state.model.parameters(), fresh.parameters()):
        assert torch.equal(mine, theirs)
    run(_Line(spoil=0), LOOP, tmp_path, CPU, Chunk())
    assert all(torch.isfinite(p).all() for p in state.model.parameters())


def test_other_settings_and_damaged_files_are_named(tmp_path: Path) -> None:
    run(_Line(), LOOP, tmp_path, CPU, Chunk(until_step=2))
    with pytest.raises(CheckpointError, match=r"last\.safetensors.*line"):
        run(_Line(seed=5), LOOP, tmp_path, CPU, Chunk())
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        run(_Line(), LOOP, tmp_path, CPU, Chunk())


def test_averaged_weights_and_export(tmp_path: Path) -> None:
    state = run(_Line(), LOOP, tmp_path, CPU, Chunk())
    weights, settings, step = averaged_weights(tmp_path / "last.safetensors")
    assert step == 8
    assert settings["line"] == {"seed": 0}
    for name, value in state.average.items():
        assert torch.equal(weights[name], value)
    export_weights(tmp_path / "w.safetensors", weights, {"format": "x"})
    from safetensors.torch import load_file

    half = load_file(tmp_path / "w.safetensors")
    assert half["0.weight"].dtype == torch.float16
    assert half["1.num_batches_tracked"].dtype == torch.int64


def test_average_follows_the_model() -> None:
    model = nn.Linear(2, 1)
    average = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    update_average(average, model, 0.75)
    torch.testing.assert_close(average["weight"], 0.25 * model.weight.detach())


def test_schedule_and_weight_decay_groups() -> None:
    config = LoopConfig(steps=100, learning_rate=2.0, warmup=10, final_share=0.1)
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 9) == pytest.approx(2.0)
    assert learning_rate(config, 55) == pytest.approx(1.1)
    assert learning_rate(config, 100) == pytest.approx(0.2)
    assert learning_rate(config, 10_000) == pytest.approx(0.2)
    groups = make_optimizer(_Line().build(), config).param_groups
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]
    assert sum(len(g["params"]) for g in groups) == 6


def test_log_drops_what_lies_beyond_the_resumed_step_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "a": 2}\n{"step": 5, "a": 3}\n{"step": 6, "a"')
    log = MetricsLog(path, resume_step=4)
    log.add({"step": 5, "a": 9})
    assert read_log(path) == [{"step": 1, "a": 2}, {"step": 5, "a": 9}]
    assert json.loads(path.read_text().splitlines()[0])["a"] == 2


def test_plots_of_constant_and_missing_metrics(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "flat": 2}\n{"step": 2, "flat": 2, "other": NaN}\n')
    write_plots(path, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") == 1
    assert "nan" not in page


def test_weights_travel_in_parts(tmp_path: Path) -> None:
    weights = {f"w{k}": torch.randn(100, 10) for k in range(5)} | {"n": torch.tensor(3)}
    paths = export_parts(tmp_path / "p", weights, max_bytes=5000)
    assert len(paths) == 3
    assert all(path.stat().st_size < 6000 for path in paths)
    back = load_parts(tmp_path / "p")
    assert set(back) == set(weights)
    torch.testing.assert_close(back["w3"], weights["w3"], atol=2e-3, rtol=1e-3)
    assert digest_of(back) != digest_of(weights)
    assert digest_of(back) == digest_of(load_parts(tmp_path / "p"))
    paths[1].unlink()
    with pytest.raises(CheckpointError, match="a part is missing"):
        load_parts(tmp_path / "p")
    with pytest.raises(CheckpointError, match="no part-"):
        load_parts(tmp_path)


def test_orthogonalised_matrices_keep_their_directions_and_lose_their_stretch() -> None:
    matrices = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0))
    for given in (matrices, matrices.transpose(1, 2)):
        u, stretch, v = torch.linalg.svd(orthogonalised(given), full_matrices=False)
        assert float(stretch.min()) > 0.6
        assert float(stretch.max()) < 1.3
        old_u, _, old_v = torch.linalg.svd(given, full_matrices=False)
        torch.testing.assert_close(u @ v, old_u @ old_v, atol=1e-3, rtol=0)


def test_muon_steps_linear_layers_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4, bias=False))
    twin = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4, bias=False))
    twin.load_state_dict(model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = LoopConfig(learning_rate=1e-2, optimizer="muon")
    both = [(model, make_optimizer(model, config)), (twin, make_optimizer(twin, replace(config, optimizer="adamw")))]
    for step in range(3):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        for network, optimizer in both:
            optimizer.zero_grad()
            network(x).square().mean().backward()
            if step == 0:
                optimizer.step()
    moved = {name: value - before[name] for name, value in model.state_dict().items()}
    for name, value in twin.state_dict().items():
        if not name.endswith("weight") or value.ndim < 2:
            torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=0)
    unit = 1e-2 * 0.2 * 6**0.5
    for name in ("0.weight", "2.weight", "3.weight"):  # every direction that has a gradient by the same, decay aside
        stretch = torch.linalg.svdvals(moved[name] + 1e-2 * config.weight_decay * before[name])
        assert float(stretch[1]) > 0.6 * unit, name
        assert float(stretch[0]) < 1.3 * unit, name


def test_a_run_with_muon_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    loop = replace(LOOP, optimizer="muon")
    run(_Line(), loop, tmp_path / "whole", CPU, Chunk())
    for stop in (3, None):
        run(_Line(), loop, tmp_path / "parts", CPU, Chunk(until_step=stop))
    whole, parts = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
