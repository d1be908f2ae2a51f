"""Surfaces far from the depth at hand, found by sweeping planes through the whole object (Collins, CVPR 1996).

Between matches a depth map is smooth, also where the surface is not: over a mug it spans the hollow from rim to rim,
and as all views see the same rims, they confirm each other's sheet. The refinement that follows looks only around that
sheet. So planes that face the camera, from the nearest to the farthest point of the object, are tried first, and taken
where they explain the photographs clearly better.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from sparse_ga.products import Array
from sparse_ga.triangulation.correlation import Crop, Picture, Surroundings, crop_of, over_all_views, score
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.triangulation.fusion import sample_points
from sparse_ga.triangulation.stereo import semi_global

_PLANES = 64
_WINDOW_PX = 7
_NEIGHBOURS = 4
_FAR = 0.05  # share of the diameter; what is nearer to the depth at hand is left to the refinement
_CLEARLY = 0.1  # how much better a plane must correlate than the depth at hand
_FAIR = 0.5  # and how well at least
_OUTLIERS_PERCENT = 1.0
_MARGIN = 0.1  # share of the object's extent along the optical axis


def search_planes(
    depths: list[DepthView], images: list[Array], neighbours: list[Array], diameter: float
) -> list[DepthView]:
    """Depth maps with the planes' depths where those explain the photographs clearly better.

    `images` are (H, W, 3) uint8 by view index, `neighbours` view indices by view index; `diameter` is the object's.
    """
    work = partial(_search_view, points=sample_points(depths), far=_FAR * diameter)
    return over_all_views(work, depths, Surroundings(images, neighbours), _NEIGHBOURS, halved=True)


def _search_view(view: DepthView, picture: Picture, others: list[Picture], points: Array, far: float) -> DepthView:
    """One view after the search; as it was when it has no depth or no neighbours."""
    if not others or not picture.view.valid.any():
        return view
    crop = crop_of(picture, _WINDOW_PX)
    planes = _plane_depths(view, points)
    scores = np.stack([score(crop, np.full_like(crop.depth, plane), picture.view, others) for plane in planes])
    index = semi_global(np.where(crop.weight > 0, 1 - scores, 0).astype(np.float32)).argmin(0)
    reached = np.take_along_axis(scores, index[None], 0)[0]
    better = (reached > _FAIR) & (reached > score(crop, crop.depth, picture.view, others) + _CLEARLY)
    better &= (np.abs(planes[index] - crop.depth) > far) & (crop.weight > 0)
    found = _doubled(np.where(better, planes[index], 0), crop, picture, view.depth.shape)
    return replace(view, depth=np.where(view.valid & (found > 0), found, view.depth))


def _plane_depths(view: DepthView, points: Array) -> Array:
    """Depths (K,) float32 of planes from the front of points (P, 3) to their back, evenly spaced in the images."""
    cam_from_world = view.cam_from_world
    depth = points @ cam_from_world[2, :3] + cam_from_world[2, 3]
    near, far = np.percentile(depth[depth > 0], [_OUTLIERS_PERCENT, 100 - _OUTLIERS_PERCENT])
    margin = _MARGIN * (far - near)
    return (1 / np.linspace(1 / max(near - margin, near / 2), 1 / (far + margin), _PLANES)).astype(np.float32)


def _doubled(values: Array, crop: Crop, picture: Picture, shape: tuple[int, int]) -> Array:
    """Values (h, w) of the crop as (H, W) float32 at twice the resolution, every one repeated; 0 around it."""
    whole = np.zeros(picture.view.depth.shape, np.float32)
    whole[crop.rows, crop.columns] = values
    return np.repeat(np.repeat(whole, 2, 0), 2, 1)[: shape[0], : shape[1]]
