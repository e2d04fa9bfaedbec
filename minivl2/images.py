"""Opening a picture as the RGB image its author saw, whatever file it comes in.

Lesson   lessons/01_tiles.ipynb          Tests   tests/test_images.py
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MOST_PIXELS = 100_000_000       # a 10,000 x 10,000 picture takes 300 MB as RGB; more is a mistake or an attack


class ImageError(ValueError):
    """A picture that cannot be read, or is not one."""


def open_image(source: str | Path | BinaryIO | Image.Image, name: str = "") -> Image.Image:
    """A path, an open file or a Pillow image -> an RGB image, upright. `name` is what messages call it.

    Turned as its EXIF data says, laid on white where it is transparent, 16-bit greys scaled to 8 (Pillow alone clips
    them, so that all but the darkest 256 of 65,536 become white), CMYK and palettes converted. Raises ImageError.
    """
    if not name:
        name = os.fspath(source) if isinstance(source, (str, Path)) else getattr(source, "filename", "") or "the image"
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        _check_size(image, name)
        return _to_rgb(ImageOps.exif_transpose(image), name)
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} claims to be larger than {MOST_PIXELS:,} pixels; scale it down first") from None
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as broken:      # Pillow's decoders raise all of these
        raise ImageError(f"{name} cannot be read: {broken}. Is the file complete?") from None


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height}: it has no pixels")
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"{name} is {width}x{height} pixels, more than {MOST_PIXELS:,}. Scale it down first: the model sees at most "
            "nine tiles of 384 x 384 anyway.")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):          # "I;16", "I;16B", and "I", in which Pillow hands over 16-bit greys too
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name} has 32-bit pixels, from {values.min()} to {values.max()}: what is white?")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels: which value is white? Convert it to 8 bits first.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
