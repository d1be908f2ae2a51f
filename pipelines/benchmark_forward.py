"""How fast the forward is, against a plain loop over pairs, in one run.

    benchmark_forward.py                       # ViT-Large, 512x384, complete graph of 8 views; 10 minutes on 2 cores
    benchmark_forward.py --device cuda         # bf16 against the fp32 loop
    benchmark_forward.py --small               # a small network, to see that it works

The plain loop encodes both images again for each pair, decodes each order on its own, computes attention with its full
matrix and runs whole-image heads, all in fp32. It is timed on a few pairs and extrapolated in proportion; ours is run
in full, in turns with it. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations

import numpy as np
import torch

from sparse_ga.config import ForwardConfig
from sparse_ga.network.architecture import Architecture
from sparse_ga.network.masking import token_grid
from sparse_ga.network.model import AsymmetricCroCo3DStereo, build_model
from sparse_ga.network.reference import plain_both_orders
from sparse_ga.predictors.base import Features
from sparse_ga.predictors.mast3r import Mast3rPredictor
from sparse_ga.products import Array, View

VIT_LARGE = Architecture.parse(
    "AsymmetricMASt3R(pos_embed='RoPE100', img_size=(512, 512), head_type='catmlp+dpt', output_mode='pts3d+desc24', "
    "depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), enc_embed_dim=1024, enc_depth=24, enc_num_heads=16, "
    "dec_embed_dim=768, dec_depth=12, dec_num_heads=12, two_confs=True, desc_conf_mode=('exp', 0, inf))"
)
SMALL = replace(
    VIT_LARGE, enc_embed_dim=192, enc_depth=4, enc_num_heads=4, dec_embed_dim=128, dec_depth=4, dec_num_heads=4,
    dpt_width=64,
)  # fmt: skip


@dataclass(frozen=True)
class ForwardBenchmarkConfig:
    """What is timed."""

    arch: Architecture = VIT_LARGE
    views: int = 8
    size: tuple[int, int] = (384, 512)
    """Height and width in px."""
    plain_pairs: int = 4
    """Pairs the plain loop is timed on, and rounds in which it and ours take turns."""
    foreground: float = 0.25
    """Share of the image that the compact object (a disc) covers."""
    device: str = "cpu"
    threads: int | None = None
    """Threads on a CPU. Unset: as PyTorch has them."""


@dataclass(frozen=True)
class ForwardBenchmark:
    """Seconds for all pairs. The plain loop's are extrapolated from `plain_pairs` pairs; the others are measured."""

    pairs: int
    plain_pairs: int
    plain_s: float
    unmasked_s: float
    unmasked_encode_s: float
    masked_s: float
    masked_encode_s: float
    foreground: float
    foreground_tokens: float
    precision: str
    device: str
    peak_memory_gb: float | None

    @property
    def unmasked_ratio(self) -> float:
        """How many times faster than the plain loop, without masks."""
        return self.plain_s / self.unmasked_s

    @property
    def masked_ratio(self) -> float:
        """How many times faster than the plain loop, with the object's masks in `tokens` mode."""
        return self.plain_s / self.masked_s

    def format(self) -> str:
        """A table for people."""
        memory = "" if self.peak_memory_gb is None else f", peak {self.peak_memory_gb:.1f} GB"
        rows = [
            ("plain fp32 loop", self.plain_s, f"timed on {self.plain_pairs} pairs and extrapolated"),
            ("without masks", self.unmasked_s, f"{self.unmasked_ratio:.2f} times faster"),
            (
                f"object on {self.foreground:.0%}, tokens",
                self.masked_s,
                f"{self.masked_ratio:.2f} times faster ({self.foreground_tokens:.0%} of the patches)",
            ),
        ]
        title = f"forward, {self.pairs} pairs, {self.device}, ours in {self.precision}{memory}"
        return "\n".join([title, *(f"  {name:22s}{time_s:9.1f} s   {note}" for name, time_s, note in rows)])


def random_network(arch: Architecture, seed: int = 0) -> AsymmetricCroCo3DStereo:
    """A network with random weights of moderate size."""
    with torch.device("meta"):
        model = build_model(arch)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.5 / max(parameter[0].numel(), 1) ** 0.5, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1.0)
    return model


def random_views(config: ForwardBenchmarkConfig, masked: bool) -> list[View]:
    """Views of noise; masked ones with a disc in the middle that covers the foreground share."""
    rng = np.random.default_rng(0)
    height, width = config.size
    y, x = np.mgrid[:height, :width]
    radius = (config.foreground * height * width / np.pi) ** 0.5
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2
    mask = disc if masked else np.ones_like(disc)
    views = []
    for n in range(config.views):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        views.append(View(f"view {n}", image, mask, None, np.eye(3), (width, height), f"{n} {masked}"))
    return views


class Plain:
    """The plain loop on one device: numpy in and out, as ours."""

    def __init__(self, model: AsymmetricCroCo3DStereo, device: torch.device) -> None:
        self.model, self.device = model.to(device), device

    def _image(self, view: View) -> torch.Tensor:
        return torch.from_numpy(np.array(view.image)).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1

    def predict(self, first: View, second: View) -> list[Array]:
        """Everything of one pair, both orders."""
        with torch.inference_mode():
            outputs = plain_both_orders(self.model, self._image(first), self._image(second))
        parts = [(o.points, o.confidence, o.descriptors, o.descriptor_confidence) for o in outputs]
        return [part.cpu().numpy() for output in parts for part in output if part is not None]


class Ours:
    """Encode every view once, then pairs, as many at a time as memory holds."""

    def __init__(self, predictor: Mast3rPredictor, views: Sequence[View]) -> None:
        self.predictor, self.views = predictor, views
        self.features: list[Features] = []

    def encode(self) -> None:
        """Features of every view, kept in memory."""
        self.features = [self.predictor.encode(view) for view in self.views]

    def predict(self, pairs: Sequence[tuple[int, int]]) -> None:
        """All these pairs, both orders."""
        waiting = list(pairs)
        while waiting:
            views_i, views_j = [self.views[i] for i, _ in waiting], [self.views[j] for _, j in waiting]
            count = self.predictor.pairs_at_once(views_i, views_j)
            batch, waiting = waiting[:count], waiting[count:]
            features_i, features_j = [self.features[i] for i, _ in batch], [self.features[j] for _, j in batch]
            self.predictor.predict_batch(views_i[:count], views_j[:count], features_i, features_j)


def seconds(task: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    start = time.perf_counter()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@dataclass
class Totals:
    """Seconds gathered so far."""

    plain: float = 0.0
    unmasked: float = 0.0
    unmasked_encode: float = 0.0
    masked: float = 0.0
    masked_encode: float = 0.0


def gather(plain: Plain, unmasked: Ours, masked: Ours, rounds: int) -> Totals:
    """Time all three in turn, a share of the pairs each round: a machine that gets busier slows all of them alike."""
    device, views = plain.device, unmasked.views
    pairs = list(combinations(range(len(views)), 2))
    total = Totals()
    if device.type == "cuda":  # kernels are chosen and loaded at the first call
        plain.predict(views[0], views[1])
        unmasked.predictor.predict(views[0], views[1])
        masked.predictor.predict(masked.views[0], masked.views[1])
    total.masked_encode = seconds(masked.encode, device)
    total.unmasked_encode = seconds(unmasked.encode, device)
    for n in range(rounds):
        share = pairs[n::rounds]
        i, j = share[0]
        total.plain += seconds(partial(plain.predict, views[i], views[j]), device)
        total.unmasked += seconds(partial(unmasked.predict, share), device)
        total.masked += seconds(partial(masked.predict, share), device)
    return total


def benchmark_forward(config: ForwardBenchmarkConfig | None = None) -> ForwardBenchmark:
    """Time the plain loop and ours, without masks and with a compact object's, in this process."""
    config = config or ForwardBenchmarkConfig()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = random_network(config.arch)
    predictor = Mast3rPredictor(model, ForwardConfig(device=config.device))
    device = predictor.device
    views = random_views(config, masked=True)
    pairs = config.views * (config.views - 1) // 2
    plain_pairs = min(config.plain_pairs, pairs)
    total = gather(
        Plain(model, device), Ours(predictor, random_views(config, False)), Ours(predictor, views), plain_pairs
    )
    grid = token_grid(torch.from_numpy(views[0].mask), config.size, config.arch.patch_size, "tokens")
    cuda = device.type == "cuda"
    return ForwardBenchmark(
        pairs=pairs,
        plain_pairs=plain_pairs,
        plain_s=total.plain / plain_pairs * pairs,
        unmasked_s=total.unmasked + total.unmasked_encode,
        unmasked_encode_s=total.unmasked_encode,
        masked_s=total.masked + total.masked_encode,
        masked_encode_s=total.masked_encode,
        foreground=float(views[0].mask.mean()),
        foreground_tokens=grid.length / grid.size,
        precision="bf16" if predictor.model.compute_dtype is torch.bfloat16 else "fp32",
        device=torch.cuda.get_device_name(device) if cuda else f"{device.type}, {torch.get_num_threads()} threads",
        peak_memory_gb=torch.cuda.max_memory_allocated(device) / 1e9 if cuda else None,
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--views", type=int, default=8, help="views of the complete graph")
    parser.add_argument("--plain-pairs", type=int, default=4, help="pairs the plain loop is timed on")
    parser.add_argument("--threads", type=int, help="threads on a CPU")
    parser.add_argument("--small", action="store_true", help="a small network instead of ViT-Large")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    result = benchmark_forward(
        ForwardBenchmarkConfig(
            arch=SMALL if args.small else VIT_LARGE,
            views=args.views,
            plain_pairs=args.plain_pairs,
            device=args.device,
            threads=args.threads,
        )
    )
    print(json.dumps(asdict(result), indent=1) if args.json else result.format())
    return 0


if __name__ == "__main__":
    sys.exit(main())
