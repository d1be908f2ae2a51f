"""MASt3R and DUSt3R as a predictor: any checkpoint of the published architectures, masks inside the attention."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse_ga.config import ForwardConfig
from sparse_ga.devices import resolve_device
from sparse_ga.errors import InputError
from sparse_ga.network.checkpoint import load_checkpoint, weights_digest
from sparse_ga.network.grids import TokenGrid
from sparse_ga.network.heads import RawOutput
from sparse_ga.network.hub import DEFAULT_NAME
from sparse_ga.network.inference import for_inference, resolve_precision
from sparse_ga.network.masking import token_grid
from sparse_ga.network.model import AsymmetricCroCo3DStereo, Encoded, Prepared
from sparse_ga.predictors.base import Features, mark_of_subclass
from sparse_ga.products import Array, PairPrediction, Pointmap, View

_VERSION = "mast3r-2"  # part of the fingerprint: raise it when the same weights come to say something else
_BYTES_PER_TOKEN = 280_000  # activations of a ViT-Large for one token of one view, both orders
_BYTES_PER_PIXEL = 464  # two maps of 29 channels, of this batch and of the one before on its way to the host
_PREPARED_BYTES = 1 << 29  # of what heads made of images alone: 21 whole images of 512x384
_HEAD_BYTES = 1.2e9  # of the convolutional head's largest batch


class Mast3rPredictor:
    """`BatchPredictor` of a MASt3R or DUSt3R network (DUSt3R gives no descriptors).

    `source` is "mast3r" (the released weights), a hub name, a folder, a .pth file, or a network. Raises
    `CheckpointError` for weights that cannot be used and `InputError` for a device that is not there. On a CPU every
    pair is computed on its own, so that results do not depend on how pairs are batched.
    """

    def __init__(
        self,
        source: str | Path | AsymmetricCroCo3DStereo = "mast3r",
        config: ForwardConfig | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.config = config or ForwardConfig()
        self.device = resolve_device(self.config.device)
        dtype = resolve_precision(self.config.precision, self.device)
        model, digest = _weights(source, cache_dir)
        self.arch = model.arch
        self.model = for_inference(model, self.device, dtype)
        self._prepared: OrderedDict[bytes, Prepared | None] = OrderedDict()
        self._warned_of_size = False
        self._copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        settings = f"{_VERSION} {digest} {self.config.mask_mode} {dtype}{mark_of_subclass(self, Mast3rPredictor)}"
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()

    def encode(self, view: View) -> Features:
        """Encoder tokens (tokens of the view, C) float32 of one view; none for an empty mask."""
        self._check_size(view)
        image = self._upload(view.image).permute(2, 0, 1).float() / 127.5 - 1.0  # (3, H, W) in [-1, 1]
        mask = self._upload(view.mask)
        if self.config.mask_mode == "tokens" and not view.mask.any():
            return {"tokens": np.zeros((0, self.arch.enc_embed_dim), np.float32)}
        with torch.inference_mode():
            encoded = self.model.encode_masked([image], [mask], self.config.mask_mode)
            return {"tokens": _Download.start([[encoded.tokens]], self._copy_stream).wait()[0][0]}

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        """Point maps, confidences and descriptors of both views in both frames, both decode orders."""
        return self.predict_from_features(view_i, view_j, self.encode(view_i), self.encode(view_j))

    def predict_from_features(
        self, view_i: View, view_j: View, features_i: Features, features_j: Features
    ) -> PairPrediction:
        """As `predict`, from tokens computed before."""
        return self.predict_batch([view_i], [view_j], [features_i], [features_j])[0]

    def predict_batch(
        self,
        views_i: Sequence[View],
        views_j: Sequence[View],
        features_i: Sequence[Features],
        features_j: Sequence[Features],
    ) -> list[PairPrediction]:
        """As `predict_from_features` for many pairs, as many at a time as `ForwardConfig.memory_gb` holds.

        A pair with an empty mask is rejected. Raises `InputError` for features of another mask or network.
        """
        results: dict[int, PairPrediction] = {}
        waiting: list[int] = []
        for n, (view_i, view_j) in enumerate(zip(views_i, views_j, strict=True)):
            empty = next((view for view in (view_i, view_j) if not view.mask.any()), None)
            if empty is not None:
                results[n] = PairPrediction.reject(view_i, view_j, f"{empty.name}: the mask is empty")
            else:
                waiting.append(n)
        started: tuple[list[int], list[_Download]] = ([], [])
        while waiting:
            count = self.pairs_at_once([views_i[n] for n in waiting], [views_j[n] for n in waiting])
            batch, waiting = waiting[:count], waiting[count:]
            encoded_i = self._encoded([views_i[n] for n in batch], [features_i[n] for n in batch])
            encoded_j = self._encoded([views_j[n] for n in batch], [features_j[n] for n in batch])
            pairs = [(views_i[n], views_j[n]) for n in batch]
            before, started = started, (batch, self._decode(pairs, encoded_i, encoded_j))
            results.update((n, _predict(views_i[n], views_j[n], found)) for n, found in zip(*before, strict=True))
        results.update((n, _predict(views_i[n], views_j[n], found)) for n, found in zip(*started, strict=True))
        return [results[n] for n in range(len(views_i))]

    def pairs_at_once(self, views_i: Sequence[View], views_j: Sequence[View]) -> int:
        """How many of these pairs, from the first on, one batch holds; always at least one, on a CPU never more."""
        if self.device.type == "cpu":
            return 1
        budget = self.config.memory_gb * 1e9 - _HEAD_BYTES
        sizes = [self._bytes(i) + self._bytes(j) for i, j in zip(views_i, views_j, strict=True)]
        return max(1, int((np.cumsum(sizes) <= budget).sum()))

    def free_memory(self) -> None:
        """Forget what heads made of images alone, and give back the device memory that only batches need."""
        self._prepared.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _bytes(self, view: View) -> int:
        """Device memory that one view of a pair takes: of its tokens, and of its full-size outputs."""
        mask = torch.from_numpy(np.array(view.mask))
        grid = token_grid(mask, (view.height, view.width), self.arch.patch_size, self.config.mask_mode)
        return _BYTES_PER_TOKEN * grid.length + _BYTES_PER_PIXEL * view.height * view.width

    def _decode(self, pairs: Sequence[tuple[View, View]], encoded_i: Encoded, encoded_j: Encoded) -> list[_Download]:
        """Start the pairs of one batch: on CUDA their results are on the way when this returns."""
        count = len(pairs)
        downloads = []
        with torch.inference_mode():
            raw1, raw2 = self.model.decode_both(encoded_i, encoded_j)
            for n, (view_i, view_j) in enumerate(pairs):
                grid_i, grid_j = encoded_i.grids[n], encoded_j.grids[n]
                outputs = [
                    self._finish(raw1[n], grid_i, view_i),
                    self._finish(raw2[n], grid_j, view_j),
                    self._finish(raw1[count + n], grid_j, view_j),
                    self._finish(raw2[count + n], grid_i, view_i),
                ]
                downloads.append(_Download.start(outputs, self._copy_stream))
        return downloads

    def _finish(self, raw: RawOutput, grid: TokenGrid, view: View) -> list[Tensor]:
        """Points, confidence and, of a MASt3R, descriptors and their confidence, of one image."""
        output = self.model.finish(raw, grid, self._upload(view.mask))
        parts = [output.points, output.confidence, output.descriptors, output.descriptor_confidence]
        return [part[0] for part in parts if part is not None]

    def _encoded(self, views: Sequence[View], features: Sequence[Features]) -> Encoded:
        """Features of several views, packed on the device."""
        grids = []
        for view, tokens in zip(views, features, strict=True):
            self._check_size(view)
            mask, size = self._upload(view.mask), (view.height, view.width)
            grids.append(token_grid(mask, size, self.arch.patch_size, self.config.mask_mode))
            want = (grids[-1].length, self.arch.enc_embed_dim)
            if tokens["tokens"].shape != want:
                raise InputError(
                    f"{view.name}: features of shape {tokens['tokens'].shape}, expected {want}; they are of another "
                    "mask, mask mode or network"
                )
        uploaded = [self._upload(f["tokens"]) for f in features]
        finest = [] if self.device.type != "cpu" else [self._prepare(t, grid) for t, grid in zip(uploaded, grids)]
        known = tuple(f for f in finest if f is not None)
        return Encoded(torch.cat(uploaded), tuple(grids), known if len(known) == len(views) else ())

    def _prepare(self, tokens: Tensor, grid: TokenGrid) -> Prepared | None:
        """What the heads make of one image alone, kept for the other pairs it is in: a tenth of a pair's work."""
        digest = hashlib.blake2b(tokens.numpy().data)
        for part in (grid.kept, grid.wanted):
            digest.update(b"all" if part is None else part.numpy().tobytes())
        key = digest.digest() + f"{grid.rows} {grid.columns}".encode()
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        with torch.inference_mode():
            self._prepared[key] = found = self.model.prepare(tokens, grid)
        while len(self._prepared) > 2 and sum(map(_size, self._prepared.values())) > _PREPARED_BYTES:
            self._prepared.popitem(last=False)
        return found

    def _check_size(self, view: View) -> None:
        patch = self.arch.patch_size
        if view.height % patch or view.width % patch:
            raise InputError(
                f"{view.name}: {view.width}x{view.height} px is no multiple of the network's patch; set "
                f"ingest.multiple to {patch}"
            )
        trained, side = max(self.arch.img_size), max(view.height, view.width)
        if side > trained and not self._warned_of_size:
            self._warned_of_size = True
            warnings.warn(
                f"{view.name}: {view.width}x{view.height} px, larger than the {trained} px that the network was "
                f"trained on, where its points are worse; set ingest.long_side to {trained}",
                stacklevel=2,
            )

    def _upload(self, array: Array) -> Tensor:
        """`array` on the device; through pinned memory where that overlaps with computing."""
        tensor = torch.from_numpy(np.array(array, order="C"))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def _size(prepared: Prepared | None) -> int:
    return 0 if prepared is None else sum(part.nbytes for part in prepared)


def _weights(
    source: str | Path | AsymmetricCroCo3DStereo, cache_dir: Path | None
) -> tuple[AsymmetricCroCo3DStereo, str]:
    """A network and the digest of its weights."""
    if isinstance(source, AsymmetricCroCo3DStereo):
        return source, weights_digest(source.arch, source.state_dict())
    loaded = load_checkpoint(DEFAULT_NAME if source == "mast3r" else source, cache_dir)
    return loaded.model, loaded.info.digest


def _predict(view_i: View, view_j: View, download: _Download) -> PairPrediction:
    maps = [Pointmap(*arrays) for arrays in download.wait()]
    if not all(np.isfinite(m.points).all() and np.isfinite(m.confidence).all() for m in maps):
        return PairPrediction.reject(view_i, view_j, "the network returned numbers that are not finite")
    return PairPrediction(maps[0], maps[1], maps[2], maps[3])


@dataclass(frozen=True, eq=False)
class _Download:
    """Tensors on their way to the host: from CUDA through pinned memory, beside whatever is computed next."""

    tensors: list[list[Tensor]]
    arrived: torch.cuda.Event | None

    @staticmethod
    def start(groups: Sequence[Sequence[Tensor]], stream: torch.cuda.Stream | None) -> _Download:
        """Begin to copy; without a stream (CPU, MPS) the copies are made at once."""
        if stream is None:
            return _Download([[tensor.float().cpu().contiguous() for tensor in group] for group in groups], None)
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            pinned = [[_pinned_copy(tensor.float(), stream) for tensor in group] for group in groups]
        return _Download(pinned, stream.record_event())

    def wait(self) -> list[list[Array]]:
        """The arrays, once they are all there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [[tensor.numpy() for tensor in group] for group in self.tensors]


def _pinned_copy(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    host = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
