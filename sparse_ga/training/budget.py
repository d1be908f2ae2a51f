"""A whole training in a given time: measure how fast this machine is, then small images, then large ones.

Small images cost a quarter of what images of twice the side do, and what a network learns from them holds for larger
ones (DUSt3R, arXiv 2312.14132, section 4, goes from 224 to 512 px the same way). The cosine schedule of each stage has
as many steps as fit into its share of the time, so that it ends when the time does.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparse_ga.training.checkpoints import averaged_weights, export_parts
from sparse_ga.training.compact_task import CompactTask, CompactTaskConfig
from sparse_ga.training.loop import Chunk, LoopConfig, make_optimizer, run
from sparse_ga.training.metrics import read_log

_MARGIN = 0.94
"""Share of a stage's time that its schedule is meant to take: steps are not all equally long."""


@dataclass(frozen=True)
class Stage:
    """Part of a training: how large images are, and its share of the time."""

    task: CompactTaskConfig
    share: float
    final_share: float
    """Learning rate at the end, as a share of the peak."""


def stages(task: CompactTaskConfig, first_share: float = 0.5) -> tuple[Stage, Stage]:
    """At half the side of `task`, with half the correspondences, then at its side; other objects in each."""
    half = task.side // 32 * 16  # a multiple of every patch
    small = dataclasses.replace(task, side=half, correspondences=task.correspondences // 2)
    large = dataclasses.replace(task, seed=task.seed + 1)
    return Stage(small, first_share, 0.1), Stage(large, 1 - first_share, 0.01)


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second, and how long it takes for a step, rendering included."""

    views_per_s: float
    pairs_per_s: float
    seconds_per_step: float


def seconds(work: Callable[[int], object], device: torch.device, count: int, warm_up: int = 2) -> float:
    """Mean wall time of a call after `warm_up` calls."""
    for index in range(warm_up):
        work(index)
    _wait(device)
    begun = time.perf_counter()
    for index in range(count):
        work(index + warm_up)
    _wait(device)
    return (time.perf_counter() - begun) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_speed(config: CompactTaskConfig, loop: LoopConfig, device: torch.device) -> Speed:
    """How fast `device` renders and learns, on a network and batches that are thrown away."""
    task = CompactTask(dataclasses.replace(config, repeats=10**6, seed=config.seed + 77), None)  # rendered once
    rendering = seconds(lambda index: task.batch(index * config.rendered_steps * 10**6, device), device, 2)
    model = task.build().to(device)
    optimizer = make_optimizer(model, loop)

    def learn(step: int) -> None:
        task.loss(model, step)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    learning = seconds(learn, device, 8)
    step = learning + rendering / (config.rendered_steps * config.repeats)
    views = config.objects * config.views
    return Speed(config.rendered_steps * views / rendering, views / 2 / step, step)


def train_within(
    minutes: float,
    plan: Sequence[Stage],
    loop: LoopConfig,
    folder: Path,
    device: torch.device,
    initial: dict[str, Tensor] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Tensor]:
    """Train all stages of `plan` in `minutes` and return the averaged weights.

    Leaves a folder for every stage (see `loop.run`), and the weights in `folder`/weights after each, in files that can
    be carried. A run that was cut off goes on in the stage it had reached, with the steps that were planned.
    """
    begun, passed = time.monotonic(), 0.0
    weights = initial
    places = [folder / f"side-{stage.task.side}" for stage in plan]
    for number, (stage, place) in enumerate(zip(plan, places)):
        passed += stage.share
        if any((later / "last.safetensors").is_file() for later in places[number + 1 :]):
            weights = averaged_weights(place / "last.safetensors")[0]
            continue
        place.mkdir(parents=True, exist_ok=True)
        left = 60 * minutes * passed - (time.monotonic() - begun)
        stage_loop = _scheduled(stage, loop, place / "plan.json", left, device, report)
        left = 60 * minutes * passed - (time.monotonic() - begun)
        task = CompactTask(stage.task, None, weights)
        state = run(task, stage_loop, place, device, Chunk(minutes=max(0.0, left / 60)))
        weights = {name: value.detach().cpu().clone() for name, value in state.average.items()}
        logged = [record for record in read_log(place / "metrics.jsonl") if "loss" in record]
        report(json.dumps({name: round(value, 4) for name, value in (logged[-1] if logged else {}).items()}))
        for path in export_parts(folder / "weights", weights):
            report(f"side {stage.task.side}, step {state.step} of {stage_loop.steps}: {path}")
    assert weights is not None
    return weights


def _scheduled(
    stage: Stage, loop: LoopConfig, plan: Path, left: float, device: torch.device, report: Callable[[str], None]
) -> LoopConfig:
    """`loop` with the steps that fit into the seconds `left`, as written in `plan` or else measured."""
    if plan.is_file():
        steps = int(json.loads(plan.read_text(encoding="utf-8"))["steps"])
    else:
        before = time.monotonic()
        speed = measure_speed(stage.task, loop, device)
        steps = max(10, int(_MARGIN * (left - (time.monotonic() - before)) / speed.seconds_per_step))
        figures = {"device": device_name(device), "side": stage.task.side, "steps": steps, **dataclasses.asdict(speed)}
        plan.write_text(json.dumps(figures), encoding="utf-8")
        report(json.dumps(figures))
    return scheduled(loop, steps, stage.final_share)


def scheduled(loop: LoopConfig, steps: int, final_share: float) -> LoopConfig:
    """`loop` over `steps`, with the warm-up and the moving average that suit so many."""
    return dataclasses.replace(
        loop,
        steps=steps,
        final_share=final_share,
        warmup=max(1, min(1000, steps // 10)),
        average_decay=max(0.0, min(0.9995, 1 - 20 / steps)),
    )


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
