"""The MASt3R predictor: contract, masks, batches, fingerprints, errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "network"))
from small_networks import random_model, small_mast3r, write_pth

from sparse_ga.config import ForwardConfig
from sparse_ga.errors import InputError
from sparse_ga.network.checkpoint import convert_weights, save_model
from sparse_ga.network.model import AsymmetricCroCo3DStereo, ImageBatch
from sparse_ga.predictors.base import FeaturePredictor, MemoryPredictor, PairPredictor
from sparse_ga.predictors.compact import SmallNetworkPredictor
from sparse_ga.predictors.mast3r import Mast3rPredictor
from sparse_ga.products import PairPrediction, Pointmap, View

MODES = ("tokens", "fill", "context")


def make_view(name: str, seed: int, size: tuple[int, int] = (96, 128), radius: float | None = 30) -> View:
    """A view of noise with a disc mask; without a radius everything is foreground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    inside = (y - size[0] / 2 - seed) ** 2 + (x - size[1] / 2 + 5) ** 2 < (1e9 if radius is None else radius) ** 2
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return View(name, image, inside, None, np.eye(3), (size[1], size[0]), f"digest {seed}")


def with_image(view: View, image: np.ndarray) -> View:
    return View(view.name, image, view.mask, None, view.working_from_source, view.source_size, view.digest)


def other_background(view: View, seed: int) -> View:
    """The same foreground before another background."""
    noise = np.random.default_rng(seed).integers(0, 256, view.image.shape, dtype=np.uint8)
    return with_image(view, np.where(view.mask[..., None], view.image, noise))


def pointmaps(prediction: PairPrediction) -> Iterator[Pointmap]:
    yield from (prediction.i_in_i, prediction.j_in_i, prediction.j_in_j, prediction.i_in_j)


def arrays(prediction: PairPrediction) -> list[np.ndarray]:
    found = []
    for m in pointmaps(prediction):
        found += [m.points, m.confidence, m.descriptors, m.descriptor_confidence]
    return [array for array in found if array is not None]


def identical(a: PairPrediction, b: PairPrediction) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


@pytest.fixture(scope="module")
def network() -> AsymmetricCroCo3DStereo:
    return random_model(small_mast3r("catmlp+dpt"))


def predictor(network: AsymmetricCroCo3DStereo, mode: str = "tokens", precision: str = "fp32") -> Mast3rPredictor:
    return Mast3rPredictor(network, ForwardConfig(mask_mode=mode, precision=precision, device="cpu"))


def test_keeps_the_contract(network: AsymmetricCroCo3DStereo) -> None:
    chosen = predictor(network)
    assert isinstance(chosen, PairPredictor)
    assert isinstance(chosen, FeaturePredictor)
    view_i, view_j = make_view("a", 1), make_view("b", 2, (128, 96))
    prediction = chosen.predict(view_i, view_j)
    assert prediction.rejected is None
    for m, view in zip(pointmaps(prediction), (view_i, view_j, view_j, view_i), strict=True):
        assert m.points.shape == (view.height, view.width, 3)
        assert m.points.dtype == np.float32
        assert m.descriptors is not None
        assert m.descriptors.shape == (view.height, view.width, 8)
        assert m.descriptor_confidence is not None
        assert (m.confidence[~view.mask] == 1).all()
        assert (m.descriptor_confidence[~view.mask] == 0).all()
    assert all(np.isfinite(array).all() for array in arrays(prediction))


@pytest.mark.parametrize("mode", MODES)
def test_everything_foreground_is_the_network_itself(network: AsymmetricCroCo3DStereo, mode: str) -> None:
    view_i, view_j = make_view("a", 1, radius=None), make_view("b", 2, radius=None)
    prediction = predictor(network, mode).predict(view_i, view_j)
    assert identical(prediction, predictor(network, "context").predict(view_i, view_j))
    batches = [ImageBatch(torch.from_numpy(v.image).permute(2, 0, 1)[None] / 127.5 - 1) for v in (view_i, view_j)]
    first, second = network(*batches)
    third, fourth = network(*batches[::-1])
    for m, output in zip(pointmaps(prediction), (first, second, third, fourth), strict=True):
        error = np.linalg.norm(m.points - output.points[0].numpy(), axis=-1)
        assert error.max() <= 1e-4 * output.points.norm(dim=-1).max()
        np.testing.assert_allclose(m.confidence, output.confidence[0], rtol=1e-4)
        np.testing.assert_allclose(m.descriptors, output.descriptors[0], atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["tokens", "fill"])
def test_background_does_not_change_one_bit(network: AsymmetricCroCo3DStereo, mode: str, precision: str) -> None:
    chosen = predictor(network, mode, precision)
    view_i, view_j = make_view("a", 1), make_view("b", 2)
    reference = chosen.predict(view_i, view_j)
    for seed in (7, 8):
        assert identical(reference, chosen.predict(other_background(view_i, seed), other_background(view_j, seed + 9)))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("size_i", "size_j"), [((48, 64), (64, 48)), ((192, 256), (256, 192)), ((384, 512), (96, 128))]
)
def test_background_does_not_change_one_bit_at_any_size_and_number_of_threads(
    network: AsymmetricCroCo3DStereo, size_i: tuple[int, int], size_j: tuple[int, int], threads: int
) -> None:
    """With the packed layers that inference uses; portrait against landscape, and unequal sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        chosen = predictor(network)
        views = [make_view("a", 1, size_i, size_i[0] / 3), make_view("b", 2, size_j, size_j[0] / 4)]
        reference = chosen.predict(*views)
        assert identical(reference, chosen.predict(*(other_background(view, 11) for view in views)))
        black = [with_image(view, view.image * view.mask[..., None].astype(np.uint8)) for view in views]
        assert identical(reference, chosen.predict(*black))
    finally:
        torch.set_num_threads(before)


def test_bf16_is_near_fp32(network: AsymmetricCroCo3DStereo) -> None:
    view_i, view_j = make_view("a", 1), make_view("b", 2)
    exact = predictor(network).predict(view_i, view_j)
    rough = predictor(network, precision="bf16").predict(view_i, view_j)
    assert not identical(exact, rough)
    for a, b in zip(pointmaps(exact), pointmaps(rough), strict=True):
        assert np.abs(a.confidence - b.confidence).max() < 0.05 * np.abs(a.confidence).max()
        assert np.abs(a.descriptors - b.descriptors).max() < 0.1


def test_batches_and_features_change_nothing(network: AsymmetricCroCo3DStereo) -> None:
    chosen = predictor(network)
    views = [make_view(str(n), n, radius=15 + 4 * n) for n in range(3)]
    features = [chosen.encode(view) for view in views]
    pairs = [(0, 1), (0, 2), (1, 2)]
    firsts, seconds = [i for i, _ in pairs], [j for _, j in pairs]
    batch = chosen.predict_batch(
        [views[n] for n in firsts],
        [views[n] for n in seconds],
        [features[n] for n in firsts],
        [features[n] for n in seconds],
    )
    for (i, j), prediction in zip(pairs, batch, strict=True):
        assert identical(prediction, chosen.predict(views[i], views[j]))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["dpt", "catmlp+dpt", "catconv", "linear"])
def test_what_heads_keep_of_an_image_changes_no_bit(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept from an earlier pair, made again after it was dropped, or made for this pair; for both sides of a pair."""
    chosen = predictor(random_model(small_mast3r(head)))
    views = [make_view("a", 1), make_view("b", 2, (128, 96)), make_view("c", 3, radius=None)]
    pairs = [(0, 1), (0, 2), (1, 2), (2, 0)]
    first = [chosen.predict(views[i], views[j]) for i, j in pairs]
    assert len(chosen._prepared) == 3
    again = [chosen.predict(views[i], views[j]) for i, j in pairs]
    monkeypatch.setattr("sparse_ga.predictors.mast3r._PREPARED_BYTES", 0)
    forgetful = predictor(random_model(small_mast3r(head)))
    anew = [forgetful.predict(views[i], views[j]) for i, j in pairs]
    assert len(forgetful._prepared) == (2 if "dpt" in head else 3)
    for a, b, c in zip(first, again, anew, strict=True):
        assert identical(a, b)
        assert identical(a, c)
    monkeypatch.setattr(AsymmetricCroCo3DStereo, "prepare", lambda self, tokens, grid: None)
    plain = predictor(random_model(small_mast3r(head))).predict(views[0], views[1])
    for x, y in zip(arrays(plain), arrays(first[0]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())


def test_a_batch_of_pairs_agrees_with_pairs_alone(
    network: AsymmetricCroCo3DStereo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does with several pairs at once, run here."""
    chosen = predictor(network)
    views = [make_view("a", 1), make_view("b", 2, radius=20), make_view("c", 3, (128, 96))]
    features = [chosen.encode(view) for view in views]
    empty = make_view("d", 4, radius=0.0)
    views, features = [*views, empty], [*features, chosen.encode(empty)]
    order_i, order_j = [0, 3, 1], [1, 0, 2]
    arguments = [[x[n] for n in order] for x in (views, features) for order in (order_i, order_j)]
    monkeypatch.setattr(Mast3rPredictor, "pairs_at_once", lambda self, i, j: len(i))
    together = chosen.predict_batch(*arguments)
    for prediction, i, j in zip(together, order_i, order_j, strict=True):
        alone = chosen.predict(views[i], views[j])
        assert prediction.rejected == alone.rejected
        for x, y in zip(arrays(prediction), arrays(alone), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3 * np.abs(y).max())


def test_memory_budget_sets_the_batch(network: AsymmetricCroCo3DStereo) -> None:
    chosen = predictor(network)
    views = [make_view(str(n), n % 9) for n in range(100)]
    full = [make_view(str(n), n % 9, radius=None) for n in range(100)]
    assert chosen.pairs_at_once(views, views) == 1
    chosen.device = torch.device("meta")
    assert 50 < chosen.pairs_at_once(full, full) < chosen.pairs_at_once(views, views) <= 100
    chosen.config = ForwardConfig(memory_gb=0.1)
    assert chosen.pairs_at_once(views, views) == 1


def test_empty_masks_are_rejected_with_the_name(network: AsymmetricCroCo3DStereo) -> None:
    for mode in MODES:
        chosen = predictor(network, mode)
        prediction = chosen.predict(make_view("full", 1), make_view("nothing", 2, radius=0.0))
        assert prediction.rejected is not None
        assert "nothing" in prediction.rejected
        assert all(np.isfinite(array).all() for array in arrays(prediction))


def test_dust3r_has_no_descriptors() -> None:
    for head in ("linear", "dpt"):
        chosen = predictor(random_model(small_mast3r(head)))
        prediction = chosen.predict(make_view("a", 1), make_view("b", 2))
        assert all(m.descriptors is None and m.descriptor_confidence is None for m in pointmaps(prediction))


@pytest.mark.slow
def test_fingerprint_follows_weights_and_settings_only(network: AsymmetricCroCo3DStereo) -> None:
    base = predictor(network)
    assert base.fingerprint == predictor(random_model(small_mast3r("catmlp+dpt"))).fingerprint
    others = [
        predictor(random_model(small_mast3r("catmlp+dpt"), seed=1)),
        predictor(network, "fill"),
        predictor(network, "context"),
        predictor(network, precision="bf16"),
    ]
    assert len({base.fingerprint, *(p.fingerprint for p in others)}) == 5
    richer = Mast3rPredictor(network, ForwardConfig(precision="auto", device="cpu", memory_gb=9, keep_descriptors=True))
    assert richer.fingerprint == base.fingerprint


@pytest.mark.parametrize("small", [False, True])
def test_freed_memory_changes_no_bit(network: AsymmetricCroCo3DStereo, small: bool) -> None:
    config = ForwardConfig(device="cpu", precision="fp32")
    chosen = SmallNetworkPredictor(network, config, 64) if small else Mast3rPredictor(network, config)
    assert isinstance(chosen, MemoryPredictor)
    views = make_view("a", 0), make_view("b", 4)
    before = chosen.predict(*views)
    inner = chosen.network if isinstance(chosen, SmallNetworkPredictor) else chosen
    assert inner._prepared
    chosen.free_memory()
    assert not inner._prepared
    assert not (isinstance(chosen, SmallNetworkPredictor) and chosen._shrunk)
    assert identical(chosen.predict(*views), before)


def test_a_derived_class_has_a_fingerprint_of_its_own(network: AsymmetricCroCo3DStereo) -> None:
    class Mine(Mast3rPredictor):
        pass

    class MineSmall(SmallNetworkPredictor):
        pass

    config = ForwardConfig(device="cpu")
    assert Mine(network, config).fingerprint != Mast3rPredictor(network, config).fingerprint
    assert MineSmall(network, config).fingerprint != SmallNetworkPredictor(network, config).fingerprint


def test_photographs_larger_than_what_the_network_was_trained_on_are_warned_of_once(
    network: AsymmetricCroCo3DStereo,
) -> None:
    chosen = predictor(network)
    assert max(chosen.arch.img_size) == 224
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        chosen.encode(make_view("fits", 0, (160, 224)))
        assert told == []
        chosen.encode(make_view("large", 1, (160, 240)))
        chosen.encode(make_view("another", 2, (240, 160)))
    assert len(told) == 1
    assert str(told[0].message).startswith("large: 240x160 px")
    assert "set ingest.long_side to 224" in str(told[0].message)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sparse_ga.network.errors.LicenceNotice")
def test_containers_of_the_same_weights_are_the_same_predictor(
    tmp_path: Path, network: AsymmetricCroCo3DStereo
) -> None:
    call = (
        "AsymmetricMASt3R(head_type='catmlp+dpt', output_mode='pts3d+desc8', enc_embed_dim=32, enc_depth=2, "
        "enc_num_heads=2, dec_embed_dim=24, dec_depth=4, dec_num_heads=2, two_confs=True, dpt_width=16, "
        "desc_conf_mode=('exp', 0, inf))"
    )
    write_pth(network, tmp_path / "a.pth", call)
    convert_weights(tmp_path / "a.pth", tmp_path / "folder")
    save_model(network, tmp_path / "half", "Apache-2.0", half=True)
    config = ForwardConfig(precision="fp32", device="cpu")
    loaded = [Mast3rPredictor(str(tmp_path / name), config) for name in ("a.pth", "folder", "half")]
    want = predictor(network)
    assert loaded[0].fingerprint == loaded[1].fingerprint == want.fingerprint != loaded[2].fingerprint
    view_i, view_j = make_view("a", 1), make_view("b", 2)
    assert identical(loaded[1].predict(view_i, view_j), want.predict(view_i, view_j))


def test_wrong_input_is_named(network: AsymmetricCroCo3DStereo) -> None:
    chosen = predictor(network)
    view, wide = make_view("a", 1), make_view("odd", 1, (96, 120))
    with pytest.raises(InputError, match=r"odd: 120x96 px.*multiple to 16"):
        chosen.encode(wide)
    other = chosen.encode(make_view("a", 1, radius=12))
    with pytest.raises(InputError, match="another mask"):
        chosen.predict_from_features(view, view, other, other)
    with pytest.raises(InputError, match="no such device"):
        Mast3rPredictor(network, ForwardConfig(device="cuda:77"))
    with pytest.raises(InputError, match="unknown; choose from auto, cpu, cuda, cuda:N, mps"):
        Mast3rPredictor(network, ForwardConfig(device="abacus"))
    with pytest.raises(InputError, match="cannot be used for this"):
        Mast3rPredictor(network, ForwardConfig(device="meta"))
    with pytest.raises(InputError, match="owner/name"):
        Mast3rPredictor("no_such_file.pth")


def test_the_network_given_is_left_alone(network: AsymmetricCroCo3DStereo) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    predictor(network, precision="bf16").predict(make_view("a", 1), make_view("b", 2))
    assert network.compute_dtype is None
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "catmlp+dpt"])
def test_a_checkpoint_goes_through_the_whole_pipeline(tmp_path: Path, head: str) -> None:
    """DUSt3R by its 3D points, MASt3R by its descriptors; an untrained network ties nothing in and says so."""
    import sparse_ga

    save_model(random_model(small_mast3r(head)), tmp_path / "weights", "Apache-2.0")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n in range(3):
        view = make_view(str(n), n)
        Image.fromarray(view.image).save(tmp_path / "images" / f"{n}.png")
        Image.fromarray(view.mask).save(tmp_path / "masks" / f"{n}.png")
    found = sparse_ga.reconstruct(
        tmp_path / "images", tmp_path / "masks", cache=tmp_path / "cache", predictor=str(tmp_path / "weights")
    )
    assert not found.registered.any()
    assert all(found.reasons)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu(network: AsymmetricCroCo3DStereo) -> None:
    views = make_view("a", 1), make_view("b", 2)
    exact = predictor(network).predict(*views)
    for precision, tolerance in (("fp32", 2e-2), ("bf16", 0.1)):
        chosen = Mast3rPredictor(network, ForwardConfig(device="cuda", precision=precision))
        first = chosen.predict(*views)
        assert identical(first, chosen.predict(*(other_background(view, 3) for view in views)))
        for x, y in zip(arrays(first), arrays(exact), strict=True):
            assert np.abs(x - y).max() <= tolerance * np.abs(y).max()
