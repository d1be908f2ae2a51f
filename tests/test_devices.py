"""Which device a setting means: the best that is there, and a clear word where there is none."""

from __future__ import annotations

import pytest
import torch

from sparse_ga.devices import resolve_device
from sparse_ga.errors import InputError
from sparse_ga.network import inference
from sparse_ga.network.inference import resolve_precision


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool) -> None:
    """A machine with so many CUDA devices, and with or without Apple's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "accelerators", "best"),
    [
        (0, False, ("cuda", "mps"), "cpu"),
        (0, True, ("cuda", "mps"), "mps"),
        (2, True, ("cuda", "mps"), "cuda"),
        (0, True, ("cuda",), "cpu"),
    ],
)
def test_auto_is_the_best_that_is_there(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, accelerators: tuple[str, ...], best: str
) -> None:
    pretend(monkeypatch, cuda, mps)
    assert resolve_device("auto", accelerators) == torch.device(best)


def test_devices_that_are_not_there_or_not_usable_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2, True)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("mps") == torch.device("mps")
    for name in ("cuda:2", "mps:1", "cpu:1"):
        with pytest.raises(InputError, match=f"{name}.*no such device here"):
            resolve_device(name)
    with pytest.raises(InputError, match="'mps' cannot be used for this; choose from auto, cpu, cuda, cuda:N"):
        resolve_device("mps", ("cuda",))
    with pytest.raises(InputError, match="unknown"):
        resolve_device("gpu")
    pretend(monkeypatch, 0, False)
    for name in ("cuda", "mps"):
        with pytest.raises(InputError, match="choose auto or cpu"):
            resolve_device(name)


def test_bf16_where_autocast_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("bf16", cpu) is torch.bfloat16
    assert resolve_precision("auto", cpu) is None
    assert resolve_precision("fp32", cpu) is None
    monkeypatch.setattr(inference, "_computes_in_bf16", lambda device: False)
    with pytest.raises(InputError, match="choose auto or fp32"):
        resolve_precision("bf16", cpu)
