"""Photographs, masks and cameras as people have them: every format, every mistake."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_ga.api import given_cameras, make_job
from sparse_ga.config import make_config
from sparse_ga.errors import InputError, UnusedCameras
from sparse_ga.geometry.transforms import exp_so3, make
from sparse_ga.io.cameras_file import GivenCamera, assign_cameras, check_intrinsics, check_pose, read_cameras
from sparse_ga.io.images import find_images, read_photograph
from sparse_ga.io.masks import find_masks, mask_labels, read_mask
from sparse_ga.products import InvalidProduct, View

SIZE = (24, 16)  # W, H


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)


def blob(size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), bool)
    mask[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = True
    return mask


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


# ---------------------------------------------------------------- photographs


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
def test_lossless_formats_are_read_exactly(tmp_path: Path, suffix: str):
    photograph = read_photograph(save(tmp_path / f"a{suffix}", picture()))
    np.testing.assert_array_equal(photograph.image, picture())
    assert photograph.alpha is None
    assert photograph.focal_px is None
    assert photograph.size == SIZE


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_are_read(tmp_path: Path, suffix: str):
    smooth = np.repeat(np.linspace(0, 255, 24)[None, :, None], 16, 0).repeat(3, 2).astype(np.uint8)
    photograph = read_photograph(save(tmp_path / f"a{suffix}", smooth, quality=95))
    assert np.abs(photograph.image.astype(int) - smooth).max() < 12


def test_grey_16_bit_alpha_and_palette_images(tmp_path: Path):
    grey = picture()[..., 0]
    np.testing.assert_array_equal(read_photograph(save(tmp_path / "g.png", grey)).image, grey[..., None].repeat(3, 2))
    for suffix in (".png", ".tif"):
        path = save(tmp_path / f"deep{suffix}", grey.astype(np.uint16) * 257)
        np.testing.assert_array_equal(read_photograph(path).image, grey[..., None].repeat(3, 2))
    alpha = blob().astype(np.uint8) * 255
    cut = read_photograph(save(tmp_path / "rgba.png", np.dstack([picture(), alpha])))
    np.testing.assert_array_equal(cut.image, picture())
    np.testing.assert_array_equal(cut.alpha, blob())
    opaque = read_photograph(save(tmp_path / "opaque.png", np.dstack([picture(), alpha | 255])))
    assert opaque.alpha is None
    two = read_photograph(save(tmp_path / "la.png", np.dstack([grey, alpha])))
    np.testing.assert_array_equal(two.alpha, blob())
    Image.fromarray(picture()).quantize(8).save(tmp_path / "palette.png")
    assert read_photograph(tmp_path / "palette.png").image.shape == (16, 24, 3)


def test_16_bit_colour_keeps_its_upper_byte(tmp_path: Path):
    import cv2

    for suffix in (".png", ".tif"):
        path = tmp_path / f"deep{suffix}"
        cv2.imwrite(str(path), picture()[..., ::-1].astype(np.uint16) * 257)
        assert np.abs(read_photograph(path).image.astype(int) - picture()).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int):
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation](picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png").image, picture())


def test_focal_length_from_the_35_mm_equivalent(tmp_path: Path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50
    save(tmp_path / "a.jpg", picture(size=(360, 240)), exif=exif)
    assert read_photograph(tmp_path / "a.jpg").focal_px == pytest.approx(500, rel=1e-9)  # 10 px a millimetre
    exif.get_ifd(0x8769)[0xA405] = 0  # means unknown
    save(tmp_path / "b.jpg", picture(size=(360, 240)), exif=exif)
    assert read_photograph(tmp_path / "b.jpg").focal_px is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_file_cut_off_or_not_an_image_names_itself(tmp_path: Path, suffix: str):
    path = save(tmp_path / f"IMG_7{suffix}", picture(size=(200, 150)))
    data = path.read_bytes()
    for cut in (0, 10, len(data) // 2):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match=rf"IMG_7\{suffix}.*(convert|copy it again)"):
            read_photograph(path)
    path.write_bytes(b"this is text")
    with pytest.raises(InputError, match="IMG_7"):
        read_photograph(path)


def test_find_images_in_natural_order_without_masks_and_other_files(tmp_path: Path):
    for name in ("img10.png", "img2.png", "img2.mask.png", ".hidden.png", "IMG1.JPG"):
        save(tmp_path / name, picture())
    (tmp_path / "notes.txt").write_text("x")
    assert [path.name for path in find_images(tmp_path)] == ["IMG1.JPG", "img2.png", "img10.png"]
    assert [path.name for path in find_images(str(tmp_path / "img*.png"))] == ["img2.png", "img10.png"]
    listed = [tmp_path / "img10.png", str(tmp_path / "IMG1.JPG")]
    assert [path.name for path in find_images(listed)] == ["img10.png", "IMG1.JPG"]


def test_digits_that_are_no_numbers_are_letters(tmp_path: Path):
    for name in ("1\u00b23.png", "1\u24613.png", "12.png"):
        save(tmp_path / name, picture())
    assert {path.name for path in find_images(tmp_path)} == {"1\u00b23.png", "1\u24613.png", "12.png"}


def test_find_images_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        find_images(tmp_path / "none")
    with pytest.raises(InputError, match=r"no photographs here \(no files\)"):
        find_images(tmp_path)
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"1 \.heic"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="missing"):
        find_images([tmp_path / "missing.png"])
    save(tmp_path / "x" / "a.png", picture())
    save(tmp_path / "y" / "a.jpg", picture())
    with pytest.raises(InputError, match=r"x/a\.png and .*y/a\.jpg have one name"):
        find_images([tmp_path / "x" / "a.png", tmp_path / "y" / "a.jpg"])


def test_photographs_in_subfolders_are_pointed_at(tmp_path: Path):
    save(tmp_path / "left" / "a.png", picture())
    save(tmp_path / "right" / "b.png", picture())
    with pytest.raises(InputError, match="no photographs here, but in left, right below it"):
        find_images(tmp_path)
    assert len(find_images(f"{tmp_path}/*/*.png")) == 2


def test_a_folder_among_several_is_no_missing_file(tmp_path: Path):
    save(tmp_path / "left" / "a.png", picture())
    with pytest.raises(InputError, match=r"left: this is a folder among several"):
        find_images([tmp_path / "left", tmp_path / "left"])


def test_colmap_masks_beside_the_photographs_are_not_photographs(tmp_path: Path):
    for name in ("a.jpg", "a.jpg.png", "b.jpg", "b.jpg.png", "c.jpg.png"):
        save(tmp_path / name, picture())
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.jpg", "c.jpg.png"]
    assert [path.name for path in find_images(f"{tmp_path}/a*")] == ["a.jpg"]
    assert find_masks([tmp_path / "a.jpg"], tmp_path) == [tmp_path / "a.jpg.png"]


def test_a_folder_that_cannot_be_read_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = save(tmp_path / "a.png", picture())

    def refuse(folder: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    named = rf"{re.escape(str(tmp_path))}: cannot be read \(Permission denied\); check its permissions"
    with pytest.raises(InputError, match=named):
        find_images(tmp_path)
    with pytest.raises(InputError, match=named):
        find_masks([image], tmp_path)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_accents_from_another_system_are_the_same(tmp_path: Path, forms: tuple[str, str]):
    one, other = (unicodedata.normalize(form, "é") for form in forms)
    image = save(tmp_path / "images" / f"{one}.png", picture())
    mask = save(tmp_path / "masks" / f"{other}.png", blob().astype(np.uint8) * 255)
    assert find_masks([image], tmp_path / "masks") == [mask]
    assert find_masks([image], {other: mask}) == [mask]
    images = [image, save(tmp_path / "images" / "b.png", picture())]
    for name in (f"{other}.png", other):
        job = make_job(images, None, None, make_config({}), {name: GivenCamera(np.array(K))})  # type: ignore[arg-type]
        assert [source.camera is not None for source in job.sources] == [True, False]
        assert list(given_cameras([f"{one}.png", "b.png"], {name: np.array(K)}, None)) == [f"{one}.png"]
    with pytest.raises(InputError, match="have one name"):
        find_images([image, save(tmp_path / "more" / f"{other}.png", picture())])


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("name", ["VIEW.PNG", "VIEW.mask.PNG", "VIEW.JPG.PNG", "VIEW.TIF"])
def test_masks_with_extensions_in_capitals_are_found(tmp_path: Path, name: str):
    image = save(tmp_path / "images" / "VIEW.JPG", picture())
    mask = save(tmp_path / "masks" / name, blob().astype(np.uint8) * 255)
    assert find_masks([image], tmp_path / "masks") == [mask]


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535)])
def test_labels_up_to_white_are_not_taken_for_a_soft_mask(tmp_path: Path, white: np.generic):
    labels = np.zeros((48, 64), white.dtype)
    labels[8:40, 8:30], labels[8:40, 30:56] = 1, white
    path = save(tmp_path / "labels.png", labels)
    with pytest.raises(InputError, match=rf"labels\.png: are 1 and {white} labels, or is this a soft mask"):
        read_mask(path, (64, 48))
    np.testing.assert_array_equal(read_mask(path, (64, 48), 1), labels == 1)
    np.testing.assert_array_equal(read_mask(path, (64, 48), int(white)), labels == white)
    assert mask_labels(path) == (1, int(white))


@pytest.mark.parametrize("shades", [2, 4, 8, 16, 256])
def test_antialiased_masks_and_trimaps_are_soft(tmp_path: Path, shades: int):
    y, x = np.mgrid[:48, :64]
    distance = 14 - np.hypot(y - 24, x - 32)  # px inside of a disc
    soft = np.rint(np.clip(distance / 3 + 0.5, 0, 1) * (shades - 1)) / (shades - 1) * 255
    path = save(tmp_path / "soft.png", np.rint(soft).astype(np.uint8))
    np.testing.assert_array_equal(read_mask(path, (64, 48)), np.rint(soft) >= 128)
    assert mask_labels(path) == ()
    trimap = np.where(distance > 4, 255, np.where(distance > -4, 128, 0)).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "trimap.png", trimap), (64, 48)), trimap > 0)


@pytest.mark.parametrize("name", ["a.png", "a.mask.png", "a.jpg.png", "a.tif", "a.webp"])
def test_masks_are_found_under_every_customary_name(tmp_path: Path, name: str):
    image = save(tmp_path / "images" / "a.jpg", picture())
    mask = tmp_path / "masks" / name
    save(mask, blob().astype(np.uint8) * 255, **({"lossless": True} if name.endswith("webp") else {}))
    found = find_masks([image], tmp_path / "masks")
    assert found == [mask]
    np.testing.assert_array_equal(read_mask(found[0], SIZE), blob())


def test_masks_beside_the_photographs_lists_and_mappings(tmp_path: Path):
    images = [save(tmp_path / f"{name}.png", picture()) for name in "ab"]
    masks = [save(tmp_path / f"{name}.mask.png", blob().astype(np.uint8) * 255) for name in "ab"]
    assert find_masks(images, tmp_path) == masks
    assert find_masks(images, masks) == masks
    assert find_masks(images, {"a": masks[0], "b.png": masks[1]}) == masks
    assert find_masks(images, None) == [None, None]
    with pytest.raises(InputError, match="2 photographs but 1 masks"):
        find_masks(images, masks[:1])
    with pytest.raises(InputError, match=r"no mask is given for b\.png"):
        find_masks(images, {"a": masks[0]})
    masks[1].unlink()
    with pytest.raises(InputError, match=r"b\.png: no mask in .*b\.mask\.png"):
        find_masks(images, tmp_path)
    with pytest.raises(InputError, match="no such folder of masks"):
        find_masks(images, tmp_path / "none")


def test_soft_masks_are_cut_at_one_half_and_labels_are_not(tmp_path: Path):
    soft = np.zeros((16, 24), np.uint8)
    soft[:, 6:12], soft[:, 12:18], soft[:, 18:] = 100, 140, 255
    np.testing.assert_array_equal(read_mask(save(tmp_path / "s.png", soft), SIZE), soft >= 140)
    labels = np.zeros((16, 24), np.uint8)
    labels[:, 6:12], labels[:, 12:18], labels[:, 18:] = 1, 2, 7
    for name, values in (("l8.png", labels), ("l16.png", labels.astype(np.uint16)), ("l.tif", labels.astype(np.int32))):
        path = save(tmp_path / name, values)
        np.testing.assert_array_equal(read_mask(path, SIZE), labels > 0)
        np.testing.assert_array_equal(read_mask(path, SIZE, 2), labels == 2)
        assert not read_mask(path, SIZE, 5).any()
    np.testing.assert_array_equal(read_mask(save(tmp_path / "s.png", soft), SIZE, 100), soft == 100)


@pytest.mark.parametrize("inside", [True, False])
def test_a_palette_of_black_and_white_counts_by_its_colours(tmp_path: Path, inside: bool):
    """Encoders put white first when it is rarer, or more frequent: the entries are then an inverted mask."""
    truth = blob() == inside
    white_first, black_second = (
        Image.fromarray((~truth).astype(np.uint8), mode="P"),
        Image.fromarray(np.where(truth, 5, 3).astype(np.uint8), mode="P"),
    )
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    black_second.putpalette([9] * 9 + [0, 0, 0, 7, 7, 7, 255, 255, 255])
    white_first.save(tmp_path / "w.png")
    black_second.save(tmp_path / "b.png")
    Image.fromarray(truth.astype(np.uint8) * 255).convert("RGB").save(tmp_path / "g.gif")
    Image.fromarray(truth.astype(np.uint8) * 255).convert("RGB").quantize(2).save(tmp_path / "q.png")
    for name in ("w.png", "b.png", "g.gif", "q.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, SIZE), truth, name)
        assert mask_labels(tmp_path / name) in ((), (1,))
    full = Image.fromarray(np.zeros((16, 24), np.uint8), mode="P")
    full.putpalette([255, 255, 255])
    full.save(tmp_path / "f.png")
    assert read_mask(tmp_path / "f.png", SIZE).all()


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
def test_soft_masks_in_a_palette_are_cut_at_one_half(tmp_path: Path, colours: int):
    ramp = np.repeat(np.linspace(-1, 1, 64)[None], 48, 0)
    soft = np.clip(127.5 + 1500 * (0.55 - np.abs(ramp)), 0, 255).astype(np.uint8)
    image = Image.fromarray(soft)
    for name, made in (
        ("q.png", image.convert("RGB").quantize(colours)),
        ("p.png", image.convert("P")),
        ("rgb.gif", image.convert("RGB")),
        ("l.gif", image),
    ):
        made.save(tmp_path / name)
        read = read_mask(tmp_path / name, (64, 48))
        assert (read != (soft >= 128)).mean() < 0.04, name  # a column on either side, where shades are few
    Image.fromarray(np.maximum(soft, 18)).convert("RGB").quantize(colours).save(tmp_path / "matte.png")
    assert (read_mask(tmp_path / "matte.png", (64, 48)) != (soft >= 128)).mean() < 0.04


def test_labels_in_a_palette_stay_labels_whatever_their_colours(tmp_path: Path):
    labels = np.zeros((16, 24), np.uint8)
    labels[:, 6:12], labels[:, 12:] = 1, 2
    for name, palette in (
        ("none", [0] * 9),
        ("white", [255] * 9),
        ("dim", [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        ("ramp", [0, 0, 0, 128, 128, 128, 255, 255, 255]),
        ("red", [0, 0, 0, 200, 0, 0, 255, 255, 255]),
    ):
        image = Image.fromarray(labels, mode="P")
        image.putpalette(palette)
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png", SIZE), labels > 0, name)
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png", SIZE, 2), labels == 2, name)


def test_masks_of_other_modes(tmp_path: Path):
    save(tmp_path / "bool.png", blob())
    np.testing.assert_array_equal(read_mask(tmp_path / "bool.png", SIZE), blob())
    white = blob().astype(np.uint8) * 255
    np.testing.assert_array_equal(read_mask(save(tmp_path / "rgb.png", np.dstack([white] * 3)), SIZE), blob())
    cut = np.dstack([picture(), white])
    np.testing.assert_array_equal(read_mask(save(tmp_path / "cut.png", cut), SIZE), blob())
    palette = Image.fromarray(np.where(blob(), 9, 0).astype(np.uint8), mode="P")
    palette.putpalette([n for n in range(256) for _ in range(3)])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", SIZE), blob())
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", SIZE, 9), blob())
    labelled = np.zeros((16, 24, 4), np.uint8)
    labelled[blob()] = (3, 3, 3, 255)
    labelled[0, 0] = (1, 1, 1, 255)
    path = save(tmp_path / "l.png", labelled)
    np.testing.assert_array_equal(read_mask(path, SIZE, 3), blob())
    assert mask_labels(path) == (1, 3)
    colours = np.zeros((16, 24, 3), np.uint8)
    colours[blob()] = (200, 10, 30)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "c.png", colours), SIZE), blob())
    with pytest.raises(InputError, match="one channel"):
        read_mask(tmp_path / "c.png", SIZE, 1)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "f.tif", blob().astype(np.float32)), SIZE), blob())
    np.testing.assert_array_equal(read_mask(save(tmp_path / "w.png", white.astype(np.uint16) * 257), SIZE), blob())


def test_a_mask_of_another_size_is_resized_only_if_its_ratio_fits(tmp_path: Path):
    half = blob()[::2, ::2]
    np.testing.assert_array_equal(read_mask(save(tmp_path / "h.png", half.astype(np.uint8) * 255), SIZE), blob())
    wrong = save(tmp_path / "w.png", np.zeros((16, 20), np.uint8))
    with pytest.raises(InputError, match=r"w\.png.*20x16.*24x16"):
        read_mask(wrong, SIZE)
    turned = save(tmp_path / "t.png", np.zeros((24, 16), np.uint8))
    with pytest.raises(InputError, match=r"16x24.*24x16.*upright"):
        read_mask(turned, SIZE)


def test_a_photograph_in_place_of_a_mask_is_noticed(tmp_path: Path):
    size = (120, 90)
    with pytest.raises(InputError, match="exchanged"):
        read_mask(save(tmp_path / "a.png", picture(size=size)), size)
    grey = np.linspace(0, 255, 120 * 90).reshape(90, 120).astype(np.uint8)
    with pytest.raises(InputError, match="exchanged"):
        read_mask(save(tmp_path / "b.png", grey), size)
    noisy = np.where(blob(size), 250, 4) + np.random.default_rng(0).integers(-4, 5, (90, 120))  # as JPEG leaves it
    np.testing.assert_array_equal(read_mask(save(tmp_path / "c.png", noisy.astype(np.uint8)), size), blob(size))


# ---------------------------------------------------------------- cameras


K = [[500.0, 0, 12.0], [0, 510.0, 8.0], [0, 0, 1]]
POSE = [[0, -1.0, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]


def test_cameras_from_json(tmp_path: Path):
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps({"a.png": {"K": K, "cam2w": POSE, "size": [24, 16]}, "b": {"K": K}, "c.png": {}}))
    cameras = read_cameras(path)
    np.testing.assert_array_equal(cameras["a.png"].intrinsics, K)
    np.testing.assert_array_equal(cameras["a.png"].world_from_cam, POSE)
    assert cameras["a.png"].size == (24, 16)
    assert cameras["b"].world_from_cam is None
    assert cameras["c.png"].intrinsics is None
    found = assign_cameras(["a.png", "b.jpg", "z.png"], cameras, "cameras.json")
    assert found[0] is cameras["a.png"]
    assert found[1] is cameras["b"]
    assert found[2] is None
    with pytest.raises(InputError, match="no camera fits"):
        assign_cameras(["x.png"], cameras, "cameras.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read as JSON"),
        ("[]", "expected"),
        ('{"a": 1}', "expected"),
        ('{"a": {"k": []}}', "unknown field 'k'"),
        ('{"a": {"K": [[1, 2], [3, 4]]}}', "3x3"),
        ('{"a": {"K": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]}}', "positive"),
        ('{"a": {"K": [[1, 1, 0], [0, 1, 0], [0, 0, 1]]}}', "K must be"),
        ('{"a": {"K": "x"}}', "3x3"),
        ('{"a": {"K": [[NaN, 0, 0], [0, 1, 0], [0, 0, 1]]}}', "K has a number that is not finite"),
        ('{"a": {"cam2w": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]}}', "without scale"),
        ('{"a": {"cam2w": [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}}', "mirroring"),
        ('{"a": {"size": [1, 2, 3]}}', "size"),
    ],
)
def test_a_bad_cameras_file_says_what_is_wrong(tmp_path: Path, content: str, message: str):
    path = tmp_path / "cameras.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_cameras(path)


def test_missing_cameras_files_and_folders_without_a_model(tmp_path: Path):
    with pytest.raises(InputError, match="no such cameras file"):
        read_cameras(tmp_path / "none.json")
    with pytest.raises(InputError, match="no COLMAP model"):
        read_cameras(tmp_path)
    (tmp_path / "cameras.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="not a COLMAP model"):
        read_cameras(tmp_path)


def write_colmap(folder: Path, model: str = "PINHOLE", params: str = "500 510 12.5 8.5") -> Path:
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"1 {model} 24 16 {params}\n")
    # cam_from_world: a quarter turn about z, then a shift
    (folder / "images.txt").write_text(f"1 {0.5**0.5} 0 0 {0.5**0.5} 1 2 3 1 sub/a.png\n\n")
    (folder / "points3D.txt").write_text("")
    return folder


def test_cameras_from_a_colmap_model_have_integer_pixel_centres(tmp_path: Path):
    write_colmap(tmp_path / "model" / "sparse" / "0")
    camera = read_cameras(tmp_path / "model")["a.png"]
    np.testing.assert_allclose(camera.intrinsics, [[500, 0, 12], [0, 510, 8], [0, 0, 1]])
    cam_from_world = np.array([[0, -1.0, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(camera.world_from_cam @ cam_from_world, np.eye(4), atol=1e-12)
    assert camera.size == (24, 16)


def test_distorted_colmap_cameras_are_refused_unless_their_distortion_is_zero(tmp_path: Path):
    write_colmap(tmp_path / "a", "OPENCV", "500 510 12.5 8.5 0.1 0 0 0")
    with pytest.raises(InputError, match="image_undistorter"):
        read_cameras(tmp_path / "a")
    write_colmap(tmp_path / "b", "SIMPLE_RADIAL", "500 12.5 8.5 0")
    np.testing.assert_allclose(read_cameras(tmp_path / "b")["a.png"].intrinsics[0], [500, 0, 12])
    write_colmap(tmp_path / "c", "SIMPLE_RADIAL", "500 12.5 8.5 0.02")
    with pytest.raises(InputError, match="SIMPLE_RADIAL"):
        read_cameras(tmp_path / "c")


@pytest.mark.parametrize("model", ["OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"])
def test_a_fisheye_is_no_pinhole_whatever_its_coefficients(tmp_path: Path, model: str):
    given = {"OPENCV_FISHEYE": "500 510 12.5 8.5 0 0 0 0", "SIMPLE_RADIAL_FISHEYE": "500 12.5 8.5 0"}
    write_colmap(tmp_path / "a", model, given.get(model, "500 12.5 8.5 0 0"))
    with pytest.raises(InputError, match=f"{model}.*image_undistorter"):
        read_cameras(tmp_path / "a")
    write_colmap(tmp_path / "b", "FULL_OPENCV", "500 510 12.5 8.5 0 0 0 0 0 0 0 0")
    np.testing.assert_allclose(read_cameras(tmp_path / "b")["a.png"].intrinsics[0], [500, 0, 12])


def test_cameras_in_sub_folders_keep_apart(tmp_path: Path):
    folder = write_colmap(tmp_path / "model")
    lines = [f"{n} 1 0 0 0 {n} 0 0 1 cam{n}/0001.jpg\n\n" for n in (1, 2)]
    (folder / "images.txt").write_text("".join([*lines, "3 1 0 0 0 3 0 0 1 cam1/0002.jpg\n\n"]))
    cameras = read_cameras(folder)
    assert sorted(cameras) == ["0002.jpg", "cam1/0001.jpg", "cam2/0001.jpg"]
    found = assign_cameras(["/set/cam2/0001.png", "/set/0002.jpg"], cameras, "model")
    assert [camera.world_from_cam[0, 3] for camera in found if camera is not None] == [-2, -3]
    with pytest.raises(InputError, match=r"'cam1/0001.jpg' and 'cam2/0001.jpg' fit /set/0001.jpg equally well"):
        assign_cameras(["/set/0001.jpg", "/set/0002.jpg"], cameras, "model")


def test_the_file_name_counts_before_the_stem_and_the_stem_must_tell_cameras_apart():
    cameras = {"a.jpg": GivenCamera(np.array(K)), "a.png": GivenCamera(np.eye(3))}
    with pytest.warns(UnusedCameras):
        assert assign_cameras(["a.png"], cameras, "cameras.json") == [cameras["a.png"]]
    with pytest.raises(InputError, match="equally well"):
        assign_cameras(["a.tif"], cameras, "cameras.json")


def test_cameras_that_fit_no_image_are_counted():
    cameras = {name: GivenCamera(np.array(K)) for name in ("a.jpg", "B.jpg", "img_c.jpg")}
    with pytest.warns(UnusedCameras, match=r"2 of 3 cameras fit no image .* 'B.jpg'; 1 of 2 images have one"):
        found = assign_cameras(["a.jpg", "b.jpg"], cameras, "cameras.json")
    assert found == [cameras["a.jpg"], None]


def test_intrinsics_for_another_size_are_scaled_about_the_pixel_corner():
    camera = GivenCamera(np.array(K), None, (24, 16))
    scaled = camera.intrinsics_for((48, 32), "a")
    np.testing.assert_allclose(scaled, [[1000, 0, 24.5], [0, 1020, 16.5], [0, 0, 1]])
    assert camera.intrinsics_for((24, 16), "a") is camera.intrinsics
    with pytest.raises(InputError, match=r"24x16.*30x16"):
        camera.intrinsics_for((30, 16), "a.png")


@pytest.mark.parametrize(
    ("matrix", "size", "message"),
    [
        (
            [[1.25, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]],
            None,
            r"focal length of 1\.25 px.*this photograph, 320x240",
        ),
        ([[1.25, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]], (640, 480), "focal length"),
        ([[24, 0, 159.5], [0, 24, 119.5], [0, 0, 1]], None, "focal length of 24 px"),  # in millimetres
        ([[400, 0, 0.5], [0, 400, 0.5], [0, 0, 1]], None, r"principal point \(0\.5, 0\.5\) in a corner"),
        ([[400, 0, 0], [0, 400, 0], [0, 0, 1]], None, "in a corner"),
        ([[800, 0, 318], [0, 800, 241], [0, 0, 1]], None, "in a corner"),  # of a photograph of twice the size
        ([[4000, 0, 1600], [0, 4000, 1200], [0, 0, 1]], None, "far outside"),
    ],
)
def test_a_camera_that_cannot_be_the_photographs_is_refused(matrix: list, size: tuple | None, message: str):
    with pytest.raises(InputError, match=rf"a\.png: K has .*{message}"):
        GivenCamera(np.array(matrix, float), None, size).intrinsics_for((320, 240), "a.png")


@pytest.mark.parametrize("point", [(159.5, 119.5), (-40, 300), (0, 120), (700, 120)])
def test_cameras_of_crops_and_wide_angles_are_taken(point: tuple[float, float]):
    matrix = np.array([[90, 0, point[0]], [0, 90, point[1]], [0, 0, 1]])
    assert GivenCamera(matrix).intrinsics_for((320, 240), "a.png") is matrix
    tiny = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 1.0]])
    assert GivenCamera(tiny).intrinsics_for((1, 1), "a.png") is tiny


def test_given_matrices_are_checked():
    assert check_intrinsics(None, "a") is None
    np.testing.assert_array_equal(check_pose(np.array(POSE)[:3], "a"), POSE)
    with pytest.raises(InputError, match="a: cam2w"):
        check_pose(np.zeros((4, 4)), "a")


@pytest.mark.parametrize("kept", [lambda p: p.astype(np.float32).tolist(), lambda p: p.round(4).tolist()])
def test_poses_of_few_digits_become_exact_rotations_and_exact_ones_stay(tmp_path: Path, kept):
    pose = make(exp_so3(np.array([0.3, -1.1, 0.7])), np.array([5e5, 4.5e6, 120.0]))
    (tmp_path / "cameras.json").write_text(json.dumps({"a.png": {"cam2w": kept(pose)}}))
    from_file = read_cameras(tmp_path / "cameras.json")["a.png"].world_from_cam
    from_python = given_cameras(["a.png"], None, [kept(pose)])["a.png"].world_from_cam
    assert from_file is not None
    np.testing.assert_array_equal(from_file, from_python)
    rotation = from_file[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-4)
    np.testing.assert_array_equal(from_file[:3, 3], np.array(kept(pose))[:3, 3])
    np.testing.assert_array_equal(check_pose(from_file, "a"), from_file)
    np.testing.assert_array_equal(check_pose(pose, "a"), pose)


def test_a_view_makes_its_pose_exact_and_refuses_what_is_no_pose():
    blank = View("a", np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool), None, np.eye(3), (2, 2), "")
    pose = make(1.0004 * exp_so3(np.array([0.3, -1.1, 0.7])), np.zeros(3))
    made = replace(blank, world_from_cam=pose.astype(np.float32)).world_from_cam
    assert made is not None
    assert made.dtype == np.float64
    assert np.linalg.det(made[:3, :3]) == pytest.approx(1, abs=1e-14)
    np.testing.assert_array_equal(replace(blank, world_from_cam=made).world_from_cam, made)
    with pytest.raises(InvalidProduct, match=r"View\(a\).world_from_cam: must be a rotation"):
        replace(blank, world_from_cam=np.diag([2.0, 2, 2, 1]))
