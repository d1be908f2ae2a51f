"""Pictures of matches: two photographs side by side, joined by lines."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from sparse_ga.products import Array, PairMatches, View

_GAP = 8
_DIM = 0.35


def _shown(view: View, scale: float) -> Image.Image:
    """The working image with its background dimmed, enlarged."""
    image = np.where(view.mask[..., None], view.image, (view.image * _DIM).astype(np.uint8))
    size = (round(view.width * scale), round(view.height * scale))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _spread(matches: PairMatches, most: int) -> Array:
    """Indices of at most `most` matches, surest first but spread over view i."""
    if len(matches) <= most:
        return np.arange(len(matches))
    order = np.argsort(-matches.confidence, kind="stable")
    cell = max(1.0, float(np.ptp(matches.xy_i, axis=0).max()) / np.sqrt(most))
    cells = np.floor(matches.xy_i[order] / cell).astype(int)  # (M, 2)
    _, first = np.unique(cells, axis=0, return_index=True)
    rest = np.setdiff1d(np.arange(len(order)), first)
    return order[np.concatenate([np.sort(first), rest])[:most]]


def _colour(x: float, y: float) -> tuple[int, int, int]:
    """Hue by direction from the middle, so that neighbours have like colours."""
    red, green, blue = colorsys.hsv_to_rgb((np.arctan2(y, x) / (2 * np.pi)) % 1.0, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_matches(view_i: View, view_j: View, matches: PairMatches, caption: str = "", most: int = 150) -> Image.Image:
    """Both working images side by side, background dimmed, with lines between matched pixels (working px).

    At most `most` lines are drawn, spread over the object. `caption` is written below.
    """
    scale = max(1.0, min(2.0, 640 / max(view_i.height, view_j.height)))
    left, right = _shown(view_i, scale), _shown(view_j, scale)
    width, height = left.width + _GAP + right.width, max(left.height, right.height)
    canvas = Image.new("RGB", (width, height + 20), (24, 24, 24))
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + _GAP, 0))
    draw = ImageDraw.Draw(canvas)
    chosen = _spread(matches, most)
    middle = matches.xy_i[chosen].mean(0) if len(chosen) else np.zeros(2)
    for k in chosen:
        start = (matches.xy_i[k] + 0.5) * scale
        end = (matches.xy_j[k] + 0.5) * scale + (left.width + _GAP, 0)
        colour = _colour(*(matches.xy_i[k] - middle))
        draw.line([*map(float, start), *map(float, end)], fill=colour, width=1)
        for x, y in (start, end):
            draw.ellipse([float(x) - 2, float(y) - 2, float(x) + 2, float(y) + 2], outline=colour)
    draw.text((6, height + 4), caption or f"{len(matches)} matches, {len(chosen)} drawn", fill=(230, 230, 230))
    return canvas
