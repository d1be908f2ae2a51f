"""Which photographs share a camera: by size, and by the focal lengths that are known of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparse_ga.geometry.cameras import make_intrinsics
from sparse_ga.products import View
from sparse_ga.stages.ingest import name_cameras


def view(focal_px: float | None, size: tuple[int, int] = (1000, 800)) -> View:
    """A photograph of `size` (W, H) at a tenth of its resolution; `focal_px` in px of the photograph."""
    width, height = size[0] // 10, size[1] // 10
    k = None if focal_px is None else make_intrinsics(focal_px / 10, np.array([width / 2, height / 2]))
    image, mask = np.zeros((height, width, 3), np.uint8), np.ones((height, width), bool)
    return View(f"{focal_px}", image, mask, k, np.diag([0.1, 0.1, 1.0]), size, "digest")


def cameras(*focals_px: float | None) -> list[str]:
    return [named.camera for named in name_cameras([view(focal_px) for focal_px in focals_px], True)]


@pytest.mark.parametrize("start_px", np.geomspace(1000.0, 1011.0, 12).tolist())
def test_wherever_they_lie_nearly_equal_focal_lengths_are_one_camera_and_others_two(start_px: float) -> None:
    assert cameras(start_px, start_px * 1.0002) == ["", ""]
    assert cameras(start_px, start_px * 1.0098) == ["", ""]
    apart = cameras(start_px, start_px * 1.0103)
    assert len({*apart, ""}) == 3


def test_focal_lengths_are_cut_where_neighbours_are_apart() -> None:
    found = cameras(1230.0, 1500.0, 1227.4, None, 1227.65, 1510.0, 1700.0)
    assert found[0] == found[2] == found[4] != ""
    assert found[1] == found[5] != ""
    assert len({found[0], found[1], found[6], found[3]}) == 4
    assert found[3] == ""  # of this size there are several, and nobody knows which it is


def test_a_camera_is_the_same_upright_and_turned() -> None:
    views = [view(1200.0), view(1205.0, (800, 1000)), view(2000.0), view(1300.0, (600, 500))]
    found = [named.camera for named in name_cameras(views, True)]
    assert found[0] == found[1] not in ("", found[2])
    assert found[3] == ""
    assert [named.camera for named in name_cameras(views, False)] == [v.name for v in views]


def test_what_is_given_for_one_photograph_holds_for_others_of_its_zoom_whatever_exif_says() -> None:
    def with_exif(focal_px: float, given_px: float | None = None) -> View:
        made = view(given_px or focal_px)
        return replace(made, exif_focal_px=focal_px, intrinsics_source="exif" if given_px is None else "given")

    def found(*views: View) -> list[str]:
        return [named.camera for named in name_cameras(views, True)]

    assert found(with_exif(1000.0), with_exif(1000.0, 1050.0), with_exif(1000.0)) == ["", "", ""]
    two_zooms = found(with_exif(1000.0), with_exif(1000.0, 1050.0), with_exif(1400.0))
    assert two_zooms[0] == two_zooms[1] != two_zooms[2]
    several = found(with_exif(1000.0, 1050.0), with_exif(1000.0, 1090.0), with_exif(1000.0), with_exif(1000.0, 1051.0))
    assert several[0] == several[3]
    assert len(set(several)) == 3
