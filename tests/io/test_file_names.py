"""Names that would do harm later, and links that lead nowhere, are refused where files are looked for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_ga.cli import main
from sparse_ga.errors import InputError
from sparse_ga.io.images import find_images
from sparse_ga.io.masks import find_masks


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 24), 255, np.uint8)).save(path)
    return path


def test_a_name_that_is_not_utf8_is_to_be_changed(tmp_path: Path):
    save(tmp_path / "a.png")
    name = os.fsdecode(b"caf\xe9.png")
    try:
        os.rename(save(tmp_path / "b.png"), tmp_path / name)
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    for images in (tmp_path, f"{tmp_path}/*.png", [tmp_path / name]):
        with pytest.raises(InputError, match=r"caf\\xe9\.png: the name is not valid UTF-8; rename") as caught:
            find_images(images)
        str(caught.value).encode()


def test_links_that_lead_nowhere_are_named(tmp_path: Path):
    image, mask = save(tmp_path / "images" / "a.png"), save(tmp_path / "masks" / "a.png")
    link = tmp_path / "images" / "b.png"
    link.symlink_to("gone.png")
    for images in (image.parent, f"{image.parent}/*", [image, link]):
        with pytest.raises(InputError, match=r"b\.png: a link to gone\.png, which is not there"):
            find_images(images)
    link.unlink()
    (tmp_path / "masks" / "z.png").symlink_to("gone.png")  # of no photograph
    assert find_masks(find_images(image.parent), mask.parent) == [mask]
    mask.unlink()
    mask.symlink_to("gone.png")
    with pytest.raises(InputError, match=r"a\.png: a link to gone\.png"):
        find_masks([image], mask.parent)
    mask.unlink()
    mask.symlink_to(save(tmp_path / "there.png"))
    assert find_masks([image], mask.parent) == [mask]


def test_photographs_of_one_name_do_not_share_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture):
    images = [save(tmp_path / folder / "1.png") for folder in "ab"]
    mask = save(tmp_path / "masks" / "1.png")
    with pytest.raises(InputError, match=r"a/1\.png and .*b/1\.png have one name.*list the masks one by one"):
        find_masks(images, mask.parent)
    assert find_masks(images, [mask, mask]) == [mask, mask]
    assert find_masks([images[0], images[0]], mask.parent) == [mask, mask]
    words = ["match", *map(str, images), "--masks", str(mask.parent), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "would be the mask of both" in capsys.readouterr().err
