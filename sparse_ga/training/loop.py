"""A training loop that can be cut off anywhere: cosine schedule, moving average, a checkpoint a minute.

Every random draw of a step comes from (seed, step) alone, so a resumed run repeats what an uninterrupted one does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sparse_ga.training import checkpoints
from sparse_ga.training.checkpoints import TrainState
from sparse_ga.training.metrics import MetricsLog, Record, write_plots
from sparse_ga.training.muon import MuonAdamW, hidden_matrices

OptimizerName = Literal["adamw", "muon"]
Measured = Mapping[str, "float | Tensor"]
"""What a step measures: numbers, or tensors () on the device."""


@dataclass(frozen=True)
class LoopConfig:
    """Schedule and optimiser of a run."""

    steps: int = 10000
    """Length of the whole schedule in steps, however many chunks it is run in."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    final_share: float = 0.01
    """Learning rate at the end, as a share of the peak."""
    warmup: int = 200
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Weight decay, of matrices and kernels only."""
    optimizer: OptimizerName = "adamw"
    """AdamW for all, or Muon for the weights of linear layers and AdamW for the rest."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average_decay: float = 0.999
    """Decay of the exponential moving average of the weights."""
    validate_every: int = 1000
    """Steps between validations of the averaged weights."""
    log_every: int = 20
    """Steps between records of the training metrics, which are means over them."""


@dataclass(frozen=True)
class Chunk:
    """How far to go this time; changes nothing but where a run pauses."""

    minutes: float | None = None
    """Stop after this many minutes of wall time."""
    until_step: int | None = None
    """Stop at this step."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints."""


class Task(Protocol):
    """What is learnt: a network, its loss at a step, and its validation."""

    def settings(self) -> dict[str, object]:
        """All that determines the task, as JSON values."""
        ...

    def build(self) -> nn.Module:
        """The network with its initial weights."""
        ...

    def loss(self, model: nn.Module, step: int) -> tuple[Tensor, Measured]:
        """Loss () of the step's batch, and what to log; tensors are read when they are logged, not to wait for them."""
        ...

    def validate(self, model: nn.Module) -> Record:
        """Metrics on fixed scenes."""
        ...


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to `final_share` of the peak at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    part = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    low = config.final_share
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * part)))


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """The optimiser of all parameters; vectors (biases, norms) are not decayed."""
    matrices = {id(p) for p in hidden_matrices(model)} if config.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if id(p) not in matrices]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if matrices:
        linear = [p for p in model.parameters() if id(p) in matrices]
        groups.append({"params": linear, "weight_decay": config.weight_decay, "orthogonal": True})
    fused = next(model.parameters()).is_cuda
    return MuonAdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=fused)


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move `average` towards the model's state in place; counters are copied."""
    state = model.state_dict()
    moving = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in moving], [state[name] for name in moving], 1 - decay)
    for name in state.keys() - set(moving):
        average[name].copy_(state[name])


class _StopFlag:
    """While entered, turns SIGTERM into a request to stop after the current step."""

    def __init__(self) -> None:
        self.requested = False
        self._in_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> _StopFlag:
        if self._in_main:  # elsewhere only time and step limits stop the run
            self._before = signal.signal(signal.SIGTERM, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_main:
            signal.signal(signal.SIGTERM, self._before)

    def _raise(self, _signum: int, _frame: FrameType | None) -> None:
        self.requested = True


def averaged(task: Task, average: dict[str, Tensor], like: nn.Module) -> nn.Module:
    """A copy of the network with the averaged weights, in evaluation mode, on the device of `like`."""
    model = task.build().to(next(like.parameters()).device)
    model.load_state_dict(average)
    return model.eval()


def _begin(task: Task, config: LoopConfig, folder: Path, device: torch.device) -> tuple[TrainState, str]:
    """The state at the last checkpoint in `folder`, or a fresh one, and the settings text that belongs to it."""
    settings = json.dumps(task.settings() | {"loop": dataclasses.asdict(config)}, sort_keys=True)
    model = task.build().to(device)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    state = TrainState(0, model, average, make_optimizer(model, config))
    path = folder / "last.safetensors"
    return (checkpoints.restore(path, state, settings) if path.is_file() else state), settings


def _train_step(task: Task, config: LoopConfig, state: TrainState) -> Measured:
    """One optimiser step; a step whose gradient is not finite changes nothing and is counted."""
    model, optimizer, step = state.model, state.optimizer, state.step
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, measured = task.loss(model.train(), step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm))
    finite = math.isfinite(norm)
    if finite:
        optimizer.step()
    update_average(state.average, model, min(config.average_decay, (1 + step) / (10 + step)))
    return {
        **measured,
        "loss": loss.detach(),
        "gradient_norm": norm if finite else 0.0,
        "skipped": float(not finite),
    }


def _mean(records: list[Measured]) -> Record:
    return {name: float(sum(r[name] for r in records)) / len(records) for name in records[0]}


@dataclass(frozen=True, eq=False)
class _Clock:
    """When a chunk began and how far it may go."""

    chunk: Chunk
    end: int
    begun: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def out_of_time(self) -> bool:
        return self.chunk.minutes is not None and self.seconds > 60 * self.chunk.minutes


def _record(log: MetricsLog, config: LoopConfig, state: TrainState, recent: list[Measured], seconds: float) -> None:
    rate = learning_rate(config, state.step - 1)
    log.add({"step": state.step, "learning_rate": rate, "seconds": seconds, **_mean(recent)})


def _validate(task: Task, log: MetricsLog, state: TrainState) -> None:
    metrics = task.validate(averaged(task, state.average, state.model))
    log.add({"step": state.step, **{f"val_{name}": value for name, value in metrics.items()}})
    write_plots(log.path, log.path.with_name("plots.html"))


def run(task: Task, config: LoopConfig, folder: Path, device: torch.device, chunk: Chunk) -> TrainState:
    """Train from the last checkpoint in `folder` until the schedule or the chunk ends; returns the state reached.

    Leaves last.safetensors (to resume), metrics.jsonl and plots.html in `folder`. Settings that differ from those of
    the checkpoint raise `CheckpointError`.
    """
    state, settings = _begin(task, config, folder, device)
    log, path = MetricsLog(folder / "metrics.jsonl", state.step), folder / "last.safetensors"
    end = config.steps if chunk.until_step is None else min(config.steps, chunk.until_step)
    clock, saved = _Clock(chunk, end, time.monotonic()), 0.0
    recent: list[Measured] = []
    with _StopFlag() as stop:
        while state.step < clock.end and not stop.requested and not clock.out_of_time():
            recent.append(_train_step(task, config, state))
            state = dataclasses.replace(state, step=state.step + 1)
            if state.step % config.log_every == 0:
                _record(log, config, state, recent, clock.seconds)
                recent = []
            if state.step % config.validate_every == 0 or state.step == config.steps:
                _validate(task, log, state)
            if clock.seconds - saved > chunk.checkpoint_seconds:
                checkpoints.save(path, state, settings)
                saved = clock.seconds
        checkpoints.save(path, state, settings)
    write_plots(log.path, folder / "plots.html")
    return state
