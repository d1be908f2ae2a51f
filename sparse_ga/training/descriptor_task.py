"""Learning dense descriptors from procedural pairs: batches, loss, and validation against nothing but geometry."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ga.matching.dense import coarse_matches, match_maps
from sparse_ga.network.descriptor_cnn import (
    STRIDE,
    DenseDescriptor,
    DescriptorCNN,
    DescriptorConfig,
    cut_out,
    normalise,
    square_around,
)
from sparse_ga.products import Array, PairMatches
from sparse_ga.synthetic.procedural.bundle import Draw
from sparse_ga.synthetic.procedural.correspondences import correspond, relative_pose, unproject
from sparse_ga.synthetic.procedural.pool import Pool
from sparse_ga.training.checkpoints import digest_of
from sparse_ga.training.losses import info_nce, local_nce, reliability_loss
from sparse_ga.training.metrics import Record
from sparse_ga.training.validation import UnseenPair, score_matches, summarise_matches, unseen_pairs


@dataclass(frozen=True)
class DescriptorTaskConfig:
    """Batches of the descriptor network's training."""

    pairs: int = 8
    """Pairs in a batch."""
    correspondences: int = 384
    """Correspondences of a pair that enter the loss."""
    min_visible: int = 60
    """Pairs with fewer pixels seen by both views are drawn again."""
    max_roll_deg: float = 55.0
    """Relative rolls within this are drawn; the rest is left to quarter turns."""
    ignore_px: float = 2.5
    """Candidates nearer than this to the right one are neither right nor wrong (px of the cut-out)."""
    windows: int = 96
    """Correspondences of a pair whose exact place is learnt as well."""
    window_px: int = 3
    """Half the side of the window in which it is looked for."""
    window_sharpness: float = 4.0
    """Inverse temperature within windows, as a multiple of that between correspondences."""
    window_weight: float = 0.5
    """Weight of that loss; 0 leaves it out."""
    first_objects: int = 200
    """Objects the first step draws from."""
    objects_per_step: float = 0.2
    """How many more objects every step may draw from."""
    unseen_objects: int = 40
    """Objects of the validation stream."""
    seed: int = 0
    """Seed of initial weights and batches."""


@dataclass(frozen=True, eq=False)
class PairSample:
    """One training pair, cut out: inputs and correspondences in px of the cut-outs."""

    images: Tensor  # (2, 3, S, S) in [0, 1]
    masks: Tensor  # (2, S, S) bool
    xy: Tensor  # (2, N, 2)
    valid: Tensor  # (N,)


def relative_roll(object_from_a: Tensor, object_from_b: Tensor) -> float:
    """In-plane angle in radians that turns directions of view a's picture into those of view b's; poses (4, 4)."""
    r = relative_pose(object_from_a[None], object_from_b[None])[0]
    return math.atan2(float(r[1, 0] - r[0, 1]), float(r[0, 0] + r[1, 1]))


def _cut(mask: Array, angle: float, jitter: Tensor, size: int) -> Tensor:
    """image_from_cut (3, 3): a square around the mask, moved and scaled by `jitter` (3,) and turned by `angle`."""
    centre, side = square_around(mask)
    scale = side / size * float(1 + 0.12 * jitter[0])
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    half = (size - 1) / 2
    middle = torch.from_numpy(centre) + jitter[1:].double() * 0.05 * side
    linear = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    result = torch.eye(3, dtype=torch.float64)
    result[:2, :2], result[:2, 2] = linear, middle - linear @ torch.tensor([half, half], dtype=torch.float64)
    return result


def _pick(rows: dict[str, Tensor], pair: tuple[int, int], draw: Draw, count: int) -> tuple[Tensor, Tensor]:
    """Pixels (2, N, 2) of view a, drawn from its object, and where they lie in view b; whether b sees them (N,)."""
    a, b = pair
    on = torch.nonzero(rows["mask"][a])  # (M, 2) as (y, x)
    wanted = 4 * count
    chosen = on[draw.choice([1.0] * len(on), wanted)] if len(on) else on.new_zeros((wanted, 2))
    points = unproject(rows["intrinsics"][a : a + 1], rows["depth"][a : a + 1])[0]
    picked = points[chosen[:, 0], chosen[:, 1]]
    b_from_a = relative_pose(rows["object_from_cam"][a : a + 1], rows["object_from_cam"][b : b + 1])
    on_object = torch.full((1, wanted), len(on) > 0)
    found = correspond(picked[None], on_object, b_from_a, rows["intrinsics"][b : b + 1], rows["depth"][b : b + 1])
    order = torch.argsort((~found.visible[0]).to(torch.uint8), stable=True)[:count]
    xy = torch.stack([chosen.flip(1).float(), found.xy[0]])[:, order]  # (2, N, 2)
    return xy, found.visible[0][order]


def make_pair(pool: Pool, config: DescriptorTaskConfig, size: int, step: int, slot: int) -> PairSample:
    """Training pair number `slot` of the step; depends on nothing else but the pool and the seed."""
    draw = Draw(torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 64 + slot))
    for _ in range(20):
        rows = pool.rows(int(draw.uniform(0, config.first_objects + config.objects_per_step * step)))
        a, b = torch.randperm(pool.views, generator=draw.generator)[:2].tolist()
        xy, visible = _pick(rows, (a, b), draw, config.correspondences)
        if int(visible.sum()) >= config.min_visible:
            break
    views = torch.tensor([a, b])
    masks = torch.where(draw.chance(0.5, 1)[0], rows["mask"][views], rows["mask_imperfect"][views])
    limit = math.radians(config.max_roll_deg)
    first = float(draw.uniform(-math.pi, math.pi))
    roll = relative_roll(rows["object_from_cam"][a], rows["object_from_cam"][b])
    second = first + roll + float(draw.uniform(-limit, limit))
    jitter = draw.uniform(-1, 1, 2, 3)
    cuts = torch.stack([_cut(m.numpy(), t, j, size) for m, t, j in zip(masks, (first, second), jitter)])
    images, cut_masks = cut_out(rows["image"][views].float() / 255, masks, cuts, size)
    linear = torch.linalg.inv(cuts)
    homogeneous = torch.cat([xy, torch.ones_like(xy[..., :1])], -1).double()
    moved = (homogeneous @ linear.transpose(1, 2))[..., :2].float()
    inside = ((moved > 0) & (moved < size - 1)).all(-1).all(0)
    return PairSample(_varied(images, draw), cut_masks, moved, visible & inside)


def _varied(images: Tensor, draw: Draw) -> Tensor:
    """Images (2, 3, S, S) with contrast, tone and colour changed a little, each on its own."""
    gamma = 2 ** draw.uniform(-0.6, 0.6, 2, 1, 1, 1)
    tint = 1 + 0.1 * draw.uniform(-1, 1, 2, 3, 1, 1)
    grey = draw.chance(0.15, 1, 1, 1, 1)
    images = (images.clamp(1e-4, 1) ** gamma * tint).clamp(0, 1)
    images = torch.where(grey, images.mean(1, keepdim=True).expand_as(images), images)
    return (images + draw.uniform(0, 0.03, 2, 1, 1, 1) * draw.normal(*images.shape)).clamp(0, 1)


def at_pixels(maps: Tensor, xy: Tensor) -> Tensor:
    """Values (B, N, C) of maps (B, C, h, w) at pixels (B, N, 2) of the network's input."""
    size = STRIDE * maps.shape[-1]
    grid = ((2 * xy + 1) / size - 1)[:, :, None]
    return F.grid_sample(maps, grid, align_corners=False, padding_mode="border")[..., 0].transpose(1, 2)


def window_loss(
    maps: Tensor, described: Tensor, xy: Tensor, valid: Tensor, scale: Tensor, config: DescriptorTaskConfig, step: int
) -> Tensor:
    """`local_nce` () of both directions, in windows that are off the truth by a random amount.

    `maps` (2 B, D, h, w) of views a and b in turn; `described` (B, 2, N, D) at correspondences `xy` (B, 2, N, 2), of
    which `valid` (B, N) bool count: where a match is not found at all, nothing can be learnt about its exact place.
    """
    count, reach = min(config.windows, xy.shape[2]), config.window_px
    order = torch.argsort((~valid).to(torch.uint8), dim=1, stable=True)[:, :count]  # (B, n)
    valid = torch.gather(valid, 1, order)
    xy = torch.gather(xy, 2, order[:, None, :, None].expand(-1, 2, -1, 2))
    described = torch.gather(described, 2, order[:, None, :, None].expand(-1, 2, -1, described.shape[-1]))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    off = (2 * torch.rand(len(xy), 2, count, 2, generator=generator) - 1).to(xy.device) * (reach - 1)
    axis = torch.arange(-reach, reach + 1, dtype=xy.dtype, device=xy.device)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)  # (K, 2)
    target = (1 - (places + off[..., None, :]).abs()).clamp_min(0).prod(-1)  # bilinear weights of the truth
    around = xy[:, :, :, None] + off[..., None, :] + places  # (B, 2, n, K, 2)
    sampled = at_pixels(maps, around.flatten(0, 1).flatten(1, 2)).unflatten(1, (count, -1))  # (2 B, n, K, D)
    sampled = F.normalize(sampled, dim=-1).unflatten(0, (-1, 2))
    sharp = config.window_sharpness * scale
    there = local_nce(described[:, 0], sampled[:, 1], target[:, 1], valid, sharp)
    return 0.5 * (there + local_nce(described[:, 1], sampled[:, 0], target[:, 0], valid, sharp))


def _scale(model: nn.Module) -> Tensor:
    assert isinstance(model, DescriptorCNN)
    return model.scale


class DescriptorTask:
    """InfoNCE on correspondences, and a reliability that learns which of them come out right."""

    def __init__(
        self,
        network: DescriptorConfig,
        config: DescriptorTaskConfig,
        pools: tuple[Pool, Pool],
        initial: dict[str, Tensor] | None = None,
    ) -> None:
        self.network, self.config, (self.pool, self.unseen), self.initial = network, config, pools, initial

    def settings(self) -> dict[str, object]:
        """Network, batches, what is rendered, and which weights it starts from."""
        settings: dict[str, object] = {
            "network": dataclasses.asdict(self.network),
            "task": dataclasses.asdict(self.config),
        }
        if self.initial is not None:
            settings["initial"] = digest_of(self.initial)
        for name, pool in (("pool", self.pool), ("unseen", self.unseen)):
            settings[name] = {"seed": pool.seed, **dataclasses.asdict(pool.config)}
        return json.loads(json.dumps(settings))

    def build(self) -> nn.Module:
        """The network with the weights given at the start, or random ones that depend on the seed only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = DescriptorCNN(self.network)
        if self.initial is not None:
            model.load_state_dict(self.initial)
        for kernel in model.parameters():
            if kernel.ndim == 4:
                kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        return model

    def loss(self, model: nn.Module, step: int) -> tuple[Tensor, Record]:
        """InfoNCE and reliability loss of the step's pairs."""
        size, device = self.network.size, next(model.parameters()).device
        samples = [make_pair(self.pool, self.config, size, step, slot) for slot in range(self.config.pairs)]
        images = torch.cat([s.images for s in samples])
        inputs = normalise(images, torch.cat([s.masks for s in samples])).to(device)
        xy = torch.stack([s.xy for s in samples]).to(device)  # (B, 2, N, 2)
        valid = torch.stack([s.valid for s in samples]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            maps, logits = model(inputs.contiguous(memory_format=torch.channels_last))
        described = F.normalize(at_pixels(maps, xy.flatten(0, 1)), dim=-1).unflatten(0, (-1, 2))
        trust = at_pixels(logits[:, None], xy.flatten(0, 1))[..., 0].unflatten(0, (-1, 2))  # (B, 2, N)
        pair, scale = (described[:, 0], described[:, 1]), _scale(model)
        found = info_nce(pair, (xy[:, 0], xy[:, 1]), valid, scale, self.config.ignore_px)
        doubt = reliability_loss(trust[:, 0], found.correct, valid) + reliability_loss(
            trust[:, 1], found.correct, valid
        )
        record = {"nce": float(found.loss.detach()), "accuracy": float(found.accuracy), "doubt": float(doubt.detach())}
        loss = found.loss + 0.1 * doubt
        if self.config.window_weight > 0:
            local = window_loss(maps, described, xy, found.correct, scale, self.config, step)
            loss, record = loss + self.config.window_weight * local, record | {"local": float(local.detach())}
        return loss, record | {"scale": float(scale.detach())}

    def validate(self, model: nn.Module) -> Record:
        """Reciprocal matches on unseen objects, 20 to 60 degrees apart."""
        assert isinstance(model, DescriptorCNN)
        describer = DenseDescriptor(model, "validation")
        pairs = unseen_pairs(self.unseen, self.config.unseen_objects)
        return summarise_matches([score_matches(describer_matches(describer, pair), pair) for pair in pairs])


def describer_matches(describer: DenseDescriptor, pair: UnseenPair) -> PairMatches:
    """All reciprocal matches of a pair, after the first look only."""
    maps = describer.describe(pair.view_i), describer.describe(pair.view_j)
    _, turns = coarse_matches(*maps)
    return match_maps(*maps, turns)
