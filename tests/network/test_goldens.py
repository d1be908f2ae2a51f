"""The published architectures, by name, shape and number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import drawn_model, golden_arch, golden_names

from sparse_ga.network.architecture import Architecture
from sparse_ga.network.inference import for_inference
from sparse_ga.network.model import ImageBatch, Output, build_model

pytestmark = pytest.mark.shared

PAIR_GOLDENS = ("dust3r_linear", "dust3r_dpt", "mast3r_catconv", "mast3r_catmlpdpt")
FIELDS = {
    "pts3d": "points",
    "pts3d_in_other_view": "points",
    "conf": "confidence",
    "desc": "descriptors",
    "desc_conf": "descriptor_confidence",
}


def relative_errors(got: torch.Tensor, want: np.ndarray) -> tuple[float, float]:
    """Largest error by the array's largest value; and the error by each value itself, exceeded by one in 10,000.

    Of vectors (points, descriptors) the error's length by the vector's. The second is no maximum: where a point lies
    next to the camera centre, the goldens themselves are 7e-5 from the same network in float64.
    """
    got64, want64 = got.double().numpy(), want.astype(np.float64)
    error, size = np.abs(got64 - want64), np.abs(want64)
    if want.ndim == 4:
        error, size = np.linalg.norm(got64 - want64, axis=-1), np.linalg.norm(want64, axis=-1)
    return float(error.max() / size.max()), float(np.quantile(error / size, 0.9999))


def compare(output: Output, golden: np.lib.npyio.NpzFile, prefix: str) -> int:
    """Assert 1e-4 on every array under `prefix` and print both errors; returns how many were there."""
    keys = [key for key in golden if key.startswith(prefix)]
    for key in keys:
        got = getattr(output, FIELDS[key.removeprefix(prefix)])
        assert got.shape == golden[key].shape, key
        errors = relative_errors(got, golden[key])
        print(f"{key}: {errors[0]:.1e} of the largest value, {errors[1]:.1e} of each value")
        assert max(errors) <= 1e-4, key
    return len(keys)


@pytest.mark.parametrize("name", [*PAIR_GOLDENS, "mast3r_manyar"])
def test_state_dict_names_shapes_and_order(shared_dir: Path, name: str) -> None:
    path = shared_dir / "golden" / f"{name}.json"
    with torch.device("meta"):
        model = build_model(golden_arch(path))
    assert [(k, list(v.shape)) for k, v in model.state_dict().items()] == golden_names(path)


def test_vit_large_key_list(shared_dir: Path) -> None:
    text = (
        "AsymmetricMASt3R(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), "
        "head_type='catmlp+dpt', output_mode='pts3d+desc24', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
        "enc_embed_dim=1024, enc_depth=24, enc_num_heads=16, dec_embed_dim=768, dec_depth=12, dec_num_heads=12, "
        "two_confs=True, desc_conf_mode=('exp', 0, inf))"
    )
    with torch.device("meta"):
        model = build_model(Architecture.parse(text))
    want = golden_names(shared_dir / "golden" / "mast3r_vitlarge_512_keys.json")
    assert [(k, list(v.shape)) for k, v in model.state_dict().items()] == want


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", PAIR_GOLDENS)
def test_pairs(shared_dir: Path, name: str, packed: bool) -> None:
    """As it is built and, `packed`, as the predictor runs it."""
    model = drawn_model(golden_arch(shared_dir / "golden" / f"{name}.json"))
    if packed:
        model = for_inference(model, torch.device("cpu"))
    golden = np.load(shared_dir / "golden" / f"{name}.npz")
    for tag in ("land", "mixed"):
        images = [torch.from_numpy(golden[f"{tag}/img{n}"]) for n in (1, 2)]
        features = model.encode_masked(list(images[0]), [None], "tokens").tokens
        want = golden[f"{tag}/feat1"][0]
        assert np.abs(features.numpy() - want).max() <= 1e-4 * np.abs(want).max()
        for view, output in enumerate(model(ImageBatch(images[0]), ImageBatch(images[1])), start=1):
            assert compare(output, golden, f"{tag}/view{view}/") == (4 if name.startswith("mast3r") else 2)


@pytest.mark.slow
def test_portrait_in_a_landscape_batch(shared_dir: Path) -> None:
    model = drawn_model(golden_arch(shared_dir / "golden" / "mast3r_manyar.json"))
    golden = np.load(shared_dir / "golden" / "mast3r_manyar.npz")
    views = [ImageBatch(*[torch.from_numpy(golden[f"{key}{n}"]) for key in ("img", "shape")]) for n in (1, 2)]
    for view, output in enumerate(model(*views), start=1):
        assert compare(output, golden, f"view{view}/") == 4
