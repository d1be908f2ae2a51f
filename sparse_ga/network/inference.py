"""A network made ready for inference on one device.

On a CPU, linear layers go through oneDNN with weights laid out once for its kernels, and the MLPs' GELU is fused: on
AMD processors 2 to 3 times faster than the BLAS that PyTorch uses for linear layers otherwise. The numbers agree to
rounding.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_ga.errors import InputError
from sparse_ga.network.blocks import Mlp
from sparse_ga.network.model import AsymmetricCroCo3DStereo, build_model

_TYPICAL_ROWS = 768  # tokens of a 512x384 image; the layout is chosen for about as many


class PackedLinear(nn.Module):
    """A linear layer, optionally followed by GELU, whose weight lies in oneDNN's own layout; inference only."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.shape = linear.weight.shape
        self.activation = "gelu" if gelu else "none"
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)
        self.bias = linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        if len(x) == 0:
            return x.new_zeros(0, self.shape[0])
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")


class PackedMlp(nn.Module):
    """`Mlp` of packed layers."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1 = PackedLinear(mlp.fc1, gelu=True)
        self.fc2 = PackedLinear(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        return self.fc2(self.fc1(x))


def resolve_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The transformer's type for `name` (auto, fp32, bf16): None is fp32. auto: bf16 on GPUs that compute in it.

    Raises `InputError` for bf16 on a device that does not compute in it (MPS before PyTorch 2.6 or macOS 14).
    """
    if name == "bf16":
        if not _computes_in_bf16(device):
            raise InputError(f"forward.precision bf16: not on {device} with this PyTorch; choose auto or fp32")
        return torch.bfloat16
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if name == "auto" and fast else None


def _computes_in_bf16(device: torch.device) -> bool:
    """Whether autocast to bf16 works on a device; some versions of PyTorch warn and leave it, some raise."""
    one = torch.ones(2, 2, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                return (one @ one).dtype is torch.bfloat16
        except (RuntimeError, TypeError):
            return False


def for_inference(
    model: AsymmetricCroCo3DStereo, device: torch.device, dtype: torch.dtype | None = None
) -> AsymmetricCroCo3DStereo:
    """A copy of `model` on `device`, without gradients, whose transformer computes in `dtype` (None: fp32).

    `model` is left alone; weights are shared where device, type and layout allow. On a CPU fp32 layers are packed, and
    the copy's state dict then lacks them. Heads are fp32 always.
    """
    copy = shared_copy(model).to(device)
    copy.compute_dtype = dtype
    if dtype is not None:
        for part in (copy.enc_blocks, copy.decoder_embed, copy.dec_blocks, copy.dec_blocks2):
            _linear_to(part, dtype)
    if device.type == "cpu" and packing_works():
        heads = (copy.downstream_head1, copy.downstream_head2)
        for module in (copy,) if dtype is None else heads:
            _pack(module)
    return copy


def shared_copy(model: AsymmetricCroCo3DStereo) -> AsymmetricCroCo3DStereo:
    """A second network on the same weights, in evaluation mode and without gradients."""
    with torch.device("meta"):
        copy = build_model(model.arch)
    copy.load_state_dict(model.state_dict(), strict=True, assign=True)
    return copy.eval().requires_grad_(False)


def packing_works() -> bool:
    """Whether this PyTorch has the packed kernels (they are internal to it) and they agree with the plain ones."""
    if not torch.backends.mkldnn.is_available():
        return False
    linear = nn.utils.skip_init(nn.Linear, 32, 48)
    nn.init.constant_(linear.bias, 0.5)
    linear.weight.data = torch.linspace(-0.2, 0.1, 48 * 32).view(48, 32)
    x = torch.linspace(-1, 1, 64 * 32).view(64, 32)
    try:
        with torch.no_grad():
            return torch.allclose(PackedLinear(linear, gelu=True)(x), F.gelu(linear(x)), atol=1e-5)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


def _linear_to(module: nn.Module, dtype: torch.dtype) -> None:
    """Linear layers in `dtype`, once, so that autocast need not cast them at every call."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(dtype)


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Mlp):
            setattr(module, name, PackedMlp(child))
        elif isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)
