"""Learning a compact MASt3R from procedural pairs, rendered on the fly or in a pool, with masks in every mode."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ga.network.architecture import Architecture, Range
from sparse_ga.network.heads import CatConvHead
from sparse_ga.network.masking import MaskMode
from sparse_ga.network.model import AsymmetricMASt3R, Output, build_model
from sparse_ga.synthetic.procedural.bundle import Draw
from sparse_ga.synthetic.procedural.correspondences import correspond, relative_pose, unproject
from sparse_ga.synthetic.procedural.pool import Pool
from sparse_ga.synthetic.procedural.scene import Batch, SceneConfig, render_batch
from sparse_ga.training.checkpoints import digest_of
from sparse_ga.training.dense import forward_pairs
from sparse_ga.training.loop import Measured
from sparse_ga.training.losses import MatchLoss, info_nce, regression
from sparse_ga.training.metrics import Record
from sparse_ga.training.validation import device_of, view_angle

SizeName = Literal["patch8", "patch16", "small", "tiny"]
_MODES: tuple[MaskMode, ...] = ("tokens", "fill", "context")


def architecture(name: SizeName, side: int) -> Architecture:
    """A compact network: patch8 and patch16 stay below 32 MB in half precision, small learns on a CPU, tiny is for
    tests."""
    trunk = {
        "patch8": (8, 1.5, 256, 8, 192, 5),
        "patch16": (16, 0.7, 256, 8, 192, 4),
        "small": (8, 1.0, 96, 4, 96, 3),
        "tiny": (8, 1.0, 48, 2, 48, 2),
    }
    patch, ratio, encoder, encoder_depth, decoder, decoder_depth = trunk[name]
    return Architecture(
        model="AsymmetricMASt3R",
        img_size=(side, side),
        patch_size=int(patch),
        head_type="catconv",
        output_mode="pts3d+desc16",
        enc_embed_dim=int(encoder),
        enc_depth=int(encoder_depth),
        enc_num_heads=max(2, int(encoder) // 64),
        dec_embed_dim=int(decoder),
        dec_depth=int(decoder_depth),
        dec_num_heads=max(2, int(decoder) // 64),
        two_confs=True,
        desc_conf_mode=Range("exp", 0.0, math.inf),
        head_mlp_ratio=ratio,
    )


@dataclass(frozen=True)
class CompactTaskConfig:
    """Batches and losses of the compact network's training."""

    size: SizeName = "patch8"
    """Which architecture."""
    side: int = 256
    """Long side of the images in px; portrait, landscape and square batches alternate."""
    objects: int = 16
    """Objects in a batch."""
    views: int = 4
    """Views of an object; they form views / 2 pairs."""
    rendered_steps: int = 4
    """Steps whose objects are rendered together: the renderer is launched less often, and memory grows with it."""
    repeats: int = 1
    """How often rendered objects are used, each time with other masks and, with four views, in other pairs: up to
    three times what a GPU learns from takes no longer to render."""
    pool_objects: int = 0
    """Objects of the pool that batches are drawn from, if there is one."""
    pair_deg: float = 75.0
    """Pairs look at their object from directions within this, as far as it has such views: most others share nothing
    that could be learnt. Only where there is a choice: in a pool, or where rendered views are used again."""
    grid: int = 64
    """Points along an edge of the distance grid of the renderer."""
    correspondences: int = 1024
    """Correspondences of a pair that enter the matching loss."""
    mode_weights: tuple[float, float, float] = (0.45, 0.2, 0.35)
    """How often a batch is masked by tokens, fill and context."""
    imperfect_share: float = 0.5
    """Share of objects whose masks are imperfect."""
    match_weight: float = 0.6
    """Weight of the matching loss beside the regression. MASt3R's is 0.075, for a network that knows geometry before
    it learns to match; from random weights matching comes sooner with more, and geometry no later."""
    alpha: float = 0.2
    """Weight of the reward for confidence in the regression."""
    match_alpha: float = 10.0
    """Weight of the reward for confidence in the matching loss, as MASt3R was trained. The loss settles at confidence
    `match_alpha` / InfoNCE, and untrained descriptors have an InfoNCE of log(correspondences): with a reward as small
    as the regression's, confidence falls to 0.03 and takes the gradient of the descriptors with it."""
    seed: int = 0
    """Seed of weights and batches."""


@dataclass(frozen=True, eq=False)
class PairBatch:
    """P pairs, unordered; leading axis 2 is the side of the pair."""

    images: Tensor  # (2, P, 3, H, W) in [-1, 1]
    masks: Tensor  # (2, P, H, W) bool, what the network is told
    depth: Tensor  # (2, P, H, W), 0 off the object
    intrinsics: Tensor  # (2, P, 3, 3)
    object_from_cam: Tensor  # (2, P, 4, 4)


_ROWS = ("image", "mask", "mask_imperfect", "depth", "intrinsics", "object_from_cam")


def pair_up(rows: Mapping[str, Tensor], masks: Tensor) -> PairBatch:
    """Views (0, 1), (2, 3), ... of every object as pairs, with `masks` (B, V, H, W) in place of the exact ones.

    `rows` are tensors (B, V, ...) by their name in `Batch`.
    """

    def split(values: Tensor) -> Tensor:
        return values.unflatten(1, (-1, 2)).flatten(0, 1).transpose(0, 1)  # (2, P, ...)

    images = split(rows["image"]).float() / 127.5 - 1
    return PairBatch(images, split(masks), *(split(rows[name]) for name in ("depth", "intrinsics", "object_from_cam")))


def near_pairs(poses: Tensor, limit_deg: float) -> list[tuple[int, int]]:
    """Views of one object, cameras (V, 4, 4), whose viewing directions are within `limit_deg`: the pairs (i < j), or
    the nearest one if there is none."""
    count = len(poses)
    angles = {(i, j): view_angle(poses[i], poses[j]) for i in range(count) for j in range(i + 1, count)}
    near = [pair for pair, angle in angles.items() if angle <= limit_deg]
    return near or [min(angles, key=lambda pair: angles[pair])]


_PAIRINGS = torch.tensor([[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]])
"""The three ways to pair four views."""


def pair_again(poses: Tensor, turn: int, limit_deg: float) -> Tensor:
    """Order (B, 4) of the views of B objects, cameras (B, 4, 4, 4), whose neighbours form pairs in turn `turn`.

    Of the three ways, those all of whose pairs look from within `limit_deg` take turns, or else the one whose widest
    pair is the narrowest.
    """
    ways = _PAIRINGS.to(poses.device)
    eyes = F.normalize(poses[:, :, :3, 3], dim=-1)
    cosine = (eyes[:, ways[:, 0::2]] * eyes[:, ways[:, 1::2]]).sum(-1).amin(-1)  # (B, 3), of the widest pair
    near = cosine >= math.cos(math.radians(limit_deg))
    near = near | (cosine == cosine.amax(1, keepdim=True)) & ~near.any(1, keepdim=True)
    wanted = turn % near.sum(1)  # (B,)
    rank = torch.where(near, near.cumsum(1) - 1, -1)
    return ways[(rank == wanted[:, None]).to(torch.uint8).argmax(1)]


def draw_from_pool(pool: Pool, draw: Draw, config: CompactTaskConfig) -> dict[str, Tensor]:
    """The batch's objects out of the pool, each with the views of its pairs: tensors (B, V, ...) by name."""
    chosen = []
    for _ in range(config.objects):
        rows = pool.rows(int(draw.uniform(0, config.pool_objects)))
        near = near_pairs(rows["object_from_cam"], config.pair_deg)
        some = [view for k in draw.choice([1.0] * len(near), config.views // 2).tolist() for view in near[k]]
        chosen.append({name: rows[name][some] for name in _ROWS})
    return {name: torch.stack([rows[name] for rows in chosen]) for name in _ROWS}


def interleave(sides: Tensor) -> tuple[Tensor, Tensor]:
    """(2, P, ...) to both orders next to each other: (a0, b0, a1, b1, ...) and (b0, a0, b1, a1, ...)."""
    first = sides.transpose(0, 1).flatten(0, 1)
    return first, sides.flip(0).transpose(0, 1).flatten(0, 1)


def true_points(pairs: PairBatch) -> tuple[Tensor, Tensor]:
    """Points (2 P, 2, H, W, 3) of both views in the first's frame, in both orders, and which are on the object."""
    depth = interleave(pairs.depth)
    intrinsics, pose = interleave(pairs.intrinsics), interleave(pairs.object_from_cam)
    own, other = unproject(intrinsics[0], depth[0]), unproject(intrinsics[1], depth[1])
    first_from_second = relative_pose(pose[1], pose[0])
    rotation, shift = first_from_second[:, None, :3, :3], first_from_second[:, None, None, :3, 3]
    moved = other @ rotation.transpose(-1, -2) + shift
    return torch.stack([own, moved], 1), torch.stack([depth[0] > 0, depth[1] > 0], 1)


def draw_matches(draw: Draw, pairs: PairBatch, count: int) -> tuple[Tensor, Tensor]:
    """Pixels (2, P, N, 2) of both views that show the same point, and which of them do (P, N).

    View a's are drawn among its foreground pixels; those that view b sees and that both given masks hold come first.
    """
    height, width = pairs.depth.shape[-2:]
    on = ((pairs.depth[0] > 0) & pairs.masks[0]).flatten(1)  # (P, HW)
    scores = draw.uniform(0, 1, *on.shape) + on.float()
    index = scores.topk(min(4 * count, on.shape[1]), dim=1).indices  # (P, 4 N)
    points = unproject(pairs.intrinsics[0], pairs.depth[0]).flatten(1, 2)
    picked = points.gather(1, index[..., None].expand(-1, -1, 3))
    b_from_a = relative_pose(pairs.object_from_cam[0], pairs.object_from_cam[1])
    found = correspond(picked, on.gather(1, index), b_from_a, pairs.intrinsics[1], pairs.depth[1])
    nearest = found.xy.round().long()
    inside = nearest[..., 1].clamp(0, height - 1) * width + nearest[..., 0].clamp(0, width - 1)
    valid = found.visible & pairs.masks[1].flatten(1).gather(1, inside)
    order = torch.argsort((~valid).to(torch.uint8), dim=1, stable=True)[:, :count]
    xy_a = torch.stack([index % width, torch.div(index, width, rounding_mode="floor")], -1).float()
    both = torch.stack([xy_a, found.xy])  # (2, P, 4 N, 2)
    return both.gather(2, order[None, ..., None].expand(2, -1, -1, 2)), valid.gather(1, order)


def sample_pixels(maps: Tensor, xy: Tensor) -> Tensor:
    """Values (B, N, C) of maps (B, H, W, C) at pixels (B, N, 2), bilinear."""
    height, width = maps.shape[1:3]
    grid = (2 * xy / xy.new_tensor([width - 1, height - 1]) - 1)[:, :, None]
    return F.grid_sample(maps.permute(0, 3, 1, 2), grid, align_corners=True)[..., 0].transpose(1, 2)


def matching_loss(
    outputs: tuple[Output, Output], matches: tuple[Tensor, Tensor], alpha: float
) -> tuple[Tensor, MatchLoss]:
    """MASt3R's matching loss (), weighted by descriptor confidence, and what it weights.

    `outputs` hold both orders next to each other; `matches` are `draw_matches`' pixels and validity.
    """
    xy, valid = matches
    pixels = interleave(xy)
    described, trust = [], []
    for output, at in zip(outputs, pixels):
        assert output.descriptors is not None and output.descriptor_confidence is not None  # noqa: PT018
        described.append(F.normalize(sample_pixels(output.descriptors, at), dim=-1))
        trust.append(sample_pixels(output.descriptor_confidence[..., None], at)[..., 0])
    both = valid.repeat_interleave(2, 0)
    found = info_nce((described[0], described[1]), pixels, both, 1 / 0.07, 2.5)
    confidence = (trust[0] * trust[1]).clamp_min(1e-6).sqrt()
    each = confidence * found.each - alpha * confidence.log()
    return torch.where(both, each, 0.0).sum() / both.sum().clamp_min(1), found


@torch.no_grad()
def share_within_patches(model: nn.Module) -> None:
    """Let fresh descriptor heads say the same of all pixels of a patch.

    With weights of its own for every place in a patch, an untrained head's descriptors tell of the place and of nothing
    else: InfoNCE is then far above chance, training first makes all descriptors equal, and hardly gets away from there.
    """
    for head in (model.downstream_head1, model.downstream_head2):
        assert isinstance(head, CatConvHead)
        weight = head.head_local_features.fc2.weight.unflatten(0, (-1, head.patch**2))  # (D, p * p, C)
        weight.copy_(weight[:, :1].expand_as(weight))


class CompactTask:
    """Regression and matching on pairs rendered for every step, or drawn from a pool where that would take too long."""

    def __init__(
        self,
        config: CompactTaskConfig,
        validator: Callable[[AsymmetricMASt3R], Record] | None,
        initial: dict[str, Tensor] | None = None,
        pool: Pool | None = None,
    ) -> None:
        if pool is not None and not (config.pool_objects > 0 and pool.views > 1):
            raise ValueError("a pool needs pool_objects > 0, and two views or more of every object")
        self.config, self.validator, self.initial, self.pool = config, validator, initial, pool
        self._kept: tuple[tuple[int, torch.device], Batch] | None = None

    def settings(self) -> dict[str, object]:
        """The task's settings, with lists for tuples as JSON has them, and which weights it starts from."""
        start = "random" if self.initial is None else digest_of(self.initial)
        pool = None if self.pool is None else {"seed": self.pool.seed, **dataclasses.asdict(self.pool.config)}
        return {"task": json.loads(json.dumps(dataclasses.asdict(self.config))), "initial": start, "pool": pool}

    def build(self) -> nn.Module:
        """The network with the weights given at the start, or random ones that depend on the seed only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = build_model(architecture(self.config.size, self.config.side))
            share_within_patches(model)
        if self.initial is not None:
            model.load_state_dict(self.initial)
        return model

    def _scene(self, block: int) -> SceneConfig:
        draw = Draw(torch.Generator().manual_seed(self.config.seed * 1_000_003 + block))
        side, short = self.config.side, self.config.side * 3 // 4 // 16 * 16
        height, width = [(side, side), (short, side), (side, short)][int(draw.choice([1, 1, 1], 1))]
        objects = self.config.objects * self.config.rendered_steps
        return SceneConfig(objects, self.config.views, height, width, grid=self.config.grid)

    def _rendered(self, step: int, device: torch.device) -> dict[str, Tensor]:
        """The step's objects, out of a larger batch that is rendered once and kept for the steps that share it."""
        config = self.config
        block, place = divmod(step, config.rendered_steps * config.repeats)
        turn, part = divmod(place, config.rendered_steps)
        if self._kept is None or self._kept[0] != (block, device):
            self._kept = None  # first, so that two batches never share the memory
            batch = render_batch(self._scene(block), 17 + config.seed, block, device)
            self._kept = ((block, device), batch)
        batch = self._kept[1].rows(part * config.objects, (part + 1) * config.objects)
        rows: dict[str, Tensor] = {name: getattr(batch, name) for name in _ROWS}
        if config.repeats == 1 or config.views != 4:
            return rows
        order = pair_again(rows["object_from_cam"], turn, config.pair_deg)
        first = torch.arange(config.objects, device=device)[:, None]
        return {name: values[first, order] for name, values in rows.items()}

    def batch(self, step: int, device: torch.device) -> tuple[PairBatch, MaskMode, Draw]:
        """The step's pairs and how they are masked; depends on the seed and the step only."""
        draw = Draw(torch.Generator().manual_seed(self.config.seed * 1_000_003 + step))
        mode = _MODES[int(draw.choice(list(self.config.mode_weights), 1))]
        if self.pool is None:
            rows = self._rendered(step, device)
        else:
            found = draw_from_pool(self.pool, draw, self.config)
            rows = {name: values.to(device) for name, values in found.items()}
        imperfect = draw.chance(self.config.imperfect_share, self.config.objects, 1, 1, 1).to(device, non_blocking=True)
        pairs = pair_up(rows, torch.where(imperfect, rows["mask_imperfect"], rows["mask"]))
        return pairs, mode, Draw(torch.Generator(device).manual_seed(self.config.seed * 1_000_003 + step))

    def loss(self, model: nn.Module, step: int) -> tuple[Tensor, Measured]:
        """Confidence-weighted regression and matching loss of the step's pairs, in both orders."""
        assert isinstance(model, AsymmetricMASt3R)
        device = device_of(model)
        pairs, mode, draw = self.batch(step, device)
        half = torch.bfloat16 if device.type == "cuda" else None  # in the network alone: true points must stay exact
        outputs = forward_pairs(model, pairs.images, pairs.masks, mode, half)
        masks = interleave(pairs.masks)
        truth, on_object = true_points(pairs)
        told = torch.stack(masks, 1)
        points = torch.stack([o.points for o in outputs], 1).flatten(2, 3)
        confidence = torch.stack([o.confidence for o in outputs], 1).flatten(2)
        valid = (on_object & told).flatten(2)
        shape = regression(points, confidence, truth.flatten(2, 3), valid, self.config.alpha)
        matches = draw_matches(draw, pairs, self.config.correspondences)
        nce, found = matching_loss(outputs, matches, self.config.match_alpha)
        measured = {"regression": shape.loss.detach(), "error": shape.error, "accuracy": found.accuracy}
        measured |= {"nce": nce.detach(), "info_nce": found.loss.detach()}
        return shape.loss + self.config.match_weight * nce, {**measured, "mode": float(_MODES.index(mode))}

    def validate(self, model: nn.Module) -> Record:
        """Metrics on fixed scenes, if a validator was given."""
        assert isinstance(model, AsymmetricMASt3R)
        return self.validator(model) if self.validator is not None else {}
