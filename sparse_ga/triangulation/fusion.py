"""One cloud from many depth maps: consistent pixels, merged in cells, inside every silhouette, cleaned and coloured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from sparse_ga._open3d import open3d
from sparse_ga.config import TriangulateConfig
from sparse_ga.products import Array
from sparse_ga.triangulation.consistency import Agreement, check_view, depth_normals, neighbour_views
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.triangulation.masks import MaskCheck, check_masks
from sparse_ga.triangulation.silhouettes import distance_outside, outside_votes
from sparse_ga.triangulation.views import Rig
from sparse_ga.work import advance

LoadSource = Callable[[int], tuple[Array, Array]]
"""Source photograph (H, W, 3) uint8 and source mask (H, W) bool of view n."""

_NORMAL_NEIGHBOURS = 40
_OUTLIER_NEIGHBOURS = 16
_OUTLIER_DEVIATIONS = 6.0
_RIM_PX = 1.0
_OUTLINE_PX = 3.0


@dataclass(frozen=True, eq=False)
class Cloud:
    """Oriented points with the confidence of each."""

    points: Array  # (P, 3) float64
    normals: Array  # (P, 3) float64, unit, towards the cameras
    confidence: Array  # (P,) float64 in [0, 1]

    def __len__(self) -> int:
        return len(self.points)

    def select(self, keep: Array) -> Cloud:
        """The points that `keep` (P,) bool, or an index array, picks."""
        return Cloud(self.points[keep], self.normals[keep], self.confidence[keep])

    @staticmethod
    def empty() -> Cloud:
        """No point."""
        return Cloud(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))


@dataclass(frozen=True, eq=False)
class Fusion:
    """A fused cloud, the depth maps it came from after averaging and cleaning, and what was found wrong on the way."""

    cloud: Cloud
    depths: list[DepthView]  # as given, with refined depths; inconsistent pixels removed
    wrong_masks: tuple[str, ...]
    votes: list[Array]  # (H, W) bool for each of the N views: the masks, mended where they are wrong
    diameter: float


def object_diameter(points: Array) -> float:
    """Diagonal of the box that holds 96 % of the points (P, 3) on each axis; 0 without points."""
    if len(points) == 0:
        return 0.0
    low, high = np.percentile(points, [2, 98], axis=0)
    return float(np.linalg.norm(high - low))


def inspect_masks(depths: list[DepthView], rig: Rig, names: Sequence[str], config: TriangulateConfig) -> MaskCheck:
    """Check the masks of the views against each other and against points that several views confirm.

    Where a mask is too large its view invents points off the object, and stretches the box that holds them all. Such
    points must not accuse other masks of holes, so the check is made again without them.
    """
    masks = silhouettes_of(depths, len(rig.registered))
    check = MaskCheck(masks, masks, ())
    for _ in range(2):
        points = _confident_points(depths, rig, config)
        if len(points) == 0:
            return check
        check = check_masks(rig, masks, tuple(names), points)
        if all(trusted is mask for trusted, mask in zip(check.depths, masks, strict=True)):
            return check
        depths = [_restrict(view, check.depths[view.index]) for view in depths]
    return check


def _confident_points(depths: list[DepthView], rig: Rig, config: TriangulateConfig) -> Array:
    """A sample (S, 3) of the points that other views confirm and that would be fused: only those accuse a mask."""
    confirmed_views = _consistent(depths, depth_neighbours(depths, rig), config)
    return sample_points(
        [
            replace(view, depth=np.where(view.confidence >= config.min_confidence, view.depth, 0))
            for view in confirmed_views
        ]
    )


def fuse(depths: list[DepthView], rig: Rig, check: MaskCheck, config: TriangulateConfig) -> Fusion:
    """Fuse the depth maps of registered views into one cloud.

    Every pixel is compared with a few neighbour views (linear in the number of views); pixels that enough of them
    confirm are averaged with them, merged in cells of a pixel's footprint, tested against all masks of `check`, and
    freed of statistical outliers.
    """
    checked = _consistent(depths, depth_neighbours(depths, rig), config)
    checked = [_restrict(view, check.depths[view.index]) for view in checked]
    if not any(view.valid.any() for view in checked):
        return Fusion(Cloud.empty(), checked, check.wrong, check.votes, 0.0)
    cell = config.voxel * object_diameter(sample_points(checked)) or _footprint(checked)
    cloud = _merge([_without_rim(view) for view in checked], cell)
    cloud = cloud.select(cloud.confidence >= config.min_confidence)
    cloud = cloud.select(outside_votes(rig, check.votes, cloud.points, config.silhouette_px) == 0)
    cloud = _clean(cloud)
    return Fusion(cloud, checked, check.wrong, check.votes, object_diameter(cloud.points))


def depth_neighbours(depths: list[DepthView], rig: Rig) -> list[Array]:
    """For each of the N views the views with depth that it is compared with."""
    usable = np.zeros(len(rig.registered), bool)
    usable[[view.index for view in depths if view.valid.any()]] = True
    points = sample_points(depths)
    center = np.median(points, axis=0) if len(points) else np.zeros(3)
    return neighbour_views(rig.world_from_cam, center, usable)


def silhouettes_of(depths: list[DepthView], count: int) -> list[Array]:
    """Masks (H, W) of all `count` views; a placeholder for those without depth, which have no say."""
    masks: list[Array] = [np.ones((1, 1), bool)] * count
    for view in depths:
        masks[view.index] = view.mask
    return masks


def sample_points(depths: list[DepthView], wanted: int = 100_000) -> Array:
    """An even sample (S, 3) of the world points of all views, about as many as `wanted`."""
    total = sum(int(view.valid.sum()) for view in depths)
    step = max(1, total // wanted)
    return np.concatenate([np.zeros((0, 3)), *(view.world_points()[::step] for view in depths)])


def _consistent(depths: list[DepthView], neighbours: list[Array], config: TriangulateConfig) -> list[DepthView]:
    """Depth maps with averaged depths, and without the pixels too few views confirm or too many see through."""
    tolerance = config.consistency * object_diameter(sample_points(depths))
    by_index = {view.index: view for view in depths}
    result = []
    for view in depths:
        others = [by_index[int(n)] for n in neighbours[view.index]]
        agreement = check_view(view, others, tolerance)
        keep = confirmed(agreement, config.min_views)
        share = np.minimum((agreement.agree + 1) / config.min_views, 1.0)
        depth, confidence = np.zeros_like(view.depth), np.zeros_like(view.confidence)
        depth[view.valid] = np.where(keep, agreement.depth, 0.0)
        confidence[view.valid] = np.where(keep, view.confidence[view.valid] * share, 0.0)
        result.append(replace(view, depth=np.maximum(depth, 0), confidence=confidence))
        advance()
    return result


def confirmed(agreement: Agreement, min_views: int) -> Array:
    """Pixels (F,) that enough views agree on (the view itself counts) and that no majority sees through.

    Of a pixel that fewer views see, all must agree and at least one; views in which it is hidden have no say.
    """
    wanted = np.clip(agreement.agree + agreement.conflict, 1, max(min_views - 1, 1))
    return (agreement.agree >= wanted) & (agreement.conflict <= agreement.agree)


def _restrict(view: DepthView, allowed: Array) -> DepthView:
    return replace(view, depth=np.where(allowed, view.depth, 0), confidence=np.where(allowed, view.confidence, 0))


def _without_rim(view: DepthView) -> DepthView:
    """Without the outermost pixels of the mask: they mix object and background, in depth as in colour."""
    inside = distance_outside(~np.pad(view.mask, 1, mode="edge"))[1:-1, 1:-1]
    return _restrict(view, inside > _RIM_PX)


def _footprint(depths: list[DepthView]) -> float:
    """Median side of a pixel on the surface, world units."""
    sides = [np.median(view.depth[view.valid]) / view.intrinsics[0, 0] for view in depths if view.valid.any()]
    return float(np.median(sides))


def _merge(depths: list[DepthView], cell: float) -> Cloud:
    """Points of all views averaged in cubic cells, weighted by confidence and by how squarely the surface is seen."""
    rows = []
    for view in depths:
        if not view.valid.any():
            continue
        points = view.world_points()
        normal = depth_normals(view) @ view.world_from_cam[:3, :3].T
        to_camera = view.world_from_cam[:3, 3] - points
        to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
        square = np.maximum((normal * to_camera).sum(1), 0.05)
        confidence = view.confidence[view.valid].astype(np.float64)
        rows.append(np.concatenate([points, normal, confidence[:, None], ((confidence + 1e-3) * square)[:, None]], 1))
    table = np.concatenate(rows)  # (Q, 8)
    corner = table[:, :3].min(0)
    index = np.floor((table[:, :3] - corner) / cell).astype(np.int64)  # (Q, 3)
    key = (index[:, 0] << 42) | (index[:, 1] << 21) | index[:, 2]
    group = np.unique(key, return_inverse=True)[1].reshape(-1)
    weight = np.bincount(group, table[:, 7])
    mean = np.stack([np.bincount(group, table[:, 7] * table[:, k]) for k in range(7)], 1) / weight[:, None]
    normal = mean[:, 3:6] / np.maximum(np.linalg.norm(mean[:, 3:6], axis=1, keepdims=True), 1e-12)
    return Cloud(mean[:, :3], normal, np.clip(mean[:, 6], 0, 1))


def _clean(cloud: Cloud) -> Cloud:
    """Without statistical outliers; normals from the neighbourhood, on the side of the depth maps' normals."""
    if len(cloud) <= _OUTLIER_NEIGHBOURS:
        return cloud
    o3d = open3d()
    pcd = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud.points))
    _, keep = pcd.remove_statistical_outlier(_OUTLIER_NEIGHBOURS, _OUTLIER_DEVIATIONS)
    cloud = cloud.select(np.asarray(keep, np.int64))
    pcd = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud.points))
    pcd.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(_NORMAL_NEIGHBOURS))
    normal = np.asarray(pcd.normals)
    facing = (normal * cloud.normals).sum(1, keepdims=True)
    normal = np.where(facing < 0, -normal, normal)
    sound = np.isfinite(normal).all(1) & (np.abs(np.linalg.norm(normal, axis=1) - 1) < 1e-3)
    return Cloud(cloud.points, np.where(sound[:, None], normal, cloud.normals), cloud.confidence)


def color_points(cloud: Cloud, working_from_source: Array, depths: list[DepthView], load_source: LoadSource) -> Array:
    """Colours (P, 3) uint8 from the source photographs: views that see a point squarely count most.

    A view sees a point when it faces it and its depth map has no nearer surface there; near the outline of its mask a
    photograph counts little, because object and background mix there. Points that no view sees take the colour of
    their nearest neighbour. Photographs are loaded one at a time.
    """
    total, weight = np.zeros((len(cloud), 3)), np.zeros(len(cloud))
    tolerance = 0.02 * object_diameter(cloud.points)
    for view in depths:
        xy, share = _visibility(cloud, view, tolerance)
        rows = np.nonzero(share > 0)[0]
        if len(rows) == 0:
            continue
        image, mask = load_source(view.index)
        color, inner = _sample_image(image, mask, xy[rows], np.linalg.inv(working_from_source[view.index]))
        total[rows] += (share[rows] * inner)[:, None] * color
        weight[rows] += share[rows] * inner
    lit = weight > 0
    if lit.any() and not lit.all():
        total[~lit] = (total[lit] / weight[lit, None])[cKDTree(cloud.points[lit]).query(cloud.points[~lit])[1]]
        weight[~lit] = 1
    return np.clip(np.rint(total / np.maximum(weight, 1e-300)[:, None]), 0, 255).astype(np.uint8)


def _visibility(cloud: Cloud, view: DepthView, tolerance: float) -> tuple[Array, Array]:
    """Working pixels (P, 2) of the points in a view, and how well it sees each, (P,); 0 where not at all."""
    offset = cloud.points - view.world_from_cam[:3, 3]
    cosine = -(offset * cloud.normals).sum(1) / np.maximum(np.linalg.norm(offset, axis=1), 1e-12)
    cam = cloud.points @ view.cam_from_world[:3, :3].T + view.cam_from_world[:3, 3]
    xy = cam[:, :2] / np.maximum(cam[:, 2:], 1e-12) * np.diag(view.intrinsics)[:2] + view.intrinsics[:2, 2]
    gap = cam[:, 2] - _nearest_depth(view, xy)
    clear = np.where(np.abs(gap) < tolerance, 1.0, np.where(gap < 0, 1e-3, 1e-6))
    return xy, np.where(cam[:, 2] > 0, np.clip(cosine, 0, 1) ** 6 * clear, 0.0)


def _nearest_depth(view: DepthView, xy: Array) -> Array:
    height, width = view.depth.shape
    column = np.clip(np.rint(xy[:, 0]), 0, width - 1).astype(np.int64)
    row = np.clip(np.rint(xy[:, 1]), 0, height - 1).astype(np.int64)
    depth = view.depth[row, column]
    return np.where(depth > 0, depth, np.inf)


def _sample_image(image: Array, mask: Array, xy: Array, source_from_working: Array) -> tuple[Array, Array]:
    """Colours (P, 3) float64 at working pixels (P, 2), and how far from the outline they are, (P,) in [0, 1].

    0 off the object, 1 from three working pixels inside it. Pixels off the mask have no part in a colour.
    """
    source = xy @ source_from_working[:2, :2].T + source_from_working[:2, 2]
    height, width = mask.shape
    inside = (source >= 0).all(1) & (source[:, 0] <= width - 1) & (source[:, 1] <= height - 1)
    safe = np.where(inside[:, None], source, 0.0)
    row, column = np.rint(safe[:, 1]).astype(np.int64), np.rint(safe[:, 0]).astype(np.int64)
    depth_px = distance_outside(~mask)[row, column] / source_from_working[0, 0]
    inner = np.where(inside, np.clip(depth_px / _OUTLINE_PX, 0, 1) ** 2, 0.0)
    return _masked_bilinear(image, mask, safe), inner


def _masked_bilinear(image: Array, mask: Array, xy: Array) -> Array:
    """Colours (P, 3) float64 at pixels (P, 2) inside the image, mixed of the neighbours on the mask; 0 without any."""
    height, width = mask.shape
    low = np.minimum(np.floor(xy).astype(np.int64), np.maximum(np.array([width, height]) - 2, 0))  # (P, 2)
    fx, fy = (xy - low).T
    total, weight = np.zeros((len(xy), 3)), np.zeros(len(xy))
    for x, across in ((low[:, 0], 1 - fx), (np.minimum(low[:, 0] + 1, width - 1), fx)):
        for y, down in ((low[:, 1], 1 - fy), (np.minimum(low[:, 1] + 1, height - 1), fy)):
            share = across * down * mask[y, x]  # (P,)
            total += share[:, None] * image[y, x]
            weight += share
    return total / np.maximum(weight, 1e-12)[:, None]
