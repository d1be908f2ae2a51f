"""Object masks: finding the file that belongs to a photograph, and reading it as True on the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_ga.errors import InputError
from sparse_ga.io.images import comparable, leads_nowhere, naming_what_is_forbidden, open_image, refuse_links_to_nowhere
from sparse_ga.io.resample import compare_sizes, resize_mask
from sparse_ga.products import Array

MasksArgument = str | Path | Sequence[str | Path] | Mapping[str, str | Path]

_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".bmp", ".gif")

# A file of labels up to white looks like a soft mask; but a soft mask has many shades, or dark ones along edges only.
_MOST_LABELS = 16
_DARK = 0.25  # of white
_LEAST_OF_A_LABEL = 0.01  # of what is not background
_NEARLY_GREY = 32  # largest difference between the channels
_MOST_LOSSY_LABEL = 64  # in brighter files, what lossy compression leaves around edges would count as labels
_DARK_COLOURS = (0.2, 0.6)  # of the brightness of most
_SHADE = 8  # brightness by which lossy compression changes the inside of an area
_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))


def _key(name: str) -> str:
    """What two names of one file have in common: cameras write extensions in capitals."""
    path = Path(comparable(name))
    return path.stem + path.suffix.lower()


def _files_by_name(folder: Path) -> dict[str, Path]:
    """The files of a folder by name and by `_key`."""
    files = sorted(path for path in folder.iterdir() if path.is_file() or leads_nowhere(path))
    return {_key(path.name): path for path in files} | {path.name: path for path in files}


def _mask_of(image: Path, files: Mapping[str, Path], folder: Path) -> Path:
    """The mask of `image` among the `files` of `folder`: NAME.EXT.png (COLMAP), NAME.mask.png, or the same stem."""
    names = [f"{image.name}.png", f"{image.stem}.mask.png", *(image.stem + suffix for suffix in _SUFFIXES)]
    for name in names:
        path = files.get(name) or files.get(_key(name))
        refuse_links_to_nowhere(() if path is None else (path,))
        if path is not None and not path.samefile(image):
            return path
    raise InputError(
        f"{image}: no mask in {folder}; put one there as {image.stem}.png, {image.stem}.mask.png or {image.name}.png, "
        "or leave the photograph out"
    )


def _refuse_shared(images: Sequence[Path], masks: Sequence[Path]) -> None:
    """Raise `InputError` where two photographs of one name, from two folders, would share the mask of that name."""
    first: dict[Path, Path] = {}
    for image, mask in zip(images, masks, strict=True):
        other = first.setdefault(mask, image)
        if other is not image and not other.samefile(image):
            raise InputError(
                f"{other} and {image} have one name, so that {mask} would be the mask of both; "
                "list the masks one by one, in the order of the photographs"
            )


@naming_what_is_forbidden()
def find_masks(images: Sequence[Path], masks: MasksArgument | None) -> list[Path | None]:
    """The mask file of every photograph: from a folder, a list in the same order, or a mapping by name.

    None when `masks` is None: alpha channels serve as masks then. Raises `InputError` naming what is missing.
    """
    if masks is None:
        return [None] * len(images)
    if isinstance(masks, Mapping):
        by_name = {comparable(str(name)): Path(path) for name, path in masks.items()}
        found = [by_name.get(comparable(path.name)) or by_name.get(comparable(path.stem)) for path in images]
        if None in found:
            name = images[found.index(None)].name
            raise InputError(f"no mask is given for {name}; add it to the masks, or leave the photograph out")
        return found
    if isinstance(masks, (str, Path)):
        folder = Path(masks)
        if folder.is_file() and len(images) == 1:
            return [folder]
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder of masks; check --masks")
        files = _files_by_name(folder)
        chosen = [_mask_of(path, files, folder) for path in images]
        _refuse_shared(images, chosen)
        return [*chosen]
    if len(masks) != len(images):
        raise InputError(f"{len(images)} photographs but {len(masks)} masks; give one mask for each, in the same order")
    return [Path(path) for path in masks]


def _is_lossy(path: Path, image: Image.Image) -> bool:
    """Whether the file's compression leaves noise around edges: JPEG, and WebP unless it is lossless."""
    if image.info.get("compression") in ("jpeg", "webp"):  # inside TIFF
        return True
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WEBP":
            return head[:2] == b"\xff\xd8"
        while len(chunk := file.read(8)) == 8:
            if chunk[:4] in (b"VP8 ", b"VP8L"):
                return chunk[:4] == b"VP8 "
            size = int.from_bytes(chunk[4:], "little")
            file.seek(size + size % 2, 1)
    return True  # an animation, whose frames are wrapped once more


def _is_nearly_grey(colours: Array) -> bool:
    """Whether (H, W, 3) are black, white and shades with a tint, as lossy compression or a conversion leaves them."""
    most, least = colours.max(-1), colours.min(-1)
    return bool(most.max(initial=0) >= 250 and (most - least).max(initial=0) <= _NEARLY_GREY)


def _are_a_photographs(colours: Array, lossy: bool) -> bool:
    """Whether colours (H, W, 3) are too many for labels; lossy compression makes thousands, but few off the edges."""
    codes = colours.reshape(-1, 3).astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)  # (H * W,)
    if not lossy or len(np.unique(codes)) <= 1000:
        return len(np.unique(codes)) > 1000
    bright = codes[colours.max(-1).ravel() >= 48]
    counts = np.sort(np.unique(bright, return_counts=True)[1])
    return len(bright) > 0.98 * len(codes) or bool(counts[:-64].sum() > 0.6 * len(bright))


def _refuse_photograph(path: Path, values: Array, lossy: bool) -> None:
    """Raise `InputError` when `values` (H, W) or (H, W, 3) look like a photograph: colours, or all shades of grey."""
    if values.ndim == 3 and _is_nearly_grey(values):
        values = values.max(-1)
    if values.ndim == 3:
        continuous = _are_a_photographs(values, lossy)
    else:
        grey = (values > 25) & (values < 230)
        counts = np.sort(np.unique(values, return_counts=True)[1])
        even = counts[-16:].sum() < 0.8 * values.size  # compressed masks have many shades too, but few frequent ones
        continuous = values.dtype == np.uint8 and len(counts) > 100 and float(grey.mean()) > 0.3 and bool(even)
    if continuous:
        raise InputError(f"{path}: this is a photograph, not a mask; are the folders of images and masks exchanged?")


def _open(path: Path) -> Image.Image:
    """The mask file; in black and white where it is a palette image that shows a mask and does not number labels.

    Encoders order the shades of a grey picture as they like: where white is entry 0, the entries are an inverted mask.
    """
    image = open_image(path, "mask")
    if image.mode != "P":
        return image
    colours, entries = np.asarray(image.convert("RGB")), np.asarray(image)
    grey = colours[..., 0]
    if (colours != grey[..., None]).any() or _numbers_labels(entries, grey):
        return image
    return Image.fromarray(grey if (grey == entries).all() else np.where(grey >= 128, np.uint8(255), np.uint8(0)))


def _numbers_labels(entries: Array, grey: Array) -> bool:
    """Whether palette entries (H, W) are labels and not shades: few, brighter the higher, 0 alone black, and each over
    areas; or the shades were never set. Entries that are their own shades are a grey image by another name.
    """
    used, first = np.unique(entries, return_index=True)
    shades = grey.reshape(-1)[first].astype(int)  # (K,)
    if len(np.unique(shades)) < len(shades):
        return True
    if len(used) > _MOST_LABELS or (used == shades).all() or (np.diff(shades) < 0).any():
        return False
    return (used[0] == 0) == (shades[0] == 0) and all(_covers_areas(entries, entry) for entry in used if entry)


def _labels_seen(colours: Array, alpha: Array) -> Array | None:
    """Small labels (H, W) that an image with transparency holds in its grey values, 0 where it is transparent."""
    seen = alpha >= 128
    values = np.where(seen, colours[..., 0], 0)
    grey = (colours[seen].min(-1) == colours[seen].max(-1)).all()
    return values if grey and 0 < values.max(initial=0) < 250 and len(np.unique(values)) <= _MOST_LABELS else None


def _plain(values: Array) -> Array:
    """Values (H, W) in this machine's byte order; in integers where floating point holds only such, as bytes or 16 bits
    where they fit. What is not finite says nothing of the object: background."""
    values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind != "f":
        return values
    values = np.where(np.isfinite(values), values, 0)
    least, most = float(values.min(initial=0)), float(values.max(initial=0))
    if least < 0 or most > 65535 or (values != np.rint(values)).any():
        return values
    return values.astype(np.uint8 if most <= 255 else np.uint16)


def _labels(path: Path, image: Image.Image) -> Array:
    """Mask file as (H, W) labels, (H, W) soft values in [0, 255], or (H, W, 3) colours; alpha wins if it cuts out
    anything but labels."""
    if image.mode in ("RGBA", "LA", "PA"):
        whole = np.asarray(image.convert("RGBA"))
        alpha = whole[..., 3]
        if alpha.min() < 128:
            labels = _labels_seen(whole[..., :3], alpha)
            return alpha if labels is None else labels
        image = image.convert("RGB")
    if image.mode in ("P", "1", "L", "I", "F") or image.mode.startswith("I;16"):
        return _plain(np.asarray(image))
    colours = np.asarray(image.convert("RGB"))  # (H, W, 3)
    grey = (colours[..., :1] == colours).all()
    return colours[..., 0] if grey else colours


def _is_soft(image: Image.Image, values: Array, lossy: bool) -> bool:
    """Whether values are degrees of being object (0 to white) and not labels: palette and small values are labels."""
    if image.mode == "P" or values.dtype == bool:
        return False
    if values.dtype == np.uint8 and values.max(initial=0) >= _MOST_LOSSY_LABEL and lossy:
        return True
    top = {np.dtype(np.uint8): 250, np.dtype(np.uint16): 65000}.get(values.dtype)
    return values.dtype.kind == "f" or (top is not None and int(values.max(initial=0)) >= top)


def _dark_labels(values: Array, lossy: bool) -> list[int]:
    """Values of soft-looking integers (H, W) that cover areas of their own, far darker than white: labels, rather; but
    lossy files cannot hold labels."""
    shades, counts = np.unique(values[values != 0], return_counts=True)
    if lossy or values.dtype.kind == "f" or len(shades) > _MOST_LABELS or min(values.shape) < 3:
        return []
    dark = shades < _DARK * np.iinfo(values.dtype).max
    if not dark.any():
        return []
    return [
        int(shade)
        for shade, count in zip(shades[dark], counts[dark], strict=True)
        if count >= _LEAST_OF_A_LABEL * counts.sum() and _covers_areas(values, shade)
    ]


def _covers_areas(values: Array, value: int) -> bool:
    """Whether at least half of the pixels of `values` (H, W) that have this value are among their like."""
    same = values == value
    inner = same[1:-1, 1:-1].copy()
    for y, x in _AROUND:
        inner &= same[1 + y : same.shape[0] - 1 + y, 1 + x : same.shape[1] - 1 + x]
    return bool(inner.sum() >= same.sum() / 2)


def _refuse_labels(path: Path, values: Array, lossy: bool) -> None:
    """Raise `InputError` for values (H, W) that may be soft or labels, of which the dark ones would be lost."""
    dark = _dark_labels(values, lossy)
    if dark:
        raise InputError(
            f"{path}: are {dark[0]} and {int(values.max())} labels, or is this a soft mask? Choose with --object "
            f"{dark[0]} or --object all, or make {dark[0]} black where it is background, white where it is object"
        )


def _half_of_most(path: Path, brightness: Array, soft: bool = False) -> Array:
    """Where a lossily compressed mask (H, W) uint8 reaches half the brightness of its object.

    Raises `InputError` where areas are so dark beside others that they would be lost; wide edges of a `soft` mask are
    none.
    """
    if brightness.max(initial=0) < _MOST_LOSSY_LABEL:  # black, with noise
        return np.zeros(brightness.shape, bool)
    white, dark = _dark_area(brightness, soft)
    if dark is not None:
        raise InputError(
            f"{path}: areas of brightness {dark} beside {white:.0f} may be object or not, and the compression blurs "
            "both; make the object white on black, or save the labels as PNG"
        )
    return brightness >= white / 2


def _dark_area(brightness: Array, soft: bool) -> tuple[float, int | None]:
    """Brightness of most of a mask (H, W) uint8, and that of areas far darker, which are of one shade in a `soft` mask;
    None if there are no such areas."""
    from scipy.ndimage import minimum_filter

    bright = brightness[brightness >= brightness.max(initial=0) / 2]
    white = float(np.median(bright))
    low, high = (share * white for share in _DARK_COLOURS)
    inner = brightness[minimum_filter((brightness >= low) & (brightness < high), 7, mode="constant", cval=False)]
    if len(inner) <= _LEAST_OF_A_LABEL * len(bright):
        return white, None
    shade = int(np.bincount(inner).argmax())
    alike = np.abs(inner.astype(int) - shade) <= _SHADE
    return white, shade if not soft or alike.mean() > 0.5 else None


def _select(path: Path, image: Image.Image, object_id: int | None) -> Array:
    """Foreground (h, w) bool of a mask file at its own size."""
    values, lossy = _labels(path, image), _is_lossy(path, image)
    if image.mode != "P":
        _refuse_photograph(path, values, lossy)
    if values.ndim == 3:
        if object_id is not None:
            raise InputError(f"{path}: --object needs masks with one channel of integer labels, this one has colours")
        grey = _is_nearly_grey(values) and (lossy or _dark_area(values.max(-1), soft=True)[1] is None)
        if not (grey or lossy):
            coloured: Array = np.any(values, axis=-1)
            return coloured
        values = values.max(-1)
        if not grey:
            return _half_of_most(path, values)
    if object_id is not None:
        return values == object_id
    if not _is_soft(image, values, lossy):
        black = 2 if lossy and path.suffix.lower() == ".webp" else 0  # its limited range makes 1 of black
        return (values < 0) | (values > black)
    if lossy and values.dtype == np.uint8:
        return _half_of_most(path, values, soft=True)
    _refuse_labels(path, values, lossy)
    white = 255 if values.dtype == np.uint8 else 65535 if values.dtype == np.uint16 else max(float(values.max()), 1e-9)
    return values >= white / 2


def read_mask(path: Path, size: tuple[int, int], object_id: int | None = None) -> Array:
    """Foreground (H, W) bool of the photograph of `size` (W, H) that the mask file belongs to.

    Grey values that reach white are degrees of being object, cut at one half, as is the brightness of lossy files;
    other integers are labels, of which `object_id` picks one and None all but 0, and other colours are object unless
    black. A mask of another size is resized if its ratio fits. Raises `InputError` when it does not, and when the file
    is broken or is a photograph.
    """
    image = _open(path)
    relation = compare_sizes(image.size, size)
    if relation in ("turned", "different"):
        hint = "the mask was made from the photograph before turning it upright" if relation == "turned" else ""
        hint = hint or "make it from this photograph"
        raise InputError(
            f"{path}: the mask is {image.size[0]}x{image.size[1]} but its photograph {size[0]}x{size[1]}; {hint}"
        )
    return resize_mask(np.ascontiguousarray(_select(path, image, object_id)), size)


def mask_labels(path: Path) -> tuple[int, ...]:
    """The integer labels in a mask file, without 0; none in a mask that is black and white, soft, or in colours."""
    image = _open(path)
    values, lossy = _labels(path, image), _is_lossy(path, image)
    if values.ndim == 3 or values.dtype.kind not in "iu":
        return ()
    if _is_soft(image, values, lossy) and not _dark_labels(values, lossy):
        return ()
    return tuple(int(value) for value in np.unique(values) if value != 0)


def describe_label_choice(path: Path) -> str:
    """Which labels a mask file holds, for messages: "labels 1, 2, 5"."""
    values = _labels(path, _open(path))
    if values.ndim == 3:
        return "colours"
    labels = [str(int(value)) for value in np.unique(values) if value != 0]
    return ("labels " + ", ".join(labels[:8])) if labels else "no labels"
