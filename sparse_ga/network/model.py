"""AsymmetricCroCo3DStereo (DUSt3R, arXiv 2312.14132) and AsymmetricMASt3R (arXiv 2406.09756), with masks inside.

Every image is its own sequence of patches, of any length. One shared encoder; two decoders that read each other block
by block; one head a decoder. The first decoder speaks of view 1, the second of view 2, both in camera 1's frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sparse_ga.network.architecture import Architecture, ArchitectureError
from sparse_ga.network.blocks import EPSILON, DecoderBlock, EncoderBlock, Layout
from sparse_ga.network.grids import TokenGrid, sent
from sparse_ga.network.heads import RawOutput, make_head, place_patches
from sparse_ga.network.masking import MaskMode, masked_image, token_grid
from sparse_ga.network.patch_embed import ManyARPatchEmbed, PatchEmbedDust3R, patches_of
from sparse_ga.network.positions import Rotation, cosine_embedding, grid_positions
from sparse_ga.network.regression import activate_confidence, activate_descriptors, activate_points


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images (B, 3, H, W) in [-1, 1]; true (H, W) of each (B, 2), for turned portraits; masks (B, H, W) bool."""

    images: Tensor
    true_shapes: Tensor | None = None
    masks: Tensor | None = None


Prepared: TypeAlias = tuple[Tensor, Tensor]
"""What head 1 and head 2 make of an image's encoder tokens alone."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoder tokens (T, C) of several images, packed, and their grids.

    `finest` is what `prepare` gave for each image, or nothing: heads then make it again for every pair.
    """

    tokens: Tensor
    grids: tuple[TokenGrid, ...]
    finest: tuple[Prepared, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each image."""
        return tuple(grid.length for grid in self.grids)

    def pick(self, order: Sequence[int]) -> Encoded:
        """These images, in this order."""
        parts = self.tokens.split(list(self.lengths))
        finest = tuple(self.finest[n] for n in order) if self.finest else ()
        return Encoded(torch.cat([parts[n] for n in order]), tuple(self.grids[n] for n in order), finest)

    @staticmethod
    def join(parts: Sequence[Encoded]) -> Encoded:
        """All images of several."""
        finest = tuple(f for p in parts for f in p.finest) if all(p.finest for p in parts) else ()
        return Encoded(torch.cat([p.tokens for p in parts]), tuple(grid for p in parts for grid in p.grids), finest)


@dataclass(frozen=True, eq=False)
class Output:
    """What a head says of images: points in camera 1's frame, confidences, unit descriptors (MASt3R).

    Outside the mask points are (0, 0, 1), confidences at their minimum and descriptors zero.
    """

    points: Tensor  # (B, H, W, 3)
    confidence: Tensor  # (B, H, W)
    descriptors: Tensor | None = None  # (B, H, W, D)
    descriptor_confidence: Tensor | None = None  # (B, H, W)

    def turned(self) -> Output:
        """Rows and columns exchanged."""
        parts = (self.points, self.confidence, self.descriptors, self.descriptor_confidence)
        return Output(*[None if x is None else x.transpose(1, 2) for x in parts])  # type: ignore[arg-type]

    @staticmethod
    def stack(parts: Sequence[Output]) -> Output:
        """One batch of several, all of one size."""
        return Output(
            torch.cat([part.points for part in parts]),
            torch.cat([part.confidence for part in parts]),
            _joined([part.descriptors for part in parts]),
            _joined([part.descriptor_confidence for part in parts]),
        )


class AsymmetricCroCo3DStereo(nn.Module):
    """DUSt3R's network; state-dict names and shapes are those of the published checkpoints.

    `compute_dtype` (None for fp32, or torch.bfloat16) is the precision of the transformer; heads are fp32 always.
    """

    model_name = "AsymmetricCroCo3DStereo"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        if arch.model != self.model_name:
            raise ArchitectureError(f"{type(self).__name__} cannot be built from {arch.model}")
        self.arch = arch
        self.compute_dtype: torch.dtype | None = None
        embed = ManyARPatchEmbed if arch.patch_embed_cls == "ManyAR_PatchEmbed" else PatchEmbedDust3R
        enc, dec = arch.enc_embed_dim, arch.dec_embed_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec))  # of CroCo's pretraining; no part of the forward
        if arch.pos_embed == "cosine":
            self._register_cosine()
        self.patch_embed = embed(arch.patch_size, enc)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(enc, arch.enc_num_heads, arch.mlp_ratio) for _ in range(arch.enc_depth)
        )
        self.enc_norm = nn.LayerNorm(enc, eps=EPSILON)
        self.decoder_embed = nn.Linear(enc, dec)
        self.dec_blocks = self._decoder()
        self.dec_norm = nn.LayerNorm(dec, eps=EPSILON)
        self.dec_blocks2 = self._decoder()
        self.downstream_head1 = make_head(arch)
        self.downstream_head2 = make_head(arch)
        self.apply(_initialise)

    def _decoder(self) -> nn.ModuleList:
        arch = self.arch
        return nn.ModuleList(
            DecoderBlock(arch.dec_embed_dim, arch.dec_num_heads, arch.mlp_ratio) for _ in range(arch.dec_depth)
        )

    def _register_cosine(self) -> None:
        """CroCo keeps its sine-cosine tables in the state dict; the forward computes them at each token's position."""
        for name, table in self.cosine_tables().items():
            self.register_buffer(name, table)

    def cosine_tables(self) -> dict[str, Tensor]:
        """Position tables (tokens of `img_size`, C) of encoder and decoder, under their state-dict names."""
        rows, columns = (side // self.arch.patch_size for side in self.arch.img_size)
        with torch.device("cpu"):
            positions = grid_positions(rows, columns)  # (rows * columns, 2)
            dims = {"enc_pos_embed": self.arch.enc_embed_dim, "dec_pos_embed": self.arch.dec_embed_dim}
            return {name: cosine_embedding(positions, dim) for name, dim in dims.items()}

    def encode(self, images: Sequence[Tensor], grids: Sequence[TokenGrid]) -> Encoded:
        """Tokens of `images` (3, H, W) each, as they were taken, already painted; the kept patches of `grids` only."""
        patch = self.arch.patch_size
        patches = torch.cat([patches_of(image, grid, patch) for image, grid in zip(images, grids, strict=True)])
        layout = self._layout(grids, self.arch.enc_embed_dim // self.arch.enc_num_heads)
        with self._transformer_precision(patches.device):
            x = self.patch_embed(patches)  # (T, enc)
            if self.arch.pos_embed == "cosine":
                x = x + cosine_embedding(layout.positions, self.arch.enc_embed_dim).to(x.dtype)
            for block in self.enc_blocks:
                x = block(x, layout)
            x = self.enc_norm(x)
        return Encoded(x.float(), tuple(grids))

    def decode(self, view1: Encoded, view2: Encoded) -> tuple[list[RawOutput], list[RawOutput]]:
        """Raw head outputs of pairs (view1's n-th image, view2's n-th image), in view 1's frame."""
        head_dim = self.arch.dec_embed_dim // self.arch.dec_num_heads
        layout1, layout2 = self._layout(view1.grids, head_dim), self._layout(view2.grids, head_dim)
        depths = sorted({*self.downstream_head1.depths, *self.downstream_head2.depths})
        kept1, kept2 = {0: view1.tokens}, {0: view2.tokens}
        with self._transformer_precision(view1.tokens.device):
            x1, x2 = self._enter_decoder(view1.tokens, layout1), self._enter_decoder(view2.tokens, layout2)
            for depth, (block1, block2) in enumerate(zip(self.dec_blocks, self.dec_blocks2, strict=True), start=1):
                x1, x2 = block1(x1, layout1, x2, layout2), block2(x2, layout2, x1, layout1)
                if depth == self.arch.dec_depth:
                    x1, x2 = self.dec_norm(x1), self.dec_norm(x2)
                if depth in depths:
                    kept1[depth], kept2[depth] = x1, x2
        with self._head_precision(view1.tokens.device):
            head1, head2 = self.downstream_head1, self.downstream_head2
            finest1 = [f[0] for f in view1.finest] or None
            finest2 = [f[1] for f in view2.finest] or None
            raw1 = head1([kept1[d].float() for d in head1.depths], view1.grids, finest1)
            raw2 = head2([kept2[d].float() for d in head2.depths], view2.grids, finest2)
        return raw1, raw2

    def prepare(self, tokens: Tensor, grid: TokenGrid) -> Prepared | None:
        """What both heads make of one image's encoder tokens (length, C) alone; None for heads that make nothing."""
        with self._head_precision(tokens.device):
            first, second = (head.finest(tokens, grid) for head in (self.downstream_head1, self.downstream_head2))
        return None if first is None or second is None else (first, second)

    def decode_both(self, view1: Encoded, view2: Encoded) -> tuple[list[RawOutput], list[RawOutput]]:
        """Both orders in one batch: each list holds pair n in order (1, 2), then all pairs in order (2, 1)."""
        return self.decode(Encoded.join([view1, view2]), Encoded.join([view2, view1]))

    def finish(self, raw: RawOutput, grid: TokenGrid, mask: Tensor | None = None) -> Output:
        """One image's output, batch of one, from raw channels; what is outside `mask` (H, W) says nothing."""
        patch, arch = self.arch.patch_size, self.arch
        size = (grid.rows * patch, grid.columns * patch)
        device = raw.points.device if raw.points is not None else self.mask_token.device
        points = torch.zeros(*size, 3, device=device)  # (H, W, 3)
        points[..., 2] = 1.0
        confidence = torch.full(size, arch.conf_mode.minimum, device=device)  # (H, W)
        window = grid.window
        if raw.points is not None and window is not None:
            area = window.scaled(patch)
            rows, columns = slice(area.top, area.bottom), slice(area.left, area.right)
            channels_last = raw.points.permute(1, 2, 0)  # (h, w, 4)
            points[rows, columns] = activate_points(channels_last[..., :3], arch.depth_mode)
            confidence[rows, columns] = activate_confidence(channels_last[..., 3], arch.conf_mode)
        visible = _visible(grid, mask, patch, device)
        if visible is not None:
            points = torch.where(visible[..., None], points, points.new_tensor([0.0, 0.0, 1.0]))
            confidence = torch.where(visible, confidence, arch.conf_mode.minimum)
        descriptors, descriptor_confidence = self._descriptors(raw, grid, visible, confidence)
        return Output(points[None], confidence[None], descriptors, descriptor_confidence)

    def _descriptors(
        self, raw: RawOutput, grid: TokenGrid, visible: Tensor | None, confidence: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Descriptors (1, H, W, D) and their confidence (1, H, W); None without a descriptor head."""
        arch = self.arch
        if raw.descriptors is None:
            return None, None
        patches = raw.descriptors.permute(0, 2, 3, 1)  # (wanted, p, p, D or D + 1)
        seen = None if visible is None else _patches_of_mask(visible, grid, arch.patch_size)  # (wanted, p, p)
        descriptors = activate_descriptors(patches[..., : arch.descriptor_dim])
        if seen is not None:
            descriptors = torch.where(seen[..., None], descriptors, 0.0)
        dense = place_patches(descriptors, grid, 0.0)  # (H, W, D)
        if not arch.two_confs:
            return dense[None], confidence[None]
        own = activate_confidence(patches[..., arch.descriptor_dim], arch.descriptor_range)
        minimum = arch.descriptor_range.minimum
        if seen is not None:
            own = torch.where(seen, own, minimum)
        return dense[None], place_patches(own[..., None], grid, minimum)[None, ..., 0]

    def forward(
        self, view1: ImageBatch, view2: ImageBatch, mask_mode: MaskMode = "tokens", symmetrized: bool = False
    ) -> tuple[Output, Output]:
        """Outputs of both views in view 1's frame.

        `symmetrized`: the batch holds (a, b), (b, a), (c, d), (d, c), ...; each image is then encoded once. Raises
        `InvalidInput` for sizes that are no multiples of the patch.
        """
        images1, images2 = self._oriented(view1), self._oriented(view2)
        masks1, masks2 = self._oriented_masks(view1), self._oriented_masks(view2)
        step = 2 if symmetrized else 1
        encoded1 = self.encode_masked(images1[::step], masks1[::step], mask_mode)
        encoded2 = self.encode_masked(images2[::step], masks2[::step], mask_mode)
        if symmetrized:
            count = len(encoded1.grids)
            both = Encoded.join([encoded1, encoded2])
            order = [n + side * count for n in range(count) for side in (0, 1)]
            encoded1, encoded2 = both.pick(order), both.pick([n + count if n < count else n - count for n in order])
        raw1, raw2 = self.decode(encoded1, encoded2)
        return self._batch(raw1, encoded1.grids, masks1, view1), self._batch(raw2, encoded2.grids, masks2, view2)

    def encode_masked(self, images: Sequence[Tensor], masks: Sequence[Tensor | None], mode: MaskMode) -> Encoded:
        """Tokens of `images` (3, H, W) in [-1, 1] under `masks` (H, W) bool or None, in one batch."""
        patch = self.arch.patch_size
        grids, painted = [], []
        for image, mask in zip(images, masks, strict=True):
            grids.append(token_grid(mask, (int(image.shape[1]), int(image.shape[2])), patch, mode))
            painted.append(masked_image(image, mask, mode))
        return self.encode(painted, grids)

    def _oriented(self, view: ImageBatch) -> list[Tensor]:
        return self.patch_embed.oriented(view.images, view.true_shapes)

    def _oriented_masks(self, view: ImageBatch) -> list[Tensor | None]:
        if view.masks is None:
            return [None] * len(view.images)
        return [mask.T if turned else mask for mask, turned in zip(view.masks, _turned(view), strict=True)]

    def _batch(
        self,
        raw: Sequence[RawOutput],
        grids: Sequence[TokenGrid],
        masks: Sequence[Tensor | None],
        view: ImageBatch,
    ) -> Output:
        """All images' outputs in one batch; turned portraits lie in it as their images do."""
        outputs = []
        for parts, grid, mask, turned in zip(raw, grids, masks, _turned(view), strict=True):
            output = self.finish(parts, grid, mask)
            outputs.append(output.turned() if turned else output)
        return Output.stack(outputs)

    def _layout(self, grids: Sequence[TokenGrid], head_dim: int) -> Layout:
        device = self.mask_token.device
        each = [grid.select_kept(grid_positions(grid.rows, grid.columns)) for grid in grids]
        positions = sent(torch.cat(each), device)  # (T, 2)
        base = self.arch.rope_base
        rotation = None if base is None else Rotation.at(positions, head_dim, base)
        return Layout(tuple(grid.length for grid in grids), positions, rotation)

    def _enter_decoder(self, tokens: Tensor, layout: Layout) -> Tensor:
        x = self.decoder_embed(tokens)  # (T, dec)
        if self.arch.pos_embed == "cosine":
            x = x + cosine_embedding(layout.positions, self.arch.dec_embed_dim).to(x.dtype)
        return x

    @contextmanager
    def _transformer_precision(self, device: torch.device) -> Iterator[None]:
        """Autocast to `compute_dtype`, if one is set; otherwise whatever the caller has set."""
        if self.compute_dtype is None:
            yield
        else:
            with torch.autocast(device.type, dtype=self.compute_dtype):
                yield

    @contextmanager
    def _head_precision(self, device: torch.device) -> Iterator[None]:
        """fp32. On CUDA its products may round to TF32 exactly if the transformer, rougher still, computed in bf16."""
        if not torch.amp.is_autocast_available(device.type):  # MPS, before PyTorch 2.5: nothing to switch off
            yield
            return
        with torch.autocast(device.type, enabled=False):
            if device.type != "cuda":
                yield
                return
            matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
            before = matmul.allow_tf32, convolution.allow_tf32
            try:
                matmul.allow_tf32 = convolution.allow_tf32 = self.compute_dtype is not None
                yield
            finally:
                matmul.allow_tf32, convolution.allow_tf32 = before


class AsymmetricMASt3R(AsymmetricCroCo3DStereo):
    """MASt3R's network: DUSt3R's with a head that also gives local descriptors."""

    model_name = "AsymmetricMASt3R"


def build_model(arch: Architecture) -> AsymmetricCroCo3DStereo:
    """The network of an architecture, randomly initialised."""
    return (AsymmetricMASt3R if arch.model == "AsymmetricMASt3R" else AsymmetricCroCo3DStereo)(arch)


def is_symmetrized(instances1: Sequence[object], instances2: Sequence[object]) -> bool:
    """Whether a batch holds every pair in both orders, next to each other: (a, b), (b, a), (c, d), (d, c), ..."""
    first, second = list(instances1), list(instances2)
    if len(first) != len(second) or not first or len(first) % 2:
        return False
    return first[::2] == second[1::2] and first[1::2] == second[::2]


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _turned(view: ImageBatch) -> list[bool]:
    if view.true_shapes is None:
        return [False] * len(view.images)
    size = tuple(view.images.shape[-2:])
    return [tuple(shape) != size for shape in view.true_shapes.tolist()]


def _visible(grid: TokenGrid, mask: Tensor | None, patch: int, device: torch.device) -> Tensor | None:
    """Pixels (H, W) bool whose output counts; None if all."""
    if mask is not None:
        return mask
    if grid.wanted is None:
        return None
    return sent(grid.wanted.repeat_interleave(patch, 0).repeat_interleave(patch, 1), device)


def _patches_of_mask(mask: Tensor, grid: TokenGrid, patch: int) -> Tensor:
    """The wanted patches (wanted, p, p) of `mask` (H, W)."""
    blocks = mask.unflatten(0, (grid.rows, patch)).unflatten(2, (grid.columns, patch)).transpose(1, 2)
    return grid.select_wanted(blocks.reshape(-1, patch, patch))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
