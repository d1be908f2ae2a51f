"""Which photographs have one camera."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ga.geometry.cameras import make_intrinsics
from sparse_ga.products import View
from sparse_ga.stages.ingest import name_cameras


def photograph(name: str, size: tuple[int, int], focal_px: float | None) -> View:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    known = None if focal_px is None else make_intrinsics(focal_px, np.array([7.0, 5.0]))
    return View(name, image, image[..., 0] == 0, known, np.eye(3), size, "")


@pytest.mark.parametrize("shared", [True, False])
def test_upright_and_turned_photographs_of_one_zoom_have_one_camera(shared: bool) -> None:
    known = [((16, 12), 20.0), ((12, 16), 20.0), ((16, 12), 30.0), ((12, 16), 20.0), ((16, 12), None)]
    views = [photograph(f"{n}", size, focal) for n, (size, focal) in enumerate(known)]
    first, *others = (view.camera for view in name_cameras(views, shared))
    if not shared:
        assert [first, *others] == ["0", "1", "2", "3", "4"]
        return
    assert [camera == first for camera in others] == [True, False, True, False]
    assert len({view.camera for view in name_cameras(views[:2] + views[3:], shared)}) == 1
