"""The compact network trained in this project: Apache-2.0 weights inside the package, seconds a pair on a CPU.

Views are brought to the network's own size, and its point maps back to working pixels. Background never mixes in: what
is interpolated is foreground only.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ga.config import ForwardConfig
from sparse_ga.errors import InputError
from sparse_ga.network.model import AsymmetricCroCo3DStereo
from sparse_ga.predictors.base import Features, mark_of_subclass
from sparse_ga.predictors.mast3r import Mast3rPredictor
from sparse_ga.products import Array, PairPrediction, Pointmap, View

_REMEMBERED = 256  # shrunk views, of 0.2 MB at 224 px: two for each of the most pairs that a batch is chosen from


def weights_folder() -> Path:
    """Where the package keeps the compact network: config.json and model.safetensors."""
    return Path(__file__).parent.parent / "weights" / "compact"


def shrink(view: View, side: int, patch: int) -> View:
    """`view` with its long side at most `side`, both sides multiples of `patch`: area averages, foreground only.

    A small pixel is foreground when at least half of it is; if none is, every pixel that holds some. Intrinsics are
    left out: networks do not read them.
    """
    scale = min(1.0, side / max(view.height, view.width))
    height, width = (max(patch, round(n * scale / patch) * patch) for n in (view.height, view.width))
    image = torch.from_numpy(view.image.copy()).permute(2, 0, 1)[None].float()
    mask = torch.from_numpy(view.mask.copy())[None, None].float()
    share = F.interpolate(mask, (height, width), mode="area")
    clean = F.interpolate(image * mask, (height, width), mode="area") / share.clamp_min(1e-6)
    small = torch.where(share > 0, clean, F.interpolate(image, (height, width), mode="area"))
    inside = share[0, 0] >= 0.5
    inside = inside if bool(inside.any()) else share[0, 0] > 0
    sx, sy = width / view.width, height / view.height
    small_from_working = np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1.0]])
    return dataclasses.replace(
        view,
        image=small[0].permute(1, 2, 0).round().to(torch.uint8).numpy(),
        mask=inside.numpy(),
        intrinsics=None,
        working_from_source=small_from_working @ view.working_from_source,
    )


def enlarge(values: Tensor, inside: Tensor, size: tuple[int, int]) -> Tensor:
    """`values` (h, w, C) bilinear at `size` (H, W), (H, W, C), from pixels `inside` (h, w) only; 0 beyond them."""
    weight = inside[None, None].to(values.dtype)
    masked = values.permute(2, 0, 1)[None] * weight
    if size == tuple(inside.shape):
        return masked[0].permute(1, 2, 0)
    total = F.interpolate(masked, size, mode="bilinear", align_corners=False)
    share = F.interpolate(weight, size, mode="bilinear", align_corners=False)
    return torch.where(share > 0, total / share.clamp_min(1e-6), 0.0)[0].permute(1, 2, 0)


def _reach(inside: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (H, W) bool of `size` that `enlarge` fills from `inside` (h, w)."""
    return enlarge(torch.ones(*inside.shape, 1), inside, size)[..., 0] > 0


def enlarge_pointmap(small: Pointmap, inside: Array, view: View, minimum: float) -> Pointmap:
    """A point map of the network's size at the view's; `minimum` is the least confidence.

    A foreground pixel of the view that no small foreground pixel reaches says nothing, like the background.
    """
    size, on = (view.height, view.width), torch.from_numpy(np.array(inside))
    shown = torch.from_numpy(view.mask.copy()) & _reach(on, size)

    def at_view(values: Array) -> Tensor:
        return enlarge(torch.from_numpy(np.array(values)), on, size)

    points = torch.where(shown[..., None], at_view(small.points), torch.tensor([0.0, 0.0, 1.0]))
    confidence = torch.where(shown, at_view(small.confidence[..., None])[..., 0], minimum)
    descriptors, trust = None, None
    if small.descriptors is not None and small.descriptor_confidence is not None:
        descriptors = (F.normalize(at_view(small.descriptors), dim=-1) * shown[..., None]).numpy()
        trust = (at_view(small.descriptor_confidence[..., None])[..., 0] * shown).numpy()
    return Pointmap(points.numpy(), confidence.numpy(), descriptors, trust)


class SmallNetworkPredictor:
    """`BatchPredictor` of any MASt3R network, run at long side `side` whatever the size of the views."""

    def __init__(self, source: Path | AsymmetricCroCo3DStereo, config: ForwardConfig, side: int | None = None) -> None:
        self.network = Mast3rPredictor(source, config)
        self.side = max(self.network.arch.img_size) if side is None else side
        self._shrunk: OrderedDict[View, View] = OrderedDict()
        mark = mark_of_subclass(self, SmallNetworkPredictor, CompactPredictor)
        content = f"small-1 {self.network.fingerprint} {self.side}{mark}"
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def _small(self, view: View) -> View:
        """`view` at the network's own size; the last ones are remembered, for a view is in many pairs."""
        small = self._shrunk.pop(view, None)
        self._shrunk[view] = shrink(view, self.side, self.network.arch.patch_size) if small is None else small
        while len(self._shrunk) > _REMEMBERED:
            self._shrunk.popitem(last=False)
        return self._shrunk[view]

    def encode(self, view: View) -> Features:
        """Encoder tokens of one view."""
        return self.network.encode(self._small(view))

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        """Point maps and descriptors of both views in both frames."""
        return self.predict_from_features(view_i, view_j, self.encode(view_i), self.encode(view_j))

    def predict_from_features(
        self, view_i: View, view_j: View, features_i: Features, features_j: Features
    ) -> PairPrediction:
        """As `predict`, from tokens computed before."""
        return self.predict_batch([view_i], [view_j], [features_i], [features_j])[0]

    def pairs_at_once(self, views_i: Sequence[View], views_j: Sequence[View]) -> int:
        """How many of these pairs, from the first on, fit into one batch at the network's own size."""
        if self.network.device.type == "cpu":
            return 1  # known without shrinking any view
        small_i, small_j = ([self._small(view) for view in views] for views in (views_i, views_j))
        return self.network.pairs_at_once(small_i, small_j)

    def free_memory(self) -> None:
        """Forget shrunk views, and what the network keeps."""
        self._shrunk.clear()
        self.network.free_memory()

    def predict_batch(
        self,
        views_i: Sequence[View],
        views_j: Sequence[View],
        features_i: Sequence[Features],
        features_j: Sequence[Features],
    ) -> list[PairPrediction]:
        """As `predict_from_features` for many pairs."""
        small_i, small_j = ([self._small(view) for view in views] for views in (views_i, views_j))
        found = self.network.predict_batch(small_i, small_j, features_i, features_j)
        pairs = zip(found, zip(views_i, small_i), zip(views_j, small_j))
        return [self._enlarged(prediction, i, j) for prediction, i, j in pairs]

    def _enlarged(self, found: PairPrediction, i: tuple[View, View], j: tuple[View, View]) -> PairPrediction:
        """A prediction on small views at the size of the views; `i` and `j` are (view, small view)."""
        if found.rejected is not None:
            return PairPrediction.reject(i[0], j[0], found.rejected)
        minimum = self.network.arch.conf_mode.minimum
        maps = [
            enlarge_pointmap(small, shrunk.mask, view, minimum)
            for small, (view, shrunk) in (
                (found.i_in_i, i),
                (found.j_in_i, j),
                (found.j_in_j, j),
                (found.i_in_j, i),
            )
        ]
        return PairPrediction(maps[0], maps[1], maps[2], maps[3])


class CompactPredictor(SmallNetworkPredictor):
    """The network that ships with the package; raises `InputError` where it does not."""

    def __init__(self, config: ForwardConfig, folder: Path | None = None) -> None:
        folder = weights_folder() if folder is None else folder
        if not (folder / "model.safetensors").is_file():
            raise InputError(
                f"predictor 'compact': sparse_ga {version('sparse_ga')} ships no compact weights (looked in {folder}); "
                "use predictor 'classical' (no weights) or 'mast3r', or train them with pipelines/train_compact.py"
            )
        super().__init__(folder, config)
