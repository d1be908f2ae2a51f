"""The forward and match stages with a real network: features from memory or from the cache, and what a pair takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "network"))
from small_networks import random_model, small_mast3r

from sparse_ga import codec
from sparse_ga.config import Config, make_config
from sparse_ga.predictors.mast3r import Mast3rPredictor
from sparse_ga.products import PairPrediction, View
from sparse_ga.stages.packing import pack_prediction, unpack_prediction
from sparse_ga.stages.pairwise import PairStages
from sparse_ga.store import Store


def make_view(name: str, size: tuple[int, int], share: float) -> View:
    """A view of noise, `size` (H, W), with a disc mask that covers `share` of it."""
    rng = np.random.default_rng(len(name) + size[0])
    y, x = np.mgrid[: size[0], : size[1]]
    disc = (y - size[0] / 2) ** 2 + (x - size[1] / 2) ** 2 < share * size[0] * size[1] / np.pi
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return View(name, image, disc, None, np.eye(3), (size[1], size[0]), f"digest of {name}")


VIEWS = (
    make_view("landscape", (96, 128), 0.3),
    make_view("portrait", (128, 96), 0.2),
    make_view("all", (96, 128), 4.0),
    make_view("none", (96, 128), 0.0),
    make_view("small", (64, 64), 0.01),
)
PAIRS = list(combinations(range(len(VIEWS)), 2))


def stages(folder: Path, head: str, **forward: object) -> PairStages:
    """The stages of all pairs on the store in `folder`."""
    config: Config = make_config({"forward": {"device": "cpu", **forward}, "match": {"min_matches": 1}})
    predictor = Mast3rPredictor(random_model(small_mast3r(head)), config.forward)
    return PairStages(Store(folder), VIEWS, PAIRS, predictor, config)


def artifacts(work: PairStages, folder: Path) -> list[bytes]:
    """Everything the store holds of all pairs."""
    return [Store(folder).path(key).read_bytes() for key in (*work.forward_keys, *work.match_keys)]


def compute(work: PairStages, batches: Sequence[Sequence[int]]) -> None:
    for batch in batches:
        for k, prediction in zip(batch, work.predict(batch), strict=True):
            work.keep(k, prediction, True)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["catmlp+dpt", "dpt"])
@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"mask_mode": "context"}, {"keep_descriptors": True}])
def test_features_from_the_cache_serve_as_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, options: dict
) -> None:
    """Bit for bit, for landscape against portrait, no mask, an empty one and a few pixels."""
    first = stages(tmp_path / "a", head, **options)
    compute(first, [[k] for k in range(len(PAIRS))])
    for key in first.features.keys:
        Store(tmp_path / "b").put(key, Store(tmp_path / "a").get(key))
    second = stages(tmp_path / "b", head, **options)
    monkeypatch.setattr(Mast3rPredictor, "encode", lambda self, view: pytest.fail("encoded what the cache has"))
    compute(second, [[k] for k in range(len(PAIRS))])
    assert artifacts(first, tmp_path / "a") == artifacts(second, tmp_path / "b")


@pytest.mark.slow
def test_pairs_with_an_empty_mask_say_so_and_all_others_are_matched(tmp_path: Path) -> None:
    work = stages(tmp_path, "catmlp+dpt")
    compute(work, [[k] for k in range(len(PAIRS))])
    for k, (i, j) in enumerate(PAIRS):
        rejected = work.load_matches(k).rejected or ""
        assert ("none: the mask is empty" in rejected) == (3 in (i, j))
        assert work.load_prediction(k).rejected is None or 3 in (i, j)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[10], [1, 9], [3, 3, 3, 1]])
def test_batches_of_any_size_give_nearly_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    """As on a GPU, where a batch is as large as memory allows; the last bits may differ."""
    alone, together = stages(tmp_path / "a", "catmlp+dpt"), stages(tmp_path / "b", "catmlp+dpt")
    compute(alone, [[k] for k in range(len(PAIRS))])
    left = list(sizes)
    monkeypatch.setattr(Mast3rPredictor, "pairs_at_once", lambda self, i, j: min(left[0], len(i)))
    batches = []
    for batch in together.batches(range(len(PAIRS))):
        batches.append(batch)
        compute(together, [batch])
        left.pop(0)
        left.append(1)
    assert [len(batch) for batch in batches] == sizes
    assert [k for batch in batches for k in batch] == list(range(len(PAIRS)))
    for k in range(len(PAIRS)):
        a, b = alone.load_prediction(k), together.load_prediction(k)
        assert a.rejected == b.rejected
        np.testing.assert_allclose(
            a.i_in_i.points, b.i_in_i.points, rtol=4e-3, atol=4e-3 * np.abs(a.i_in_i.points).max()
        )


@pytest.fixture(scope="module")
def full_size() -> tuple[View, View, PairPrediction]:
    """A prediction at 512x384 with a quarter of foreground, by a network with 24-dimensional descriptors."""
    network = random_model(small_mast3r("catmlp+dpt", output_mode="pts3d+desc24"))
    views = make_view("one", (384, 512), 0.25), make_view("other", (384, 512), 0.25)
    config = make_config({"forward": {"device": "cpu"}}).forward
    return *views, Mast3rPredictor(network, config).predict(*views)


@pytest.mark.parametrize(("descriptors", "limit"), [(False, 1.0e6), (True, 5.0e6)])
def test_bytes_of_a_pair_in_the_cache(
    tmp_path: Path, full_size: tuple[View, View, PairPrediction], descriptors: bool, limit: float
) -> None:
    view_i, view_j, prediction = full_size
    assert prediction.i_in_i.descriptors is not None
    assert prediction.i_in_i.descriptors.shape == (384, 512, 24)
    packed = pack_prediction(prediction, view_i, view_j, 2, descriptors)
    size = len(codec.encode(packed, {"some": "provenance"}))
    print(f"{size / 1e6:.2f} MB a pair {'with' if descriptors else 'without'} descriptors")
    assert 0.4e6 < size <= limit


def test_depth_in_half_precision_loses_less_than_a_thousandth(full_size: tuple[View, View, PairPrediction]) -> None:
    """Of every depth in front of the camera down to a ten-thousandth of the median, and of every point's distance."""
    view_i, view_j, prediction = full_size
    back = unpack_prediction(pack_prediction(prediction, view_i, view_j, 1, False), view_i, view_j)
    depth_loss = distance_loss = 0.0
    for name, view in (("i_in_i", view_i), ("j_in_i", view_j), ("j_in_j", view_j), ("i_in_j", view_i)):
        before, after = (getattr(p, name).points[view.mask] for p in (prediction, back))
        deep = before[:, 2] > 1e-4 * np.median(np.abs(before[:, 2]))
        assert deep.mean() > 0.2
        depth_loss = max(depth_loss, float(np.abs(after[deep, 2] / before[deep, 2] - 1).max()))
        moved = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
        distance_loss = max(distance_loss, float(moved.max()))
    print(f"largest relative loss of depth {depth_loss:.1e}, of distance {distance_loss:.1e}")
    assert depth_loss < 1e-3
    assert distance_loss < 1e-3
