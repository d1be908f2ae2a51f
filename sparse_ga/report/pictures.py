"""Pictures in a report: thumbnails with the mask's outline, matches drawn, as data URIs."""

from __future__ import annotations

import base64
import io

import cv2
import numpy as np
from PIL import Image

from sparse_ga.io.drawing import draw_matches
from sparse_ga.products import Array, View
from sparse_ga.report.details import PairPicture

REGISTERED_RGB = (46, 204, 113)
UNREGISTERED_RGB = (231, 76, 60)
_THUMBNAIL_PX = 320
_PAIR_PX = 1100
_DIM = 0.45
_CAPTION_PX = 20
_SUPERSAMPLED = 2


def data_uri(image: Image.Image, quality: int = 80) -> str:
    """A JPEG of an RGB image as a data URI; the same image gives the same text."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def outlined(image: Array | None, mask: Array, rgb: tuple[int, int, int], side: int = _THUMBNAIL_PX) -> Image.Image:
    """Thumbnail of an image (H, W, 3) uint8, background dimmed, with the outline of its mask (H, W) bool.

    Without an image the mask itself is shown.
    """
    shown = np.where(mask[..., None], 170, 60).astype(np.uint8).repeat(3, 2) if image is None else image.copy()
    if image is not None:
        shown = np.where(mask[..., None], shown, (shown * _DIM).astype(np.uint8))
    height, width = mask.shape
    scale = side * _SUPERSAMPLED / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    large = np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.BICUBIC)).copy()  # (h, w, 3)
    grown = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) > 127
    contours, _ = cv2.findContours(grown.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(large, contours, -1, rgb, 2 * _SUPERSAMPLED, cv2.LINE_AA)
    final = (max(1, size[0] // _SUPERSAMPLED), max(1, size[1] // _SUPERSAMPLED))
    return Image.fromarray(large).resize(final, Image.Resampling.BOX)


def pair_image(views: tuple[View, ...], picture: PairPicture) -> Image.Image:
    """Both photographs of a pair with lines between the matches."""
    view_i, view_j = views[picture.record.i], views[picture.record.j]
    image = draw_matches(view_i, view_j, picture.matches)
    image = image.crop((0, 0, image.width, image.height - _CAPTION_PX))  # the caption is the page's
    image.thumbnail((_PAIR_PX, _PAIR_PX))
    return image
