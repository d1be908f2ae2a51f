"""Two photographs and their matches: the API call, and `sparse-ga match` with a network's checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "network"))
from small_networks import random_model, small_mast3r, write_pth

from sparse_ga.cli import main
from sparse_ga.config import make_config
from sparse_ga.match_pair import MatchedPair, match_pair
from sparse_ga.network import checkpoint
from sparse_ga.network.checkpoint import save_model
from sparse_ga.predictors.classical import ClassicalPredictor, ClassicalSettings
from sparse_ga.products import Array, PairMatches
from sparse_ga.synthetic.scene import SceneConfig, SyntheticScene, make_scene

CALL = (
    "AsymmetricMASt3R(head_type='catmlp+dpt', output_mode='pts3d+desc8', enc_embed_dim=32, enc_depth=2, "
    "enc_num_heads=2, dec_embed_dim=24, dec_depth=4, dec_num_heads=2, two_confs=True, dpt_width=16, "
    "desc_conf_mode=('exp', 0, inf))"
)


def disc(size: tuple[int, int], radius: float) -> Array:
    """A disc mask (H, W) bool in the middle of an image of `size` (W, H)."""
    y, x = np.mgrid[: size[1], : size[0]]
    return (x - size[0] / 2) ** 2 + (y - size[1] / 2) ** 2 < radius**2


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs of noise, landscape and portrait, with disc masks, in images/ and masks/."""
    rng = np.random.default_rng(0)
    for name, size in (("A", (160, 120)), ("B", (120, 160))):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        noise = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(disc(size, 45)).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def match_command(folder: Path, *more: object) -> int:
    images = [folder / "images" / f"{name}.jpg" for name in "AB"]
    words = ["match", *images, "--out", folder / "out", "--set", "ingest.long_side=128", *more]
    return main([str(word) for word in words])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["catmlp+dpt", "linear"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("fine", [True, False])
def test_a_random_checkpoint_matches_two_photographs(photos: Path, head: str, masked: bool, fine: bool) -> None:
    save_model(random_model(small_mast3r(head)), photos / "weights", "Apache-2.0")
    masks = ["--masks", photos / "masks"] if masked else []
    code = match_command(photos, "--predictor", photos / "weights", *masks, *(["--fine"] if fine else []))
    assert code in (0, 3)  # 3: an untrained network's matches agree on no geometry
    with Image.open(photos / "out" / "A_B_matches.png") as picture:
        assert picture.width > 200
    numbers = np.load(photos / "out" / "A_B_matches.npz")
    assert len(numbers["xy_i"]) == len(numbers["xy_j"]) == len(numbers["confidence"]) > 0
    assert code == 0 or str(numbers["rejected"])
    if masked:
        for xy, size in ((numbers["xy_i"], (160, 120)), (numbers["xy_j"], (120, 160))):
            x, y = np.rint(xy).astype(int).T
            assert disc(size, 47)[y, x].all()


def test_the_licence_is_told_once_and_a_published_file_loads(
    photos: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_announced", set())
    write_pth(random_model(small_mast3r("catmlp+dpt")), photos / "a.pth", CALL)
    for _ in range(2):
        match_command(photos, "--predictor", photos / "a.pth", "--masks", photos / "masks")
    assert capsys.readouterr().err.count("CC BY-NC-SA 4.0") == 1


@pytest.mark.parametrize(("marked", "said"), [(1, "fewer than 12"), (0, "is empty")])
def test_one_pixel_and_empty_masks(photos: Path, capsys: pytest.CaptureFixture, marked: int, said: str) -> None:
    save_model(random_model(small_mast3r("catmlp+dpt")), photos / "weights", "Apache-2.0")
    mask = np.zeros((120, 160), bool)
    mask[60:62, 80:82] = marked
    Image.fromarray(mask).save(photos / "masks" / "A.png")
    code = match_command(photos, "--predictor", photos / "weights", "--masks", photos / "masks", "--fine")
    assert code == (3 if marked else 2)
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticScene, Path]:
    """A rendered object in photographs three times larger than the working images below."""
    rendered = make_scene(SceneConfig(views=12, size=(576, 432), arc_deg=120.0))
    folder = tmp_path_factory.mktemp("scene")
    rendered.write(folder)
    return rendered, folder


def source_errors_px(scene: SyntheticScene, matches: PairMatches) -> Array:
    """Distance (M,) in source px of `matches` of views 0 and 1 from where the object's surface really went."""
    column, row = np.rint(matches.xy_i).astype(int).T
    k, poses = scene.intrinsics, scene.world_from_cam
    depth = scene.depth[0][row, column]
    rays = np.concatenate([matches.xy_i, np.ones((len(matches), 1))], 1) @ np.linalg.inv(k[0]).T
    world = (rays * depth[:, None]) @ poses[0, :3, :3].T + poses[0, :3, 3]
    seen = (world - poses[1, :3, 3]) @ poses[1, :3, :3] @ k[1].T
    return np.asarray(np.linalg.norm(seen[:, :2] / seen[:, 2:] - matches.xy_j, axis=1))


def matched(folder: Path, fine: bool) -> MatchedPair:
    names = [path.name for path in sorted((folder / "images").iterdir())[:2]]
    pairs = [[folder / kind / name for name in names] for kind in ("images", "masks")]
    config = make_config({"ingest": {"long_side": 192}})
    return match_pair((pairs[0][0], pairs[0][1]), (pairs[1][0], pairs[1][1]), "classical", config, fine=fine)


@pytest.mark.slow
def test_fine_matches_are_more_and_more_exact(scene: tuple[SyntheticScene, Path]) -> None:
    coarse, fine = (matched(scene[1], fine) for fine in (False, True))
    assert coarse.verified.rejected is None
    assert fine.verified.rejected is None
    error_coarse, error_fine = (source_errors_px(scene[0], pair.source_matches) for pair in (coarse, fine))
    print(
        f"{len(error_coarse)} at {np.median(error_coarse):.2f} px, {len(error_fine)} at {np.median(error_fine):.2f} px"
    )
    assert len(error_fine) > 2 * len(error_coarse)
    assert np.median(error_fine) < 0.6 * np.median(error_coarse)
    for name, xy in (("i", fine.source_matches.xy_i), ("j", fine.source_matches.xy_j)):
        column, row = np.rint(xy).astype(int).T
        assert scene[0].masks["ij".index(name)][row, column].all()


@pytest.mark.slow
def test_photographs_of_one_name_are_not_mixed_up(photos: Path) -> None:
    """Windows of two photographs called alike must not share features."""
    for name in "AB":
        folder = photos / name
        folder.mkdir()
        for kind, end in (("images", "jpg"), ("masks", "png")):
            with Image.open(photos / kind / f"{name}.{end}") as image:
                image.resize((160, 120)).save(folder / f"x.{end}")
    weights = photos / "weights"
    save_model(random_model(small_mast3r("catmlp+dpt")), weights, "Apache-2.0")
    config = make_config({"ingest": {"long_side": 64}, "match": {"subsample": 4}})
    same = [photos / name / "x.jpg" for name in "AB"], [photos / name / "x.png" for name in "AB"]
    found = match_pair(tuple(same[0]), tuple(same[1]), str(weights), config, fine=True)
    for old, new in ((same[0][0], "first.jpg"), (same[1][0], "first.png")):
        old.rename(old.parent / new)
    other = (photos / "A/first.jpg", same[0][1]), (photos / "A/first.png", same[1][1])
    again = match_pair(other[0], other[1], str(weights), config, fine=True)
    np.testing.assert_array_equal(found.verified.matches.xy_i, again.verified.matches.xy_i)
    np.testing.assert_array_equal(found.verified.matches.xy_j, again.verified.matches.xy_j)


# ---------------------------------------------------------------- SIFT alone, then with the descriptor network


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs of an object with hardly any texture, 25 degrees apart."""
    folder = tmp_path_factory.mktemp("bare")
    config = SceneConfig("figure", 31, views=2, arc_deg=25, size=(240, 180), texture="weak", background="black")
    make_scene(config).write(folder)
    return folder


def bare_pair(folder: Path, descriptors: str) -> MatchedPair:
    images, masks = (tuple(sorted((folder / kind).iterdir())) for kind in ("images", "masks"))
    return match_pair(images, masks, config=make_config({"forward": {"descriptors": descriptors}}))


@pytest.mark.slow
def test_the_network_is_asked_about_a_pair_that_sift_alone_refuses(bare: Path) -> None:
    alone, asked, auto = (bare_pair(bare, descriptors) for descriptors in ("off", "packaged", "auto"))
    assert alone.verified.rejected is not None
    assert auto.sift_alone == alone.verified.rejected
    assert asked.sift_alone is None
    assert asked.verified.rejected is None
    np.testing.assert_array_equal(auto.verified.matches.xy_j, asked.verified.matches.xy_j)


@pytest.mark.slow
@pytest.mark.parametrize(("more", "code"), [([], 0), (["--set", "forward.descriptors=off"], 3)])
def test_the_command_says_that_the_network_was_asked(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], code: int
) -> None:
    images = [str(path) for path in sorted((bare / "images").iterdir())]
    assert main(["match", *images, "--masks", str(bare / "masks"), "--out", str(tmp_path), *more]) == code
    told = capsys.readouterr().err
    assert ("SIFT alone: only" in told) == (code == 0)
    assert ("would drop this pair: only" in told) == (code == 3)


@pytest.mark.slow
def test_a_pair_that_both_refuse_is_told_with_both_reasons(photos: Path, capsys: pytest.CaptureFixture) -> None:
    assert match_command(photos, "--masks", photos / "masks") == 3
    told = capsys.readouterr().err
    assert "once more with the descriptor network" in told
    dropped = told.partition("would drop this pair: ")[2]
    assert dropped.startswith("only ")
    assert "of the dense matches" in dropped


class OwnPredictor(ClassicalPredictor):
    """Somebody's own, of which nothing is known."""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "asked"), [(ClassicalPredictor, True), (OwnPredictor, False)])
def test_the_second_attempt_is_the_classical_predictors_alone_and_keeps_its_settings(
    photos: Path, kind: type[ClassicalPredictor], asked: bool
) -> None:
    images = photos / "images" / "A.jpg", photos / "images" / "B.jpg"
    pair = match_pair(images, predictor=kind(ClassicalSettings(min_inliers=2000)))
    reasons = [reason for reason in (pair.sift_alone, pair.verified.rejected) if reason is not None]
    assert len(reasons) == 1 + asked
    assert all(reason.startswith("only ") for reason in reasons)
    assert ("dense matches" in reasons[-1]) == asked
