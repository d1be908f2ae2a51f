"""Working images without their padding: nobody photographed it, so it is no background that a view sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparse_ga.products import (
    Alignment,
    Array,
    CanonicalView,
    DepthMaps,
    MaskStack,
    PairMatches,
    Reconstruction,
    VerifiedMatches,
    View,
)
from sparse_ga.triangulation.sparse import MatchedPairs


@dataclass(frozen=True, eq=False)
class _MovedMatches:
    """Matches whose pixels are counted from `corners` (N, 2)."""

    matched: MatchedPairs
    corners: Array

    def __call__(self, number: int) -> VerifiedMatches:
        (i, j), verified = self.matched.pairs[number], self.matched.load(number)
        found = verified.matches
        moved = PairMatches(found.xy_i - self.corners[i], found.xy_j - self.corners[j], found.confidence)
        return replace(verified, matches=moved)


@dataclass(frozen=True, eq=False)
class PhotographedParts:
    """The parts of working images that show the photographs, and everything in their pixels.

    Where they end is an image border like any other. `uncut` goes back to the pixels of the working images.
    """

    parts: tuple[tuple[slice, slice], ...]  # rows and columns of each of the N views

    @staticmethod
    def of(views: Sequence[View]) -> PhotographedParts:
        """Those of `views`."""
        return PhotographedParts(tuple(view.photographed for view in views))

    @property
    def corners(self) -> Array:
        """First pixel (N, 2) of every part, (x, y)."""
        return np.array([(columns.start, rows.start) for rows, columns in self.parts], np.int64).reshape(-1, 2)

    @property
    def part_from_working(self) -> Array:
        """(N, 3, 3)."""
        result = np.tile(np.eye(3), (len(self.parts), 1, 1))
        result[:, :2, 2] = -self.corners
        return result

    def views(self, views: Sequence[View]) -> list[View]:
        """The views, of the photographed parts alone."""
        return [
            replace(
                view,
                image=np.ascontiguousarray(view.image[part]),
                mask=np.ascontiguousarray(view.mask[part]),
                intrinsics=None if view.intrinsics is None else moved @ view.intrinsics,
                working_from_source=moved @ view.working_from_source,
            )
            for view, part, moved in zip(views, self.parts, self.part_from_working, strict=True)
        ]

    def canonical(self, canonical: Sequence[CanonicalView]) -> list[CanonicalView]:
        """The canonical views of the photographed parts; all anchors are there, as all of the mask is."""
        return [
            replace(
                view,
                depth=view.depth[part],
                confidence=view.confidence[part],
                anchor_xy=view.anchor_xy - corner.astype(view.anchor_xy.dtype),
                anchor_of_pixel=view.anchor_of_pixel[part],
            )
            for view, part, corner in zip(canonical, self.parts, self.corners, strict=True)
        ]

    def alignment(self, alignment: Alignment) -> Alignment:
        """The alignment with intrinsics for pixels of the photographed parts."""
        return replace(alignment, intrinsics=self.part_from_working @ alignment.intrinsics)

    def matched(self, matched: MatchedPairs) -> MatchedPairs:
        """The matches in pixels of the photographed parts."""
        return MatchedPairs(matched.pairs, _MovedMatches(matched, self.corners.astype(np.float32)))

    def uncut(self, result: Reconstruction, views: Sequence[View]) -> Reconstruction:
        """A reconstruction from the photographed parts with depth maps and masks of the whole working images."""
        if all(np.array_equal(shape, view.mask.shape) for shape, view in zip(result.masks.shapes, views, strict=True)):
            return result
        depths, confidences = [], []
        for n, (view, part) in enumerate(zip(views, self.parts, strict=True)):
            depth, confidence = np.zeros((2, *view.mask.shape), np.float32)
            depth[part], confidence[part] = result.depthmaps.view(n)
            depths.append(depth)
            confidences.append(confidence)
        return replace(
            result,
            working_from_source=np.stack([view.working_from_source for view in views]),
            depthmaps=DepthMaps.pack(depths, confidences),
            masks=MaskStack.pack([view.mask for view in views]),
        )
