"""Images as the trainer sees them: opened upright in RGB, resized and cropped, made a tensor."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageOps

from modules.files import walk_files

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]  # width, height

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".gif", ".tif", ".tiff"),
    *(".apng", ".jfif", ".jpe", ".jp2", ".j2k", ".dib", ".ico", ".mpo", ".pbm", ".pgm"),
    *(".pnm", ".ppm", ".psd", ".qoi", ".tga"),
    # Not Pillow's; listed so that such files are named as unreadable rather than passed over.
    *(".heic", ".heif", ".jxl"),
)
"""Suffixes of image files, lower case; where a name has several, the first wins."""

# Whatever a file is called. Not those that Pillow gives to another program (EPS to Ghostscript) or
# renders as a drawing: a file may say that it is one, and what then runs is beyond our reach.
_FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "AVIF", "GIF", "TIFF", "JPEG2000", "DIB", "ICO", "PPM", "PSD"),
    *("QOI", "TGA"),
)


def open_image(path: Path, *, at_least: Size | None = None) -> Image.Image:
    """Open an image file as a person sees it: upright, on white, in sRGB, its first frame.

    EXIF rotation is applied, transparency is composited on white, an embedded colour profile is
    converted to sRGB; 16-bit grey keeps its tones. With `at_least` (width, height, upright) a
    JPEG may be decoded at a fraction of its size, not below that one, which is much faster.

    Raises:
        ValueError: the file is no image, damaged, or unreasonably large; names the file.
    """
    try:
        with _open(path) as image:
            if at_least is not None:
                image.draft(None, at_least[::-1] if _is_turned(image) else at_least)
            image.load()
            profile = image.info.get("icc_profile")
            upright = _to_rgb(_turn_upright(image), profile)
            if upright is image:
                upright = image.copy()  # nothing of the file is left at it
            upright.info = {}  # the profile is applied; a copy that is saved must not name it
            return upright
    # Pillow's decoders answer damaged files with errors of every kind, SyntaxError among them.
    except Exception as error:
        raise ValueError(_describe(path, error)) from error


def read_size(path: Path) -> Size:
    """Return an image's upright width and height from its header alone.

    Raises:
        ValueError: as `open_image`.
    """
    try:
        with _open(path) as image:
            return image.size[::-1] if _is_turned(image) else image.size
    except Exception as error:
        raise ValueError(_describe(path, error)) from error


def open_alpha(path: Path) -> Image.Image | None:
    """Open an image file's transparency, upright: 0 is clear, 255 is solid; None if it has none.

    Raises:
        ValueError: as `open_image`.
    """
    try:
        with _open(path) as image:
            image.load()
            if not image.has_transparency_data:
                return None
            return _turn_upright(image).convert("RGBA").getchannel("A")
    except Exception as error:
        raise ValueError(_describe(path, error)) from error


def resize_and_crop(
    image: Image.Image, size: Size, *, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> tuple[Image.Image, tuple[int, int], Size]:
    """Scale an image until it covers `size` (width, height), and cut that from the centre.

    Returns the image, the cut's top and left in the scaled image, and the scaled width and height.
    """
    width, height = size
    resized = covering_size(image.size, size)
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    # Only the part that is kept is computed: scaling a very long image whole can take gigabytes.
    x, y = image.width / resized[0], image.height / resized[1]
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    return image.resize(size, resample, box=box), (top, left), resized


def covering_size(original: Size, size: Size) -> Size:
    """Return the least width and height in the shape of `original` that cover `size`."""
    scale = max(size[0] / original[0], size[1] / original[1])
    return max(size[0], round(original[0] * scale)), max(size[1], round(original[1] * scale))


def to_tensor(image: Image.Image, *, minimum: float = -1.0) -> Tensor:
    """Return an RGB image as a float32 tensor (3, H, W): black is `minimum`, white is 1."""
    import torch

    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255  # (3, H, W)
    return torch.from_numpy(np.ascontiguousarray(pixels * (1 - minimum) + minimum))


def image_files(directory: Path, *, exclude: Collection[Path] = ()) -> list[tuple[str, Path]]:
    """List a directory's images, sub-folders too, as (path within it, path), sorted.

    Hidden files and the folders in `exclude` are left out; loops of links do no harm.

    Raises:
        ValueError: `directory` is not a directory.
    """
    files = sorted(walk_files(directory, exclude=exclude))
    return [(f, directory / f) for f in files if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES]


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # Large scans are welcome; what is larger by far is still an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=_formats())


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # a build may lack AVIF


def _describe(path: Path, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{path}: is not an image that Pillow reads; convert it to PNG or remove it"
    if isinstance(error, Image.DecompressionBombError):
        return f"{path}: has too many pixels to be a picture; scale it down or remove it"
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file"
    reason = str(error) or type(error).__name__
    return f"{path}: can't be read ({reason}); replace or remove it"


def _is_turned(image: Image.Image) -> bool:
    """Say whether EXIF turns the image by a quarter, so that width and height change places."""
    try:
        return image.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception:
        return False  # a damaged EXIF block; the pixels may be whole


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(0x0112, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:
        return image  # as above


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bit(image)
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        white = Image.new("RGBA", foreground.size, "white")
        colour = _to_srgb(foreground.convert("RGB"), profile)
        colour.putalpha(foreground.getchannel("A"))
        return Image.alpha_composite(white, colour).convert("RGB")
    if image.mode not in ("CMYK", "L", "RGB"):
        image = image.convert("RGB")
    converted = _to_srgb(image, profile)
    return converted if converted.mode == "RGB" else converted.convert("RGB")


def _to_eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey, and floats of 0..1 or 0..255; Pillow itself would cut off at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    scale = 1 / 257
    if image.mode == "F":
        scale = 255 if values.max(initial=0) <= 1 else 1
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert from an embedded profile; one that is sRGB, broken or of other colours is ignored."""
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(source) or "").lower():
            return image
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
