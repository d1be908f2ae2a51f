"""Small networks and checkpoints for tests."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sparse_ga.network.architecture import Architecture
from sparse_ga.network.model import AsymmetricCroCo3DStereo, build_model

TINY = Architecture(
    model="AsymmetricCroCo3DStereo",
    img_size=(64, 64),
    head_type="linear",
    enc_embed_dim=16,
    enc_depth=1,
    enc_num_heads=2,
    dec_embed_dim=16,
    dec_depth=2,
    dec_num_heads=2,
)
CALL = (
    "AsymmetricCroCo3DStereo(pos_embed='RoPE100', img_size=(64, 64), head_type='linear', output_mode='pts3d', "
    "depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), enc_embed_dim=16, enc_depth=1, enc_num_heads=2, "
    "dec_embed_dim=16, dec_depth=2, dec_num_heads=2, freeze='none')"
)


def small_mast3r(head: str, depth: int = 4, **changes: object) -> Architecture:
    """A MASt3R (catmlp+dpt, catconv) or DUSt3R (linear, dpt) of a few thousand parameters."""
    mast3r = head in ("catmlp+dpt", "catconv")
    arguments: dict[str, object] = {
        "head_type": head,
        "output_mode": "pts3d+desc8" if mast3r else "pts3d",
        "enc_embed_dim": 32,
        "enc_depth": 2,
        "enc_num_heads": 2,
        "dec_embed_dim": 24,
        "dec_depth": depth,
        "dec_num_heads": 2,
        "two_confs": mast3r,
        "dpt_width": 16,
    }
    if mast3r:
        arguments["desc_conf_mode"] = ["exp", 0, "inf"]
    arguments.update(changes)
    return Architecture.from_mapping(arguments)


def random_model(arch: Architecture, seed: int = 0) -> AsymmetricCroCo3DStereo:
    """A network with seeded random weights, for inference."""
    torch.manual_seed(seed)
    model = build_model(arch)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def write_pth(model: AsymmetricCroCo3DStereo, path: Path, call: str = CALL) -> Path:
    """A checkpoint as the published ones are: a pickle with `args` (a namespace) and `model`."""
    args = argparse.Namespace(model=call, lr=1e-4, output_dir="out")
    torch.save({"args": args, "model": model.state_dict(), "epoch": 3, "best_so_far": float("inf")}, path)
    return path
