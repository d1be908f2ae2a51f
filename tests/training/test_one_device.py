"""Rendering and training keep to one device: run on PyTorch's `meta` device, a stand-in for a GPU on any machine.

Its tensors have shapes but no values. Every operation is checked for tensors of two devices, which a GPU would refuse;
where a value is asked for, some value is given.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparse_ga.synthetic.procedural import tracing
from sparse_ga.training.compact_task import CompactTask, CompactTaskConfig
from sparse_ga.training.loop import LoopConfig, make_optimizer

META = torch.device("meta")
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices; values that are read are True or 3, tensors that are copied 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 3
        if func in _COPIES:
            if args[0].is_meta and str(kwargs.get("device")) == "cpu":
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        else:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim > 0]
            assert len({x.device for x in tensors}) < 2, f"{func}: tensors of two devices"
        return func(*args, **kwargs)


class _Generator:
    """A generator that says it is on another device; numbers are drawn on the CPU."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.inner = torch.device(device), _CPU_GENERATOR()

    def manual_seed(self, seed: int) -> _Generator:
        self.inner.manual_seed(seed)
        return self


_CPU_GENERATOR = torch.Generator


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", _Generator)
    for name in ("rand", "randn"):
        draw = getattr(torch, name)

        def drawn(shape: Any, generator: _Generator, device: torch.device, draw: Any = draw) -> torch.Tensor:
            return draw(shape, generator=generator.inner).to(device)

        monkeypatch.setattr(torch, name, drawn)


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_rendering_and_training_keep_to_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_ROUNDS", 1)  # the rounds are alike
    config = CompactTaskConfig("tiny", 64, 2, 4, rendered_steps=1, repeats=10, grid=16, correspondences=32)
    task = CompactTask(config, None)
    modes = set()
    with _OneDevice():
        model = task.build().to(META)
        for step, name in enumerate(["muon", "adamw", "muon", "adamw"]):
            optimizer = make_optimizer(model, LoopConfig(optimizer=name))  # type: ignore[arg-type]
            loss, measured = task.loss(model, step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            modes.add(measured["mode"])
            assert loss.device == META
    assert len(modes) > 1


def test_tensors_of_two_devices_are_noticed() -> None:
    with _OneDevice(), pytest.raises(AssertionError, match="two devices"):
        torch.ones(3, 3) @ torch.ones(3, 3, device=META)
